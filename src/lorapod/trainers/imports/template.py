"""Recipes out of the three shell configurations of the RunPod template that lorapod replaces.

They are lists of NAME=value, read and never sourced, to which that template's scripts add options of musubi-tuner that do
not change: these are written down here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from lorapod.errors import RequestError
from lorapod.trainers.imports import musubi
from lorapod.trainers.imports.notes import Fate, Imported

_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Z][A-Z0-9_]*)=(.*)$")
_ARRAY = re.compile(r"^\s*([A-Z][A-Z0-9_]*)=\(\s*(.*?)^\s*\)", re.MULTILINE | re.DOTALL)

_WAN = {
    "task": "t2v-A14B", "xformers": True, "split_attn": True, "mixed_precision": "fp16", "fp8_base": True,
    "optimizer_type": "adamw", "optimizer_args": ["weight_decay=0.1"], "gradient_checkpointing": True,
    "gradient_accumulation_steps": 1, "max_data_loader_n_workers": 2, "timestep_sampling": "shift",
    "discrete_flow_shift": 1.0, "max_grad_norm": 0.0, "lr_scheduler": "polynomial", "lr_scheduler_power": 8.0,
    "preserve_distribution_shape": True,
}  # fmt: skip
_QWEN = {
    "sdpa": True, "mixed_precision": "bf16", "timestep_sampling": "shift", "weighting_scheme": "none",
    "discrete_flow_shift": 3.0, "optimizer_type": "adamw8bit", "optimizer_args": ["weight_decay=0.01"],
    "gradient_checkpointing": True, "gradient_accumulation_steps": 4, "max_data_loader_n_workers": 2,
    "persistent_data_loader_workers": True, "max_grad_norm": 1.0, "lr_scheduler": "cosine",
}  # fmt: skip
_Z_IMAGE = {
    "sdpa": True, "mixed_precision": "bf16", "optimizer_type": "prodigyopt.Prodigy", "lr_scheduler": "constant",
    "gradient_checkpointing": True, "base_weights": ["z-image-turbo"],
}  # fmt: skip
_SWITCHES = "it switches a step of that template on or off"


def is_one(text: str) -> bool:
    """Whether a text is one of them."""
    names = {match[1] for line in text.splitlines() if (match := _ASSIGNMENT.match(line))}
    return "DATASET_DIR" in names and bool({"LORA_RANK", "NETWORK_DIM"} & names)


def read(text: str, file: str, base: str | None) -> Imported:
    """The recipe of a configuration.

    Raises:
        RequestError: It is none of them, or runs a command.
    """
    values, left = assignments(text)
    if "TITLE_HIGH" in values or "SEED_HIGH" in values:
        family, fixed, found = "wan", _WAN, "wan2.2-t2v-a14b"
    elif "NETWORK_DIM" in values:
        family, fixed, found = "z_image", _Z_IMAGE, "z-image-turbo"
    elif "LORA_RANK" in values:
        family, fixed, found = "qwen_image", _QWEN, "qwen-image"
    else:
        raise RequestError(f"{file} is none of the template's configurations", "It sets neither a rank nor seeds.", "")
    rank = values.get("NETWORK_DIM") or values.get("LORA_RANK", "16")
    options: dict[str, Any] = {
        **fixed,
        "learning_rate": float(values.get("LEARNING_RATE", "1e-4")),
        "network_dim": int(rank),
        "network_alpha": float(values.get("NETWORK_ALPHA", rank)),
        "max_train_epochs": int(values.get("MAX_TRAIN_EPOCHS") or values.get("MAX_EPOCHS", "16")),
        "save_every_n_epochs": int(values.get("SAVE_EVERY_N_EPOCHS") or values.get("SAVE_EVERY", "1")),
        "output_name": values.get("OUTPUT_NAME") or values.get("TITLE") or values.get("TITLE_LOW") or "lora",
    }
    if seed := values.get("SEED") or values.get("SEED_LOW"):
        options["seed"] = int(seed)
    if arguments := values.get("OPTIMIZER_ARGS"):
        options["optimizer_args"] = arguments.split()
    imported = musubi.of_options(family, options, _dataset(values), base or found, "lora")
    _tell(imported, values, left)
    return imported


def assignments(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and values, with earlier names put in where later ones use them; and lines that were not taken, with why.

    Raises:
        RequestError: A value is not closed.
    """
    values: dict[str, str] = {}
    left: dict[str, str] = {}
    for several in _ARRAY.finditer(text):
        values[several[1]] = " ".join(shlex.split(several[2], comments=True))
    for line in _ARRAY.sub("", text).splitlines():
        match = _ASSIGNMENT.match(line)
        if match is None:
            continue
        name, raw = match[1], match[2]
        if re.search(r"\$\(|`", raw):
            left[name] = "it would run a command, and nothing is run here"
            continue
        try:
            words = shlex.split(raw, comments=True)
        except ValueError as error:
            raise RequestError(f"The value of {name} cannot be read", f"{error}: {raw.strip()[:100]}", "") from error
        values[name] = re.sub(r"\$\{?(\w+)\}?", lambda m: values.get(m[1], m[0]), " ".join(words))
    return values, left


