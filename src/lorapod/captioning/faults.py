"""What makes a text no caption: a refusal, a loop, a sentence without an end, words about the image.

Rules over words, for English where they look at words at all; loops are found in every language. A rule that is wrong about
a good caption costs one more request, so the doubtful cases are asked for again rather than trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

_IMAGE = r"(?:image|picture|photo(?:graph)?|video(?: clip)?|clip|footage|screenshot)"
_VIEW = r"(?:scene|frame|shot|sequence|illustration|artwork|painting|drawing|render|animation)"
"""What may be of the picture, or something in it."""
_SHOWS = (
    r"(?:shows|depicts|features|captures|portrays|presents|displays|illustrates|contains|showcases|is showing"
    r"|(?:opens|begins|starts) with)"
)
_ADVERB = r"(?:(?:prominently|vividly|clearly|simply|also|further|beautifully|primarily) )?"
_SOME = r"(?=an? |the |two |three |four |several |many |some |his |her |\d)"
_GIVEN = r"(?: (?:provided|given|above|shown|attached|you (?:provided|shared|uploaded|sent)))?"

_OPENING = re.compile(
    rf"^(?:(?:based on|in|on) (?:this|the) (?:[\w-]+ ){{0,2}}?(?:{_IMAGE}|{_VIEW}){_GIVEN}"
    rf"(?:,\s+(?:(?:we|you|one) (?:can )?sees?\s+|there (?:is|are)\s+)?|\s+(?:(?:we|you|one) (?:can )?sees?"
    rf"|there (?:is|are))\s+)"
    rf"|(?:this|the) (?:[\w-]+,? ){{0,3}}?{_IMAGE}{_GIVEN} {_ADVERB}{_SHOWS}\s+(?!that\b|how\b|what\b)"
    rf"|(?:this|the) {_VIEW} {_ADVERB}{_SHOWS}\s+{_SOME}"
    r"|(?:this|the) (?:image|picture|video(?: clip)?|clip) is (?:of\s+|(?=an? ))"
    r"|this is an? (?:(?!of\b)[\w-]+,? ){0,3}?(?:image|picture|video|clip) (?:of|showing|depicting)\s+"
    rf"|this is (?=an? (?:[\w-]+,? ){{0,6}}(?:{_IMAGE}|close-up|portrait|shot|view|selfie)\b)"
    rf"|the (?:main |central )?(?:subject|focus) of (?:this|the) {_IMAGE} is\s+"
    rf"|(?:depicted|shown|pictured|seen) (?:here|in (?:this|the) {_IMAGE}) (?:is|are)\s+"
    r"|(?:(?:we|you|one) can see|we see)\s+)",
    re.IGNORECASE,
)
_SENTENCE_BEGINS = r"(?:^|[.!?]\s+)"
_ABOUT = re.compile(
    rf"{_SENTENCE_BEGINS}(?:the|this) (?:overall )?{_IMAGE} {_ADVERB}{_SHOWS}\b"
    rf"|{_SENTENCE_BEGINS}(?:the|this) overall (?:{_IMAGE}|{_VIEW})\b"
    rf"|{_SENTENCE_BEGINS}(?:the|this) (?:{_IMAGE}|{_VIEW}) (?:\w+ly )?(?:conveys|evokes|exudes|suggests|focuses on"
    rf"|highlights)\b"
    rf"|{_SENTENCE_BEGINS}(?:the|this) image (?:is|has)\b"
    rf"|{_SENTENCE_BEGINS}(?:in (?:summary|conclusion),?|overall,) (?:the|this) (?:{_IMAGE}|{_VIEW})\b"
    rf"|{_SENTENCE_BEGINS}the (?:overall )?(?:mood|atmosphere|style|tone|composition|lighting) of (?:the"
    rf"|this) {_IMAGE}\b",
    re.IGNORECASE,
)

_NOTHING = re.compile(
    r"^[\W_]*(?:(?:n/?a|none|null|nil|nan|unknown|undefined|untitled|image|picture|photo|video|clip|caption"
    r"|description|tags"
    r"|no (?:caption|description)|empty|object object)[\W_]*|error\s*:[^\n]{0,60})?$",
    re.IGNORECASE,
)

_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_LOOP_TIMES = 3
_LONG_SENTENCE = 6
"""Words of a sentence that nobody says twice."""

_HANGS = (
    r"(?:a|an|the|and|or|is|are|was|were|her|his|their|its|which|that|who|whose|very|as|if|but|than|into|onto|between"
    r"|while"
    r"|because|wearing|holding)"
)
_PREPOSITION = r"(?:of|in|on|at|to|with|by|for|from)"
_CUT_END = re.compile(rf"(?:[,;:(\-–—]|\.\.\.|…|\b{_HANGS})$", re.IGNORECASE)
_CUT_PREPOSITION = re.compile(rf"\b{_PREPOSITION}$", re.IGNORECASE)
_SOMETHING_TO = re.compile(rf"\bto \w+ {_PREPOSITION}$", re.IGNORECASE)
"""“A toy to play with” is whole."""
_ENDED = re.compile(r"[a-z]{4,}[.!?][\"”’')\]]*\s+(?=[A-Z“\"])")
_LEAST_OF_A_SENTENCE = 4
"""Words of what may be a sentence without its end; “Close-up” is none."""
_WHOLE_END = re.compile(r"(?:[.!?。！？][\"”’'»)\]*]*|[\"”’»)\]])$")


def says_nothing(text: str) -> bool:
    """Whether a text is a placeholder, or nothing but signs."""
    return bool(_NOTHING.match(text))


def is_garbled(text: str) -> bool:
    """Whether a text holds the mark of bytes that are no text, or control characters."""
    return any(letter == "\ufffd" or (letter < " " and letter not in "\t\n\r") for letter in text)


def loops(text: str) -> bool:
    """Whether a text repeats itself as a language model does that has lost its thread."""
    if re.search(r"(.{1,3}?)\1{15,}", text):  # signs in a row
        return True
    if _sentences_repeat([part.strip().casefold() for part in _SENTENCES.split(text) if part.strip()]):
        return True
    parts = [part.strip().casefold() for part in text.split(",") if part.strip()]
    if len(parts) >= 10 and len(set(parts)) * 2 <= len(parts):
        return True
    return _words_repeat(re.findall(r"[\w'’-]+", text.casefold()))


def _sentences_repeat(sentences: list[str]) -> bool:
    said = [each for each in sentences if len(each.split()) > 2 or each[-1] in "。！？"]
    counts = Counter(said)
    if said and (max(counts.values()) >= _LOOP_TIMES or (len(said) > 3 and len(counts) * 2 <= len(said))):
        return True
    if any(times > 1 and len(each.split()) >= _LONG_SENTENCE for each, times in counts.items()):
        return True
    grown = sum(after.startswith(before.rstrip(".!?")) for before, after in pairwise(said))
    return grown >= _LOOP_TIMES


def _words_repeat(words: list[str]) -> bool:
    """Whether a run of words comes again and again: of one to three words often, of longer ones nearly three times."""
    for size in range(1, 13):
        run = 0
        enough = int(size * 1.75) if size >= 4 else size * (max(_LOOP_TIMES, 6 // size + 1) - 1)
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            if run >= enough and not (size == 1 and words[at].isdigit()):
                return True
    return False


def without_opening(text: str) -> str:
    """A text without “the image shows” at its start."""
    opened = _OPENING.sub("", text, count=1)
    return opened[:1].upper() + opened[1:] if opened != text and opened else text


def speaks_of_the_image(text: str) -> bool:
    """Whether a sentence of it is about the picture rather than what is in it."""
    return bool(_ABOUT.search(text))


def is_cut(text: str) -> bool:
    """Whether a text ends in the middle of a sentence."""
    end = text.rstrip()
    if end.count("(") > end.count(")") or end.count("“") > end.count("”") + end.count("„"):
        return True
    if end.count('"') % 2 and not _WHOLE_END.search(end):
        return True
    if len(end.split()) <= 3:
        return False
    return bool(_CUT_END.search(end) or (_CUT_PREPOSITION.search(end) and not _SOMETHING_TO.search(end)))


def stops_short(text: str) -> bool:
    """Whether the last of several sentences has no full stop where one before it has: of a model's answer, a cut."""
    end = text.rstrip()
    last = _ENDED.split(end)[-1]
    return last != end and not _WHOLE_END.search(end) and len(last.split()) >= _LEAST_OF_A_SENTENCE
