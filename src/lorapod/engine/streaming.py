"""Blocks whose frozen weights are elsewhere until it is their turn, and are fetched to the device beside the arithmetic.

    on the host    as they are, page-locked where a GPU reads them; nothing is ever copied back
    in shards      each of n ranks has one nth of the bytes of every block, and all ranks put a block together at the same
                   time, so that they must come to the same blocks in the same order (`Ranks.in_step`)

While a block computes, the next one that waits is fetched; what was fetched is let go when the block has computed. What
the backward pass still needs of it is held by autograd, so that checkpointing, which computes a block's forward pass again
just before its backward pass, is what makes either save memory. Blocks that wait on the host are spread evenly, so that
those between them give the copies time. Frozen weights have no gradients and never change, which is why this is less than
what FSDP does for models that are trained whole.

Not covered: activations, what is outside the repeated blocks, and both kinds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lorapod.engine.blocks import Keeping, blocks_of
from lorapod.engine.ranks import Ranks

Place = tuple[nn.Module, str]
"""A module and the name of one of its parameters."""

Places = dict[Place, nn.Parameter]
"""The frozen parameters of a block."""

_ALIGNED = 16
"""Bytes that each weight begins at a multiple of: what any type of weight may be read at."""


class Source(Protocol):
    """Where the weights of blocks wait."""

    def keep(self, blocks: Sequence[Places]) -> None:
        """Takes the weights that the blocks' parameters hold now, wherever they are."""

    def fetch(self, number: int) -> tuple[dict[Place, Tensor], Any]:
        """Begins to bring a block's weights to the device; with them comes what `arrive` waits for."""

    def arrive(self, values: dict[Place, Tensor], coming: Any) -> None:
        """Makes what is computed next wait until they are there; they may not be let go of before."""

    def let_go(self) -> None:
        """Frees what is held beside the parameters themselves."""


class OnHost:
    """Weights that wait in the machine's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.blocks: Sequence[Places] = []

    def keep(self, blocks: Sequence[Places]) -> None:
        self.blocks = blocks
        for places in blocks:
            for parameter in places.values():
                parameter.data = on_host(parameter.data, self.device)

    def fetch(self, number: int) -> tuple[dict[Place, Tensor], Any]:
        places = self.blocks[number]
        if self.stream is None:
            return {place: parameter.data.clone() for place, parameter in places.items()}, None
        # Their memory is of the stream that computes, which takes that of earlier blocks again in its own order: were it
        # of the other one, the CPU, which is ahead of both, would find none of it free yet and take ever more.
        values = {place: torch.empty_like(each.data, device=self.device) for place, each in places.items()}
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for place, value in values.items():
                value.copy_(places[place].data, non_blocking=True)
            return values, self.stream.record_event()

    def arrive(self, values: dict[Place, Tensor], coming: Any) -> None:
        if coming is not None:
            torch.cuda.current_stream(self.device).wait_event(coming)

    def let_go(self) -> None:
        pass


class InShards:
    """Weights that are dealt out over the ranks, byte by byte, whatever their types."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.device, self.ranks = device, ranks
        self.layouts: list[dict[Place, tuple[int, torch.dtype, torch.Size]]] = []
        self.mine: list[Tensor] = []

    def keep(self, blocks: Sequence[Places]) -> None:
        self.layouts, self.mine = [], []
        for places in blocks:
            layout: dict[Place, tuple[int, torch.dtype, torch.Size]] = {}
            end = 0
            for place, parameter in places.items():
                layout[place] = (end, parameter.dtype, parameter.shape)
                end += -(-parameter.nbytes // _ALIGNED) * _ALIGNED
            part = -(-end // (_ALIGNED * self.ranks.count)) * _ALIGNED
            whole = torch.zeros(part * self.ranks.count, dtype=torch.uint8)
            for place, parameter in places.items():
                start = layout[place][0]
                whole[start : start + parameter.nbytes] = parameter.data.cpu().contiguous().view(-1).view(torch.uint8)
                parameter.data = _stand_in(parameter.data, self.device)
            self.layouts.append(layout)
            first = part * self.ranks.rank
            self.mine.append(whole[first : first + part].to(self.device, copy=True))

    def fetch(self, number: int) -> tuple[dict[Place, Tensor], Any]:
        whole, coming = self.ranks.gather(self.mine[number], number)
        values = {}
        for place, (start, dtype, shape) in self.layouts[number].items():
            size = prod(shape) * dtype.itemsize
            values[place] = whole[start : start + size].view(dtype).view(shape)
        return values, coming

    def arrive(self, values: dict[Place, Tensor], coming: Any) -> None:
        if coming is not None:
            coming.wait()

    def let_go(self) -> None:
        self.mine = []


class StreamedBlocks:
    """Blocks of a denoiser that wait at a source.

    Args:
        blocks: In the order in which they compute.
    """

    def __init__(self, blocks: Sequence[nn.Module], source: Source) -> None:
        self.blocks, self.source = list(blocks), source
        self.places: list[Places] = []
        self.coming: dict[int, tuple[dict[Place, Tensor], Any]] = {}
        self.last = -1
        self.adopt()
        for number, block in enumerate(self.blocks):
            plain = block._compiled_call_impl or block._call_impl
            block._compiled_call_impl = self._around(number, plain)  # what Module.__call__ asks for first

    def adopt(self) -> None:
        """Takes the frozen parameters that the blocks have now as those that wait."""
        self.places = [{} for _ in self.blocks]
        self.rest()
        for places, block in zip(self.places, self.blocks, strict=True):
            for module in block.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not parameter.requires_grad:
                        places[module, name] = parameter
        self.source.keep(self.places)

    def rest(self) -> None:
        """Frees what was fetched and not taken: the block before the first one that a backward pass reached."""
        for values, coming in self.coming.values():
            self.source.arrive(values, coming)
        self.coming.clear()
        self.last = -1

    def let_go(self) -> None:
        """Frees what waits beside the parameters, until there is something to adopt."""
        self.rest()
        self.source.let_go()

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
            self.coming = {number: self.source.fetch(number)}
        values, coming = self.coming.pop(number)
        self.source.arrive(values, coming)
        following = number + 1 if number >= self.last else number - 1  # backward passes go the other way
        self.last = number
        if 0 <= following < len(self.blocks) and following not in self.coming:
            self.coming = {following: self.source.fetch(following)}
        return values


def stream(
    denoiser: nn.Module, keeping: Keeping, device: torch.device, ranks: Ranks | None = None
) -> StreamedBlocks | None:
    """Makes the blocks that wait, of a denoiser that was loaded so, come and go; None where none do.

    What wraps the blocks' calls already stays inside.
    """
    blocks = blocks_of(denoiser)
    waiting = [blocks[name] for name in keeping.waiting(list(blocks))]
    if not waiting:
        return None
    return StreamedBlocks(waiting, InShards(device, ranks or Ranks()) if keeping.shards > 1 else OnHost(device))


def on_host(value: Tensor, device: torch.device) -> Tensor:
    """A tensor in the machine's memory, page-locked where `device` is a GPU."""
    value = value.to("cpu")
    return value.pin_memory() if device.type == "cuda" and not value.is_pinned() else value


def _stand_in(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of that shape and type that takes no memory; NaN where the type has it, so that no use goes unseen."""
    filling = float("nan") if value.is_floating_point() else 0
    return torch.full((1,), filling, device=device).to(value.dtype).expand(value.shape)
