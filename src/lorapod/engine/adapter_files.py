"""Adapter files of any kind and key layout: read, merged into a denoiser's weights, or put onto it to draw with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorapod.engine.adapter_layers import PARTS, FileLayer, Parts, changed, device_of, fits
from lorapod.engine.families import Family, NamesLayers
from lorapod.engine.quantised import QuantisedLinear, put_weight
from lorapod.engine.weights import StoredWeights
from lorapod.errors import AdapterError

ENCODERS = ("text_encoder.", "text_encoder_2.")
"""What names of layers of text encoders begin with, where they are attached to a denoiser (`engine.text_encoders`)."""

_OTHERS_ENCODERS = (*ENCODERS, "lora_te")

_PART_OF = {
    "lora_A.weight": "A", "lora_down.weight": "A", "lora_A.default.weight": "A",
    "lora_B.weight": "B", "lora_up.weight": "B", "lora_B.default.weight": "B",
    "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    **{part: part for part in PARTS if "_" in part},
}  # fmt: skip
_KEY = re.compile(
    r"^(?:diffusion_model\.|transformer\.|unet\.|base_model\.model\.)?(?P<module>.+?)\."
    rf"(?:(?P<part>{'|'.join(map(re.escape, sorted(_PART_OF, key=len, reverse=True)))})|(?P<alpha>alpha))$"
)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file in diffusers' names.

    Attributes:
        layers: Module to its tensors, in float32 on the CPU.
        alphas: Of the modules that have one.
    """

    path: Path
    layers: dict[str, Parts]
    alphas: dict[str, float]


@dataclass(frozen=True)
class Merged:
    """An adapter file that is merged into the base model before training, and left out of the result.

    Attributes:
        in_previews: Whether it is there in previews too; one that only undoes a distillation is not.
    """

    path: Path
    strength: float
    in_previews: bool


def read_adapter(path: Path, family: Family) -> AdapterFile:
    """Reads an adapter file.

    Raises:
        AdapterError: Not a safetensors file, or it holds keys of another kind.
    """
    try:
        raw = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"Cannot read the LoRA {path}", str(error), "Check the path, or copy the file again."
        ) from error
    layers: dict[str, Parts] = {}
    alphas: dict[str, float] = {}
    for key, value in raw.items():
        match = _KEY.match(key)
        if match is None:
            raise AdapterError(
                f"{path.name} is not a LoRA that lorapod can use",
                f"It holds the key {key}.",
                "Give a LoRA of this family.",
            )
        module = family.module_of(match["module"]) if isinstance(family, NamesLayers) else match["module"]
        if match["alpha"]:
            alphas[module] = float(value)
        else:
            part = _PART_OF[match["part"]]
            layers.setdefault(module, {})[part] = value.float().flatten() if part == "magnitude" else value.float()
    # Programs that know no scale for a kind write an alpha all the same; where the scale is 1 it says nothing.
    return AdapterFile(path, layers, {m: a for m, a in alphas.items() if m in layers})


def _linear_for(denoiser: nn.Module, file: AdapterFile) -> dict[str, nn.Linear]:
    """The layer of each module of a file; for one with an adapter, the frozen layer inside.

    Raises:
        AdapterError: The base model has no such layer, or of another shape.
    """
    named = dict(denoiser.named_modules())
    encoders = [module for module in file.layers if module.startswith(_OTHERS_ENCODERS)]
    if encoders and encoders[0] not in named:
        raise AdapterError(
            f"The LoRA {file.path.name} changes the text encoder too, and here that of the base model is used as it is",
            f"{len(encoders)} of its {len(file.layers)} layers are of text encoders; the first is {encoders[0]}.",
            "Write a file without them, which does a little less: lorapod lora convert … --without-text-encoders",
        )
    found = {}
    for module, parts in file.layers.items():
        layer = getattr(named.get(module), "base_layer", named.get(module))
        if not isinstance(layer, nn.Linear) or not fits(parts, layer.weight.shape):
            raise AdapterError(
                f"The LoRA {file.path.name} does not fit the base model",
                f"The base model has no linear layer {module} of the shape that the file has.",
                "Use the base model that it was trained on (`lorapod lora inspect` shows it).",
            )
        found[module] = layer
    return found


@torch.no_grad()
def merge(
    denoiser: nn.Module,
    family: Family,
    merged: Sequence[Merged],
    stored: StoredWeights | None = None,
    undo: Sequence[Path] = (),
) -> None:
    """Changes the frozen weights by files, one after the other, computed in float32.

    Args:
        stored: The weights on disk, for layers that are quantised here and for `undo`: what is there is changed and only
            then held in few bits.
        undo: Files that were merged before, whose layers start from what is on disk.

    Raises:
        AdapterError: Damaged, or made for another model.
    """
    files = [(read_adapter(each.path, family), each.strength) for each in merged]
    files += [(read_adapter(path, family), 0.0) for path in undo]
    layers = {module: layer for file, _ in files for module, layer in _linear_for(denoiser, file).items()}
    from_disk = {m for path in undo for m in read_adapter(path, family).layers}
    with stored or nullcontext():
        for module, layer in layers.items():
            held = layer.weight
            if stored and (module in from_disk or isinstance(layer, QuantisedLinear)):
                held = stored.read(f"{module}.weight", held)
            weight = held.float()
            for file, strength in files:
                if strength and module in file.layers:
                    weight = weight + strength * (
                        changed(weight, file.layers[module], file.alphas.get(module)) - weight
                    )
            put_weight(layer, weight)


def add_lora_file(denoiser: nn.Module, family: Family, path: Path, device: torch.device | None = None) -> None:
    """Puts an adapter file of any kind, rank and layers on the denoiser.

    Args:
        device: Where its tensors are; default: where each layer is.

    Raises:
        AdapterError: Damaged, or made for another model.
    """
    file = read_adapter(path, family)
    for module, layer in _linear_for(denoiser, file).items():
        replace_layer(
            denoiser, module, FileLayer(layer, file.layers[module], file.alphas.get(module), device or device_of(layer))
        )


def replace_layer(denoiser: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts `layer` where the module of that name is."""
    parent, _, last = name.rpartition(".")
    setattr(denoiser.get_submodule(parent), last, layer)


@contextmanager
def scaled(denoiser: nn.Module, strength: float) -> Iterator[None]:
    """The denoiser with its adapter file at `strength` (0 is the base model) inside the block."""
    layers = [module for module in denoiser.modules() if isinstance(module, FileLayer)]
    for layer in layers:
        layer.strength = strength
    try:
        yield
    finally:
        for layer in layers:
            layer.strength = 1.0


def tensor_names(file: AdapterFile) -> dict[str, Tensor]:
    """`<module>.<part>` of all tensors of a file."""
    return {f"{module}.{part}": tensor for module, parts in file.layers.items() for part, tensor in parts.items()}
