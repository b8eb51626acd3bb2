"""Search and replace over all captions of a dataset, seen before it is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorapod.data.scan import Item
from lorapod.errors import RequestError


@dataclass(frozen=True)
class Change:
    """One caption that would be another, as they stand in the file."""

    item: Item
    before: str
    after: str


def plan_replacement(items: Sequence[Item], search: str, replacement: str, *, pattern: bool = False) -> list[Change]:
    """What a search and replace would change: whole words as they are written, or a regular expression.

    Raises:
        RequestError: The pattern is no regular expression, or nothing is searched for.
    """
    if not search:
        raise RequestError("Nothing is searched for", "", "Give a word.")
    try:
        found = re.compile(search if pattern else rf"(?<!\w){re.escape(search)}(?!\w)")
        changes, literal = [], replacement.replace("\\", "\\\\")
        for item in items:
            lines = [_replaced(found, replacement if pattern else literal, line) for line in item.caption_lines]
            before, after = "\n".join(item.caption_lines), "\n".join(lines)
            if after != before:
                changes.append(Change(item, before, after))
    except re.error as error:
        raise RequestError(f"{search!r} is no regular expression", f"{error}.", "Mend it.") from error
    return changes


def _replaced(search: re.Pattern[str], replacement: str, line: str) -> str:
    """A line after the replacement, without the double spaces and commas that it left."""
    after = search.sub(replacement, line)
    return after if after == line else re.sub(r"\s*,(?:\s*,)+", ",", re.sub(r" {2,}", " ", after)).strip(" ,")
