"""The VAE of pictures (`AutoencoderKL` of diffusers) that SDXL, FLUX.1 and Z-Image share: latents are (z - shift) * scale,
8 times smaller a side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorapod.engine.families.base import Conditions
from lorapod.models import BaseModel

FACTOR = 8
"""Pixels a side of a latent."""


def load(base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The VAE of a base model, frozen."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(base.folder / "vae", torch_dtype=dtype, local_files_only=True)
    return vae.to(device).eval().requires_grad_(False)


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
