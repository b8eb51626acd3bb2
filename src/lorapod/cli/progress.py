"""A run as the terminal shows it: a few lines and one progress bar; plain lines where there is no terminal."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from lorapod.errors import RunError, sentences
from lorapod.events import Event
from lorapod.runs import RunFolder, RunState, Tail, state_of, stop_run, supervisor_of

_PAUSE_SECONDS = 0.2
_PLAIN_SECONDS = 10.0


def duration(seconds: float | None) -> str:
    """`1 h 04 min`, `3 min 20 s` or `12 s`."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def watch(run: RunFolder, console: Console) -> str:
    """Shows a run until it ends; returns its status. Ctrl-C once stops it cleanly, twice at once.

    Closing the terminal, or killing this process, leaves the run going.
    """
    tail, state, answered = Tail(run), RunState(), 0
    supervisor = supervisor_of(run)
    # what happened before a resume counts, but is not told again; processes' start times are a second coarse
    since = supervisor.create_time() - 1 if supervisor else 0.0
    with _View(console) as view, _CtrlC() as ctrl_c:
        while True:
            over = supervisor_of(run) is None
            for event in tail.new():
                state.add(event)
                if event["t"] >= since:
                    view.show(event, state)
            if over:
                break
            if ctrl_c.presses > answered:
                answered = ctrl_c.presses
                view.say(_stop(run, at_once=answered > 1))
            time.sleep(_PAUSE_SECONDS)
    return state_of(run).status


def _stop(run: RunFolder, at_once: bool) -> str:
    try:
        stop_run(run, now=at_once)
    except RunError as error:
        return error.what
    return (
        "Stopping at once." if at_once else "Stopping after this step, with a checkpoint. Ctrl-C again stops at once."
    )


class _CtrlC:
    """Counts Ctrl-C in place of raising, so that no press is lost or ends the watching half-way."""

    def __init__(self) -> None:
        self.presses = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_press(self, number: int, frame: FrameType | None) -> None:
        self.presses += 1


class _View:
    """Lines for what happened, and one bar for what is going on."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self.task = self.bar.add_task("starting", total=None, facts="")
        self.printed = 0.0
        self.phase = ""
        self.phase_began = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def say(self, text: str, style: str = "") -> None:
        self.console.print(escape(text), style=style, soft_wrap=not self.console.is_terminal)

    def show(self, event: Event, state: RunState) -> None:
        """Shows one event."""
        kind = event["type"]
        if kind == "stage":
            self._end_phase(event["t"])
            self.phase, self.phase_began = event["name"], event["t"]
            self._bar(event["name"], 0, event.get("total"), "")
        elif kind == "progress":
            done = f"{event['done']}/{event['total']}" if event["total"] else event["done"]
            self._bar(event["stage"], event["done"], event["total"] or None, f"{done} {event['unit']}")
        elif kind == "step":
            self._bar("train", state.step, state.total, self._facts(state))
        elif kind == "warning":
            self.say(f"warning: {sentences(event['message'], event.get('hint', ''))}", "yellow")
        elif kind == "info":
            self.say(event["message"])
        elif kind == "eval" and ("when" in event or event["step"] in (0, state.total)):
            when = event.get("when") or ("before" if event["step"] == 0 else "after")
            self.say(f"  held-out loss of {event['dataset']} {when} training: {event['loss']:.4f}")
        elif kind == "end":
            self._end_phase(event["t"])

    def _end_phase(self, now: float) -> None:
        if self.phase:
            self.say(f"  {self.phase}: {duration(now - self.phase_began)}")
        self.phase = ""

    def _facts(self, state: RunState) -> str:
        loss = f"loss {state.loss:.4f} (smooth {state.smooth_loss:.4f})" if state.loss is not None else ""
        memory = f"  {state.memory_gb:.1f} GB" if state.memory_gb else ""
        rate = f"{state.seconds_per_step:.2f} s/step" if state.seconds_per_step else ""
        left = f"{duration(state.seconds_left)} left" if state.seconds_per_step or state.step == state.total else ""
        if self.console.width < 100 and self.console.is_terminal:
            return f"{state.step}/{state.total}  loss {state.smooth_loss:.4f}  {rate}  {left}".rstrip()
        return f"{state.step}/{state.total}  {loss}  {rate}{memory}  {left}".rstrip()

    def _bar(self, name: str, done: int, total: int | None, facts: str) -> None:
        if self.console.is_terminal:
            self.bar.update(self.task, description=name, completed=done, total=total, facts=facts)
            return
        now = time.monotonic()
        if facts and (now - self.printed >= _PLAIN_SECONDS or done == total):
            self.printed = now
            self.say(f"  {name}: {facts}")


def finish(run: RunFolder, status: str, console: Console, pictures: Path | None = None) -> None:
    """The last lines: what was made, where it is, and what to do next. Raises `typer.Exit` unless the run is done."""
    import typer

    state = state_of(run)

    def line(name: str, value: object) -> None:
        console.print(f"[bold]{name:<8}[/bold]{escape(str(value))}", soft_wrap=True)

    if status == "done":
        for _, path in state.newest_loras.values():
            line("LoRA", run.path / path)
        if pictures:
            line("Grid", pictures)
        line("Report", run.report)
        both = len(state.newest_loras) > 1
        what = "both LoRAs, each for the model of its expert," if both else "the LoRA"
        line("Next", f'lorapod sample {run.id} --prompt "..."   or copy {what} to ComfyUI\'s models/loras')
        return
    if status == "stopped":
        kept = f"at step {state.step} of {state.total}" if state.checkpoints else "before the first checkpoint"
        console.print(f"Stopped {kept}. Go on with: [bold]lorapod train --resume {run.id}[/bold]", soft_wrap=True)
        raise typer.Exit(130)
    what = "The run was interrupted: its supervisor is gone" if status == "interrupted" else "The run failed"
    error = state.error or {"message": what, "hint": "" if status == "interrupted" else f"See {run.log}"}
    console.print(f"[bold red]error: {escape(error['message'])}[/bold red]", soft_wrap=True)
    if error.get("hint"):
        console.print(escape(error["hint"]), soft_wrap=True)
    line("Log", run.log)
    if state.checkpoints:
        line("Resume", f"lorapod train --resume {run.id}")
    raise typer.Exit(1)
