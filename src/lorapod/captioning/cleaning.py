"""What an answer is worth: the caption in it, or what is wrong with it.

What merely stands around a caption (a preamble, quotes, markup, “the image shows”) is taken away. What is no caption (a
refusal, a loop, a sentence without an end) is asked for again in other words, and in the end named, never written. A caption
is never cut to fit. All of it is rules in this file, for English; other languages pass where they look like none of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field

from lorapod.captioning.base import Answer, Ask
from lorapod.captioning.items import Subject
from lorapod.captioning.runner import Accepted, AskAgain, Verdict
from lorapod.captioning.wording import Fault, Wish, ask_again, ask_for

_MEDIUM = (
    r"(?:image|picture|photo(?:graph)?|frame|scene|video(?: clip)?|clip|footage|illustration|artwork|screenshot|shot)"
)
_SHOWS = (
    r"(?:shows|depicts|features|captures|portrays|presents|displays|illustrates|contains|showcases"
    r"|(?:opens|begins) with)"
)

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"^```[\w-]*\s*\n?(.*?)\n?```$", re.DOTALL)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|great|yes)\b[^:\n]{0,40}[!.,:]\s*)?"
    r"(?:(?:here(?:['’]s| is| are| you go)\b|this is (?:a|the|your) (?:caption|description)\b|below is\b)[^:\n]{0,120}:\s*"
    r"|\**(?:caption|description|image description|video description|tags|prompt|answer|output|final answer)\**\s*"
    r"(?:\([^)\n]{0,40}\))?\s*[:\-–]\**\s*)",
    re.IGNORECASE,
)  # fmt: skip
_ONLY_ASSENT = re.compile(r"^(?:sure|certainly|of course|absolutely|okay|ok|great)[!.,]\s+(?=[A-Z\"“])", re.IGNORECASE)
_CLOSING = re.compile(
    r"\s*(?:\n|(?<=[.!?]))\s*(?:let me know\b|i hope (?:this|that)\b|would you like\b|feel free to\b|please let me know\b"
    r"|if you(?:['’]d| would| need| want)\b[^.]*\blet me know|note: this (?:caption|description)\b)[^\n]*$",
    re.IGNORECASE,
)  # fmt: skip
_REFUSAL = re.compile(
    r"^(?:i['’]?m (?:really |very )?sorry|i am (?:really |very )?sorry|sorry,|i apologi[sz]e|unfortunately,? i\b"
    r"|i cannot\b|i can['’]?t\b|i can not\b|i['’]?m (?:unable|not able)\b|i am (?:unable|not able|programmed)\b"
    r"|i (?:won['’]?t|will not)\b"
    r"|as an ai\b|i['’]?m just an? (?:ai|language model)|unable to (?:describe|caption|assist|process|help)"
    r"|i do(?:n['’]?t| not) (?:feel comfortable|see an? (?:image|picture|photo|video)|have the ability)"
    r"|(?:no|there is no) (?:image|picture|video) (?:was |is )?(?:provided|attached)|i must decline\b|request declined)",
    re.IGNORECASE,
)
_REFUSAL_LATER = re.compile(
    r"\bi (?:cannot|can['’]?t|am unable to|['’]?m unable to|won['’]?t) "
    r"(?:identify|assist|help|describe|provide|continue|fulfil)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    rf"^(?:in|on) (?:this|the) {_MEDIUM},?\s+"
    r"(?:we (?:can )?see\s+|you can see\s+|there (?:is|are)\s+|one (?:can )?sees?\s+)?"
    rf"|^(?:this|the) (?:[\w-]+ ){{0,3}}?{_MEDIUM} (?:prominently |vividly |clearly |simply )?"
    rf"{_SHOWS}\s+(?!that\b|how\b|what\b)"
    rf"|^(?:this|the) {_MEDIUM} (?:is (?=an? (?:[\w-]+,? ){{0,6}}{_MEDIUM} of\b)|is of\s+)"
    rf"|^this is (?=an? (?:[\w-]+,? ){{0,6}}{_MEDIUM} of\b)"
    rf"|^we (?:can )?see\s+|^there (?:is|are) (?=an? |the |two |three |several |many |some )"
    rf"|^an? {_MEDIUM} (?:showing|depicting|featuring|of)\s+(?=an? |the |two |three |several )",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    rf"(?:^|[.!?]\s+)(?:the|this) (?:overall )?{_MEDIUM}(?: also| further| prominently| vividly)* {_SHOWS}\b"
    rf"|(?:^|[.!?]\s+)in (?:summary|conclusion),?\s+(?:the|this) {_MEDIUM}\b",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_HEADING = re.compile(r"^\s*#{1,6}\s+")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?!\w)|`([^`\n]+)`")
_CUT_END = re.compile(
    r"(?:[,;:(\-–—]|\b(?:a|an|the|and|or|with|of|in|on|at|to|is|are|her|his|their|its|by|for|from))$", re.I
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_ADJECTIVE = r"(?!(?:an?|the|one|this|and|or|of|in|on|at|with|to|by|is|are)\b)[\w-]+"
_LONG_WORDS = 12
_LOOP_TIMES = 3


@dataclass(frozen=True)
class Cleaned:
    """What is in an answer.

    Attributes:
        text: The caption, without its trigger word; what is left of the answer where there is a fault.
        fault: What is wrong with it.
    """

    text: str
    fault: Fault | None = None


@dataclass(frozen=True)
class Judge:
    """Asks for what a person wants, and judges answers by it: a runner's `Wording` and `Cleaning`."""

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


