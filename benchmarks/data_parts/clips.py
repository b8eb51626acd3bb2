"""A middle window of clips: ours beside decoding and converting every frame and keeping it, then choosing and scaling."""

from __future__ import annotations

import statistics
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data_parts.common import Line, timed
from lorapod.data import Bucket, place
from lorapod.data.clips import load_clip, probe_clip
from lorapod.data.windows import Window, windows_for
from lorapod.recipe.choices import ClipWindows

TIMES_EVERYTHING = 3.0
BUCKET = Bucket(832, 480)


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
        factor = max(BUCKET.width / picture.width, BUCKET.height / picture.height)
        width, height = round(picture.width * factor), round(picture.height * factor)
        left, top = (width - BUCKET.width) // 2, (height - BUCKET.height) // 2
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
        taken.append(np.asarray(scaled.crop((left, top, left + BUCKET.width, top + BUCKET.height))))
    return np.stack(taken)


def middle_windows(paths: list[Path]) -> list[Line]:
    """33 frames at 16 a second at 832 x 480 of each clip; the two ways alternate, clip by clip."""
    ours, theirs, apart = [], [], []
    for path in paths:
        info = probe_clip(path)
        (window,) = windows_for(info.seconds, [33], 16, ClipWindows.MIDDLE)
        placement = place(info.width, info.height, [BUCKET])
        mine, pixels = timed(lambda path=path, placement=placement, window=window: load_clip(path, placement, window))
        simple, reference = timed(lambda path=path, window=window: everything(path, window))
        ours.append(mine)
        theirs.append(simple)
        apart.append(float(np.abs(pixels.astype(int) - reference).mean()))
    ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    detail = (
        f"{len(paths)} clips, {statistics.median(ours):.2f} to {statistics.median(theirs):.2f} s each; frames differ by "
        f"at most {max(apart):.2f} of 255 in the mean"
    )
    return [Line("middle window of a clip, over decoding everything", ratio, "times", TIMES_EVERYTHING, detail=detail)]
