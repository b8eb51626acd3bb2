"""LoRA files from one key layout into another, without torch: `lorapod lora convert`.

Between, everything is in diffusers' names with the scale (alpha / rank) beside it. What the file does is kept: a layer
that the original checkpoint fuses is cut into parts with the same A and the rows of B; parts are fused by stacking A and
setting B diagonally, at the sum of their ranks (or at their own rank, if A is the same in all of them). Where a layout
has no alpha the scale goes into B. Tensors keep their type. DoRA's magnitude, which is of rows, goes with them. LoKr, LoHa
and OFT are renamed between ComfyUI's and kohya's layouts; their factors belong to a whole layer, so that one which the
layouts cut differently is refused by name, as are layers outside the blocks whose weights the layouts order differently.
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
from lorapod.lora_file import (
    diffusers_alpha,
    family_of,
    halves_of,
    is_whole,
    make_reproducible,
    no_lora,
    read_header,
    values_of,
)
from lorapod.lora_names import flux, flux2, kohya, wan
from lorapod.recipe.choices import LoraFormat

_PREFIXES = {
    "base_model.model.": "denoiser", "diffusion_model.": "denoiser", "transformer.": "denoiser", "unet.": "denoiser",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
}  # fmt: skip
_KOHYA_PREFIXES = {
    "lora_unet_": "denoiser", "lora_transformer_": "denoiser", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder",
}  # fmt: skip
_FUSED_IN = {"flux": flux, "flux2": flux2, "z_image": flux}
"""Families whose original checkpoints fuse layers, and how."""

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
        magnitude: Of DoRA, (o,): the length that each row of the changed weight is brought to.
    """

    component: str
    module: str
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float
    dtype: str
    magnitude: NDArray[np.float32] | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True)
class WholeLayer:
    """One layer of a LoKr, LoHa or OFT.

    Attributes:
        module: Its name in diffusers.
        parts: Tensors by LyCORIS' names (`lokr_w1`, `hada_w1_a`, `oft_blocks`, `alpha`) with their types.
    """

    component: str
    module: str
    parts: dict[str, tuple[NDArray[np.float32], str]]


@dataclass(frozen=True)
class Lora:
    """An adapter file in diffusers' names.

    Attributes:
        layers: Those of a LoRA or DoRA.
        others: Those of other kinds.
    """

    family: str
    layers: tuple[Layer, ...]
    metadata: dict[str, str]
    others: tuple[WholeLayer, ...] = ()


def read(path: Path, family: str | None = None, every_kind: bool = False) -> Lora:
    """Reads a LoRA file of any layout.

    Args:
        family: Architecture of its base model, where the file does not tell.
        every_kind: DoRA, LoKr, LoHa and OFT too; else they are refused, since arithmetic on factors means a LoRA's.

    Raises:
        AdapterError: No LoRA, of a family that is not known, or it holds what cannot be converted or is no number.
    """
    header = read_header(path)
    halves = halves_of(header.tensors)
    whole_parts = halves.parts if every_kind and all(map(is_whole, halves.parts.values())) else {}
    if not (halves.down and halves.up) and not whole_parts:
        raise no_lora(path, list(header.tensors))
    family = family or family_of(header.metadata, [*halves.down, *halves.up, *whole_parts])
    if family is None:
        raise AdapterError(
            f"It cannot be told which base model {path.name} is for",
            "Neither its metadata nor the names of its layers say so.",
            "Say it with --family; `lorapod lora inspect --keys` lists its layers.",
        )
    magnitudes = {m: k for m, k in halves.magnitudes.items() if every_kind and m in halves.down}
    odd = [*(set(halves.others) - set(magnitudes.values())), *(halves.down.keys() ^ halves.up.keys())]
    odd += [key for parts in halves.parts.values() for key in parts.values() if not whole_parts]
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
        _refuse_broken(path, name, down, up)
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise AdapterError(f"{path.name} is damaged", f"The halves of {name} have different ranks.", "")
        stored = values_of(header.tensors[halves.alphas[name]], data) if name in halves.alphas else None
        alpha = float(stored.reshape(())) if stored is not None else declared
        rank = down.shape[0]
        component, module = _place_of(name)
        long = values_of(header.tensors[magnitudes[name]], data) if name in magnitudes else None
        whole = Layer(component, module, down.astype(np.float32), up.astype(np.float32),
                      1.0 if alpha is None else alpha / rank, _dtype(header.tensors[key].dtype),
                      None if long is None else _of_rows(long, up.shape[0], name))  # fmt: skip
        layers += _in_parts(whole, family)
    others = []
    for name, keys in whole_parts.items():
        if name in halves.alphas:
            keys = {**keys, "alpha": halves.alphas[name]}
        component, module = _place_of(name)
        values = {part: _values(header.tensors[key], data, key) for part, key in keys.items()}
        _refuse_broken(path, name, *values.values())
        others.append(WholeLayer(component, _whole_name(component, module, family), {
            part: (values[part], _dtype(header.tensors[key].dtype)) for part, key in keys.items()
        }))  # fmt: skip
    metadata = {k: v for k, v in header.metadata.items() if k != "lora_adapter_metadata"}
    return Lora(family, tuple(layers), metadata, tuple(others))


