"""Progress of work on many files: a bar on a terminal once it takes more than two seconds, a line now and then elsewhere.

It goes to standard error, so that what a program reads on standard output stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lorapod.data.facts import Progress

_SILENT_SECONDS = 2.0
_BETWEEN_LINES = 10.0


@contextmanager
def media_progress(title: str) -> Iterator[Progress]:
    """Yields what is to be told how many of how many files are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=None)
    began = printed = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal printed
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if now - began < _SILENT_SECONDS:
            return
        if terminal and not bar.live.is_started:
            bar.start()
        if not terminal and now - printed >= _BETWEEN_LINES:
            printed = now
            typer.echo(f"{title}: {done} of {total}", err=True)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def making_progress(title: str) -> Iterator[Progress]:
    """As `media_progress`, for work that goes on when its command is run again, which is said where it is stopped."""
    try:
        with media_progress(title) as update:
            yield update
    except KeyboardInterrupt:
        typer.echo("Stopped. Run the same command again to go on from here.", err=True)
        raise
