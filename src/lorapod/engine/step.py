"""One optimizer step: what the training loop does between two numbers of the step, and what a benchmark times.

Where a compiled block turns out not to be compilable in the backward pass, the step is taken again in eager mode: its
gradients are dropped and its draws repeated, so nothing of the failed attempt is left. Not covered: several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor, nn

from lorapod.engine.batches import Batch
from lorapod.engine.compiling import COMPILER_ERRORS, CompiledBlocks
from lorapod.engine.evaluate import loss_of
from lorapod.engine.families import WeighsBySnr
from lorapod.engine.job import Job


def weighted_loss(job: Job, denoiser: nn.Module, batch: Batch) -> Tensor:
    """What is learnt from a batch, a scalar. Evaluation weighs all alike, so that its curves can be compared."""
    losses = loss_of(job, denoiser, batch)
    gamma = job.recipe.training.min_snr_gamma
    if gamma and isinstance(job.family, WeighsBySnr):
        losses = losses * job.family.min_snr_weight(batch.noise_level, gamma)
    return losses.mean()


def optimizer_step(
    job: Job,
    denoiser: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Batch],
    rate: float,
    number: int,
    compiled: CompiledBlocks | None = None,
) -> list[Tensor]:
    """Learns from the batches of one optimizer step, of which each counts alike.

    Args:
        parameters: The adapter's, whose gradients are clipped together.
        batches: The next ones, on the CPU or on the job's device; as many are taken as the recipe accumulates.
        rate: Learning rate.
        number: Of the step, from 0; with the seed it gives the adapter's dropout.
        compiled: The denoiser's blocks, where they are compiled.

    Returns:
        The loss of each batch, detached, on the device: reading one waits for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    count, taken = job.recipe.training.accumulation, list[Batch]()
    upcoming = _kept(islice(batches, count), taken)
    try:
        losses = _backward(job, denoiser, upcoming, number)
    except COMPILER_ERRORS as error:
        if compiled is None or not compiled.active:
            raise
        compiled.give_up(error)
        optimizer.zero_grad(set_to_none=True)
        losses = _backward(job, denoiser, chain(tuple(taken), upcoming), number)
    if job.recipe.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(parameters, job.recipe.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


def _backward(job: Job, denoiser: nn.Module, batches: Iterable[Batch], number: int) -> list[Tensor]:
    torch.manual_seed(hash((job.recipe.training.seed, number)) % 2**63)  # for the adapter's dropout
    losses = []
    for batch in batches:
        loss = weighted_loss(job, denoiser, batch.to(job.device))
        (loss / job.recipe.training.accumulation).backward()
        losses.append(loss.detach())
    return losses


def _kept(batches: Iterator[Batch], taken: list[Batch]) -> Iterator[Batch]:
    """Hands on batches one by one, as they are read beside the arithmetic, and keeps them for a second attempt."""
    for batch in batches:
        taken.append(batch)
        yield batch
