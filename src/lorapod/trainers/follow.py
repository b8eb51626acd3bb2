"""Following a process of an external trainer: silence, hangs, and what it ended with. What one trainer alone does is its
dialect's matter, in a class that extends `ProcessWatch`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence

import psutil

from lorapod.errors import LorapodError, NonFiniteLossError, StageFailedError
from lorapod.events import Event, event
from lorapod.trainers.activity import Activity
from lorapod.trainers.base import Ending, StageWatch
from lorapod.trainers.dialect import Followed
from lorapod.trainers.failures import Rule, explain, kernel_kills
from lorapod.trainers.tracebacks import Tracebacks

HANG_SECONDS = 60.0
"""Silence and idleness after a traceback from which on a process is taken to hang: it will not end by itself."""

BUSY_HANG_SECONDS = 900.0
"""Silence after a traceback, however busy: processes that wait for a dead one on a GPU wait busily."""

SILENCE_SECONDS = 1200.0
"""Silence and idleness without a traceback from which on the person is told, once."""

_TAIL = 8


class ProcessWatch(StageWatch):
    """Follows one process of an external trainer."""

    stop_signal = signal.SIGTERM
    hang_seconds, busy_hang_seconds, silence_seconds = HANG_SECONDS, BUSY_HANG_SECONDS, SILENCE_SECONDS
    rules: Sequence[Rule] = ()

    def __init__(self, followed: Followed) -> None:
        super().__init__()
        self.followed = followed
        self.activity: Activity | None = None
        self.tail: list[str] = []
        self._heard_at = time.monotonic()
        self._told = False
        self._heads_before_work = 0
        self._kills = kernel_kills()

    @property
    def tracebacks(self) -> Tracebacks:
        """What was raised so far."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """Optimizer steps of the stage; 0 where that is not known."""
        return int(self.followed.state.get("totals", {}).get(self.followed.stage, 0))

    def begin(self, pid: int) -> list[Event]:
        self.activity = Activity(pid)
        self._heard_at = time.monotonic()
        index, count = self.followed.place
        return [event("stage", name=self.followed.stage, index=index, count=count, total=self.total)]

    def read(self, text: str) -> list[Event]:
        self._heard_at = time.monotonic()
        self._told = False
        if text.strip() and "%|" not in text:
            self.tail = [*self.tail, text.strip()[-500:]][-_TAIL:]
        found = self.events_of(text)
        if any(each["type"] in ("step", "progress") for each in found):  # whatever was raised, the work goes on
            self._heads_before_work = self.tracebacks.heads
        return found

    def events_of(self, text: str) -> list[Event]:
        """The events of a line."""
        raise NotImplementedError

    def tick(self) -> list[Event]:
        if self.activity is None:
            return []
        self.activity.look()
        silent, idle = time.monotonic() - self._heard_at, self.activity.idle_seconds()
        raised = self.tracebacks.heads > self._heads_before_work
        if raised and (min(silent, idle) > self.hang_seconds or silent > self.busy_hang_seconds):
            self.doom = self._failure(1)
        elif not raised and min(silent, idle) > self.silence_seconds and not self._told:
            self._told = True
            minutes = round(min(silent, idle) / 60)
            message = f"{self.followed.stage} has printed nothing and done nothing for {minutes} minutes"
            return [event("warning", message=message, hint="Its processes are alive. Stop the run if it stays so.")]
        return []

    def break_off(self, step: int) -> None:
        """Gives the training up because its loss is no number any more."""
        self.doom = NonFiniteLossError(
            f"The loss became no number at step {step}",
            "What is trained from there on is lost; files of earlier steps are whole.",
            "Lower the learning rate, or train with fp32 weights of the adapter, and start anew.",
        )

    def _failure(self, code: int) -> LorapodError:
        killed = kernel_kills() > self._kills
        return explain(self.followed.stage, self.tracebacks.last, code, killed, self.tail, self.rules)

    def end(self, code: int, *, stopped: bool, forced: bool) -> Ending | None:
        if self.doom is not None:
            return Ending("failed", self.last_events(), self.doom)
        if stopped:
            return self.stopped(code, forced)
        if code != 0:
            return Ending("failed", self.last_events(), self._failure(self.real_code(code)))
        return self.finished()

    def real_code(self, code: int) -> int:
        """How the process itself ended, where its launcher's status does not say it."""
        return code

    def last_events(self) -> list[Event]:
        """What is still to be said when the process is over, such as LoRA files that were written meanwhile."""
        return []

    def stopped(self, code: int, forced: bool) -> Ending:
        """It was asked to stop and is over."""
        return Ending("stopped", self.last_events())

    def finished(self) -> Ending:
        """It ended with status 0 and was not asked to stop."""
        return Ending("done", self.last_events())

    def untrained(self, why: str = "") -> Ending:
        """It ended with status 0 without having done what it was started for."""
        raised = self.tracebacks.last
        error = StageFailedError(
            f"{self.followed.stage} ended without having done its work",
            why or (str(raised) if raised else "Its last words: " + " | ".join(self.tail[-3:])),
            "The whole output is in log.txt.",
        )
        return Ending("failed", self.last_events(), error)

    def close(self) -> None:
        """Ends processes that left the stage's group and would stay behind."""
        if self.activity is None:
            return
        left = self.activity.left_over()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(left, timeout=3)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
