"""Small clips in which every frame bears its number as a bar code, so that a test can say which frames were taken."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 10


def bar_code(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A frame (h, w, 3) that bears `number`; its upper left eighth is red, so that turning shows."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[:, bit * width // BITS : (bit + 1) * width // BITS] = 220
    frame[: height // 4, : width // 4] = (255, 0, 0)
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that a frame of any size bears."""
    height, width = frame.shape[:2]
    row = frame[int(height * 0.7)]
    return sum(int(row[int((2 * bit + 1) * width / BITS / 2)].mean() > 130) << bit for bit in range(BITS))


def make_clip(
    path: Path,
    frames: int,
    fps: int = 30,
    size: tuple[int, int] = (160, 96),
    codec: str = "libx264",
    stamps: Sequence[int] | None = None,
    unit: Fraction | None = None,
    options: dict[str, str] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    still: bool = False,
) -> Path:
    """Writes a clip; `stamps` are times of presentation in units of `unit`, for a rate that varies."""
    unit = unit or Fraction(1, fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.options = options or {}
        stream.codec_context.time_base = unit
        if sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(bar_code(0 if still else number, *size), format="rgb24")
            frame.pts, frame.time_base = stamps[number] if stamps else number, unit
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def turn(path: Path, clockwise: int) -> Path:
    """Writes a rotation into an MP4's track header, as a phone does that is held upright (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    one = 1 << 16
    cosine, sine = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[clockwise]
    data[at : at + 36] = struct.pack(">9i", cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
