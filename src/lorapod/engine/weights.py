"""A component's weights: from safetensors files straight into a model, on its device and in its type.

A model is built without memory (`empty`), then each of its tensors is read from where it lies: in one file or in several,
under diffusers' name or under that of the original checkpoint, whole or as rows of a fused one, as it is or as fp8 with a
scale. Nothing else is held than the model and one piece of `PIECE_BYTES` a reader. Files are read, not mapped: on a
network volume a mapped file is fetched page by page, and one that changes while it is used kills the process.

fp8 as ComfyUI stores it is covered, in both of its notations (`scale_weight` with `scaled_fp8`; `weight_scale` with
`comfy_quant`), with a scale for the tensor or for each row; what was rounded to fp8 is as it was trained on, so the model
then differs from the bf16 one by that. Not covered: nvfp4, mxfp8, int8 and GGUF, which are refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from lorapod.engine.blocks import FULLY, Keeping, blocks_of
from lorapod.engine.quantised import Codes, QuantisedLinear, may_be_quantised, quantise
from lorapod.errors import BaseModelError
from lorapod.models import BaseModel
from lorapod.models.weights import StoredTensor, stored_tensors
from lorapod.recipe.choices import Quantization

PIECE_BYTES = 16 << 20
READERS = 4
"""Threads that read at once; a network volume gives one of them 150 to 400 MB a second, several of them more."""

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_SCALES = ("scale_weight", "weight_scale")
_OF_SCALES = (*_SCALES, "scale_input", "input_scale", "scaled_fp8", "comfy_quant")
_UNUSED = ("inv_freq", "position_ids", "num_batches_tracked")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Rows:
    """Where a tensor lies in a file: all of the tensor `name`, or some of its rows.

    Attributes:
        runs: Which of `parts` equal runs of its rows, in the order in which they are wanted.
        transposed: Whether the file has rows and columns the other way round; for small tensors.
    """

    name: str
    runs: tuple[int, ...] = (0,)
    parts: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Naming:
    """How files other than diffusers' name the tensors of a component.

    Attributes:
        of: From diffusers' name to the place in such a file.
        prefixes: What all names of such a file may begin with.
        unused: Beginnings of names of tensors that no computation of diffusers uses.
    """

    of: Callable[[str], Rows] = Rows
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@contextmanager
def empty() -> Iterator[None]:
    """Inside the block models are built without memory for their parameters; buffers are computed as usual."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


@dataclass(frozen=True)
class _Place:
    """A tensor of a file, and which of its rows."""

    file: int
    stored: StoredTensor
    rows: Rows
    scale: tuple[int, StoredTensor] | None

    @property
    def order(self) -> tuple[int, int, int]:
        return self.file, self.stored.start, self.rows.runs[0]


