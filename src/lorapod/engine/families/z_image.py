"""Z-Image and Z-Image-Turbo.

Conventions (diffusers `ZImagePipeline`, `ZImageTransformer2DModel`): the denoiser is called with t = 1 - s and its output
has the sign of x0 - noise; captions go through the tokenizer's chat template with thinking enabled, and the last but one
hidden state of the real tokens is what the denoiser is told; latents are (z - shift) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.engine.families import z_image_names
from lorapod.engine.families.autoencoder import WithAutoencoder
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import LearnsVelocity
from lorapod.engine.families.shared import OfDiffusers
from lorapod.engine.weights import Naming, load_transformers
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 512
"""Default `max_sequence_length` of diffusers' `ZImagePipeline`."""

_ATTENTION = r"attention\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r"feed_forward\.(w1|w2|w3)"
_TARGETS = {
    Targets.ATTENTION: rf"layers\.\d+\.{_ATTENTION}",
    Targets.ATTENTION_FEED_FORWARD: rf"layers\.\d+\.({_ATTENTION}|{_FEED_FORWARD})",
    Targets.ALL: rf"(layers|noise_refiner|context_refiner)\.\d+\.({_ATTENTION}|{_FEED_FORWARD}|adaLN_modulation\.0)",
}


@dataclass
class TextEncoder:
    """Tokenizer and Qwen3 model."""

    tokenizer: Any
    model: nn.Module


class ZImage(OfDiffusers, WithAutoencoder, LearnsVelocity):
    """The `z_image` family."""

    name = "z_image"
    denoiser_class = "ZImageTransformer2DModel"
    target_layers = _TARGETS
    pixel_divisor = 16
    experts = (Expert(),)
    formats = (LoraFormat.COMFYUI, LoraFormat.DIFFUSERS)  # ComfyUI does not load kohya's names of split layers here

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
        naming = z_image_names.TEXT_ENCODER
        return TextEncoder(tokenizer, load_transformers(AutoModel, base, "text_encoder", device, dtype, naming))

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoder, captions: list[str]) -> list[Conditions]:
        chats = [
            encoder.tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for caption in captions
        ]
        tokens = encoder.tokenizer(
            chats, padding=True, padding_side="right", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(encoder.model.device)
        states = encoder.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-2]  # (b, l, d)
        real = tokens.attention_mask.bool()
        return [{"tokens": row[keep].cpu()} for row, keep in zip(states, real, strict=True)]

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        return z_image_names.TRANSFORMER

    def velocity(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Tensor:
        """Predicted noise - x0, (b, c, 1, h, w), float32."""
        dtype = next(denoiser.parameters()).dtype  # `denoiser.dtype` of diffusers looks at every parameter
        tokens = [text["tokens"].to(noisy.device, dtype) for text in texts]
        raw = denoiser(list(noisy.to(dtype).unbind()), 1 - noise_level, tokens, return_dict=False)[0]
        return -torch.stack(raw).float()

    def export_key(self, module: str, format: LoraFormat) -> str:
        return ("diffusion_model." if format is LoraFormat.COMFYUI else "transformer.") + module

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """Euler steps of the model's own scheduler, as `ZImagePipeline` takes them: same seed, same picture."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder / "scheduler", local_files_only=True)
        device = denoiser.device
        shape = (1, denoiser.config.in_channels, request.height // 8, request.width // 8)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        latents = torch.randn(shape, generator=generator).to(device)
        tokens = (shape[2] // 2) * (shape[3] // 2)
        scheduler.set_timesteps(
            sigmas=get_default_z_image_sigmas(request.steps), device=device, mu=calculate_shift(tokens)
        )
        scheduler.set_begin_index(0)
        guided = request.guidance > 0 and request.negative is not None
        texts = [request.text, request.negative] if guided and request.negative is not None else [request.text]
        for timestep in scheduler.timesteps:
            level = (timestep / 1000).to(torch.float32).expand(len(texts))
            noisy = latents[:, :, None].expand(len(texts), -1, -1, -1, -1)
            predicted = self.velocity(denoiser, noisy, level, [{}] * len(texts), texts)[:, :, 0]
            velocity = predicted[:1]
            if guided:
                velocity = predicted[:1] + request.guidance * (predicted[:1] - predicted[1:])
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents[0][:, None].float()  # (c, 1, h, w)


FAMILY = ZImage
