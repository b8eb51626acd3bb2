"""A captioning run as the terminal shows it: a bar with rate, time and money left; plain lines without a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from lorapod.cli.progress import duration
from lorapod.data.names import shown

if TYPE_CHECKING:
    from lorapod.captioning.items import Left
    from lorapod.captioning.tally import Tally

_PLAIN_SECONDS = 10.0
_SHOWN_FAILURES = 20


def money(dollars: float) -> str:
    """`$12.30`, and four places below a dollar."""
    return f"${dollars:,.2f}" if dollars >= 0.995 or dollars == 0 else f"${dollars:.4f}"


class CaptionView:
    """Watches a run (`lorapod.captioning.runner.Watch`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("captions"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self.task = self.bar.add_task("", total=None, facts="")
        self.printed = time.monotonic()
        self.paused = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def changed(self, tally: Tally) -> None:
        now = time.monotonic()
        if tally.pause > 5 and now > self.paused:
            self.paused = now + tally.pause
            self.say(f"The service asks to wait {duration(tally.pause)}.", "yellow")
        if self.console.is_terminal:
            self.bar.update(self.task, total=tally.total, completed=tally.done, facts=_facts(tally))
        elif now - self.printed >= _PLAIN_SECONDS:
            self.printed = now
            self.say(f"  captions: {_facts(tally)}")

    def wrote(self, path: Path, text: str) -> None:
        """Captions are on disk; the bar says how many."""

    def failed(self, left: Left) -> None:
        self.say(f"  {shown(left.path.name)}: {left.reason}", "yellow")

    def say(self, text: str, style: str = "") -> None:
        self.console.print(escape(text), style=style, soft_wrap=True)


def _facts(tally: Tally) -> str:
    parts = [f"{tally.done}/{tally.total}"]
    if tally.rate:
        parts.append(f"{tally.rate * 60:.0f} a minute" if tally.rate < 10 else f"{tally.rate:.0f} a second")
    if tally.seconds_left is not None and tally.done < tally.total:
        parts.append(f"{duration(tally.seconds_left)} left")
    if tally.is_priced and tally.dollars:
        left = f", about {money(tally.dollars_left)} left" if tally.dollars_left else ""
        parts.append(f"{money(tally.dollars)} spent{left}")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    return "  ".join(parts)


def print_named(console: Console, title: str, named: list[Left]) -> None:
    """Items with reasons, those of the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for left in named:
        by_reason.setdefault(left.reason, []).append(shown(left.path.name))
    if not by_reason:
        return
    console.print(title, markup=False)
    lines = sorted(by_reason.items(), key=lambda each: -len(each[1]))
    for reason, names in lines[:_SHOWN_FAILURES]:
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        console.print(f"  {some}: {reason}", markup=False, soft_wrap=True)
    if len(lines) > _SHOWN_FAILURES:
        console.print(f"  … and {len(lines) - _SHOWN_FAILURES} other reasons", markup=False)
