"""From a plan to the batches of an epoch: their order, what each bucket holds, and what does not fill a batch.

The batches are the built-in trainer's. Of the other trainers it is only said what they do with what is left over, as
far as their code decides it: diffusion-pipe's `ConcatenatedBatchedDataset` cuts each bucket to a multiple of what an
optimizer step takes, in an order that is drawn once (utils/dataset.py); musubi-tuner's `BucketBatchManager` keeps a short
last batch for each dataset and bucket. Neither fills a batch with items seen before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lorapod.data.buckets import Bucket
from lorapod.data.names import shown
from lorapod.data.plan import DataPlan, TrainItem
from lorapod.recipe.choices import TrainerName

_LISTED = 5


@dataclass(frozen=True)
class BucketSummary:
    """One bucket of a plan.

    Attributes:
        items: How many items of train and validation are in it.
        mean_lost_share: Mean share of a picture that cropping cuts off, 0..1.
        worst: The item that loses most.
        upscaled: How many items are enlarged.
    """

    bucket: Bucket
    items: int
    mean_lost_share: float
    worst: TrainItem
    upscaled: int


class Fate(StrEnum):
    """What a trainer does with what does not fill a batch."""

    SHORT_BATCH = "short batch"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Leftover:
    """What a bucket leaves over after its last full batch, with one trainer.

    Attributes:
        count: How many sightings of an epoch, repeats counted, are left over.
        of: How many the bucket has.
        candidates: The items among which these are; all of them where `count` is `of`. Which of more it is, is drawn
            by the trainer: anew in each epoch for a short batch, once for all epochs where it drops.
    """

    trainer: TrainerName
    fate: Fate
    bucket: Bucket
    count: int
    of: int
    candidates: tuple[TrainItem, ...]

    def __str__(self) -> str:
        names = ", ".join(shown(each.item.path.name) for each in self.candidates[:_LISTED])
        if len(self.candidates) > _LISTED:
            names += f" and {len(self.candidates) - _LISTED} more"
        if self.fate is Fate.SHORT_BATCH:
            return f"{self.trainer.value}: the last batch of {self.bucket} has only {self.count}"
        if self.count == self.of:
            return (
                f"{self.trainer.value} never trains on anything of {self.bucket}, which doesn't fill a batch: {names}"
            )
        which = f"{self.count} of the {self.of} of {self.bucket}"
        return f"{self.trainer.value} drops {which}, the same in every epoch, out of: {names}"


REGULARISATION_SHARE = 0.5
"""Share of regularisation items of an epoch, where nothing else is said."""


def batches(
    train: Sequence[TrainItem],
    batch_size: int,
    epoch: int,
    seed: int,
    regularisation_share: float = REGULARISATION_SHARE,
) -> list[list[int]]:
    """The batches of one epoch, as indices into `train`; the same for the same arguments on every machine.

    Each item is in as many batches as it has repeats. All items of a batch share a bucket and have as many control
    pictures, so that a batch is one pass; where such items do not fill their last batch, that batch is short: nothing is
    dropped and nothing is seen twice to fill it. Regularisation items are the exception: of each bucket of them an epoch
    takes as many as make up their share, one after the other through all of them, so that every epoch has the same number
    of batches.
    """
    rng = random.Random(f"{seed} {epoch}")
    by_kind: dict[_Kind, list[int]] = {}
    for i, each in enumerate(train):
        if not each.regularises:
            by_kind.setdefault(_kind(each), []).extend([i] * each.repeats)
    for kind, (count, pool) in _regularising(train, regularisation_share).items():
        named = " ".join(map(str, filter(None, kind)))
        by_kind.setdefault(kind, []).extend(_next_of(pool, count, epoch, f"{seed} {named}"))
    portions: list[list[int]] = []
    for kind in sorted(by_kind):
        indices = by_kind[kind]
        rng.shuffle(indices)
        portions += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rng.shuffle(portions)
    return portions


_Kind = tuple[Bucket, int]
"""What items of one batch have in common: the bucket, and how many control pictures each has."""


def _kind(item: TrainItem) -> _Kind:
    return item.placement.bucket, len(item.item.controls)


def _regularising(train: Sequence[TrainItem], share: float) -> dict[_Kind, tuple[int, list[int]]]:
    """How many of each kind's regularisation items an epoch takes, and all of these with their repeats."""
    pools: dict[_Kind, list[int]] = {}
    for i, each in enumerate(train):
        if each.regularises:
            pools.setdefault(_kind(each), []).extend([i] * each.repeats)
    others = sum(each.repeats for each in train if not each.regularises)
    wanted, there = round(others * share / (1 - share)), sum(map(len, pools.values()))
    counts = {kind: wanted * len(pool) // there for kind, pool in pools.items()}
    by_rest = sorted(pools, key=lambda kind: (-(wanted * len(pools[kind]) % there), kind))
    for kind in by_rest[: wanted - sum(counts.values())]:
        counts[kind] += 1
    return {kind: (counts[kind], pools[kind]) for kind in sorted(pools)}


def _next_of(pool: list[int], count: int, epoch: int, seed: str) -> list[int]:
    """The `count` items of an epoch out of endless rounds through a pool, each round in an order of its own."""
    taken: list[int] = []
    order: list[int] = []
    for place in range(epoch * count, (epoch + 1) * count):
        turn, index = divmod(place, len(pool))
        if not taken or index == 0:
            order = list(pool)
            random.Random(f"{seed} regularisation {turn}").shuffle(order)
        taken.append(order[index])
    return taken


def _sightings(train: Sequence[TrainItem], share: float) -> dict[_Kind, int]:
    """How often an epoch of the built-in trainer sees each kind."""
    found = {kind: sum(each.repeats for each in members) for kind, members in _by_kind(train).items()}
    for kind, (count, pool) in _regularising(train, share).items():
        found[kind] += count - len(pool)
    return found


def summary(plan: DataPlan) -> list[BucketSummary]:
    """What each bucket of a plan holds and what it costs, train and validation together, smallest bucket first."""
    return [
        BucketSummary(
            bucket=bucket,
            items=len(members),
            mean_lost_share=sum(each.placement.lost_share for each in members) / len(members),
            worst=max(members, key=lambda each: each.placement.lost_share),
            upscaled=sum(each.placement.upscale > 1 for each in members),
        )
        for bucket, members in sorted(by_bucket(plan.train + plan.validation).items())
    ]


def by_bucket(items: Sequence[TrainItem]) -> dict[Bucket, list[TrainItem]]:
    """Items by bucket, in their order."""
    found: dict[Bucket, list[TrainItem]] = {}
    for each in items:
        found.setdefault(each.placement.bucket, []).append(each)
    return found


def _by_kind(items: Sequence[TrainItem]) -> dict[_Kind, list[TrainItem]]:
    """Items of the built-in trainer's batches, in their order."""
    found: dict[_Kind, list[TrainItem]] = {}
    for each in items:
        found.setdefault(_kind(each), []).append(each)
    return found


def leftovers(
    plan: DataPlan, batch_size: int, *, accumulation: int = 1, regularisation_share: float = REGULARISATION_SHARE
) -> list[Leftover]:
    """What does not fill a batch in each bucket, with each trainer; nothing where all batches are full.

    Args:
        batch_size: Items a forward pass.
        accumulation: Forward passes an optimizer step, times GPUs; diffusion-pipe cuts to whole steps.
    """
    found: list[Leftover] = []
    seen = _sightings(plan.train, regularisation_share)
    for trainer in TrainerName:
        dropped = trainer is TrainerName.DIFFUSION_PIPE
        whole = batch_size * accumulation if dropped else batch_size
        for bucket, members in _portions(plan, trainer):
            of = seen[_kind(members[0])] if trainer is TrainerName.BUILTIN else sum(each.repeats for each in members)
            if of % whole:
                fate = Fate.DROPPED if dropped else Fate.SHORT_BATCH
                found.append(Leftover(trainer, fate, bucket, of % whole, of, tuple(members)))
    return found


def batches_per_epoch(
    plan: DataPlan, batch_size: int, *, accumulation: int = 1, regularisation_share: float = REGULARISATION_SHARE
) -> dict[TrainerName, int]:
    """Forward passes an epoch with each trainer. Arguments as of `leftovers`."""
    counts: dict[TrainerName, int] = {}
    for trainer in TrainerName:
        if trainer is TrainerName.BUILTIN:
            sizes = list(_sightings(plan.train, regularisation_share).values())
        else:
            sizes = [sum(each.repeats for each in members) for _, members in _portions(plan, trainer)]
        if trainer is TrainerName.DIFFUSION_PIPE:
            counts[trainer] = sum(size // (batch_size * accumulation) * accumulation for size in sizes)
        else:
            counts[trainer] = sum(-(-size // batch_size) for size in sizes)
    return counts


def _portions(plan: DataPlan, trainer: TrainerName) -> list[tuple[Bucket, list[TrainItem]]]:
    """What is put into batches together: all of a bucket, with musubi-tuner all of a bucket and dataset, with the built-in
    trainer all of a bucket that have as many control pictures."""
    if trainer is TrainerName.BUILTIN:
        return [(kind[0], members) for kind, members in sorted(_by_kind(plan.train).items(), key=lambda row: row[0])]
    if trainer is not TrainerName.MUSUBI:
        return sorted(by_bucket(plan.train).items())
    return [
        portion
        for dataset in sorted({each.dataset for each in plan.train})
        for portion in sorted(by_bucket([each for each in plan.train if each.dataset == dataset]).items())
    ]
