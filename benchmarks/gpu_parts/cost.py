"""Floating-point operations of one training step of a LoRA, counted as model FLOPs: two a multiply-add, no recomputation.

    frozen linear layers   forward 2 P T of P weights on T tokens, and as much again for the gradient of their input
    adapters               forward 2 r (in + out) T, twice that backward
    attention              forward 4 L S d of L queries, S keys and width d; 8 L S d backward

so linear layers and convolutions count twice their forward, attention and adapters three times. They are counted where the
family calls the denoiser, on the meta device, with torch's FlopCounterMode. Utilisation is these operations over seconds and
the peak of the device in bf16 without sparsity, which is what makers publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpu_parts.models import MODELS, Shape, config_of, latents_shape
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


def step_cost(base: BaseModel, family: Family, denoiser: nn.Module, shape: Shape, text_tokens: int, batch: int) -> Cost:
    """Forward operations of a batch.

    Args:
        denoiser: With its adapter on, of which only the shapes matter.
    """
    seen: dict[str, int] = {}
    bare = family.empty_denoiser(base, family.experts[0]).to("meta")
    weights = {
        name: sum(part.numel() for part in adapters.parts_of(layer).values())
        for name, layer in adapters.layers_of(denoiser)
    }
    for name, module in bare.named_modules():
        if name in weights:
            module.register_forward_hook(partial(_count_rows, seen, name))
    latents = latents_shape(base, family, shape)
    model, config = MODELS[base.name], config_of(base)
    empty = partial(torch.empty, device="meta")
    item = {name: empty(size) for name, size in model.item(config, latents).items()}
    text = {name: empty(size) for name, size in model.text(config, text_tokens).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family.answer(bare, empty((1, *latents)), empty((1, *latents)), empty(1), [item], [text])
    by_kind = {str(kind): float(flops) for kind, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for kind, flops in by_kind.items() if "bmm" in kind or "attention" in kind)
    adapter = sum(2.0 * weights[name] * rows for name, rows in seen.items())
    return Cost((sum(by_kind.values()) - attention) * batch, attention * batch, adapter * batch)


def _count_rows(seen: dict[str, int], name: str, layer: nn.Module, given: Any, out: Tensor) -> None:
    """Notes how many places a layer computes."""
    channels = out.shape[1] if isinstance(layer, nn.Conv2d) else out.shape[-1]
    seen[name] = seen.get(name, 0) + out.numel() // channels
