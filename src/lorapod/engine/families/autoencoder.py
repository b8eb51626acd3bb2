"""The VAE of pictures (`AutoencoderKL` of diffusers) that SDXL, FLUX.1 and Z-Image share: latents are (z - shift) * scale,
8 times smaller a side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.engine.families.base import Conditions
from lorapod.engine.weights import Naming, load_diffusers
from lorapod.models import BaseModel

VaeNaming = Callable[[Mapping[str, Any]], Naming]
"""Names in a single file, for a configuration."""

FACTOR = 8
"""Pixels a side of a latent."""


def load(base: BaseModel, device: torch.device, dtype: torch.dtype, naming: VaeNaming | None = None) -> nn.Module:
    """The VAE of a base model, frozen; `naming` where it may be a single file."""
    from diffusers import AutoencoderKL

    return load_diffusers(AutoencoderKL, base, "vae", device, dtype, naming)


@torch.no_grad()
def encode(vae: nn.Module, pixels: Tensor) -> list[Conditions]:
    """Pixels (b, 3, 1, h, w) in -1..1 to "mean" and "deviation" (c, 1, h / 8, w / 8) of each, float32 on the CPU."""
    posterior = vae.encode(pixels[:, :, 0].to(vae.device, vae.dtype)).latent_dist
    shift, scale = _shift(vae), vae.config.scaling_factor
    means = ((posterior.mean.float() - shift) * scale)[:, :, None].cpu()  # (b, c, 1, h, w)
    deviations = (posterior.std.float() * scale)[:, :, None].cpu()
    return [{"mean": m.clone(), "deviation": d.clone()} for m, d in zip(means, deviations, strict=True)]


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (b, c, 1, h, w), normalised, to pixels (b, 3, 1, 8 h, 8 w) in -1..1, float32."""
    raw = latents[:, :, 0].float() / vae.config.scaling_factor + _shift(vae)
    return vae.decode(raw.to(vae.device, vae.dtype)).sample.float()[:, :, None]


def _shift(vae: nn.Module) -> float:
    """SDXL's VAE has none."""
    return float(vae.config.get("shift_factor") or 0.0)
