"""How far base models shift noise levels by the size of the picture: the more tokens, the more noise.

k = exp(mu), mu being linear in the number of tokens between two points (`base_image_seq_len` and `base_shift`,
`max_image_seq_len` and `max_shift` of the schedulers' configurations); a token is 16 x 16 pixels.
"""

from __future__ import annotations

import math

from lorapod.models.families import family_facts

SIDE = 16
"""Pixels a side of a token."""


def resolution_shift(family: str, tokens: int) -> float:
    """k of a picture of so many tokens; 1 for families that shift all sizes alike."""
    facts = family_facts().get(family)
    if facts is None or facts.shift is None:
        return 1.0
    (fewest, most), (low, high) = facts.shift.tokens, facts.shift.mu
    return math.exp(low + (high - low) / (most - fewest) * (tokens - fewest))
