"""How diffusion-pipe puts items into buckets, computed before it does: steps an epoch, and what it would not train on.

It fills batches from each size bucket alone and leaves the rest out, the same items in every epoch. Facts:
`utils/dataset.py`. Not covered: `size_buckets`, `subsample_ratio`, batch sizes by resolution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorapod.trainers.data_view import ViewedItem

_DECIMALS = 3


@dataclass(frozen=True)
class Epoch:
    """What an epoch is made of.

    Attributes:
        steps: Optimizer steps.
        left_out: Examples by bucket, as (width, height, frames), that fill no batch.
        empty: Buckets that fill no batch at all.
        too_short: Clips that are shorter than every frame bucket, as diffusion-pipe counts frames.
    """

    steps: int
    left_out: dict[tuple[int, int, int], int]
    empty: list[tuple[int, int, int]]
    too_short: list[Path]


def epoch_of(
    dataset: Mapping[str, Any],
    items: Sequence[Sequence[ViewedItem]],
    global_batch: int,
    fps: float | None,
    multiple: int,
) -> Epoch:
    """The epoch of a dataset TOML.

    Args:
        dataset: As parsed.
        items: Of each of its directories.
        global_batch: Items an optimizer step.
        fps: The base model's frame rate.
        multiple: Sides of buckets are multiples of this, in pixels.
    """
    counts: Counter[tuple[float, int, int, int]] = Counter()
    too_short = []
    for directory, held in zip(dataset["directory"], items, strict=True):
        table = {**dataset, **directory}
        ratios = _ratios(table)
        lengths = sorted({1, *table.get("frame_buckets", [1])})
        of_directory: Counter[tuple[float, int, int, int]] = Counter()
        for each in held:
            frames = _frames(each, fps)
            length = max((n for n in lengths if n <= frames and (n > 1 or frames == 1)), default=None)
            if length is None:
                too_short.append(each.item.path)
                continue
            log_ratio = math.log(each.item.width / each.item.height)
            ratio = ratios[int(np.argmin(np.abs(log_ratio - np.log(ratios))))]
            for side in sorted({_side(each_side) for each_side in table["resolutions"]}):
                width = math.sqrt(side**2 * ratio)
                size = _nearest(width, multiple), _nearest(side**2 / width, multiple), length
                of_directory[(float(ratio), *size)] += len(each.captions)
        for bucket, count in of_directory.items():
            counts[bucket] += int(count * table.get("num_repeats", 1))
    left_out = {bucket[1:]: count % global_batch for bucket, count in counts.items() if count % global_batch}
    empty = [bucket[1:] for bucket, count in counts.items() if count < global_batch]
    return Epoch(sum(count // global_batch for count in counts.values()), left_out, empty, too_short)


def _ratios(table: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not table.get("enable_ar_bucket", False):
        return np.array([1.0])
    given = table.get("ar_buckets")
    if given:
        found = [each[0] / each[1] if isinstance(each, list) else each for each in given]
    else:
        found = list(np.geomspace(table["min_ar"], table["max_ar"], num=table["num_ar_buckets"]))
    return np.array(sorted({round(float(ratio), _DECIMALS) for ratio in found}))


def _side(given: Any) -> float:
    side = math.sqrt(given[0] * given[1]) if isinstance(given, list) else given
    return round(float(side), _DECIMALS)


def _frames(each: ViewedItem, fps: float | None) -> int:
    """Frames of a clip at the base model's rate, rounded down, as it counts them."""
    item = each.item
    if not item.is_clip or not fps:
        return 1
    return int(item.frames * fps / item.fps)


def _nearest(value: float, multiple: int) -> int:
    return int(round(value / multiple) * multiple)
