"""What a clip looks like, gathered frame after frame so that no more than a few of them are in memory.

Scene changes are hard cuts only: a dissolve or a fade is not told from movement. A flash of a frame or two is no cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorapod.data.look import Look, black_bars, edge_width, encoded, luma, perceptual_hashes

_CELLS = (32, 24)
"""Width and height of the copies on which frames are compared."""

_CUT = 12.0
"""Mean difference, of 255, of the frames beside a cut, at least."""

_ABOVE_MOVEMENT = 2.5
"""Times that a cut differs more than the frames around it."""

_STILL_THE_SCENE = 0.8
"""Correlation of two frames from which on they show one scene in another light."""

_STANDS_STILL = 3.0
"""Largest difference of a cell, of 255, that compression makes in a picture that stands still."""

_SHORTEST_FROZEN, _SHORTEST_DARK = 0.5, 0.2

_SAMPLED_AT = (1 / 6, 1 / 2, 5 / 6)
"""Parts of the clip whose frames stand for it."""


class Watcher:
    """Takes the frames of a clip in order and says what it looks like.

    Args:
        seconds: Length of the clip.
        variable_rate: Whether its frame rate varies, which is kept in its look.
    """

    def __init__(self, seconds: float, variable_rate: bool = False) -> None:
        self._seconds, self._variable_rate = seconds, variable_rate
        self._samples: list[NDArray[np.uint8]] = []
        self._brightest: NDArray[np.float32] | None = None
        self._count = 0
        self._black = self._white = 0.0
        self._cuts = _Cuts()
        self._frozen = _Stretches(_SHORTEST_FROZEN)
        self._dark = _Stretches(_SHORTEST_DARK)
        self._anchor: NDArray[np.float32] | None = None
        self._end = 0.0

    def add(self, seconds: float, frame: NDArray[np.uint8]) -> None:
        """The next frame (h, w, 3), and its time."""
        grey = luma(frame)
        self._count += 1
        self._black += float((grey <= 4).mean())
        self._white += float((grey >= 251).mean())
        self._brightest = grey if self._brightest is None else np.maximum(self._brightest, grey)
        if len(self._samples) < len(_SAMPLED_AT) and seconds >= self._seconds * _SAMPLED_AT[len(self._samples)]:
            self._samples.append(frame)
        self._last = frame
        cells = np.asarray(Image.fromarray(frame).resize(_CELLS, Image.Resampling.BOX), dtype=np.float32)
        self._cuts.add(seconds, cells)
        still = self._anchor is not None and float(np.abs(cells - self._anchor).max()) <= _STANDS_STILL
        if not still:
            self._anchor = cells
            self._frozen.end(seconds)
            self._frozen.begin(seconds)
        if is_dark(grey):
            self._dark.begin(seconds)
        else:
            self._dark.end(seconds)
        self._end = seconds

    def look(self) -> Look:
        """What was seen. Raises ValueError where no frame was."""
        if self._brightest is None:
            raise ValueError("no frames")
        samples = [*self._samples, *[self._last] * (len(_SAMPLED_AT) - len(self._samples))]
        grey = luma(samples[1])
        hashes, mirrored = perceptual_hashes(grey)
        low, high = np.percentile(grey, (1, 99))
        end = max(self._end, self._seconds)
        return Look(
            hashes=hashes,
            mirrored=mirrored,
            thumbs=tuple(encoded(sample) for sample in samples),
            edge_width=min((w for w in (edge_width(luma(sample)) for sample in samples) if w), default=0.0),
            brightness=round(float(grey.mean()), 2),
            contrast=round(max(float(luma(sample).std()) for sample in samples), 2),
            low=round(float(low), 1),
            high=round(float(high), 1),
            black=round(self._black / self._count, 4),
            white=round(self._white / self._count, 4),
            bars=black_bars(self._brightest),
            seconds=round(self._seconds, 3),
            cuts=self._cuts.found(),
            frozen=self._frozen.found(end),
            dark=self._dark.found(end),
            motion=self._cuts.motion(),
            variable_rate=self._variable_rate,
        )


def is_dark(grey: NDArray[np.float32]) -> bool:
    """Whether a picture (h, w) is as good as black."""
    return float(np.percentile(grey, 99)) < 40 and float(grey.mean()) < 16


class _Cuts:
    """Finds frames that differ from the one before far more than their neighbours do from theirs."""

    def __init__(self) -> None:
        self._last: NDArray[np.float32] | None = None
        # Time, mean difference to the frame before, and correlation with it; as many as are needed around one.
        self._steps: deque[tuple[float, float, float]] = deque([(0.0, 0.0, 1.0)] * 2, maxlen=5)
        self._found: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, seconds: float, cells: NDArray[np.float32]) -> None:
        if self._last is not None:
            difference = float(np.abs(cells - self._last).mean())
            self._sum += difference
            self._count += 1
            self._steps.append((seconds, difference, _correlation(cells, self._last)))
            self._judge()
        self._last = cells

    def found(self) -> tuple[float, ...]:
        """Times of the first frames after cuts. Nothing can be added afterwards."""
        for _ in range(2):
            self._steps.append((0.0, 0.0, 1.0))
            self._judge()
        return tuple(self._found)

    def motion(self) -> float:
        return round(self._sum / self._count, 3) if self._count else 0.0

    def _judge(self) -> None:
        if len(self._steps) < 5:
            return
        seconds, difference, correlation = self._steps[2]
        around = max(step[1] for i, step in enumerate(self._steps) if i != 2)
        if difference >= _CUT and difference >= _ABOVE_MOVEMENT * around + 4 and correlation < _STILL_THE_SCENE:
            self._found.append(round(seconds, 3))


class _Stretches:
    """Stretches of time that are long enough to be told of."""

    def __init__(self, shortest: float) -> None:
        self._shortest = shortest
        self._since: float | None = None
        self._found: list[tuple[float, float]] = []

    def begin(self, seconds: float) -> None:
        if self._since is None:
            self._since = seconds

    def end(self, seconds: float) -> None:
        if self._since is not None and seconds - self._since >= self._shortest:
            self._found.append((round(self._since, 3), round(seconds, 3)))
        self._since = None

    def found(self, end: float) -> tuple[tuple[float, float], ...]:
        self.end(end)
        return tuple(self._found)


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    left, right = one - one.mean(), other - other.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / size if size > 1e-3 else 0.0


def overlapping(stretch: tuple[float, float], windows: Sequence[tuple[float, float]]) -> bool:
    """Whether a stretch of time shares any with one of others."""
    return any(stretch[0] < end and start < stretch[1] for start, end in windows)
