"""One optimizer step: what the training loop does between two numbers of the step, and what a benchmark times.

Where a compiled block turns out not to be compilable in the backward pass, the step is taken again in eager mode: its
gradients are dropped and its draws repeated, so nothing of the failed attempt is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor, nn

from lorapod.engine import adapters
from lorapod.engine.batches import Batch
from lorapod.engine.compiling import COMPILER_ERRORS, CompiledBlocks
from lorapod.engine.evaluate import answer_to
from lorapod.engine.families import WeighsBySnr
from lorapod.engine.job import Job
from lorapod.engine.losses import loss_of_kind, squared_error, weight_of_level
from lorapod.engine.ranks import Ranks
from lorapod.errors import TrainingError
from lorapod.recipe.choices import LossKind, LossWeighting, Regularisation


def weighted_loss(job: Job, denoiser: nn.Module, batch: Batch, in_step: bool = False) -> Tensor:
    """What is learnt from a batch, a scalar. Evaluation weighs all alike, so that its curves can be compared.

    Args:
        in_step: Whether other ranks make the same passes beside this one, be there something to preserve here or not.
    """
    training, level = job.recipe.training, batch.noise_level
    answer = answer_to(job, denoiser, batch)
    if batch.preserved or (
        in_step and any(each.regularisation is Regularisation.PRESERVE for each in job.recipe.datasets)
    ):
        answer = replace(answer, target=preserved_target(job, denoiser, batch, answer.target))
    if training.loss is LossKind.MSE and training.loss_weighting is LossWeighting.NONE:
        losses = squared_error(answer)
    else:
        ratio = job.family.noise_to_signal(level)
        losses = loss_of_kind(answer, training, ratio, level)
        losses = losses * weight_of_level(training.loss_weighting, ratio, level)
    if training.min_snr_gamma and isinstance(job.family, WeighsBySnr):
        losses = losses * job.family.min_snr_weight(level, training.min_snr_gamma)
    if batch.weights:
        losses = torch.stack([loss * weight for loss, weight in zip(losses, batch.weights, strict=True)])
    return losses.mean()


@torch.no_grad()
def preserved_target(job: Job, denoiser: nn.Module, batch: Batch, target: Tensor) -> Tensor:
    """The target (b, c, f, h, w) with what the denoiser says without its adapter in the places that are preserved."""
    with adapters.switched_off(denoiser):
        said = answer_to(job, denoiser, batch.part(batch.preserved or (0,))).predicted
    if not batch.preserved:
        return target
    rows = list(target)
    for place, row in zip(batch.preserved, said, strict=True):
        rows[place] = row.to(target.dtype)
    return torch.stack(rows)


def optimizer_step(
    job: Job,
    denoiser: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Batch],
    rate: float,
    number: int,
    compiled: CompiledBlocks | None = None,
    ranks: Ranks | None = None,
    stop: bool = False,
) -> list[Tensor]:
    """Learns from the batches of one optimizer step, of which each counts alike.

    Args:
        parameters: The adapter's, whose gradients are clipped together.
        batches: The next ones, on the CPU or on the job's device; as many are taken as the recipe accumulates.
        rate: Learning rate.
        number: Of the step, from 0; with the seed it gives the adapter's dropout.
        compiled: The denoiser's blocks, where they are compiled.
        ranks: Among which the step is split.
        stop: Whether this process was asked to stop, which the others learn with the step.

    Returns:
        The loss of each batch, detached, on the device: reading one waits for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)
    ranks = ranks or Ranks()
    count, taken = job.recipe.training.accumulation, list[Batch]()
    upcoming = _kept(islice(batches, count), taken)
    try:
        losses = _backward(job, denoiser, upcoming, number, ranks)
    except COMPILER_ERRORS as error:
        if compiled is None or not compiled.active:
            raise
        if ranks.in_step:  # taken again by this one alone, the step would need the others
            raise _no_second_attempt(error) from error
        compiled.give_up(error)
        optimizer.zero_grad(set_to_none=True)
        losses = _backward(job, denoiser, chain(tuple(taken), upcoming), number, ranks)
    losses = ranks.combine(parameters, losses, stop)
    if job.recipe.optimizer.clip_norm:
        nn.utils.clip_grad_norm_(parameters, job.recipe.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


def _backward(job: Job, denoiser: nn.Module, batches: Iterable[Batch], number: int, ranks: Ranks) -> list[Tensor]:
    """Gradients and losses of this rank's part of the batches, as shares of the whole."""
    accumulation = job.recipe.training.accumulation
    seed = (job.recipe.training.seed, number, *([ranks.rank] if ranks.rank else []))
    torch.manual_seed(hash(seed) % 2**63)  # for the adapter's dropout
    losses, sizes = [], []
    for place, whole in enumerate(batches):
        batch, share = ranks.part_of(whole, place)
        sizes.append(len(whole.items))
        if batch is None:
            losses.append(torch.zeros((), device=job.device))
            continue
        loss = weighted_loss(job, denoiser, batch.to(job.device), ranks.in_step)
        if share != 1:
            loss = loss * share
        (loss / accumulation).backward()
        losses.append(loss.detach())
    for _ in range(ranks.passes_left(sizes)):
        (weighted_loss(job, denoiser, whole.part([0]).to(job.device), ranks.in_step) * 0).backward()
    return losses


def _no_second_attempt(error: Exception) -> TrainingError:
    return TrainingError(
        "The base model's blocks cannot be compiled here, and this training cannot go on without",
        next((line for line in str(error).splitlines() if line.strip()), type(error).__name__),
        "Set `training.compile = false`; with the base model split over GPUs no step can be taken twice.",
    )


def _kept(batches: Iterator[Batch], taken: list[Batch]) -> Iterator[Batch]:
    """Hands on batches one by one, as they are read beside the arithmetic, and keeps them for a second attempt."""
    for batch in batches:
        taken.append(batch)
        yield batch
