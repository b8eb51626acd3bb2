"""What is said of captions: alike, too long, a trigger word here and there, a captioner's excuse in place of one.

Missing, unreadable and empty captions are found by the scan and the plan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorapod.data.checks.refusals import refuses
from lorapod.data.checks.tokens import TextLimit
from lorapod.data.names import shown
from lorapod.data.plan import captions_of
from lorapod.data.scan import Item, Scan
from lorapod.data.walk import Problem, Severity
from lorapod.recipe.schema import DatasetSection

LISTED = 8


def about_captions(section: DatasetSection, found: Scan, limit: TextLimit | None) -> list[Problem]:
    """Problems with the captions of a dataset, worst first."""
    captioned = [item for item in found.items if item.caption]
    return [
        *_excuses(captioned),
        *_too_long(section, found.items, limit),
        *_alike(captioned, found),
        *_trigger(section, captioned, found),
    ]


def _excuses(items: Sequence[Item]) -> list[Problem]:
    remedy = "Caption it anew."
    return [
        Problem(Severity.WARNING, item.path, f"Its caption is an excuse: “{cut(item.caption or '')}”", remedy)
        for item in items
        if refuses(item.caption or "")
    ]


def _too_long(section: DatasetSection, items: Sequence[Item], limit: TextLimit | None) -> list[Problem]:
    if limit is None:
        return []
    problems = []
    for item in items:
        caption = max(captions_of(item, section), key=len)
        # A token is a character at least, so that most captions need not be counted.
        if len(caption) <= limit.for_caption:
            continue
        tokens = limit.count(caption)
        if tokens <= limit.for_caption:
            continue
        about = "" if limit.is_counted else "about "
        how = "" if limit.is_counted else " (estimated: its tokenizer is not on disk)"
        what = f"Its caption has {about}{tokens} tokens{how}, of which {limit.base_model} reads {limit.for_caption}"
        lost = limit.lost(caption)
        what += f"; “{cut(lost)}” is lost" if lost else ""
        remedy = "Shorten it, or put what matters first."
        problems.append(Problem(Severity.WARNING, item.path, what, remedy))
    return problems


def _alike(items: Sequence[Item], found: Scan) -> list[Problem]:
    """Captions that several items share, but for those that a layout gives to all items of a folder."""
    own = [item for item in items if item.caption_path]
    by_text: dict[str, list[Item]] = {}
    for item in own:
        by_text.setdefault(" ".join((item.caption or "").casefold().split()), []).append(item)
    if len(by_text) == 1 and len(own) > 2:
        what = f"All {len(own)} captions are the same: “{cut(own[0].caption or '')}”"
        remedy = "That can be meant; what is to stay changeable in prompts has to be named in captions, though."
        return [Problem(Severity.INFO, found.folder, what, remedy)]
    problems = []
    for same in by_text.values():
        if len(same) > 1 and len({item.caption_path for item in same}) > 1:
            what = f"It has the same caption as {names(same[1:])}: “{cut(same[0].caption or '')}”"
            problems.append(Problem(Severity.WARNING, same[0].path, what, "Say what differs between them."))
    return problems


def _trigger(section: DatasetSection, items: Sequence[Item], found: Scan) -> list[Problem]:
    word = section.trigger_word.strip()
    if not word or not items:
        return []
    exact = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    loose = re.compile(exact.pattern, re.IGNORECASE)
    missing = [item for item in items if not exact.search(f"{section.caption_prefix} {item.caption}")]
    problems = []
    for item in missing:
        other = loose.search(item.caption or "")
        if other:
            what = f"Its caption says “{other[0]}” and not the trigger word “{word}”, so both are trained with"
            problems.append(Problem(Severity.WARNING, item.path, what, "Write both alike; upper and lower case count."))
    if len(missing) == len(items):
        what = f"None of the {len(items)} captions holds the trigger word “{word}”; it is put before each"
        problems.append(Problem(Severity.INFO, found.folder, what, "That is fine here; other trainers add none."))
    elif missing:
        what = (
            f"The trigger word “{word}” is missing in {len(missing)} of {len(items)} captions: "
            f"{names(missing)}; it is put before these"
        )
        remedy = "Write it into them if its place in the sentence matters, or if another trainer is to use them."
        problems.append(Problem(Severity.WARNING, found.folder, what, remedy))
    return problems


def names(items: Sequence[Item]) -> str:
    """File names, of many the first."""
    text = ", ".join(shown(item.path.name) for item in items[:LISTED])
    return text if len(items) <= LISTED else f"{text} and {len(items) - LISTED} more"


def cut(text: str, longest: int = 60) -> str:
    """A text fit for one line."""
    line = shown(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[:longest]}…"
