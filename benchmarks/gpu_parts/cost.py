"""Floating-point operations of one training step of a LoRA, counted as model FLOPs: two a multiply-add, no recomputation.

    frozen linear layers   forward 2 P T of P weights on T tokens, and as much again for the gradient of their input
    adapters               forward 2 r (in + out) T, twice that backward
    attention              forward 4 L S d of L queries, S keys and width d; 8 L S d backward

so linear layers count twice their forward, attention and adapters three times. Layers that act once an item and not once
a token (modulation, embeddings of the timestep) are left out. Utilisation is these operations over seconds and the peak of
the device in bf16 without sparsity, which is what makers publish.
SDXL's convolutions are not a formula of tokens: there the operations of the UNet are counted on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpu_parts.models import Shape, config_of
from lorapod.engine import adapters
from lorapod.engine.families import Family
from lorapod.models import BaseModel

PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0,
    "L40S": 362.0, "RTX 6000 Ada": 364.0, "RTX 5090": 209.5, "RTX 4090": 165.0, "A6000": 155.0, "RTX 3090": 71.0,
}  # fmt: skip
"""bf16, dense, accumulating in float32, by what the device's name holds; the first that fits."""


@dataclass(frozen=True)
class Cost:
    """Forward FLOPs of one step's batch."""

    linear: float
    attention: float
    adapter: float

    @property
    def model(self) -> float:
        """Model FLOPs of the whole step, backward included."""
        return 2 * self.linear + 3 * self.attention + 3 * self.adapter


def peak_tflops(device_name: str) -> float | None:
    """Peak of a device, 1e12 operations a second; None for one that is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def image_tokens(base: BaseModel, shape: Shape) -> int:
    """Tokens of the latents: one every 16 x 16 pixels, and every 4 frames after the first."""
    frames = (shape.frames - 1) // 4 + 1 if base.family == "wan" else 1
    return (shape.width // 16) * (shape.height // 16) * frames


@dataclass(frozen=True)
class _Layers:
    """Weights of linear layers by the tokens that they see, and how many attentions there are of each kind."""

    width: int
    image: int
    text: int
    both: int
    joint: int = 0
    refining: int = 0
    crossing: int = 0
    ends: int = 128
    """Input and output layers' weights a unit of width."""


def _layers(family: str, config: Mapping[str, Any]) -> _Layers:
    if family == "z_image":
        width = config["dim"]
        block = 4 * width**2 + 3 * width * int(width / 3 * 8)
        refiner = config["n_refiner_layers"]
        return _Layers(
            width, refiner * block, refiner * block, config["n_layers"] * block, config["n_layers"], refiner,
            ends=2 * 4 * config["in_channels"],
        )  # fmt: skip
    width = config["num_attention_heads"] * config["attention_head_dim"]
    count = config["num_layers"]
    if family == "wan":
        block = 6 * width**2 + 2 * width * config["ffn_dim"]
        ends = 4 * (config["in_channels"] + config["out_channels"])
        return _Layers(width, count * block, count * 2 * width**2, 0, crossing=count, ends=ends)
    single = config["num_single_layers"] if family == "flux" else 0
    streams = count * 12 * width**2
    return _Layers(
        width, streams, streams, single * 12 * width**2, joint=count + single, ends=2 * config["in_channels"]
    )


def step_cost(base: BaseModel, family: Family, denoiser: nn.Module, shape: Shape, text_tokens: int, batch: int) -> Cost:
    """Forward operations of a batch.

    Args:
        denoiser: With its adapter on, whose layers and rank are what is counted.
    """
    config = config_of(base)
    if base.family == "sdxl":
        linear, attention = _counted_unet(base, family, shape, text_tokens)
        return Cost(linear * batch, attention * batch, 0.0)  # the adapter's one per cent is left out
    layers, n, t = _layers(base.family, config), image_tokens(base, shape), text_tokens
    if base.family == "z_image":
        n, t = -(-n // 32) * 32, -(-t // 32) * 32  # the model pads both to multiples of 32
    d = layers.width
    linear = 2 * (layers.image * n + layers.text * t + layers.both * (n + t) + layers.ends * d * n)
    attention = 4 * d * (
        layers.joint * (n + t) ** 2 + layers.refining * (n * n + t * t) + layers.crossing * (n * n + n * t)
    )  # fmt: skip
    adapted = sum(parameter.numel() for parameter in adapters.adapter_parameters(denoiser))
    adapter = linear * adapted / (layers.image + layers.text + layers.both)
    return Cost(linear * batch, attention * batch, adapter * batch)


def _counted_unet(base: BaseModel, family: Family, shape: Shape, text_tokens: int) -> tuple[float, float]:
    """Forward operations of linear layers and convolutions, and of attention, of one item."""
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of(base)
    unet = family.empty_denoiser(base, family.experts[0]).to("meta")
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(
            torch.empty(1, config["in_channels"], shape.height // 8, shape.width // 8),
            torch.empty(1),
            encoder_hidden_states=torch.empty(1, text_tokens, config["cross_attention_dim"]),
            added_cond_kwargs={"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)},
            return_dict=False,
        )
    by_kind = {str(kind): float(flops) for kind, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for kind, flops in by_kind.items() if "bmm" in kind or "attention" in kind)
    return sum(by_kind.values()) - attention, attention
