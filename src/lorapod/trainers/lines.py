"""A process's output cut into lines as it comes, whatever is in it.

Progress bars overwrite themselves with carriage returns: each of their states is a line of its own, marked as such, since
it is read but not worth keeping in a log. Bytes that are no UTF-8 become U+FFFD, a line without end is cut.
"""

from __future__ import annotations

from typing import NamedTuple

LONGEST_LINE = 1 << 20
"""Bytes; a longer line is given in pieces."""


class Line(NamedTuple):
    """One line, without its end. `stays` is False where the next line overwrote it, as on a terminal."""

    text: str
    stays: bool


class LineSplitter:
    """Cuts bytes into lines; what has no end yet waits for more."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Line]:
        """The lines that `data` ends."""
        whole = self._pending + data if self._pending else data
        *ended, self._pending = whole.split(b"\n")
        lines: list[Line] = []
        for raw in ended:
            if b"\r" in raw:
                lines += _states(raw.rstrip(b"\r"))
            else:
                lines.append(Line(raw.decode("utf-8", errors="replace"), True))
        self._pending = self._bar(lines)
        return lines

    def _bar(self, lines: list[Line]) -> bytes:
        """Takes the states of a bar that has no line end yet; a carriage return at the very end may belong to one."""
        pending = self._pending
        cut = pending.rfind(b"\r", 0, max(0, len(pending) - 1))
        if cut >= 0:
            lines += [
                Line(piece.decode("utf-8", errors="replace"), False) for piece in pending[:cut].split(b"\r") if piece
            ]
            pending = pending[cut + 1 :]
        while len(pending) > LONGEST_LINE:
            lines.append(Line(pending[:LONGEST_LINE].decode("utf-8", errors="replace"), True))
            pending = pending[LONGEST_LINE:]
        return pending

    def rest(self) -> list[Line]:
        """What has no line end when the output is over."""
        raw, self._pending = self._pending.rstrip(b"\r"), b""
        return _states(raw) if raw else []


def _states(raw: bytes) -> list[Line]:
    """The states of a bar on one line, of which the last one stays."""
    pieces = [piece.decode("utf-8", errors="replace") for piece in raw.split(b"\r")]
    shown = [piece for piece in pieces[:-1] if piece]
    return [*(Line(piece, False) for piece in shown), Line(pieces[-1], True)]
