"""The evaluation loss: held-out items at fixed noise and fixed quantiles of the noise level.

Noise follows from the item and the quantile, not from the recipe's seed, so curves of different runs on the same items
can be laid over each other. Captions are the items' own, without dropout. It is the plain mean square whatever the recipe
trains with: neither the kind of loss nor weights of levels and datasets count, only masks do. Regularisation datasets have
lines of their own.
"""

from __future__ import annotations

import torch
from torch import nn

from lorapod.data import TrainItem
from lorapod.engine.batches import Batch, Batches, levels_of
from lorapod.engine.families import Expert
from lorapod.engine.job import Job
from lorapod.engine.losses import Answer, squared_error
from lorapod.engine.noise import at_quantiles, generator_for
from lorapod.engine.ranks import Ranks
from lorapod.engine.text_encoders import live_text
from lorapod.recipe.choices import Regularisation


class Evaluation:
    """The fixed batches of each dataset, read once."""

    def __init__(self, job: Job, source: Batches, expert: Expert, ranks: Ranks | None = None) -> None:
        self.job, self.expert, self.ranks = job, expert, ranks or Ranks()
        recipe = job.recipe
        self.sets: dict[str, list[Batch]] = {}
        self.regularising: set[str] = set()
        for index, section in enumerate(recipe.datasets):
            held_out = [item for item in job.data.validation if item.dataset == index]
            chosen = held_out[: recipe.evaluation.max_items]
            if chosen:
                name = section.path.name + (expert.suffix if len(job.experts) > 1 else "")
                if name in self.sets:
                    name = f"{name} ({index + 1})"
                self.sets[name] = [self._batch(item, source) for item in chosen]
                if section.regularisation is not Regularisation.NONE:
                    self.regularising.add(name)

    def _batch(self, item: TrainItem, source: Batches) -> Batch:
        count = self.job.recipe.evaluation.quantiles
        u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        entry, text = source.latents(item), source.text(item, item.captions[0])
        levels = at_quantiles(u, levels_of(self.job, entry["mean"], self.expert))
        generator = generator_for("evaluation", item.item.sha256, list(item.placement.resize_to))
        latents = entry["mean"].expand(count, *entry["mean"].shape)
        noise = torch.randn(latents.shape, generator=generator)
        return Batch(latents, noise, levels, [entry] * count, [text] * count, captions=(item.captions[0],) * count)

    @torch.no_grad()
    def run(self, denoiser: nn.Module) -> dict[str, float]:
        """Mean loss of each dataset that holds items out."""
        was_training = denoiser.training
        denoiser.eval()
        means = torch.zeros(len(self.sets), device=self.job.device)
        for place, batches in enumerate(self.sets.values()):
            for batch, counts in self.ranks.dealt(batches):
                loss = self.loss(denoiser, batch).mean() / len(batches)
                if counts:
                    means[place] += loss
        denoiser.train(was_training)
        return dict(zip(self.sets, self.ranks.summed(means).tolist(), strict=True))

    def loss(self, denoiser: nn.Module, batch: Batch) -> torch.Tensor:
        """Loss of each item of a batch, (b,)."""
        return loss_of(self.job, denoiser, batch.to(self.job.device))


def answer_to(job: Job, denoiser: nn.Module, batch: Batch) -> Answer:
    """What a denoiser says of a batch, on the job's device.

    It computes in the type of its own weights, as ComfyUI and diffusers' pipelines do. torch's autocast would have norms
    give float32, and what is computed from them: more to keep and to move (13 % of the memory of FLUX.1 at 1024 pixels), and
    other numbers than the LoRA will be used with.
    """
    live = live_text(denoiser)
    texts = live(batch.captions) if live else batch.texts
    return job.family.answer(denoiser, batch.latents, batch.noise, batch.noise_level, batch.items, texts)


def loss_of(job: Job, denoiser: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean squared error of each item of a batch, (b,)."""
    return squared_error(answer_to(job, denoiser, batch))
