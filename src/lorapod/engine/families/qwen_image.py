"""Qwen-Image, and Qwen-Image-2512 that is built alike.

Conventions (diffusers `QwenImagePipeline`, `QwenImageTransformer2DModel`): the denoiser takes s as its time and predicts
noise - x0 of latents in 2 x 2 tokens; the caption goes into a chat template, Qwen2.5-VL's last hidden state is what the
denoiser is told, and the template's first 34 tokens are dropped; the VAE is one of clips with a single frame, latents are
(z - mean) / std of each channel. Captions of one batch are padded to the longest and masked; where they are equally long
there is no mask, since it would cost the fast attention.

Qwen-Image-Edit has the same denoiser (`QwenImageEditPipeline`; `QwenImageEditPlusPipeline` from the 2509 version on): the
tokens of its control pictures follow those of what is drawn, and the text encoder is shown them too, so that what it says
of a caption is of these pictures. They are shown as they were cut for training, at the area that the pipeline shows them
at. That 2511 sees control pictures at noise level 0 (`zero_cond_t`) is taken from the denoiser's configuration. Not
covered: Qwen-Image-Layered, Qwen-Image-2.1 (another architecture).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lorapod.engine.families import wan_names
from lorapod.engine.families.autoencoder import entries
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import SIDE, SeesTokens, packed, tokens_of, unpacked
from lorapod.engine.families.shared import OfDiffusers
from lorapod.engine.weights import Naming, Rows, load_diffusers, load_transformers
from lorapod.lora_names import kohya
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 1024
"""Limit of the pipeline, counted from after the template."""

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model was trained with (`prompt_template_encode`)."""

TEMPLATE_TOKENS = 34
"""Tokens of the template before the caption (`prompt_template_encode_start_idx`)."""

TEXT_ENCODER_NAMES = Naming(
    lambda name: Rows(name.replace("language_model.", "model.", 1)), prefixes=("model.",), unused=("lm_head.",)
)
"""Qwen2.5-VL as it is published, and as newer versions of transformers write it."""

_BLOCK = r"transformer_blocks\.\d+"
_ATTENTION = rf"{_BLOCK}\.attn\.(?:to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = rf"{_BLOCK}\.(?:img|txt)_mlp\.net\.(?:0\.proj|2)"
_TARGETS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.ATTENTION_FEED_FORWARD: f"{_ATTENTION}|{_FEED_FORWARD}",
    Targets.ALL: rf"{_ATTENTION}|{_FEED_FORWARD}|{_BLOCK}\.(?:img|txt)_mod\.1",
}


EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), "
    "then explain how the user's text instruction should alter or modify the image. Generate a new image that meets the "
    "user's requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the models that edit were trained with."""

EDIT_TEMPLATE_TOKENS = 64

SEEN_ALONE, SEEN_COUNTED = 1024, 384
"""Sides of the square that has the area at which control pictures are shown, in pixels, before 2509 and after
(`CONDITION_IMAGE_SIZE`)."""

SHOWN, PAD = "<|vision_start|>{}<|vision_end|>", "<|image_pad|>"
"""A control picture in the text; from 2509 on they are counted, as `Picture 1: `."""


@dataclass
class TextEncoder:
    """Tokenizer and Qwen2.5-VL model, and what makes its pixels of pictures where it is shown any."""

    tokenizer: Any
    model: nn.Module
    pictures: Any = None


