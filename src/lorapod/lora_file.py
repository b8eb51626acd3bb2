"""What a LoRA file says and holds, read without torch.

`inspect` reads any of the key layouts in use (ComfyUI, diffusers, kohya) and measures how much each block is changed.
`make_reproducible` puts the header's text entries in a fixed order; `lora_metadata` makes them, the engine writes the
tensors. LoKr, LoHa and OFT are read too; how much OFT changes depends on the base model and is not measured. Not covered:
other adapters (refused by name), the magnitude of DoRA (norms leave it out), 8-bit tensors (listed, not measured).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lorapod.errors import AdapterError
from lorapod.files import sha256_of, written_whole
from lorapod.lora_names import kohya
from lorapod.models.families import family_facts

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMPY_TYPE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}

_HALF = re.compile(
    r"(?P<module>.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<half>A|B|down|up)(?:\.default)?(?:\.weight)?"
)
_PREFIX = re.compile(r"^(base_model\.model\.|diffusion_model\.|transformer\.|unet\.|lora_unet_|lora_transformer_)+")
_BLOCK = re.compile(r"^(.+?)[._](\d+)(?:[._]|$)")
_ENCODER = re.compile(r"(text_encoder(?:_2)?)\.text_model\.encoder\.layers\.(\d+)\.")
LoraLayout = Literal["comfyui", "diffusers", "kohya"]
"""How the keys are named: `diffusion_model.x.lora_A`, `transformer.x.lora_A` (or bare), `lora_unet_x.lora_down`."""

_PART = re.compile(r"(?P<module>.+)\.(?P<part>lokr_w[12](?:_[ab])?|hada_w[12]_[ab]|oft_blocks)")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.(?:dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?)")
_MOST_KHATRI_RAO = 1024
"""Columns of the factors that the norm of a LoHa is computed from: the square of its rank."""

_OTHER_ADAPTERS = {"lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT", "glora": "GLoRA", "ia3": "IA3"}


@dataclass(frozen=True)
class LoraModule:
    """One adapted layer: alpha / rank * B @ A is added to its weight, with A (r, i) and B (o, r).

    Attributes:
        norm: Frobenius norm of what is added; None where it cannot be measured.
        problem: Why it cannot be measured.
    """

    name: str
    block: str
    rank: int
    alpha: float
    norm: float | None
    problem: str | None = None


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA file says and holds.

    Attributes:
        size: Bytes.
        sha256: Of the whole file, as hex.
        family: Architecture of the base model, from the metadata, else from the module names.
        base_model_hash: As the trainer wrote it; trainers differ in what they hash.
        dtypes: Count of tensors of each type, as in `{"BF16": 420}`.
        recipe: TOML that the LoRA was trained with, where lorapod trained it.
        warnings: What a person should know before using the file.
    """

    path: Path
    size: int
    sha256: str
    format: LoraLayout
    modules: tuple[LoraModule, ...]
    dtypes: dict[str, int]
    metadata: dict[str, str]
    family: str | None = None
    base_model: str | None = None
    base_model_hash: str | None = None
    trigger: str | None = None
    steps: int | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def recipe(self) -> str | None:
        return self.metadata.get("lorapod.recipe")

    @property
    def ranks(self) -> list[int]:
        """The different ranks, ascending; most files have one."""
        return sorted({module.rank for module in self.modules})

    @property
    def alphas(self) -> list[float]:
        return sorted({module.alpha for module in self.modules})

    @cached_property
    def block_norms(self) -> dict[str, float]:
        """Frobenius norm of what is added to each block, over all its measurable modules, in the order of the model."""
        squares: dict[str, float] = {}
        for module in sorted(self.modules, key=lambda m: _natural(m.block)):
            squares[module.block] = squares.get(module.block, 0.0) + (module.norm or 0.0) ** 2
        return {block: math.sqrt(square) for block, square in squares.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        return {
            **asdict(self),
            "path": str(self.path),
            "format": self.format,
            "warnings": list(self.warnings),
            "recipe": self.recipe,
            "ranks": self.ranks,
            "alphas": self.alphas,
            "modules": [asdict(module) for module in self.modules],
            "block_norms": self.block_norms,
        }


class _Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class _Header(NamedTuple):
    metadata: dict[str, str]
    tensors: dict[str, _Tensor]
    length: int  # bytes before the first tensor


class _Halves(NamedTuple):
    down: dict[str, str]  # module to key of A
    up: dict[str, str]  # module to key of B
    alphas: dict[str, str]
    others: list[str]  # keys that are none of these
    parts: dict[str, dict[str, str]]  # module to the keys of a LoKr, LoHa or OFT by their names
    magnitudes: dict[str, str]  # module to the key of DoRA's magnitude, which is among the others too


def inspect(path: Path) -> LoraInfo:
    """Reads and measures a LoRA file.

    The norm of scale * B @ A is taken from the two r x r Gram matrices, so the full product is never made:
    ||B A||^2 = sum((B^T B) * (A A^T)).

    Raises:
        AdapterError: There is no such file, it is no safetensors file or cut off, or it holds no LoRA.
    """
    header = read_header(path)
    halves = halves_of(header.tensors)
    if not (halves.down or halves.up or halves.parts) or not all(map(is_whole, halves.parts.values())):
        raise no_lora(path, list(header.tensors))
    data = np.memmap(path, dtype=np.uint8, mode="r")
    declared_alpha = diffusers_alpha(header.metadata)
    modules = tuple(
        _module(name, header.tensors, halves, data, declared_alpha) for name in halves.down if name in halves.up
    ) + tuple(_lycoris_module(name, header.tensors, halves, data) for name in halves.parts)
    metadata, names = header.metadata, [*halves.down, *halves.up, *halves.parts]
    family = family_of(metadata, names)
    steps = metadata.get("ss_steps") or metadata.get("ss_max_train_steps") or ""
    return LoraInfo(
        path=path,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        format=_format(halves),
        modules=modules,
        dtypes=dict(Counter(tensor.dtype for tensor in header.tensors.values())),
        metadata=dict(sorted(metadata.items())),
        family=family,
        base_model=metadata.get("lorapod.base_model") or metadata.get("ss_sd_model_name"),
        base_model_hash=metadata.get("ss_new_sd_model_hash") or metadata.get("ss_sd_model_hash"),
        trigger=metadata.get("modelspec.trigger_phrase"),
        steps=int(steps) if steps.isdigit() else None,
        warnings=tuple(_warnings(modules, halves, names, family, declared_alpha)),
    )


def make_reproducible(path: Path, into: Path | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Rewrites a safetensors file with its metadata sorted and with `modelspec.hash_sha256` of the tensor bytes.

    safetensors keeps metadata in a hash map, so that each process writes the entries in another order; without this two
    identical runs would differ in the header.

    Args:
        into: Where the rewritten file goes; the file itself stays as it is then.
        metadata: Goes over what the file says.

    Raises:
        AdapterError: It is no safetensors file or cut off.
        DiskError: The disk is full or cannot be written.
    """
    header = read_header(path)
    with path.open("rb") as source, written_whole(into or path) as temporary:
        source.seek(header.length)
        digest = sha256()
        while piece := source.read(1 << 20):
            digest.update(piece)
        texts = {**header.metadata, **(metadata or {}), "modelspec.hash_sha256": f"0x{digest.hexdigest()}"}
        entries: dict[str, Any] = {"__metadata__": dict(sorted(texts.items()))}
        for key, tensor in header.tensors.items():
            offsets = [tensor.start - header.length, tensor.end - header.length]
            entries[key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors stay aligned to 8 bytes
        source.seek(header.length)
        with temporary.open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(source, target, 1 << 20)


def read_header(path: Path) -> _Header:
    if not path.is_file():
        raise AdapterError(
            f"There is no LoRA file at {path}", "", "Check the path; `lorapod runs show RUN` names those of a run."
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if size >= 8 and length <= min(size - 8, _MAX_HEADER) else b""
    try:
        raw = json.loads(text)
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        tensors = {key: _tensor(spec, 8 + length) for key, spec in raw.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        cut_off = text == b"" and 8 <= length <= _MAX_HEADER
        raise AdapterError(
            f"{path} is not a whole safetensors file",
            "It ends within its header." if cut_off else "Its header cannot be read.",
            "Fetch it again; if it is a .pt, .ckpt or .bin file, ask its maker for a safetensors file.",
        ) from error
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if end > size:
        raise AdapterError(
            f"{path} is cut off", f"It should be {end:,} bytes long but has {size:,}.", "Fetch or copy it again."
        )
    return _Header(metadata, tensors, 8 + length)


def _tensor(spec: dict[str, Any], offset: int) -> _Tensor:
    shape = tuple(int(side) for side in spec["shape"])
    start, end = (int(at) for at in spec["data_offsets"])
    item_bytes = _ITEM_BYTES.get(spec["dtype"])
    if not 0 <= start <= end or (item_bytes and end - start != math.prod(shape) * item_bytes):
        raise ValueError("offsets do not fit the shape")
    return _Tensor(spec["dtype"], shape, offset + start, offset + end)


def halves_of(tensors: Mapping[str, _Tensor]) -> _Halves:
    found = _Halves({}, {}, {}, [], {}, {})
    for key in tensors:
        if match := _HALF.fullmatch(key):
            half = found.down if match["half"] in ("A", "down") else found.up
            half[match["module"]] = key
        elif key.endswith(".alpha"):
            found.alphas[key.removesuffix(".alpha")] = key
        elif match := _PART.fullmatch(key):
            found.parts.setdefault(match["module"], {})[match["part"]] = key
        else:
            if match := _MAGNITUDE.fullmatch(key):
                found.magnitudes[match["module"]] = key
            found.others.append(key)
    return found


def is_whole(parts: Collection[str]) -> bool:
    """Whether these tensors are all of a LoKr, LoHa or OFT."""
    if any(part.startswith("lokr") for part in parts):
        return all(f"lokr_w{i}" in parts or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= set(parts) for i in (1, 2))
    return "oft_blocks" in parts or len(parts) == 4  # a LoHa has four


def _module(
    name: str, tensors: Mapping[str, _Tensor], halves: _Halves, data: Any, declared_alpha: float | None
) -> LoraModule:
    down, up = tensors[halves.down[name]], tensors[halves.up[name]]
    plain = _plain(name)
    block = _block_of(plain)
    rank = down.shape[0] if down.shape else 0
    if len(down.shape) < 2 or len(up.shape) < 2 or down.shape[0] != up.shape[1] or not rank:
        return LoraModule(plain, block, rank, float(rank), None, "halves of different ranks")
    alpha = declared_alpha if declared_alpha is not None else float(rank)
    stored = values_of(tensors[halves.alphas[name]], data) if name in halves.alphas else None
    if stored is not None and stored.size == 1:
        alpha = float(stored.reshape(()))
    a, b = values_of(down, data), values_of(up, data)
    if a is None or b is None:
        return LoraModule(plain, block, rank, alpha, None, f"a type that is not measured here ({down.dtype})")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and math.isfinite(alpha)):
        return LoraModule(plain, block, rank, alpha if math.isfinite(alpha) else 0.0, None, "NaN or infinity")
    # Convolutions are (r, i, kh, kw) and (o, r, 1, 1); flattened they are the same two factors.
    norm = _product_norm(a.reshape(rank, -1), b.reshape(-1, rank)) * abs(alpha) / rank
    return LoraModule(plain, block, rank, alpha, norm)


def _lycoris_module(name: str, tensors: Mapping[str, _Tensor], halves: _Halves, data: Any) -> LoraModule:
    """A layer of a LoKr, LoHa or OFT."""
    plain, keys = _plain(name), halves.parts[name]
    found = {part: values_of(tensors[key], data) for part, key in keys.items()}
    values = {part: value for part, value in found.items() if value is not None}
    inner = next((part for part in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if part in keys), None)
    rank = tensors[keys[inner]].shape[0] if inner else max(tensors[key].shape[-1] for key in keys.values())
    stored = values_of(tensors[halves.alphas[name]], data) if name in halves.alphas else None
    alpha = float(stored.reshape(())) if stored is not None and inner else float(rank)
    norm = _lycoris_norm(values) if len(values) == len(keys) else None
    return LoraModule(plain, _block_of(plain), rank, alpha, None if norm is None else norm * abs(alpha) / rank)


def _lycoris_norm(parts: Mapping[str, np.ndarray[Any, Any]]) -> float | None:
    """Frobenius norm of a LoKr's or LoHa's product; None where it is not computed.

    |kron(a, b)| = |a| |b|; the element-wise product of two products is one of the row-wise Kronecker products of factors.
    """
    if "oft_blocks" in parts:
        return None
    if "hada_w1_a" in parts:
        if parts["hada_w1_b"].shape[0] ** 2 > _MOST_KHATRI_RAO:
            return None
        left = np.einsum("or,os->ors", parts["hada_w1_a"], parts["hada_w2_a"])
        right = np.einsum("ri,si->rsi", parts["hada_w1_b"], parts["hada_w2_b"])
        return _product_norm(right.reshape(-1, right.shape[-1]), left.reshape(left.shape[0], -1))
    norm = 1.0
    for name in ("lokr_w1", "lokr_w2"):
        norm *= (
            float(np.linalg.norm(parts[name]))
            if name in parts
            else _product_norm(parts[f"{name}_b"].reshape(len(parts[f"{name}_b"]), -1), parts[f"{name}_a"])
        )
    return norm


def _product_norm(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Frobenius norm of B @ A for A (r, i) and B (o, r) without making the (o, i) product."""
    return math.sqrt(max(0.0, float(np.sum((b.T @ b) * (a @ a.T)))))


def values_of(tensor: _Tensor, data: Any) -> np.ndarray[Any, Any] | None:
    """The tensor as float64, or None where numpy has no such type."""
    raw: np.ndarray[Any, Any] = data[tensor.start : tensor.end]
    if tensor.dtype == "BF16":  # numpy lacks bfloat16: it is the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(tensor.shape)
    if tensor.dtype not in _NUMPY_TYPE:
        return None
    values: np.ndarray[Any, Any] = raw.view(_NUMPY_TYPE[tensor.dtype]).astype(np.float64).reshape(tensor.shape)
    return values


def _warnings(
    modules: Sequence[LoraModule], halves: _Halves, names: Sequence[str], family: str | None, declared: float | None
) -> Iterator[str]:
    if single := sorted(halves.down.keys() ^ halves.up.keys()):
        yield f"{_some(single)}: only one of the two halves is there, so it has no effect."
    for problem in dict.fromkeys(module.problem for module in modules if module.problem):
        yield f"{_some([m.name for m in modules if m.problem == problem])}: {problem}."
    zero = [module.name for module in modules if module.norm == 0]
    if zero and len(zero) == len(modules):
        yield "Every module is zero: the file changes nothing. It was probably saved before the first step."
    elif zero := [name for name in zero if not (family == "sdxl" and _is_last_of_clip(name, modules))]:
        yield f"{_some(zero)}: all zero, so untrained."
    if halves.others:
        yield f"Keys that belong to no LoRA half: {_some(halves.others)}; norms leave them out."
    if family == "z_image" and any(name.startswith("lora_unet_") and "attention_to_" in name for name in names):
        yield "ComfyUI does not load this key layout for Z-Image; it needs `diffusion_model.` keys."
    if declared is not None and not halves.alphas and any(module.alpha != module.rank for module in modules):
        yield "Alpha stands only in the metadata, where ComfyUI does not look: its effect differs there."


def no_lora(path: Path, keys: Sequence[str]) -> AdapterError:
    kind = next((kind for part, kind in _OTHER_ADAPTERS.items() if any(part in key for key in keys)), None)
    if kind:
        return AdapterError(
            f"{path} holds a {kind}, not a LoRA",
            "It is of a kind that is not read, or some of its tensors are missing.",
            "LoRA, DoRA, LoKr, LoHa and OFT can be read.",
        )
    if not keys:
        return AdapterError(f"{path} holds no LoRA", "It is empty: there is no tensor in it.", "Give another file.")
    return AdapterError(
        f"{path} holds no LoRA",
        f"None of its {len(keys)} keys names a LoRA half; they look like {_some(list(keys))}.",
        "Give a LoRA file; this may be a whole base model or one of its parts.",
    )


def family_of(metadata: Mapping[str, str], names: Sequence[str]) -> str | None:
    if named := metadata.get("lorapod.family"):
        return named
    architecture = metadata.get("modelspec.architecture", "").partition("/")[0].lower()
    for family, facts in family_facts().items():
        if architecture.startswith(facts.architecture.lower()):
            return family
    plain = "\n".join(_PREFIX.sub("", name) for name in names)
    return next(
        (name for name, facts in family_facts().items() if re.search(facts.lora_keys, plain, re.MULTILINE)), None
    )


def _format(halves: _Halves) -> LoraLayout:
    keys = [*halves.down.values(), *halves.up.values(), *(key for p in halves.parts.values() for key in p.values())]
    if any(key.startswith("diffusion_model.") for key in keys):
        return "comfyui"
    return "kohya" if any(".lora_down." in key or key.startswith("lora_") for key in keys) else "diffusers"


def diffusers_alpha(metadata: Mapping[str, str]) -> float | None:
    """Alpha from the adapter configuration that diffusers keeps as JSON in the metadata."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    found = [v for k, v in config.items() if k.endswith("lora_alpha")] if isinstance(config, dict) else []
    return float(found[0]) if found and isinstance(found[0], int | float) else None


def _plain(name: str) -> str:
    """A layer's name without the prefix of its layout; of a text encoder in diffusers' names, whatever the layout."""
    is_encoders = name.startswith((*kohya.ENCODERS, *(f"{encoder}." for encoder in kohya.ENCODERS.values())))
    return kohya.module_of(name) if is_encoders else _PREFIX.sub("", name)


def _is_last_of_clip(name: str, modules: Sequence[LoraModule]) -> bool:
    """Whether a layer is in the last block of the first text encoder, which SDXL never asks: files have it untrained."""
    numbers = [int(match[2]) for m in modules if (match := _ENCODER.match(m.name)) and match[1] == "text_encoder"]
    return bool(numbers) and name.startswith(f"text_encoder.text_model.encoder.layers.{max(numbers)}.")


def _block_of(module: str) -> str:
    """`layers.0` of `layers.0.attention.to_q` or `layers_0_attention_to_q`; the first part where nothing is counted."""
    if match := _ENCODER.match(module):
        return f"{match[1]}.layers.{match[2]}"
    match = _BLOCK.match(module)
    return f"{match[1]}.{match[2]}" if match else module.partition(".")[0]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
