"""The VAE of pictures (`AutoencoderKL` of diffusers) that SDXL, FLUX.1 and Z-Image share: latents are (z - shift) * scale,
8 times smaller a side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorapod.engine.families import ldm_names
from lorapod.engine.families.base import Conditions
from lorapod.engine.weights import load_diffusers
from lorapod.models import BaseModel

FACTOR = 8
"""Pixels a side of a latent."""


class WithAutoencoder:
    """The part of a family that is about this VAE."""

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The VAE, frozen."""
        from diffusers import AutoencoderKL

        return load_diffusers(AutoencoderKL, base, "vae", device, dtype, ldm_names.vae)

    @torch.no_grad()
    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        """Pixels (b, 3, 1, h, w) in -1..1 to "mean" and "deviation" (c, 1, h / 8, w / 8) of each, float32 on the CPU."""
        posterior = vae.encode(pixels[:, :, 0].to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        means = (posterior.mean.float() - _shift(vae)) * scale
        return entries(means[:, :, None], (posterior.std.float() * scale)[:, :, None])

    @torch.no_grad()
    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Latents (b, c, 1, h, w), normalised, to pixels (b, 3, 1, 8 h, 8 w) in -1..1, float32."""
        raw = latents[:, :, 0].float() / vae.config.scaling_factor + _shift(vae)
        return vae.decode(raw.to(vae.device, vae.dtype)).sample.float()[:, :, None]


def entries(means: Tensor, deviations: Tensor) -> list[Conditions]:
    """What is cached of each item for latents (b, c, f, h, w), on the CPU."""
    return [{"mean": m.clone(), "deviation": d.clone()} for m, d in zip(means.cpu(), deviations.cpu(), strict=True)]


def _shift(vae: nn.Module) -> float:
    """SDXL's VAE has none."""
    return float(vae.config.get("shift_factor") or 0.0)
