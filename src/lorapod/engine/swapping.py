"""Blocks whose frozen weights wait on the host and are copied to the device when it is their turn.

The host's copies are the only lasting ones, page-locked where a GPU reads them; nothing is ever copied back. While a block
computes, the next one that waits is copied beside it on a stream of its own; a block's copy is let go when it has computed.
What the backward pass still needs of it is held by autograd, so that checkpointing, which computes a block's forward pass
again just before its backward pass, is what makes swapping save memory. The swapped blocks are spread evenly, so that the
blocks between them give the copies time.

Not covered: swapping of activations, and of what is outside the repeated blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lorapod.engine.blocks import blocks_of, swapped_of

Place = tuple[nn.Module, str]
"""A module and the name of one of its parameters."""


class SwappedBlocks:
    """The blocks of a denoiser that are swapped. Their frozen parameters are on the host already.

    Args:
        blocks: In the order in which they compute.
        device: Where they compute.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = list(blocks), device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.places: list[dict[Place, nn.Parameter]] = []
        self.coming: dict[int, tuple[dict[Place, Tensor], Any]] = {}
        self.last = -1
        self.adopt()
        for number, block in enumerate(self.blocks):
            plain = block._compiled_call_impl or block._call_impl
            block._compiled_call_impl = self._around(number, plain)  # what Module.__call__ asks for first

    def adopt(self) -> None:
        """Takes the frozen parameters that the blocks have now as those that wait, moving them to the host."""
        self.places = [{} for _ in self.blocks]
        self.coming.clear()
        for places, block in zip(self.places, self.blocks, strict=True):
            for module in block.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not parameter.requires_grad:
                        parameter.data = on_host(parameter.data, self.device)
                        places[module, name] = parameter

    def _around(self, number: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            with _disable_current_modes():  # selective checkpointing counts what is computed, and copies are not
                values = self._take(number)
            for (module, name), value in values.items():
                # a parameter of its own: autograd may hold it until the backward pass, whatever the block has by then
                module._parameters[name] = nn.Parameter(value, requires_grad=False)
            try:
                return plain(*given, **named)
            finally:
                for (module, name), waiting in self.places[number].items():
                    module._parameters[name] = waiting

        return call

    def _take(self, number: int) -> dict[Place, Tensor]:
        """A block's weights on the device; the next one's are on their way when this returns."""
        if number not in self.coming:
            self.coming = {number: self._fetch(number)}
        values, arrived = self.coming.pop(number)
        if arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrived)
            for value in values.values():
                value.record_stream(current)
        following = number + 1 if number >= self.last else number - 1  # backward passes go the other way
        self.last = number
        if 0 <= following < len(self.blocks) and following not in self.coming:
            self.coming = {following: self._fetch(following)}
        return values

    def _fetch(self, number: int) -> tuple[dict[Place, Tensor], Any]:
        if self.stream is None:
            return {place: parameter.data.clone() for place, parameter in self.places[number].items()}, None
        with torch.cuda.stream(self.stream):
            values = {
                place: parameter.data.to(self.device, non_blocking=True)
                for place, parameter in self.places[number].items()
            }
            return values, self.stream.record_event()


def swap(denoiser: nn.Module, count: int, device: torch.device) -> SwappedBlocks:
    """Makes `count` blocks of a denoiser, that was loaded so, come and go; what wraps their calls already stays inside."""
    blocks = blocks_of(denoiser)
    return SwappedBlocks([blocks[name] for name in swapped_of(list(blocks), count)], device)


def on_host(value: Tensor, device: torch.device) -> Tensor:
    """A tensor in the machine's memory, page-locked where `device` is a GPU."""
    value = value.to("cpu")
    return value.pin_memory() if device.type == "cuda" and not value.is_pinned() else value
