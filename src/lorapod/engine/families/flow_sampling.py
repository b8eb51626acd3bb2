"""Previews of flow-matching families whose latents are rows of tokens (FLUX.1, Qwen-Image): the Euler steps of diffusers'
`FlowMatchEulerDiscreteScheduler`, set up as both pipelines do it, so that the same seed gives the same picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorapod.engine.families.tokens import packed, unpacked
from lorapod.models import BaseModel


@torch.no_grad()
def euler(
    base: BaseModel,
    shape: tuple[int, int, int],
    steps: int,
    seed: int,
    device: torch.device,
    velocity: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Latents (c, 1, h, w) of one picture.

    Args:
        shape: c, h and w of the latents.
        velocity: From tokens (1, n, 4 c) and their noise level (1,) to the predicted noise - x0, likewise.
    """
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder / "scheduler", local_files_only=True)
    channels, height, width = shape
    generator = torch.Generator("cpu").manual_seed(seed)
    tokens = packed(torch.randn((1, channels, 1, height, width), generator=generator).to(device))
    config = scheduler.config
    mu = calculate_shift(
        tokens.shape[1],
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=mu)
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        level = timestep.float()[None] / 1000
        tokens = scheduler.step(velocity(tokens, level), timestep, tokens, return_dict=False)[0]
    return unpacked(tokens, height, width)[0].float()
