"""Base models without files: their configurations at full and at tiny size, and random weights made on the device.

A model is written as a folder of configurations alone, so that the engine's families read it as they read any other; its
weights are then made tensor by tensor in their own type, without a copy in float32. They are normal numbers with a
deviation of 1 / sqrt(inputs), since matrix products of zeros or constants draw less power and run faster; what adds to the
residual stream is scaled by 1 / sqrt(2 depth), so that 60 random blocks do not overflow.
Not covered: VAE and text encoders, which no training step runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorapod.engine.families import Conditions, Family, family_of
from lorapod.engine.weights import kept_exact
from lorapod.models import BaseModel

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What is trained on: pixels, and frames of a clip."""

    width: int
    height: int
    frames: int = 1

    @classmethod
    def of(cls, text: str) -> Shape:
        """From `1024x1024` or `832x480x81`.

        Raises:
            ValueError: It is neither.
        """
        numbers = [int(number) for number in text.lower().split("x")]
        if len(numbers) not in (2, 3) or min(numbers) < 1:
            raise ValueError(f"{text} is no shape; write WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES")
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f"x{self.frames}" if self.frames > 1 else "")


@dataclass(frozen=True)
class Model:
    """A base model as the benchmark makes it.

    Attributes:
        family: Its name in the engine.
        full: What its class is configured with, where that is not the class's default.
        tiny: Likewise, as the tests' models are.
        text_tokens: Tokens of a caption.
        text: Names and shapes of what the denoiser is told, of a configuration and a number of tokens.
        channels: Of the latents.
        goals: Seconds a step by shape: one H100, bf16, batch 1, rank 16.
        index: What its `model_index.json` says beside its parts.
        vae: What the VAE is configured with, as far as families read it.
        factor: Pixels a side of a latent.
        cell: Pixels a side of a token.
        item: Names and shapes of what an item holds beside its latents, of a configuration and their shape.
    """

    family: str
    kind: str
    full: Config
    tiny: Config
    text_tokens: int
    text: Callable[[Config, int], dict[str, tuple[int, ...]]]
    channels: Callable[[Config], int]
    goals: Mapping[str, float] = field(default_factory=dict)
    component: str = "transformer"
    index: Config = field(default_factory=dict)
    vae: Config = field(default_factory=dict)
    factor: int = 8
    cell: int = 16
    item: Callable[[Config, tuple[int, ...]], dict[str, tuple[int, ...]]] = lambda config, latents: {}


def _sdxl_text(config: Config, tokens: int) -> dict[str, tuple[int, ...]]:
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {"tokens": (tokens, config["cross_attention_dim"]), "pooled": (pooled,)}


_WAN_TINY = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "freq_dim": 256,
    "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, "in_channels": 16, "out_channels": 16,
}  # fmt: skip


_FIRST_FRAME_CHANNELS = 36
"""That a denoiser takes which is given a first frame: 16 of the noisy latents, 4 of the mask, 16 of the frame."""


def _wan_vae(configured: Config) -> dict[str, Any]:
    """What is different where the VAE is that of TI2V 5B, which halves sides once more."""
    if configured.get("in_channels") != 48:
        return {}
    return {"factor": 16, "cell": 32, "vae": {"scale_factor_spatial": 16}, "index": {"expand_timesteps": True}}


