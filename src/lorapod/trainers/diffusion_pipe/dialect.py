"""diffusion-pipe as an external trainer: what its data makes of a run, and where it can go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tomlkit

from lorapod.errors import DatasetError
from lorapod.models import Entry
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers.base import StageWatch
from lorapod.trainers.controls import refuse_too_many
from lorapod.trainers.data_view import DataViews
from lorapod.trainers.dialect import Followed, Measured
from lorapod.trainers.diffusion_pipe.buckets import Epoch, epoch_of
from lorapod.trainers.diffusion_pipe.limits import check, own_options
from lorapod.trainers.diffusion_pipe.models import denoisers
from lorapod.trainers.diffusion_pipe.render import DATASET, output_of, render, train_stage
from lorapod.trainers.diffusion_pipe.watch import DiffusionPipeWatch
from lorapod.trainers.rendering import RenderContext, Rendering, ResumePoint

_LISTED = 8


class DiffusionPipe:
    """tdrussell/diffusion-pipe."""

    name, one_rate_a_view = TrainerName.DIFFUSION_PIPE, False

    def check(self, recipe: Recipe, entry: Entry) -> None:
        check(recipe, entry)

    def render(self, recipe: Recipe, entry: Entry, context: RenderContext) -> Rendering:
        return render(recipe, entry, context)

    def measure(self, recipe: Recipe, entry: Entry, context: RenderContext, views: DataViews) -> Measured:
        self._refuse_pictures(entry, views)
        _refuse_clips(entry, views)
        refuse_too_many(entry, self.name, (each.item for held in views.items for each in held))
        text = next(file.text for file in self.render(recipe, entry, context).files if file.path == DATASET)
        dataset = tomlkit.parse(text).unwrap()
        items = [held for view, held in zip(views.views, views.items, strict=True) if not view.held_out]
        sizes = entry.geometry
        own = own_options(recipe)
        batch = own.get("micro_batch_size_per_gpu", recipe.training.batch_size)
        accumulation = own.get("gradient_accumulation_steps", recipe.training.accumulation)
        whole = (batch if isinstance(batch, int) else 1) * (accumulation if isinstance(accumulation, int) else 1)
        multiple = 32 if sizes and sizes.divisor == 32 else 16
        epoch = epoch_of(dataset, items, whole * context.gpus, sizes.fps if sizes else None, multiple)
        _refuse_short_clips(epoch)
        if not epoch.steps:
            raise DatasetError(
                "diffusion-pipe would not train on anything",
                f"It fills batches of {whole} from each bucket alone, and no bucket of the data holds that many items.",
                "Lower `training.batch_size` or `training.accumulation`, raise `repeats`, or lower `num_ar_buckets` in "
                "[trainer_options.diffusion-pipe.dataset].",
            )
        training = recipe.training
        by_epochs = (training.epochs or 1) * epoch.steps
        total = training.steps if training.steps is not None else by_epochs
        warnings = _about_left_out(epoch, whole)
        if any(len(each.captions) > 1 for held in items for each in held):
            warnings.append(
                ("An epoch sees every item once a shuffled caption", "Epochs are that many times as long as with one.")
            )
        totals = {train_stage(denoiser): total for denoiser in denoisers(entry, recipe.base_model.expert)}
        return Measured(replace(context, steps_per_epoch=epoch.steps), totals, warnings)

    def _refuse_pictures(self, entry: Entry, views: DataViews) -> None:
        """Models that make clips out of a first frame train on clips alone: a picture would hang the trainer."""
        if "i2v" not in entry.name and "i2v" not in (entry.based_on or ""):
            return
        pictures = [
            each.item.path
            for view, held in zip(views.views, views.items, strict=True)
            for each in held
            if view.kind == "picture"
        ]
        if pictures:
            raise DatasetError(
                f"{entry.title} trains on clips alone, and the data holds {len(pictures)} pictures",
                ", ".join(path.name for path in pictures[:_LISTED])
                + ". diffusion-pipe would hang on the first of them.",
                "Move the pictures out of the dataset, or train a text-to-video base model.",
            )

    def resume_points(self, recipe: Recipe, entry: Entry, output: Path) -> dict[str, ResumePoint]:
        found = {}
        for denoiser in denoisers(entry, recipe.base_model.expert):
            point = resume_point(output_of(denoiser, output))
            if point:
                found[train_stage(denoiser)] = ResumePoint(point)
        return found

    def watch(self, followed: Followed) -> StageWatch:
        return DiffusionPipeWatch(followed)


def resume_point(output: Path) -> str | None:
    """Name of the newest run folder of diffusion-pipe that holds a whole checkpoint; None where none does."""
    for folder in sorted((each for each in output.glob("*_*") if each.is_dir()), reverse=True):
        latest = folder / "latest"
        try:
            tag = latest.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if tag and (folder / tag).is_dir():
            return folder.name
    return None


def _refuse_clips(entry: Entry, views: DataViews) -> None:
    clips = sum(view.items for view in views.views if view.kind == "clip")
    if clips and entry.modality == "picture":
        raise DatasetError(
            f"{entry.title} trains on pictures alone, and the data holds {clips} clips",
            "diffusion-pipe would hang on the first of them.",
            "Move the clips out of the dataset, or train a base model for clips.",
        )


def _refuse_short_clips(epoch: Epoch) -> None:
    if epoch.too_short:
        raise DatasetError(
            f"diffusion-pipe would leave out {len(epoch.too_short)} clips as too short",
            ", ".join(path.name for path in epoch.too_short[:_LISTED])
            + ". It rounds the number of their frames at the base model's rate down.",
            "Add a shorter length to `frames` of the dataset, or take these clips out.",
        )


def _about_left_out(epoch: Epoch, whole: int) -> list[tuple[str, str]]:
    if not epoch.left_out:
        return []
    count = sum(epoch.left_out.values())
    where = ", ".join("x".join(map(str, bucket)) for bucket in list(epoch.left_out)[:_LISTED])
    return [
        (
            f"diffusion-pipe leaves {count} items out of every epoch, always the same ones",
            f"They fill no batch of {whole} in their buckets ({where}). Lower `training.batch_size` or "
            "`training.accumulation`, or raise `repeats`.",
        )
    ]


__all__ = ["DiffusionPipe", "resume_point"]
