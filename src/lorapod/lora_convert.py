"""LoRA files from one key layout into another, without torch: `lorapod lora convert`.

Between, everything is in diffusers' names with the scale (alpha / rank) beside it. What the file does is kept: a layer
that the original checkpoint fuses is cut into parts with the same A and the rows of B; parts are fused by stacking A and
setting B diagonally, at the sum of their ranks (or at their own rank, if A is the same in all of them). Where a layout
has no alpha the scale goes into B. Tensors keep their type. Not covered: DoRA, LoKr, LoHa, and layers outside the blocks
whose weights the layouts order differently; they are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapod.errors import AdapterError
from lorapod.files import written_whole
from lorapod.lora_file import diffusers_alpha, family_of, halves_of, make_reproducible, no_lora, read_header, values_of
from lorapod.lora_names import flux, kohya, wan
from lorapod.recipe.schema import LoraFormat

_PREFIXES = {
    "base_model.model.": "denoiser", "diffusion_model.": "denoiser", "transformer.": "denoiser", "unet.": "denoiser",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
}  # fmt: skip
_KOHYA_PREFIXES = {
    "lora_unet_": "denoiser", "lora_transformer_": "denoiser", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder",
}  # fmt: skip
_TEXT_ENCODERS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


@dataclass(frozen=True)
class Layer:
    """One adapted layer: scale * B @ A is added to its weight.

    Attributes:
        component: `denoiser`, `text_encoder` or `text_encoder_2`.
        module: Its name in diffusers.
        down: A, (r, i), or (r, i, kh, kw) for a convolution; float32.
        up: B, (o, r), or (o, r, 1, 1).
        scale: alpha / rank.
        dtype: Type in the file, as safetensors names it.
    """

    component: str
    module: str
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float
    dtype: str

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True)
class Lora:
    """A LoRA file in diffusers' names."""

    family: str
    layers: tuple[Layer, ...]
    metadata: dict[str, str]


def read(path: Path, family: str | None = None) -> Lora:
    """Reads a LoRA file of any layout.

    Args:
        family: Architecture of its base model, where the file does not tell.

    Raises:
        AdapterError: No LoRA, of a family that is not known, or it holds what cannot be converted; all named.
    """
    header = read_header(path)
    halves = halves_of(header.tensors)
    if not halves.down or not halves.up:
        raise no_lora(path, list(header.tensors))
    family = family or family_of(header.metadata, [*halves.down, *halves.up])
    if family is None:
        raise AdapterError(
            f"It cannot be told which base model {path.name} is for",
            "Neither its metadata nor the names of its layers say so.",
            "Say it with --family; `lorapod lora inspect --keys` lists its layers.",
        )
    odd = [*halves.others, *(halves.down.keys() ^ halves.up.keys())]
    if odd:
        raise AdapterError(
            f"{path.name} holds more than a LoRA's two halves and alpha",
            f"{len(odd)} keys of another kind, the first is {odd[0]}.",
            "DoRA and other adapters cannot be converted without changing what they do.",
        )
    data = np.memmap(path, dtype=np.uint8, mode="r")
    declared = diffusers_alpha(header.metadata)
    layers: list[Layer] = []
    for name, key in halves.down.items():
        down, up = (values_of(header.tensors[k], data) for k in (key, halves.up[name]))
        if down is None or up is None:
            raise AdapterError(f"{path.name} holds tensors of a type that is not converted", f"{key} is one.", "")
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise AdapterError(f"{path.name} is damaged", f"The halves of {name} have different ranks.", "")
        stored = values_of(header.tensors[halves.alphas[name]], data) if name in halves.alphas else None
        alpha = float(stored.reshape(())) if stored is not None else declared
        rank = down.shape[0]
        component, module = _place_of(name)
        whole = Layer(component, module, down.astype(np.float32), up.astype(np.float32),
                      1.0 if alpha is None else alpha / rank, _dtype(header.tensors[key].dtype))  # fmt: skip
        layers += _in_parts(whole, family)
    metadata = {k: v for k, v in header.metadata.items() if k != "lora_adapter_metadata"}
    return Lora(family, tuple(layers), metadata)


def convert(source: Path, target: Path, format: LoraFormat, family: str | None = None) -> Lora:
    """Writes the LoRA file `source` to `target` in another layout; `source` is left as it is.

    Returns:
        What was written, in diffusers' names.

    Raises:
        AdapterError: It cannot be read, or its family has no such layout.
        DiskError: No space.
    """
    lora = read(source, family)
    write(lora, target, format)
    return lora


def write(lora: Lora, target: Path, format: LoraFormat) -> None:
    """Writes a LoRA file in a layout.

    Raises:
        AdapterError: Its family has no such layout.
        DiskError: No space.
    """
    write_tensors(target, dict(_tensors(lora, format)), lora.metadata | {"lorapod.family": lora.family})


def _dtype(stored: str) -> str:
    """The type to write: the one in the file, if it is a floating-point type."""
    return stored if stored in ("F64", "F32", "F16", "BF16") else "F32"


def _place_of(name: str) -> tuple[str, str]:
    """Component, and module with dots, of a name in any layout."""
    for prefix, component in _KOHYA_PREFIXES.items():
        if name.startswith(prefix):
            return component, kohya.from_original_unet(kohya.dotted(name.removeprefix(prefix)))
    component = "denoiser"
    for prefix, of in _PREFIXES.items():  # `base_model.model.` may stand before another
        if name.startswith(prefix):
            component, name = of, name.removeprefix(prefix)
    return component, kohya.from_original_unet(name)


