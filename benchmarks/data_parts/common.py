"""What the measurements share: a line of the table, generated media, timing, and memory of a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

PHOTO = (4032, 3024)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        aim: What the value should be, None where it is only told; `at_least` says on which side of it is good.
        detail: What it was worked out from.
    """

    what: str
    value: float
    unit: str = ""
    aim: float | None = None
    at_least: bool = True
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; None without one."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}

    def as_row(self) -> str:
        aim = "" if self.aim is None else f"{'≥' if self.at_least else '≤'} {self.aim:g}"
        said = {None: "", True: "yes", False: "**no**"}[self.reached]
        return f"| {self.what} | {self.value:.4g} {self.unit} | {aim} | {said} | {self.detail} |"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs like photographs: shapes of many sizes under grain, so that decoding costs what it costs with a camera's."""
    folder.mkdir(parents=True, exist_ok=True)
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
        paths[-1].with_suffix(".txt").write_text(f"photograph number {i}")
    return paths


def write_clip(path: Path, seconds: int, size: tuple[int, int], seed: int) -> Path:
    """Coloured noise that drifts, so that the codec has something to do; 30 frames a second, a key frame in 60."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((size[0] + 256, size[1]), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "60"}
        for i in range(seconds * 30):
            left = min(i, 256)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(large[:, left : left + size[0]]), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text(f"noise drifts {seed}")
    return path


_PEAK = """
import resource, sys
{body}
try:
    # A child's ru_maxrss begins at what its parent held when it was started.
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""


def peak_memory(body: str, *arguments: object) -> float:
    """MiB that a fresh process holds at its peak in which `body` is run; the arguments are `sys.argv[1:]`."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK.format(body=body), *map(str, arguments)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1]) / 1024
