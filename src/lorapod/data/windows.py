"""Which stretches of a clip are trained on: frames taken at the base model's own rate, in buckets of length.

A window of n frames at f frames a second takes its samples at start + i / f seconds. It fits where its last sample lies
before the clip's end, so a clip of exactly five seconds at 16 frames a second has 80 frames to give, not 81.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorapod.recipe.choices import ClipWindows

_ROUNDING = 1e-6
"""Seconds by which a time may be off from having been a fraction."""


@dataclass(frozen=True)
class Window:
    """A stretch of a clip.

    Attributes:
        start: Seconds from the clip's first frame.
        frames: How many are taken.
        fps: Frames a second at which they are taken, whatever the clip's own rate is.
    """

    start: float
    frames: int
    fps: float

    @property
    def times(self) -> list[float]:
        """Seconds from the clip's first frame at which a frame is taken."""
        return [self.start + i / self.fps for i in range(self.frames)]


def windows_for(
    seconds: float, frame_buckets: Sequence[int], fps: float, mode: ClipWindows, count: int = 1
) -> list[Window]:
    """The windows of a clip of that length, all of the largest frame bucket that fits; none where not one fits.

    Args:
        frame_buckets: Numbers of frames.
        fps: The rate at which frames are taken.
        mode: `head`: the beginning. `middle`: centred. `uniform`: `count` windows spread evenly from the beginning to the
            end, which may overlap. `every`: one after the other, without overlap.
        count: For `uniform`.
    """
    fitting = [frames for frames in frame_buckets if _fits(0.0, frames, fps, seconds)]
    if not fitting:
        return []
    frames = max(fitting)
    spare = max(0.0, seconds - frames / fps)
    if mode is ClipWindows.HEAD:
        starts = [0.0]
    elif mode is ClipWindows.MIDDLE or (mode is ClipWindows.UNIFORM and count == 1):
        starts = [spare / 2]
    elif mode is ClipWindows.UNIFORM:
        starts = [spare * i / (count - 1) for i in range(count)]
    else:
        starts = []
        while _fits(len(starts) * frames / fps, frames, fps, seconds):
            starts.append(len(starts) * frames / fps)
    return [Window(start, frames, fps) for start in dict.fromkeys(starts)]


def _fits(start: float, frames: int, fps: float, seconds: float) -> bool:
    return start + (frames - 1) / fps < seconds - _ROUNDING
