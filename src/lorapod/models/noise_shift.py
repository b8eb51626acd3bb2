"""How far base models shift noise levels by the size of the picture: the more tokens, the more noise.

k = exp(mu), mu being linear in the number of tokens between two points (`base_image_seq_len` and `base_shift`,
`max_image_seq_len` and `max_shift` of the schedulers' configurations); a token is 16 x 16 pixels.
"""

from __future__ import annotations

import math

SHIFT_POINTS = {
    "flux": ((256, 0.5), (4096, 1.15)),
    "qwen_image": ((256, 0.5), (8192, 0.9)),
}
"""By family: tokens and mu at both points."""

SIDE = 16
"""Pixels a side of a token."""


def resolution_shift(family: str, tokens: int) -> float:
    """k of a picture of so many tokens; 1 for families that shift all sizes alike."""
    if family not in SHIFT_POINTS:
        return 1.0
    low, high = SHIFT_POINTS[family]
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))
