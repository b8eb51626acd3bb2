"""What a family of base models must offer the engine. One file a family; everything else is family-blind.

Shapes use b batch, c channels, f frames, h and w height and width; pictures have f = 1. Tensors that belong together
travel as a dictionary by name, so that a family can add its own without the engine knowing:

    text     what the denoiser is told: {"tokens": (l, d)} for Z-Image; FLUX adds "pooled" (d,), SDXL too, Qwen-Image has
             one encoder's tokens. Unpadded and one item each, so that a cached entry does not depend on its batch; where
             the denoiser attends to padding, of full length, with "length" (), the caption's tokens before it was cut.
    latents  what the VAE says of an item: {"mean": (c, f, h, w), "deviation": likewise}, normalised as the denoiser
             expects them; without "deviation" the mean alone is trained on. Wan I2V adds "first_frame" (c + 4, f, h, w)
             and "image" (257, d): conditioning that is made from pixels is cached with them and comes back in `loss`.

A noise level is s in 0..1, 1 being pure noise. Flow families interpolate with it; SDXL maps it to its integer timestep.
A base model of two experts (Wan 2.2) names them in `experts` with the range of s that each is trained on.

What only some families have stands in protocols of its own below `Family`; the engine asks for them with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorapod.data import Placement
from lorapod.engine.blocks import FULLY, Keeping
from lorapod.engine.losses import Answer
from lorapod.engine.weights import Naming
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class Expert:
    """One denoiser of a base model, and the noise levels that it is used for."""

    component: str = "transformer"
    lowest: float = 0.0
    highest: float = 1.0
    suffix: str = ""


@dataclass(frozen=True)
class PreviewRequest:
    """One preview to sample.

    Attributes:
        item: What `encode_pixels` says of the clip whose first frame is given, and the latents of control pictures; empty
            where none is given.
    """

    text: Conditions
    negative: Conditions | None
    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    seed: int
    item: Conditions = field(default_factory=dict)


class Family(Protocol):
    """The methods that differ between architectures."""

    name: str
    pixel_divisor: int
    """Widths and heights are multiples of this (VAE factor times patch size)."""

    frame_step: int
    """Clips have `frame_step * k + 1` frames; 1 for a family of pictures."""

    fps: float | None
    """Frames a second of the clips that it was trained on; None for a family of pictures."""

    experts: tuple[Expert, ...]

    formats: tuple[LoraFormat, ...]
    """Key layouts that its LoRA files can be written in."""

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> Any:
        """Tokenizer and encoder(s), frozen, as one object that `encode_text` takes."""

    def encode_text(self, encoder: Any, captions: list[str]) -> list[Conditions]:
        """One dictionary a caption, on the CPU."""

    def token_limit(self) -> int:
        """Longest caption in tokens, template included; what is longer is cut by the encoder."""

    def load_vae(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The VAE, frozen."""

    def encode_pixels(self, vae: nn.Module, pixels: Tensor) -> list[Conditions]:
        """Pixels (b, 3, f, h, w) in -1..1 to one dictionary of latents an item, float32 on the CPU."""

    def decode_latents(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Latents (b, c, f, h, w), normalised, to pixels (b, 3, f, h, w) in -1..1, float32."""

    def load_denoiser(
        self,
        base: BaseModel,
        expert: Expert,
        device: torch.device,
        dtype: torch.dtype,
        keeping: Keeping = FULLY,
    ) -> nn.Module:
        """The denoiser, frozen, its large layers held as `keeping` says."""

    def empty_denoiser(self, base: BaseModel, expert: Expert) -> nn.Module:
        """The denoiser without weights, for its layers' names and shapes."""

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        """Where single files have each weight of a denoiser of that configuration."""

    def answer(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Answer:
        """What the denoiser says of clean `latents` with `noise` (b, c, f, h, w) at `noise_level` (b,); what is right."""

    def loss(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Tensor:
        """Mean squared error of each item, (b,)."""

    def noise_to_signal(self, noise_level: Tensor) -> Tensor:
        """Ratio of the deviations of noise and signal at each noise level, (b,)."""

    def targets(self, targets: Targets) -> str:
        """Regular expression that fully matches the names of the modules which get an adapter."""

    def export_key(self, module: str, format: LoraFormat) -> str:
        """Key prefix of an adapted module in a LoRA file of one of `formats`, without `.lora_A.weight`."""

    def sample(self, denoiser: nn.Module, base: BaseModel, request: PreviewRequest) -> Tensor:
        """Normalised latents (c, f, h, w) of one preview."""


@runtime_checkable
class ByBaseModel(Protocol):
    """A family whose base models differ in what `Family` says of them: experts, divisor, frame rate."""

    def of(self, base: BaseModel) -> Family:
        """The family as this base model has it, from its configuration files."""


@runtime_checkable
class TakesFirstFrame(Protocol):
    """A family with base models that make a clip out of a picture."""

    first_frame: Literal["needed", "taken", "unknown"]
    """Whether the denoiser must be given the first frame (so that pictures alone cannot be trained on), may be (an item
    then has "given_frames", the count of its latent frames that are given clean), or never is."""

    def conditions_made_by(self, base: BaseModel) -> str:
        """What cached latents depend on beside the VAE; empty where that is all."""


@runtime_checkable
class TakesControl(Protocol):
    """A family with base models that are given control pictures: what an edit starts from.

    They come encoded like the pictures themselves, in `items`, under the names of `lorapod.engine.families.control`.
    """

    control: Literal["needed", "taken"]
    """Whether there must be control pictures, or may be none: the base model then draws from text alone."""

    most_controls: int
    """Control pictures that an item may have."""


@runtime_checkable
class TextSeesControl(Protocol):
    """A family whose text encoder is shown the control pictures beside the caption."""

    def encode_seen_text(self, encoder: Any, caption: str, pictures: list[NDArray[np.uint8]]) -> Conditions:
        """As `Family.encode_text`, of one caption with its control pictures (h, w, 3)."""


@runtime_checkable
class TakesPlacement(Protocol):
    """A family whose denoiser is told how a picture was resized and cut."""

    def placed(self, entry: Conditions, placement: Placement) -> Conditions:
        """A cached entry with what is told beside it."""


@runtime_checkable
class ShiftsByResolution(Protocol):
    """A family whose sampler shifts noise levels further the larger the picture is."""

    def resolution_shift(self, latents_shape: tuple[int, ...]) -> float:
        """k of s' = k s / (1 + (k - 1) s) for latents (..., h, w)."""


@runtime_checkable
class TellsGuidance(Protocol):
    """A family with base models that are told their guidance, and so are not led away from a negative prompt."""

    def ignores_negative_prompt(self, base: BaseModel) -> bool:
        """Whether this base model is one of them."""


@runtime_checkable
class WeighsBySnr(Protocol):
    """A family that learns a diffusion with a signal-to-noise ratio at each noise level."""

    @property
    def predicts_v(self) -> bool:
        """Whether the denoiser says v (arXiv 2202.00512) and not the noise."""

    def min_snr_weight(self, noise_level: Tensor, gamma: float) -> Tensor:
        """Weight of each item's loss (b,) by Min-SNR-gamma (arXiv 2303.09556)."""


@runtime_checkable
class TrainsTextEncoders(Protocol):
    """A family whose text encoders can be trained with the denoiser."""

    def load_text_encoder(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> Any:
        """As `Family.load_text_encoder`."""

    def encoders_of(self, encoder: Any) -> dict[str, nn.Module]:
        """The transformers inside what `load_text_encoder` gives, by the base model's names of them."""

    def encode(self, encoder: Any, captions: list[str]) -> list[Conditions]:
        """As `Family.encode_text`, on the encoders' device and with gradients where they are wanted."""


@runtime_checkable
class NamesLayers(Protocol):
    """A family whose LoRA files do not name layers as diffusers does."""

    def module_of(self, name: str) -> str:
        """The module that a LoRA file of any layout calls `name` (prefix and suffix taken off)."""


@runtime_checkable
class SamplesByExperts(Protocol):
    """A family whose base models may have several denoisers, which draw a preview one after the other."""

    def begin(self, base: BaseModel, request: PreviewRequest, device: torch.device) -> Any:
        """A preview before its first step."""

    def advance(self, denoiser: nn.Module, sampling: Any, expert: Expert | None) -> None:
        """Takes the steps that fall to `expert`."""

    def finish(self, sampling: Any) -> Tensor:
        """Normalised latents (c, f, h, w) of a preview that every expert has advanced."""
