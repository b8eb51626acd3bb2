"""Transformer blocks as compiled code: one graph a kind of block and shape of its input, shared by all blocks of that kind.

A block is compiled when it first meets a shape while it trains, with fixed shapes (`dynamic=False`), since the batches of
a bucket all have the same. Evaluation and previews run the plain block: they come with shapes of their own, and compiling
for a handful of passes costs more than it saves. What inductor makes is kept in the workspace, so that the next run with
the same shapes finds it. A block that cannot be compiled runs as it is, and so do all others then, after one `warning`.

Not covered: CUDA graphs, the layers outside the repeated blocks, and a cache that travels between machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from lorapod.engine.blocks import blocks_of
from lorapod.engine.output import emit_from_here, whose_process

COMPILER_ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)
"""What torch.compile raises where it cannot compile; a failing C++ or Triton compiler is wrapped in one of these."""

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

MOST_SHAPES = 256
"""Graphs of one kind of block. torch's own limit of 8 is soon reached by buckets, and is silent."""


def wants_compiling(wish: bool | str, device: torch.device) -> bool:
    """Whether blocks are compiled: `auto` does it on CUDA. A tiny model on the CPU would wait a minute to save a second."""
    return device.type == "cuda" if wish == "auto" else bool(wish)


class CompiledBlocks:
    """The repeated blocks of a denoiser, compiled where they train.

    Args:
        denoiser: A model of diffusers with its adapter on.
        cache: Folder for inductor's files; what `TORCHINDUCTOR_CACHE_DIR` says goes before it.

    Attributes:
        blocks: The blocks, in the model's order.
        active: Whether they are still compiled.
    """

    def __init__(self, denoiser: nn.Module, cache: Path) -> None:
        self.blocks = list(blocks_of(denoiser).values())
        self.active = bool(self.blocks)
        if not self.blocks:
            self._report(f"{type(denoiser).__name__} names no repeated blocks")
            return
        if os.environ.get(_CACHE_VARIABLE) in (None, default_cache_dir()):  # torch writes its own default there
            os.environ[_CACHE_VARIABLE] = str(cache)
        config = torch._dynamo.config
        config.recompile_limit = MOST_SHAPES
        config.accumulated_recompile_limit = MOST_SHAPES * 8
        config.fail_on_recompile_limit_hit = True  # else torch goes on in eager mode and tells nobody
        for block in self.blocks:
            block._compiled_call_impl = self._guarded(block._call_impl)

    def give_up(self, error: Exception) -> None:
        """Runs all blocks as they are from now on, and says so once."""
        if not self.active:
            return
        self.active = False
        self._report(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))

    def _guarded(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(plain, dynamic=False)

        def call(*given: Any, **named: Any) -> Any:
            if not self.active or not torch.is_grad_enabled():
                return plain(*given, **named)
            try:
                return compiled(*given, **named)
            except COMPILER_ERRORS as error:
                self.give_up(error)
                return plain(*given, **named)

        return call

    def _report(self, why: str) -> None:
        emit_from_here(
            "warning",
            message=f"The base model's blocks are not compiled{whose_process()}; training goes on, more slowly: {why[:300]}",
            hint="Set `training.compile = false` to train without trying.",
        )
