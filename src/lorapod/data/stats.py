"""A dataset in numbers: how many, how large, how long, and what its captions are made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lorapod.data.names import shown
from lorapod.data.scan import Scan

_WORD = re.compile(r"[^\W\d_][\w'’-]*")

_COMMON = frozenset(
    {
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "by",
            "for",
            "from",
            "has",
            "have",
            "he",
            "her",
            "his",
            "in",
            "into",
        ),
        *("is", "it", "its", "of", "on", "or", "over", "she", "that", "the", "their", "there", "they", "this", "to"),
        *("under", "up", "was", "were", "while", "with"),
    }
)
"""Words that say nothing about a dataset."""

_MOST_WORDS = 20


@dataclass(frozen=True)
class Statistics:
    """A dataset in numbers; sizes in pixels, lengths in seconds, captions in words.

    Attributes:
        sides, seconds, caption_words: Least, median and most; None where there is none.
        formats: Items by extension.
        words: The commonest words of captions, with how many captions hold them.
        trigger_share: Share of the captions that hold the trigger word; None where there is no trigger word.
    """

    folder: str
    pictures: int
    clips: int
    size_bytes: int
    captioned: int
    sides: tuple[float, float, float] | None
    seconds: tuple[float, float, float] | None
    caption_words: tuple[float, float, float] | None
    formats: dict[str, int]
    words: dict[str, int]
    trigger_share: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            shown(self.folder),
            f"  {self.pictures} pictures, {self.clips} clips, {self.size_bytes / 1e6:,.1f} MB: "
            + ", ".join(f"{count} {name}" for name, count in self.formats.items()),
        ]
        if self.sides:
            lines.append(
                "  square with the same area: {:.0f} to {:.0f} pixels a side, median {:.0f}".format(
                    *_spread(self.sides)
                )
            )
        if self.seconds:
            lines.append("  length of clips: {:.2f} to {:.2f} seconds, median {:.2f}".format(*_spread(self.seconds)))
        lines.append(f"  {self.captioned} of {self.pictures + self.clips} have a caption")
        if self.caption_words:
            lines.append(
                "  length of captions: {:.0f} to {:.0f} words, median {:.0f}".format(*_spread(self.caption_words))
            )
        if self.trigger_share is not None:
            lines.append(f"  the trigger word is in {self.trigger_share:.0%} of the captions")
        if self.words:
            lines.append("  in most captions: " + ", ".join(f"{shown(word)} {n}" for word, n in self.words.items()))
        return "\n".join(lines)


def statistics(found: Scan, trigger_word: str = "") -> Statistics:
    """What a scan holds, in numbers."""
    items = found.items
    captions = [item.caption for item in items if item.caption]
    held = Counter(
        word for caption in captions for word in {w.casefold() for w in _WORD.findall(caption)} if word not in _COMMON
    )
    trigger = re.compile(rf"(?<!\w){re.escape(trigger_word)}(?!\w)")
    return Statistics(
        folder=str(found.folder),
        pictures=sum(not item.is_clip for item in items),
        clips=sum(item.is_clip for item in items),
        size_bytes=sum(item.size_bytes for item in items),
        captioned=len(captions),
        sides=_least_median_most([(item.width * item.height) ** 0.5 for item in items]),
        seconds=_least_median_most([item.seconds for item in items if item.is_clip]),
        caption_words=_least_median_most([len(caption.split()) for caption in captions]),
        formats=dict(Counter(Path(item.path).suffix.lower().lstrip(".") for item in items).most_common()),
        words=dict(sorted(held.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_WORDS]),
        trigger_share=sum(bool(trigger.search(c)) for c in captions) / len(captions)
        if captions and trigger_word
        else None,
    )


def _least_median_most(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (round(min(values), 3), round(median(values), 3), round(max(values), 3)) if values else None


def _spread(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """Least, most, median: in the order of the sentences."""
    return values[0], values[2], values[1]
