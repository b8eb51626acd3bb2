"""Computing activations again in the backward pass: of whole blocks, or of all but the outputs of attention.

`selective` keeps what attention gives (arXiv 2205.05198 has the idea): attention is what grows with the square of the
tokens, and its output is small. The gradients are those of keeping everything, to the last bit on the CPU.

Not covered: choosing which blocks are checkpointed, and keeping activations on the host.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lorapod.recipe.choices import Checkpointing

_ATTENTION = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_flash_attention_forward", "_efficient_attention_forward",
)  # fmt: skip
_KEPT = {getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)}


def enable_checkpointing(denoiser: nn.Module, grade: Checkpointing) -> None:
    """Makes a denoiser of diffusers checkpoint its blocks."""
    if grade is Checkpointing.FULL:
        denoiser.enable_gradient_checkpointing()
    elif grade is Checkpointing.SELECTIVE:
        denoiser.enable_gradient_checkpointing(_selective)


def _selective(module: nn.Module, *given: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(module.__call__, *given, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
