"""Flow matching, as the families that interpolate between latents and noise share it.

x_s = (1 - s) x_0 + s noise, and the denoiser learns the velocity noise - x_0 (rectified flow, arXiv 2209.03003; the
logit-normal and shifted draws of s are `engine.noise`'s). FLUX.1 and Qwen-Image see latents as rows of tokens, 2 x 2 of them
in one of four times the channels, and shift s the further the more tokens a picture has; both are previewed with the Euler
steps of diffusers' `FlowMatchEulerDiscreteScheduler`, set up as their pipelines do it, so that the same seed gives the same
picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorapod.engine.families.base import Conditions, PreviewRequest
from lorapod.engine.families.control import alike, controls_of
from lorapod.engine.families.shared import Answers, rows_of
from lorapod.engine.losses import Answer, weight_of
from lorapod.models import BaseModel
from lorapod.models.noise_shift import resolution_shift

SIDE = 2
"""Latents a side of a token."""

TRAINING_GUIDANCE = 1.0
"""For models that are told their guidance."""

FACTOR = 8
"""Pixels a side of a latent."""


def noised(latents: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """`latents` and `noise` (b, c, f, h, w) mixed at `noise_level` (b,)."""
    s = noise_level.view(-1, 1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def noise_to_signal(noise_level: Tensor) -> Tensor:
    """s / (1 - s)."""
    return noise_level / (1 - noise_level).clamp_min(1e-4)


def packed(latents: Tensor, side: int = SIDE) -> Tensor:
    """Latents (b, c, 1, h, w) as tokens (b, n, c * side * side), row by row; within a token channels come first.

    Args:
        side: Latents a side of a token.
    """
    b, c, _, h, w = latents.shape
    blocks = latents[:, :, 0].reshape(b, c, h // side, side, w // side, side)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // side) * (w // side), c * side * side)


def tokens_of(height: int, width: int, side: int = SIDE) -> int:
    """Tokens of a picture of that many latents."""
    return (height // side) * (width // side)


def unpacked(tokens: Tensor, height: int, width: int, side: int = SIDE) -> Tensor:
    """The inverse of `packed`: tokens (b, n, c * side * side) to latents (b, c, 1, height, width)."""
    b, _, channels = tokens.shape
    c = channels // (side * side)
    blocks = tokens.reshape(b, height // side, width // side, c, side, side)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)[:, :, None]


class LearnsVelocity(Answers):
    """The part of a flow-matching family of pictures that is about its loss."""

    frame_step = 1
    fps = None

    def velocity(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Tensor:
        """Predicted noise - x_0 of `noisy` (b, c, 1, h, w) at `noise_level` (b,), likewise, float32."""
        raise NotImplementedError

    def answer(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Answer:
        predicted = self.velocity(denoiser, noised(latents, noise, noise_level), noise_level, items, texts)
        return Answer(predicted, noise - latents, weight_of(items, latents))

    def noise_to_signal(self, noise_level: Tensor) -> Tensor:
        return noise_to_signal(noise_level)


class SeesTokens(LearnsVelocity):
    """The part of FLUX.1, FLUX.2 and Qwen-Image that is about tokens.

    Attributes:
        name: Of the family, by which its shift is known.
        factor: Pixels a side of a latent.
        side: Latents a side of a token.
    """

    name: ClassVar[str]
    factor: ClassVar[int] = FACTOR
    side: ClassVar[int] = SIDE

    pixel_divisor = FACTOR * SIDE

    def velocity(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
        guidance: float = TRAINING_GUIDANCE,
    ) -> Tensor:
        """Predicted noise - x_0 of `noisy` (b, c, 1, h, w) at `noise_level` (b,), likewise, float32.

        Items whose control pictures differ in number or size go through the denoiser apart.
        """
        rows: dict[int, Tensor] = {}
        for places in alike(items):
            chosen = [items[i] for i in places]
            said = self.velocity_beside(
                denoiser,
                rows_of(noisy, places),
                rows_of(noise_level, places),
                [torch.stack(row).to(noisy) for row in zip(*map(controls_of, chosen), strict=True)],
                [texts[i] for i in places],
                guidance,
            )
            if len(places) == len(items):
                return said
            rows |= zip(places, said, strict=True)
        return torch.stack([rows[i] for i in range(len(items))])

    def velocity_beside(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        controls: list[Tensor],
        texts: list[Conditions],
        guidance: float,
    ) -> Tensor:
        """As `velocity`, of items with control pictures (b, c, 1, h, w) of the same sizes each."""
        raise NotImplementedError

    def resolution_shift(self, latents_shape: tuple[int, ...]) -> float:
        """The shift k of a picture with latents (..., h, w)."""
        return resolution_shift(self.name, tokens_of(latents_shape[-2], latents_shape[-1], self.side))

    def drawn_velocity(
        self, denoiser: nn.Module, noisy: Tensor, noise_level: Tensor, request: PreviewRequest
    ) -> Tensor:
        """What a preview follows from `noisy` (1, c, 1, h, w): the velocity with its guidance, likewise."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """Latents (c, 1, h, w) of one preview."""
        height, width = request.height // self.factor, request.width // self.factor
        shape = (1, denoiser.config.in_channels // self.side**2, 1, height, width)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        tokens = packed(torch.randn(shape, generator=generator).to(denoiser.device), self.side)
        scheduler = self._scheduler(base, tokens.shape[1], request.steps, denoiser.device)
        for timestep in scheduler.timesteps:
            level = timestep.float()[None] / 1000
            velocity = self.drawn_velocity(denoiser, unpacked(tokens, height, width, self.side), level, request)
            tokens = scheduler.step(packed(velocity, self.side), timestep, tokens, return_dict=False)[0]
        return unpacked(tokens, height, width, self.side)[0].float()

    def preview_shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        """mu of a preview of so many tokens and steps, with the configuration of the base model's scheduler."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        mu: float = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return mu

    def _scheduler(self, base: BaseModel, tokens: int, steps: int, device: torch.device) -> Any:
        """The base model's scheduler with its timesteps for a picture of so many tokens."""
        import numpy as np
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder / "scheduler", local_files_only=True)
        mu = self.preview_shift(scheduler.config, tokens, steps)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=mu)
        scheduler.set_begin_index(0)
        return scheduler
