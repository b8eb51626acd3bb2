"""FLUX.1-dev, and what is built like it.

Conventions (diffusers `FluxPipeline`, `FluxTransformer2DModel`): the denoiser takes s as its time and predicts noise - x0
of latents in 2 x 2 tokens; T5 sees the caption padded to 512 tokens, which are all attended to, CLIP-L gives one pooled
vector; dev was distilled to take its guidance as a number. It is trained with guidance 1, as diffusion-pipe and sd-scripts
do, which keeps the distillation; previews take the recipe's guidance. A model without that input (schnell, de-distilled
ones) is previewed with classifier-free guidance in its place. Kontext has the same denoiser; the tokens of its control
picture follow those of what is drawn, and what it says of them is dropped (`FluxKontextPipeline`). Not covered: Fill,
ControlNet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorapod.engine.families import flux_names, ldm_names
from lorapod.engine.families.autoencoder import WithAutoencoder
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import SIDE, SeesTokens, packed, tokens_of, unpacked
from lorapod.engine.families.shared import OfDiffusers
from lorapod.engine.weights import Naming, load_transformers
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 512
"""Default `max_sequence_length` of `FluxPipeline`, for T5."""

MAX_CLIP_TOKENS = 77

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
    # Layers that are enough for a likeness by the documentation of ai-toolkit.
    Targets.CHARACTER: r"single_transformer_blocks\.(?:7|12|16|20)\.proj_out",
}


@dataclass
class TextEncoders:
    """Tokenizers and encoders."""

    clip_tokenizer: Any
    clip: nn.Module
    t5_tokenizer: Any
    t5: nn.Module


class Flux(OfDiffusers, WithAutoencoder, SeesTokens):
    """The `flux` family."""

    name = "flux"
    denoiser_class = "FluxTransformer2DModel"
    target_layers = _TARGETS
    experts = (Expert(),)
    formats = (LoraFormat.COMFYUI, LoraFormat.DIFFUSERS)  # kohya's files name the fused layers of the original

    def of(self, base: BaseModel) -> Flux:
        """FLUX.1, or Kontext where the base model's pipeline says so."""
        return FluxKontext() if base.pipeline == "FluxKontextPipeline" else self

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoders:
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

        return TextEncoders(
            CLIPTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True),
            load_transformers(CLIPTextModel, base, "text_encoder", device, dtype, ldm_names.CLIP_L),
            AutoTokenizer.from_pretrained(base.folder / "tokenizer_2", local_files_only=True),
            load_transformers(T5EncoderModel, base, "text_encoder_2", device, dtype, flux_names.T5),
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

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        return flux_names.TRANSFORMER

    def ignores_negative_prompt(self, base: BaseModel) -> bool:
        config = json.loads((base.folder / self.experts[0].component / "config.json").read_text(encoding="utf-8"))
        return bool(config.get("guidance_embeds"))

    def velocity_beside(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        controls: list[Tensor],
        texts: list[Conditions],
        guidance: float,
    ) -> Tensor:
        dtype, device = next(denoiser.parameters()).dtype, noisy.device
        height, width = noisy.shape[-2:]
        pictures = [noisy, *controls]
        captions = torch.stack([text["tokens"] for text in texts]).to(device, dtype)
        given = torch.full_like(noise_level, guidance) if denoiser.config.guidance_embeds else None
        predicted = denoiser(
            hidden_states=torch.cat([packed(each) for each in pictures], dim=1).to(dtype),
            timestep=noise_level,
            guidance=given,
            pooled_projections=torch.stack([text["pooled"] for text in texts]).to(device, dtype),
            encoder_hidden_states=captions,
            txt_ids=torch.zeros(captions.shape[1], 3, device=device, dtype=dtype),
            img_ids=torch.cat([_positions(i, each) for i, each in enumerate(pictures)]).to(dtype),
            return_dict=False,
        )[0]
        return unpacked(predicted[:, : tokens_of(height, width)].float(), height, width)

    def drawn_velocity(
        self, denoiser: nn.Module, noisy: Tensor, noise_level: Tensor, request: PreviewRequest
    ) -> Tensor:
        """As `FluxPipeline` has it."""
        towards = self.velocity(denoiser, noisy, noise_level, [request.item], [request.text], request.guidance)
        if denoiser.config.guidance_embeds or request.guidance <= 1 or request.negative is None:
            return towards
        away = self.velocity(denoiser, noisy, noise_level, [request.item], [request.negative], request.guidance)
        return away + request.guidance * (towards - away)

    def export_key(self, module: str, format: LoraFormat) -> str:
        """ComfyUI knows FLUX's layers by diffusers' names too."""
        return f"transformer.{module}"


class FluxKontext(Flux):
    """FLUX.1 Kontext, which is given the picture that it edits; without one it draws from text alone."""

    control: Literal["needed", "taken"] = "taken"
    most_controls = 1


def _positions(number: int, latents: Tensor) -> Tensor:
    """Where each token of latents (..., h, w) is, (n, 3): 0 of what is drawn and 1 of its control picture, row, column."""
    rows, columns = latents.shape[-2] // SIDE, latents.shape[-1] // SIDE
    device = latents.device
    places = torch.zeros(rows, columns, 3, device=device)
    places[..., 0] = number
    places[..., 1] = torch.arange(rows, device=device)[:, None]
    places[..., 2] = torch.arange(columns, device=device)[None, :]
    return places.reshape(rows * columns, 3)


FAMILY = Flux
