"""What the losses of all families share: errors of places, weighed and averaged for each item.

    mse        d^2
    huber      2 c (sqrt(d^2 + c^2) - c)        the pseudo-Huber loss (arXiv 2403.16728), d^2 for small d
    smooth-l1  2 (sqrt(d^2 + c^2) - c)          the same, 2 |d| for large d

The width c may follow the noise: with sigma the ratio of noise to signal, `snr` is (1 - c) / (1 + sigma)^2 + c and
`exponential` c^s, s being the share of all timesteps, both as sd-scripts has them: wide at little noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lorapod.recipe.choices import HuberSchedule, LossKind, LossWeighting
from lorapod.recipe.schema import TrainingSection

WEIGHT = "weight"
"""Name under which an item's conditions hold how much each place counts, (1, f, h, w)."""


@dataclass(frozen=True)
class Answer:
    """What a denoiser says of a batch, and what it should have said.

    Attributes:
        predicted, target: (b, c, f, h, w), float32.
        weight: How much each place counts, broadcastable to them; None: all alike.
    """

    predicted: Tensor
    target: Tensor
    weight: Tensor | None = None


def weight_of(items: list[dict[str, Tensor]], latents: Tensor) -> Tensor | None:
    """Weights (b, 1, f, h, w) of a batch's places; None where no item has a mask."""
    if not any(WEIGHT in item for item in items):
        return None
    whole = torch.ones(1, *latents.shape[2:], device=latents.device)
    return torch.stack([item[WEIGHT].to(latents.device) if WEIGHT in item else whole for item in items])


def mean_over_weights(errors: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of each item's errors (b, c, f, h, w), (b,), over weights that are broadcastable to them."""
    if weight is None:
        return errors.flatten(1).mean(1)
    weight = weight.expand_as(errors)
    return (errors * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def squared_error(answer: Answer) -> Tensor:
    """Mean squared error of each item, (b,)."""
    return mean_over_weights((answer.predicted - answer.target).square(), answer.weight)


def loss_of_kind(answer: Answer, training: TrainingSection, noise_to_signal: Tensor, noise_level: Tensor) -> Tensor:
    """Loss of each item as the recipe defines it, (b,).

    Args:
        noise_to_signal: sigma of each item, (b,).
        noise_level: Likewise s, 0..1.
    """
    if training.loss is LossKind.MSE:
        return squared_error(answer)
    c = _width(training, noise_to_signal, noise_level).view(-1, 1, 1, 1, 1)
    errors = 2 * (((answer.predicted - answer.target).square() + c.square()).sqrt() - c)
    return mean_over_weights(errors * c if training.loss is LossKind.HUBER else errors, answer.weight)


def _width(training: TrainingSection, noise_to_signal: Tensor, noise_level: Tensor) -> Tensor:
    c = training.huber_c
    if training.huber_schedule is HuberSchedule.SNR:
        return (1 - c) / (1 + noise_to_signal).square() + c
    if training.huber_schedule is HuberSchedule.EXPONENTIAL:
        return torch.exp(noise_level * math.log(c))
    return torch.full_like(noise_level, c)


_MOST_WEIGHT = 1000.0
"""`sigma-sqrt` grows without end towards no noise; s = 0.03 and below count alike."""

_MOST_SNR = 1000.0


def weight_of_level(weighting: LossWeighting, noise_to_signal: Tensor, noise_level: Tensor) -> Tensor:
    """Weight of each item's loss by its noise, (b,).

    sigma-sqrt is s^-2 and cosmap 2 / (pi (1 - 2 s + 2 s^2)), of arXiv 2403.03206 (as diffusers' training scripts have them);
    debiased is 1 / sqrt(SNR) of arXiv 2310.08442.
    """
    s = noise_level
    if weighting is LossWeighting.SIGMA_SQRT:
        return s.square().reciprocal().clamp_max(_MOST_WEIGHT)
    if weighting is LossWeighting.COSMAP:
        return 2 / (math.pi * (1 - 2 * s + 2 * s.square()))
    if weighting is LossWeighting.DEBIASED:
        return noise_to_signal.clamp_min(_MOST_SNR**-0.5)
    return torch.ones_like(s)
