"""What each kind of adapter does to a linear layer's weight W (o, i), by the tensors that files of it hold.

    lora   W + scale B A                                   A (r, i), B (o, r); scale = alpha / r
    dora   m (W + scale B A) / |W + scale B A| by rows     also m (o,): arXiv 2402.09353, as peft has it
    loha   W + scale (w1_a w1_b) * (w2_a w2_b)             arXiv 2108.06098; w*_a (o, r), w*_b (r, i)
    lokr   W + scale kron(w1, w2)                          arXiv 2212.10650's Kronecker form; w1, w2 whole or as products
    oft    R^T W, R = (1 + Q)(1 - Q)^-1, Q = b - b^T       arXiv 2306.07280; blocks b (n, o / n, o / n) over the rows of W

rsLoRA (arXiv 2312.03732) is a LoRA whose scale is alpha / sqrt(r). Names and formulae of LoHa, LoKr and OFT are those that
ComfyUI's weight adapters read. `OftLayer` is ours since peft's OFT turns the layer's input, which no other program reads.

Not covered: convolutions, Tucker factors, constraint and rescaling of OFT, DoRA along the input.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorapod.engine.quantised import QuantisedLinear, frozen_linear, in_type_of
from lorapod.recipe.choices import AdapterKind

PARTS = {
    "A": AdapterKind.LORA,
    "B": AdapterKind.LORA,
    "magnitude": AdapterKind.DORA,
    **{f"hada_w{i}_{half}": AdapterKind.LOHA for i in (1, 2) for half in "ab"},
    **{name: AdapterKind.LOKR for i in (1, 2) for name in (f"lokr_w{i}", f"lokr_w{i}_a", f"lokr_w{i}_b")},
    "oft_blocks": AdapterKind.OFT,
}
"""Tensors of an adapted layer, and the kind that each tells."""

Parts = dict[str, Tensor]


def kind_of(parts: Parts) -> AdapterKind:
    """The kind of adapter that has these tensors; rsLoRA is told from LoRA by its alpha alone, and is read as one."""
    kinds = {PARTS[name] for name in parts}
    return AdapterKind.DORA if AdapterKind.DORA in kinds else next(iter(kinds))


def rank_of(parts: Parts) -> int | None:
    """What alpha is divided by; None where the scale is 1 whatever alpha says (whole LoKr factors, OFT)."""
    inner = next((name for name in ("A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts), None)
    return int(parts[inner].shape[0]) if inner else None


def scale_of(parts: Parts, alpha: float | None) -> float:
    """alpha / rank; 1 where the file has no alpha."""
    rank = rank_of(parts)
    return 1.0 if rank is None or alpha is None else alpha / rank


def fits(parts: Parts, shape: torch.Size) -> bool:
    """Whether the tensors are a whole adapter for a weight of that shape."""
    on_meta = {name: tensor.to("meta") for name, tensor in parts.items()}
    try:
        found = changed(torch.zeros(shape, device="meta"), on_meta, 1.0)
    except (KeyError, RuntimeError):
        return False
    return bool(found.shape == shape)


def changed(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """The weight (o, i) under the adapter, float32.

    Raises:
        KeyError: Some of its tensors are missing.
        RuntimeError: They are not of this weight's shape.
    """
    weight = weight.float()
    parts = {name: tensor.to(weight.device, torch.float32) for name, tensor in parts.items()}
    scale, kind = scale_of(parts, alpha), kind_of(parts)
    if kind is AdapterKind.OFT:
        turning = rotations(parts["oft_blocks"])
        return torch.einsum("knm,kni->kmi", turning, weight.unflatten(0, turning.shape[:2])).flatten(0, 1)
    if kind is AdapterKind.LOHA:
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif kind is AdapterKind.LOKR:
        product = torch.kron(_factor(parts, "lokr_w1"), _factor(parts, "lokr_w2"))
    else:
        product = parts["B"] @ parts["A"]
    if product.shape != weight.shape:
        raise RuntimeError(f"{tuple(product.shape)} onto {tuple(weight.shape)}")
    whole = weight + scale * product
    if kind is AdapterKind.DORA:
        whole = whole * (parts["magnitude"].view(-1, 1) / whole.norm(dim=1, keepdim=True))
    return whole


def _factor(parts: Parts, name: str) -> Tensor:
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def rotations(blocks: Tensor) -> Tensor:
    """The rotation of each of `blocks` (n, b, b), likewise."""
    one = torch.eye(blocks.shape[1], device=blocks.device, dtype=blocks.dtype)
    skew = blocks - blocks.transpose(1, 2)
    return torch.linalg.solve(one - skew, one + skew)  # the two commute, so that left and right are the same


def device_of(layer: nn.Linear) -> torch.device:
    """Where a layer's weights are."""
    return next(layer.parameters()).device


def without_bias(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x of a frozen layer."""
    return frozen_linear(x, layer, None) if isinstance(layer, QuantisedLinear) else functional.linear(x, layer.weight)


class OftLayer(nn.Module):  # type: ignore[misc]
    """A linear layer whose output is turned: R^T (W x) + bias. It starts as the layer itself.

    Args:
        side: Of the blocks at most; the greatest divisor of the layer's rows up to it is taken.
    """

    def __init__(self, base_layer: nn.Linear, side: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False  # as peft's layers call it
        rows = base_layer.out_features
        side = next(n for n in range(min(side, rows), 0, -1) if rows % n == 0)
        self.oft_blocks = nn.Parameter(torch.zeros(rows // side, side, side, device=device_of(base_layer)))

    def forward(self, x: Tensor) -> Tensor:
        if self._disable_adapters:
            return self.base_layer(x)
        plain = without_bias(self.base_layer, x)  # (…, o)
        turning = rotations(self.oft_blocks.float())
        blocks = plain.float().unflatten(-1, turning.shape[:2])  # (…, n, b)
        turned = torch.einsum("knm,...kn->...km", turning, blocks).flatten(-2).to(plain.dtype)
        bias = self.base_layer.bias
        return turned if bias is None else turned + bias


def compute_in_type_of_layer(adapter: nn.Module) -> None:
    """Makes an adapter of peft, whose weights are in float32, compute in the type of its layer."""
    plain = adapter.forward

    def forward(self: nn.Module, x: Tensor, *given: Any, **named: Any) -> Any:
        with in_type_of(self.base_layer, x.device):
            return plain(x, *given, **named)

    adapter.forward = MethodType(forward, adapter)


class FileLayer(nn.Module):  # type: ignore[misc]
    """A linear layer with what a file adds to it, at any strength: W x + strength (W' - W) x, as ComfyUI interpolates."""

    def __init__(self, base_layer: nn.Linear, parts: Parts, alpha: float | None, device: torch.device) -> None:
        super().__init__()
        self.base_layer, self.alpha, self.strength = base_layer, alpha, 1.0
        for name, tensor in parts.items():
            self.register_buffer(name, tensor.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.base_layer(x)
        weight = self.base_layer.weight
        difference = changed(weight, dict(self.named_buffers(recurse=False)), self.alpha) - weight.float()
        return plain + self.strength * functional.linear(x, difference.to(x.dtype)).to(plain.dtype)
