"""The LoRA file: the adapter's tensors under the keys that ComfyUI and diffusers load, with metadata.

Nothing in it depends on when or where it was made, so equal runs give equal bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lorapod import recipe as recipes
from lorapod.engine.adapters import adapter_tensors
from lorapod.engine.families import Expert, Family
from lorapod.engine.storage import save_tensors
from lorapod.files import written_whole
from lorapod.lora_file import make_reproducible, metadata_for
from lorapod.lora_names import kohya
from lorapod.models import BaseModel
from lorapod.recipe import Recipe
from lorapod.recipe.schema import LoraFormat, Precision

DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}

_DIFFUSERS = ("transformer.", "unet.")


def lora_tensors(denoiser: nn.Module, family: Family, recipe: Recipe, format: LoraFormat) -> dict[str, Tensor]:
    """`<key>.lora_A.weight` (r, in), `<key>.lora_B.weight` (out, r), and `<key>.alpha` where alpha is not the rank.

    Readers scale by alpha / rank and take 1 where no alpha is stored (facts of ComfyUI's weight adapter). Under kohya's
    names the halves are `lora_down` and `lora_up` and alpha is always there, as sd-scripts reads them. Under diffusers'
    names there is no alpha, since its loaders refuse the key: the scale is in B.
    """
    dtype = DTYPES[recipe.saving.precision]
    scale = recipe.alpha / recipe.adapter.rank
    out: dict[str, Tensor] = {}
    for name, value in adapter_tensors(denoiser).items():
        module, half = name.rsplit(".", 1)
        key = family.export_key(module, format)
        is_kohya, is_diffusers = key.startswith(kohya.PREFIX), key.startswith(_DIFFUSERS)
        folded = value.detach().to("cpu") * (scale if is_diffusers and half == "B" else 1)
        suffix = {"A": "down", "B": "up"}[half] if is_kohya else half
        out[f"{key}.lora_{suffix}.weight"] = folded.to(dtype).contiguous()
        if is_kohya or (scale != 1 and not is_diffusers):
            out[f"{key}.alpha"] = torch.tensor(recipe.alpha)
    return out


def write_lora(
    folder: Path,
    denoiser: nn.Module,
    family: Family,
    base: BaseModel,
    expert: Expert,
    recipe: Recipe,
    *,
    step: int,
    final: bool,
    items: int,
) -> list[tuple[Path, LoraFormat]]:
    """Writes one file a format of the recipe; a file of a step in between has the step in its name.

    The file of an expert has the expert in its name, since its keys are the same as the other's.

    Raises:
        DiskError: No space.
    """
    written = []
    for format in recipe.saving.formats:
        stem = recipe.name + expert.suffix + ("" if final else f"-step{step:06d}")
        if format is not recipe.saving.formats[0]:
            stem += f"-{format.value}"
        path = folder / f"{stem}.safetensors"
        metadata = metadata_for(
            recipe,
            recipe_text=recipes.dumps(recipe),
            base_model_hash=base.fingerprint(expert.component),
            family=family.name,
            steps=step,
            items=items,
            expert=expert.suffix.removeprefix("-"),
        )
        with written_whole(path) as temporary:
            save_tensors(lora_tensors(denoiser, family, recipe, format), temporary, metadata=metadata)
            make_reproducible(temporary)
        written.append((path, format))
    return written
