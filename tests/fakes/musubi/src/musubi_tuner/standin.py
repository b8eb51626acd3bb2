"""What the stand-in scripts of musubi-tuner share: arguments, the dataset TOML, caches, output lines, states, LoRA files.

`MODE` in the environment makes a stage misbehave, as in `train:oom`, `cache_latents:crash`, `train:silent`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import sys
import time
import tomllib
from pathlib import Path

LAYERS = {
    "wan": ("blocks_0_self_attn_q", 8),
    "zimage": ("layers_0_attention_to_q", 8),
    "qwen_image": ("transformer_blocks_0_attn_to_q", 8),
    "flux_kontext": ("double_blocks_0_img_attn_qkv", 24),
    "flux_2": ("double_blocks_0_img_attn_qkv", 24),
}
"""A layer that each adapts, with its rows; FLUX's hold three of diffusers'."""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000"
    "000049454e44ae426082"
)
"""A PNG of one grey pixel."""


def options() -> argparse.Namespace:
    """Any option: those without a value are True."""
    found: dict[str, object] = {}
    name = ""
    for word in sys.argv[1:]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        else:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return argparse.Namespace(**found)


def datasets(args: argparse.Namespace) -> list[dict[str, object]]:
    config = tomllib.loads(Path(args.dataset_config).read_text(encoding="utf-8"))
    for key in config["general"]:
        assert "control" not in key, f"extra keys not allowed @ data['general'][{key!r}]"
    return [config["general"] | table for table in config["datasets"]]


def media(table: dict[str, object]) -> list[Path]:
    if "image_jsonl_file" in table:
        lines = Path(str(table["image_jsonl_file"])).read_text(encoding="utf-8").splitlines()
        return [Path(json.loads(line)["image_path"]) for line in lines]
    folder = Path(str(table.get("image_directory") or table["video_directory"]))
    wanted = (".png", ".jpg", ".jpeg", ".webp", ".mp4")
    return [p for p in sorted(folder.iterdir()) if p.suffix in wanted and p.with_suffix(".txt").is_file()]


def controls(table: dict[str, object]) -> list[int]:
    """How many control pictures each item has, as it pairs them: all of what begins with the item's name."""
    if "image_jsonl_file" in table:
        lines = Path(str(table["image_jsonl_file"])).read_text(encoding="utf-8").splitlines()
        held = [[value for key, value in json.loads(line).items() if key.startswith("control_path")] for line in lines]
        assert all(Path(path).is_file() for paths in held for path in paths)
        return [len(paths) for paths in held]
    if "control_directory" not in table:
        return [0 for _ in media(table)]
    left = {path for path in Path(str(table["control_directory"])).iterdir() if path.suffix in (".png", ".jpg")}
    found = []
    for path in sorted(media(table), key=lambda path: -len(path.name)):
        own = {each for each in left if each.name.startswith((f"{path.stem}.", f"{path.stem}_"))}
        if not own:
            raise ValueError("Could not find matching control images for 1 images")
        left -= own
        found.append(len(own))
    return found


def misbehave(stage: str, step: int = 0) -> None:
    mode = os.environ.get("MODE", "")
    if not mode.startswith(f"{stage}:") or step not in (0, 3):
        return
    what = mode.partition(":")[2]
    if what == "slow":
        time.sleep(2)
    if step == 0 and stage == "train":
        return
    if what == "crash":
        raise KeyError("latents_image")
    if what == "oom":

        class OutOfMemoryError(RuntimeError):
            """As torch's."""

        OutOfMemoryError.__module__, OutOfMemoryError.__qualname__ = "torch", "OutOfMemoryError"
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "full":
        raise OSError(28, "No space left on device", "/run/output")


def cache(stage: str, exactly: int | None = None) -> None:
    """Writes an entry an item, as either caching script does.

    Args:
        exactly: Control pictures that an item must have.
    """
    args = options()
    misbehave(stage)
    for number, table in enumerate(datasets(args)):
        if exactly is not None and any(count != exactly for count in controls(table)):
            raise ValueError("FLUX.1 Kontext requires exactly one control content per item.")
        sys.stderr.write(f"INFO:musubi_tuner.{stage}:Encoding dataset [{number}]\n")
        folder = Path(str(table["cache_directory"]))
        folder.mkdir(parents=True, exist_ok=True)
        for done, path in enumerate(media(table), start=1):
            suffix = "_te" if stage == "cache_text" else "_0064x0064"
            (folder / f"{path.stem}{suffix}.safetensors").write_bytes(b"cached")
            sys.stderr.write(f"\r{done}it [00:00, 12.0it/s]")
        sys.stderr.write("\n")


