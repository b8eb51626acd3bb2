"""Flow matching, as the families that interpolate between latents and noise share it.

x_s = (1 - s) x_0 + s noise, and the denoiser learns the velocity noise - x_0 (rectified flow, arXiv 2209.03003; the
logit-normal and shifted draws of s are `engine.noise`'s).
"""

from __future__ import annotations

from torch import Tensor


def noised(latents: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """`latents` and `noise` (b, c, f, h, w) mixed at `noise_level` (b,)."""
    s = noise_level.view(-1, 1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def velocity_loss(predicted: Tensor, latents: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each item's velocity (b, c, f, h, w), (b,).

    Args:
        weight: How much each place counts, broadcastable to the latents; the mean is over weights.
    """
    squares = (predicted - (noise - latents)).square()
    if weight is None:
        return squares.flatten(1).mean(1)
    weight = weight.expand_as(squares)
    return (squares * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
