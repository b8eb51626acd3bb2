"""FLUX.1-dev, and what is built like it.

Conventions (diffusers `FluxPipeline`, `FluxTransformer2DModel`): the denoiser takes s as its time and predicts noise - x0
of latents in 2 x 2 tokens; T5 sees the caption padded to 512 tokens, which are all attended to, CLIP-L gives one pooled
vector; dev was distilled to take its guidance as a number. It is trained with guidance 1, as diffusion-pipe and sd-scripts
do, which keeps the distillation; previews take the recipe's guidance. A model without that input (schnell, de-distilled
ones) is previewed with classifier-free guidance in its place. Not covered: Kontext, Fill, ControlNet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.engine.families import autoencoder
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import noised, velocity_loss
from lorapod.engine.families.flow_sampling import euler
from lorapod.engine.families.tokens import SIDE, packed, shift_for, unpacked
from lorapod.models import BaseModel
from lorapod.recipe.schema import LoraFormat, Targets

MAX_TOKENS = 512
"""Default `max_sequence_length` of `FluxPipeline`, for T5."""

MAX_CLIP_TOKENS = 77

TRAINING_GUIDANCE = 1.0

_DOUBLE = r"transformer_blocks\.\d+"
_SINGLE = r"single_transformer_blocks\.\d+"
_ATTENTION = (
    rf"{_DOUBLE}\.attn\.(?:to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    rf"|{_SINGLE}\.attn\.(?:to_q|to_k|to_v)"
)
_FEED_FORWARD = rf"{_DOUBLE}\.ff(?:_context)?\.net\.(?:0\.proj|2)|{_SINGLE}\.(?:proj_mlp|proj_out)"
_TARGETS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.ATTENTION_FEED_FORWARD: f"{_ATTENTION}|{_FEED_FORWARD}",
    Targets.ALL: rf"{_ATTENTION}|{_FEED_FORWARD}|{_DOUBLE}\.norm1(?:_context)?\.linear|{_SINGLE}\.norm\.linear",
}


@dataclass
class TextEncoders:
    """Tokenizers and encoders."""

    clip_tokenizer: Any
    clip: nn.Module
    t5_tokenizer: Any
    t5: nn.Module


class Flux:
    """The `flux` family."""

    name = "flux"
    pixel_divisor = 16
    frame_step = 1
    fps = None
    experts = (Expert(),)
    formats = (LoraFormat.COMFYUI, LoraFormat.DIFFUSERS)  # kohya's files name the fused layers of the original

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoders:
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

        def load(kind: Any, part: str) -> nn.Module:
            model = kind.from_pretrained(base.folder / part, dtype=dtype, local_files_only=True)
            return model.to(device).eval().requires_grad_(False)

        return TextEncoders(
            CLIPTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True),
            load(CLIPTextModel, "text_encoder"),
            AutoTokenizer.from_pretrained(base.folder / "tokenizer_2", local_files_only=True),
            load(T5EncoderModel, "text_encoder_2"),
        )

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoders, captions: list[str]) -> list[Conditions]:
        """ "tokens" (512, 4096), "pooled" (768,), and the "length" in T5's tokens of the caption before it was cut."""

        def ids(tokenizer: Any, limit: int, model: nn.Module) -> Tensor:
            padded = tokenizer(captions, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
            return padded.input_ids.to(model.device)

        states = encoder.t5(ids(encoder.t5_tokenizer, MAX_TOKENS, encoder.t5))[0].cpu()  # (b, 512, d)
        pooled = encoder.clip(ids(encoder.clip_tokenizer, MAX_CLIP_TOKENS, encoder.clip)).pooler_output.cpu()
        lengths = [len(row) for row in encoder.t5_tokenizer(captions, verbose=False).input_ids]
        return [
            {"tokens": row.clone(), "pooled": vector.clone(), "length": torch.tensor(length)}
            for row, vector, length in zip(states, pooled, lengths, strict=True)
        ]

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return autoencoder.load(base, device, dtype)

    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        entries: list[Conditions] = autoencoder.encode(vae, pixels)
        return entries

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        return autoencoder.decode(vae, latents)

    def ignores_negative_prompt(self, base: BaseModel) -> bool:
        config = json.loads((base.folder / self.experts[0].component / "config.json").read_text(encoding="utf-8"))
        return bool(config.get("guidance_embeds"))

    def resolution_shift(self, latents_shape: tuple[int, ...]) -> float:
        """mu of the scheduler's configuration: 0.5 at 256 tokens, 1.15 at 4,096."""
        return shift_for(latents_shape, (256, 0.5), (4096, 1.15))

    def load_denoiser(self, base: BaseModel, expert: Expert, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        denoiser = FluxTransformer2DModel.from_pretrained(
            base.folder / expert.component, torch_dtype=dtype, local_files_only=True
        )
        return denoiser.to(device).requires_grad_(False)

    def velocity(
        self,
        denoiser: nn.Module,
        tokens: Tensor,
        grid: tuple[int, int],
        noise_level: Tensor,
        texts: list[Conditions],
        guidance: float,
    ) -> Tensor:
        """Predicted noise - x0 of `tokens` (b, n, 64) on a grid of rows and columns, likewise, float32."""
        dtype, device = next(denoiser.parameters()).dtype, tokens.device
        captions = torch.stack([text["tokens"] for text in texts]).to(device, dtype)
        given = torch.full_like(noise_level, guidance) if denoiser.config.guidance_embeds else None
        return denoiser(
            hidden_states=tokens.to(dtype),
            timestep=noise_level,
            guidance=given,
            pooled_projections=torch.stack([text["pooled"] for text in texts]).to(device, dtype),
            encoder_hidden_states=captions,
            txt_ids=torch.zeros(captions.shape[1], 3, device=device, dtype=dtype),
            img_ids=_positions(*grid).to(device, dtype),
            return_dict=False,
        )[0].float()

    def loss(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Tensor:
        height, width = latents.shape[-2:]
        tokens = packed(noised(latents, noise, noise_level))
        grid = (height // SIDE, width // SIDE)
        predicted = self.velocity(denoiser, tokens, grid, noise_level, texts, TRAINING_GUIDANCE)
        return velocity_loss(unpacked(predicted, height, width), latents, noise)

    def targets(self, targets: Targets) -> str:
        return _TARGETS[targets]

    def export_key(self, module: str, format: LoraFormat) -> str:
        """ComfyUI knows FLUX's layers by diffusers' names too."""
        return f"transformer.{module}"

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """The steps of `FluxPipeline`: same seed, same picture."""
        height, width = request.height // autoencoder.FACTOR, request.width // autoencoder.FACTOR
        grid = (height // SIDE, width // SIDE)
        guided = not denoiser.config.guidance_embeds and request.guidance > 1

        def velocity(tokens: Tensor, level: Tensor) -> Tensor:
            towards = self.velocity(denoiser, tokens, grid, level, [request.text], request.guidance)
            if not guided or request.negative is None:
                return towards
            away = self.velocity(denoiser, tokens, grid, level, [request.negative], request.guidance)
            return away + request.guidance * (towards - away)

        shape = (denoiser.config.in_channels // SIDE**2, height, width)
        return euler(base, shape, request.steps, request.seed, denoiser.device, velocity)


def _positions(rows: int, columns: int) -> Tensor:
    """Where each token is, (rows * columns, 3): zero, row, column."""
    places = torch.zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows)[:, None]
    places[..., 2] = torch.arange(columns)[None, :]
    return places.reshape(rows * columns, 3)
