"""FLUX.2 klein: the base models of 4 and 9 billion weights, and what was distilled from them.

Conventions (diffusers `Flux2KleinPipeline`, `Flux2Transformer2DModel`): the denoiser takes s as its time and no guidance,
and predicts noise - x0 of latents of 128 channels and 16 pixels a side, one a token: 2 x 2 latents of the VAE one behind
the other, less the mean and over the deviation of the VAE's batch norm, whose statistics are weights. Qwen3 reads the
caption in its chat template without thinking, padded to 512 tokens; the hidden states of three layers are what the denoiser
is told, and padding is attended to. Control pictures follow what is drawn: the first has 10 as the first of a token's four
places, the second 20, and on. Distilled models have no classifier-free guidance. Not covered: FLUX.2 dev (another text
encoder).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorapod.engine.families import ldm_names, z_image_names
from lorapod.engine.families.autoencoder import entries
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import SeesTokens, packed, tokens_of, unpacked
from lorapod.engine.families.shared import OfDiffusers
from lorapod.engine.weights import Naming, Rows, load_diffusers, load_transformers
from lorapod.lora_names import flux2
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 512
"""Default `max_sequence_length` of `Flux2KleinPipeline`."""

LAYERS = (9, 18, 27)
"""Hidden states of Qwen3 that the denoiser is told (`text_encoder_out_layers`)."""

PATCH = 2
"""Latents of the VAE a side of one of the denoiser's."""

APART = 10
"""Between the pictures of a sequence in the first of a token's places (`scale` of `_prepare_image_ids`)."""

MOST_CONTROLS = 4
"""A bound of ours, against slips in file names: the denoiser itself knows none, and each picture costs as much as the one
that is drawn."""

_DOUBLE = r"transformer_blocks\.\d+"
_SINGLE = r"single_transformer_blocks\.\d+"
# A single block has attention and feed-forward in one layer, which cannot be adapted apart.
_ATTENTION = (
    rf"{_DOUBLE}\.attn\.(?:to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    rf"|{_SINGLE}\.attn\.(?:to_qkv_mlp_proj|to_out)"
)
_ALL = rf"{_ATTENTION}|{_DOUBLE}\.ff(?:_context)?\.linear_(?:in|out)"
_TARGETS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.ATTENTION_FEED_FORWARD: _ALL,
    Targets.ALL: _ALL,  # blocks have no modulation of their own
}

_AROUND = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
}
_NORM = re.compile(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])")


def _original(name: str) -> Rows:
    """Where the makers' files have a weight of the denoiser, by diffusers' single-file converter."""
    module, _, end = name.rpartition(".")
    if module == "norm_out.linear":  # the makers' modulation has shift, then scale; diffusers' scale, then shift
        return Rows(f"final_layer.adaLN_modulation.1.{end}", (1, 0), 2)
    if match := _NORM.fullmatch(module):
        single, block, added, which = match.groups()
        kind = {"q": "query", "k": "key"}[which]
        stream = "" if single else f"{'txt' if added else 'img'}_attn."
        return Rows(f"{'single' if single else 'double'}_blocks.{block}.{stream}norm.{kind}_norm.scale")
    if whole := flux2.fused_of(module):
        parts = flux2.parts_of(whole)
        return Rows(f"{whole}.{end}", (parts.index(module),), len(parts))
    return Rows(f"{_AROUND.get(module, module)}.{end}")


def _vae_names(config: Mapping[str, Any]) -> Naming:
    """The makers keep the convolutions around the latents inside encoder and decoder."""
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    whole = ldm_names.vae(config)

    def of(name: str) -> Rows:
        first, _, rest = name.partition(".")
        return Rows(f"{inside[first]}.{rest}") if first in inside else whole.of(name)

    return Naming(of, prefixes=whole.prefixes, unused=whole.unused)


@dataclass
class TextEncoder:
    """Tokenizer and Qwen3 model."""

    tokenizer: Any
    model: nn.Module


