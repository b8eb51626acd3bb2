"""What musubi-tuner prints, as events. Its progress bar overwrites itself: pieces between carriage returns are read too.

`loss` is the bar's `avr_loss`, a moving average over an epoch. A resumed training counts from 0 again there; `offset`
makes the steps go on. Not covered: its TensorBoard files, which hold the loss of each step.
"""

from __future__ import annotations

import math
import re

from lorapod.events import Event, event
from lorapod.trainers.tracebacks import Tracebacks

_BAR = re.compile(
    r"(?P<what>[^\r\n]{0,200}?):?\s+\d+%\|[^|]{0,400}\|\s*(?P<done>\d+)/(?P<total>\d+) "
    r"\[[\d:]+<[\d:?]+,\s*(?P<rate>[\d.?]+)(?P<unit>s/it|it/s)(?:, (?:avr|avg)_loss=(?P<loss>[^,\]\s]+))?"
)
_EPOCH = re.compile(r"epoch (\d+)/(\d+)$")
_ITEMS = re.compile(r"(\d+)it \[")
_LONGEST = 4096
"""No line that says something is longer, and a regular expression over a megabyte is slow."""


class Reader:
    """Reads the output of one stage.

    Args:
        stage: Its name, for progress.
        offset: Steps that were done before, when it resumes.
        learning_rate: The recipe's, since the bar does not show the present one.

    Attributes:
        step, total: How far the training is; `total` is None before its first step.
        loss_broke: Step at which the loss became no number.
        tracebacks: What was raised.
    """

    def __init__(self, stage: str, offset: int = 0, learning_rate: float = 0.0) -> None:
        self.stage, self.offset, self.learning_rate = stage, offset, learning_rate
        self.epoch, self.step = 1, offset
        self.total: int | None = None
        self.loss_broke: int | None = None
        self.tracebacks = Tracebacks()
        self._told, self._loss = -1, ""
        self._held: Event | None = None

    def read(self, line: str) -> list[Event]:
        """The events of a line; none for one that is only for the log."""
        if len(line) > _LONGEST:
            line = line[-_LONGEST:]
        self.tracebacks.read(line)  # its head may stand behind a bar that has no line end
        if "%|" in line:
            return self._bar(line)
        line = line.strip()
        if line.startswith("epoch ") and (found := _EPOCH.match(line)):
            self.epoch = int(found[1])
        elif not self.stage.startswith("train") and (found := _ITEMS.search(line)) and int(found[1]):
            return [event("progress", stage=self.stage, done=int(found[1]), total=0, unit="batches")]
        return []

    def rest(self) -> list[Event]:
        """The step that is held back, when the output is over."""
        held, self._held = self._held, None
        return [held] if held else []

    def _bar(self, line: str) -> list[Event]:
        events = []
        for found in _BAR.finditer(line):  # a bar's states, where they were not taken apart
            done, total = int(found["done"]), int(found["total"])
            if found["what"].strip().endswith("steps"):
                if found["loss"] is not None:
                    events += self._step(done + self.offset, total + self.offset, found)
            elif not self.stage.startswith("train"):  # there, loading and sampling draw bars of their own
                events = [event("progress", stage=self.stage, done=done, total=total, unit="batches")]
        return events

    def _step(self, step: int, total: int, found: re.Match[str]) -> list[Event]:
        """One event a step. The bar is drawn twice in a slow step, first with the loss of the step before: such a state
        is held back until it is seen whether another one follows."""
        if step == self._told:
            return []
        events = self.rest() if self._held and self._held["step"] != step else []
        self.step, self.total = step, total
        text = found["loss"]
        loss = _number(text)
        if not math.isfinite(loss):  # JSON has no such number
            self.loss_broke = self.loss_broke or step
            self._held = None
            return events
        rate = float(found["rate"]) if found["rate"] != "?" else 0.0
        seconds = rate if found["unit"] == "s/it" else 1 / rate if rate else 0.0
        made = event(
            "step",
            step=step,
            total=total,
            epoch=self.epoch,
            loss=loss,
            lr=self.learning_rate,
            seconds=round(seconds, 4),
        )
        if text == self._loss and self._held is None:
            self._held = made
            return events
        self._told, self._loss, self._held = step, text, None
        return [*events, made]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
