"""Captions looked at as words: what is suspicious about each, and what all of them say of the trigger word.

Built on the dataset's checks (`data.checks.captions`: alike, too long, trigger word) and on what is no caption of a model
(`cleaning`). Contradictions are looked for among few groups of words that exclude each other. Not covered:
what one has to look at the picture for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from lorapod.captioning.faults import is_cut, is_garbled, loops, says_nothing, speaks_of_the_image
from lorapod.captioning.trigger import count_trigger
from lorapod.captioning.wording import Fault, Wish
from lorapod.captioning.wrapping import unwrapped
from lorapod.data.checks.captions import about_captions, cut
from lorapod.data.checks.refusals import refuses
from lorapod.data.checks.tokens import TextLimit
from lorapod.data.scan import Item, Scan
from lorapod.data.walk import Severity
from lorapod.recipe.schema import DatasetSection

ALIKE = 0.85
"""Share of words in common (Jaccard) from which on two captions are said to be nearly the same."""

_MOST_COMPARED = 5000
_LEAST_WORDS = 5
_GROUPS = (
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"),
    ("day", "night"), ("indoors", "outdoors"), ("left", "right"), ("winter", "summer"), ("sitting", "standing"),
    ("man", "woman", "boy", "girl"), ("cat", "dog", "horse"), ("closeup", "wide"), ("smiling", "crying"),
)  # fmt: skip
_SAME = {"gray": "grey", "men": "man", "women": "woman", "close-up": "closeup"}
_STOPWORDS = {
    "English": {"the", "a", "and", "with", "is", "in", "of", "on"},
    "German": {"der", "die", "das", "und", "mit", "ist", "ein"},
    "French": {"le", "la", "les", "et", "une", "est", "avec", "dans"},
    "Spanish": {"el", "los", "las", "y", "una", "con", "en"},
    "Italian": {"il", "gli", "che", "una", "con", "di", "nel"},
    "Portuguese": {"os", "uma", "com", "em", "do", "da"},
}
_SCRIPTS = (
    ("Chinese or Japanese", re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")), ("Korean", re.compile(r"[\uac00-\ud7af]")),
    ("Russian or another Cyrillic one", re.compile(r"[\u0400-\u04ff]")), ("Arabic", re.compile(r"[\u0600-\u06ff]")),
)  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Finding:
    """Something about one item's caption; `weight` orders what to look at first."""

    path: Path
    what: str
    weight: int


@dataclass(frozen=True)
class Words:
    """What the captions say together.

    Attributes:
        items, captioned: How many there are, and how many have a caption.
        tokens: Least, median and most tokens of a caption.
        limit: Tokens that the base model reads of one; None where it is not known.
        is_counted: Whether tokens were counted, not estimated.
        always: Words in nearly every caption with the trigger word, which it will not need to learn, with their share.
        once: Words that one caption alone has.
        with_trigger: How many captions hold the trigger word.
    """

    items: int
    captioned: int
    tokens: tuple[int, int, int]
    limit: int | None
    is_counted: bool
    always: list[tuple[str, float]] = field(default_factory=list)
    once: list[str] = field(default_factory=list)
    with_trigger: int = 0


@dataclass(frozen=True)
class Looked:
    """Captions that were looked at; findings with the heaviest first."""

    findings: list[Finding]
    words: Words

    def weight(self, path: Path) -> int:
        """How suspicious an item's caption is; 0 for one that nothing was found about."""
        return sum(each.weight for each in self.findings if each.path == path)


