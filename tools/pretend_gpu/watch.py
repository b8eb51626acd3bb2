"""What is done on the GPU that is not there, operation by operation.

waits      where the CPU waits for the GPU: numbers read from it, and copies from memory that is not page-locked
memory     bytes of tensors on the GPU, as its allocator rounds them; what fragmentation costs is not in it
order      streams: what is read or written before the stream that wrote it is waited for, and memory that is given up
           while another stream works on it
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
_ROUNDED = 512
"""Bytes that CUDA's caching allocator gives out multiples of."""

Clock = dict[int, int]
"""How far each stream is known to have come."""


class Stream:
    """A stream with what it has waited for."""

    def __init__(self, device: Any = None) -> None:
        self.clock: Clock = {id(self): 0}

    def now(self) -> int:
        return self.clock[id(self)]

    def record_event(self, event: Event | None = None) -> Event:
        made = event or Event()
        made.clock = dict(self.clock)
        return made

    def wait_event(self, event: Event) -> None:
        for stream, done in event.clock.items():
            self.clock[stream] = max(done, self.clock.get(stream, -1))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Event:
    def __init__(self, *given: Any, **named: Any) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        stream.record_event(self)


@dataclass
class _Memory:
    """One allocation on the GPU: the stream that it is of, who wrote it last and who has read it since."""

    size: int
    owner: Stream
    written: tuple[Stream, int]
    read: dict[Stream, int] = field(default_factory=dict)
    kept: set[Stream] = field(default_factory=set)


