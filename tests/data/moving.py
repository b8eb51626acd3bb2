"""Clips to judge: written frame by frame with PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data.looks import drawn

SIZE = (192, 128)


def scene(seed: int, count: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """A steady move over one composition."""
    width, height = size
    whole = drawn(seed, (width * 2, height))
    return [whole.crop((i, 0, i + width, height)) for i in range(count)]


def still(seed: int, count: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    return [drawn(seed, size)] * count


def write(path: Path, frames: Iterable[Image.Image], fps: int = 16, times: list[int] | None = None) -> Path:
    """H.264; `times` are in thousandths of a second where the rate is to vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "ultrafast"})
        frames = list(frames)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
            frame.pts = times[i] if times else round(i * 1000 / fps)
            frame.time_base = Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
