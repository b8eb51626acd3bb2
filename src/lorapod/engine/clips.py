"""Clips that the engine draws: as MP4 to be watched, and as a strip of frames to be looked at beside others."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lorapod.files import written_whole

STRIP_FRAMES = 5
STRIP_SIDE = 320
"""Longest side of a frame in a strip, in pixels."""

_GAP = 4
_QUALITY = "16"
"""x264's constant rate factor; below 18 it is taken for visually lossless (FFmpeg's H.264 guide)."""


def frames_of(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels (3, f, h, w) in -1..1 as frames (f, h, w, 3)."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    frames: NDArray[np.uint8] = values.permute(1, 2, 3, 0).cpu().numpy()
    return frames


def write_clip(path: Path, frames: NDArray[np.uint8], fps: float, texts: dict[str, str]) -> None:
    """Writes frames (f, h, w, 3) of even sides as an H.264 MP4 that browsers play; equal frames give equal bytes.

    Raises:
        DiskError: No space.
    """
    rate = Fraction(fps).limit_denominator(1001)
    # One thread and no creation time: what is written does not depend on the machine or the moment.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with written_whole(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as file:
        file.metadata["comment"] = "\n".join(f"{name}: {value}" for name, value in texts.items())
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": _QUALITY, "threads": "1"}
        for picture in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def strip_of(frames: NDArray[np.uint8]) -> Image.Image:
    """The first frame, the last, and some evenly between them, side by side; the picture itself where there is one."""
    if len(frames) == 1:
        return Image.fromarray(frames[0])
    count = min(STRIP_FRAMES, len(frames))
    chosen = [Image.fromarray(frames[round(i * (len(frames) - 1) / (count - 1))]) for i in range(count)]
    for picture in chosen:
        picture.thumbnail((STRIP_SIDE, STRIP_SIDE), Image.Resampling.LANCZOS)
    width, height = chosen[0].size
    strip = Image.new("RGB", (count * (width + _GAP) - _GAP, height), (252, 252, 250))
    for place, picture in enumerate(chosen):
        strip.paste(picture, (place * (width + _GAP), 0))
    return strip
