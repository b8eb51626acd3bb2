"""Pictures damaged at random, from a seed: each ends as an item or in a problem, in bounded time and memory.

`LORAPOD_FUZZ=20000` damages so many instead of the few of every day; `LORAPOD_FUZZ_SEED` takes another seed.
"""

import io
import os
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorapod.data import Bucket, Severity, load_picture, place, scan
from lorapod.errors import DatasetError

COUNT = int(os.environ.get("LORAPOD_FUZZ", "480"))
SEED = int(os.environ.get("LORAPOD_FUZZ_SEED", "1"))
AT_ONCE = 480
MOST_MEMORY = 3 << 30
"""Bytes that the process may grow by: a header may claim any number of pixels that is allowed, on several threads."""


def originals() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4)).astype(np.uint8)
    picture, see_through = Image.fromarray(noise[..., :3].copy()), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "a.jpg": (picture, {"exif": exif, "quality": 80}),
        "b.jpg": (picture.convert("CMYK"), {"progressive": True}),
        "c.png": (see_through, {}),
        "d.png": (picture.quantize(16), {"bits": 4}),
        "e.webp": (picture, {"quality": 60}),
        "f.webp": (see_through, {"lossless": True}),
        "g.gif": (picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
        "h.tif": (picture, {"compression": "tiff_lzw"}),
        "i.bmp": (picture, {}),
    }
    found = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, format=Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = buffer.getvalue()
    return found


def damaged(raw: bytes, others: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data)) if data else 0
        if rng.random() < 0.5:
            at = min(at, rng.randrange(64))  # heads are where sizes and types stand
        length = rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(7):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
            case 2:
                del data[at:]
            case 3:
                del data[at : at + length * 4]
            case 4:
                data[at:at] = data[at : at + length * 8]
            case 5 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 6:
                other = rng.choice(others)
                data[at:] = other[rng.randrange(len(other)) :]
    return bytes(data)


@pytest.mark.parametrize("portion", range(-(-COUNT // AT_ONCE)))
def test_a_damaged_picture_is_used_or_named_and_never_more(tmp_path: Path, portion: int) -> None:
    rng = random.Random(f"{SEED} {portion}")
    sources = originals()
    for i in range(min(AT_ONCE, COUNT - portion * AT_ONCE)):
        name = rng.choice(list(sources))
        raw = damaged(sources[name], list(sources.values()), rng)
        (tmp_path / f"{i} {name}").write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    found = scan(tmp_path)
    used = {item.path for item in found.items}
    refused = {problem.path for problem in found.problems if problem.severity is Severity.ERROR}
    assert not used & refused
    assert used | refused == set(tmp_path.iterdir())
    assert refused, "nothing was damaged"
    assert all(problem.what and problem.remedy for problem in found.problems)
    for item in found.items:
        placement = place(item.width, item.height, [Bucket(32, 32)])
        try:
            assert load_picture(item.path, placement).shape == (32, 32, 3)
        except DatasetError as error:  # a scan decodes at less than full size and may see less than this
            assert error.why
    assert time.monotonic() - began < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


BOMBS = {
    "gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + b"\x2c\0\0\0\0\xff\xff\xff\xff\x00\x08\x01\x00\x00\x3b",
    "bmp": b"BM"
    + b"\0" * 12
    + (40).to_bytes(4, "little")
    + (60000).to_bytes(4, "little") * 2
    + b"\1\0\x18\0"
    + b"\0" * 24,
    "ppm": b"P6 90000 90000 255\n",
    "pgm": b"P5 400000 400000 255\n",
}


@pytest.mark.parametrize("extension", BOMBS)
def test_headers_that_claim_gigantic_pictures_are_refused_at_once(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"bomb.{extension}").write_bytes(BOMBS[extension])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (problem,) = scan(tmp_path).problems
    assert "million pixels" in problem.what
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1 << 28