def _refuse_broken(path: Path, name: str, *values: NDArray[np.floating[Any]]) -> None:
    if not all(np.isfinite(each).all() for each in values):
        raise AdapterError(
            f"{path.name} holds values that are no numbers",
            f"NaN or infinity stands in {name}, for one: the training broke before the file was written.",
            "Take an earlier file of that training.",
        )


def _of_rows(magnitude: NDArray[np.float64], rows: int, name: str) -> NDArray[np.float32]:
    """A magnitude (o,), which files have as (o, 1) too.

    Raises:
        AdapterError: It is of columns.
    """
    if magnitude.size != rows or magnitude.shape[0] != rows:
        raise AdapterError(
            f"The DoRA's magnitude of {name} is not of the layer's rows",
            f"It is {list(magnitude.shape)} for {rows} rows; files of old versions of LyCORIS have one of columns.",
            "It cannot be converted; use it in the layout that it has.",
        )
    return magnitude.reshape(rows).astype(np.float32)


def _values(tensor: Any, data: Any, key: str) -> NDArray[np.float32]:
    values = values_of(tensor, data)
    if values is None:
        raise AdapterError(f"A tensor is of a type that is not converted ({tensor.dtype})", f"It is {key}.", "")
    return values.astype(np.float32)


def _whole_name(component: str, module: str, family: str) -> str:
    """diffusers' name of a layer that is one in every layout."""
    if component != "denoiser" or family not in (*_FUSED_IN, "wan"):
        return module
    if family == "wan":
        return wan.diffusers_name(module)
    parts: tuple[str, ...] = _FUSED_IN[family].parts_of(module)
    if len(parts) > 1:
        raise AdapterError(
            f"The layer {module} cannot be converted",
            "It is several layers in diffusers, and the factors of a LoKr, LoHa or OFT are of all of them together.",
            "Use the file in the layout that it has.",
        )
    return parts[0]


def convert(
    source: Path, target: Path, format: LoraFormat, family: str | None = None, text_encoders: bool = True
) -> Lora:
    """Writes the LoRA file `source` to `target` in another layout; `source` is left as it is.

    Args:
        text_encoders: Whether the layers of text encoders are written, where it has any.

    Returns:
        What was written, in diffusers' names.

    Raises:
        AdapterError: It cannot be read, or its family has no such layout.
        DiskError: No space.
    """
    lora = read(source, family, every_kind=True)
    if not text_encoders:
        lora = replace(
            lora,
            layers=tuple(layer for layer in lora.layers if layer.component == "denoiser"),
            others=tuple(layer for layer in lora.others if layer.component == "denoiser"),
        )
        if not (lora.layers or lora.others):
            raise AdapterError(
                f"Nothing is left of {source.name}", "All of its layers are of text encoders.", "Convert it whole."
            )
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
            return component, _module_in(component, kohya.dotted(name.removeprefix(prefix)))
    component = "denoiser"
    for prefix, of in _PREFIXES.items():  # `base_model.model.` may stand before another
        if name.startswith(prefix):
            component, name = of, name.removeprefix(prefix)
    return component, _module_in(component, name)


def _module_in(component: str, name: str) -> str:
    return kohya.from_original_unet(name) if component == "denoiser" else kohya.in_text_model(name)


