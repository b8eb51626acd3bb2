"""A mixed dataset through the public loader, against an extraction written anew here: nothing of lorapod's but the plan.

The reference decodes every frame with PyAV, takes for each sample the frame whose time is nearest, scales what the crop
keeps and compares pixels. Which bucket is chosen is tested with the buckets.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.looks import drawn
from lorapod.data import Geometry, load_items, plan_datasets
from lorapod.recipe.choices import ClipWindows
from lorapod.recipe.schema import DatasetSection

RATE = 16.0
RESOLUTION = 96
FRAMES = [5, 17]
TOLERANCE = 2.0
"""Mean difference, of 255: conversion to RGB before or after scaling rounds differently."""


def times_of(count: int, seed: int) -> list[int]:
    """Thousandths of a second, at a rate that varies around 25 a second."""
    steps = np.random.default_rng(seed).integers(20, 61, count)
    return [0, *np.cumsum(steps)[:-1].tolist()]


def film(path: Path, size: tuple[int, int], times: list[int], seed: int) -> None:
    """A view that moves over a drawing, with every frame at its own time."""
    sheet = np.asarray(drawn(seed, (size[0] + 2 * len(times), size[1])))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            view = np.ascontiguousarray(sheet[:, 2 * i : 2 * i + size[0]])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text(f"moves {seed}")


def fitted(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of a picture at a size, all of the shorter extent kept."""
    width, height = size
    factor = max(width / picture.width, height / picture.height)
    wide, high = width / factor, height / factor
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    box = (left, top, left + wide, top + high)
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=box))


def reference_clip(path: Path, start: float, frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Every frame decoded, then the nearest in time to each sample."""
    with av.open(str(path)) as container:
        shown = [(float(frame.pts * frame.time_base), frame.to_image()) for frame in container.decode(video=0)]
    first = shown[0][0]
    taken = []
    for i in range(frames):
        wanted = start + i / RATE
        taken.append(fitted(min(shown, key=lambda each: abs(each[0] - first - wanted))[1], size))
    return np.stack(taken)


@pytest.mark.parametrize("mode", [ClipWindows.HEAD, ClipWindows.MIDDLE, ClipWindows.EVERY])
def test_a_mixed_dataset_gives_the_pixels_of_a_reference_extraction(tmp_path: Path, mode: ClipWindows) -> None:
    for i, (size, count) in enumerate([((256, 144), 60), ((144, 256), 40), ((192, 192), 25)]):
        film(tmp_path / f"clip {i}.mp4", size, times_of(count, i), 20 + i)
    for i, size in enumerate([(300, 200), (200, 333)]):
        drawn(i, size).save(tmp_path / f"still {i}.png")
        (tmp_path / f"still {i}.txt").write_text(f"stands {i}")
    section = DatasetSection(
        path=tmp_path, resolutions=[RESOLUTION], frames=FRAMES, clip_windows=mode, validation_share=0
    )
    plan = plan_datasets([section], Geometry(16, frame_step=4, fps=RATE), 0)
    assert {each.item.path.stem for each in plan.train} == {"clip 0", "clip 1", "clip 2", "still 0", "still 1"}
    for each, pixels in zip(plan.train, load_items(plan.train), strict=True):
        bucket = each.placement.bucket
        size = (bucket.width, bucket.height)
        if each.window is None:
            with Image.open(each.item.path) as picture:
                expected = fitted(picture.convert("RGB"), size)[None]
        else:
            seconds = each.item.seconds
            # The longest of the lengths whose last sample lies inside of the clip.
            longest = max(length for length in FRAMES if (length - 1) / RATE < seconds)
            assert each.window.frames == (longest if mode is not ClipWindows.EVERY else each.window.frames)
            if mode is ClipWindows.HEAD:
                assert each.window.start == 0
            if mode is ClipWindows.MIDDLE:
                middle = each.window.start + (longest - 1) / RATE / 2
                assert middle == pytest.approx(seconds / 2, abs=1 / RATE)
            expected = reference_clip(each.item.path, each.window.start, each.window.frames, size)
        assert pixels.shape == expected.shape == (bucket.frames, bucket.height, bucket.width, 3)
        apart = np.abs(pixels.astype(int) - expected).mean(axis=(1, 2, 3))
        assert apart.max() < TOLERANCE, f"{each.item.path.name}: {apart.round(2)}"
