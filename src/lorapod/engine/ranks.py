"""Several processes of one training, a GPU each: what they share, and how the batches of a step are split among them.

Every process ("rank") has the whole base model and the same adapter. A step has the same batches with the same noise as with
one process; each rank computes its part of them, and one sum over all ranks of one flat tensor (gradients, losses, whether
somebody asked to stop) makes the step whole. So the number of ranks changes the rounding of sums and the masks of adapter
dropout, and nothing else; a checkpoint can be continued with any number. Rank 0 alone speaks, draws and writes.

Where the base model is held in shards (`engine.streaming`), every pass through it needs all ranks: they are `in_step`, which
means that each makes the same passes in the same order, some of them for the others' sake alone.

`engine.launch` starts the ranks; those that torchrun started are taken as well. Not covered: several machines.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lorapod.engine.batches import Batch
from lorapod.engine.status import RANKS_STORE, rank_and_count
from lorapod.errors import LostRankError, TrainingError

T = TypeVar("T")

_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""Newer versions of torch call it so."""

_PATIENCE = timedelta(days=7)
"""Ranks wait for each other as long as rank 0 draws; who waits for a dead one is ended by the launcher."""

_ORDER = 0xFFFF
"""Bits that are compared of the order in which shards were gathered: their sum over ranks is exact in float32."""

_LAG = 2
"""Steps after which a GPU's answer is read whether to stop: by then it is there, and nothing waits for it."""


@dataclass
class Ranks:
    """This process among those of a training.

    Attributes:
        in_step: Whether all make the same passes through the base model, since each holds a shard of it.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False
    _answers: deque[tuple[Tensor, Any, int]] = field(default_factory=deque)
    _gathered: int = 0

    @property
    def speaks(self) -> bool:
        """Whether this one prints, draws and writes."""
        return self.rank == 0

    @classmethod
    def joined(cls) -> Ranks:
        """Joins the others, if the environment says that there are any."""
        rank, count = rank_and_count()
        if count == 1:
            return cls()
        store = os.environ.get(RANKS_STORE)
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"file://{store}" if store else "env://",
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
        )
        return cls(rank, count)

    def mine(self, values: Sequence[T]) -> list[T]:
        """This rank's part of what is done once for all; the parts of all ranks are the whole."""
        return [value for place, value in enumerate(values) if place % self.count == self.rank]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Inside the block rank 0 goes first, so that the others find what it left on disk."""
        if not self.speaks:
            self.wait()
        yield
        if self.speaks:
            self.wait()

    @contextmanager
    def by_turns(self) -> Iterator[None]:
        """Inside the block they are one after the other, so that what it takes of the machine's memory is taken once."""
        for turn in range(self.count):
            if turn == self.rank:
                yield
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            self._together(torch.zeros(1), distributed.ReduceOp.SUM)

    def any(self, value: bool) -> bool:
        """Whether any of them says so; all of them learn the same, and wait for each other."""
        return value if self.count == 1 else bool(self.summed(torch.tensor(float(value))).item())

    def least(self, value: float) -> float:
        """The least of what the ranks give."""
        return float(self._together(torch.tensor([value], dtype=torch.float64), distributed.ReduceOp.MIN)[0])

    def summed(self, values: Tensor) -> Tensor:
        """Values of all ranks added up place by place, on their device."""
        return self._together(values, distributed.ReduceOp.SUM)

    def _together(self, values: Tensor, operation: Any) -> Tensor:
        if self.count == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        shared = values.to(device)
        try:
            distributed.all_reduce(shared, operation)
        except RuntimeError as error:
            raise LostRankError("Another process of this training is gone", str(error)) from error
        return shared.to(values.device)

    def gather(self, part: Tensor, name: int) -> tuple[Tensor, Any]:
        """The parts of all ranks one behind the other, (count * n,) for parts (n,), and what to wait for until they are
        there; None where they are.

        Args:
            name: Of what is gathered. Ranks that gather different things at a time end with an error at the next step.
        """
        self._gathered = zlib.crc32(name.to_bytes(4, "big"), self._gathered)
        whole = torch.empty(self.count * len(part), dtype=part.dtype, device=part.device)
        beside = part.device.type == "cuda"
        try:
            coming = _all_gather(whole, part, async_op=beside)
        except RuntimeError as error:
            raise LostRankError("Another process of this training is gone", str(error)) from error
        return whole, coming

    def dealt(self, values: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This rank's part of `values`, each with whether it counts; ranks in step all get as many, if there are any."""
        yield from ((value, True) for value in self.mine(values))
        if self.in_step and len(values) % self.count and self.rank >= len(values) % self.count:
            yield values[0], False

    def passes_left(self, sizes: Sequence[int]) -> int:
        """Batches that this rank computes for the others' sake at the end of a step whose batches have so many items."""
        if not self.in_step:
            return 0
        small = [number % self.count for number, size in enumerate(sizes) if size < self.count]
        dealt = [small.count(rank) for rank in range(self.count)]
        return max(dealt) - dealt[self.rank]

    def part_of(self, batch: Batch, number: int) -> tuple[Batch | None, float]:
        """What this rank computes of batch `number` of a step, and its share of it.

        Batches that have an item for each rank are split, so that all ranks compute on one shape at a time; smaller ones
        are dealt out whole.
        """
        if self.count == 1:
            return batch, 1.0
        size = len(batch.items)
        if size < self.count:
            return (batch, 1.0) if number % self.count == self.rank else (None, 0.0)
        places = self.mine(range(size))
        return batch.part(places), len(places) / size

    def combine(self, parameters: Sequence[nn.Parameter], losses: list[Tensor], stop: bool) -> list[Tensor]:
        """Makes gradients and losses those of the whole step, and passes on whether somebody asked to stop."""
        if self.count == 1:
            return losses
        device = parameters[0].device
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        order = self._gathered & _ORDER
        said = [torch.full((), float(value), dtype=losses[0].dtype, device=device) for value in (stop, order)]
        ends = torch.stack([*losses, *said])
        flat = self.summed(torch.cat([*(part.flatten() for part in parts), ends]))
        place = 0
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = flat[place : place + part.numel()].view_as(part)
            place += part.numel()
        ends = flat[place:]
        self._remember(ends[-2:], order)
        return list(ends[:-2])

    def _remember(self, said: Tensor, order: int) -> None:
        if said.device.type != "cuda":
            self._answers.append((said, None, order))
            return
        answer = torch.empty_like(said, device="cpu", pin_memory=True)
        answer.copy_(said, non_blocking=True)
        self._answers.append((answer, torch.cuda.current_stream().record_event(), order))

    def agreed_to_stop(self, stopped: Callable[[], bool]) -> bool:
        """Whether training stops before the next step; all ranks say the same at the same step."""
        if self.count == 1:
            return stopped()
        while self._answers and (self._answers[0][1] is None or len(self._answers) > _LAG):
            answer, arrived, order = self._answers.popleft()
            if arrived is not None:
                arrived.synchronize()
            asked, orders = answer.tolist()
            if orders != order * self.count:
                raise TrainingError(
                    "The processes of this training fell out of step",
                    "They put different parts of the base model together at a time, so that the last steps are wrong.",
                    "Go on from the last checkpoint with `training.shard_base = false`, and please report this.",
                )
            if asked > 0:
                return True
        return False