def _in_parts(whole: Layer, family: str) -> Iterator[Layer]:
    """A layer as diffusers has it, in several parts where it was fused."""
    if family == "wan" and whole.component == "denoiser":
        yield replace(whole, module=wan.diffusers_name(whole.module))
        return
    if family not in ("flux", "z_image") or whole.component != "denoiser":
        yield whole
        return
    parts = flux.parts_of(whole.module)
    if len(parts) == 1 and parts[0] == whole.module and not _is_diffusers(whole.module):
        raise AdapterError(
            f"The layer {whole.module} cannot be converted",
            "It lies outside the blocks, or its name is not known.",
            "`lorapod lora inspect --keys` lists the layers.",
        )
    try:
        sizes = flux.rows_of(parts, whole.down.shape[1], whole.up.shape[0])
    except ValueError as error:
        raise AdapterError(
            f"The layer {whole.module} is not of the shape that the family {family} has", str(error), ""
        ) from error
    ends = np.cumsum(sizes)
    for part, end, size in zip(parts, ends, sizes, strict=True):
        yield replace(whole, module=part, up=whole.up[end - size : end])


def _is_diffusers(module: str) -> bool:
    return module.startswith(
        ("transformer_blocks.", "single_transformer_blocks.", "layers.", "noise_refiner.", "context_refiner.")
    )


def _tensors(lora: Lora, format: LoraFormat) -> Iterator[tuple[str, tuple[NDArray[np.float32], str]]]:
    """Keys, values and types of the file in `format`."""
    layers = lora.layers
    if format is LoraFormat.KOHYA and lora.family == "z_image":
        raise AdapterError(
            "Z-Image has no kohya layout that ComfyUI would load", "", "Convert to `comfyui` or `diffusers`."
        )
    if format is LoraFormat.KOHYA and lora.family == "flux":
        layers = tuple(_fused(lora.layers))
    for layer in layers:
        key = _key(layer, lora.family, format)
        if key.startswith("lora_"):
            yield f"{key}.lora_down.weight", (layer.down, layer.dtype)
            yield f"{key}.lora_up.weight", (layer.up, layer.dtype)
            yield f"{key}.alpha", (np.array(layer.scale * layer.rank, np.float32), "F32")
        elif key.startswith("diffusion_model."):
            yield f"{key}.lora_A.weight", (layer.down, layer.dtype)
            yield f"{key}.lora_B.weight", (layer.up, layer.dtype)
            if layer.scale != 1:
                yield f"{key}.alpha", (np.array(layer.scale * layer.rank, np.float32), "F32")
        else:
            yield f"{key}.lora_A.weight", (layer.down, layer.dtype)
            yield f"{key}.lora_B.weight", (layer.up * np.float32(layer.scale), layer.dtype)


def _key(layer: Layer, family: str, format: LoraFormat) -> str:
    module = layer.module
    if layer.component in _TEXT_ENCODERS:
        is_diffusers = format is LoraFormat.DIFFUSERS
        return (
            f"{layer.component}.{module}"
            if is_diffusers
            else _TEXT_ENCODERS[layer.component] + module.replace(".", "_")
        )
    if format is LoraFormat.DIFFUSERS:
        return f"{'unet' if family == 'sdxl' else 'transformer'}.{module}"
    if family == "wan":
        try:
            module = wan.original_name(module)
        except KeyError as error:
            raise AdapterError(
                f"The layer {module} of Wan cannot be renamed", "It lies outside the blocks.", ""
            ) from error
    if format is LoraFormat.KOHYA or family == "sdxl":
        return kohya.kohya_name(module)
    return f"transformer.{module}" if family == "flux" else f"diffusion_model.{module}"


def _fused(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """FLUX.1's layers as the original checkpoint has them."""
    groups: dict[str, dict[str, Layer]] = {}
    for layer in layers:
        whole = flux.fused_of(layer.module) if layer.component == "denoiser" else None
        if whole is None:
            yield layer
        else:
            groups.setdefault(whole, {})[layer.module] = layer
    for whole, members in groups.items():
        parts = flux.parts_of(whole)
        first = next(iter(members.values()))
        if len(parts) == 1:
            yield replace(first, module=whole)
            continue
        sizes = flux.rows_of(parts, first.down.shape[1])
        ups = [members[part].up * np.float32(members[part].scale) if part in members else None for part in parts]
        same = len(members) == len(parts) and all(np.array_equal(each.down, first.down) for each in members.values())
        if same and len({each.scale for each in members.values()}) == 1:
            yield replace(first, module=whole, up=np.concatenate([members[part].up for part in parts]))
            continue
        rank = sum(member.rank for member in members.values())
        up = np.zeros((sum(sizes), rank), np.float32)
        row = column = 0
        for size, found in zip(sizes, ups, strict=True):
            if found is not None:
                up[row : row + size, column : column + found.shape[1]] = found
                column += found.shape[1]
            row += size
        down = np.concatenate([members[part].down for part in parts if part in members])
        yield Layer("denoiser", whole, down, up, 1.0, first.dtype)


def write_tensors(path: Path, tensors: dict[str, tuple[NDArray[np.float32], str]], metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole, of values and the types to store them in (`F32`, `F16`, `BF16`, …)."""
    pieces, entries, at = [], {"__metadata__": dict(metadata)} if metadata else {}, 0
    described: dict[str, Any] = entries
    for key, (values, dtype) in tensors.items():
        raw = _stored(values, dtype)
        described[key] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(raw)]}
        pieces.append(raw)
        at += len(raw)
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.writelines(pieces)
        make_reproducible(temporary)


def _stored(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":  # the upper half of a float32, rounded to the nearest, ties to even
        bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, {"F64": "<f8", "F16": "<f2"}.get(dtype, "<f4")).tobytes()
