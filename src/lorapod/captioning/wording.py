"""What a captioner is asked for: a request built from what is trained, and one changed by what was wrong with the answer.

A caption names what is to stay changeable in prompts and leaves out what the LoRA is to absorb; so the goal decides what is
left out, the base model's family whether sentences or tags are wanted and how many, and the trigger word what the subject is
called. Sources: the practice collected from captioning guides of several trainers; nothing here is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from lorapod.captioning.base import Ask, Unit
from lorapod.captioning.items import Subject
from lorapod.captioning.joycaption_style import JoyLength, JoyOption, JoyStyle, JoyType, word_count
from lorapod.data.checks.tokens import TextLimit, estimate

Goal = Literal["", "character", "style", "concept", "motion"]
Place = Literal["first", "subject", "none"]
"""Where the trigger word goes: before the caption, in place of the subject's first mention, or nowhere."""
Length = Literal["short", "medium", "long"]

GOALS: tuple[Goal, ...] = ("character", "style", "concept", "motion")
PLACES: tuple[Place, ...] = ("first", "subject", "none")
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")

JOYCAPTION_SYSTEM = "You are a helpful image captioner."

_WORDS = {"short": (8, 20), "medium": (25, 60), "long": (70, 130)}
"""Words of a caption of sentences, least and most."""
_TAGS = {"short": (5, 10), "medium": (12, 25), "long": (25, 40)}
_WORDS_A_TOKEN = 0.75
_LARGEST_ANSWER = 1600


class Fault(StrEnum):
    """What may be wrong with an answer; the value is the reason that a person is told."""

    EMPTY = "The answer was empty"
    CUT = "The answer was cut off before its end"
    GARBLED = "The answer holds characters that are none"
    THINKING = "The model thought aloud and did not come to an answer"
    REFUSED = "The model refused"
    LOOP = "The answer repeats itself"
    LIST = "The answer is a list or a document, not a caption"
    ABOUT_THE_IMAGE = "The answer speaks about the image in place of what is in it"
    NOT_TAGS = "The answer is sentences, not tags"
    NOT_PROSE = "The answer is tags, not sentences"
    TOO_LONG = "The caption is longer than the text encoder reads"
    NO_SUBJECT = "The caption does not name the subject that the trigger word is to replace"


_CHANGES = {
    Fault.EMPTY: "Answer with at least one sentence.",
    Fault.CUT: "Be brief.",
    Fault.GARBLED: "Answer in plain text.",
    Fault.THINKING: "Do not reason; answer at once with the caption alone.",
    Fault.REFUSED: "It is enough to say plainly what can be seen: objects, clothing, pose, setting, light. Nobody is to be "
    "identified or judged.",
    Fault.LOOP: "Say each thing once and stop.",
    Fault.LIST: "Write one paragraph of plain text, without a list, headings or markup.",
    Fault.ABOUT_THE_IMAGE: "Begin with the subject itself. Do not use the words image, picture, photo or video.",
    Fault.NOT_TAGS: "Write nothing but short tags with commas between them, no sentences.",
    Fault.NOT_PROSE: "Write whole sentences, not a list of tags.",
    Fault.NO_SUBJECT: "",
}
"""What is added to a request whose answer had the fault."""

_LEFT_OUT = {
    "character": "Do not describe what never changes about the main subject: face, eye colour, skin, build, age. Do "
    "describe clothing, hair style, pose, expression, framing, background and light.",
    "style": "Describe only what is shown: subject, scene, action and composition. Do not name the medium, the technique, "
    "the artist, the palette or the style.",
    "concept": "Describe who, where, framing and light. Do not describe the main concept's own shape or how it works.",
    "motion": "Say what moves, how and in which order, and what the camera does, in plain words such as pan, tilt, push in "
    "or static.",
}
"""By goal: what is described, and what is left to the LoRA."""


@dataclass(frozen=True)
class Wish:
    """What a person wants captions to be like.

    Attributes:
        trigger: The trigger word; empty for none.
        class_word: What the trigger word stands for, as in `woman`.
        goal: Of the training; empty for none.
        unit: Sentences or tags.
        place: Where the trigger word goes.
        length: How long captions are, within what the text encoder reads.
        limit: What the text encoder reads; None where it is not known.
        absorb: What the trigger word is to take in besides, in the person's words; it is left out of captions.
        notes: Said to the model besides.
        prompt: Asked in place of all of it.
        captioner: Whom it is asked; `joycaption` knows requests of one kind only.
        joycaption: What JoyCaption is asked for in place of what comes nearest to the rest.
    """

    trigger: str = ""
    class_word: str = ""
    goal: Goal = ""
    unit: Unit = "prose"
    place: Place = "first"
    length: Length = "medium"
    limit: TextLimit | None = field(default=None, compare=False)
    absorb: str = ""
    notes: str = ""
    prompt: str = ""
    captioner: str = ""
    joycaption: JoyStyle | None = None

    @property
    def tokens_left(self) -> int | None:
        """Tokens that a caption may have, beside a trigger word that is put before it; None where all lengths are fine."""
        if self.limit is None:
            return None
        beside = self.limit.count(f"{self.trigger}, ") if self.trigger and self.place == "first" else 0
        return self.limit.for_caption - beside

    def tokens(self, text: str) -> int:
        """Tokens of a text, counted where the base model's tokenizer is at hand, else estimated."""
        return self.limit.count(text) if self.limit else estimate(text)

    def most_words(self) -> int:
        """Most words of a caption: of its length, and of what the text encoder reads."""
        wanted = _WORDS[self.length][1]
        return wanted if self.tokens_left is None else min(wanted, int(self.tokens_left * _WORDS_A_TOKEN))


