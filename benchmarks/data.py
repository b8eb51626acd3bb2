"""Datasets, measured side by side in one run on generated files: scans, decoding, clips, near copies, memory.

    python benchmarks/data.py                   the edition of the aims: 10,000 + 100,000 files, 500 photographs, 20 clips
    python benchmarks/data.py --small           a tenth or so of it, in about two minutes
    python benchmarks/data.py --musubi CHECKOUT --sd-scripts CHECKOUT [--peer-python PYTHON]

Ours and what it is compared with alternate, and the median of the rounds' ratios counts, so that what else the machine
does falls on both. The first line is JSON; a table with the aims follows. Not measured: a cold disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import av
import PIL
from data_parts.clips import BUCKET, middle_windows
from data_parts.common import Line, write_clip, write_photos
from data_parts.copies import near_copies
from data_parts.peers import Peer, against
from data_parts.pictures import decode_rates, memory, train_items
from data_parts.scanning import known_rate, scan_rates

from lorapod.data import DataPlan, Geometry, load_items, plan_dataset
from lorapod.data.threads import MAX_THREADS, cores
from lorapod.recipe.choices import ClipWindows
from lorapod.recipe.schema import DatasetSection

FULL = {"files": 10_000, "known": 100_000, "photos": 500, "clips": 20, "pictures": 20_000}
SMALL = {"files": 1_000, "known": 10_000, "photos": 24, "clips": 4, "pictures": 5_000}
DISTINCT = 20
"""Photographs that are drawn; more are these again, since drawing one takes longer than loading it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smaller edition of everything not given")
    for name, count in FULL.items():
        parser.add_argument(f"--{name}", type=int, help=f"default {count}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--musubi", type=Path, help="checkout of kohya-ss/musubi-tuner")
    parser.add_argument("--sd-scripts", type=Path, help="checkout of kohya-ss/sd-scripts")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has what they need")
    parser.add_argument("--folder", type=Path, help="where to generate files; a temporary folder by default")
    given = parser.parse_args()
    for name, count in (SMALL if given.small else FULL).items():
        if getattr(given, name) is None:
            setattr(given, name, count)
    folder = Path(tempfile.mkdtemp(prefix="lorapod-bench-", dir=given.folder))
    machine = f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f} at the start"
    versions = f"Python {platform.python_version()}, Pillow {PIL.__version__}, PyAV {av.__version__}"
    try:
        lines = measured(given, folder)
    finally:
        shutil.rmtree(folder)
    about = {"machine": machine, "versions": versions, "threads": min(MAX_THREADS, cores())}
    print(json.dumps({**about, "lines": [line.as_json() for line in lines]}))
    print(f"\n{machine}; {versions}\n\n| what | value | aim | reached | detail |\n|---|---|---|---|---|")
    print("\n".join(line.as_row() for line in lines))
    if any(line.reached is False for line in lines):
        raise SystemExit(1)


def measured(given: argparse.Namespace, folder: Path) -> list[Line]:
    """All lines, each shown on standard error as it comes."""
    lines: list[Line] = []

    def took(more: list[Line]) -> None:
        lines.extend(more)
        for line in more:
            print(line.as_row(), file=sys.stderr, flush=True)

    took(known_rate(folder / "known", given.known))
    shutil.rmtree(folder / "known")
    took(scan_rates(folder / "scan", given.files))
    shutil.rmtree(folder / "scan")
    photos = write_photos(folder / "photos", min(DISTINCT, given.photos))
    clips = folder / "clips"
    clips.mkdir()
    paths = [write_clip(clips / f"{i}.mp4", 5, (1920, 1080), i) for i in range(given.clips)]
    for resolution in (1024, 512):
        took(decode_rates(photos, given.photos, resolution, given.rounds))
    took(memory(folder / "photos", 24, 1024))
    took(middle_windows(paths))
    for name, checkout in (("musubi-tuner", given.musubi), ("sd-scripts", given.sd_scripts)):
        if checkout:
            with Peer(name, checkout.absolute(), given.peer_python) as peer:
                took(beside(peer, folder, photos, given.rounds))
    took(near_copies(given.pictures, given.pictures // 10))
    return lines


def beside(peer: Peer, folder: Path, photos: list[Path], rounds: int) -> list[Line]:
    """Our loader and a trainer's over the same folders, each at the buckets that it chooses."""
    lines = []
    for side in (1024, 512):
        items = train_items(photos, len(photos), side)
        lines += against(
            peer, "pictures", folder / "photos", (side, side),
            lambda items=items: [each.shape for each in load_items(items)], rounds,
        )  # fmt: skip
    if peer.name != "musubi-tuner":
        return lines
    section = DatasetSection(
        path=folder / "clips", resolutions=[640], frames=[33], clip_windows=ClipWindows.UNIFORM, windows_per_clip=3,
        validation_share=0,
    )  # fmt: skip
    plan: DataPlan = plan_dataset(section, Geometry(16, frame_step=4, fps=16.0))
    return lines + against(
        peer, "clips", folder / "clips", (BUCKET.width, BUCKET.height),
        lambda: [each.shape for each in load_items(plan.train)], rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
