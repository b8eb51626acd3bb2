"""Photographs to their buckets: ours beside Pillow's plain loop, how far the pictures differ, and memory."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from data_parts.common import PHOTO, Line, peak_memory, timed
from lorapod.data import Geometry, Item, TrainItem, load_items, place

TIMES_PLAIN = 2.0
FLAT = 1.25
"""Peak memory for four times the items, over that for the items."""

_LOAD = """
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from data_parts.pictures import train_items
from lorapod.data import load_items
paths = sorted(Path(sys.argv[2]).glob("*.jpg"))
for pixels in load_items(train_items(paths, int(sys.argv[3]), int(sys.argv[4]))):
    pixels.shape
"""


def decode_rates(paths: list[Path], photos: int, resolution: int, rounds: int) -> list[Line]:
    """Photographs from file to bucket, ours and Pillow's plain loop: rounds alternate and the median ratio counts."""
    items = train_items(paths, photos, resolution)
    for path in paths:
        path.read_bytes()  # both find the files in memory
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(timed(lambda: [pixels.shape for pixels in load_items(items)])[0])
        plain.append(timed(lambda: [plainly(each).shape for each in items])[0])
    ratio = statistics.median(theirs / mine for theirs, mine in zip(plain, ours, strict=True))
    some = items[: len(paths)]
    pairs = zip(load_items(some), map(plainly, some), strict=True)
    apart = np.concatenate([np.abs(a[0].astype(int) - b.astype(int)).ravel() for a, b in pairs])
    # At 1024 a photograph of 12 megapixels is hardly larger than its bucket and has to be decoded whole.
    much_larger = PHOTO[0] * PHOTO[1] >= 16 * resolution**2
    detail = (
        f"{photos / statistics.median(ours):.1f} to {photos / statistics.median(plain):.1f} a second; pictures differ by "
        f"{apart.mean():.2f} of 255 in the mean, {np.percentile(apart, 99):.0f} at the 99th percentile"
    )
    aim = TIMES_PLAIN if much_larger else None
    return [Line(f"12 megapixels to {resolution}, over Pillow's loop", ratio, "times", aim, detail=detail)]


def memory(folder: Path, photos: int, resolution: int) -> list[Line]:
    """Peak memory of a process that loads some photographs, and of one that loads four times as many."""
    here = Path(__file__).parents[1]
    few, many = (peak_memory(_LOAD, here, folder, count, resolution) for count in (photos, 4 * photos))
    detail = f"{photos} photographs {few:.0f} MiB, {4 * photos} {many:.0f} MiB"
    return [Line("memory for 4 times the items", many / few, "times", FLAT, False, detail)]


def plainly(each: TrainItem) -> np.ndarray:
    """Open, convert, resize, crop: what a loader does that knows nothing of JPEG."""
    with Image.open(each.item.path) as image:
        resized = image.convert("RGB").resize(each.placement.resize_to, Image.Resampling.LANCZOS)
        return np.asarray(resized.crop(each.placement.crop))


def train_items(paths: list[Path], count: int, resolution: int) -> list[TrainItem]:
    """`count` items, of the photographs in turn."""
    placement = place(*PHOTO, Geometry(16).buckets(resolution))
    return [
        TrainItem(0, Item(path, *PHOTO, "x", None, 1, path.name), placement, ("x",), 1, 0.0)
        for path in (paths[i % len(paths)] for i in range(count))
    ]