class Flux2(OfDiffusers, SeesTokens):
    """The `flux2` family.

    Args:
        distilled: Whether it draws in a few steps and without a negative prompt.
    """

    name = "flux2"
    denoiser_class = "Flux2Transformer2DModel"
    target_layers = _TARGETS
    factor = 16
    side = 1
    experts = (Expert(),)
    formats = (LoraFormat.COMFYUI, LoraFormat.DIFFUSERS)  # kohya's files name the fused layers of the original
    control: Literal["needed", "taken"] = "taken"
    most_controls = MOST_CONTROLS

    def __init__(self, distilled: bool = False) -> None:
        self.distilled = distilled

    def of(self, base: BaseModel) -> Flux2:
        """As the base model's `model_index.json` says."""
        return Flux2(distilled=bool(base.index.get("is_distilled")))

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
        naming = z_image_names.TEXT_ENCODER
        return TextEncoder(tokenizer, load_transformers(AutoModel, base, "text_encoder", device, dtype, naming))

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoder, captions: list[str]) -> list[Conditions]:
        """ "tokens" (512, 3 d), and the "length" in tokens of the caption in its template before it was cut."""
        chats = [
            encoder.tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for caption in captions
        ]
        tokens = encoder.tokenizer(
            chats, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(encoder.model.device)
        states = encoder.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        told = torch.cat([states[layer] for layer in LAYERS], dim=-1).cpu()  # (b, 512, 3 d)
        lengths = [len(ids) for ids in encoder.tokenizer(chats, verbose=False).input_ids]
        return [
            {"tokens": row.clone(), "length": torch.tensor(length)} for row, length in zip(told, lengths, strict=True)
        ]

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from diffusers import AutoencoderKLFlux2

        return load_diffusers(AutoencoderKLFlux2, base, "vae", device, dtype, _vae_names)

    @torch.no_grad()
    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        posterior = vae.encode(pixels[:, :, 0].to(vae.device, vae.dtype)).latent_dist
        mean, deviation = _statistics(vae)
        means = (_patched(posterior.mean.float()) - mean) / deviation
        return entries(means[:, :, None], (_patched(posterior.std.float()) / deviation)[:, :, None])

    @torch.no_grad()
    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae)
        raw = latents[:, :, 0].to(vae.device).float() * deviation + mean
        return vae.decode(_unpatched(raw).to(vae.dtype)).sample.float()[:, :, None]

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        return Naming(_original, prefixes=("model.diffusion_model.", "diffusion_model."))

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
        words = torch.zeros(captions.shape[1], 4, device=device)
        words[:, 3] = torch.arange(captions.shape[1], device=device)
        predicted = denoiser(
            hidden_states=torch.cat([packed(each, self.side) for each in pictures], dim=1).to(dtype),
            timestep=noise_level,
            guidance=None,
            encoder_hidden_states=captions,
            txt_ids=words,
            img_ids=torch.cat([_positions(APART * i, each) for i, each in enumerate(pictures)]),
            return_dict=False,
        )[0]
        return unpacked(predicted[:, : tokens_of(height, width, self.side)].float(), height, width, self.side)

    def preview_shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(tokens, steps))

    def drawn_velocity(
        self, denoiser: nn.Module, noisy: Tensor, noise_level: Tensor, request: PreviewRequest
    ) -> Tensor:
        """As `Flux2KleinPipeline` has it."""
        towards = self.velocity(denoiser, noisy, noise_level, [request.item], [request.text])
        if self.distilled or request.guidance <= 1 or request.negative is None:
            return towards
        away = self.velocity(denoiser, noisy, noise_level, [request.item], [request.negative])
        return away + request.guidance * (towards - away)

    def export_key(self, module: str, format: LoraFormat) -> str:
        """ComfyUI knows FLUX.2's layers by diffusers' names too (`flux_to_diffusers`, which its Flux2 takes over)."""
        return f"transformer.{module}"


def _patched(latents: Tensor) -> Tensor:
    """Latents of the VAE (b, c, h, w) as the denoiser's, (b, 4 c, h / 2, w / 2)."""
    return nn.functional.pixel_unshuffle(latents, PATCH)


def _unpatched(latents: Tensor) -> Tensor:
    """The inverse of `_patched`."""
    return nn.functional.pixel_shuffle(latents, PATCH)


def _statistics(vae: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each of the denoiser's channels, (1, c, 1, 1)."""
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    return mean.view(1, -1, 1, 1), (variance.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()


def _positions(number: int, latents: Tensor) -> Tensor:
    """Where each token of latents (..., h, w) is, (h * w, 4): the picture that it is of, row, column, zero."""
    rows, columns = latents.shape[-2:]
    device = latents.device
    places = torch.zeros(rows, columns, 4, device=device)
    places[..., 0] = number
    places[..., 1] = torch.arange(rows, device=device)[:, None]
    places[..., 2] = torch.arange(columns, device=device)[None, :]
    return places.reshape(rows * columns, 4)


FAMILY = Flux2
