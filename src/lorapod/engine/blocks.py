"""The repeated blocks of a denoiser, where nearly all of its weights and arithmetic are, and how they are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lorapod.recipe.choices import Quantization


@dataclass(frozen=True)
class Keeping:
    """How the weights of a denoiser's blocks are held.

    Attributes:
        quantize: In how many bits.
        swapped: How many blocks wait on the host.
        shards: Ranks that each hold a part of every block; 1 where each holds all.
    """

    quantize: Quantization = Quantization.NONE
    swapped: int = 0
    shards: int = 1

    def waiting(self, names: Sequence[str]) -> list[str]:
        """The blocks, of those names, whose weights are fetched when it is their turn."""
        return list(names) if self.shards > 1 else swapped_of(names, self.swapped)


FULLY = Keeping()
"""In the model's own precision, on the device."""


def blocks_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Its blocks by name, in the order in which they compute; empty where its class names none."""
    kinds = set(getattr(denoiser, "_repeated_blocks", None) or ())
    found = [(name, module) for name, module in denoiser.named_modules() if type(module).__name__ in kinds]
    return dict(sorted(found, key=lambda each: _of_unet(each[0])))


def _of_unet(name: str) -> int:
    """Where a part of a U-Net computes, which has its middle last among its modules; the same for all of another model."""
    parts = ("down_blocks", "mid_block", "up_blocks")
    first = name.partition(".")[0]
    return parts.index(first) if first in parts else 0


def swapped_of(names: Sequence[str], count: int) -> list[str]:
    """`count` of the blocks, spread evenly over them."""
    count = min(count, len(names))
    return [names[index * len(names) // count] for index in range(count)]
