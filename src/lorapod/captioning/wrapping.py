"""What models put around a caption, taken away: marks of the chat template, thoughts, code fences, JSON, preambles, labels,
quotes, markup, closing words.

Each rule takes away what cannot belong to a caption and leaves the caption's own words as they are. The rules are for
English; preambles in other languages stay. What is inside a caption (“a sign reads: caption”) is not touched.
"""

from __future__ import annotations

import ast
import html
import json
import re
from typing import Any

from lorapod.captioning.base import Unit
from lorapod.captioning.wording import Fault

_MOST_LETTERS = 20_000
"""A longer answer is no caption, whatever it says."""

_EMOJI = "\ufe0f\u200d" + "".join(map(chr, [*range(0x2600, 0x27C0), *range(0x1F300, 0x1FB00)]))
_ALOUD = re.compile(
    r"^(?:(?:okay|ok|alright|hmm|so|well|first|now|wait)[,.]? )*(?:(?:so )?the user (?:wants|asks|asked|is asking"
    r"|has asked|needs|requested|provided|gave)\b|i (?:need|have) to (?:write|describe|caption|generate|create|come up)\b"
    r"|let['’]?s (?:see|think|analy[sz]e|break)\b|let me (?:think|see|look|analy[sz]e|start by)\b)",
    re.IGNORECASE,
)
"""How a model begins to think without the marks for it."""
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")
_ENTITY = re.compile(r"&(?:amp|quot|lt|gt|apos|nbsp|#39|#34);")
_TURN_BEGINS = re.compile(
    r"^\s*(?:(?:<\|(?:im_start|start_header_id|start_of_role)\|>|<start_of_turn>)\s*(?:assistant|model)\s*"
    r"(?:<\|(?:end_header_id|end_of_role)\|>)?|(?:assistant|model)\s*\n)",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(r"<\|(?:im_end|eot_id|end_of_text|endoftext|end|eom_id)\|>|</s>|<end_of_turn>|<eos>")
_SPECIAL = re.compile(r"<\|[\w ]{1,40}\|>|</?s>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>")

_THINKING = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_THOUGHT = re.compile(rf"<({_THINKING})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(rf"<(/?){_THINKING}>", re.IGNORECASE)

_TAGGED = re.compile(
    r"^<(caption|answer|response|description|output|result|text|prompt|tags)>(.*)</\1>$", re.DOTALL | re.IGNORECASE
)
_HAS_HTML = re.compile(r"</[a-z][a-z1-6]*>|<(?:br|p)\s*/?>", re.IGNORECASE)
_HTML = re.compile(r"</?(?:b|i|em|strong|u|span|div|p|br|h[1-6]|ul|ol|li)\s*/?>", re.IGNORECASE)
_FENCED = re.compile(r"```[ \t]*(?:[a-z]+[ \t]*\n)?(.*?)```", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"^\$?\\boxed\{(?:\\text\{)?(.*?)\}+\$?$", re.DOTALL)
_KEYS = ("caption", "description", "text", "prompt", "tags", "answer", "output", "content", "image_caption", "response")

_NOUN = (
    r"(?:caption|description|tags?|prompt|answer|json|result|output|response|version|summary|rewrite|attempt|list|"
    r"sentence|paragraph|one)s?"
)
_LABEL = (
    r"(?:(?:image|video|picture|photo|clip|scene|training|suggested|short(?:ened)?|medium|long|detailed|brief|concise"
    r"|lora|"
    r"final|revised|updated|new|generated|dataset|natural[ -]language|improved|proposed|alt|(?:one|single)-sentence"
    r"|plain)[ -])"
    r"{0,3}(?:caption|description|prompt|tags|answer|output|response|result|summary|assistant|alt text)"
    r"(?: (?:of|for|to) [^:\n]{0,50})?(?:\s*\([^)\n]{0,40}\))?"
)
_ASSENT = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|all right|got it|understood|great|yes"
    r"|no problem|"
    r"definitely|gladly|thank(?:s| you)[^.!\n]{0,60}|(?:i['’]d|i would) be (?:happy|glad) to[^.!:\n]{0,60})"
)
_PREAMBLES = (
    # “Sure!” before something; with a comma only before a capital letter or “here is”
    re.compile(rf"^{_ASSENT}[!.:](?:\s+|$)|^{_ASSENT},\s+(?=(?-i:[A-Z\"“*])|here\b)", re.IGNORECASE),
    # “Here is a caption for the image:”, “I've written a short description.” on a line of its own
    re.compile(
        r"^(?:(?:based on|looking at|given|from|for) [^:\n]{0,80}?,\s*)?"
        r"(?:here(?:['’]s| is| are)|below (?:is|are)|the following (?:is|are)|this (?:is|would be)|i['’]ve|i have"
        r"|i would|let me)"
        rf"\b[^:\n]{{0,120}}?\b{_NOUN}\b(?:[^:\n]{{0,120}}:\s*|[^:.!\n]{{0,120}}[.!]?[ \t]*\n\s*)",
        re.IGNORECASE,
    ),
    re.compile(r"^here (?:you go|it is|we go)\s*[:!.]\s*", re.IGNORECASE),
    # “Let me describe this image:”, “The caption for this image is:”
    re.compile(
        r"^(?:(?:let me|i would|i['’]d|i['’]ll|i will) (?:describe|caption|say)\b[^:\n]{0,60}:\s*"
        r"|(?:the|my|a|your|one) (?:[\w-]+ ){0,2}?(?:caption|description|prompt)s?(?: (?:of|for"
        r"|to) [^:\n]{0,50}?)?"
        r"(?: (?:is|are|could be|would be|might be|can be))?(?: as follows)?\s*:\s*)",
        re.IGNORECASE,
    ),
    # “Caption:”, “**Short description**” as a heading, “Description - ...”
    re.compile(rf"^#{{0,6}}\s*[*_]{{0,2}}{_LABEL}[*_]{{0,2}}\s*(?::[*_]{{0,2}}\s*|[ \t][-–—][ \t]|\n)", re.IGNORECASE),
)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)
_QUOTE_MARK = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_CLOSINGS = (
    r"(?:please )?let me know\b",
    r"(?:i )?hope (?:this|that|it)\b",
    r"would you like\b|feel free to\b|is there anything else\b",
    r"if you(?:['’]d| would| need| want)\b[^.]*\blet me know",
    r"note(?: that|:)[^\n]*\b(?:caption|description|trigger|request|left out|omitted|avoided)",
    r"this (?:caption|description|prompt)\b",
    r"(?:word|token|character) count\b|(?:tags|keywords|hashtags):|end\]?$",
    r"(?:#\w+[ \t]*){2,}$",
)
_CLOSING = re.compile(
    rf"(?:\s*\n|(?<=[.!?\"”])\s)\s*[*_(\[]*(?:{'|'.join(_CLOSINGS)})[^\n]*$"
    r"|\s*[(\[](?:(?:word count|(?:caption )?length):?\s*)?(?:about |~|≈)?\d+ (?:words|tokens|characters)[)\]]\.?$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_HEADING = re.compile(r"^\s*#{1,6}\s+")
_PART = re.compile(r"^\s*[*_]{0,2}(?:option|version|caption|variant)?\s*[A-Z1-9][a-z &/-]{0,30}:[*_]{0,2}\s")
_NUMBERED = re.compile(r"^\s*[*_]{0,2}(?:option|version|caption|variant) (?:\d|[A-C])\b[^:\n]{0,30}:", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(\*\*|__)(?=\S)([^\n]+?)(?<=\S)\1|(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?!\w)"
    r"|(?<!\w)_(?=\S)([^_\n]+?)(?<=\S)_(?!\w)|`([^`\n]+)`"
)
_QUOTES = (
    ('"""', '"""'), ('"', '"'), ("“", "”"), ("„", "“"), ("'", "'"), ("‘", "’"), ("«", "»"), ("「", "」"),
    ("`", "`"), ("[", "]"),
)  # fmt: skip


def unwrapped(text: str, unit: Unit = "prose") -> tuple[str, Fault | None]:
    """The caption in an answer as one line, and what is wrong with it if it cannot be told from what is around it.

    Lines are joined by a space, those of tags by a comma.
    """
    if len(text) > _MOST_LETTERS:
        return text[:_MOST_LETTERS], Fault.LIST
    bare, fault = _without_thoughts(_without_marks(text))
    if fault:
        return bare, fault
    bare, fault = _opened(bare, unit)
    if fault:
        return bare, fault
    bare = _without_words_around(bare)
    return _one_line(bare, unit)


def _without_marks(text: str) -> str:
    """Without what a chat template or a web page leaves; of several turns the first."""
    bare = _INVISIBLE.sub("", text)
    bare = html.unescape(bare) if _ENTITY.search(bare) else bare
    bare = _TURN_BEGINS.sub("", bare, count=1)
    said = [turn for turn in _TURN_ENDS.split(bare) if turn.strip()]
    bare = _SPECIAL.sub("", said[0] if said else "")
    return re.sub(r"(?<=[.!?])(?:\\n)+", "\n", bare).strip()


def _without_thoughts(text: str) -> tuple[str, Fault | None]:
    bare = _THOUGHT.sub("", text).strip()
    marks = list(_THINK.finditer(bare))
    if not marks:
        return bare, Fault.THINKING if _ALOUD.match(bare) else None
    after = bare[marks[-1].end() :].strip()
    return (after, None) if marks[-1][1] and after else (bare, Fault.THINKING)


def _opened(text: str, unit: Unit) -> tuple[str, Fault | None]:
    """What is in a tag, a code fence or JSON; the text itself where it is in none."""
    bare = text
    tagged = _TAGGED.match(bare)
    bare = tagged[2].strip() if tagged else bare
    blocks = _FENCED.findall(bare)
    if len(blocks) == 1 and blocks[0].strip():
        bare = blocks[0].strip()
    boxed = _BOXED.match(bare)
    bare = boxed[1].strip() if boxed else bare
    leading = re.match(r"[^{\[\n]{0,80}[:\n]\s*(?=[{\[])", bare)
    bare = bare[leading.end() :] if leading and bare[-1:] in "}]" else bare
    if bare[:1] in "{[" and bare[-1:] in "}]" and bare:
        parsed = _parsed(bare)
        if parsed is not None:
            found = _said_in(parsed, unit)
            return (found, None) if found is not None else (" ".join(bare.split()), Fault.LIST)
    elif re.match(r"\{\s*\"\w+\"\s*:", bare):
        return " ".join(bare.split()), Fault.CUT
    return re.sub(r" {2,}", " ", _HTML.sub(" ", bare)).strip() if _HAS_HTML.search(bare) else bare, None


def _parsed(text: str) -> Any:
    """The value that a text is in JSON, or as Python writes it; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, (dict, list)) else None
    return None


def _said_in(value: Any, unit: Unit) -> str | None:
    """The caption in what was read from JSON; None where there is none, or more than one."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        by_name = {str(key).casefold(): each for key, each in value.items()}
        names = [key for key in _KEYS if key in by_name] or (list(by_name) if len(by_name) == 1 else [])
        return _said_in(by_name[names[0]], unit) if names else None
    if isinstance(value, list) and len(value) == 1:
        return _said_in(value[0], unit)
    if isinstance(value, list) and unit == "tags" and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return None


def _without_words_around(text: str) -> str:
    """Without preamble, labels, quotes and closing words, however they are nested."""
    bare = text
    for _ in range(6):
        before = bare
        bare = unquoted(_QUOTE_MARK.sub("", bare).strip())
        bare = bare.strip(_EMOJI + " \n") or bare
        for pattern in _PREAMBLES:
            after = pattern.sub("", bare, count=1).strip()
            bare = after or bare
        bare = _CLOSING.sub("", bare).strip() or bare
        parts = [part.strip() for part in _RULE.split(bare) if part.strip()]
        bare = max(parts, key=len) if parts else bare
        if bare == before:
            break
    return bare


def _one_line(text: str, unit: Unit) -> tuple[str, Fault | None]:
    lines = [line for line in text.splitlines() if line.strip()]
    if unit == "tags":
        lines = [_PART.sub("", _BULLET.sub("", line), count=1).strip().strip(",") for line in lines]
        return _plain(", ".join(lines)), None
    marked = sum(bool(_BULLET.match(line)) for line in lines), sum(bool(_HEADING.match(line)) for line in lines)
    numbered = sum(bool(_NUMBERED.match(line)) for line in lines)
    if max(*marked, numbered) > 1 or sum(bool(_PART.match(line)) for line in lines) > 2:
        return " ".join(" ".join(lines).split()), Fault.LIST
    if len(lines) > 1 and _HEADING.match(lines[0]):
        lines = lines[1:]
    lines = [_HEADING.sub("", _BULLET.sub("", line)) if len(lines) == 1 else line for line in lines]
    return _plain(" ".join(lines)), None


def _plain(line: str) -> str:
    bare = _EMPHASIS.sub(lambda match: next(group for group in match.groups()[1:] if group is not None), line)
    return unquoted(" ".join(bare.split()))


def unquoted(text: str) -> str:
    """Without one pair of quotes or brackets around all of it."""
    for left, right in _QUOTES:
        inside = text[len(left) : -len(right)]
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            return inside.strip() if left not in inside and right not in inside else text
    return text
