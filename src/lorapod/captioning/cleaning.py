"""What an answer is worth: the caption in it, or what is wrong with it.

What merely stands around a caption is taken away (`wrapping`), its trigger word is put where it belongs (`trigger`). What is
no caption (`faults`) is asked for again in other words, and in the end named, never written. A caption is never cut to fit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorapod.captioning.base import Answer, Ask
from lorapod.captioning.faults import (
    is_cut,
    is_garbled,
    loops,
    says_nothing,
    speaks_of_the_image,
    stops_short,
    without_opening,
)
from lorapod.captioning.items import Subject
from lorapod.captioning.judging import Accepted, AskAgain, Verdict
from lorapod.captioning.trigger import place_trigger
from lorapod.captioning.wording import Fault, Wish, ask_again, ask_for
from lorapod.captioning.wrapping import unwrapped
from lorapod.data.checks.refusals import refuses

__all__ = ["Cleaned", "Judge", "clean", "is_cut", "loops", "place_trigger", "refuses", "speaks_of_the_image", "unsound"]

_MOST_WORDS_OF_A_TAG = 12
_FEWEST_TAGS = 8
"""Pieces between commas from which on a text may be a list of tags."""
_EMOTICON = 3
"""Letters of a tag up to which an underscore is part of a face, as in `^_^`."""
_WEIGHTED = re.compile(r"^\(+([^()]+?)(?::\d+(?:\.\d+)?)?\)+$")


@dataclass(frozen=True)
class Cleaned:
    """What is in an answer.

    Attributes:
        text: The caption, with its trigger word; what is left of the answer where there is a fault.
        fault: What is wrong with it.
    """

    text: str
    fault: Fault | None = None


@dataclass(frozen=True)
class Judge:
    """Asks for what a person wants, and judges answers by it: a runner's `Judging`."""

    wish: Wish = field(default_factory=Wish)

    def ask(self, subject: Subject) -> Ask:
        """The request about an item."""
        return ask_for(self.wish, subject)

    def __call__(self, ask: Ask, answer: Answer, repeats: int) -> Verdict:
        found = clean(answer.text, self.wish, complete=answer.complete)
        if found.fault is None:
            return Accepted(found.text)
        shown = " ".join(answer.text.split())[:80]
        reason = f"{found.fault.value}: “{shown}”" if shown else found.fault.value
        tokens = self.wish.tokens(found.text) if found.fault is Fault.TOO_LONG else 0
        return AskAgain(ask_again(self.wish, ask, found.fault, tokens), reason)

    def unsound(self, text: str) -> str | None:
        """Why a caption would not be accepted if a model gave it now; None where it would."""
        found = clean(text, self.wish)
        return None if found.fault is None else found.fault.value


def unsound(judges: Sequence[Judge], text: str) -> str | None:
    """Why a caption file's text would not be written now, with a judge a line; None where it would."""
    lines = text.splitlines()
    if len(lines) != len(judges):
        return f"It holds {len(lines)} of {len(judges)} captions" if text else "It is empty"
    return next(filter(None, (judge.unsound(line) for judge, line in zip(judges, lines, strict=True))), None)


def clean(text: str, wish: Wish, *, complete: bool = True) -> Cleaned:
    """The caption in an answer, with its trigger word where it belongs.

    Args:
        complete: False where the answer was cut at its greatest length.
    """
    bare, fault = unwrapped(text, wish.unit)
    fault = _no_caption(bare, fault, complete=complete)
    if fault:
        return Cleaned("" if fault is Fault.EMPTY else bare, fault)
    bare, fault = _tags(bare) if wish.unit == "tags" else _prose(bare)
    return Cleaned(bare, fault) if fault else _fitted(bare, wish)


def _no_caption(bare: str, fault: Fault | None, *, complete: bool) -> Fault | None:
    """What is wrong with a text whatever it is to be made of; a loop explains an end that is missing."""
    if fault is Fault.THINKING:
        return fault
    if loops(bare):
        return Fault.LOOP
    if says_nothing(bare):
        return fault or Fault.EMPTY
    if fault:
        return fault
    if refuses(bare):
        return Fault.REFUSED
    if is_garbled(bare):
        return Fault.GARBLED
    return None if complete else Fault.CUT


def _prose(text: str) -> tuple[str, Fault | None]:
    bare = without_opening(text)
    if speaks_of_the_image(bare):
        return bare, Fault.ABOUT_THE_IMAGE
    if is_cut(bare) or stops_short(bare):
        return bare, Fault.CUT
    return bare, Fault.NOT_PROSE if _looks_like_tags(bare) else None


def _looks_like_tags(text: str) -> bool:
    pieces = [piece.split() for piece in text.rstrip(".").split(",") if piece.strip()]
    words = [len(piece) for piece in pieces]
    if len(words) < _FEWEST_TAGS or ". " in text or max(words) > 5 or sum(words) > 2.5 * len(words):
        return False
    return sum(piece[0].casefold() in ("a", "an", "the") for piece in pieces) * 2 < len(pieces)


def _tags(text: str) -> tuple[str, Fault | None]:
    """Tags as the encoders know them: without underscores, weights and hashes, each once."""
    pieces = [piece.strip() for piece in re.split(r"[,;\n]", text)]
    if len(pieces) < 3 and text.count("#") >= 3:
        pieces = text.replace(",", " ").split()
    pieces = [_WEIGHTED.sub(r"\1", piece.lstrip("#").rstrip(".").strip()) for piece in pieces]
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        return text, Fault.EMPTY
    too_many = len(pieces) < 3 and len(text.split()) > _MOST_WORDS_OF_A_TAG
    if too_many or any(len(piece.split()) > _MOST_WORDS_OF_A_TAG for piece in pieces):
        return text, Fault.NOT_TAGS
    once: dict[str, str] = {}
    for piece in pieces:
        tag = " ".join(piece.replace("_", " ").split()) if len(piece) > _EMOTICON else piece
        once.setdefault(tag.casefold(), tag)
    return ", ".join(once.values()), None


def _fitted(text: str, wish: Wish) -> Cleaned:
    placed = place_trigger(text, wish)
    if placed is None:
        return Cleaned(text, Fault.NO_SUBJECT)
    longest = wish.limit.for_caption if wish.limit else len(placed)  # a token is a character at least
    if len(placed) > longest and wish.tokens(placed) > longest:
        return Cleaned(placed, Fault.TOO_LONG)
    return Cleaned(placed)