def ask_for(wish: Wish, subject: Subject) -> Ask:
    """The request about an item."""
    prompt = wish.prompt or (
        _joycaption(wish) if wish.captioner == "joycaption" else _prompt(wish, clip=subject.kind == "clip")
    )
    return Ask(
        path=subject.path,
        kind=subject.kind,
        prompt=prompt,
        system=JOYCAPTION_SYSTEM if wish.captioner == "joycaption" else "",
        seconds=subject.seconds if subject.kind == "clip" else None,
        width=subject.width,
        height=subject.height,
        facts=subject.facts(),
    )


def ask_again(wish: Wish, ask: Ask, fault: Fault, tokens: int = 0) -> Ask:
    """The request changed by what was wrong with its answer.

    Args:
        tokens: Of a caption that was too long.
    """
    change = _CHANGES.get(fault, "")
    if fault is Fault.TOO_LONG and wish.tokens_left is not None:
        share = min(1.0, wish.tokens_left / max(1, tokens))
        most = max(8, int(min(wish.most_words(), wish.tokens_left * _WORDS_A_TOKEN) * max(0.5, share)))
        change = f"Use at most {most} words; leave the least important out."
    if fault is Fault.NO_SUBJECT:
        change = f"Call the main subject “{wish.class_word}”."
    hotter = fault in (Fault.LOOP, Fault.GARBLED, Fault.REFUSED, Fault.EMPTY, Fault.THINKING)
    return replace(
        ask,
        prompt=ask.prompt if change in ask.prompt else f"{ask.prompt} {change}",
        temperature=min(1.0, max(ask.temperature, 0.4) + 0.2) if hotter else ask.temperature,
        max_tokens=min(_LARGEST_ANSWER, ask.max_tokens * 2) if fault is Fault.CUT else ask.max_tokens,
    )


def _prompt(wish: Wish, *, clip: bool) -> str:
    what = "video clip" if clip else "image"
    if wish.unit == "tags":
        least, most = _TAGS[wish.length]
        if wish.tokens_left is not None:
            most = max(least, min(most, wish.tokens_left // 3))
        wanted = (
            f"List {least} to {most} short tags for this {what} in lower case, with commas between them and the most "
            "important first."
        )
    else:
        least, most = _WORDS[wish.length][0], wish.most_words()
        wanted = f"Write a caption for this {what} in plain sentences, {min(least, most)} to {most} words long."
        wanted += " Tell what happens from beginning to end." if clip else ""
    called = f"Call the main subject “{wish.class_word}”." if wish.class_word else ""
    absorbed = f"Do not mention this: {wish.absorb.rstrip('.')}." if wish.absorb else ""
    known = f"You should know: {wish.notes.rstrip('.')}." if wish.notes else ""
    form = (
        "Answer with the tags alone."
        if wish.unit == "tags"
        else "Begin with the subject, not with “the image shows”. Do not guess at moods, names or what cannot be seen. "
        "Answer with the caption alone."
    )
    return " ".join(part for part in (wanted, called, _LEFT_OUT.get(wish.goal, ""), absorbed, known, form) if part)


_JOYCAPTION_LENGTHS: dict[Length, JoyLength] = {"short": "short", "medium": "medium-length", "long": "long"}


def _joycaption(wish: Wish) -> str:
    """A request in JoyCaption's form, then what the person said, a sentence each."""
    parts = [(wish.joycaption or _style(wish)).prompt()]
    if wish.goal == "style":
        parts.append("Do NOT mention the artist, the medium or the style.")
    if wish.absorb:
        parts.append(f"Do NOT mention {wish.absorb.rstrip('.')}.")
    if wish.notes:
        parts.append(wish.notes)
    return " ".join(parts)


def _style(wish: Wish) -> JoyStyle:
    """The type, length and options of JoyCaption's that come nearest to a wish."""
    options = [JoyOption.NO_RESOLUTION, JoyOption.NO_AMBIGUITY]
    name = ""
    if wish.goal == "character":
        options.insert(0, JoyOption.NO_FIXED_TRAITS)
    if wish.class_word and wish.goal in ("character", "concept"):
        options.insert(0, JoyOption.NAME)
        name = f"the {wish.class_word}"
    if wish.unit == "tags":
        return JoyStyle(JoyType.BOORU, _JOYCAPTION_LENGTHS[wish.length], tuple(options), name)
    is_counted = wish.tokens_left is not None or wish.length == "short"
    length = word_count(wish.most_words()) if is_counted else _JOYCAPTION_LENGTHS[wish.length]
    return JoyStyle(JoyType.DESCRIPTIVE, length, tuple(options), name)