class Watch(TorchDispatchMode):
    """Looks on while it is entered, inside the mode that makes tensors without numbers.

    Attributes:
        memory, peak: Bytes of tensors on the GPU now and at the most.
        waits: Where the CPU waits, and how often.
        faults: Mistakes in the order of streams.
        operations: How often each was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.peak = 0
        self.waits: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.stream = self.main = Stream()
        self._held: dict[int, _Memory] = {}
        self._locked: set[int] = set()

    def begin_step(self) -> None:
        """Forgets what waited and the peak so far."""
        self.waits.clear()
        self.peak = self.memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        named = dict(kwargs or {})
        given = [value for value in tree_leaves((args, named)) if isinstance(value, Tensor)]
        before = {value.untyped_storage()._cdata for value in given if value.device == GPU}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(given[0], FakeTensor):
            if before:
                self.waits[f"a number is read: {_where()}"] += 1
            return _made_up(given[0].dtype)
        try:
            out = func(*args, **named)
        except Exception as error:
            error.add_note(f"at {_where()}")
            raise
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        self.operations[str(func)] += 1
        if func.namespace != "prim":  # asks a tensor what it is
            self._look_at_copies(func, args, given, made, named)
            self._look_at_streams(func, args, made, before)
        return out

    def _look_at_copies(
        self, func: Any, args: Any, given: Sequence[Tensor], made: Sequence[Tensor], named: dict[str, Any]
    ) -> None:
        beside = named.get("non_blocking", False)
        if func is torch.ops.aten.copy_.default:
            to, source, beside = given[0], given[1], args[2] if len(args) > 2 else beside
        elif func is torch.ops.aten._to_copy.default:
            to, source = made[0], given[0]
        else:
            return
        if to.device == source.device or to.device.type == "meta" or source.device.type == "meta":
            return
        on_host = source if source.device.type == "cpu" else to
        locked = on_host.untyped_storage()._cdata in self._locked
        if not beside or not locked:
            why = "waits" if not beside else "memory that is not page-locked"
            self.waits[f"{source.device.type} to {to.device.type} {tuple(to.shape)}, {why}: {_where()}"] += 1

    def _look_at_streams(self, func: Any, args: Any, made: Sequence[Tensor], before: set[int]) -> None:
        stream = self.stream
        stream.clock[id(stream)] += 1
        written = set()
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written |= {each.untyped_storage()._cdata for each in tree_leaves(value) if isinstance(each, Tensor)}
        views = func._schema.name.startswith("aten::") and func.is_view
        for key in before:
            memory = self._held.get(key)
            if memory is None or views:
                continue
            self._after(stream, memory.written, func)
            if key in written:
                for reader, when in memory.read.items():
                    self._after(stream, (reader, when), func)
                memory.written, memory.read = (stream, stream.now()), {}
            else:
                memory.read[stream] = stream.now()
        for value in made:
            if value.device == GPU:
                self._take(value, stream)

    def _after(self, stream: Stream, what: tuple[Stream, int], func: Any) -> None:
        other, when = what
        if stream.clock.get(id(other), -1) < when:
            self.faults[f"{func} does not wait for another stream: {_where()}"] += 1

    def _take(self, value: Tensor, stream: Stream) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        size = -(-storage.nbytes() // _ROUNDED) * _ROUNDED
        self._held[key] = _Memory(size, stream, (stream, stream.now()))
        self.memory += size
        self.peak = max(self.peak, self.memory)
        weakref.finalize(storage, self._give_up, key)

    def _give_up(self, key: int) -> None:
        memory = self._held.pop(key)
        self.memory -= memory.size
        for stream, when in [memory.written, *memory.read.items()]:
            if stream not in memory.kept and memory.owner.clock.get(id(stream), -1) < when:
                self.faults["memory is given up while another stream works on it"] += 1

    @contextlib.contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """Inside the block it is `stream` that works."""
        before, self.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self.stream = before

    def lock(self, value: Tensor) -> Tensor:
        """A copy of a tensor in page-locked memory."""
        made = value.detach().clone()
        self._locked.add(made.untyped_storage()._cdata)
        self._kept_alive.append(made)
        return made

    @property
    def _kept_alive(self) -> list[Tensor]:
        """Page-locked tensors, so that no other gets the place of one in memory."""
        return self.__dict__.setdefault("_alive", [])

    def is_locked(self, value: Tensor) -> bool:
        return value.untyped_storage()._cdata in self._locked

    def keep(self, value: Tensor, stream: Stream) -> None:
        """`Tensor.record_stream`."""
        if memory := self._held.get(value.untyped_storage()._cdata):
            memory.kept.add(stream)


@contextlib.contextmanager
def pretending() -> Iterator[Watch]:
    """Inside the block tensors have no numbers, those on `cuda` are on a GPU, and what is done on it is watched."""
    watch, numberless = Watch(), FakeTensorMode(allow_non_fake_inputs=True)

    @contextlib.contextmanager
    def others_off() -> Iterator[None]:
        with _disable_current_modes(), numberless, watch:
            yield

    calls: dict[str, Any] = {
        "lorapod.engine.streaming._disable_current_modes": others_off,
        "torch.cuda.Stream": Stream,
        "torch.cuda.Event": Event,
        "torch.cuda.stream": watch.on,
        "torch.cuda.current_stream": lambda device=None: watch.stream,
        "torch.cuda.is_bf16_supported": lambda *given, **named: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.Tensor.pin_memory": watch.lock,
        "torch.Tensor.is_pinned": watch.is_locked,
        "torch.Tensor.record_stream": watch.keep,
        "torch.nn.Module._apply": _apply,
        "torch.nn.functional.scaled_dot_product_attention": _attention,
    }
    with contextlib.ExitStack() as stack:
        for name, call in calls.items():
            stack.enter_context(mock.patch(name, _method(call) if name.startswith("torch.Tensor") else call))
        stack.enter_context(mock.patch.object(FakeTensor, "data", property(_data, _put_data), create=True))
        stack.enter_context(numberless)
        stack.enter_context(watch)
        yield watch


def _method(call: Any) -> Any:
    return lambda self, *given, **named: call(self, *given, **named)


def _data(self: FakeTensor) -> Tensor:
    return torch.Tensor.data.__get__(self)


def _put_data(self: FakeTensor, value: FakeTensor) -> None:
    """What `tensor.data = value` does, which may be on another device."""
    torch.Tensor.data.__set__(self, value)
    self.fake_device = value.fake_device


def _apply(self: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """What `Module.to` does, for tensors that cannot be exchanged in place."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    value = change(parameter)
                if value is not parameter:
                    module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    return self


_plain_attention = torch.nn.functional.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernels that a GPU takes, which a CPU build would not choose."""
    if query.device != GPU:
        return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    assert not enable_gqa
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
    if attn_mask is None and query.dtype is not torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _made_up(dtype: torch.dtype) -> float | bool:
    """What is read where there are no numbers."""
    return True if dtype is torch.bool else 0.5 if dtype.is_floating_point else 1


def _where() -> str:
    """The nearest line of the engine, or of a model."""
    lines = [
        line for line in traceback.extract_stack() if "/lorapod/" in line.filename or "/diffusers/" in line.filename
    ]
    if not lines:
        return "somewhere"
    return f"{'/'.join(lines[-1].filename.split('/')[-3:])}:{lines[-1].lineno} {lines[-1].line}"
