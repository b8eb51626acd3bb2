"""The adapter that is trained: layers inside a frozen denoiser, as named tensors in and out.

LoRA, rsLoRA, DoRA, LoHa and LoKr are peft's; OFT is `adapter_layers.OftLayer`. What each does to a weight is written in
`engine.adapter_layers`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from lorapod.engine.adapter_files import ENCODERS, read_adapter, replace_layer, tensor_names
from lorapod.engine.adapter_layers import OftLayer, Parts, compute_in_type_of_layer, kind_of, scale_of
from lorapod.engine.families import Family
from lorapod.engine.fused_lora import FusedLinear
from lorapod.errors import AdapterError
from lorapod.recipe.choices import AdapterKind, Targets
from lorapod.recipe.schema import AdapterSection

NAME = "default"

_ENCODER_LAYERS = re.compile(r"text_encoder(?:_2)?\..*\.(?:[qkv]_proj|out_proj|fc1|fc2)")
"""Layers of text encoders that get an adapter: attention and feed-forward, as sd-scripts chooses them."""


def add_adapter(
    denoiser: nn.Module,
    family: Family,
    section: AdapterSection,
    alpha: float,
    seed: int,
    device: torch.device | None = None,
) -> None:
    """Puts a fresh adapter, in float32, on the denoiser's target layers. The model is unchanged by it.

    Args:
        device: Where the adapter is; default: where its layers are, of which some may wait on the host.

    Raises:
        AdapterError: A pattern of `adapter.targets` fits no layer.
    """
    names = target_names(denoiser, family, section.targets)
    if section.text_encoders:
        names += [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear) and _ENCODER_LAYERS.fullmatch(name)
        ]
    torch.manual_seed(seed)
    if section.kind is AdapterKind.OFT:
        for name in names:
            replace_layer(denoiser, name, OftLayer(denoiser.get_submodule(name), section.rank))
    else:
        denoiser.add_adapter(_config(section, alpha, "|".join(map(re.escape, names))), adapter_name=NAME)
    for _, layer in layers_of(denoiser):
        if isinstance(layer, LycorisLayer):
            compute_in_type_of_layer(layer)
    for parameter in adapter_parameters(denoiser):
        parameter.data = parameter.data.to(device, torch.float32)


def _config(section: AdapterSection, alpha: float, targets: str) -> PeftConfig:
    if section.kind is AdapterKind.LOHA:
        return LoHaConfig(r=section.rank, alpha=alpha, target_modules=targets)
    if section.kind is AdapterKind.LOKR:
        return LoKrConfig(
            r=section.rank,
            alpha=alpha,
            target_modules=targets,
            decompose_factor=section.factor or -1,
            init_weights="lycoris",
        )
    config = LoraConfig(
        r=section.rank,
        lora_alpha=alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        init_lora_weights=True,
        use_rslora=section.kind is AdapterKind.RSLORA,
        use_dora=section.kind is AdapterKind.DORA,
    )
    config._register_custom_module({nn.Linear: FusedLinear})  # quantised layers are linear ones too
    return config


def target_names(denoiser: nn.Module, family: Family, targets: Targets | Sequence[str]) -> list[str]:
    """The linear layers that get an adapter, in the model's order.

    Args:
        targets: A preset of the family, or patterns over names (`*` is any text, `?` any character, `[…]` a set). They
            choose among the layers of the preset `all`, whose names in files are known; nothing else would be found there.

    Raises:
        AdapterError: A pattern fits no layer.
    """
    linear = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, Targets):
        wanted = re.compile(family.targets(targets))
        return [name for name in linear if wanted.fullmatch(name)]
    known = re.compile(family.targets(Targets.ALL))
    able = [name for name in linear if known.fullmatch(name)]
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in able):
            near = _nearest(pattern, able)
            raise AdapterError(
                f"No layer of the base model that can have an adapter is called {pattern}",
                f"`adapter.targets` asks for it. The nearest of the {len(able)} layers are {', '.join(near)}.",
                "Patterns are for whole names: `*.attn.to_q` finds that layer in every block.",
            )
    return [name for name in able if any(fnmatchcase(name, pattern) for pattern in targets)]


def _nearest(pattern: str, names: list[str]) -> list[str]:
    """Three names that are most like a pattern, of different kinds: blocks of another number are one kind."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "0", name), name)
    plain = re.sub(r"\d+", "0", pattern.replace("*", ""))
    found = difflib.get_close_matches(plain, kinds, n=3, cutoff=0.0)
    return [kinds[kind] for kind in found]


