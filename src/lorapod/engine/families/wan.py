"""Wan: 2.1 T2V (1.3B, 14B) and I2V 14B, 2.2 T2V and I2V A14B with their two experts, 2.2 TI2V 5B.

Conventions (diffusers `WanPipeline`, `WanImageToVideoPipeline`, `WanTransformer3DModel`): the denoiser takes 1000 s as its
time and predicts noise - x_0; captions are cleaned, encoded by UMT5 with their mask, and padded with zeros to 512 tokens
that are attended to; latents are (z - mean) / std of each channel, and the VAE runs in float32 as in the pipelines' own
examples. Where base models differ is read from their configuration (`Variant`). Not covered: last-frame conditioning,
VACE, Animate, S2V.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.engine.families import wan_names
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.flow import noise_to_signal, noised
from lorapod.engine.families.shared import Answers, OfDiffusers
from lorapod.engine.losses import Answer, weight_of
from lorapod.engine.weights import Naming, load_diffusers, load_transformers
from lorapod.lora_names.kohya import kohya_name
from lorapod.lora_names.wan import diffusers_name, original_name
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 512
"""`max_sequence_length` of the pipelines' call."""

TEMPORAL = 4
"""Frames that the VAE folds into one latent frame; the first stands alone."""

_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)"
_BLOCK = rf"blocks\.\d+\.({_ATTENTION}|ffn\.net\.(0\.proj|2))"
_TARGETS = {
    Targets.ATTENTION: rf"blocks\.\d+\.{_ATTENTION}",
    Targets.ATTENTION_FEED_FORWARD: _BLOCK,
    Targets.ALL: _BLOCK,  # a block has no other linear layers
}


@dataclass(frozen=True)
class Variant:
    """What differs between the family's base models.

    Attributes:
        experts: Denoisers on disk, in the order in which sampling uses them.
        first_frame: Whether the denoiser is given the first frame as further channels (I2V).
        image_tokens: Whether it is also given CLIP's view of the first frame (Wan 2.1 I2V).
        frame_times: Whether each latent frame may have a time of its own, so that a first frame can be given clean
            (TI2V 5B).
        spatial: Pixels a side of a latent.
        fps: Frames a second.
    """

    experts: tuple[Expert, ...] = (Expert(),)
    first_frame: bool = False
    image_tokens: bool = False
    frame_times: bool = False
    spatial: int = 8
    fps: float = 16.0

    @classmethod
    def of(cls, folder: Path) -> Variant:
        """The variant of a base model in diffusers layout."""
        index = _read_json(folder / "model_index.json")
        present = [name for name in ("transformer", "transformer_2") if (index.get(name) or [None])[0]]
        boundary = index.get("boundary_ratio")
        experts: tuple[Expert, ...] = (Expert(),)
        if boundary is not None:
            both = Expert("transformer", boundary, 1.0, "-high"), Expert("transformer_2", 0.0, boundary, "-low")
            experts = tuple(expert for expert in both if expert.component in present)
        denoiser = _read_json(folder / experts[0].component / "config.json")
        frame_times = bool(index.get("expand_timesteps"))
        return cls(
            experts=experts,
            first_frame=denoiser["in_channels"] != denoiser["out_channels"],
            image_tokens=denoiser.get("image_dim") is not None,
            frame_times=frame_times,
            spatial=int(_read_json(folder / "vae" / "config.json").get("scale_factor_spatial") or 8),
            fps=24.0 if frame_times else 16.0,
        )


@dataclass
class TextEncoder:
    """Tokenizer and UMT5 encoder."""

    tokenizer: Any
    model: nn.Module


@dataclass
class Sampling:
    """A preview on its way: what is handed from one expert to the next.

    Attributes:
        latents: (1, c, f, h, w), float32.
        done: Steps that are done.
    """

    request: PreviewRequest
    scheduler: Any
    latents: Tensor
    done: int = 0


