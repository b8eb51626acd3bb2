"""Noise and noise levels, drawn from the seed and the step alone.

No generator lives from step to step: what is drawn at a step follows from (seed, step, place in the batch), so a run that
was killed goes on with the same draws without any random state having been saved.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lorapod.recipe.schema import TimestepSampling


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `parts`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))


def shifted(noise_level: Tensor, shift: float) -> Tensor:
    """s' = k s / (1 + (k - 1) s), the timestep shift of Stable Diffusion 3 (arXiv 2403.03206, eq. 23)."""
    return shift * noise_level / (1 + (shift - 1) * noise_level)


def from_quantiles(u: Tensor, sampling: TimestepSampling, shift: float) -> Tensor:
    """Noise levels at quantiles `u` (in 0..1, open) of the sampling distribution, same shape."""
    if sampling is TimestepSampling.LOGIT_NORMAL:
        u = torch.sigmoid(torch.special.ndtri(u))
    return shifted(u, shift)


def within(u: Tensor, lowest: float, highest: float, sampling: TimestepSampling, shift: float) -> Tensor:
    """Quantiles `u` of the sampling distribution cut to noise levels `lowest` to `highest`, as quantiles of all of it.

    The distribution keeps its shape inside the range; it is not squeezed into it.
    """
    ends = torch.tensor([lowest, highest], dtype=u.dtype)
    ends = ends / (shift - (shift - 1) * ends)  # undoes `shifted`
    if sampling is TimestepSampling.LOGIT_NORMAL:
        ends = torch.special.ndtr(torch.logit(ends))
    low, high = ends
    return low + u * (high - low)


def draw_levels(
    count: int,
    sampling: TimestepSampling,
    shift: float,
    generator: torch.Generator,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> Tensor:
    """`count` noise levels in a range, stratified over the distribution so that a batch covers it evenly."""
    u = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    u = within(u[torch.randperm(count, generator=generator)], lowest, highest, sampling, shift)
    return from_quantiles(u.clamp(1e-6, 1 - 1e-6), sampling, shift).float()
