"""Qwen-Image, and Qwen-Image-2512 that is built alike.

Conventions (diffusers `QwenImagePipeline`, `QwenImageTransformer2DModel`): the denoiser takes s as its time and predicts
noise - x0 of latents in 2 x 2 tokens; the caption goes into a chat template, Qwen2.5-VL's last hidden state is what the
denoiser is told, and the template's first 34 tokens are dropped; the VAE is one of clips with a single frame, latents are
(z - mean) / std of each channel. Captions of one batch are padded to the longest and masked; where they are equally long
there is no mask, since it would cost the fast attention. Not covered: Qwen-Image-Edit, Qwen-Image-2.1 (another
architecture).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import noised, velocity_loss
from lorapod.engine.families.flow_sampling import euler
from lorapod.engine.families.tokens import SIDE, packed, shift_for, unpacked
from lorapod.lora_names import kohya
from lorapod.models import BaseModel
from lorapod.recipe.schema import LoraFormat, Targets

FACTOR = 8
"""Pixels a side of a latent."""

MAX_TOKENS = 1024
"""Limit of the pipeline, counted from after the template."""

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model was trained with (`prompt_template_encode`)."""

TEMPLATE_TOKENS = 34
"""Tokens of the template before the caption (`prompt_template_encode_start_idx`)."""

_BLOCK = r"transformer_blocks\.\d+"
_ATTENTION = rf"{_BLOCK}\.attn\.(?:to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = rf"{_BLOCK}\.(?:img|txt)_mlp\.net\.(?:0\.proj|2)"
_TARGETS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.ATTENTION_FEED_FORWARD: f"{_ATTENTION}|{_FEED_FORWARD}",
    Targets.ALL: rf"{_ATTENTION}|{_FEED_FORWARD}|{_BLOCK}\.(?:img|txt)_mod\.1",
}


@dataclass
class TextEncoder:
    """Tokenizer and Qwen2.5-VL model."""

    tokenizer: Any
    model: nn.Module


class QwenImage:
    """The `qwen_image` family."""

    name = "qwen_image"
    pixel_divisor = 16
    frame_step = 1
    fps = None
    experts = (Expert(),)
    formats = tuple(LoraFormat)

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        tokenizer = AutoTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
        whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            base.folder / "text_encoder", dtype=dtype, local_files_only=True
        )
        # Without its head, which would only compute a vocabulary's worth of numbers a token that nobody looks at.
        return TextEncoder(tokenizer, whole.model.to(device).eval().requires_grad_(False))

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoder, captions: list[str]) -> list[Conditions]:
        """ "tokens" (l, 3584), of the caption and what the template has after it."""
        given = encoder.tokenizer(
            [TEMPLATE.format(caption) for caption in captions],
            max_length=MAX_TOKENS + TEMPLATE_TOKENS,
            padding=True,
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(encoder.model.device)
        states = encoder.model(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
        real = given.attention_mask.bool()
        return [{"tokens": row[keep][TEMPLATE_TOKENS:].cpu()} for row, keep in zip(states, real, strict=True)]

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from diffusers import AutoencoderKLQwenImage

        vae = AutoencoderKLQwenImage.from_pretrained(base.folder / "vae", torch_dtype=dtype, local_files_only=True)
        return vae.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist  # (b, c, 1, h, w)
        mean, std = _statistics(vae)
        means = ((posterior.mean.float() - mean) / std).cpu()
        deviations = (posterior.std.float() / std).cpu()
        return [{"mean": m.clone(), "deviation": d.clone()} for m, d in zip(means, deviations, strict=True)]

    @torch.no_grad()
    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae)
        raw = latents.to(vae.device).float() * std + mean
        return vae.decode(raw.to(vae.dtype)).sample.float()

    def resolution_shift(self, latents_shape: tuple[int, ...]) -> float:
        """mu of the scheduler's configuration: 0.5 at 256 tokens, 0.9 at 8,192."""
        return shift_for(latents_shape, (256, 0.5), (8192, 0.9))

    def load_denoiser(self, base: BaseModel, expert: Expert, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from diffusers import QwenImageTransformer2DModel

        denoiser = QwenImageTransformer2DModel.from_pretrained(
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
    ) -> Tensor:
        """Predicted noise - x0 of `tokens` (b, n, 64) on a grid of rows and columns, likewise, float32."""
        dtype, device = next(denoiser.parameters()).dtype, tokens.device
        captions = [text["tokens"].to(device, dtype) for text in texts]
        lengths = [len(caption) for caption in captions]
        mask = None
        if len(set(lengths)) > 1:
            mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long().to(device)  # (b, l)
        return denoiser(
            hidden_states=tokens.to(dtype),
            timestep=noise_level,
            encoder_hidden_states=pad_sequence(captions, batch_first=True),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *grid)]] * len(texts),
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
        predicted = self.velocity(denoiser, tokens, (height // SIDE, width // SIDE), noise_level, texts)
        return velocity_loss(unpacked(predicted, height, width), latents, noise)

    def targets(self, targets: Targets) -> str:
        return _TARGETS[targets]

    def export_key(self, module: str, format: LoraFormat) -> str:
        """The original checkpoint has diffusers' names, so that nothing is renamed."""
        if format is LoraFormat.KOHYA:
            return kohya.kohya_name(module)
        return f"diffusion_model.{module}" if format is LoraFormat.COMFYUI else f"transformer.{module}"

    def module_of(self, name: str) -> str:
        """The module that a LoRA file of any layout calls `name`."""
        return kohya.module_of(name)

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """The steps of `QwenImagePipeline`, guidance with the length of the prompt's prediction: same seed, same picture."""
        height, width = request.height // FACTOR, request.width // FACTOR
        grid = (height // SIDE, width // SIDE)

        def velocity(tokens: Tensor, level: Tensor) -> Tensor:
            towards = self.velocity(denoiser, tokens, grid, level, [request.text])
            if request.guidance <= 1 or request.negative is None:
                return towards
            away = self.velocity(denoiser, tokens, grid, level, [request.negative])
            guided = away + request.guidance * (towards - away)
            return guided * (towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

        shape = (denoiser.config.in_channels // SIDE**2, height, width)
        return euler(base, shape, request.steps, request.seed, denoiser.device, velocity)


def _statistics(vae: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (1, c, 1, 1, 1), as the VAE's configuration says."""
    shape = (1, -1, 1, 1, 1)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(shape).to(vae.device), std.view(shape).to(vae.device)
