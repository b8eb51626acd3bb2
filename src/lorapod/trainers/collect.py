"""LoRA files that an external trainer wrote, brought into the run's folder as ComfyUI loads them.

A copy is made, with what lorapod says of a LoRA in its header; the trainer's own files stay as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

from lorapod import lora_convert
from lorapod import recipe as recipes
from lorapod.errors import AdapterError
from lorapod.lora_file import inspect, make_reproducible
from lorapod.lora_metadata import metadata_for
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import AdapterKind, LoraFormat


def collect_lora(
    source: Path,
    target: Path,
    recipe: Recipe,
    entry: Entry,
    *,
    steps: int,
    items: int,
    trainer: str,
    commit: str,
    base_model_hash: str = "",
    expert: str = "",
) -> Path:
    """Brings a LoRA file to `target`; one in another layout than ComfyUI's is converted. What the trainer itself says of it
    in `ss_*` is kept beside lorapod's own.

    Raises:
        AdapterError: The file is not whole, no LoRA, or holds what is no number.
        DiskError: No space.
    """
    info = None if recipe.adapter.kind is not AdapterKind.LORA else inspect(source)
    if info and any(module.norm is not None and not math.isfinite(module.norm) for module in info.modules):
        raise AdapterError(
            f"{source} holds values that are no numbers",
            "The training broke before it was written.",
            "Take an earlier file, lower the learning rate, and train again from the checkpoint before it.",
        )
    metadata = metadata_for(
        recipe,
        recipe_text=recipes.dumps(recipe),
        base_model_hash=base_model_hash,
        family=entry.family,
        steps=steps,
        items=items,
        expert=expert,
    )
    if info:
        metadata = {key: value for key, value in info.metadata.items() if key.startswith("ss_")} | metadata
    metadata |= {"lorapod.trainer": trainer, "lorapod.trainer_commit": commit, "modelspec.implementation": trainer}
    target.parent.mkdir(parents=True, exist_ok=True)
    if info and info.format != "comfyui":
        lora_convert.convert(source, target, LoraFormat.COMFYUI, entry.family)
        make_reproducible(target, metadata=metadata)
    else:
        make_reproducible(source, into=target, metadata=metadata)
    return target
