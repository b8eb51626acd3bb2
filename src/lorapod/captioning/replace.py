"""Search and replace over all captions of a dataset, seen before it is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorapod.data.scan import Item
from lorapod.errors import RequestError


@dataclass(frozen=True)
class Change:
    """One caption that would be another."""

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
        changes = []
        for item in items:
            before = item.caption or ""
            after = found.sub(replacement if pattern else replacement.replace("\\", "\\\\"), before)
            after = (
                re.sub(r"\s*,(?:\s*,)+", ",", re.sub(r" {2,}", " ", after)).strip(" ,") if after != before else before
            )
            if after != before:
                changes.append(Change(item, before, after))
    except re.error as error:
        raise RequestError(f"{search!r} is no regular expression", f"{error}.", "Mend it.") from error
    return changes