class QwenImage(OfDiffusers, SeesTokens):
    """The `qwen_image` family."""

    name = "qwen_image"
    denoiser_class = "QwenImageTransformer2DModel"
    target_layers = _TARGETS
    experts = (Expert(),)
    formats = tuple(LoraFormat)

    def of(self, base: BaseModel) -> QwenImage:
        """Qwen-Image, or the version that edits by the base model's pipeline."""
        if base.pipeline == "QwenImageEditPlusPipeline":
            return QwenImageEdit()
        return QwenImageEdit(counted=False) if base.pipeline == "QwenImageEditPipeline" else self

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoTokenizer, Qwen2_5_VLModel

        tokenizer = AutoTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
        # Without its head, which would only compute a vocabulary's worth of numbers a token that nobody looks at.
        model = load_transformers(Qwen2_5_VLModel, base, "text_encoder", device, dtype, TEXT_ENCODER_NAMES)
        return TextEncoder(tokenizer, model)

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

        return load_diffusers(AutoencoderKLQwenImage, base, "vae", device, dtype, wan_names.vae)

    @torch.no_grad()
    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist  # (b, c, 1, h, w)
        mean, std = _statistics(vae)
        return entries((posterior.mean.float() - mean) / std, posterior.std.float() / std)

    @torch.no_grad()
    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae)
        raw = latents.to(vae.device).float() * std + mean
        return vae.decode(raw.to(vae.dtype)).sample.float()

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
        captions = [text["tokens"].to(device, dtype) for text in texts]
        lengths = [len(caption) for caption in captions]
        mask = None
        if len(set(lengths)) > 1:
            mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=device)
            for row, length in zip(mask, lengths, strict=True):
                row[:length] = 1
        predicted = denoiser(
            hidden_states=torch.cat([packed(each) for each in pictures], dim=1).to(dtype),
            timestep=noise_level,
            encoder_hidden_states=pad_sequence(captions, batch_first=True),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, each.shape[-2] // SIDE, each.shape[-1] // SIDE) for each in pictures]] * len(texts),
            return_dict=False,
        )[0]
        return unpacked(predicted[:, : tokens_of(height, width)].float(), height, width)

    def drawn_velocity(
        self, denoiser: nn.Module, noisy: Tensor, noise_level: Tensor, request: PreviewRequest
    ) -> Tensor:
        """As `QwenImagePipeline` has it: each token's guidance gets the length of the prompt's prediction."""
        towards = self.velocity(denoiser, noisy, noise_level, [request.item], [request.text])
        if request.guidance <= 1 or request.negative is None:
            return towards
        away = self.velocity(denoiser, noisy, noise_level, [request.item], [request.negative])
        guided = packed(away + request.guidance * (towards - away))
        length = packed(towards).norm(dim=-1, keepdim=True)
        return unpacked(guided * (length / guided.norm(dim=-1, keepdim=True)), *noisy.shape[-2:])

    def export_key(self, module: str, format: LoraFormat) -> str:
        """The original checkpoint has diffusers' names, so that nothing is renamed."""
        if format is LoraFormat.KOHYA:
            return kohya.kohya_name(module)
        return f"diffusion_model.{module}" if format is LoraFormat.COMFYUI else f"transformer.{module}"

    def module_of(self, name: str) -> str:
        """The module that a LoRA file of any layout calls `name`."""
        return kohya.module_of(name)


class QwenImageEdit(QwenImage):
    """Qwen-Image-Edit.

    Args:
        counted: Whether it takes several control pictures, counted in the text and shown small, as from 2509 on.
    """

    control: Literal["needed", "taken"] = "needed"

    def __init__(self, counted: bool = True) -> None:
        self.counted = counted
        self.most_controls = 3 if counted else 1  # model card of Qwen-Image-Edit-2509

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoImageProcessor

        encoder = super().load_text_encoder(base, device, dtype)
        encoder.pictures = AutoImageProcessor.from_pretrained(base.folder / "processor", local_files_only=True)
        return encoder

    @torch.no_grad()
    def encode_seen_text(self, encoder: TextEncoder, caption: str, pictures: list[NDArray[np.uint8]]) -> Conditions:
        """ "tokens" (l, 3584), of the pictures, the caption and what the template has after it; nothing is cut."""
        side = SEEN_COUNTED if self.counted else SEEN_ALONE
        seen = encoder.pictures([_shown_picture(each, side) for each in pictures], return_tensors="pt")
        places = seen["image_grid_thw"].prod(dim=-1) // encoder.pictures.merge_size**2  # one a token of the encoder
        shown = "".join(
            (f"Picture {number}: " if self.counted else "") + SHOWN.format(PAD * int(count))
            for number, count in enumerate(places, 1)
        )
        given = encoder.tokenizer(EDIT_TEMPLATE.format(shown + caption), return_tensors="pt").to(encoder.model.device)
        states = encoder.model(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            pixel_values=seen["pixel_values"].to(encoder.model.device, encoder.model.dtype),
            image_grid_thw=seen["image_grid_thw"].to(encoder.model.device),
        ).last_hidden_state[0, EDIT_TEMPLATE_TOKENS:]
        return {"tokens": states.cpu(), "length": torch.tensor(min(len(states), MAX_TOKENS))}


def _shown_picture(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """A picture (h, w, 3) at about `side` x `side` pixels in its own shape, in sides that 32 divides."""
    height, width = pixels.shape[:2]
    across = math.sqrt(side * side * width / height)
    size = round(across / 32) * 32, round(across * height / width / 32) * 32
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _statistics(vae: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (1, c, 1, 1, 1), as the VAE's configuration says."""
    shape = (1, -1, 1, 1, 1)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(shape).to(vae.device), std.view(shape).to(vae.device)


FAMILY = QwenImage
