"""How much a preview looks like the training pictures, from 0 to 1.

Both are compared in the VAE's latent space as sets of overlapping 3 x 3 windows, wherever in the picture they are. Each
window counts by how far it is from the picture's median window, so that detail counts and plain background does not. The
likeness of a preview to one picture is the weighted mean cosine similarity of each window to its nearest in the other
picture, both ways; the likeness to a dataset is that of the most similar picture. It says that the same details are
there, not that the picture is good: a copy of a training picture scores highest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_SIDE = 24
"""Latents larger than this are averaged down first: 24 x 24 windows tell a subject, and comparing them is cheap."""


def likeness(preview: Tensor, pictures: list[Tensor]) -> float:
    """Likeness of preview latents (c, f, h, w) to the most similar of `pictures`, likewise; first frames count."""
    windows, weights = _windows(preview)
    return max(_similarity(windows, weights, *_windows(picture)) for picture in pictures)


def _windows(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Unit windows (n, c * 9) around the picture's median, and their weights (n,), summing to 1."""
    picture = latents[:, 0].float().cpu()[None]  # (1, c, h, w)
    largest = max(picture.shape[-2:])
    if largest > LARGEST_SIDE:
        size = [max(3, round(side * LARGEST_SIDE / largest)) for side in picture.shape[-2:]]
        picture = F.adaptive_avg_pool2d(picture, size)
    windows = F.unfold(picture, 3, padding=1)[0].T  # (h * w, c * 9)
    away = windows - windows.median(0).values
    weights = away.norm(dim=1)
    return F.normalize(away, dim=1), weights / weights.sum().clamp(min=1e-9)


def _similarity(a: Tensor, a_weights: Tensor, b: Tensor, b_weights: Tensor) -> float:
    cosine = a @ b.T
    both = (cosine.max(1).values * a_weights).sum() + (cosine.max(0).values * b_weights).sum()
    return float(torch.clamp(both / 2, 0, 1))
