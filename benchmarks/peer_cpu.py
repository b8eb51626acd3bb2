"""Wall-clock of the whole job against the example LoRA training script of diffusers, on the CPU.

    python benchmarks/peer_cpu.py PATH/train_dreambooth_lora_z_image.py [--steps 300] [--batch 1] [--rounds 3]

Fetch the script from the examples of diffusers (examples/dreambooth); nothing of it is in this repository. Both start
from the same model folder and the same pictures at 128 x 128, train the same attention layers at rank 16 in float32 with
AdamW for the same steps, cache latents first, and write one LoRA; no previews, no evaluation. Rounds alternate. The
script needs torchvision; where it is not installed, a stand-in of the four functions that the script calls is put in
its way, and the output says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

from lorapod import recipe as recipes

SHIM_TRANSFORMS = """
from enum import Enum
import random
class InterpolationMode(Enum):
    BILINEAR = "bilinear"
class RandomCrop:
    @staticmethod
    def get_params(image, output_size):
        h, w = output_size
        return random.randint(0, image.height - h), random.randint(0, image.width - w), h, w
"""
SHIM_FUNCTIONAL = """
import numpy as np
import torch
def resize(image, size, interpolation=None):
    return image.resize((size[1], size[0]), 2)
def crop(image, i, j, h, w):
    return image.crop((j, i, j + w, i + h))
def center_crop(image, size):
    h, w = size
    return crop(image, (image.height - h) // 2, (image.width - w) // 2, h, w)
def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
def normalize(tensor, mean, std):
    return (tensor - mean[0]) / std[0]
"""

RUNNER = """
import os, runpy, sys
import diffusers, transformers
transformers.utils.is_torchvision_available()  # answered, and remembered, before the stand-in is there
sys.path.insert(0, os.environ.get("PEER_STAND_IN", ""))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stand_in(folder: Path) -> Path:
    """A folder for PYTHONPATH with a `torchvision` of four functions."""
    package = folder / "torchvision" / "transforms"
    package.mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(SHIM_TRANSFORMS)
    (package / "functional.py").write_text(SHIM_FUNCTIONAL)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    demo = Path(str(resources.files("lorapod") / "demo"))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pictures = work / "pictures"
        pictures.mkdir()
        for file in sorted((demo / "dataset/momo").glob("*.png")):
            shutil.copy(file, pictures)
            file_text = pictures / f"{file.stem}.txt"
            file_text.write_text("momo")
        only_pictures = work / "only-pictures"
        only_pictures.mkdir()
        for file in pictures.glob("*.png"):
            shutil.copy(file, only_pictures)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        shimmed = importlib.util.find_spec("torchvision") is None
        if shimmed:
            environment["PEER_STAND_IN"] = str(stand_in(work / "shim"))
        ours, theirs = [], []
        for number in range(args.rounds):
            ours.append(run_ours(work / f"ours-{number}", pictures, demo, args, environment))
            theirs.append(run_theirs(work / f"theirs-{number}", only_pictures, demo, args, environment))
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    result = {
        "benchmark": "peer_cpu", "peer": args.script.name, "steps": args.steps, "batch": args.batch,
        "lorapod_s": [round(s, 1) for s in ours], "peer_s": [round(s, 1) for s in theirs],
        "speedup_median": round(statistics.median(ratios), 2), "torchvision_stand_in": shimmed, "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(result))
    print(f"The whole job: lorapod is {result['speedup_median']} times as fast as {args.script.name}.")


def timed(argv: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(argv[:4])} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return time.perf_counter() - began


def run_ours(folder: Path, pictures: Path, demo: Path, args: argparse.Namespace, environment: dict[str, str]) -> float:
    folder.mkdir()
    text = (
        f'name = "peer"\n[base_model]\nname = "{demo / "model"}"\n[[datasets]]\npath = "{pictures}"\n'
        "resolutions = [128]\nvalidation_share = 0\ncaption_dropout = 0\n"
        f'[adapter]\nrank = 16\ntargets = "attention"\n[training]\nsteps = {args.steps}\nbatch_size = {args.batch}\n'
        'precision = "fp32"\ngradient_checkpointing = false\n[optimizer]\nlearning_rate = 1e-4\n[evaluation]\nevery = 0\n'
        "[previews]\nevery = 0\nat_start = false\nat_end = false\n[saving]\ncheckpoint_every = 0\n"
    )
    (folder / "recipe.toml").write_text(text)
    recipes.load(folder / "recipe.toml")  # a wrong recipe is not to be timed
    argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(folder), "train", str(folder / "recipe.toml")]
    return timed(argv, environment)


def run_theirs(
    folder: Path, pictures: Path, demo: Path, args: argparse.Namespace, environment: dict[str, str]
) -> float:
    argv = [
        sys.executable, "-c", RUNNER, str(args.script), f"--pretrained_model_name_or_path={demo / 'model'}",
        f"--instance_data_dir={pictures}", "--instance_prompt=momo", "--resolution=128", "--rank=16", "--lora_alpha=16",
        f"--train_batch_size={args.batch}", f"--max_train_steps={args.steps}", "--learning_rate=1e-4",
        "--lr_scheduler=constant", "--lr_warmup_steps=0", "--mixed_precision=no", "--cache_latents", "--seed=1",
        "--skip_final_inference", f"--checkpointing_steps={args.steps * 2}", f"--output_dir={folder}", "--center_crop",
    ]  # fmt: skip
    return timed(argv, environment)


if __name__ == "__main__":
    main()
