"""Items as services take them: a picture as a JPEG, a clip as some of its frames or as its file.

Pictures are turned, put over white and brought to sRGB as for training (`data.pictures`); nothing is enlarged.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorapod.captioning.base import Ask, ItemError
from lorapod.data.buckets import Bucket, Placement
from lorapod.data.clips import load_clip, probe_clip
from lorapod.data.names import shown
from lorapod.data.pictures import load_picture, probe
from lorapod.data.windows import Window
from lorapod.errors import DatasetError

_QUALITY = 90

_CLIP_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm",
    ".mkv": "video/x-matroska", ".avi": "video/x-msvideo", ".mpg": "video/mpeg", ".mpeg": "video/mpeg",
}  # fmt: skip


def picture_jpeg(ask: Ask, longest_side: int) -> bytes:
    """The picture as a JPEG whose longer side is `longest_side` pixels at most. Raises ItemError."""
    try:
        size = (ask.width, ask.height)
        if 0 in size:
            info = probe(ask.path)
            size = (info.width, info.height)
        return _jpeg(load_picture(ask.path, _whole(size, longest_side)))
    except DatasetError as error:
        raise ItemError(error.what, error.why, error.remedy) from error


def clip_jpegs(ask: Ask, count: int, longest_side: int) -> list[tuple[float, bytes]]:
    """`count` frames of the clip from its first to its last, as JPEGs, each with its time in seconds. Raises ItemError."""
    try:
        info = probe_clip(ask.path)
        count = max(1, min(count, info.frames))
        last = max(0.0, info.seconds - 1.0 / info.fps)
        window = Window(0.0, count, (count - 1) / last if count > 1 and last > 0 else 1.0)
        frames = load_clip(ask.path, _whole((info.width, info.height), longest_side), window)
        return [(time, _jpeg(frame)) for time, frame in zip(window.times, frames, strict=True)]
    except DatasetError as error:
        raise ItemError(error.what, error.why, error.remedy) from error


def clip_url(path: Path, most_bytes: int) -> str:
    """The clip's file as a data URL. Raises ItemError where it is larger than `most_bytes`, or cannot be read."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise ItemError(
                f"{shown(path.name)} is too large to be sent",
                f"It has {size / 1e6:.0f} MB; at most {most_bytes / 1e6:.0f} MB are sent.",
                "Cut or compress it, or send frames of it.",
            )
        content = path.read_bytes()
    except OSError as error:
        raise ItemError(f"{shown(path.name)} cannot be read", f"{error.strerror}.") from error
    return data_url(content, _CLIP_TYPES.get(path.suffix.lower(), "video/mp4"))


def data_url(content: bytes, mime_type: str = "image/jpeg") -> str:
    """Bytes as a `data:` URL."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def scaled(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """Width and height with the longer one at `longest_side` at most; nothing is enlarged."""
    scale = min(1.0, longest_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _whole(size: tuple[int, int], longest_side: int) -> Placement:
    width, height = scaled(size, longest_side)
    return Placement(
        bucket=Bucket(width, height),
        source=size,
        resize_to=(width, height),
        crop=(0, 0, width, height),
        lost_share=0.0,
        upscale=max(width, height) / max(size),
    )


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (h, w, 3) as a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
