"""The LoRA file: the adapter's tensors under the keys that ComfyUI and diffusers load, with metadata.

Nothing in it depends on when or where it was made, so equal runs give equal bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lorapod import recipe as recipes
from lorapod.engine.adapter_layers import rank_of
from lorapod.engine.adapters import layers_of, parts_of, scale
from lorapod.engine.families import Expert, Family, WeighsBySnr
from lorapod.engine.storage import save_tensors
from lorapod.files import written_whole
from lorapod.lora_file import make_reproducible
from lorapod.lora_metadata import metadata_for
from lorapod.lora_names import kohya
from lorapod.models import BaseModel
from lorapod.recipe import Recipe
from lorapod.recipe.choices import AdapterKind, LoraFormat, Precision

DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}

_DIFFUSERS = ("transformer.", "unet.", "text_encoder.", "text_encoder_2.")
_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "dora_scale"}
_KOHYA_NAMES = {**_NAMES, "A": "lora_down.weight", "B": "lora_up.weight"}
_DIFFUSERS_NAMES = {**_NAMES, "magnitude": "lora_magnitude_vector"}

ONLY_LYCORIS = frozenset({AdapterKind.LOKR, AdapterKind.LOHA, AdapterKind.OFT})
"""Kinds that diffusers' own loaders do not read."""


def lora_tensors(denoiser: nn.Module, family: Family, recipe: Recipe, format: LoraFormat) -> dict[str, Tensor]:
    """`<key>.lora_A.weight` (r, in), `<key>.lora_B.weight` (out, r), and `<key>.alpha` where the scale is not 1.

    Readers scale by alpha / rank and take 1 where no alpha is stored (facts of ComfyUI's weight adapters); rsLoRA's alpha is
    written as what gives its scale there. Under kohya's names the halves are `lora_down` and `lora_up` and alpha is always
    there, as sd-scripts reads them. Under diffusers' names there is no alpha, since its loaders refuse the key: the scale is
    in B. DoRA adds `dora_scale` (out, 1), for diffusers `lora_magnitude_vector` (out,). LoHa, LoKr and OFT have the names of
    LyCORIS (`hada_w1_a`, `lokr_w1`, `oft_blocks`) in ComfyUI's and in kohya's layout; a LoKr of two whole factors has its
    scale in the second, since readers take 1 there whatever alpha says.

    Unverified by running: ComfyUI itself. Its source (0.3.77) divides a `dora_scale` of rows by the length of the unchanged
    row, where LyCORIS, peft and diffusers take that of the changed one; there a DoRA's effect differs by that ratio.
    """
    dtype = DTYPES[recipe.saving.precision]
    out: dict[str, Tensor] = {}
    for module, layer in layers_of(denoiser):
        key = family.export_key(module, format)
        is_kohya, is_diffusers = key.startswith((kohya.PREFIX, *kohya.ENCODERS)), format is LoraFormat.DIFFUSERS
        is_folded = is_diffusers or key.startswith(_DIFFUSERS)
        names = _KOHYA_NAMES if is_kohya else _DIFFUSERS_NAMES if is_diffusers else _NAMES
        parts = {name: value.detach().to("cpu") for name, value in parts_of(layer).items()}
        rank, factor = rank_of(parts), scale(layer)
        if rank is None and "lokr_w2" in parts:
            parts["lokr_w2"] = parts["lokr_w2"] * factor
        elif "B" in parts and is_folded:
            parts["B"] = parts["B"] * factor
            factor = 1.0
        if "magnitude" in parts and not is_diffusers:
            parts["magnitude"] = parts["magnitude"][:, None]
        for name, value in parts.items():
            out[f"{key}.{names.get(name, name)}"] = value.to(dtype).contiguous()
        if rank is not None and not is_diffusers and (is_kohya or factor != 1):
            out[f"{key}.alpha"] = torch.tensor(factor * rank)
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
            predicts_v=isinstance(family, WeighsBySnr) and family.predicts_v,
        )
        with written_whole(path) as temporary:
            save_tensors(lora_tensors(denoiser, family, recipe, format), temporary, metadata=metadata)
            make_reproducible(temporary)
        written.append((path, format))
    return written
