"""Near-duplicate search: seconds for 20,000 pictures once their looks are known, and for hashes made to be slow.

Looks are of drawn pictures, each once and some of them again, saved at lower quality, scaled, cropped or mirrored; to
reach the number of pictures, further looks have random hashes and thumbnails. Hostile hashes are those on which an index
by parts of the hash degrades: all the same, all in one small ball, all sharing one part.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_parts.common import Line
from lorapod.data.duplicates import near_duplicates, near_hashes
from lorapod.data.look import Look, look_at_picture

LIMIT = 10.0


def draw(seed: int) -> Image.Image:
    """Shapes over soft colours."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3), dtype=np.uint8)
    picture = Image.fromarray(soft).resize((160, 120), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 9))):
        x, y, reach = int(rng.integers(0, 160)), int(rng.integers(0, 120)), int(rng.integers(6, 40))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape: Callable[..., None] = pen.ellipse if rng.integers(2) else pen.rectangle
        shape([x - reach, y - reach // 2, x + reach, y + reach], fill=colour)
    return picture


def changed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A copy as people have them."""
    kind = rng.randrange(4)
    if kind == 0:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=40)
        return Image.open(file).convert("RGB")
    if kind == 1:
        return picture.resize((100, 75), Image.Resampling.LANCZOS)
    if kind == 2:
        left, top, right, bottom = (rng.uniform(0, 0.05) for _ in range(4))
        return picture.crop((int(160 * left), int(120 * top), int(160 * (1 - right)), int(120 * (1 - bottom))))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def looks_of(drawn: int, pictures: int) -> tuple[list[Look], int]:
    """Looks, the first of them of drawn pictures and then of their copies; and how many copies there are."""
    rng = random.Random(0)
    found: list[Look] = []
    copies = drawn // 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        for i in range(drawn + copies):
            picture = draw(i) if i < drawn else changed(draw(i - drawn), rng)
            picture.save(path, compress_level=1)
            found.append(look_at_picture(path, picture.size))
    filler = np.random.default_rng(1)
    while len(found) < pictures:
        hashes = [int(value) for value in filler.integers(0, 2**64, 4, dtype=np.uint64)]
        thumb = base64.b64encode(filler.integers(0, 256, 768, dtype=np.uint8).tobytes()).decode()
        plain, turned = (hashes[0], hashes[1]), (hashes[2], hashes[3])
        found.append(dataclasses.replace(found[0], hashes=plain, mirrored=turned, thumbs=(thumb,)))
    return found, copies


def hostile(count: int) -> dict[str, list[int]]:
    """Hashes by what makes them slow to search."""
    rng = np.random.default_rng(2)
    ball = np.bitwise_xor.reduce(np.uint64(1) << rng.integers(0, 64, (count, 7)).astype(np.uint64), axis=1)
    part = rng.integers(0, 2**51, count, dtype=np.uint64) << np.uint64(13)
    return {"identical": [7] * count, "one ball": ball.tolist(), "one part shared": part.tolist()}


def near_copies(pictures: int, drawn: int) -> list[Line]:
    """CPU seconds of the search, what it finds of the copies and what it finds wrongly."""
    looks, copies = looks_of(drawn, pictures)
    cpu = time.process_time()
    groups = near_duplicates(looks)
    cpu = time.process_time() - cpu
    pairs = {(group.members[0], each) for group in groups for each in group.members[1:]}
    right = sum((i, drawn + i) in pairs for i in range(copies))
    slow = {}
    for name, hashes in hostile(pictures).items():
        start = time.process_time()
        near_hashes(hashes)
        slow[name] = time.process_time() - start
    detail = f"{right} of {copies} copies found, {len(pairs) - right} wrongly"
    worst = ", ".join(f"{name} {seconds:.1f}" for name, seconds in slow.items())
    return [
        Line(f"near copies among {pictures:,}", cpu, "s of CPU", LIMIT, False, detail),
        Line("the same, hostile hashes", max(slow.values()), "s of CPU", LIMIT, False, worst),
    ]
