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

    def read(self, line: str) -> Event | None:
        """The event of a line, or None for one that is only for the log."""
        if len(line) > _LONGEST:
            line = line[-_LONGEST:]
        self.tracebacks.read(line)  # its head may stand behind a bar that has no line end
        if "%|" in line:
            return self._bar(line)
        line = line.strip()
        if line.startswith("epoch ") and (found := _EPOCH.match(line)):
            self.epoch = int(found[1])
        elif not self.stage.startswith("train") and (found := _ITEMS.search(line)):
            return event("progress", stage=self.stage, done=int(found[1]), total=0, unit="batches")
        return None

    def _bar(self, line: str) -> Event | None:
        states = list(_BAR.finditer(line))
        if not states:
            return None
        found = states[-1]  # of a bar whose states were not taken apart
        done, total = int(found["done"]), int(found["total"])
        if not found["what"].strip().endswith("steps"):
            if self.stage.startswith("train"):
                return None  # loading and sampling draw bars of their own
            return event("progress", stage=self.stage, done=done, total=total, unit="batches")
        if found["loss"] is None:
            return None
        self.step, self.total = done + self.offset, total + self.offset
        rate = float(found["rate"]) if found["rate"] != "?" else 0.0
        seconds = rate if found["unit"] == "s/it" else 1 / rate if rate else 0.0
        loss = _number(found["loss"])
        if not math.isfinite(loss):  # JSON has no such number
            self.loss_broke = self.loss_broke or self.step
            return None
        return event(
            "step", step=self.step, total=self.total, epoch=self.epoch, loss=loss,
            lr=self.learning_rate, seconds=round(seconds, 4),
        )  # fmt: skip


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
