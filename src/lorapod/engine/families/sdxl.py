"""Stable Diffusion XL and its many fine-tunes, those that predict v among them.

Conventions (diffusers `StableDiffusionXLPipeline`, training script `train_text_to_image_lora_sdxl.py`): the denoiser is
trained on 1,000 integer timesteps of a variance-preserving diffusion, and predicts the noise or v as the scheduler's
configuration says; both CLIP encoders see the caption padded to 77 tokens, their last but one hidden states side by side
are the tokens and the second's projection is the pooled vector; six numbers (the size of the source, the crop, the size of
the bucket) tell the denoiser how a picture was cut. A noise level s is the timestep of that share of the schedule.
Not covered: LoRA on convolutions, the refiner.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.data import Placement
from lorapod.engine.families import ldm_names
from lorapod.engine.families.autoencoder import FACTOR, WithAutoencoder
from lorapod.engine.families.base import Conditions, Expert, PreviewRequest
from lorapod.engine.families.shared import Answers, OfDiffusers
from lorapod.engine.losses import Answer, weight_of
from lorapod.engine.weights import Naming, load_transformers
from lorapod.errors import BaseModelError
from lorapod.lora_names import kohya
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

MAX_TOKENS = 77
"""Positions of both CLIP encoders, start and end mark included."""

_BLOCKS = r"(?:(?:down|up)_blocks\.\d+|mid_block)"
_ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
_LAYER = rf"{_BLOCKS}\.attentions\.\d+\.transformer_blocks\.\d+"
_TARGETS = {
    Targets.ATTENTION: rf"{_LAYER}\.{_ATTENTION}",
    Targets.ATTENTION_FEED_FORWARD: rf"{_LAYER}\.(?:{_ATTENTION}|ff\.net\.(?:0\.proj|2))",
    Targets.ALL: rf"{_LAYER}\.(?:{_ATTENTION}|ff\.net\.(?:0\.proj|2))"
    rf"|{_BLOCKS}\.(?:attentions\.\d+\.proj_(?:in|out)|resnets\.\d+\.time_emb_proj)",
    # The two blocks that B-LoRA (arXiv 2403.14572) found to hold a picture's content and its style.
    Targets.CHARACTER: rf"up_blocks\.0\.attentions\.0\.transformer_blocks\.\d+\.{_ATTENTION}",
    Targets.STYLE: rf"up_blocks\.0\.attentions\.1\.transformer_blocks\.\d+\.{_ATTENTION}",
}


@dataclass(frozen=True)
class NoiseSchedule:
    """The diffusion that a base model was trained on.

    Attributes:
        alphas_cumprod: Share of the clean picture's variance at each timestep, (steps,), float32.
        predicts_v: Whether the denoiser predicts v = sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512) and not the noise.
    """

    alphas_cumprod: Tensor
    predicts_v: bool

    @classmethod
    def of(cls, folder: Path) -> NoiseSchedule:
        """From the folder of a scheduler, of whatever class; zero-terminal-SNR schedules are read as such.

        Raises:
            BaseModelError: The denoiser predicts something else.
        """
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_pretrained(folder, local_files_only=True)
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise BaseModelError(
                f"The base model predicts {prediction}, which the engine does not train",
                f"{folder / 'scheduler_config.json'} says so.",
                "Set its `prediction_type` to `epsilon` or `v_prediction` if the file is wrong.",
            )
        return cls(scheduler.alphas_cumprod.float(), prediction == "v_prediction")

    def timesteps(self, noise_level: Tensor) -> Tensor:
        """Integer timesteps (b,) of noise levels in 0..1 (b,)."""
        steps = len(self.alphas_cumprod)
        return (noise_level * steps).long().clamp(0, steps - 1)


@dataclass
class TextEncoders:
    """Tokenizers and encoders: CLIP-L, then OpenCLIP-bigG with its projection."""

    tokenizers: tuple[Any, Any]
    models: tuple[nn.Module, nn.Module]


class SDXL(OfDiffusers, WithAutoencoder, Answers):
    """The `sdxl` family."""

    name = "sdxl"
    denoiser_class = "UNet2DConditionModel"
    target_layers = _TARGETS
    pixel_divisor = 8
    frame_step = 1
    fps = None
    experts = (Expert("unet"),)
    formats = tuple(LoraFormat)

    def __init__(self, schedule: NoiseSchedule | None = None) -> None:
        self._schedule = schedule

    def of(self, base: BaseModel) -> SDXL:
        """The family with the base model's own noise schedule.

        Raises:
            BaseModelError: A prediction that is not known.
        """
        return SDXL(NoiseSchedule.of(base.folder / "scheduler"))

    @property
    def schedule(self) -> NoiseSchedule:
        """The base model's noise schedule; that of SDXL 1.0 where the family is not of a base model."""
        if self._schedule is None:
            from diffusers import DDPMScheduler

            made = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
            self._schedule = NoiseSchedule(made.alphas_cumprod.float(), False)
        return self._schedule

    @property
    def predicts_v(self) -> bool:
        """Whether the base model predicts v."""
        return self.schedule.predicts_v

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> TextEncoders:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        tokenizers = tuple(
            CLIPTokenizer.from_pretrained(base.folder / part, local_files_only=True)
            for part in ("tokenizer", "tokenizer_2")
        )
        return TextEncoders(
            (tokenizers[0], tokenizers[1]),
            (
                load_transformers(CLIPTextModel, base, "text_encoder", device, dtype, ldm_names.CLIP_L),
                load_transformers(
                    CLIPTextModelWithProjection, base, "text_encoder_2", device, dtype, ldm_names.OPEN_CLIP
                ),
            ),
        )

    def token_limit(self) -> int:
        return MAX_TOKENS

    @torch.no_grad()
    def encode_text(self, encoder: TextEncoders, captions: list[str]) -> list[Conditions]:
        """ "tokens" (77, 2048), "pooled" (1280,), and the "length" in tokens of the caption before it was cut."""
        return [{name: value.cpu().clone() for name, value in each.items()} for each in self.encode(encoder, captions)]

    def encoders_of(self, encoder: TextEncoders) -> dict[str, nn.Module]:
        """Both transformers, without the second's projection, under one name whatever version of transformers it is."""
        inner = [getattr(model, "text_model", model) for model in encoder.models]
        return {"text_encoder": inner[0], "text_encoder_2": inner[1]}

    def encode(self, encoder: TextEncoders, captions: list[str]) -> list[Conditions]:
        states, pooled = [], None
        for tokenizer, model in zip(encoder.tokenizers, encoder.models, strict=True):
            ids = tokenizer(
                captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            found = model(ids.to(model.device), output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled = found[0]  # the second encoder's projection is what stays, (b, 1280)
        tokens = torch.cat(states, -1)  # (b, 77, 768 + 1280)
        assert pooled is not None
        lengths = [len(ids) for ids in encoder.tokenizers[0](captions, verbose=False).input_ids]
        return [
            {"tokens": row, "pooled": vector, "length": torch.tensor(length)}
            for row, vector, length in zip(tokens, pooled, lengths, strict=True)
        ]

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """In float32 whatever the recipe says: SDXL's own VAE overflows in half precision, and latents are made once."""
        return super().load_vae(base, device, torch.float32)

    def placed(self, entry: Conditions, placement: Placement) -> Conditions:
        """The entry with "time_ids" (6,): height and width of the source, top and left of the crop, size of the bucket."""
        width, height = placement.source
        left, top, right, bottom = placement.crop
        return {**entry, "time_ids": torch.tensor([height, width, top, left, bottom - top, right - left])}

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        return ldm_names.unet(config)

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, timestep: Tensor, time_ids: Tensor, texts: list[Conditions]
    ) -> Tensor:
        """What the denoiser says of `noisy` (b, 4, h, w) at `timestep` (b,) or (), float32.

        Args:
            time_ids: (b, 6), see `placed`.
        """
        dtype = next(denoiser.parameters()).dtype
        device = noisy.device
        pooled = torch.stack([text["pooled"] for text in texts]).to(device, dtype)
        return denoiser(
            noisy.to(dtype),
            timestep,
            encoder_hidden_states=torch.stack([text["tokens"] for text in texts]).to(device, dtype),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids.to(device, dtype)},
            return_dict=False,
        )[0].float()

    def answer(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Answer:
        timestep = self.schedule.timesteps(noise_level)
        share = self._alphas(timestep).view(-1, 1, 1, 1, 1)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        target = share.sqrt() * noise - (1 - share).sqrt() * latents if self.predicts_v else noise
        time_ids = torch.stack([item["time_ids"] if "time_ids" in item else _uncropped(latents) for item in items])
        predicted = self.predict(denoiser, noisy[:, :, 0], timestep, time_ids, texts)[:, :, None]
        return Answer(predicted, target, weight_of(items, latents))

    def noise_to_signal(self, noise_level: Tensor) -> Tensor:
        share = self._alphas(self.schedule.timesteps(noise_level))
        return ((1 - share) / share).sqrt()

    def min_snr_weight(self, noise_level: Tensor, gamma: float) -> Tensor:
        """Weight of each item's loss, (b,): min(SNR, gamma) / SNR, and / (SNR + 1) where v is predicted.

        Min-SNR-gamma of arXiv 2303.09556, whose weights are of x0's loss; a loss of v is (SNR + 1) times that.
        """
        share = self._alphas(self.schedule.timesteps(noise_level))
        ratio = share / (1 - share)
        clamped = ratio.clamp(max=gamma)
        return clamped / (ratio + 1) if self.predicts_v else clamped / ratio

    def _alphas(self, timestep: Tensor) -> Tensor:
        schedule = self.schedule
        if schedule.alphas_cumprod.device != timestep.device:
            self._schedule = NoiseSchedule(schedule.alphas_cumprod.to(timestep.device), schedule.predicts_v)
        return self.schedule.alphas_cumprod[timestep]

    def export_key(self, module: str, format: LoraFormat) -> str:
        """ComfyUI knows SDXL's layers by kohya's names; what peft writes for diffusers it does not match."""
        if format is not LoraFormat.DIFFUSERS:
            return kohya.kohya_name(module)
        return module if module.startswith("text_encoder") else f"unet.{module}"

    def module_of(self, name: str) -> str:
        """The module that a LoRA file of any layout calls `name`."""
        return kohya.module_of(name.removeprefix("unet."))

    @torch.no_grad()
    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """The steps of the model's own scheduler, as `StableDiffusionXLPipeline` takes them: same seed, same picture."""
        import diffusers

        folder = base.folder / "scheduler"
        config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
        scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(folder, local_files_only=True)
        device = denoiser.device
        generator = torch.Generator("cpu").manual_seed(request.seed)
        scheduler.set_timesteps(request.steps, device=device)
        height, width = request.height // FACTOR, request.width // FACTOR
        shape = (1, denoiser.config.in_channels, height, width)
        latents = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
        guided = request.guidance > 1 and request.negative is not None
        texts = [request.negative, request.text] if guided and request.negative is not None else [request.text]
        size = [request.height, request.width]
        time_ids = torch.tensor([[*size, 0, 0, *size]]).expand(len(texts), -1)
        drawing = inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if "generator" in drawing else {}  # ancestral schedulers draw noise as they go
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        for timestep in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents.expand(len(texts), -1, -1, -1), timestep)
            predicted = self.predict(denoiser, noisy, timestep, time_ids, texts)
            if guided:
                predicted = predicted[:1] + request.guidance * (predicted[1:] - predicted[:1])
            latents = scheduler.step(predicted, timestep, latents, **extra, return_dict=False)[0]
        return latents[0][:, None].float()  # (4, 1, h, w)


def _uncropped(latents: Tensor) -> Tensor:
    """The sizes and the crop (6,) of a picture with latents (..., h, w) that is neither scaled nor cropped."""
    height, width = (side * FACTOR for side in latents.shape[-2:])
    return torch.tensor([height, width, 0, 0, height, width])


FAMILY = SDXL
