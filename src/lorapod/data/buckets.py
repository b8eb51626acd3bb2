"""Aspect-ratio buckets, and where in one a picture goes.

A bucket keeps the area of a square resolution while its sides vary, so that every batch costs about the same and no
picture is squeezed: it is enlarged or reduced until it covers its bucket, and what then sticks out is cropped evenly.
Clips are placed by their width and height alike; how many frames of them are taken is `lorapod.data.windows`' matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorapod.errors import DatasetError

AREA_MARGIN = 0.02
"""A bucket's area is above resolution² by this share at most."""

STEPS_PER_SIDE = 16
"""Long sides go up by about this part of the resolution (64 pixels at 1024, as trainers of SDXL made customary), which
keeps the largest crop between two buckets near 6 %. A finer grid would crop less but scatter a small dataset over many
buckets, each with its own short batch."""

MAX_RATIO = 2.5


@dataclass(frozen=True)
class Geometry:
    """What a base model allows.

    Attributes:
        divisor: Sides are multiples of this, in pixels.
        min_side: No side is shorter, in pixels.
        max_ratio: Longest to shortest side of a bucket at most.
        frame_step: A clip has `frame_step * k + 1` frames (Wan: 4), as its VAE folds them in time.
        fps: Frames a second that the base model was trained at; None where it knows pictures alone.
    """

    divisor: int
    min_side: int = 0
    max_ratio: float = MAX_RATIO
    frame_step: int = 1
    fps: float | None = None

    def buckets(self, resolution: int) -> list[Bucket]:
        """The buckets of a resolution. Raises DatasetError where there are none."""
        found = [
            bucket
            for bucket in buckets_for(resolution, self.divisor, self.max_ratio)
            if min(bucket.width, bucket.height) >= self.min_side
        ]
        if not found:
            raise DatasetError(
                f"No bucket fits the resolution {resolution}",
                f"The base model wants sides of at least {self.min_side} pixels.",
                "Choose a larger resolution.",
            )
        return found


@dataclass(frozen=True, order=True)
class Bucket:
    """What items are grouped and resized to: width and height in pixels, and frames."""

    width: int
    height: int
    frames: int = 1

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}"
        return size if self.frames == 1 else f"{size}x{self.frames}"


@dataclass(frozen=True)
class Placement:
    """How a picture becomes its bucket's size.

    Attributes:
        source: Width and height of the picture, oriented as it is looked at.
        resize_to: Width and height that cover the bucket, ratio kept.
        crop: Left, top, right and bottom of the bucket in the resized picture.
        lost_share: Share of the picture that the crop cuts off, 0..1.
        upscale: Factor of the resize; above 1 the picture is enlarged.
    """

    bucket: Bucket
    source: tuple[int, int]
    resize_to: tuple[int, int]
    crop: tuple[int, int, int, int]
    lost_share: float
    upscale: float


def buckets_for(resolution: int, divisor: int, max_ratio: float = MAX_RATIO) -> list[Bucket]:
    """Buckets whose area is as near to resolution² as the divisor allows, sorted; each with its transpose.

    Args:
        resolution: Side of the square whose area is kept, in pixels.
        divisor: Every side is a multiple of this, in pixels.
        max_ratio: Longest to shortest side at most.

    Raises:
        DatasetError: The resolution is smaller than the divisor.
    """
    if divisor < 1 or resolution < divisor:
        raise DatasetError(
            f"No bucket fits the resolution {resolution}",
            f"Sides have to be multiples of {divisor} pixels.",
            f"Choose a resolution of {divisor} or more.",
        )
    square = int(resolution / divisor + 0.5) * divisor
    if square * square > _largest_area(resolution):
        square -= divisor
    found = {Bucket(square, square)}
    step = max(divisor, round(resolution / STEPS_PER_SIDE / divisor) * divisor)
    longest = square + step
    while True:
        shortest = _other_side(longest, resolution, divisor)
        if shortest < divisor or longest > max_ratio * shortest:
            break
        found |= {Bucket(longest, shortest), Bucket(shortest, longest)}
        longest += step
    return sorted(found)


def _largest_area(resolution: int) -> float:
    return resolution * resolution * (1 + AREA_MARGIN)


def _other_side(side: int, resolution: int, divisor: int) -> int:
    """The multiple of `divisor` that with `side` comes nearest to resolution² and stays within the margin."""
    other = int(resolution * resolution / side / divisor + 0.5) * divisor
    return other if side * other <= _largest_area(resolution) else other - divisor


def place(width: int, height: int, buckets: Sequence[Bucket]) -> Placement:
    """The placement in the bucket that cuts off least; of equals the one that enlarges least, then the first.

    Args:
        width, height: Of the picture, in pixels, oriented as it is looked at.
    """
    return min(
        (_placed(width, height, bucket) for bucket in buckets),
        key=lambda p: (round(_cut(width, height, p.bucket), 9), round(p.upscale, 9), p.bucket),
    )


def _cut(width: int, height: int, bucket: Bucket) -> float:
    """Share lost by cropping before sides are rounded to whole pixels."""
    ratio = (width * bucket.height) / (height * bucket.width)
    return 1 - min(ratio, 1 / ratio)


def _placed(width: int, height: int, bucket: Bucket) -> Placement:
    factor = max(bucket.width / width, bucket.height / height)
    resized = max(bucket.width, round(width * factor)), max(bucket.height, round(height * factor))
    left, top = (resized[0] - bucket.width) // 2, (resized[1] - bucket.height) // 2
    return Placement(
        bucket=bucket,
        source=(width, height),
        resize_to=resized,
        crop=(left, top, left + bucket.width, top + bucket.height),
        lost_share=1 - bucket.width * bucket.height / (resized[0] * resized[1]),
        upscale=factor,
    )
