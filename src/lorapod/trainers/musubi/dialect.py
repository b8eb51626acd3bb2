"""musubi-tuner as an external trainer: what its data makes of a run, and where it can go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorapod.errors import DatasetError
from lorapod.models import Entry
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers.base import StageWatch
from lorapod.trainers.controls import preview_controls, refuse_too_many
from lorapod.trainers.data_view import DataViews
from lorapod.trainers.dialect import Followed, Measured
from lorapod.trainers.external import RENDERED
from lorapod.trainers.musubi.architectures import ARCHITECTURES, Denoiser, denoisers
from lorapod.trainers.musubi.limits import check
from lorapod.trainers.musubi.render import render, train_stage
from lorapod.trainers.musubi.watch import MusubiWatch, noted_total, states
from lorapod.trainers.rendering import RenderContext, Rendering, ResumePoint

PREVIEW_CONTROLS = "preview-control"
"""In the folder of all views: what previews start from."""


class Musubi:
    """kohya-ss/musubi-tuner."""

    name, one_rate_a_view = TrainerName.MUSUBI, True

    def check(self, recipe: Recipe, entry: Entry) -> None:
        check(recipe, entry)

    def render(self, recipe: Recipe, entry: Entry, context: RenderContext) -> Rendering:
        return render(recipe, entry, context)

    def measure(self, recipe: Recipe, entry: Entry, context: RenderContext, views: DataViews) -> Measured:
        """Steps are those of the recipe; of epochs musubi-tuner tells their number itself when it begins."""
        clips = sum(view.items for view in views.views if view.kind == "clip")
        if clips and not ARCHITECTURES[entry.family].clips:
            raise DatasetError(
                f"{entry.title} trains on pictures alone, and the data holds {clips} clips",
                "musubi-tuner would cache them and fail at the first step.",
                "Move the clips out of the dataset, or train a base model for clips.",
            )
        held = [each for items in views.items for each in items]
        refuse_too_many(entry, self.name, (each.item for each in held))
        if entry.control and views.views:
            trained = [
                each
                for view, items in zip(views.views, views.items, strict=True)
                for each in items
                if not view.held_out
            ]
            folder = views.views[0].path.parent / PREVIEW_CONTROLS
            context = replace(context, preview_controls=preview_controls(recipe, trained, folder))
        steps = recipe.training.steps
        totals = {train_stage(network): steps for network in _networks(recipe, entry)} if steps else {}
        return Measured(context, totals, [])

    def resume_points(self, recipe: Recipe, entry: Entry, output: Path) -> dict[str, ResumePoint]:
        found = {}
        for network in _networks(recipe, entry):
            stage = train_stage(network)
            total = recipe.training.steps or noted_total(output.parent / RENDERED, stage)
            # What was saved in the warm-up is passed over: the schedule of a resumed training has none.
            kept = [
                each
                for each in states(output, f"{recipe.name}{network.name}")
                if each[0] >= recipe.optimizer.warmup_steps
            ]
            if kept and total:
                step, state = kept[-1]
                found[stage] = ResumePoint(str(state), step, total)
        return found

    def watch(self, followed: Followed) -> StageWatch:
        return MusubiWatch(followed)


def _networks(recipe: Recipe, entry: Entry) -> list[Denoiser]:
    return denoisers(entry, recipe.base_model.expert.value)