def write_lora(path: Path, layer: tuple[str, int], rank: int, alpha: float) -> None:
    tensors = {"lora_down.weight": (rank, 8), "lora_up.weight": (layer[1], rank), "alpha": ()}
    header: dict[str, object] = {"__metadata__": {"ss_network_dim": str(rank), "ss_training_comment": "stand-in"}}
    body = b""
    for name, shape in tensors.items():
        count = 1
        for side in shape:
            count *= side
        data = struct.pack(f"<{count}f", *([alpha] if name == "alpha" else [0.01] * count))
        header[f"lora_unet_{layer[0]}.{name}"] = {
            "dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]
        }  # fmt: skip
        body += data
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def sample(args: argparse.Namespace, when: str) -> None:
    """A preview a line: the control picture that it starts from, or one pixel."""
    folder = Path(args.output_dir) / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(Path(args.sample_prompts).read_text(encoding="utf-8").splitlines()):
        given = {word.split(" ", 1)[0]: word.split(" ", 1)[1] for word in line.split(" --")[1:]}
        name = f"{args.output_name}_{when}_{number:02d}_{time.strftime('%Y%m%d%H%M%S')}_{given['d']}_000.png"
        (folder / name).write_bytes(Path(given["ci"]).read_bytes() if "ci" in given else PIXEL)


def steps_of(args: argparse.Namespace, items: int) -> int:
    """As many as are said, or those of the epochs."""
    if hasattr(args, "max_train_epochs"):
        return int(args.max_train_epochs) * items
    return int(args.max_train_steps)


def train(scripts: str) -> None:
    """Steps, saves and states, as the training scripts print and write them. Always counts from 0."""
    args = options()
    misbehave("train")
    found = sum(len(media(table)) for table in datasets(args))
    cached = sum(len(list(Path(str(t["cache_directory"])).glob("*_te.safetensors"))) for t in datasets(args))
    if not found or cached < found:
        raise ValueError("No training items found in the dataset.")
    if hasattr(args, "resume"):
        assert (Path(args.resume) / "model.safetensors").is_file()
        sys.stdout.write(f"INFO:accelerate:Loading states from {args.resume}\n")
    total, every = steps_of(args, found), int(getattr(args, "save_every_n_steps", 0))
    out, name = Path(args.output_dir), args.output_name
    if hasattr(args, "sample_at_first"):
        sample(args, "e000000")
    rank, alpha = int(args.network_dim), float(args.network_alpha)
    sys.stdout.write(f"  num train items: {found}\n  total optimization steps: {total}\n\nepoch 1/9\n")
    sys.stdout.flush()
    for step in range(1, total + 1):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0.01")))
        bar = f"\rsteps: {100 * step // total:3d}%|{'#' * 10}| {step}/{total} [00:01<00:09,  5.00it/s, "
        loss = float("nan") if os.environ.get("MODE") == "train:nan" and step >= 3 else 1 / step
        bar += f"avr_loss={loss:.4f}]"
        sys.stderr.write(bar)
        sys.stderr.flush()
        misbehave("train", step)
        if step % int(getattr(args, "sample_every_n_steps", total + 1)) == 0:
            sample(args, f"{step:06d}")
            if step % found == 0:  # the end of an epoch asks the same question again
                sample(args, f"e{step // found:06d}")
        if every and step % every == 0 and step < total:
            path = out / f"{name}-step{step:08d}.safetensors"
            sys.stdout.write(f"\nsaving checkpoint: {path}\n")
            sys.stdout.flush()
            write_lora(path, LAYERS[scripts], rank, alpha)
            if hasattr(args, "save_state"):
                state = out / f"{name}-step{step:08d}-state"
                state.mkdir()
                for part in ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
                    (state / part).write_bytes(b"state")
    path = out / f"{name}.safetensors"
    sys.stdout.write(f"\nsaving checkpoint: {path}\n")
    write_lora(path, LAYERS[scripts], rank, alpha)
    sys.stdout.write("model saved.\n")
