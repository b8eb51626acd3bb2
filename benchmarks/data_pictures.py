"""How fast pictures are looked at and decoded, beside Pillow's plain loop, in one run on generated files.

    python benchmarks/data_pictures.py                    the small edition: 1,000 files for the scan, 24 photographs
    python benchmarks/data_pictures.py --files 10000 --photos 200 --known 100000

Three measurements, each a function that others may call: `scan_rates` (a first and a second scan of JPEGs of 1 to 24
megapixels, flat colours, so that the disk holds them), `known_rate` (a scan of a folder that is known already, of tiny
pictures with captions), and `decode_rates` (photograph-like JPEGs of 12 megapixels to their buckets, by `load_items` and
by opening, converting and resizing each in turn with Pillow, with the difference between what the two give). The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from lorapod.data import Geometry, Item, MediaCache, TrainItem, load_items, place, scan
from lorapod.data.threads import MAX_THREADS, cores

RESOLUTIONS = (1024, 512)
"""At 1024 a photograph of 12 megapixels is decoded whole, at 512 its half: there a JPEG is much larger than its bucket."""

SIZES = [(1152, 896), (2048, 1536), (3000, 2000), (4032, 3024), (6000, 4000)]
"""1 to 24 megapixels."""

PHOTO = (4032, 3024)


def write_headers(folder: Path, count: int) -> None:
    """JPEGs of the sizes of photographs, of one colour each, with captions; of each size one is encoded."""
    for k, size in enumerate(SIZES):
        first = folder / f"{k}.jpg"
        Image.new("RGB", size, (40 * k, 90, 120)).save(first, quality=60)
        raw = first.read_bytes()
        for i in range(k, count, len(SIZES)):
            # What comes after a JPEG's end is no part of the picture, but makes the file another one.
            (folder / f"photo {i}.jpg").write_bytes(raw + f"{i:08}".encode())
            (folder / f"photo {i}.txt").write_text(f"photograph number {i}")
        first.unlink()


def write_tiny(folder: Path, count: int) -> None:
    """`count` files: tiny pictures, each with a caption."""
    first = folder / "first.png"
    Image.new("RGB", (8, 8)).save(first)
    raw = first.read_bytes()
    first.unlink()
    for i in range(count // 2):
        (folder / f"picture {i}.png").write_bytes(raw + f"{i:08}".encode())
        (folder / f"picture {i}.txt").write_text(f"picture number {i}")


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs like photographs: shapes of many sizes under grain, so that decoding costs what it costs with a camera's."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        layers = np.zeros((PHOTO[1], PHOTO[0], 3), np.float32)
        for side in (4, 16, 64, 256):
            small = Image.fromarray(rng.integers(0, 256, (side * 3, side * 4, 3)).astype(np.uint8))
            layers += np.asarray(small.resize(PHOTO, Image.Resampling.BICUBIC), np.float32) / 4
        layers += rng.normal(0, 6, (PHOTO[1], PHOTO[0], 1)).astype(np.float32)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(layers.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def scan_rates(folder: Path, files: int) -> dict[str, float]:
    """Pictures a second of a first scan, which decodes and hashes, and of a second one, which remembers."""
    (folder / "set").mkdir(parents=True)
    write_headers(folder / "set", files)
    cache = MediaCache(folder / "media.sqlite")
    first, found = _timed(lambda: scan(folder / "set", cache=cache))
    second, again = _timed(lambda: scan(folder / "set", cache=cache))
    assert found == again
    assert len(found.items) == files
    return {"pictures": files, "first_scan_per_s": files / first, "second_scan_per_s": files / second}


def known_rate(folder: Path, files: int) -> dict[str, float]:
    """Seconds that a scan of a folder takes that did not change since it was looked at."""
    (folder / "set").mkdir(parents=True)
    write_tiny(folder / "set", files)
    cache = MediaCache(folder / "media.sqlite")
    first, found = _timed(lambda: scan(folder / "set", cache=cache))
    second, again = _timed(lambda: scan(folder / "set", cache=cache))
    assert found == again
    return {"files": files, "first_scan_s": first, "second_scan_s": second, "files_per_s": files / second}


def decode_rates(folder: Path, photos: int, resolution: int, rounds: int = 3) -> dict[str, float]:
    """Photographs a second from file to bucket, ours and Pillow's plain loop, and how far the two differ.

    Rounds alternate and the best of each counts, so that what else the machine does falls on both or on neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.glob("*.jpg")) or write_photos(folder, min(photos, 8))
    items = [_train_item(paths[i % len(paths)], resolution) for i in range(photos)]
    for path in paths:
        path.read_bytes()  # both find the files in memory
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(_timed(lambda: [pixels.shape for pixels in load_items(items)])[0])
        plain.append(_timed(lambda: [plainly(each).shape for each in items])[0])
    some = items[: len(paths)]
    pairs = zip(load_items(some), map(plainly, some), strict=True)
    differences = np.concatenate([np.abs(a[0].astype(int) - b.astype(int)).ravel() for a, b in pairs])
    return {
        "photos": photos,
        "resolution": resolution,
        "ours_per_s": photos / min(ours),
        "plain_per_s": photos / min(plain),
        "times_as_fast": min(plain) / min(ours),
        "mean_difference": float(differences.mean()),
        "p99_difference": float(np.percentile(differences, 99)),
        "largest_difference": float(differences.max()),
    }


def plainly(each: TrainItem) -> np.ndarray:
    """Open, convert, resize, crop: what a loader does that knows nothing of JPEG."""
    with Image.open(each.item.path) as image:
        resized = image.convert("RGB").resize(each.placement.resize_to, Image.Resampling.LANCZOS)
        return np.asarray(resized.crop(each.placement.crop))


def _train_item(path: Path, resolution: int) -> TrainItem:
    placement = place(*PHOTO, Geometry(16).buckets(resolution))
    return TrainItem(0, Item(path, *PHOTO, "x", None, 1, path.name), placement, ("x",), 1, 0.0)


def _timed(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="JPEGs of 1 to 24 megapixels to scan")
    parser.add_argument("--known", type=int, default=10_000, help="files of the folder that is known already")
    parser.add_argument("--photos", type=int, default=24, help="JPEGs of 12 megapixels to decode")
    parser.add_argument("--folder", type=Path, help="where to generate files; a temporary folder by default")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lorapod-bench-", dir=given.folder))
    try:
        result: dict[str, Any] = {
            "machine": f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f}",
            "pillow": PIL.__version__,
            "threads": min(MAX_THREADS, cores()),
            "scan": scan_rates(folder / "scan", given.files),
            "known": known_rate(folder / "known", given.known),
            "decode": [decode_rates(folder / "decode", given.photos, resolution) for resolution in RESOLUTIONS],
        }
    finally:
        shutil.rmtree(folder)
    scanned, known = result["scan"], result["known"]
    print(
        f"A first scan looks at {scanned['first_scan_per_s']:.0f} JPEGs of 1-24 megapixels a second, a second one at "
        f"{scanned['second_scan_per_s']:.0f}; a second scan of {known['files']} files takes {known['second_scan_s']:.2f} s."
    )
    for each in result["decode"]:
        print(
            f"Photographs of 12 megapixels for {each['resolution']}: {each['ours_per_s']:.1f} a second, "
            f"{each['times_as_fast']:.1f} times Pillow's plain loop ({each['plain_per_s']:.1f}), with pictures that "
            f"differ by {each['mean_difference']:.2f} of 255 in the mean, {each['p99_difference']:.0f} at the 99th."
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
