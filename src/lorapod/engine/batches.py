"""From cached items to the tensors of one forward pass, following from the seed and the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorapod.data import TrainItem, batches
from lorapod.engine.controls import Control
from lorapod.engine.families import Conditions, Expert, ShiftsByResolution, TakesPlacement
from lorapod.engine.families.control import with_controls
from lorapod.engine.families.shared import rows_of
from lorapod.engine.job import Job
from lorapod.engine.masks import weighed
from lorapod.engine.noise import draw_levels, generator_for
from lorapod.errors import TrainingError
from lorapod.recipe.choices import Regularisation
from lorapod.recipe.timesteps import NoiseLevels


@dataclass(frozen=True)
class Batch:
    """What one forward pass is given.

    Attributes:
        latents: Clean, (b, c, f, h, w).
        noise: Likewise.
        noise_level: (b,), 1 is pure noise.
        items: Whatever else is cached of each item.
        texts: What the denoiser is told, one an item.
        weights: How much each item's loss counts; empty: all alike.
        preserved: Places in the batch of items whose target is what the base model makes of them.
        captions: What `texts` are of, for encoders that are trained.
    """

    latents: Tensor
    noise: Tensor
    noise_level: Tensor
    items: list[Conditions]
    texts: list[Conditions]
    weights: tuple[float, ...] = ()
    preserved: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()

    def part(self, places: Sequence[int]) -> Batch:
        """Some of its items."""
        return replace(
            self,
            latents=rows_of(self.latents, places),
            noise=rows_of(self.noise, places),
            noise_level=rows_of(self.noise_level, places),
            items=[self.items[i] for i in places],
            texts=[self.texts[i] for i in places],
            weights=tuple(self.weights[i] for i in places) if self.weights else (),
            preserved=tuple(new for new, old in enumerate(places) if old in self.preserved),
            captions=tuple(self.captions[i] for i in places) if self.captions else (),
        )

    def to(self, device: torch.device) -> Batch:
        return self if device.type == "cpu" else self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In page-locked memory, from where a GPU takes it while it computes; `to` waits otherwise."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            latents=change(self.latents),
            noise=change(self.noise),
            noise_level=change(self.noise_level),
            items=[{name: change(value) for name, value in item.items()} for item in self.items],
            texts=[{name: change(value) for name, value in text.items()} for text in self.texts],
        )


class Batches:
    """The batches of a run, by number; the next one is read while the present one is trained on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recipe = job.recipe.training
        self._keys = {id(item): job.latents_key(item) for item in job.items()}
        self._epochs: dict[int, list[list[int]]] = {}
        self.per_epoch = len(self._of_epoch(0))

    @property
    def steps_of_expert(self) -> int:
        """Optimizer steps of each expert that is trained; most base models have one."""
        if self.recipe.steps is not None:
            return self.recipe.steps
        return math.ceil(self.per_epoch * (self.recipe.epochs or 1) / self.recipe.accumulation)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_of_expert * len(self.job.experts)

    def expert_of(self, number: int) -> Expert:
        """The expert that a batch is for: they are trained one after the other."""
        place = number // (self.steps_of_expert * self.recipe.accumulation)
        return self.job.experts[min(place, len(self.job.experts) - 1)]

    def epoch_of(self, number: int) -> int:
        return number // self.per_epoch

    def from_number(self, first: int, count: int) -> Iterator[Batch]:
        """Batches `first` to `first + count - 1`, on the CPU."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            upcoming: Future[Batch] = pool.submit(self._ahead, first)
            for number in range(first, first + count):
                batch = upcoming.result()
                if number + 1 < first + count:
                    upcoming = pool.submit(self._ahead, number + 1)
                yield batch

    def _ahead(self, number: int) -> Batch:
        batch = self.read(number)
        return batch.pinned() if self.job.device.type == "cuda" else batch

    def read(self, number: int) -> Batch:
        """The batch of that number; the same in every process."""
        epoch, place = divmod(number, self.per_epoch)
        chosen = [self.job.data.train[i] for i in self._of_epoch(epoch)[place]]
        generator = generator_for("batch", self.recipe.seed, number)
        entries = [self.latents(item) for item in chosen]
        latents = torch.stack([_drawn(entry, generator) for entry in entries])
        noise = _normal(latents, generator)
        levels = draw_levels(len(chosen), levels_of(self.job, latents, self.expert_of(number)), generator)
        captions = tuple(self._caption(item, epoch, generator) for item in chosen)
        texts = [self.text(item, caption) for item, caption in zip(chosen, captions, strict=True)]
        if self.recipe.first_frame_share and latents.shape[2] > 1:
            entries = [self._perhaps_begun(entry, generator) for entry in entries]
        sections = [self.job.recipe.datasets[item.dataset] for item in chosen]
        weights = tuple(section.loss_weight for section in sections)
        preserved = tuple(i for i, each in enumerate(sections) if each.regularisation is Regularisation.PRESERVE)
        weights = weights if set(weights) != {1.0} else ()
        return Batch(latents, noise, levels, entries, texts, weights, preserved, captions)

    def latents(self, item: TrainItem) -> Conditions:
        entry = self.job.latents_cache.get(self._keys[id(item)])
        entry = weighed(self.job, item, entry) if entry is not None else None
        if entry is None:
            raise _cache_gone(str(item.item.path))
        entry = with_controls(entry, [self._control(control) for control in self.job.controls(item)])
        family = self.job.family
        return family.placed(entry, item.placement) if isinstance(family, TakesPlacement) else entry

    def _control(self, control: Control) -> Tensor:
        entry = self.job.latents_cache.get(self.job.control_key(control))
        if entry is None:
            raise _cache_gone(f"the control picture {control.path}")
        return entry["mean"]

    def text(self, item: TrainItem, caption: str) -> Conditions:
        entry = self.job.text_cache.get(self.job.text_key(caption, self.job.controls(item)))
        if entry is None:
            raise _cache_gone(f"the caption {caption!r}")
        return entry

    def _caption(self, item: TrainItem, epoch: int, generator: torch.Generator) -> str:
        if torch.rand((), generator=generator).item() < item.caption_dropout:
            return ""
        return item.captions[epoch % len(item.captions)]

    def _perhaps_begun(self, entry: Conditions, generator: torch.Generator) -> Conditions:
        """An entry of a clip that, in a share of the times, says that its first latent frame is given."""
        given = torch.rand((), generator=generator) < self.recipe.first_frame_share
        return {**entry, "given_frames": given.long()}

    def _of_epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            recipe = self.recipe
            portions = batches(self.job.data.train, recipe.batch_size, epoch, recipe.seed, recipe.regularisation_share)
            self._epochs = {epoch: portions}
        return self._epochs[epoch]


def levels_of(job: Job, latents: Tensor, expert: Expert) -> NoiseLevels:
    """What noise levels are drawn from for latents (..., h, w) with an expert."""
    shift = 1.0
    if job.recipe.training.resolution_shift and isinstance(job.family, ShiftsByResolution):
        shift = job.family.resolution_shift(tuple(latents.shape))
    return NoiseLevels.of(job.recipe.training, shift).within(expert.lowest, expert.highest)


def _drawn(entry: Conditions, generator: torch.Generator) -> Tensor:
    """Latents (c, f, h, w) from what the VAE says; the most likely ones where it gives no deviation."""
    if "deviation" not in entry:
        return entry["mean"]
    return entry["mean"] + entry["deviation"] * _normal(entry["mean"], generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _cache_gone(what: str) -> TrainingError:
    return TrainingError(
        f"The cache entry of {what} is gone or damaged",
        "The cache folder was changed while the run was going, or the file itself was.",
        "Run the same command with --resume: what is missing is computed again.",
    )