@contextmanager
def switched_off(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser without its adapter inside the block, without gradients of it being asked for or not."""
    layers = [layer for _, layer in layers_of(denoiser)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def layers_of(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The adapted layers by module name, in the model's order."""
    for name, module in denoiser.named_modules():
        if isinstance(module, LoraLayer | LycorisLayer | OftLayer):
            yield name, module


def adapter_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """The trainable tensors, in the model's order."""
    return [p for p in denoiser.parameters() if p.requires_grad]


def parts_of(layer: nn.Module) -> Parts:
    """The live tensors of an adapted layer by the names of `adapter_layers.PARTS`."""
    if isinstance(layer, OftLayer):
        return {"oft_blocks": layer.oft_blocks}
    if isinstance(layer, LoraLayer):
        parts = {"A": layer.lora_A[NAME].weight, "B": layer.lora_B[NAME].weight}
        if layer.lora_magnitude_vector:
            parts["magnitude"] = layer.lora_magnitude_vector[NAME].weight
        return parts
    return {name: held[NAME] for name in layer.adapter_layer_names if NAME in (held := getattr(layer, name))}


def scale(layer: nn.Module) -> float:
    """What an adapted layer's product is multiplied with: alpha / rank, of rsLoRA alpha / sqrt(rank)."""
    return 1.0 if isinstance(layer, OftLayer) else float(layer.scaling[NAME])


def adapter_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """`<module>.<part>`: of a LoRA A (r, in) and B (out, r), the live tensors."""
    return {f"{name}.{part}": tensor for name, layer in layers_of(denoiser) for part, tensor in parts_of(layer).items()}


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
            _remedy(extra, missing),
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


def _remedy(extra: list[str], missing: list[str]) -> str:
    """What makes the layers of a recipe those of a file that has `extra` and lacks `missing`."""
    if extra and not missing and all(name.startswith(ENCODERS) for name in extra):
        return "The file was trained with the text encoders too: set `adapter.text_encoders = true`."
    if missing and not extra and all(name.startswith(ENCODERS) for name in missing):
        return "The file was trained without the text encoders: leave `adapter.text_encoders` out."
    return "Set `adapter.targets` to what the file was trained with (`lorapod lora inspect` shows its layers)."


_SCALED = ("B", "hada_w1_a", "lokr_w2", "lokr_w2_a")
"""The tensor that takes up a scale, of each kind that has one."""


@torch.no_grad()
def continue_from(denoiser: nn.Module, family: Family, path: Path) -> None:
    """Starts the adapter from a file; the file's own scale is folded in so that its effect is unchanged.

    Raises:
        AdapterError: Damaged, of another kind, other layers, other rank.
    """
    file = read_adapter(path, family)
    layers = dict(layers_of(denoiser))
    for module, parts in file.layers.items():
        if (layer := layers.get(module)) is None:
            continue
        theirs, ours = kind_of(parts), kind_of(parts_of(layer))
        if theirs is not ours:
            raise AdapterError(
                f"The file {path.name} is of another kind than this recipe trains",
                f"It is a {theirs.value}, and `adapter.kind` asks for one with the tensors of {ours.value}.",
                f'Set `adapter.kind = "{theirs.value}"`.',
            )
        ratio = scale_of(parts, file.alphas.get(module)) / scale(layer)
        taking = next((name for name in _SCALED if name in parts), None)
        if taking and ratio != 1:
            parts[taking] = parts[taking] * ratio
    load_adapter_tensors(denoiser, tensor_names(file), path)