def _dataset(values: Mapping[str, str]) -> dict[str, Any]:
    numbers = [int(part) for part in re.findall(r"\d+", values.get("RESOLUTION_LIST", "1024, 1024"))]
    general: dict[str, Any] = {
        "resolution": (numbers * 2)[:2] or [1024, 1024], "batch_size": int(values.get("BATCH_SIZE", "1")),
        "enable_bucket": True, "bucket_no_upscale": False, "caption_extension": values.get("CAPTION_EXT", ".txt"),
        "num_repeats": int(values.get("NUM_REPEATS", "1")),
    }  # fmt: skip
    folder = values["DATASET_DIR"]
    if values.get("DATASET_TYPE") == "video":
        frames = [int(part) for part in re.findall(r"\d+", values.get("TARGET_FRAMES", "33"))]
        how = values.get("FRAME_EXTRACTION", "head")
        return {"general": general, "datasets": [
            {"video_directory": folder, "target_frames": frames, "frame_extraction": how}
        ]}  # fmt: skip
    return {"general": general, "datasets": [{"image_directory": folder}]}


def _tell(imported: Imported, values: Mapping[str, str], left: Mapping[str, str]) -> None:
    """Notes by the names that the person knows, in place of those of the trainer behind them."""
    carried = {
        "LORA_RANK", "NETWORK_DIM", "NETWORK_ALPHA", "MAX_EPOCHS", "MAX_TRAIN_EPOCHS", "SAVE_EVERY", "LEARNING_RATE",
        "SAVE_EVERY_N_EPOCHS", "SEED", "SEED_LOW", "DATASET_DIR", "DATASET_TYPE", "RESOLUTION_LIST", "BATCH_SIZE",
        "NUM_REPEATS", "CAPTION_EXT", "TARGET_FRAMES", "FRAME_EXTRACTION", "TITLE", "TITLE_LOW", "OUTPUT_NAME",
        "OPTIMIZER_ARGS",
    }  # fmt: skip
    whys = {
        "SEED_HIGH": "a recipe has one seed, for both experts: that of the low-noise one",
        "TITLE_HIGH": "both files are named after the recipe, ending in -high and -low",
        "OUTPUT_DIR": "a run has a folder of its own in the workspace",
        "TE_CACHE_BATCH_SIZE": "lorapod chooses it",
        "PRIOR_LOSS_WEIGHT": "that trainer has no such option",
    }
    imported.notes = []
    for name, value in values.items():
        if name in carried:
            imported.note(name, value, Fate.CARRIED)
        else:
            imported.note(name, value, Fate.LEFT, whys.get(name, _SWITCHES))
    for name, why in left.items():
        imported.note(name, "(…)", Fate.LEFT, why)
