"""How far a captioning run is, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorapod.captioning.items import Left
from lorapod.errors import LorapodError


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        total: Items that are to be captioned in it.
        written, failed, kept: Items that ended: with a caption, with a reason, or in the hands of the person meanwhile.
        requests, busy: Requests answered, and those that the service failed at.
        dollars: Spent, as far as prices are known.
        at_once: Requests that may be out at present.
        pause: Seconds that the service asked for, and that are left.
        rate: Items a second of late; None before the first.
    """

    total: int
    written: int = 0
    failed: int = 0
    kept: int = 0
    requests: int = 0
    busy: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    is_priced: bool = False
    at_once: int = 0
    pause: float = 0.0
    rate: float | None = None

    @property
    def done(self) -> int:
        return self.written + self.failed + self.kept

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def dollars_left(self) -> float | None:
        """What the rest is likely to cost."""
        return self.dollars / self.done * (self.total - self.done) if self.is_priced and self.done else None


class Watch(Protocol):
    """Is told how far a run is."""

    def changed(self, tally: Tally) -> None: ...

    def wrote(self, path: Path, text: str) -> None: ...

    def failed(self, left: Left) -> None: ...


@dataclass
class Outcome:
    """How a run ended; lists are in natural order of paths.

    Attributes:
        run: Its name, as in the ledger.
        written: Media whose captions were written.
        kept: Media whose captions the person wrote or changed while the run was on.
        failed: Media that end without a caption, with the reason. The next run lists and asks them again.
        declined: Media that the same model refused in an earlier run; they were not asked again.
        unfinished: Items that the run did not come to.
        stopped: Why it ended early: `stop`, `budget` or `error`.
        error: What ended it.
    """

    run: str
    tally: Tally
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: list[Left] = field(default_factory=list)
    declined: list[Left] = field(default_factory=list)
    unfinished: int = 0
    stopped: str = ""
    error: LorapodError | None = None
