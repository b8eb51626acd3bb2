"""The adapter: LoRA layers of peft inside a frozen denoiser, as named tensors in and out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorapod.engine.families import Family, NamesLayers
from lorapod.engine.weights import StoredWeights
from lorapod.errors import AdapterError
from lorapod.recipe.schema import AdapterSection

NAME = "default"
_KEY = re.compile(
    r"^(?:diffusion_model\.|transformer\.|unet\.|base_model\.model\.)?(?P<module>.+?)\."
    r"(?:(?P<half>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|(?P<alpha>alpha))$"
)
_HALVES = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}


def add_adapter(denoiser: nn.Module, family: Family, section: AdapterSection, alpha: float, seed: int) -> None:
    """Puts a fresh adapter, in float32, on the denoiser's target layers. B starts at zero: the model is unchanged."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=alpha,
        lora_dropout=section.dropout,
        target_modules=family.targets(section.targets),
        init_lora_weights=True,
    )
    denoiser.add_adapter(config, adapter_name=NAME)
    for parameter in adapter_parameters(denoiser):
        parameter.data = parameter.data.float()


def layers_of(denoiser: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The adapted layers by module name, in the model's order."""
    for name, module in denoiser.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def adapter_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """The trainable tensors, in the model's order."""
    return [p for p in denoiser.parameters() if p.requires_grad]


def adapter_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """`<module>.A` (r, in) and `<module>.B` (out, r), the live tensors."""
    found: dict[str, Tensor] = {}
    for name, layer in layers_of(denoiser):
        found[f"{name}.A"] = layer.lora_A[NAME].weight
        found[f"{name}.B"] = layer.lora_B[NAME].weight
    return found


@torch.no_grad()
def load_adapter_tensors(denoiser: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copies tensors named as `adapter_tensors` names them into the adapter.

    Raises:
        AdapterError: Layers or shapes differ.
    """
    own = adapter_tensors(denoiser)
    if set(own) != set(tensors):
        extra, missing = sorted(set(tensors) - set(own)), sorted(set(own) - set(tensors))
        example = (extra or missing)[0].rsplit(".", 1)[0]
        raise AdapterError(
            f"The LoRA {source.name} has other layers than this recipe trains",
            f"{len(extra)} tensors only in the file, {len(missing)} only in the recipe; the first is {example}.",
            "Set `adapter.targets` to what the file was trained with (`lorapod lora inspect` shows its layers).",
        )
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            rank = min(tensors[name].shape)
            raise AdapterError(
                f"The LoRA {source.name} does not fit this recipe",
                f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(value.shape)} here.",
                f"Set `adapter.rank = {rank}` if only the rank differs.",
            )
        value.copy_(tensors[name])


def read_lora(path: Path, family: Family) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors `<module>.A` and `<module>.B`, and the alpha of each module that states one; modules as the family's
    denoiser names them.

    Raises:
        AdapterError: Not a safetensors file, or not a LoRA with the module names of diffusers.
    """
    try:
        raw = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"Cannot read the LoRA {path}", str(error), "Check the path, or copy the file again."
        ) from error
    tensors: dict[str, Tensor] = {}
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
            tensors[f"{module}.{_HALVES[match['half']]}"] = value.float()
    return tensors, alphas


@torch.no_grad()
def continue_from(denoiser: nn.Module, family: Family, path: Path, alpha: float) -> None:
    """Starts the adapter from a LoRA file; the file's own scale is folded in so that its effect is unchanged.

    Raises:
        AdapterError: Damaged, other layers, other rank.
    """
    tensors, alphas = read_lora(path, family)
    for name in [n for n in tensors if n.endswith(".B")]:
        module = name[:-2]
        rank = tensors[name].shape[1]
        scale = alphas.get(module, rank) / rank
        tensors[name] = tensors[name] * (scale / (alpha / rank))
    load_adapter_tensors(denoiser, tensors, path)


@torch.no_grad()
def merge(denoiser: nn.Module, family: Family, path: Path, strength: float) -> None:
    """Adds a LoRA file to the frozen weights, computed in float32.

    Raises:
        AdapterError: Damaged, or made for another model.
    """
    tensors, alphas = read_lora(path, family)
    modules = _plain_layers(denoiser)
    for name in [n for n in tensors if n.endswith(".B")]:
        module_name = name[:-2]
        layer, up, down = modules.get(module_name), tensors[name], tensors.get(f"{module_name}.A")
        if not isinstance(layer, nn.Linear) or down is None or layer.weight.shape != (up.shape[0], down.shape[1]):
            raise AdapterError(
                f"The training adapter {path.name} does not fit the base model",
                f"The base model has no linear layer {module_name} of that shape.",
                "Use the adapter that was made for this base model.",
            )
        scale = strength * alphas.get(module_name, down.shape[0]) / down.shape[0]
        delta = (up.to(layer.weight.device) @ down.to(layer.weight.device)) * scale
        layer.weight.copy_((layer.weight.float() + delta).to(layer.weight.dtype))


@torch.no_grad()
def restore(denoiser: nn.Module, family: Family, path: Path, stored: StoredWeights) -> None:
    """Puts back the weights, as they are on disk, of the layers that `path` was merged into."""
    tensors, _ = read_lora(path, family)
    modules = _plain_layers(denoiser)
    with stored:
        for module in (name[:-2] for name in tensors if name.endswith(".B")):
            weight = modules[module].weight
            weight.copy_(stored.read(f"{module}.weight", weight))


def _plain_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Modules by name; for a layer that has an adapter, the frozen layer inside."""
    named = dict(denoiser.named_modules())
    return {name: module.base_layer if isinstance(module, LoraLayer) else module for name, module in named.items()}


def add_lora_file(denoiser: nn.Module, family: Family, path: Path) -> None:
    """Puts a LoRA file of any rank and layers on the denoiser.

    Raises:
        AdapterError: Damaged, or made for another model.
    """
    tensors, alphas = read_lora(path, family)
    modules = dict(denoiser.named_modules())
    ranks = {name[:-2]: value.shape[0] for name, value in tensors.items() if name.endswith(".A")}
    for module, rank in ranks.items():
        layer, up = modules.get(module), tensors.get(f"{module}.B")
        expected = (up.shape[0], tensors[f"{module}.A"].shape[1]) if up is not None else None
        if not isinstance(layer, nn.Linear) or up is None or layer.weight.shape != expected or up.shape[1] != rank:
            raise AdapterError(
                f"The LoRA {path.name} does not fit the base model",
                f"The base model has no linear layer {module} of the shape that the file has.",
                "Use the base model that it was trained on (`lorapod lora inspect` shows it).",
            )
    names = {module: re.escape(module) for module in ranks}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules="|".join(names.values()),
        rank_pattern={f"^{name}$": ranks[module] for module, name in names.items()},
        alpha_pattern={f"^{name}$": alphas.get(module, ranks[module]) for module, name in names.items()},
    )
    denoiser.add_adapter(config, adapter_name=NAME)
    load_adapter_tensors(denoiser, tensors, path)


@contextmanager
def scaled(denoiser: nn.Module, strength: float) -> Iterator[None]:
    """The denoiser with its adapter at `strength` (0 is the base model) inside the block."""
    layers = [layer for _, layer in layers_of(denoiser)]
    before = [layer.scaling[NAME] for layer in layers]
    for layer, scale in zip(layers, before, strict=True):
        layer.scaling[NAME] = scale * strength
    try:
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scaling[NAME] = scale
