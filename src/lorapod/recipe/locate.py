"""Lines of a TOML text: which line each key stands on.

A TOML parser gives values, not places; an error message needs the place. `locate` walks the text once, following
table headers, arrays of tables, dotted and quoted keys, arrays, inline tables and multi-line strings. It expects text
that a parser has accepted, or has refused only for a repeated key; it is not a validator, and stops quietly where it
meets what it cannot read.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field

import tomlkit

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of tables, and positions from 0 in lists, as `("datasets", 0, "path")`."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BASIC_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL_STRING = re.compile(r"'[^'\n]*'")
# A closing delimiter may be preceded by up to two quotes that belong to the string.
_MULTILINE_BASIC = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}(?!")', re.DOTALL)
_MULTILINE_LITERAL = re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def dotted(path: KeyPath) -> str:
    """`("datasets", 0, "path")` as `datasets.0.path`, the form that `--set` takes."""
    return ".".join(str(part) for part in path)


@dataclass
class Locations:
    """Where the keys of a TOML text stand; lines are counted from 1."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    repeated: list[tuple[KeyPath, int]] = field(default_factory=list)
    """Keys and tables that are written a second time, with the line of the second."""

    def line(self, path: KeyPath) -> int | None:
        """The line of `path`, else of the nearest table or list around it; None where no part of it is written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


class _Unreadable(Exception):
    """The text is not TOML from here on."""


class _Walk:
    """One pass over the text; `position` is an index into it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.found = Locations()
        self._declared: set[KeyPath] = set()
        self._table_counts: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while True:
            self._skip(_BLANK)
            if self.position >= len(self.text):
                return
            if self._take("[["):
                table = self._header("]]")
            elif self._take("["):
                table = self._header("]")
            else:
                self._pair(table)

    def _header(self, closing: str) -> KeyPath:
        line = self._line()
        keys = self._keys()
        if not self._take(closing):
            raise _Unreadable
        path: KeyPath = ()
        for key in keys[:-1]:
            path = self._into_newest((*path, key))
            self._note(path, line)
        path = (*path, keys[-1])
        if (closing == "]]") != (path in self._table_counts) and (path in self._declared or path in self._table_counts):
            # Once a single table or a value, once a list of tables.
            self.found.repeated.append((path, line))
        if closing == "]]":
            self._note(path, line)
            self._table_counts[path] = self._table_counts.get(path, 0) + 1
            path = self._into_newest(path)
        self._declare(path, line)
        return path

    def _into_newest(self, path: KeyPath) -> KeyPath:
        """A header below an array of tables speaks of its newest table."""
        return (*path, self._table_counts[path] - 1) if path in self._table_counts else path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        keys = self._keys()
        if not self._take("="):
            raise _Unreadable
        self._skip(_SPACE)
        for length in range(1, len(keys)):
            self._note((*table, *keys[:length]), line)
        path = (*table, *keys)
        self._declare(path, line)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip(_SPACE)
        for pattern in (_BASIC_STRING, _LITERAL_STRING, _BARE_KEY):
            match = pattern.match(self.text, self.position)
            if match:
                self.position = match.end()
                self._skip(_SPACE)
                return match[0] if pattern is _BARE_KEY else str(tomlkit.value(match[0]).unwrap())
        raise _Unreadable

    def _value(self, path: KeyPath) -> None:
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            self._inline_table(path)
        else:
            for pattern in (_MULTILINE_BASIC, _MULTILINE_LITERAL, _BASIC_STRING, _LITERAL_STRING, _SCALAR):
                match = pattern.match(self.text, self.position)
                if match:
                    self.position = match.end()
                    return

    def _array(self, path: KeyPath) -> None:
        index = 0
        self._skip(_BLANK)
        while not self._take("]"):
            self._note((*path, index), self._line())
            self._value((*path, index))
            index += 1
            self._separator("]")

    def _inline_table(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        while not self._take("}"):
            self._pair(path)
            self._separator("}")

    def _separator(self, closing: str) -> None:
        self._skip(_BLANK)
        if not self._take(",") and not self.text.startswith(closing, self.position):
            raise _Unreadable
        self._skip(_BLANK)

    def _declare(self, path: KeyPath, line: int) -> None:
        if path in self._declared:
            self.found.repeated.append((path, line))
        self._declared.add(path)
        self._note(path, line)

    def _note(self, path: KeyPath, line: int) -> None:
        self.found.lines.setdefault(path, line)

    def _line(self) -> int:
        return self.text.count("\n", 0, self.position) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()

    def _take(self, token: str) -> bool:
        if self.text.startswith(token, self.position):
            self.position += len(token)
            return True
        return False


def locate(text: str) -> Locations:
    """The line of every table, key and list element of a TOML text."""
    walk = _Walk(text)
    with suppress(_Unreadable, RecursionError):
        walk.document()
    return walk.found
