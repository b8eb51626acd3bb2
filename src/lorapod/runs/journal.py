"""The events of a run: appended whole, read tolerantly, and added up to the run's state.

The state of a run is what its events say, and whether its supervisor is alive.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import psutil

from lorapod.events import Event, from_line, to_line
from lorapod.files import disk_error
from lorapod.runs.folder import RunFolder

_SMOOTHING = 0.95
_RATE_STEPS = 30

_NUMBER = (int, float)
_NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "stage": {"name": str},
    "step": {"step": int, "total": int, "loss": _NUMBER, "seconds": _NUMBER},
    "eval": {"step": int, "loss": _NUMBER, "dataset": str},
    "preview": {"step": int, "path": str, "prompt": str, "seed": int},
    "checkpoint": {"step": int, "path": str},
    "lora": {"step": int, "path": str},
    "progress": {"stage": str, "done": int, "total": int, "unit": str},
    "warning": {"message": str},
    "error": {"message": str},
    "info": {"message": str},
}
"""Fields without which an event says nothing, by type."""


class Journal:
    """Appends events to a run; each line is written by one call, and a line that was torn all the same is ended."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._torn = False
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
        data = (("\n" if self._torn else "") + to_line(event) + "\n").encode()
        try:
            write_all(self._file, data)
        except OSError as error:
            self._torn = True
            raise disk_error(error, self.run.events) from error
        self._torn = False

    def close(self) -> None:
        os.close(self._file)


def write_all(file: int, data: bytes) -> None:
    """Writes `data` to a file descriptor; a nearly full disk takes a part of it before it raises `OSError`."""
    while data:
        data = data[os.write(file, data) :]


def read_events(run: RunFolder) -> list[Event]:
    """Every event so far; a torn line, or one that lacks what its type must have, is left out."""
    if not run.events.exists():
        return []
    return _events_on(run.events.read_bytes().split(b"\n"))


def _events_on(lines: list[bytes]) -> list[Event]:
    found = (from_line(line.decode("utf-8", errors="replace")) for line in lines)
    return [event for event in found if event and _is_whole(event)]


def _is_whole(event: Event) -> bool:
    needed = _NEEDED.get(event["type"], {}) | {"t": _NUMBER}
    return all(isinstance(event.get(name), kind) for name, kind in needed.items())


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
        return _events_on(lines)


def step_text(step: int, total: int) -> str:
    """`step 3 of 10`; `before the first step` where a run did not get as far as counting them."""
    return f"step {step} of {total}" if total else "before the first step"


@dataclass
class RunState:
    """Where a run stands, added up from its events.

    Attributes:
        loras: Every LoRA file, in the order of writing.
        newest_loras: The step and path of the newest one, of two experts (`high`, `low`) that of each, else of ``; of
            several key layouts the recipe's first.
    """

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
    newest_loras: dict[str, tuple[int, str]] = field(default_factory=dict)
    warnings: list[Event] = field(default_factory=list)
    error: Event | None = None
    _recent: list[float] = field(default_factory=list, repr=False)
    _smoothed: list[tuple[int, float]] = field(default_factory=list, repr=False)

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
            self.previews = [*(p for p in self.previews if p["path"] != event["path"]), event]
        elif kind == "checkpoint":
            self.checkpoints = [*(c for c in self.checkpoints if c != event["path"]), event["path"]]
        elif kind == "lora":
            self.loras = [*(x for x in self.loras if x != event["path"]), event["path"]]
            expert = str(event.get("expert", ""))
            if event["step"] > self.newest_loras.get(expert, (-1, ""))[0]:
                self.newest_loras[expert] = (event["step"], event["path"])
        elif kind == "warning":
            self.warnings.append(event)
        elif kind == "error":
            self.error = event

    def _add_step(self, event: Event) -> None:
        self.step, self.total, self.epoch = event["step"], event["total"], event.get("epoch", 0)
        self.loss, self.learning_rate = event["loss"], event.get("lr")
        self.memory_gb = event.get("memory_gb", self.memory_gb)
        while self._smoothed and self._smoothed[-1][0] >= self.step:
            self._smoothed.pop()
        before = self._smoothed[-1][1] if self._smoothed else event["loss"]
        self.smooth_loss = _SMOOTHING * before + (1 - _SMOOTHING) * event["loss"]
        self._smoothed.append((self.step, self.smooth_loss))
        self._recent = [*self._recent, event["seconds"]][-_RATE_STEPS:]
        self.seconds_per_step = sum(self._recent) / len(self._recent)


def state_of(run: RunFolder) -> RunState:
    """The state of a run. A run that has no `end` and no living supervisor was interrupted."""
    alive = supervisor_of(run) is not None  # asked first: a run that ends meanwhile has its `end` among the events
    state = RunState()
    for event in read_events(run):
        state.add(event)
    if alive:
        state.status = "running"
    elif state.status in ("running", "created") and (state.started or run.lock.exists()):
        state.status = "interrupted"
    return state


def supervisor_of(run: RunFolder) -> psutil.Process | None:
    """The living supervisor of a run; a process that merely got the same number is told apart by its start time."""
    try:
        noted = _noted(run)
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if same else None


def stop_asked(run: RunFolder) -> bool:
    """Whether the run's newest supervisor was asked to stop."""
    try:
        return bool(_noted(run).get("stopping"))
    except (OSError, ValueError):
        return False


def _noted(run: RunFolder) -> dict[str, Any]:
    noted = json.loads(run.lock.read_text(encoding="utf-8"))
    return noted if isinstance(noted, dict) else {}
