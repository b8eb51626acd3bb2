"""Optimizers, each from its library, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lorapod.errors import MissingPackageError
from lorapod.recipe.choices import OptimizerKind, ScheduleKind
from lorapod.recipe.schema import OptimizerSection


def build_optimizer(
    section: OptimizerSection, denoisers: list[nn.Parameter], encoders: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the adapter's parameters.

    Args:
        encoders: Those of text encoders, which have a rate of their own: groups say it as `rate_share`.

    Raises:
        MissingPackageError: The optimizer's library is not installed.
    """
    parameters: Any = denoisers
    if encoders:
        parameters = [{"params": denoisers}, {"params": list(encoders), "rate_share": section.text_encoder_rate}]
    lr, decay, betas = section.learning_rate, section.weight_decay, section.betas
    if section.kind is OptimizerKind.ADAMW:
        # fused updates all tensors in one pass; foreach would copy them on the CPU
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)
    if section.kind is OptimizerKind.ADAFACTOR:
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=decay)
    if section.kind is OptimizerKind.ADAMW_8BIT:
        cls = _from_library("bitsandbytes.optim", "AdamW8bit", "bitsandbytes")
        return cls(parameters, lr=lr, betas=betas, weight_decay=decay)
    if section.kind is OptimizerKind.PRODIGY:
        cls = _from_library("prodigyopt", "Prodigy", "prodigyopt")
        return cls(parameters, lr=lr, betas=betas, weight_decay=decay, safeguard_warmup=True, use_bias_correction=True)
    cls = _from_library("schedulefree", "AdamWScheduleFree", "schedulefree")
    optimizer = cls(parameters, lr=lr, betas=betas, weight_decay=decay, warmup_steps=section.warmup_steps)
    optimizer.train()
    return optimizer


def _from_library(module: str, name: str, package: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise MissingPackageError(
            f"The optimizer needs the package {package}",
            str(error),
            f"Install it with `pip install {package}`, or set `optimizer.kind` to `adamw`.",
        ) from error


def rate_at(section: OptimizerSection, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`. Schedule-free optimizers keep their own."""
    if section.kind is OptimizerKind.SCHEDULE_FREE:
        return section.learning_rate
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, total - section.warmup_steps)
    factor = {
        ScheduleKind.CONSTANT: 1.0,
        ScheduleKind.LINEAR: 1 - done,
        ScheduleKind.COSINE: (1 + math.cos(math.pi * done)) / 2,
    }[section.schedule]
    return section.learning_rate * max(factor, 0.0)


@contextmanager
def weights_for_use(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the block the parameters are those to evaluate and save (schedule-free keeps two sets).

    Afterwards they are exactly what they were: going back by arithmetic would round, and a run that looked at itself more
    often would end elsewhere.
    """
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p.detach().clone() for p in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