def check_captions(section: DatasetSection, found: Scan, wish: Wish) -> Looked:
    """Looks at the captions of a dataset; where each line is one, at each line as far as it stands for itself."""
    items = found.items
    captioned = [item for item in items if (item.caption or "").strip()]
    single = captioned
    if section.caption_per_line:
        single = [replace(item, caption=line) for item in captioned for line in item.caption_lines]
    findings = [Finding(item.path, "It has no caption", 60) for item in items if not (item.caption or "").strip()]
    findings += [Finding(each.path, each.what, 70) for each in found.problems if each.severity is Severity.ERROR]
    named = {item.path for item in items}
    for problem in about_captions(section, found, wish.limit):
        if problem.path in named and problem.severity is not Severity.INFO:
            findings.append(Finding(problem.path, problem.what, 40))
    findings += [finding for item in single for finding in _leftovers(item, wish)]
    findings += _doubled(single, wish.trigger)
    findings += _fewer(captioned) if section.caption_per_line else ()
    findings += _nearly_alike(captioned)
    findings += _contradictions(captioned)
    findings += _other_languages(captioned)
    ordered = sorted(dict.fromkeys(findings), key=lambda each: (-each.weight, str(each.path)))
    return Looked(ordered, _statistics(items, single, wish))


def words_of(text: str) -> list[str]:
    """The words of a caption in lower case."""
    return [_SAME.get(word, word) for word in _WORD.findall(text.casefold())]


def _leftovers(item: Item, wish: Wish) -> Iterable[Finding]:
    text = (item.caption or "").strip()
    if refuses(text):
        return  # said by the dataset's checks
    if loops(text):
        yield Finding(item.path, Fault.LOOP.value.replace("The answer", "Its caption"), 90)
        return
    bare, fault = unwrapped(text, wish.unit)
    if fault not in (None, Fault.CUT):
        yield Finding(item.path, fault.value.replace("The answer", "Its caption"), 80)
    elif says_nothing(bare) or is_garbled(text):
        yield Finding(item.path, "Its caption says nothing, or holds characters that are none", 80)
    elif bare != " ".join(text.split()):
        has_words = len(text.split()) - len(bare.split()) > 1
        what = "Its caption holds words to you" if has_words else "Its caption holds markup, or quotes around it"
        yield Finding(item.path, f"{what}; without them: “{cut(bare)}”", 65 if has_words else 45)
    if wish.unit == "prose" and speaks_of_the_image(text):
        yield Finding(item.path, "Its caption speaks about the image in place of what is in it", 30)
    if wish.unit == "prose" and is_cut(text):
        yield Finding(item.path, "Its caption ends in the middle of a sentence", 50)


def _doubled(items: Sequence[Item], trigger: str) -> Iterable[Finding]:
    if not trigger:
        return
    for item in items:
        times = count_trigger(item.caption or "", trigger)
        if times > 1:
            yield Finding(item.path, f"Its caption says the trigger word {times} times", 20)


def _fewer(items: Sequence[Item]) -> Iterable[Finding]:
    """Items with another number of captions than most have."""
    counts = Counter(len(item.caption_lines) for item in items)
    usual = counts.most_common(1)[0][0] if counts else 0
    for item in items:
        count = len(item.caption_lines)
        if count != usual:
            what = f"It has {count} caption{'s' if count > 1 else ''}, most items have {usual}"
            yield Finding(item.path, what, 15)


