"""Which kernels compute attention: chosen by the GPU, and tried before anything relies on them.

torch takes the first kernel of an order that can compute what it is given. Its own order begins with FlashAttention-2; on
GPUs from Hopper on (compute capability 9.0) cuDNN's kernels are faster, forward about 1.6 times at 128 numbers a head on an
H100 (arXiv 2407.08608), so that `auto` puts them first there. What comes first is tried on a small example before, forward
and backward, and is left alone where it fails or is wrong. The results of all differ in rounding alone.

Not covered: kernels that would have to be downloaded (FlashAttention-3 and its successors), and attention in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lorapod.engine.job import Job
from lorapod.engine.output import emit
from lorapod.errors import RequestError
from lorapod.recipe.choices import Attention

_BACKENDS = {
    Attention.CUDNN: SDPBackend.CUDNN_ATTENTION,
    Attention.FLASH: SDPBackend.FLASH_ATTENTION,
    Attention.EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    Attention.MATH: SDPBackend.MATH,
}
_HOPPER = (9, 0)

_FAR = 0.05
"""Most that a kernel in 16 bits may be off, over the largest value."""

_EXAMPLE = (1, 2, 384, 128)
"""Items, heads, tokens, numbers a head."""


def chosen(wish: Attention, device: torch.device, dtype: torch.dtype) -> Attention:
    """The kernels that come first on a device; `torch` where its own order is kept."""
    if wish is not Attention.AUTO:
        return wish
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER
    return Attention.CUDNN if hopper and dtype is not torch.float32 else Attention.TORCH


@contextmanager
def attention_of(job: Job) -> Iterator[None]:
    """Inside the block attention is computed as the job's recipe says, by all threads of this process.

    Raises:
        RequestError: The recipe names kernels that this machine does not have.
    """
    wish = job.recipe.training.attention
    kind = chosen(wish, job.device, job.dtype)
    if kind is not Attention.TORCH and (why := unusable(kind, job.device, job.dtype)):
        if wish is not Attention.AUTO:
            raise RequestError(
                f"Attention cannot be computed with `{kind.value}` here", why, "Leave `training.attention` to `auto`."
            )
        emit("warning", message=f"Attention is computed in torch's own order, since {kind.value} failed: {why}")
        kind = Attention.TORCH
    if kind is Attention.TORCH:
        yield
        return
    if wish is Attention.AUTO:
        emit("info", message=f"Attention: {kind.value} first, as is fastest on this GPU.")
    with sdpa_kernel(_order(kind), set_priority=True):
        yield


def _order(kind: Attention) -> list[SDPBackend]:
    """Those kernels, and behind them all others for what they cannot compute; `math` can all."""
    if kind is Attention.MATH:
        return [SDPBackend.MATH]
    others = (Attention.FLASH, Attention.CUDNN, Attention.EFFICIENT, Attention.MATH)
    return [_BACKENDS[kind], *(_BACKENDS[each] for each in others if each is not kind)]


def unusable(kind: Attention, device: torch.device, dtype: torch.dtype) -> str:
    """Why kernels do not work for a type on a device; empty where they do."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(_EXAMPLE, generator=generator).to(device, dtype) for _ in range(3)]
    try:
        found = _computed(given, _BACKENDS[kind])
    except RuntimeError as error:
        return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    exact = _computed([value.float() for value in given], SDPBackend.MATH)
    for one, other in zip(found, exact, strict=True):
        far = float((one.float() - other).abs().max() / other.abs().max())
        if not far <= _FAR:  # NaN is neither
            return f"its results are off by {far:.0%}"
    return ""


def _computed(given: list[Tensor], backend: SDPBackend) -> list[Tensor]:
    """Output and gradients, by one backend alone."""
    leaves = [value.detach().clone().requires_grad_() for value in given]
    with torch.enable_grad(), sdpa_kernel(backend):
        output = scaled_dot_product_attention(*leaves)
        return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]
