"""A frozen linear layer and its LoRA as one operation of autograd: W x + bias + scale B A x.

peft computes the same as a chain of modules: it casts the input to the adapter's float32 and back, adds and scales whole
outputs, and leaves autograd to keep what each link wants. Here the products with A and B are accumulated into those with W
(RunLoRA, arXiv 2312.03415, and LoRAFusion, arXiv 2510.00206, have the order of contraction), the input is kept once, and
Python runs two functions a layer in place of six modules. `benchmarks/fused_lora.py` says what it is worth.

A quantised layer is widened once in each direction.

Not covered: dropout inside the adapter, DoRA, a base layer that is not a plain linear one, and anything but training's own
adapter; all of these go peft's way.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorapod.engine.quantised import QuantisedLinear, in_type_of, type_of, widened


class FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """y = W x + bias + scale B A x for x (n, i), W (o, i), A (r, i) and B (o, r); W and bias get no gradient.

    All but A and B are of the type that is computed in; A and B are cast to it, and get gradients of their own type. W is
    given as it is held: of a quantised layer its codes with `codes_scales`, and its `shape`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        held: Tensor,
        codes_scales: Tensor | None,
        shape: tuple[int, int],
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        down, up = a.to(x.dtype), b.to(x.dtype)
        inner = x @ down.t()  # (n, r)
        weight = _weight(held, codes_scales, shape, x.dtype)
        plain = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        ctx.save_for_backward(x, held, codes_scales, a, b, inner)
        ctx.scale, ctx.shape = scale, shape
        return plain.addmm_(inner, up.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None, Tensor, Tensor, None]:
        x, held, codes_scales, a, b, inner = ctx.saved_tensors
        grad = grad.to(x.dtype)
        of_inner = (grad @ b.to(x.dtype)).mul_(ctx.scale)  # (n, r)
        of_a, of_b = of_inner.t() @ x, (grad.t() @ inner).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ _weight(held, codes_scales, ctx.shape, x.dtype)).addmm_(of_inner, a.to(x.dtype))
        return of_x, None, None, None, None, of_a.to(a.dtype), of_b.to(b.dtype), None


def _weight(held: Tensor, scales: Tensor | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return held if scales is None else widened(held, scales, shape, dtype)


class FusedLinear(lora.Linear):  # type: ignore[misc]
    """peft's LoRA on a linear layer, computed by `FusedLora` where that is the same thing."""

    def forward(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        if given or named or not self._is_plain():
            with in_type_of(self.base_layer, x.device):
                return super().forward(x, *given, **named)
        name, base = self.active_adapters[0], self.base_layer
        dtype = type_of(base)
        held = (base.values, base.scales) if isinstance(base, QuantisedLinear) else (base.weight, None)
        shape = (base.out_features, base.in_features)
        bias = None if base.bias is None else base.bias.to(dtype)
        parts = self.lora_A[name].weight, self.lora_B[name].weight
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        y = FusedLora.apply(rows, *held, shape, bias, *parts, self.scaling[name])
        return y.view(*x.shape[:-1], y.shape[-1])

    def _is_plain(self) -> bool:
        """Whether the layer is W x + scale B A x and nothing else."""
        names = self.active_adapters
        return (
            type(self.base_layer) in (nn.Linear, QuantisedLinear)
            and len(names) == 1
            and names[0] in self.lora_A
            and not (self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[names[0]], nn.Identity)
        )
