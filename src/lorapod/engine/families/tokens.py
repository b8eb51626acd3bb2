"""Pictures as rows of tokens, for FLUX.1 and Qwen-Image: 2 x 2 latents are one token of four times the channels, and how
far the noise level is shifted depends on how many tokens a picture has."""

from __future__ import annotations

import math

from torch import Tensor

SIDE = 2
"""Latents a side of a token."""


def packed(latents: Tensor) -> Tensor:
    """Latents (b, c, 1, h, w) as tokens (b, h/2 * w/2, c * 4), row by row; within a token channels come first."""
    b, c, _, h, w = latents.shape
    blocks = latents[:, :, 0].reshape(b, c, h // SIDE, SIDE, w // SIDE, SIDE)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // SIDE) * (w // SIDE), c * SIDE * SIDE)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`: tokens (b, n, c * 4) to latents (b, c, 1, height, width)."""
    b, _, channels = tokens.shape
    c = channels // (SIDE * SIDE)
    blocks = tokens.reshape(b, height // SIDE, width // SIDE, c, SIDE, SIDE)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)[:, :, None]


def shift_for(latents_shape: tuple[int, ...], low: tuple[int, float], high: tuple[int, float]) -> float:
    """The shift k = exp(mu) of a picture with latents (..., h, w), mu being linear in its number of tokens.

    Args:
        low: A number of tokens, and mu there (`base_image_seq_len`, `base_shift` of diffusers' scheduler).
        high: Another, likewise (`max_image_seq_len`, `max_shift`).
    """
    count = (latents_shape[-2] // SIDE) * (latents_shape[-1] // SIDE)
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (count - low[0]))
