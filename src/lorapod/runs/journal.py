"""The events of a run: appended whole, read tolerantly, and added up to the run's state.

The state of a run is what its events say, and whether its supervisor is alive.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

import psutil

from lorapod.events import Event, from_line, to_line
from lorapod.files import disk_error
from lorapod.runs.folder import RunFolder

_SMOOTHING = 0.95
_RATE_STEPS = 30


class Journal:
    """Appends events to a run; each line is written by one call, so it is there whole or not at all."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        try:
            self._file = os.open(run.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")  # ends a line that a crash tore, so that the next one can be read
        except OSError as error:
            raise disk_error(error, run.events) from error

    def add(self, event: Event) -> None:
        """Appends one event.

        Raises:
            DiskError: No space.
        """
        try:
            os.write(self._file, (to_line(event) + "\n").encode())
        except OSError as error:
            raise disk_error(error, self.run.events) from error

    def close(self) -> None:
        os.close(self._file)


def read_events(run: RunFolder) -> list[Event]:
    """Every event so far; a torn line is left out."""
    if not run.events.exists():
        return []
    text = run.events.read_bytes().decode("utf-8", errors="replace")
    return [event for event in map(from_line, text.split("\n")) if event]


class Tail:
    """Reads a run's events as they come, each byte once."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._place, self._pending = run, 0, b""

    def new(self) -> list[Event]:
        """Events that were written since the last call."""
        with self._run.events.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        self._place += len(data)
        *lines, self._pending = (self._pending + data).split(b"\n")
        found = (from_line(line.decode("utf-8", errors="replace")) for line in lines)
        return [event for event in found if event]


@dataclass
class RunState:
    """Where a run stands, added up from its events."""

    status: str = "created"
    phase: str = ""
    step: int = 0
    total: int = 0
    epoch: int = 0
    loss: float | None = None
    smooth_loss: float | None = None
    learning_rate: float | None = None
    memory_gb: float | None = None
    seconds_per_step: float | None = None
    started: float | None = None
    ended: float | None = None
    evals: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    previews: list[Event] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    loras: list[str] = field(default_factory=list)
    warnings: list[Event] = field(default_factory=list)
    error: Event | None = None
    _recent: list[float] = field(default_factory=list, repr=False)

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the steps that are left; evaluations and previews are not in it."""
        if self.seconds_per_step is None or not self.total:
            return None
        return (self.total - self.step) * self.seconds_per_step

    def add(self, event: Event) -> None:
        """Takes one more event into account. Steps seen again after a resume count once: the later wins."""
        kind = event["type"]
        if kind == "end":
            self.status, self.ended = event.get("status", "failed"), event["t"]
            return
        self.started = self.started or event["t"]
        if kind == "stage":
            self.phase, self.status, self.error, self.ended = event["name"], "running", None, None
        elif kind == "step":
            self._add_step(event)
        elif kind == "eval":
            curve = [point for point in self.evals.get(event["dataset"], []) if point[0] < event["step"]]
            self.evals[event["dataset"]] = [*curve, (event["step"], event["loss"])]
        elif kind == "preview":
            self.previews.append(event)
        elif kind == "checkpoint":
            self.checkpoints = [*(c for c in self.checkpoints if c != event["path"]), event["path"]]
        elif kind == "lora":
            self.loras = [*(x for x in self.loras if x != event["path"]), event["path"]]
        elif kind == "warning":
            self.warnings.append(event)
        elif kind == "error":
            self.error = event

    def _add_step(self, event: Event) -> None:
        self.step, self.total, self.epoch = event["step"], event["total"], event.get("epoch", 0)
        self.loss, self.learning_rate = event["loss"], event.get("lr")
        self.memory_gb = event.get("memory_gb", self.memory_gb)
        before = self.smooth_loss if self.smooth_loss is not None else event["loss"]
        self.smooth_loss = _SMOOTHING * before + (1 - _SMOOTHING) * event["loss"]
        self._recent = [*self._recent, event["seconds"]][-_RATE_STEPS:]
        self.seconds_per_step = sum(self._recent) / len(self._recent)


def state_of(run: RunFolder) -> RunState:
    """The state of a run. A run that has no `end` and no living supervisor was interrupted."""
    state = RunState()
    for event in read_events(run):
        state.add(event)
    alive = supervisor_of(run) is not None
    if alive:
        state.status = "running"
    elif state.status in ("running", "created") and (state.started or run.lock.exists()):
        state.status = "interrupted"
    return state


def supervisor_of(run: RunFolder) -> psutil.Process | None:
    """The living supervisor of a run; a process that merely got the same number is told apart by its start time."""
    try:
        noted = json.loads(run.lock.read_text(encoding="utf-8"))
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if same else None