def clean(text: str, wish: Wish, *, complete: bool = True) -> Cleaned:
    """The caption in an answer, with its trigger word where it belongs.

    Args:
        complete: False where the answer was cut at its greatest length.
    """
    bare, fault = _unwrapped(text)
    if fault:
        return Cleaned(bare, fault)
    if not bare:
        return Cleaned("", Fault.EMPTY)
    if refuses(bare):
        return Cleaned(bare, Fault.REFUSED)
    if loops(bare):
        return Cleaned(bare, Fault.LOOP)
    if not complete:
        return Cleaned(bare, Fault.CUT)
    if wish.unit == "tags":
        bare, fault = _tags(bare)
    else:
        bare, fault = _prose(bare)
    if fault:
        return Cleaned(bare, fault)
    return _fitted(bare, wish)


def refuses(text: str) -> bool:
    """Whether a text declines to be a caption."""
    start = text.strip().lstrip("\"'“*")
    return bool(_REFUSAL.match(start)) or (len(start) < 400 and bool(_REFUSAL_LATER.search(start)))


def loops(text: str) -> bool:
    """Whether a text repeats itself as a language model does that has lost its thread."""
    if re.search(r"(.{1,3}?)\1{15,}", text):  # signs in a row
        return True
    sentences = [part.strip().casefold() for part in _SENTENCES.split(text) if len(part.split()) > 2]
    counts = Counter(sentences)
    if sentences and (
        max(counts.values()) >= _LOOP_TIMES or (len(sentences) > 3 and len(counts) * 2 <= len(sentences))
    ):
        return True
    parts = [part.strip().casefold() for part in text.split(",") if part.strip()]
    if len(parts) >= 10 and len(set(parts)) * 2 <= len(parts):
        return True
    words = re.findall(r"[\w'’-]+", text.casefold())
    for size in range(1, 13):
        run, least = 0, max(_LOOP_TIMES, 6 // size + 1)
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            if run >= size * (least - 1) and not (size == 1 and words[at].isdigit()):
                return True
    return False


def speaks_of_the_image(text: str) -> bool:
    """Whether a sentence of it is about the picture rather than what is in it."""
    return bool(_ABOUT.search(text))


def is_cut(text: str) -> bool:
    """Whether a text ends in the middle of a sentence."""
    end = text.rstrip()
    if end.count("(") > end.count(")") or end.count("“") > end.count("”"):
        return True
    return len(end.split()) > 3 and bool(_CUT_END.search(end))


def place_trigger(text: str, wish: Wish) -> str | None:
    """The caption with the trigger word where it belongs, and nowhere else; None where there is no subject to replace."""
    word = wish.trigger.strip()
    if not word or wish.place == "none":
        return text
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
    capital = re.compile(rf"(?:(?<=^)|(?<=[.!?] )){re.escape(word[:1].upper() + word[1:])}(?![\w-])")
    plain = capital.sub(word, text)
    if wish.place == "subject" and not pattern.search(plain):
        if not wish.class_word:
            return None
        subject = re.compile(
            rf"\b(?:an?|the|one|this) (?:{_ADJECTIVE},? ){{0,3}}?{re.escape(wish.class_word)}\b(?!-)", re.IGNORECASE
        )
        plain, replaced = subject.subn(word, plain, count=1)
        if not replaced:
            plain, replaced = re.compile(rf"\b{re.escape(wish.class_word)}\b", re.I).subn(word, plain, count=1)
        return plain if replaced else None
    found = list(pattern.finditer(plain))
    if wish.place == "first":
        lead = re.match(rf"{re.escape(word)}(?:\s*[,:–-]\s*|\s+(?=an?\b|the\b))", plain)
        if lead is None and found and found[0].start() == 0:
            return _others_named(plain, found[1:], wish)  # “ohwx stands …”: it is first
        body = plain[lead.end() :] if lead else plain
        body = _others_named(body, list(pattern.finditer(body)), wish)
        return f"{word}, {body}"
    return _others_named(plain, found[1:], wish)


def _others_named(text: str, found: list[re.Match[str]], wish: Wish) -> str:
    """Mentions of the trigger word replaced by the class word, so that it is there once."""
    for match in reversed(found):
        name = f"the {wish.class_word}" if wish.class_word else "the subject"
        before = text[: match.start()].rstrip()
        if wish.class_word and text[match.end() :].lstrip().casefold().startswith(wish.class_word.casefold()):
            name = ""  # “the ohwx woman”
        elif not before or before[-1] in ".!?":
            name = name[:1].upper() + name[1:]
        text = text[: match.start()] + name + text[match.end() :]
    return re.sub(r" {2,}", " ", text).replace(" ,", ",").strip()


def _unwrapped(text: str) -> tuple[str, Fault | None]:
    """The text without what models put around a caption."""
    bare = _THOUGHT.sub("", text).strip()
    if _THINK.search(bare):
        _, closed, after = bare.rpartition("</think>")
        if not closed or not after.strip():
            return bare, Fault.THINKING
        bare = after.strip()
    fence = _FENCE.match(bare)
    bare = fence[1].strip() if fence else bare
    if bare[:1] == "{" and bare[-1:] == "}":
        bare = _from_json(bare)
    bare = _unquoted(bare)
    for pattern in (_PREAMBLE, _ONLY_ASSENT):
        bare = _unquoted(pattern.sub("", bare, count=1).strip())
    bare = _PREAMBLE.sub("", bare, count=1).strip()
    bare = _unquoted(_CLOSING.sub("", bare).strip())
    lines = [line for line in bare.splitlines() if line.strip()]
    if sum(bool(_BULLET.match(line)) for line in lines) > 1 or sum(bool(_HEADING.match(line)) for line in lines) > 1:
        return " ".join(lines), Fault.LIST
    lines = [_HEADING.sub("", _BULLET.sub("", line)) if len(lines) == 1 else line for line in lines]
    if len(lines) > 1 and _HEADING.match(lines[0]):
        lines = lines[1:]
    whole = _EMPHASIS.sub(lambda match: match[2] or match[3] or match[4], " ".join(lines))
    return _unquoted(" ".join(whole.split())), None


def _from_json(text: str) -> str:
    """The caption in an object such as `{"caption": "..."}`; the text itself where it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if isinstance(found, dict):
        for key in ("caption", "description", "text", "prompt", "tags"):
            value = found.get(key)
            if isinstance(value, str):
                return value.strip()
            if isinstance(value, list) and all(isinstance(part, str) for part in value):
                return ", ".join(value)
    return text


def _unquoted(text: str) -> str:
    for left, right in (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»")):
        if (
            len(text) > 2
            and text[0] == left
            and text[-1] == right
            and left not in text[1:-1]
            and right not in text[1:-1]
        ):
            return text[1:-1].strip()
    return text


def _prose(text: str) -> tuple[str, Fault | None]:
    opened = _OPENING.sub("", text, count=1)
    if opened != text:
        text = opened[:1].upper() + opened[1:]
    if speaks_of_the_image(text):
        return text, Fault.ABOUT_THE_IMAGE
    if is_cut(text):
        return text, Fault.CUT
    pieces = [piece.strip() for piece in text.rstrip(".").split(",")]
    if len(pieces) >= 8 and sum(len(piece.split()) for piece in pieces) / len(pieces) <= 2.5 and ". " not in text:
        return text, Fault.NOT_PROSE
    return text, None


def _tags(text: str) -> tuple[str, Fault | None]:
    pieces = [piece.strip().strip(".").strip() for piece in re.split(r"[,;\n]", text)]
    pieces = [piece for piece in pieces if piece]
    if any(len(piece.split()) > _LONG_WORDS for piece in pieces) or (
        len(pieces) < 3 and len(text.split()) > _LONG_WORDS
    ):
        return text, Fault.NOT_TAGS
    tags = [piece.replace("_", " ") if len(piece) > 3 else piece for piece in pieces]
    return ", ".join(
        {tag.casefold(): tag for tag in reversed(tags)}[key] for key in dict.fromkeys(map(str.casefold, tags))
    ), None


def _fitted(text: str, wish: Wish) -> Cleaned:
    placed = place_trigger(text, wish)
    if placed is None:
        return Cleaned(text, Fault.NO_SUBJECT)
    longest = wish.limit.for_caption if wish.limit else len(placed)  # a token is a character at least
    if len(placed) > longest and wish.tokens(placed) > longest:
        return Cleaned(placed, Fault.TOO_LONG)
    return Cleaned(placed)
