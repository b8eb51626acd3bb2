"""Other trainers' own loaders, run from their checkouts in a process of its own that waits between rounds.

musubi-tuner: `ImageDataset` and `VideoDataset`.retrieve_latent_cache_batches, with the workers that its scripts choose by
default. sd-scripts: `train_util.load_images_and_masks_for_caching`, batch by batch as its caching of latents calls it;
it is imported with stand-ins for torchvision and its two prompt-weighting pipelines, which loading has no use for.
Nothing of either is in this repository, and what they need (torch, opencv, ...) has to be importable by `python`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from data_parts.common import Line, timed

_SERVE = """
import json, sys, time
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    asked = json.loads(line)
    try:
        began = time.perf_counter()
        shapes = work(**asked)
        answer = {"seconds": time.perf_counter() - began, "shapes": shapes}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
"""

_MUSUBI = """
import logging, os, tempfile
from musubi_tuner.dataset.architectures import ARCHITECTURE_WAN
from musubi_tuner.dataset.image_video_dataset import ImageDataset, VideoDataset
logging.disable(logging.INFO)
def work(kind, folder, resolution):
    shared = dict(resolution=tuple(resolution), caption_extension=".txt", batch_size=1, num_repeats=1,
                  enable_bucket=True, bucket_no_upscale=False, cache_directory=tempfile.gettempdir(),
                  architecture=ARCHITECTURE_WAN)
    if kind == "pictures":
        dataset = ImageDataset(image_directory=folder, **shared)
    else:
        dataset = VideoDataset(video_directory=folder, target_frames=[33], frame_extraction="uniform", frame_sample=3,
                               source_fps=30.0, **shared)
    workers = max(1, os.cpu_count() - 1)
    return [list(item.content.shape) for _, batch in dataset.retrieve_latent_cache_batches(workers) for item in batch]
"""

_SD_SCRIPTS = """
import importlib.machinery, sys, types
import diffusers, transformers
transformers.utils.is_torchvision_available()
import numpy, torch
class Compose:
    def __init__(self, *a, **k): pass
    def __call__(self, image): return torch.from_numpy(numpy.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1
for name, named in (("torchvision", ()), ("torchvision.transforms", ("Compose", "ToTensor", "Normalize")),
                    ("library.lpw_stable_diffusion", ("StableDiffusionLongPromptWeightingPipeline",)),
                    ("library.sdxl_lpw_stable_diffusion", ("SdxlStableDiffusionLongPromptWeightingPipeline",))):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for each in named:
        setattr(module, each, Compose)
    sys.modules[name] = module
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
from library import train_util
def work(kind, folder, resolution):
    import glob, os
    manager = train_util.BucketManager(False, tuple(resolution), 256, 4096, 16)
    manager.make_buckets()
    shapes = []
    for path in sorted(glob.glob(os.path.join(folder, "*.jpg"))):
        info = train_util.ImageInfo(path, 1, "x", False, path)
        width, height = train_util.imagesize.get(path)
        info.bucket_reso, info.resized_size, _ = manager.select_bucket(width, height)
        images = train_util.load_images_and_masks_for_caching([info], False, False)[0]
        shapes += [list(each.shape) for each in images]
    return shapes
"""


class Peer:
    """A trainer's loader that answers with the seconds that a folder took it."""

    def __init__(self, name: str, checkout: Path, python: str) -> None:
        self.name = name
        code, path = (_MUSUBI, checkout / "src") if name == "musubi-tuner" else (_SD_SCRIPTS, checkout)
        paths = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [python, "-c", code + _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def seconds(self, **asked: Any) -> tuple[float, list[list[int]]]:
        """Raises RuntimeError with the end of what it said where it fails."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(self._process.stderr.read().strip()[-400:] or "it ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["seconds"], answer["shapes"]


def against(
    peer: Peer, kind: str, folder: Path, resolution: tuple[int, int], ours: Callable[[], list[Any]], rounds: int
) -> list[Line]:
    """How many times as fast as the peer's loader ours goes through a folder; rounds alternate, after one that warms."""
    what = f"{kind} to {resolution[0]}x{resolution[1]}, over the loader of {peer.name}"
    try:
        peer.seconds(kind=kind, folder=str(folder), resolution=resolution)
        mine, theirs = [], []
        for _ in range(rounds):
            mine.append(timed(ours)[0])
            seconds, shapes = peer.seconds(kind=kind, folder=str(folder), resolution=resolution)
            theirs.append(seconds)
    except RuntimeError as error:
        print(f"{what}: not measured, because it failed: {error}", file=sys.stderr)
        return []
    ratio = statistics.median(t / m for m, t in zip(mine, theirs, strict=True))
    a, b = statistics.median(mine), statistics.median(theirs)
    return [Line(what, ratio, "times", detail=f"{a:.2f} to {b:.2f} s; it gives {len(shapes)} of {shapes[0]}")]