def _nearly_alike(items: Sequence[Item]) -> Iterable[Finding]:
    bags = [(item, frozenset(words_of(item.caption or ""))) for item in items[:_MOST_COMPARED]]
    bags = [(item, bag) for item, bag in bags if len(bag) >= _LEAST_WORDS]
    by_rare: dict[str, list[int]] = {}
    counts = Counter(word for _, bag in bags for word in bag)
    for index, (_, bag) in enumerate(bags):  # two captions that are alike share one of their rarest words
        for word in sorted(bag, key=lambda each: (counts[each], each))[: max(1, len(bag) // 5 + 1)]:
            by_rare.setdefault(word, []).append(index)
    seen: set[tuple[int, int]] = set()
    for indices in by_rare.values():
        if len(indices) > 200:
            continue
        for one, other in combinations(indices, 2):
            if (one, other) in seen:
                continue
            seen.add((one, other))
            a, b = bags[one][1], bags[other][1]
            if a != b and len(a & b) / len(a | b) >= ALIKE:
                yield Finding(bags[other][0].path, f"Its caption is nearly that of {bags[one][0].path.name}", 25)


def _contradictions(items: Sequence[Item]) -> Iterable[Finding]:
    said = {item.path: set(words_of(item.caption or "")) for item in items}
    for item in items:
        named = set(words_of(re.sub(r"[_\d]+", " ", item.path.stem)))
        for group in _GROUPS:
            in_name, in_caption = named & set(group), said[item.path] & set(group)
            if len(in_name) == 1 and in_caption and not in_name & in_caption:
                what = f"The file is called “{next(iter(in_name))}”, its caption says “{', '.join(sorted(in_caption))}”"
                yield Finding(item.path, what, 45)
    if len(items) < 5:
        return
    for group in _GROUPS[1:]:
        counts = Counter(word for item in items for word in said[item.path] & set(group))
        usual, most = counts.most_common(1)[0] if counts else ("", 0)
        if most < len(items) * 0.8:
            continue
        for item in items:
            other = said[item.path] & set(group) - {usual}
            if other and usual not in said[item.path]:
                what = f"Its caption says “{', '.join(sorted(other))}” where {most} of {len(items)} say “{usual}”"
                yield Finding(item.path, what, 45)


def _other_languages(items: Sequence[Item]) -> Iterable[Finding]:
    spoken = {item.path: language_of(item.caption or "") for item in items}
    counts = Counter(language for language in spoken.values() if language)
    if len(counts) < 2:
        return
    usual, most = counts.most_common(1)[0]
    for path, language in spoken.items():
        if language and language != usual and counts[language] * 3 <= most:
            yield Finding(path, f"Its caption looks {language}, the others {usual}", 55)


def language_of(text: str) -> str | None:
    """The language that a text looks to be in, by its letters or commonest words; None where that cannot be told."""
    for name, letters in _SCRIPTS:
        if len(letters.findall(text)) * 3 > len(text.replace(" ", "")):
            return name
    words = words_of(text)
    scores = {name: sum(word in stopwords for word in words) for name, stopwords in _STOPWORDS.items()}
    best = max(scores, key=lambda name: scores[name])
    second = max(score for name, score in scores.items() if name != best)
    return best if scores[best] >= 2 and scores[best] > second else None


def _statistics(items: Sequence[Item], captioned: Sequence[Item], wish: Wish) -> Words:
    tokens = sorted(wish.tokens(item.caption or "") for item in captioned) or [0]
    bags = [set(words_of(item.caption or "")) for item in captioned]
    trigger = wish.trigger.casefold()
    with_trigger = [
        bag
        for bag, item in zip(bags, captioned, strict=True)
        if not trigger or trigger in (item.caption or "").casefold()
    ]
    counts = Counter(word for bag in with_trigger for word in bag)
    own = set(words_of(wish.trigger))
    quiet = set().union(*_STOPWORDS.values())
    always = [
        (word, count / len(with_trigger))
        for word, count in counts.most_common()
        if len(with_trigger) > 3 and count >= 0.8 * len(with_trigger) and word not in own | quiet
    ]
    all_counts = Counter(word for bag in bags for word in bag)
    once = sorted(word for word, count in all_counts.items() if count == 1 and len(word) > 2)
    limit: TextLimit | None = wish.limit
    return Words(
        items=len(items),
        captioned=len({item.path for item in captioned}),
        tokens=(tokens[0], tokens[len(tokens) // 2], tokens[-1]),
        limit=limit.for_caption if limit else None,
        is_counted=bool(limit and limit.is_counted),
        always=always,
        once=once,
        with_trigger=len(with_trigger) if trigger else 0,
    )


__all__ = ["Finding", "Looked", "Words", "check_captions", "language_of", "words_of"]