class Vae(nn.Module):  # type: ignore[misc]
    """The VAE, and the image encoder beside it, which is loaded when the first item is encoded."""

    def __init__(self, vae: nn.Module, images: BaseModel | None, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self._images, self._device, self._dtype = vae, images, device, dtype
        self._encoder: tuple[Any, nn.Module] | None = None
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean).view(shape).to(device)
        self.std = torch.tensor(vae.config.latents_std).view(shape).to(device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (b, 3, f, h, w) to normalised latents (b, c, f', h', w'), float32: the most likely ones."""
        raw = self.vae.encode(pixels.to(self._device, torch.float32)).latent_dist.mode()
        return (raw - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        raw = latents.to(self._device, torch.float32) * self.std + self.mean
        return self.vae.decode(raw).sample.float()

    def image_tokens(self, frames: Tensor) -> Tensor:
        """CLIP's last but one hidden state of frames (b, 3, h, w) in -1..1, (b, 257, d)."""
        from PIL import Image

        processor, model = self._image_encoder()
        levels = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        given = processor(images=[Image.fromarray(frame) for frame in levels], return_tensors="pt")
        pixels = given["pixel_values"].to(self._device, self._dtype)
        return model(pixels, output_hidden_states=True).hidden_states[-2]

    def _image_encoder(self) -> tuple[Any, nn.Module]:
        if self._encoder is None:
            from transformers import CLIPImageProcessor, CLIPVisionModel

            assert self._images is not None
            folder, names = self._images.folder / "image_processor", wan_names.IMAGE_ENCODER
            self._encoder = (
                CLIPImageProcessor.from_pretrained(folder, local_files_only=True),
                load_transformers(CLIPVisionModel, self._images, "image_encoder", self._device, self._dtype, names),
            )
        return self._encoder


class Wan(OfDiffusers, Answers):
    """The `wan` family; `of` gives it for a base model."""

    name = "wan"
    denoiser_class = "WanTransformer3DModel"
    target_layers = _TARGETS
    frame_step = TEMPORAL
    formats = tuple(LoraFormat)

    def __init__(self, variant: Variant | None = None) -> None:
        self.variant = variant or Variant()
        self.pixel_divisor = 2 * self.variant.spatial
        self.fps: float | None = self.variant.fps
        self.experts = self.variant.experts
        self.takes_pictures = not self.variant.first_frame
        self.first_frame = "needed" if self.variant.first_frame else "taken" if self.variant.frame_times else "unknown"

    def of(self, base: BaseModel) -> Wan:
        return Wan(Variant.of(base.folder))

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
        naming = wan_names.TEXT_ENCODER
        return TextEncoder(tokenizer, load_transformers(UMT5EncoderModel, base, "text_encoder", device, dtype, naming))

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoder, captions: list[str]) -> list[Conditions]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        tokens = encoder.tokenizer(
            [prompt_clean(caption) for caption in captions],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(encoder.model.device)
        states = encoder.model(tokens.input_ids, tokens.attention_mask).last_hidden_state  # (b, l, d)
        real = tokens.attention_mask.bool()
        return [{"tokens": row[keep].cpu()} for row, keep in zip(states, real, strict=True)]

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> Vae:
        from diffusers import AutoencoderKLWan

        vae = load_diffusers(AutoencoderKLWan, base, "vae", device, torch.float32, wan_names.vae)
        return Vae(vae, base if self.variant.image_tokens else None, device, dtype)

    def conditions_made_by(self, base: BaseModel) -> str:
        """What entries depend on beside the VAE."""
        parts = ["first frame"] if self.variant.first_frame else []
        if self.variant.image_tokens:
            parts += [base.fingerprint("image_encoder"), base.fingerprint("image_processor")]
        return " ".join(parts)

    @torch.no_grad()
    def encode_pixels(self, vae: Vae, pixels: Tensor) -> list[Conditions]:
        found = {"mean": vae.encode(pixels)}
        if self.variant.first_frame:
            found["first_frame"] = self._first_frame(vae, pixels)
        if self.variant.image_tokens:
            found["image"] = vae.image_tokens(pixels[:, :, 0])
        return [{name: value[i].cpu().clone() for name, value in found.items()} for i in range(len(pixels))]

    def _first_frame(self, vae: Vae, pixels: Tensor) -> Tensor:
        """Mask (4 channels) and latents of a clip that is the first frame and then grey, (b, 4 + c, f', h', w').

        The grey is zero in pixels: latents of zeros are not zeros. The mask says for each of the frames that are folded
        into a latent frame whether it is given (`WanImageToVideoPipeline.prepare_latents`).
        """
        clip = torch.zeros_like(pixels)
        clip[:, :, 0] = pixels[:, :, 0]
        latents = vae.encode(clip)
        mask = torch.zeros_like(latents[:, :1]).repeat(1, TEMPORAL, 1, 1, 1)
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], 1)

    @torch.no_grad()
    def decode_latents(self, vae: Vae, latents: Tensor) -> Tensor:
        return vae.decode(latents)

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        return wan_names.TRANSFORMER

    def velocity(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
        clean: Tensor | None = None,
    ) -> Tensor:
        """Predicted noise - x_0, (b, c, f, h, w), float32.

        Args:
            clean: (b, f), which latent frames are given clean; None where none is.
        """
        dtype = denoiser.patch_embedding.weight.dtype  # other weights are kept in float32
        device = noisy.device
        width = texts[0]["tokens"].shape[1]
        tokens = torch.zeros(len(texts), MAX_TOKENS, width, device=device, dtype=dtype)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text["tokens"])] = text["tokens"]
        times = 1000 * noise_level
        if clean is not None:
            _, across, down = denoiser.config.patch_size
            per_frame = noisy.shape[3] // across * (noisy.shape[4] // down)
            times = (times[:, None] * ~clean).repeat_interleave(per_frame, 1)  # (b, tokens)
        given, image = noisy.to(dtype), None
        if self.variant.first_frame:
            given = torch.cat([given, torch.stack([item["first_frame"] for item in items]).to(device, dtype)], 1)
        if self.variant.image_tokens:
            image = torch.stack([item["image"] for item in items]).to(device, dtype)
        return denoiser(given, times, tokens, image, return_dict=False)[0].float()

    def answer(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Answer:
        noisy, target = noised(latents, noise, noise_level), noise - latents
        clean = self._clean_frames(latents, items)
        weight = weight_of(items, latents)
        if clean is None:
            return Answer(self.velocity(denoiser, noisy, noise_level, items, texts), target, weight)
        is_clean = clean[:, None, :, None, None]
        predicted = self.velocity(
            denoiser, torch.where(is_clean, latents, noisy), noise_level, items, texts, clean=clean
        )
        learnt = (~is_clean).float()
        return Answer(predicted, target, learnt if weight is None else learnt * weight)

    def noise_to_signal(self, noise_level: Tensor) -> Tensor:
        return noise_to_signal(noise_level)

    def _clean_frames(self, latents: Tensor, items: list[Conditions]) -> Tensor | None:
        """(b, f), which latent frames are given clean, as items say; None where none is."""
        if not self.variant.frame_times or latents.shape[2] == 1:
            return None
        if not any("given_frames" in item for item in items):
            return None
        places = torch.arange(latents.shape[2], device=latents.device)
        none = torch.zeros((), dtype=torch.long, device=latents.device)
        counts = torch.stack([item.get("given_frames", none) for item in items])
        return places < counts[:, None]

    def export_key(self, module: str, format: LoraFormat) -> str:
        if format is LoraFormat.KOHYA:
            return kohya_name(original_name(module))
        return f"diffusion_model.{original_name(module)}" if format is LoraFormat.COMFYUI else f"transformer.{module}"

    def module_of(self, name: str) -> str:
        """The module that a LoRA file of any layout calls `name`."""
        return diffusers_name(name)

    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        sampling = self.begin(base, request, denoiser.device)
        self.advance(denoiser, sampling, None)
        return self.finish(sampling)

    def begin(self, base: BaseModel, request: PreviewRequest, device: torch.device) -> Sampling:
        """A preview before its first step: the noise that the pipelines draw for its seed."""
        import diffusers

        folder = base.folder / "scheduler"
        kind = getattr(diffusers, _read_json(folder / "scheduler_config.json")["_class_name"])
        scheduler = kind.from_pretrained(folder, local_files_only=True)
        scheduler.set_timesteps(request.steps, device=device)
        scheduler.set_begin_index(0)
        frames = (request.frames - 1) // TEMPORAL + 1
        channels = int(_read_json(base.folder / self.experts[0].component / "config.json")["out_channels"])
        shape = (1, channels, frames, request.height // self.variant.spatial, request.width // self.variant.spatial)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        return Sampling(request, scheduler, torch.randn(shape, generator=generator).to(device))

    @torch.no_grad()
    def advance(self, denoiser: nn.Module, sampling: Sampling, expert: Expert | None) -> None:
        """Takes the steps that fall to `expert`; all that are left where it is None."""
        request, scheduler = sampling.request, sampling.scheduler
        guided = request.guidance > 1 and request.negative is not None
        first = self._given_frame(sampling)
        clean = None
        if first is not None:
            clean = (torch.arange(sampling.latents.shape[2], device=first.device) == 0)[None]
        for timestep in scheduler.timesteps[sampling.done :]:
            if expert is not None and not self._falls_to(expert, float(timestep)):
                return
            noisy = sampling.latents
            if first is not None:
                noisy = torch.cat([first, noisy[:, :, 1:]], 2)
            level = timestep.float()[None] / 1000
            given = [request.item]
            velocity = self.velocity(denoiser, noisy, level, given, [request.text], clean)
            if guided and request.negative is not None:
                away = self.velocity(denoiser, noisy, level, given, [request.negative], clean)
                velocity = away + request.guidance * (velocity - away)
            sampling.latents = scheduler.step(velocity, timestep, sampling.latents, return_dict=False)[0]
            sampling.done += 1

    def finish(self, sampling: Sampling) -> Tensor:
        """Latents (c, f, h, w) of a preview whose steps are all done."""
        first = self._given_frame(sampling)
        if first is not None:
            sampling.latents = torch.cat([first, sampling.latents[:, :, 1:]], 2)
        return sampling.latents[0].float()

    def _given_frame(self, sampling: Sampling) -> Tensor | None:
        """The first latent frame (1, c, 1, h, w) where a preview is given one to stay clean."""
        if not self.variant.frame_times or "mean" not in sampling.request.item:
            return None
        return sampling.request.item["mean"][None, :, :1].to(sampling.latents)

    def _falls_to(self, expert: Expert, timestep: float) -> bool:
        """Whether a step is the expert's: the high-noise one takes the boundary itself, as in the pipelines."""
        if len(self.experts) == 1:
            return True
        boundary = self.experts[0].lowest * 1000
        return timestep >= boundary if expert == self.experts[0] else timestep < boundary


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    return dict(value)


FAMILY = Wan
