"""What `lorapod start` shows between its questions: the machine, what is worth fixing, the summary, the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from lorapod.cli.progress import duration
from lorapod.cli.start_ask import Asker, BackError, width, wrapped
from lorapod.errors import DatasetError

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.start.session import Session
    from lorapod.start.work import Job

_PLAIN_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_LABEL = 14


def welcome(session: Session, ask: Asker) -> None:
    """What this machine is good for, and what keeps it from that."""
    from lorapod.start.facts import machine_sentence

    ask.say("lorapod trains a LoRA from your pictures or clips.", "bold")
    ask.say(machine_sentence(session.facts))
    _about_old_template(session, ask)
    for fault in session.facts.faults:
        ask.say("")
        ask.say(f"Careful: {fault.what}.", "bold yellow")
        ask.say(f"{fault.why} {fault.remedy}".strip())
    ask.say("")
    ask.say("Enter takes what is proposed. Ctrl-C stops; what you answered is kept.", "dim")
    with suppress(BackError):  # else the list of base models pushes it off a small screen before it is read
        ask.line("Press Enter to begin.")


def _about_old_template(session: Session, ask: Asker) -> None:
    """What becomes of a workspace of the old template: nothing in it is changed, and its settings can be had."""
    from lorapod.workspace import left_by_old_template, old_settings

    workspace = session.facts.workspace
    if not left_by_old_template(workspace):
        return
    ask.say("")
    ask.say("This workspace is that of the old template. Its pictures, clips and captions are used where they are; nothing "
            "else in it is touched.")  # fmt: skip
    settings = old_settings(workspace)
    if settings:
        ask.say(f"Trainings that you had set up there become recipes by: lorapod recipe import {settings[0]}")


def say_worst(session: Session, ask: Asker) -> None:
    """Looks at the data closely, and says what is most worth fixing.

    Raises:
        DatasetError: Nothing of it can be trained on.
    """
    from lorapod.cli.media_progress import media_progress
    from lorapod.start.data import worst_of
    from lorapod.start.steps import demo_paths

    if session.answers.data == demo_paths(session):
        session.unusable = frozenset()
        return
    with media_progress("Looking at your files") as progress:
        session.unusable, worst = worst_of(
            session.contents,
            session.model,
            session.answers.goal or "",
            session.answers.trigger or "",
            session.facts.workspace,
            progress,
            session.answers.size,
        )
    total, left = session.contents.total, len(session.unusable)
    if left >= total:
        raise DatasetError("None of these files can be trained on", worst[0] if worst else "", "Give another folder.")
    if left:
        ask.say(f"{total - left} of {total} can be trained on; the other{'s are' if left > 1 else ' is'} left out.")
    else:
        ask.say(f"All {total} can be trained on." if worst else f"All {total} look fine.")
    if worst:
        ask.say("Most worth fixing:" if len(worst) > 1 else "Worth fixing:", "yellow")
        for text in worst:
            ask.say(f"- {text}")


def summary(session: Session, ask: Asker) -> None:
    """All answers on one page, each with a number."""
    from lorapod.start.steps import trainer_of

    ask.say("")
    ask.say("This will be trained:", "bold")
    for line in summary_lines(session):
        ask.say(line) if len(line) < width() else _hanging(line, ask)
    need = session.facts.fetch_bytes(session.facts.entries[session.model], trainer_of(session))
    if session.contents.bare:
        need += session.facts.captioner_gigabytes(session.answers.captioner or "") * 1e9
    if need > session.facts.disk_free:
        ask.say(
            f"Careful: {need / 1e9:.0f} GB are to be fetched, and {session.facts.disk_free / 1e9:.0f} GB are free on the "
            f"disk of {session.facts.workspace.root}.",
            "bold yellow",
        )


def summary_lines(session: Session) -> list[str]:
    """A line for each answer: number, label, value."""
    return [f"{number:>2}  {step.label:<{_LABEL}}{text}" for number, step, text in session.numbered()]


def _hanging(line: str, ask: Asker) -> None:
    head, rest = line[: _LABEL + 4], line[_LABEL + 4 :]
    for i, part in enumerate(wrapped(rest, at=width() - 1 - len(head)).splitlines()):
        ask.say((head if not i else " " * len(head)) + part)


def say_captions(session: Session, ask: Asker) -> bool:
    """The first three captions; whether there are any."""
    from lorapod.start.data import captions_of

    said = captions_of(session.contents)
    if said:
        ask.say("")
        ask.say("Captions, as they will be trained:", "bold")
    for name, text in said:
        trigger = session.answers.trigger or ""
        whole = text if not trigger or trigger in text else f"{trigger}, {text}"
        ask.say(f"- {name}: {whole[:300]}{'…' if len(whole) > 300 else ''}")
    return bool(said)


def follow(jobs: Sequence[Job], console: Console, is_enough: Callable[[], bool], *, bars: bool) -> None:
    """Shows jobs side by side, a bar each, until it is enough; plain lines where bars cannot be drawn."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    shown: dict[str, int] = {}
    if not bars:
        printed = 0.0
        ended: set[str] = set()
        while True:
            enough, now = is_enough(), time.monotonic()
            due = now - printed >= _PLAIN_SECONDS
            for job in jobs:
                if job.is_over and job.title not in ended:
                    ended.add(job.title)
                    console.print(f"  {job.title}: {'failed' if job.error else 'done'}", markup=False)
                elif due and not job.is_over:
                    console.print(f"  {job.title}: {job.said}", markup=False)
            printed = now if due else printed
            if enough:
                return
            time.sleep(_PAUSE_SECONDS)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[said]}"),
        console=console,
        expand=True,
    ) as progress:
        began = time.monotonic()
        while True:
            enough = is_enough()
            for job in jobs:
                if job.title not in shown:
                    shown[job.title] = progress.add_task(escape(job.title), total=None, said="")
                said = "failed" if job.error else "done" if job.is_over else job.said + _left(job, began)
                total = (job.total or 1.0) if job.is_over and not job.error else job.total
                done = total if job.is_over and not job.error else job.done
                progress.update(shown[job.title], total=total, completed=done, said=escape(said))  # type: ignore[arg-type]
            if enough:
                return
            time.sleep(_PAUSE_SECONDS)


def _left(job: Job, began: float) -> str:
    seconds = time.monotonic() - began
    if not job.total or job.done <= 0 or seconds < 5:
        return ""
    return f", {duration(seconds / job.done * (job.total - job.done))} left"
