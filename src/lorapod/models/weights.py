"""Whether weights are what they should be, from the headers of safetensors files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorapod.errors import BaseModelError
from lorapod.models.catalogue import Entry, Layout, Shapes

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SCALES = ("scale_weight", "scale_input", "weight_scale", "input_scale", "scaled_fp8", "comfy_quant")
_MOST_HEADER = 100 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file.

    Attributes:
        dtype: As the header calls it: `BF16`, `F32`, `F8_E4M3`, ...
        start: Offset of its first byte in the file.
        size: Bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by the names that it gives them, from its header.

    Raises:
        BaseModelError: It cannot be read, is not a safetensors file, or is cut off.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise _not_safetensors(path, "its header is not there or is cut off")
            text = file.read(length)
    except OSError as error:
        raise BaseModelError(f"Cannot read {path}", error.strerror or str(error), "Fetch it again.") from error
    try:
        header = json.loads(text)
        tensors = {name: _stored(spec, 8 + length) for name, spec in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _not_safetensors(path, "its header cannot be read") from error
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + length)
    if size != end:
        raise _not_safetensors(path, f"it has {size} bytes in place of {end}")
    return tensors


def _stored(spec: dict[str, Any], base: int) -> StoredTensor:
    start, end = (int(offset) for offset in spec["data_offsets"])
    if not 0 <= start <= end:
        raise ValueError("offsets that go back")
    return StoredTensor(str(spec["dtype"]), tuple(int(n) for n in spec["shape"]), base + start, end - start)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file's tensors, without the prefixes that ComfyUI's files may have.

    Raises:
        BaseModelError: It is not a safetensors file, or it is cut off.
    """
    return {_plain(name): tensor.shape for name, tensor in stored_tensors(path).items()}


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _not_safetensors(path: Path, why: str) -> BaseModelError:
    return BaseModelError(
        f"{path.name} is not a whole safetensors file", f"In {path}: {why}.", "Fetch it again, or use another file."
    )


def check_shapes(entry: Entry, layout: Layout, part: str, paths: Iterable[Path]) -> None:
    """Checks the tensors of a component, all of its files together, against what its family has.

    Raises:
        BaseModelError: They are of another base model, or some are missing.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        found |= tensor_shapes(path)
    for shapes in (s for s in entry.shapes if s.layout is layout and s.part == part):
        _check(entry, part, shapes, found)
    if entry.parameters and part.startswith("transformer") and layout is not Layout.ORIGINAL:
        _check_count(entry, part, found)


def _check(entry: Entry, part: str, shapes: Shapes, found: dict[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{n} is {list(found[n])}, not {list(s)}" for n, s in shapes.tensors.items() if n in found and found[n] != s
    ]
    missing = [f"{n} is missing" for n in shapes.tensors if n not in found]
    extra = [f"{n} should not be there" for n in shapes.absent if n in found]
    if reasons := [*wrong, *missing, *extra]:
        raise BaseModelError(
            f"The {part.replace('_', ' ')} is not one of {entry.title}",
            f"In its weights, {'; '.join(reasons[:3])}.",
            "It is a file of another base model or in another layout; choose the right one, or the right --base.",
        )


def _check_count(entry: Entry, part: str, found: dict[str, tuple[int, ...]]) -> None:
    """An fp8 file has some scales more than the weights, never fewer weights."""
    count = sum(prod(shape) for name, shape in found.items() if not name.endswith(_SCALES))
    assert entry.parameters is not None
    if not 0.995 <= count / entry.parameters <= 1.005:
        raise BaseModelError(
            f"The {part.replace('_', ' ')} is not one of {entry.title}",
            f"It has {count:,} weights; {entry.title} has {entry.parameters:,}.",
            "It is a file of another base model, or some of its files are missing.",
        )