class StoredWeights:
    """The weights of a component in its files. Opens them; use it in a `with` block.

    Args:
        files: One file, or the parts of a component.
        what: What it is for a person, as in `transformer of Z-Image`.

    Raises:
        BaseModelError: There is no file, or one is not a whole safetensors file.
    """

    def __init__(self, files: Sequence[Path], what: str, naming: Naming | None = None) -> None:
        self.files, self.what, self.naming = list(files), what, naming or Naming()
        if not self.files:
            raise BaseModelError(f"There are no weights for the {what}", "", "Fetch the base model again.")
        self.tensors = {name: (i, t) for i, path in enumerate(self.files) for name, t in stored_tensors(path).items()}

    def __enter__(self) -> Self:
        self._open = ExitStack()
        self._handles = [self._open.enter_context(path.open("rb", buffering=0)).fileno() for path in self.files]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def load_into(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        keeping: Keeping = FULLY,
    ) -> None:
        """Gives a model that was built in `empty` its weights, frozen, in evaluation mode.

        Args:
            dtype: Of the floating-point weights; those that the model's class keeps in float32 stay in it.
            keeping: How its blocks are held. Each layer is quantised as it is read, and those that wait on the host are
                never on the device, so that the whole is never there.

        Raises:
            BaseModelError: The files lack a tensor, hold one of another shape or one that the model has no use for, or
                are quantised in a way that is not covered.
        """
        wanted: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
        places = self._places(model, wanted)
        exact = kept_exact(model, dtype)
        types = {
            name: _type_of(tensor, torch.float32 if exact.intersection(name.split(".")) else dtype)
            for name, tensor in wanted.items()
        }
        names = sorted(places, key=lambda name: places[name].order)
        pieces = _Pieces(device)
        in_few_bits = set() if keeping.quantize is Quantization.NONE else _to_quantise(model, exact)
        waiting = tuple(f"{name}." for name in keeping.waiting(list(blocks_of(model))))

        def read(name: str) -> Tensor | Codes:
            on_host = name.startswith(waiting)
            if name in in_few_bits:
                codes = quantise(
                    self._read(places[name], wanted[name].shape, device, types[name], pieces), keeping.quantize
                )
                return codes.to(torch.device("cpu")) if on_host else codes
            where = torch.device("cpu") if on_host else device
            return self._read(places[name], wanted[name].shape, where, types[name], pieces)

        with ThreadPoolExecutor(READERS, thread_name_prefix="lorapod-weights") as pool:
            jobs = {name: pool.submit(read, name) for name in names}
            try:
                found = {name: job.result() for name, job in jobs.items()}
            except BaseException:
                for job in jobs.values():
                    job.cancel()
                raise
        found |= _aliases(wanted, found)
        for name in in_few_bits:
            _put_quantised(model, name.removesuffix(".weight"), found, keeping.quantize, dtype)
        model.load_state_dict(found, strict=True, assign=True)
        _move_buffers(model, device)  # those that are in no file
        model.eval().requires_grad_(False)

    def read(self, name: str, like: Tensor) -> Tensor:
        """One tensor by diffusers' name, of the shape, type and device of `like`.

        Raises:
            BaseModelError: It is not there, or has another shape.
        """
        place = self._place(name, self._prefix([name]))
        if place is None or not _fits(place, like.shape):
            raise BaseModelError(f"The {self._called()} has no {name} of that shape", "", "Fetch the base model again.")
        return self._read(place, like.shape, like.device, like.dtype, _Pieces(like.device))

    def _called(self) -> str:
        return f"{self.what} in {self.files[0].name if len(self.files) == 1 else self.files[0].parent}"

    def _prefix(self, names: Sequence[str]) -> str:
        """What the names of these files begin with: of those that may be, what most of the wanted names are found with."""
        found = {p: sum(self._place(n, p) is not None for n in names) for p in ("", *self.naming.prefixes)}
        return max(found, key=lambda prefix: found[prefix])

    def _place(self, name: str, prefix: str) -> _Place | None:
        for rows in dict.fromkeys((Rows(name), self.naming.of(name))):
            if found := self.tensors.get(prefix + rows.name):
                base = prefix + rows.name.removesuffix("weight")
                scale = next((s for kind in _SCALES if (s := self.tensors.get(base + kind))), None)
                return _Place(*found, rows, scale if rows.name.endswith("weight") else None)
        return None

    def _places(self, model: nn.Module, wanted: dict[str, Tensor]) -> dict[str, _Place]:
        prefix = self._prefix(list(wanted))
        found = {name: place for name in wanted if (place := self._place(name, prefix))}
        tied = _ties(wanted)
        missing = [n for n in wanted if n not in found and not any(other in found for other in tied[id(wanted[n])])]
        shapes = [
            f"{prefix}{p.rows.name} is {list(p.stored.shape)}, which does not give {list(wanted[n].shape)} for {n}"
            for n, p in found.items()
            if not _fits(p, wanted[n].shape)
        ]
        used = {prefix + place.rows.name for place in found.values()}
        over = [n for n in self.tensors if n not in used and n.startswith(prefix) and self._counts(n[len(prefix) :])]
        reasons = []
        if missing:
            reasons.append(f"{len(missing)} of {len(wanted)} tensors are missing, as {_some(missing)}")
        if shapes:
            reasons.append("; ".join(shapes[:_MOST_NAMED]))
        if over:
            reasons.append(f"{len(over)} tensors are there that it has no use for, as {_some(over)}")
        if reasons:
            raise BaseModelError(
                f"{self.files[0]} is not the {self.what}"
                if len(self.files) == 1
                else f"The {self._called()} is not whole",
                f"For a {type(model).__name__} with the configuration of this base model " + "; ".join(reasons) + ".",
                "It is of another base model, of another part, or cut down; choose the right file, or fetch it again.",
            )
        self._refuse_other_quantisation(found)
        return found

    def _counts(self, name: str) -> bool:
        last = name.rpartition(".")[2]
        return last not in (*_OF_SCALES, *_UNUSED) and not name.startswith(self.naming.unused)

    def _refuse_other_quantisation(self, places: dict[str, _Place]) -> None:
        for place in places.values():
            stored, scale = place.stored, place.scale
            whole = _TYPES.get(stored.dtype)
            scales = prod(scale[1].shape) if scale else 1
            if whole is None or (not whole.is_floating_point and scale) or scales not in (1, *stored.shape[:1]):
                raise BaseModelError(
                    f"The {self._called()} is quantised in a way that lorapod does not read",
                    f"{place.rows.name} is {stored.dtype} {list(stored.shape)} with {scales} scales.",
                    "Use the bf16 file of the same model, or the one whose name says fp8_scaled.",
                )

    def _read(
        self, place: _Place, shape: torch.Size, device: torch.device, dtype: torch.dtype, pieces: _Pieces
    ) -> Tensor:
        """One tensor, run after run of its rows."""
        if place.rows.transposed:
            plain = replace(place, rows=Rows(place.rows.name))
            return self._read(plain, shape[::-1], device, dtype, pieces).T.contiguous()
        value = torch.empty(shape, dtype=dtype, device=device)
        flat = value.view(shape[0] if shape else 1, -1) if value.numel() else value.view(0, 1)  # (rows, width)
        count = len(flat) // len(place.rows.runs)
        for index, run in enumerate(place.rows.runs):
            self._read_rows(place, run * count, flat[index * count : (index + 1) * count], pieces)
        return value

    def _read_rows(self, place: _Place, first: int, flat: Tensor, pieces: _Pieces) -> None:
        """Rows of a stored tensor from `first` on into `flat` (rows, width), in pieces where they are converted or moved."""
        device, stored_type = flat.device, _TYPES[place.stored.dtype]
        bytes_a_row = flat.shape[1] * stored_type.itemsize
        handle, start = self._handles[place.file], place.stored.start + first * bytes_a_row
        scales = self._scales(place, first, len(flat))
        if device.type == "cpu" and stored_type is flat.dtype and scales is None:
            self._fill(place, handle, start, flat)
            return
        step = max(1, PIECE_BYTES // max(1, bytes_a_row))
        for row in range(0, len(flat), step):
            rows = min(step, len(flat) - row)
            piece = pieces.take(rows, flat.shape[1], stored_type)
            self._fill(place, handle, start + row * bytes_a_row, piece)
            if stored_type.itemsize == 1 and device.type == "mps":
                piece = piece.float()  # that device has no fp8
            if scales is not None:
                piece = _scaled(piece, scales if len(scales) == 1 else scales[row : row + rows], device)
            flat[row : row + rows].copy_(piece)

    def _scales(self, place: _Place, first: int, count: int) -> Tensor | None:
        """The scale of a tensor, (1,), or those of its rows, (rows,), in float32."""
        if place.scale is None:
            return None
        file, stored = place.scale
        raw = torch.empty(prod(stored.shape), dtype=_TYPES[stored.dtype])
        self._fill(_Place(file, stored, Rows(""), None), self._handles[file], stored.start, raw)
        return raw.float() if raw.numel() == 1 else raw.float()[first : first + count]

    def _fill(self, place: _Place, handle: int, start: int, into: Tensor) -> None:
        """Reads the bytes of a contiguous tensor on the CPU."""
        if not into.numel():
            return
        view = memoryview(into.view(-1).view(torch.uint8).numpy())
        done = 0
        while done < len(view):
            try:
                got = os.preadv(handle, [view[done : done + PIECE_BYTES]], start + done)
            except OSError as error:
                raise self._unreadable(place, error.strerror or str(error)) from error
            if not got:
                raise self._unreadable(place, "it became shorter while it was read")
            done += got

    def _unreadable(self, place: _Place, why: str) -> BaseModelError:
        return BaseModelError(
            f"Cannot read {self.files[place.file]}", f"{why[:1].upper()}{why[1:]}.", "Check the disk or fetch it again."
        )


def load_diffusers(
    kind: Any,
    base: BaseModel,
    component: str,
    device: torch.device,
    dtype: torch.dtype,
    naming: Naming | Callable[[Mapping[str, Any]], Naming] | None = None,
    keeping: Keeping = FULLY,
) -> nn.Module:
    """A component of diffusers' class `kind`, frozen, with the configuration in the base model's folder.

    Args:
        naming: Names in single files, or what gives them for a configuration.

    Raises:
        BaseModelError: Its weights cannot be read or are not of that configuration.
    """
    config = kind.load_config(base.folder / component, local_files_only=True)
    with empty():
        model = kind.from_config(config)
    with stored_weights(base, component, naming(config) if callable(naming) else naming) as weights:
        weights.load_into(model, device, dtype, keeping)
    return model


def load_transformers(
    kind: Any, base: BaseModel, component: str, device: torch.device, dtype: torch.dtype, naming: Naming | None = None
) -> nn.Module:
    """As `load_diffusers`, for a class of transformers or one of its `Auto` classes."""
    from transformers import AutoConfig

    of = getattr(kind, "config_class", None) or AutoConfig
    config = of.from_pretrained(base.folder / component, local_files_only=True)
    with empty():
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    model.tie_weights()  # what is one tensor under two names became two in `empty`
    with stored_weights(base, component, naming) as weights:
        weights.load_into(model, device, dtype)
    model.tie_weights()
    return model


def stored_weights(base: BaseModel, component: str, naming: Naming | None = None) -> StoredWeights:
    """The weights of a base model's component, wherever they are.

    Raises:
        BaseModelError: A file is not whole.
    """
    return StoredWeights(base.weights(component), f"{component.replace('_', ' ')} of {base.name}", naming)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _to_quantise(model: nn.Module, exact: set[str]) -> set[str]:
    """Names of the weights that are held in few bits."""
    found = set()
    for block, module in blocks_of(model).items():
        for name, layer in module.named_modules(prefix=block):
            if may_be_quantised(layer) and not exact.intersection(name.split(".")):
                found.add(f"{name}.weight")
    return found


def _put_quantised(
    model: nn.Module, name: str, found: dict[str, Any], quantize: Quantization, dtype: torch.dtype
) -> None:
    """Puts a quantised layer where the linear one of that name is, and its tensors by name into `found`."""
    codes: Codes = found.pop(f"{name}.weight")
    layer = QuantisedLinear(codes, found.get(f"{name}.bias"), quantize, dtype)
    found |= {f"{name}.values": codes.values, f"{name}.scales": codes.scales}
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


class _Pieces:
    """Memory that pieces pass through on their way, one run of it a thread; pinned where a GPU reads it."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.mine = threading.local()

    def take(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Memory for a piece, (rows, width); what was taken before is overwritten."""
        size = rows * width * dtype.itemsize
        held: Tensor | None = getattr(self.mine, "held", None)
        if held is None or len(held) < size:
            held = torch.empty(max(size, PIECE_BYTES), dtype=torch.uint8, pin_memory=self.pinned)
            self.mine.held = held
        return held[:size].view(dtype).view(rows, width)


def _scaled(piece: Tensor, scales: Tensor, device: torch.device) -> Tensor:
    """A piece (rows, width) times its scale or those of its rows, in float32; on the CPU for devices without fp8."""
    at = device if device.type == "cuda" else torch.device("cpu")
    return piece.to(at).float() * scales.to(at)[:, None]


def kept_exact(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of names whose weights the model's class keeps in float32 whatever is asked for.

    transformers means by the list without `strict` those that overflow in float16 alone.
    """
    from transformers import PreTrainedModel

    kind = "_keep_in_fp32_modules"
    if isinstance(model, PreTrainedModel) and dtype is not torch.float16:
        kind += "_strict"
    return set(getattr(model, kind, None) or ())


def _type_of(tensor: Tensor, wanted: torch.dtype) -> torch.dtype:
    return wanted if tensor.is_floating_point() else tensor.dtype


def _ties(wanted: dict[str, Tensor]) -> dict[int, list[str]]:
    """Names by the tensor that they are of: a model may have one under several."""
    names: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        names.setdefault(id(tensor), []).append(name)
    return names


def _aliases(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was read under another name of the same tensor."""
    tied = _ties(wanted)
    return {
        name: next(found[other] for other in tied[id(tensor)] if other in found)
        for name, tensor in wanted.items()
        if name not in found
    }


def _fits(place: _Place, shape: torch.Size) -> bool:
    """Whether the stored rows give that shape; a 1 x 1 convolution is a linear layer."""
    stored, rows = list(place.stored.shape), place.rows
    if rows.transposed:
        stored = stored[::-1]
    if stored and rows.parts > 1:
        if stored[0] % rows.parts:
            return False
        stored[0] = stored[0] // rows.parts * len(rows.runs)
    plain = [n for n in stored[2:] if n != 1] == [] and stored[:2] == list(shape)
    return stored == list(shape) or plain


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED])