def _controlled(config: Config, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """One control picture of the size of what is drawn."""
    return {"control_0": latents}


def _first_frame(config: Config, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Mask and latents of a clip's first frame, and what CLIP says of it where the denoiser takes that."""
    image = {"image": (257, config["image_dim"])} if config.get("image_dim") else {}
    return {"first_frame": (4 + latents[0], *latents[1:]), **image}


def _wan(goals: Mapping[str, float] | None = None, tiny: Config | None = None, **full: Any) -> Model:
    configured = {**full, **(tiny or {})}
    return Model(
        family="wan",
        kind="WanTransformer3DModel",
        full=full,
        tiny={**_WAN_TINY, **(tiny or {})},
        item=_first_frame if configured.get("in_channels") == _FIRST_FRAME_CHANNELS else lambda config, latents: {},
        text_tokens=512,
        text=lambda config, tokens: {"tokens": (tokens, config["text_dim"])},
        channels=lambda config: int(config["out_channels"]),
        goals=goals or {},
        **_wan_vae(configured),
    )


def _flux(**rest: Any) -> Model:
    return Model(
        family="flux",
        kind="FluxTransformer2DModel",
        full={"guidance_embeds": True},
        tiny={
            "patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
            "axes_dims_rope": (4, 4, 8),
        },
        text_tokens=512,
        text=lambda config, tokens: {
            "tokens": (tokens, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],),
        },
        channels=lambda config: int(config["in_channels"]) // 4,
        **rest,
    )  # fmt: skip


def _qwen_image(**rest: Any) -> Model:
    return Model(
        family="qwen_image",
        kind="QwenImageTransformer2DModel",
        full={},
        tiny={
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4),
        },
        text=lambda config, tokens: {"tokens": (tokens, config["joint_attention_dim"])},
        channels=lambda config: int(config["in_channels"]) // 4,
        **rest,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "z-image": Model(
        family="z_image",
        kind="ZImageTransformer2DModel",
        full={},
        tiny={
            "in_channels": 16, "dim": 48, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 16, "axes_dims": [8, 8, 8], "axes_lens": [512, 64, 64],
        },
        text_tokens=128,
        text=lambda config, tokens: {"tokens": (tokens, config["cap_feat_dim"])},
        channels=lambda config: int(config["in_channels"]),
        goals={"512x512": 0.058, "1024x1024": 0.21},
    ),
    "flux-dev": _flux(goals={"512x512": 0.090, "1024x1024": 0.29}),
    "flux-kontext": _flux(item=_controlled, index={"_class_name": "FluxKontextPipeline"}),
    "flux2-klein-4b": Model(
        family="flux2",
        kind="Flux2Transformer2DModel",
        full={
            "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
            "joint_attention_dim": 7680, "guidance_embeds": False,
        },
        tiny={
            "patch_size": 1, "in_channels": 32, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 48, "guidance_embeds": False, "axes_dims_rope": (4, 4, 4, 4),
        },
        text_tokens=512,
        text=lambda config, tokens: {"tokens": (tokens, config["joint_attention_dim"])},
        channels=lambda config: int(config["in_channels"]),
        factor=16,
    ),
    "qwen-image": _qwen_image(text_tokens=128, goals={"1024x1024": 0.33}),
    "qwen-image-edit": _qwen_image(
        text_tokens=324, item=_controlled, index={"_class_name": "QwenImageEditPlusPipeline"}
    ),
    "sdxl": Model(
        family="sdxl",
        kind="UNet2DConditionModel",
        full={
            "sample_size": 128, "in_channels": 4, "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "transformer_layers_per_block": (1, 2, 10), "projection_class_embeddings_input_dim": 2816,
            "cross_attention_dim": 2048,
        },
        tiny={
            "sample_size": 32, "in_channels": 4, "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "block_out_channels": (32, 64),
            "layers_per_block": 1, "attention_head_dim": (2, 4), "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 80, "cross_attention_dim": 64,
        },
        text_tokens=77,
        text=_sdxl_text,
        channels=lambda config: int(config["in_channels"]),
        goals={"1024x1024": 0.040},
        component="unet",
        item=lambda config, latents: {"time_ids": (6,)},
    ),
    "wan2.1-t2v-1.3b": _wan(
        {"832x480x81": 1.9}, num_attention_heads=12, ffn_dim=8960, num_layers=30,
    ),
    "wan2.1-t2v-14b": _wan({"832x480x33": 2.8, "832x480x81": 10.0}),
    "wan2.1-i2v-14b": _wan(
        tiny={"in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 24},
        in_channels=36, image_dim=1280, added_kv_proj_dim=5120,
    ),
    "wan2.2-i2v-a14b": _wan(tiny={"in_channels": 36}, in_channels=36),
    "wan2.2-ti2v-5b": _wan(
        tiny={"in_channels": 48, "out_channels": 48},
        num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48,
    ),
}  # fmt: skip


def write_base(name: str, tiny: bool, folder: Path) -> BaseModel:
    """A base model's folder with its configurations and no weights."""
    import diffusers

    model = MODELS[name]
    kind = getattr(diffusers, model.kind)
    given = model.tiny if tiny else model.full
    with torch.device("meta"):
        kind(**given).save_config(folder / model.component)
    files: dict[str, dict[str, Any]] = {
        "model_index.json": {**model.index, model.component: ["diffusers", model.kind]},
        "vae/config.json": dict(model.vae),
        "scheduler/scheduler_config.json": {
            "_class_name": "DDPMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        },
    }  # fmt: skip
    for place, content in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(content), encoding="utf-8")
    return BaseModel(name, model.family, folder)


def config_of(base: BaseModel) -> dict[str, Any]:
    """What the denoiser of a base model is configured with."""
    path = base.folder / MODELS[base.name].component / "config.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


_ADDS = ("to_out.0", "to_add_out", "net.2", "proj_out", "w2", "attention.out", "conv2")
"""Ends of names of layers whose output is added to the residual stream."""


@torch.no_grad()
def random_denoiser(base: BaseModel, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A frozen denoiser of random weights, as the family's `load_denoiser` would give it."""
    family = family_of(base)
    denoiser = family.empty_denoiser(base, family.experts[0])
    exact = kept_exact(denoiser, dtype)
    depth = len(blocks_of(denoiser)) or 1
    generator = torch.Generator(device).manual_seed(seed)
    for owner_name, owner in list(denoiser.named_modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            whole = f"{owner_name}.{name}"
            kind = torch.float32 if exact.intersection(whole.split(".")) else dtype
            value = torch.empty(parameter.shape, device=device, dtype=kind)
            if parameter.ndim == 1 and name == "weight":
                value.fill_(1.0)  # scales of norms
            else:
                inputs = math.prod(parameter.shape[1:]) if name == "weight" and parameter.ndim > 1 else 2500
                deviation = 1 / math.sqrt(inputs)
                if owner_name.endswith(_ADDS):
                    deviation /= math.sqrt(2 * depth)
                value.normal_(0.0, deviation, generator=generator)
            setattr(owner, name, nn.Parameter(value, requires_grad=False))
    return denoiser.to(device).eval().requires_grad_(False)  # moves the buffers


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a denoiser of diffusers."""
    kinds = set(getattr(denoiser, "_repeated_blocks", None) or ())
    return [module for module in denoiser.modules() if type(module).__name__ in kinds]


def latents_shape(base: BaseModel, family: Family, shape: Shape) -> tuple[int, int, int, int]:
    """(c, f, h, w) of what is trained on.

    Raises:
        ValueError: The family does not take that shape.
    """
    divisor, step = family.pixel_divisor, family.frame_step
    if shape.width % divisor or shape.height % divisor:
        raise ValueError(f"{base.name} takes widths and heights in steps of {divisor}")
    if shape.frames > 1 and (family.fps is None or (shape.frames - 1) % step):
        raise ValueError(f"{base.name} takes no clips of {shape.frames} frames")
    frames = (shape.frames - 1) // step + 1
    model = MODELS[base.name]
    return model.channels(config_of(base)), frames, shape.height // model.factor, shape.width // model.factor


def random_text(base: BaseModel, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Conditions:
    """What the denoiser is told of a caption of so many tokens: normal numbers in the shapes of the encoders."""
    shapes = MODELS[base.name].text(config_of(base), tokens)
    return {name: _normal(shape, generator).to(dtype) for name, shape in shapes.items()}


def random_item(base: BaseModel, latents: tuple[int, ...], generator: torch.Generator) -> Conditions:
    """What is cached of an item beside its latents (c, f, h, w): normal numbers."""
    shapes = MODELS[base.name].item(config_of(base), latents)
    return {name: _normal(shape, generator) for name, shape in shapes.items()}


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
