"""A pull as the terminal shows it: one bar a file and one for all, with rate and time left; plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lorapod.cli.progress import duration
from lorapod.models.fetch import Progress as PullProgress
from lorapod.models.hub import RemoteFile
from lorapod.models.plan import Plan, size_text
from lorapod.models.store import FileRecord

_PLAIN_SECONDS = 10.0
_NAME_CELLS = 38


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
        speed_estimate_period=20,
    )


def _short(name: str) -> str:
    """The end of a path is what tells files apart."""
    return name if len(name) <= _NAME_CELLS else "…" + name[-_NAME_CELLS + 1 :]


class PullView(PullProgress):
    """Shows a pull on a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = _bars(console)
        self.lock = threading.Lock()
        self.tasks: dict[str, TaskID] = {}
        self.all: TaskID | None = None
        self.total = self.fetched = self.begun_with = 0
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()
        if kind is None and self.fetched:
            seconds = max(time.monotonic() - self.began, 1e-3)
            rate = size_text(self.fetched / seconds)
            self.note(f"Fetched {size_text(self.fetched)} in {duration(seconds)}, {rate} a second.")

    def begin(self, plan: Plan) -> None:
        have = plan.total - plan.missing
        kept = f", {size_text(have)} of it is here" if have else ""
        self.note(f"{plan.entry.name}: {len(plan.files)} files, {size_text(plan.total)}{kept}.")
        self.total, self.begun_with, self.fetched = plan.total, have, 0
        self.began = time.monotonic()
        self.all = self.bars.add_task("all files", total=plan.total, completed=have)
        self.missing = {f.remote.key: f.missing for f in plan.files}

    def advance(self, file: RemoteFile, count: int) -> None:
        with self.lock:
            self.fetched += count
            if file.key not in self.tasks:
                have = file.size - self.missing.get(file.key, file.size)
                self.tasks[file.key] = self.bars.add_task(escape(_short(file.target)), total=file.size, completed=have)
            self.bars.advance(self.tasks[file.key], count)
            if self.all is not None:
                self.bars.advance(self.all, count)
            self._plain_line()

    def _plain_line(self) -> None:
        now = time.monotonic()
        if self.console.is_terminal or now - self.printed < _PLAIN_SECONDS:
            return
        self.printed = now
        rate = self.fetched / max(now - self.began, 1e-3)
        done = self.begun_with + self.fetched
        left = duration((self.total - done) / rate) if rate > 0 else "?"
        self.console.print(
            f"  {size_text(done)} of {size_text(self.total)}  {size_text(rate)} a second  {left} left", markup=False
        )

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, soft_wrap=True)

    def finished(self, file: RemoteFile) -> None:
        with self.lock:
            task = self.tasks.pop(file.key, None)
            if task is not None:
                self.bars.remove_task(task)


class VerifyView:
    """Shows how far the reading of a base model's files is."""

    def __init__(self, console: Console, total: int) -> None:
        self.bars = _bars(console)
        self.task = self.bars.add_task("reading", total=total)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def advance(self, record: FileRecord, count: int) -> None:
        self.bars.update(self.task, advance=count, description=escape(_short(record.target)))

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False, soft_wrap=True)
