"""How fast folders are looked at, for the first time and again, and what memory that takes."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image

from data_parts.common import Line, peak_memory, timed
from lorapod.data import MediaCache, scan

SIZES = [(1152, 896), (2048, 1536), (3000, 2000), (4032, 3024), (6000, 4000)]
"""1 to 24 megapixels."""

SECOND_SCAN_S = 5.0

_SCAN = """
from pathlib import Path
from lorapod.data import MediaCache, scan
scan(Path(sys.argv[1]), cache=MediaCache(Path(sys.argv[2])))
"""


def write_headers(folder: Path, count: int) -> None:
    """JPEGs of the sizes of photographs, of one colour each, with captions; of each size one is encoded."""
    folder.mkdir(parents=True)
    for k, size in enumerate(SIZES):
        first = folder / f"{k}.jpg"
        Image.new("RGB", size, (40 * k, 90, 120)).save(first, quality=60)
        raw = first.read_bytes()
        first.unlink()
        for i in range(k, count, len(SIZES)):
            # What comes after a JPEG's end is no part of the picture, but makes the file another one.
            (folder / f"photo {i}.jpg").write_bytes(raw + f"{i:08}".encode())
            (folder / f"photo {i}.txt").write_text(f"photograph number {i}")


def write_tiny(folder: Path, count: int) -> None:
    """`count` files: tiny pictures, each with a caption."""
    folder.mkdir(parents=True)
    first = folder / "first.png"
    Image.new("RGB", (8, 8)).save(first)
    raw = first.read_bytes()
    first.unlink()
    for i in range(count // 2):
        (folder / f"picture {i}.png").write_bytes(raw + f"{i:08}".encode())
        (folder / f"picture {i}.txt").write_text(f"picture number {i}")


def scan_rates(folder: Path, files: int) -> list[Line]:
    """A first scan, which decodes and hashes JPEGs of 1 to 24 megapixels, and a second one, which remembers."""
    write_headers(folder / "set", files)
    cache = MediaCache(folder / "media.sqlite")
    first, found = timed(lambda: scan(folder / "set", cache=cache))
    second, again = timed(lambda: scan(folder / "set", cache=cache))
    assert found == again
    assert len(found.items) == files
    detail = f"{files:,} JPEGs of 1 to 24 megapixels, decoded and hashed"
    return [
        Line("first scan", files / first, "pictures/s", detail=detail),
        Line("second scan", files / second, "pictures/s", detail=f"{files / second / (files / first):.0f} times"),
    ]


def known_rate(folder: Path, files: int) -> list[Line]:
    """Seconds that a scan of a folder takes that did not change since it was looked at; the best of five, since what else
    the machine does only adds."""
    write_tiny(folder / "set", files)
    cache = MediaCache(folder / "media.sqlite")
    first, found = timed(lambda: scan(folder / "set", cache=cache))
    seconds, cpu = [], []
    for _ in range(5):
        began = time.process_time()
        taken, again = timed(lambda: scan(folder / "set", cache=cache))
        seconds.append(taken)
        cpu.append(time.process_time() - began)
        assert found == again
    del found, again
    aim = SECOND_SCAN_S * files / 100_000
    rounds = ", ".join(f"{each:.2f}" for each in seconds)
    held = peak_memory(_SCAN, folder / "set", folder / "media.sqlite")
    return [
        Line(
            f"second scan of {files:,} files",
            min(seconds),
            "s",
            aim,
            False,
            f"rounds {rounds}; the first took {first:.1f}; CPU {min(cpu):.2f}",
        ),
        Line(f"memory of that scan, {files:,} files", held, "MiB", detail="peak; the list of items grows with them"),
    ]
