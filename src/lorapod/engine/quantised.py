"""Linear layers whose frozen weights are held in 8 or 4 bits and widened where they are used.

    fp8    float8 (e4m3) and one scale a row: the row's largest |w| becomes 448; each weight within 1/16 of itself
    int8   whole numbers and one scale a row: the row's largest |w| becomes 127; within half a step of its row
    nf4    16 values and one scale for 64 weights (QLoRA, arXiv 2305.14314, appendix E): within 0.152 of the largest |w|

Weights alone are held so; arithmetic is that of the model's precision. A layer is widened once in the forward pass and once
more in the backward pass, so that no wide copy waits in between. What is not a large linear layer of a repeated block
(embeddings, norms, convolutions, the layers at both ends, what its class keeps in float32) stays as it is.

Not covered: arithmetic in 8 bits, and formats that other programs quantise to; `engine.weights` reads some and widens them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorapod.recipe.choices import Quantization

BLOCK = 64
"""Weights of `nf4` that share a scale."""

LEAST_WEIGHTS = 4096
"""Smaller layers stay as they are: they cost nothing and are often the sensitive ones."""

_FP8_MOST = 448.0
_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat4, as in the paper's appendix."""


@dataclass(frozen=True)
class Codes:
    """A weight (o, i) in few bits.

    Attributes:
        values: (o, i) float8 or int8; of `nf4` (o * i / 2,) uint8 with two weights each, the first in the high half.
        scales: (o, 1) or (o * i / 64, 1), float32.
        shape: (o, i).
    """

    values: Tensor
    scales: Tensor
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)

    def to(self, device: torch.device) -> Codes:
        return Codes(self.values.to(device), self.scales.to(device), self.shape)


def quantise(weight: Tensor, kind: Quantization) -> Codes:
    """The codes of a weight (o, i), on its device; what is in between is rounded to the nearest.

    Raises:
        ValueError: `kind` is none, or `nf4` of a weight whose number is no multiple of 64.
    """
    shape = (weight.shape[0], weight.shape[1])
    wide = weight.float()
    if kind is Quantization.FP8:
        scales = _scales(wide, _FP8_MOST)
        return Codes((wide / scales).clamp(-_FP8_MOST, _FP8_MOST).to(torch.float8_e4m3fn), scales, shape)
    if kind is Quantization.INT8:
        scales = _scales(wide, 127.0)
        return Codes((wide / scales).round().clamp(-127, 127).to(torch.int8), scales, shape)
    if kind is not Quantization.NF4 or wide.numel() % BLOCK:
        raise ValueError(f"{kind} of {shape}")
    blocks = wide.reshape(-1, BLOCK)
    scales = _scales(blocks, 1.0)
    levels = _levels(wide.device)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize((blocks / scales).flatten(), between).to(torch.uint8)
    return Codes(nearest[::2] << 4 | nearest[1::2], scales, shape)


def _scales(rows: Tensor, most: float) -> Tensor:
    """What each row is divided by so that its largest becomes `most`; 1 for rows of zeros."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    return torch.where(largest > 0, largest / most, torch.ones_like(largest))


@cache
def _levels(device: torch.device) -> Tensor:
    """(16,); made once, since bringing numbers to a GPU waits for it."""
    return torch.tensor(_LEVELS, device=device)


def widened(values: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (o, i) that codes stand for, in `dtype`."""
    if values.dtype is torch.uint8:
        both = torch.stack([values >> 4, values & 15], dim=1).flatten()
        return (_levels(values.device)[both.long()].view(-1, BLOCK) * scales).to(dtype).view(shape)
    return (values.to(torch.float32) * scales).to(dtype)


class QuantisedLinear(nn.Linear):  # type: ignore[misc]
    """A frozen linear layer whose weight is held as codes. `weight` widens it anew each time that it is asked for."""

    def __init__(self, codes: Codes, bias: Tensor | None, kind: Quantization, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear would make a weight
        self.out_features, self.in_features = codes.shape
        self.kind, self.dtype = kind, dtype
        self.values = nn.Parameter(codes.values, requires_grad=False)
        self.scales = nn.Parameter(codes.scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(o, i) in the type that it is computed with; not a parameter, and changing it changes nothing."""
        return widened(self.values, self.scales, (self.out_features, self.in_features), self.dtype)

    def put(self, weight: Tensor) -> None:
        """Takes another weight (o, i)."""
        codes = quantise(weight, self.kind)
        self.values.data.copy_(codes.values)
        self.scales.data.copy_(codes.scales)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind.value}"


@torch.no_grad()
def put_weight(layer: nn.Linear, weight: Tensor) -> None:
    """Gives a frozen linear layer another weight (o, i)."""
    if isinstance(layer, QuantisedLinear):
        layer.put(weight)
    else:
        layer.weight.copy_(weight.to(layer.weight.dtype))


def may_be_quantised(layer: nn.Module) -> bool:
    """Whether a layer of a block is one that is held in few bits."""
    if type(layer) is not nn.Linear:
        return False
    count = int(math.prod(layer.weight.shape))
    return count >= LEAST_WEIGHTS and count % BLOCK == 0


def frozen_linear(x: Tensor, layer: nn.Linear, bias: Tensor | None) -> Tensor:
    """W x + bias for a quantised layer."""
    given = None if bias is None else bias.to(layer.dtype)
    shape = (layer.out_features, layer.in_features)
    return _Frozen.apply(x.to(layer.dtype), layer.values, layer.scales, given, shape)


def type_of(layer: nn.Linear) -> torch.dtype:
    """The type that a linear layer computes in."""
    dtype: torch.dtype = layer.dtype if isinstance(layer, QuantisedLinear) else layer.weight.dtype
    return dtype


def in_type_of(layer: nn.Linear, device: torch.device) -> torch.autocast:
    """Inside this context an adapter's float32 weights compute in the type of the layer that it is on."""
    dtype = type_of(layer)
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


class _Frozen(torch.autograd.Function):  # type: ignore[misc]
    """x (…, i) to (…, o); nothing but the codes, which are there anyway, is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(values, scales)
        ctx.shape = shape
        return nn.functional.linear(x, widened(values, scales, shape, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        values, scales = ctx.saved_tensors
        return grad @ widened(values, scales, ctx.shape, grad.dtype), None, None, None, None
