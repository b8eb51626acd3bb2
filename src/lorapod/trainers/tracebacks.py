"""Python tracebacks in a process's output: which exception each ended with.

Lines of several processes come mixed and with prefixes (`[rank0]: `), so that only the head of a traceback and the line of
its exception are looked for. Not covered: exception groups, of which the outermost is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIX = re.compile(r"^(?:\[rank\d+\]:\s?|\[default\d+\]:\s?)+")
_HEAD = "Traceback (most recent call last)"
_EXCEPTION = re.compile(
    r"^(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Killed|Stop\w*|NotFound\w*|Timeout\w*))(?::\s?(?P<said>.*))?$"
)
_LONGEST = 4096
_LAUNCHERS = ("CalledProcessError", "ChildFailedError")


@dataclass(frozen=True)
class Raised:
    """An exception that a traceback ended with: its class, without the module, and what it said."""

    kind: str
    said: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.said}" if self.said else self.kind


class Tracebacks:
    """Follows output and keeps what was raised."""

    def __init__(self) -> None:
        self.raised: list[Raised] = []
        self.open = False
        self.heads = 0

    def read(self, text: str) -> None:
        """Takes one line into account."""
        if _HEAD in text:
            self.open, self.heads = True, self.heads + 1
            return
        if not self.open or len(text) > _LONGEST:
            return
        line = _PREFIX.sub("", text)
        if line[:1].isspace() or not line:
            return
        found = _EXCEPTION.match(line)
        if found:
            self.raised.append(Raised(found["type"].rpartition(".")[2], (found["said"] or "").strip()))
            self.open = False

    @property
    def seen(self) -> bool:
        """Whether there was any traceback."""
        return self.heads > 0

    @property
    def last(self) -> Raised | None:
        """What the process failed with: the last exception that is not a launcher's report of another one's."""
        own = [each for each in self.raised if each.kind not in _LAUNCHERS]
        return own[-1] if own else self.raised[-1] if self.raised else None