def _in_parts(whole: Layer, family: str) -> Iterator[Layer]:
    """A layer as diffusers has it, in several parts where it was fused."""
    if family == "wan" and whole.component == "denoiser":
        yield replace(whole, module=wan.diffusers_name(whole.module))
        return
    if family not in _FUSED_IN or whole.component != "denoiser":
        yield whole
        return
    parts = _FUSED_IN[family].parts_of(whole.module)
    if len(parts) == 1 and parts[0] == whole.module and not _is_diffusers(whole.module):
        raise AdapterError(
            f"The layer {whole.module} cannot be converted",
            "It lies outside the blocks, or its name is not known.",
            "`lorapod lora inspect --keys` lists the layers.",
        )
    try:
        sizes = _FUSED_IN[family].rows_of(parts, whole.down.shape[1], whole.up.shape[0])
    except ValueError as error:
        raise AdapterError(
            f"The layer {whole.module} is not of the shape that the family {family} has", str(error), ""
        ) from error
    ends = np.cumsum(sizes)
    for part, end, size in zip(parts, ends, sizes, strict=True):
        rows = slice(end - size, end)
        magnitude = None if whole.magnitude is None else whole.magnitude[rows]
        yield replace(whole, module=part, up=whole.up[rows], magnitude=magnitude)


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
    if format is LoraFormat.KOHYA and lora.family in _FUSED_IN:
        layers = tuple(_fused(lora.layers, lora.family))
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
        if layer.magnitude is not None and format is LoraFormat.DIFFUSERS:
            yield f"{key}.lora_magnitude_vector", (layer.magnitude, layer.dtype)
        elif layer.magnitude is not None:
            yield f"{key}.dora_scale", (layer.magnitude[:, None], layer.dtype)
    for other in lora.others:
        yield from _whole_tensors(other, lora.family, format)


def _whole_tensors(
    layer: WholeLayer, family: str, format: LoraFormat
) -> Iterator[tuple[str, tuple[NDArray[np.float32], str]]]:
    if format is LoraFormat.DIFFUSERS:
        raise AdapterError(
            "LoKr, LoHa and OFT have no layout of diffusers", "Its loaders read LoRA and DoRA alone.", ""
        )
    if format is LoraFormat.KOHYA and family in ("flux", "flux2"):
        names = _FUSED_IN[family]
        whole = names.fused_of(layer.module)
        if whole is None or len(names.parts_of(whole)) > 1:
            raise AdapterError(
                f"The layer {layer.module} cannot be converted",
                "In kohya's layout it is a part of a larger layer, and its factors are of the part alone.",
                "Use `comfyui`.",
            )
        layer = replace(layer, module=whole)
    key = _key(layer, family, format)
    for part, value in layer.parts.items():
        yield f"{key}.{part}", value


def _key(layer: Layer | WholeLayer, family: str, format: LoraFormat) -> str:
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
    return f"transformer.{module}" if family in ("flux", "flux2") else f"diffusion_model.{module}"


def _fused(layers: tuple[Layer, ...], family: str) -> Iterator[Layer]:
    """Layers as the original checkpoint has them."""
    names = _FUSED_IN[family]
    groups: dict[str, dict[str, Layer]] = {}
    for layer in layers:
        whole = names.fused_of(layer.module) if layer.component == "denoiser" else None
        if whole is None:
            yield layer
        else:
            groups.setdefault(whole, {})[layer.module] = layer
    for whole, members in groups.items():
        parts = names.parts_of(whole)
        first = next(iter(members.values()))
        magnitude = _fused_magnitude(whole, [members.get(part) for part in parts])
        if len(parts) == 1:
            yield replace(first, module=whole)
            continue
        sizes = names.rows_of(parts, first.down.shape[1])
        ups = [members[part].up * np.float32(members[part].scale) if part in members else None for part in parts]
        same = len(members) == len(parts) and all(np.array_equal(each.down, first.down) for each in members.values())
        if same and len({each.scale for each in members.values()}) == 1:
            up = np.concatenate([members[part].up for part in parts])
            yield replace(first, module=whole, up=up, magnitude=magnitude)
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
        yield Layer("denoiser", whole, down, up, 1.0, first.dtype, magnitude)


def _fused_magnitude(whole: str, members: list[Layer | None]) -> NDArray[np.float32] | None:
    """DoRA's magnitude of a fused layer; None for a LoRA."""
    found = [member.magnitude for member in members if member is not None and member.magnitude is not None]
    if not found:
        return None
    if len(found) < len(members):
        raise AdapterError(
            f"The layer {whole} cannot be converted",
            "Some of its parts have no DoRA, and their rows would need the length that the base model's have.",
            "Use `comfyui` or `diffusers`.",
        )
    return np.concatenate(found)


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
