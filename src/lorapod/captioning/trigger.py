"""Where the trigger word stands in a caption: before it or in the subject's place, and exactly once."""

from __future__ import annotations

import re

from lorapod.captioning.wording import Wish

_ADJECTIVE = r"(?!(?:an?|the|one|this|and|or|of|in|on|at|with|to|by|is|are)\b)[\w-]+"
_BEGINS = r"(?:(?<=^)|(?<=[.!?] ))"
_LEAST_IN_CAPITALS = 3
"""Letters from which on a word in capitals is taken for the trigger word; `IT` is not `it`."""


def place_trigger(text: str, wish: Wish) -> str | None:
    """The caption with the trigger word where it belongs, and nowhere else; None where there is no subject to replace.

    Upper and lower case count, but for a sentence's first letter and a word all in capitals.
    """
    word = wish.trigger.strip()
    if not word or wish.place == "none":
        return text
    if wish.unit == "tags":
        return _among_tags([tag.strip() for tag in text.split(",") if tag.strip()], word, wish)
    pattern = _whole(word)
    plain = re.sub(rf"{_BEGINS}{re.escape(word[:1].upper() + word[1:])}(?![\w-])", lambda _: word, text)
    if len(word) >= _LEAST_IN_CAPITALS:
        plain = _whole(word.upper()).sub(lambda _: word, plain)
    if wish.place == "subject":
        return _for_subject(plain, word, wish)
    leads = re.compile(rf"{re.escape(word)}(?:\s*[,:–-]\s*|\s+(?=an?\b|the\b))")
    found = list(pattern.finditer(plain))
    if found and found[0].start() == 0 and not leads.match(plain):
        plain = _others_named(plain, found[1:], wish)  # “ohwx stands …”: it is first
        if not leads.match(plain):
            return plain
    lead = leads.match(plain)
    body = plain[lead.end() :] if lead else plain
    body = _others_named(body, list(pattern.finditer(body)), wish)
    return f"{word}, {body}" if body else word


def count_trigger(text: str, word: str) -> int:
    """How often a text holds the trigger word as it is written, as a whole word."""
    return len(_whole(word.strip()).findall(text)) if word.strip() else 0


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")


def _for_subject(text: str, word: str, wish: Wish) -> str | None:
    found = list(_whole(word).finditer(text))
    if found:
        return _others_named(text, found[1:], wish)
    if not wish.class_word:
        return None
    subject = re.escape(wish.class_word)
    named = re.compile(rf"\b(?:an?|the|one|this) (?:{_ADJECTIVE},? ){{0,3}}?{subject}\b(?!-)", re.IGNORECASE)
    for pattern in (named, re.compile(rf"(?<![\w-]){subject}\b(?!-)", re.IGNORECASE)):
        placed, replaced = pattern.subn(lambda _: word, text, count=1)
        if replaced:
            return placed
    return None


def _among_tags(tags: list[str], word: str, wish: Wish) -> str | None:
    others = [tag for tag in tags if tag.casefold() != word.casefold()]
    if wish.place == "first":
        return ", ".join([word, *others])
    if len(others) < len(tags):
        at = next(i for i, tag in enumerate(tags) if tag.casefold() == word.casefold())
        return ", ".join([*others[:at], word, *others[at:]])
    subject = wish.class_word.casefold()
    for exact in (True, False):
        for at, tag in enumerate(tags):
            said = tag.casefold()
            if subject and (said == subject if exact else said.split()[-1] == subject):
                return ", ".join([*tags[:at], word, *tags[at + 1 :]])
    return None


def _others_named(text: str, found: list[re.Match[str]], wish: Wish) -> str:
    """Mentions of the trigger word replaced by the class word, so that it is there once."""
    for match in reversed(found):
        name = f"the {wish.class_word}" if wish.class_word else "the subject"
        before = text[: match.start()].rstrip()
        if wish.class_word and text[match.end() :].lstrip().casefold().startswith(wish.class_word.casefold()):
            name = ""  # “the ohwx woman”
        elif article := re.search(r"\b(?:the|an?|this)$", before, re.IGNORECASE):
            name = wish.class_word or "subject"  # “an ohwx on a bench”
            if article[0].casefold() in ("a", "an"):
                fitting = article[0][0] + ("n" if name[0].casefold() in "aeiou" else "")
                text = text[: article.start()] + fitting + " " + name + text[match.end() :]
                continue
        elif not before or before[-1] in ".!?":
            name = name[:1].upper() + name[1:]
        text = text[: match.start()] + name + text[match.end() :]
    return re.sub(r" {2,}", " ", text).replace(" ,", ",").strip()
