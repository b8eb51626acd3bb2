"""What became of each key of a configuration that is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

IN_ITS_WORDS = "as an option of the trainer's own"
"""Of a key that is carried over in `trainer_options`."""


_SECRET = re.compile(r"(?:api_?key|token|password|secret)$", re.IGNORECASE)


class Fate(StrEnum):
    CARRIED = "carried"
    CHANGED = "changed"
    LEFT = "left"


@dataclass(frozen=True)
class Note:
    """One key.

    Attributes:
        key: As the configuration calls it.
        why: Of one that was changed or left, a sentence without a full stop.
    """

    key: str
    value: Any
    fate: Fate
    why: str = ""


@dataclass
class Imported:
    """A recipe as plain data, and what became of the configuration."""

    recipe: dict[str, Any]
    notes: list[Note] = field(default_factory=list)

    def note(self, key: str, value: Any, fate: Fate, why: str = "") -> None:
        """Notes what became of a key; the value of one that is named like a secret is not repeated."""
        self.notes.append(Note(key, "***" if _SECRET.search(key) else value, fate, why))


class Given:
    """A table of a configuration whose keys are taken one by one; what nobody takes is told in the end.

    Args:
        name: Of the table, for notes; empty at the top.
    """

    def __init__(self, table: Mapping[str, Any], name: str, imported: Imported) -> None:
        self.table, self.name, self.imported = dict(table), name, imported

    def key(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name

    def take(self, name: str, default: Any = None, why: str = "") -> Any:
        """The value of a key, which is thereby carried over; changed on the way where `why` says so."""
        if name not in self.table:
            return default
        value = self.table.pop(name)
        self.imported.note(self.key(name), value, Fate.CHANGED if why else Fate.CARRIED, why)
        return value

    def peek(self, name: str, default: Any = None) -> Any:
        """The value of a key, which stays to be taken."""
        return self.table.get(name, default)

    def leave(self, why: str, *names: str) -> None:
        """Leaves keys behind, where they are there."""
        for name in names:
            if name in self.table:
                self.imported.note(self.key(name), self.table.pop(name), Fate.LEFT, why)

    def leave_rest(self, why: str = "lorapod has no word for it") -> None:
        """Leaves behind what nobody took."""
        self.leave(why, *list(self.table))


def put(recipe: dict[str, Any], path: str, value: Any) -> None:
    """Sets a key such as `optimizer.learning_rate`; None sets nothing."""
    if value is None:
        return
    *tables, last = path.split(".")
    for name in tables:
        recipe = recipe.setdefault(name, {})
    recipe[last] = value


def same(a: Any, b: Any) -> bool:
    """Whether two values say the same: numbers by value, also as text."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)
