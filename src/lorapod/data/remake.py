"""Files made anew from the media of a dataset: turned upright, cropped, scaled, cut in time, in a format that all read.

The originals are only read. A file appears whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorapod.data.buckets import Bucket, Placement
from lorapod.data.pictures import load_picture
from lorapod.files import written_whole

if TYPE_CHECKING:
    from lorapod.data.scan import ControlPicture, Item

JPEG_QUALITY = 95
CLIP_QUALITY = "14"
"""x264's constant rate factor; below 17 it is held to be without visible loss."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Made:
    """What became of a file.

    Attributes:
        source: The original, untouched.
        targets: What was made of it, in order.
        what: What was done, in a few words each.
    """

    source: Path
    targets: tuple[Path, ...]
    what: tuple[str, ...]


def placed(item: Item | ControlPicture, box: Box | None = None, size: tuple[int, int] | None = None) -> Placement:
    """The placement that crops an item to a box (left, top, right, bottom, in pixels) and scales that to a size."""
    left, top, right, bottom = box or (0, 0, item.width, item.height)
    width, height = size or (right - left, bottom - top)
    across, down = width / (right - left), height / (bottom - top)
    resized = max(width, round(item.width * across)), max(height, round(item.height * down))
    x, y = min(round(left * across), resized[0] - width), min(round(top * down), resized[1] - height)
    lost = 1 - (right - left) * (bottom - top) / (item.width * item.height)
    return Placement(
        Bucket(width, height),
        (item.width, item.height),
        resized,
        (x, y, x + width, y + height),
        lost,
        max(across, down),
    )


def remake_picture(item: Item | ControlPicture, target: Path, placement: Placement) -> None:
    """Writes a picture, upright and in RGB, as its target's extension says.

    Raises:
        DatasetError: As `load_picture`.
        DiskError: It cannot be written.
    """
    picture = Image.fromarray(load_picture(item.path, placement))
    with written_whole(target) as temporary:
        if target.suffix.lower() in (".jpg", ".jpeg"):
            picture.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            picture.save(temporary, "PNG", compress_level=4)


def remake_clip(item: Item, target: Path, placement: Placement, span: tuple[float, float], fps: float) -> int:
    """Writes a stretch of a clip as MP4 (H.264) at a constant frame rate, without sound; gives the number of frames.

    Frames are taken by their times, a second or so at once, so that a long clip is never in memory whole.

    Raises:
        DatasetError: As `load_clip`.
        DiskError: It cannot be written.
    """
    import av

    from lorapod.data.clips import load_clip
    from lorapod.data.windows import Window

    rate = Fraction(fps).limit_denominator(1001)
    total = max(1, round((span[1] - span[0]) * fps))
    portion = max(1, round(fps))
    # H.264 with the colours that every player reads takes even sides alone.
    width, height = (side // 2 * 2 for side in (placement.bucket.width, placement.bucket.height))
    with written_whole(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": CLIP_QUALITY, "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for start in range(0, total, portion):
            count = min(portion, total - start)
            frames = load_clip(item.path, placement, Window(span[0] + start / fps, count, fps))
            for pixels in frames:
                for packet in stream.encode(_frame(pixels[:height, :width])):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return total


def _frame(pixels: NDArray[np.uint8]):  # type: ignore[no-untyped-def]
    import av

    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
