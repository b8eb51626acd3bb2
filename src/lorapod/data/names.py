"""How files are ordered and how their names are shown."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_DIGITS = re.compile(r"([0-9]+)")

_JOINER = "\u200d"
"""Not printable by itself, but part of many emoji."""

NaturalKey = tuple[tuple[tuple[str | int, ...], ...], str]


def name_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """As `natural_key`, for names within one folder."""
    return _part_key(name), name


def _part_key(part: str) -> tuple[str | int, ...]:
    pieces: list[str | int] = [*_DIGITS.split(part.casefold())]
    pieces[1::2] = map(int, pieces[1::2])
    return tuple(pieces)


_folder_key = lru_cache(maxsize=4096)(_part_key)


def natural_key(path: Path) -> NaturalKey:
    """Sort key under which `2.png` comes before `10.png`; the same on every machine, whatever its locale.

    Names that differ only in case or in leading zeros are told apart by the path itself, so the order is total.
    """
    *folders, name = path.parts or ("",)
    parts = (*(_folder_key(part) for part in folders), _part_key(name))
    return parts, str(path)


def shown(path: Path | str) -> str:
    """A name fit for one line of a terminal: line ends, control characters and undecodable bytes are escaped."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == _JOINER else c.encode("unicode_escape").decode("ascii") for c in text)
