"""Taking a middle window from clips: ours against decoding, converting and keeping every frame, then choosing and scaling.

    python benchmarks/data_clips.py [--clips 6] [--seconds 5] [--size 1920x1080]

Both give 33 frames at 16 a second at 832 x 480. The clips are drawn and encoded (H.264, a key frame every two seconds)
before anything is timed. Rounds alternate, clip by clip. Aim: at least 3 times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lorapod.data import Bucket, place
from lorapod.data.clips import load_clip, probe_clip
from lorapod.data.windows import Window, windows_for
from lorapod.recipe.schema import ClipWindows

AIM = 3.0


def draw_clip(path: Path, seconds: int, size: tuple[int, int], seed: int) -> None:
    """Coloured noise that drifts, so that the codec has something to do."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((size[0] + 256, size[1]), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "60"}
        for i in range(seconds * 30):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(large[:, i : i + size[0]]), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def everything(path: Path, window: Window) -> np.ndarray:
    """The simple way: all frames as pictures, then those of the window, scaled and cropped one by one."""
    with av.open(str(path)) as container:
        frames = [
            (float(f.time or 0), f.reformat(format="rgb24", src_colorspace="ITU709", dst_color_range="JPEG").to_image())
            for f in container.decode(video=0)
        ]
    taken = []
    for wanted in window.times:
        picture = min(frames, key=lambda f: abs(f[0] - wanted))[1]
        factor = max(832 / picture.width, 480 / picture.height)
        width, height = round(picture.width * factor), round(picture.height * factor)
        left, top = (width - 832) // 2, (height - 480) // 2
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + 832, top + 480))
        taken.append(np.asarray(scaled))
    return np.stack(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--size", default="1920x1080")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    ours, theirs, differences = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.clips):
            path = Path(folder) / f"{number}.mp4"
            draw_clip(path, args.seconds, (width, height), number)
            (window,) = windows_for(probe_clip(path).seconds, [33], 16, ClipWindows.MIDDLE)
            placement = place(width, height, [Bucket(832, 480)])
            began = time.perf_counter()
            mine = load_clip(path, placement, window)
            middle = time.perf_counter()
            reference = everything(path, window)
            theirs.append(time.perf_counter() - middle)
            ours.append(middle - began)
            differences.append(float(np.abs(mine.astype(int) - reference).mean()))
    ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    result = {
        "benchmark": "data_clips", "clips": args.clips, "size": args.size, "seconds": args.seconds,
        "lorapod_s": [round(s, 2) for s in ours], "everything_s": [round(s, 2) for s in theirs],
        "ratio_median": round(ratio, 2), "aim": AIM, "mean_difference_of_255": round(max(differences), 2),
        "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(result))
    print(f"A middle window is taken {ratio:.1f} times as fast as by decoding everything; the aim is {AIM:g}.")


if __name__ == "__main__":
    main()
