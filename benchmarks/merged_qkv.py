"""What it would be worth to compute queries, keys and values, each with its LoRA, as one product instead of three.

    python benchmarks/merged_qkv.py [--layers 1024x3072 4096x3840] [--rank 16] [--rounds 12]

Forward and backward of the three layers (tokens x width) in bfloat16, as the engine computes them and merged: one product
with the stacked weights, one with the stacked A, and a third of the columns for each B. Both give the same numbers, which is
checked first. The engine has the plain form: merging is worth its second way of holding weights only where a whole step
gains, and these layers are a fifth to a quarter of one. The result is a line of JSON and a sentence a shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorapod.engine.fused_lora import FusedLora

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16


class Merged(torch.autograd.Function):  # type: ignore[misc]
    """x (n, i) to three of (n, o), for W (3 o, i), A (3 r, i) and three of B (o, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, *bs: Tensor) -> tuple[Tensor, ...]:
        inner = x @ a.to(x.dtype).t()
        whole = x @ weight.t()
        width, rank = len(weight) // 3, len(a) // 3
        for i, b in enumerate(bs):
            whole[:, i * width : (i + 1) * width].addmm_(inner[:, i * rank : (i + 1) * rank], b.to(x.dtype).t())
        ctx.save_for_backward(x, weight, a, inner, *bs)
        return tuple(whole.split(width, dim=1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, inner, *bs = ctx.saved_tensors
        rank = len(a) // 3
        whole = torch.cat(grads, dim=1)
        of_inner = torch.cat([grad @ b.to(x.dtype) for grad, b in zip(grads, bs, strict=True)], dim=1)
        of_bs = [grad.t() @ inner[:, i * rank : (i + 1) * rank] for i, grad in enumerate(grads)]
        of_x = (whole @ weight).addmm_(of_inner, a.to(x.dtype))
        return (
            of_x,
            None,
            (of_inner.t() @ x).to(a.dtype),
            *(each.to(b.dtype) for each, b in zip(of_bs, bs, strict=True)),
        )


def layers(tokens: int, width: int, rank: int) -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """Forward and backward of the three, plain and merged; each gives the outputs and all gradients."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(DEVICE, dtype)

    x = made(tokens, width, dtype=DTYPE).requires_grad_()
    weights, goal = [made(width, width, dtype=DTYPE) for _ in range(3)], made(tokens, width, dtype=DTYPE)
    ups = [made(width, rank).requires_grad_() for _ in range(3)]
    downs, stacked = [made(rank, width) for _ in range(3)], torch.cat(weights)
    apart, together = [each.clone().requires_grad_() for each in downs], torch.cat(downs).requires_grad_()

    def run(outputs: list[Tensor], trained: list[Tensor]) -> list[Tensor]:
        return [*outputs, *torch.autograd.grad(outputs, [x, *trained, *ups], [goal] * 3)]

    def plain() -> list[Tensor]:
        shape = (width, width)
        parts = zip(weights, apart, ups, strict=True)
        outputs = [FusedLora.apply(x, weight, None, shape, None, a, b, 1.0) for weight, a, b in parts]
        found = run(outputs, apart)
        return [*found[:4], torch.cat(found[4:7]), *found[7:]]

    return plain, lambda: run(list(Merged.apply(x, stacked, together, *ups)), [together])


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=["1024x3072", "4096x3840"], metavar="TOKENSxWIDTH")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    for layer in args.layers:
        tokens, width = map(int, layer.split("x"))
        plain, merged = layers(tokens, width, args.rank)
        for one, other in zip(plain(), merged(), strict=True):
            torch.testing.assert_close(
                one.float(), other.float(), rtol=0.05, atol=0.05 * float(one.detach().float().std())
            )
        pairs = [timed(plain) / timed(merged) for _ in range(args.rounds + 2)][2:]
        ratio = statistics.median(pairs)
        result = {
            "benchmark": "merged_qkv", "layer": [tokens, width], "rank": args.rank, "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "ratio": round(ratio, 3),
        }  # fmt: skip
        print(json.dumps(result))
        print(f"Merged, the three layers of {layer} are computed {ratio:.3f} times as fast.")


if __name__ == "__main__":
    main()
