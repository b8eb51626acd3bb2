"""Masks as weights of the loss: what is white in a mask is learnt, what is black counts for `unmasked_weight`.

A mask is brought through the same resizing and cropping as its picture, averaged to the size of the latents, and cached like
them. The loss of an item is sum(w e) / sum(w) over its places, e being the error: a mean over weights, so that a small
subject is learnt as strongly as a large one and the learning rate means the same. A clip's mask counts for all its frames.
Held-out items are weighed likewise: their loss is about what is learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lorapod.data import TrainItem, load_mask
from lorapod.engine.families import Conditions
from lorapod.engine.losses import WEIGHT

if TYPE_CHECKING:
    from lorapod.engine.job import Job

SHARE = "share"
"""Name of what is cached of a mask: how much of each place is white."""


def read_mask(item: TrainItem, latents: Tensor) -> Conditions:
    """What is cached of an item's mask: {"share": (1, 1, h, w)} in 0..1, at the size of its latents (c, f, h, w)."""
    path = item.item.mask_path
    assert path is not None
    pixels = load_mask(path, item.placement, from_alpha=path == item.item.path)
    white = torch.from_numpy(pixels).float()[None, None] / 255
    return {SHARE: adaptive_avg_pool2d(white, latents.shape[-2:])[0][:, None]}


def weighed(job: Job, item: TrainItem, entry: Conditions) -> Conditions | None:
    """A cached entry with the weight of each of its places; as it is where the item has no mask. None: the mask is not in
    the cache."""
    key = job.mask_key(item)
    if key is None:
        return entry
    mask = job.latents_cache.get(key)
    if mask is None:
        return None
    least = job.recipe.datasets[item.dataset].unmasked_weight
    frames = entry["mean"].shape[1]
    return {**entry, WEIGHT: (least + (1 - least) * mask[SHARE]).expand(-1, frames, -1, -1)}
