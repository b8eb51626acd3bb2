"""Many items at once: on all cores, in order, with no more in memory than is being worked on.

Decoders let go of Python's lock while they work, so threads are enough and nothing has to be copied between processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lorapod.data.pictures import load_picture
from lorapod.data.plan import TrainItem
from lorapod.data.threads import MAX_THREADS, cores, in_order

HELD_BYTES = 512 * 2**20
"""Pixels at their buckets' sizes that wait to be taken, at most, but one item in any case."""


def load_item(each: TrainItem) -> NDArray[np.uint8]:
    """Pixels of an item at its bucket's size, uint8 RGB (f, h, w, 3); f is 1 for a picture.

    Raises:
        DatasetError: It cannot be read, or is not what it was when the plan was made.
    """
    if each.window is None:
        return load_picture(each.item.path, each.placement)[None]
    from lorapod.data.clips import load_clip

    return load_clip(each.item.path, each.placement, each.window)


def load_items(items: Sequence[TrainItem], *, threads: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """As `load_item`, of many: decoded on all cores, given in order, and held back while they wait to be taken."""
    largest = max((_bytes_of(each) for each in items), default=1)
    count = threads or min(MAX_THREADS, cores())
    yield from in_order(load_item, items, threads=count, ahead=max(1, min(2 * count, HELD_BYTES // largest)))


def _bytes_of(each: TrainItem) -> int:
    bucket = each.placement.bucket
    return 3 * bucket.width * bucket.height * bucket.frames
