"""How a run's training is made to fit into memory: decided once before the base model is loaded, and said.

What the recipe leaves to `auto` is chosen by `lorapod.models.memory` from the denoiser's configuration, the largest size in
the buckets and the memory that is free. How the weights are held changes what is learnt a little, so that a run that goes
on keeps what it began with, wherever it goes on. On the CPU nothing is done unless `training.memory_gb` is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lorapod.data import TrainItem
from lorapod.engine.blocks import FULLY, Keeping, blocks_of
from lorapod.engine.job import Job
from lorapod.engine.output import emit
from lorapod.engine.ranks import Ranks
from lorapod.engine.text_encoders import trains_with_encoders
from lorapod.errors import OutOfMemoryError
from lorapod.files import write_text_whole
from lorapod.models.memory import RESERVE, Load, Means, Measures, Wishes, choose, means_in_order, measures_of, tokens_of
from lorapod.recipe.choices import Checkpointing, Precision, Quantization

_FILE = "memory.json"
TOLERANCE = 0.15
"""Share by which the measured peak may be off the estimate before it is said."""


@dataclass(frozen=True)
class MemoryPlan:
    """What is done so that training fits.

    Attributes:
        predicted: Peak in bytes; None where nothing was planned.
    """

    keeping: Keeping = FULLY
    checkpointing: Checkpointing = Checkpointing.OFF
    predicted: int | None = None


class MemoryPlanner:
    """Decides for a job.

    Args:
        items: What is trained on.
        ranks: Which share the training; the one with the least memory decides for all.
    """

    def __init__(self, job: Job, items: Sequence[TrainItem] = (), ranks: Ranks | None = None) -> None:
        self.job, self.items, self.ranks = job, items, ranks or Ranks()

    def plan(self) -> MemoryPlan:
        """What is done, which is said as an `info` event where there was something to decide.

        Raises:
            OutOfMemoryError: Nothing makes it fit.
        """
        wishes, budget = self._wishes(), self._budget()
        if budget is None or self.measures is None:
            keeping = Keeping(wishes.quantize or Quantization.NONE, wishes.swapped or 0, wishes.shards[0])
            return MemoryPlan(keeping, wishes.checkpointing or Checkpointing.OFF)
        load = self._load()
        means = choose(self.measures, load, budget, wishes)
        if means is None:
            raise self._too_little(budget, list(means_in_order(self.measures, load, wishes))[-1])
        if self.ranks.speaks:
            self._remember(means)
        emit(
            "info",
            message=f"Memory: about {means.peak / 1e9:.1f} of {budget / 1e9:.1f} GB"
            + (f", with {means.words}." if means.words else "; nothing has to be saved."),
        )
        return MemoryPlan(Keeping(means.quantize, means.swapped, means.shards), means.checkpointing, means.peak)

    def plan_drawing(self) -> Keeping:
        """How the weights are held where nothing is trained: as the recipe says, or so that they fit.

        Raises:
            OutOfMemoryError: Nothing makes them fit.
        """
        given, budget = self._wishes(), self._budget()
        wishes = Wishes(given.quantize, Checkpointing.OFF, given.swapped)
        if budget is None or self.measures is None:
            return Keeping(wishes.quantize or Quantization.NONE, wishes.swapped or 0)
        load = Load(0, 0, self.job.recipe.training.precision is Precision.FP32)
        means = choose(self.measures, load, budget - RESERVE, wishes)
        if means is None:
            raise self._too_little(budget - RESERVE, list(means_in_order(self.measures, load, wishes))[-1])
        return Keeping(means.quantize, means.swapped)

    @cached_property
    def measures(self) -> Measures | None:
        job = self.job
        denoiser = job.family.empty_denoiser(job.base, job.experts[0])
        parameters = sum(parameter.numel() for parameter in denoiser.parameters())
        measures = measures_of(job.base.family, denoiser.config, parameters, job.base.pipeline)
        return measures if measures and blocks_of(denoiser) else None

    def _wishes(self) -> Wishes:
        """What is not left open: by the recipe, and by what the run began with."""
        recipe = self.job.recipe
        section, training = recipe.base_model, recipe.training
        quantize = None if section.quantize is Quantization.AUTO else section.quantize
        grade = training.gradient_checkpointing
        return Wishes(
            quantize if quantize is not None else self._remembered(),
            None if grade is Checkpointing.AUTO else grade,
            None if training.swap_blocks == "auto" else training.swap_blocks,
            self._shards(),
        )

    def _shards(self) -> tuple[int, ...]:
        """Numbers of ranks that the base model may be split over, the first what is done where memory is no matter."""
        wish, count = self.job.recipe.training.shard_base, self.ranks.count
        if wish and count > 1 and trains_with_encoders(self.job):  # they are small, and so is what they belong to
            if wish is True:
                emit("info", message="The base model is not split, since its text encoders are in memory with it.")
            return (1,)
        if wish is True and count > 1:
            return (count,)
        if wish is True:
            emit("info", message="The base model is not split: one GPU takes part in this training.")
        swapped = self.job.recipe.training.swap_blocks not in ("auto", 0)
        return (1, count) if wish == "auto" and count > 1 and not swapped else (1,)

    def _budget(self) -> float | None:
        given = self.job.recipe.training.memory_gb
        if given is not None:
            return given * 1e9
        if self.job.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.job.device)
        return self.ranks.least(float(free - RESERVE))  # all do the same, or their results would differ

    def _load(self) -> Load:
        assert self.measures is not None
        recipe = self.job.recipe
        tokens = max(
            tokens_of(self.measures, bucket.width, bucket.height, bucket.frames, recipe.training.batch_size, pictures)
            for bucket, pictures in {(item.placement.bucket, 1 + len(self.job.controls(item))) for item in self.items}
        )
        return Load(
            tokens,
            recipe.adapter.rank,
            recipe.training.precision is Precision.FP32,
            encoders=trains_with_encoders(self.job),
            captions=recipe.training.batch_size if recipe.adapter.text_encoders else 0,
        )

    def _remembered(self) -> Quantization | None:
        path = self.job.folder / _FILE
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Quantization(found["quantize"])

    def _remember(self, means: Means) -> None:
        write_text_whole(self.job.folder / _FILE, json.dumps({"quantize": means.quantize.value}) + "\n")

    def _too_little(self, budget: float, least: Means) -> OutOfMemoryError:
        batch = self.job.recipe.training.batch_size
        smaller = f"`training.batch_size = {batch // 2}`, or " if batch > 1 else ""
        return OutOfMemoryError(
            "This training does not fit into the GPU's memory",
            f"With {least.words or 'what the recipe asks for'} it takes about {least.peak / 1e9:.1f} GB; "
            f"{budget / 1e9:.1f} GB can be used.",
            f"Set {smaller}smaller `datasets.resolutions` or `datasets.frames`, leave `base_model.quantize`, "
            "`training.gradient_checkpointing`, `training.swap_blocks` and `training.shard_base` to `auto`, or use a larger "
            "GPU.",
        )


def off_the_estimate(plan: MemoryPlan, measured: int) -> str:
    """What to say of a peak that is far from the estimate; empty where it is near or nothing was estimated."""
    if (
        plan.predicted is None
        or not torch.cuda.is_available()
        or abs(measured - plan.predicted) <= TOLERANCE * plan.predicted
    ):
        return ""
    more = "more" if measured > plan.predicted else "less"
    return (
        f"Memory: the first steps took {measured / 1e9:.1f} GB at the most, {more} than the {plan.predicted / 1e9:.1f} GB "
        "that were estimated."
    )
