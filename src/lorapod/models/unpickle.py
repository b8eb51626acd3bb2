"""`python -m lorapod.models.unpickle SOURCE [TARGET]`: a checkpoint to safetensors, in a process of its own.

The only module of this room that imports torch, and nothing imports it. Weights are mapped, not read, and written one
tensor after another, so that a file of any size needs little memory. Tensors that share memory are written each for itself.
The last line of standard output is JSON if it failed.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_NESTS = ("state_dict", "module", "model")
"""Where training checkpoints keep the weights."""


class UnusableError(Exception):
    """What was opened is not a mapping of names to tensors."""


def convert(source: Path, target: Path | None) -> None:
    """Opens `source` and writes its tensors to `target`."""
    import torch

    loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    tensors = _tensors(loaded, torch)
    if target is not None:
        _write(tensors, target, torch)


def _tensors(loaded: Any, torch: Any) -> dict[str, Any]:
    for nest in _NESTS:
        if isinstance(loaded, dict) and isinstance(loaded.get(nest), dict):
            loaded = loaded[nest]
    if not isinstance(loaded, dict) or not loaded:
        raise UnusableError("it does not hold named tensors")
    other = [str(k) for k, v in loaded.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
    if other:
        raise UnusableError(f"{other[0]} in it is not a tensor")
    strange = [str(v.dtype) for v in loaded.values() if _name(v) not in _TYPES]
    if strange:
        raise UnusableError(f"it has tensors of type {strange[0]}")
    return dict(loaded)


def _name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _write(tensors: dict[str, Any], target: Path, torch: Any) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[_name(tensor)], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))


def main() -> None:
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    except (UnusableError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        _fail(str(error).splitlines()[0] if str(error) else type(error).__name__)
    except OSError as error:
        _fail(error.strerror or str(error), error.errno)


def _fail(why: str, errno: int | None = None) -> None:
    sys.stdout.write(json.dumps({"why": why, "errno": errno}) + "\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
