"""What the losses of all families share: errors of places, weighed and averaged for each item."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT = "weight"
"""Name under which an item's conditions hold how much each place counts, (1, f, h, w)."""


def weight_of(items: list[dict[str, Tensor]], latents: Tensor) -> Tensor | None:
    """Weights (b, 1, f, h, w) of a batch's places; None where no item has a mask."""
    if not any(WEIGHT in item for item in items):
        return None
    whole = torch.ones(1, *latents.shape[2:], device=latents.device)
    return torch.stack([item[WEIGHT].to(latents.device) if WEIGHT in item else whole for item in items])


def mean_over_weights(squares: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of each item's errors (b, c, f, h, w), (b,), over weights that are broadcastable to them."""
    if weight is None:
        return squares.flatten(1).mean(1)
    weight = weight.expand_as(squares)
    return (squares * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)
