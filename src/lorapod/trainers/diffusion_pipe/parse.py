"""What diffusion-pipe prints, as events.

Its prints and progress bars come from several processes into one stream, so that what is looked for may stand anywhere in a
line and more than once in it. Losses of evaluations stand only in its TensorBoard file (`lorapod.trainers.tensorboard`).
Facts: `train.py`, `utils/saver.py`, and the pipeline engine of DeepSpeed 0.18.4, which prints the steps.
"""

from __future__ import annotations

import math
import re
import time

from lorapod.events import Event, event
from lorapod.trainers.tracebacks import Tracebacks

_STEP = re.compile(
    r"steps: (\d+) loss: (nan|-?inf|[\d.eE+-]+) (?:[^\r\n]{0,200}?)iter time \(s\): ([\d.]+) samples/sec: ([\d.]+)"
)
_RATE = re.compile(r"step=(\d+), skipped=\d+, lr=\[?([\d.eE+-]+)")
_EPOCH = re.compile(r"Started new epoch: (\d+)")
_SAVING = re.compile(r"Saving model to directory ((?:epoch|step)\d+)")
_RESUMED = re.compile(r"Resuming training from checkpoint\. Resuming at epoch: (\d+), step: (\d+)")
_CACHING = re.compile(r"caching (latents|text embeddings): (\(.*?\)|\[.*?\]|[^\r\n]{0,200})")
_BAR = re.compile(r"(\d+)/(\d+) \[")
_RETURNED = re.compile(r"exits with return code = (-?\d+)")
_GLOBAL_BATCH = re.compile(r"Global batch size = (\d+)")
_LONGEST = 4096
_BAR_SECONDS = 1.0

_LOST = {
    "Cound not find caption for": "diffusion-pipe found no caption for an item",
    "could not be opened. Skipping": "diffusion-pipe could not open a file and left it out",
    "is being skipped because it is too short": "diffusion-pipe left a clip out as too short",
    "is being completely dropped": "diffusion-pipe left out a bucket that fills no batch",
}
"""Messages about items that are not trained on, and what each means."""


class Reader:
    """Reads the output of one stage.

    Args:
        stage: Its name.
        total: Steps of the whole training; 0 where that is not known.
        learning_rate: The recipe's, until the first one is printed.

    Attributes:
        complete: It said that the training is complete.
        quit: It said that it stops because it was asked to.
        saved: Folders that it said it saves to, with the steps that they are of.
        return_code: What the launcher said that a process of it returned.
        loss_broke: The step at which the loss was no number any more.
    """

    def __init__(self, stage: str, total: int = 0, learning_rate: float = 0.0) -> None:
        self.stage, self.total, self.learning_rate = stage, total, learning_rate
        self.step, self.epoch = 0, 1
        self.seconds_per_step = 0.0
        self.complete = self.quit = False
        self.saved: dict[str, int] = {}
        self.return_code: int | None = None
        self.global_batch: int | None = None
        self.loss_broke: int | None = None
        self.lost: list[str] = []
        self.tracebacks = Tracebacks()
        self._caching = ""
        self._bar_at = 0.0

    def read(self, text: str) -> list[Event]:
        """The events of a line; none for one that is only for the log."""
        if len(text) > _LONGEST:
            # Whatever says something is short; it may have been printed into a bar without a line end.
            text = f"{text[: _LONGEST // 2]}\n{text[-_LONGEST // 2 :]}"
        if "steps: " in text:
            found = [self._step(*match.groups()) for match in _STEP.finditer(text)]
            if found:
                return [each for each in found if each is not None]
        if "%|" in text:
            return self._bar(text)
        self.tracebacks.read(text)
        for words, what in _LOST.items():
            if words in text:
                self.lost.append(text.strip())
                hint = "It prints: " + text.strip()[-300:]
                return [event("warning", message=what, hint=hint)]
        return self._said(text)

    def _step(self, step: str, loss: str, seconds: str, _rate: str) -> Event | None:
        self.step, value = int(step), float(loss)
        self.seconds_per_step = float(seconds)
        if not math.isfinite(value):  # JSON has no such number; the run ends on it
            self.loss_broke = self.loss_broke or self.step
            return None
        return event(
            "step",
            step=self.step,
            total=max(self.total, self.step),
            epoch=self.epoch,
            loss=value,
            lr=self.learning_rate,
            seconds=self.seconds_per_step,
        )

    def _bar(self, text: str) -> list[Event]:
        now = time.monotonic()
        bars = _BAR.findall(text)
        if not bars or not (self._caching or self.stage == "cache"):
            return []
        done, total = map(int, bars[-1])
        if done < total and now - self._bar_at < _BAR_SECONDS:
            return []
        self._bar_at = now
        return [event("progress", stage=self._caching or self.stage, done=done, total=total, unit="items")]

    def _said(self, text: str) -> list[Event]:
        if "step=" in text and (found := _RATE.search(text)):
            self.learning_rate = float(found[2])
        elif found := _EPOCH.search(text):
            self.epoch = int(found[1])
        elif found := _SAVING.search(text):
            self.saved[found[1]] = self.step
        elif found := _CACHING.search(text):
            self._caching = f"caching {found[1]}"
        elif found := _RESUMED.search(text):
            self.epoch, self.step = int(found[1]), int(found[2]) - 1
            return [event("info", message=f"diffusion-pipe goes on at step {found[2]}, epoch {found[1]}")]
        elif found := _RETURNED.search(text):
            self.return_code = int(found[1])
        elif found := _GLOBAL_BATCH.search(text):
            self.global_batch = int(found[1])
        elif "TRAINING COMPLETE!" in text:
            self.complete = True
        elif "Manually quitting" in text:
            self.quit = True
        return []
