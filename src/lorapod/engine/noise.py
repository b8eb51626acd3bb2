"""Noise and noise levels, drawn from the seed and the step alone.

No generator lives from step to step: what is drawn at a step follows from (seed, step, place in the batch), so a run that
was killed goes on with the same draws without any random state having been saved.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lorapod.recipe.timesteps import NoiseLevels


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `parts`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))


def draw_levels(count: int, levels: NoiseLevels, generator: torch.Generator) -> Tensor:
    """`count` noise levels, stratified over the distribution so that a batch covers it evenly."""
    u = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    order = torch.randperm(count, generator=generator)
    return at_quantiles(u[order], levels)


def at_quantiles(u: Tensor, levels: NoiseLevels) -> Tensor:
    """Noise levels at quantiles `u` of a distribution, float32, same shape."""
    return torch.tensor([levels.level(each) for each in u.tolist()], dtype=torch.float32)
