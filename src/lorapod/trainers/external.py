"""What external trainers share: a run's folders, its stages around the trainer's own, stopping, and what happened.

    run/data/       a view of the datasets: media linked, captions as trained on
    run/config/     what was rendered, and NN-<stage>.command.json
    run/output/     what the trainer itself writes; nothing of it is moved or deleted
    run/lora/       the LoRA files, as ComfyUI loads them

`prepare` and `collect` are stages too, processes of lorapod's own (`lorapod.trainers.stages`).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from lorapod.data import Geometry, MediaCache, plan_datasets
from lorapod.data.export import Layout, lay_out
from lorapod.data.facts import Progress
from lorapod.events import Event
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.trainers.base import Ending, EventWatch, Stage, Watch
from lorapod.trainers.diagnosis import Diagnosis
from lorapod.trainers.renderers import find_entry, get_renderer, make_context, own_keys, write
from lorapod.trainers.rendering import RenderContext, Rendering, View
from lorapod.workspace import Workspace

PREPARE, COLLECT = "prepare", "collect"


class LineReader(Protocol):
    """Turns the output of one stage into events. `stopped`: whether it said that it stopped because it was asked to."""

    stopped: bool

    def read(self, line: str) -> Event | None:
        """The event of a line, or None."""


class ExternalTrainer(ABC):
    """A trainer that is a program of its own."""

    name: str
    title: str
    layout: Layout

    @abstractmethod
    def started(self, stage: Stage, recipe: Recipe, output: Path, resume: bool) -> Stage | None:
        """The training stage as it is started, from its newest state where it resumes; None if it is finished."""

    @abstractmethod
    def reader(self, stage: Stage) -> LineReader:
        """What reads a stage's output."""

    @abstractmethod
    def collect(self, recipe: Recipe, entry: Entry, run_dir: Path, commit: str) -> list[Event]:
        """Puts the LoRA files into run/lora; gives a `lora` event each.

        Raises:
            StageFailedError: There are none, so that nothing was trained.
        """

    def check(self, recipe: Recipe, workspace: Workspace) -> None:
        entry = find_entry(recipe, workspace)
        renderer = get_renderer(recipe.trainer)
        renderer.check(recipe, entry)
        renderer.render(recipe, entry, make_context(recipe, entry, workspace, workspace.root), own_keys(recipe))

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        context, rendering = self.rendered(recipe, run_dir, workspace, [])
        stages = [self._own(PREPARE, run_dir, workspace)]
        for rendered in rendering.stages:
            environment = _environment(context.python) | rendered.env
            made = Stage(rendered.name, rendered.argv, environment, rendered.cwd)
            stage: Stage | None = made
            if rendered.name.startswith("train"):
                stage = self.started(made, recipe, context.output, resume)
            if stage is not None:
                stages.append(stage)
        return [*stages, self._own(COLLECT, run_dir, workspace)]

    def watch(self, stage: Stage) -> Watch:
        if stage.name in (PREPARE, COLLECT):
            return EventWatch()
        return ExternalWatch(self.title, stage.name, self.reader(stage))

    def prepare(self, recipe: Recipe, run_dir: Path, workspace: Workspace, progress: Progress) -> Rendering:
        """Makes the view of the data and writes what is rendered."""
        rule = find_entry(recipe, workspace).geometry
        geometry = Geometry(
            divisor=rule.divisor if rule else 16, frame_step=(rule.frame_step if rule else None) or 1,
            fps=rule.fps if rule else None,
        )  # fmt: skip
        plan = plan_datasets(recipe.datasets, geometry, recipe.training.seed, cache=MediaCache.of(workspace))
        folders = lay_out(recipe.datasets, plan, self.layout, run_dir / "data", progress)
        views = [
            View(each.dataset, "clip" if each.clips else "picture", each.folder, each.fps or None) for each in folders
        ]
        context, rendering = self.rendered(recipe, run_dir, workspace, views)
        write(rendering, context.folder, overwrite=True)  # made by an earlier start of this run
        context.output.mkdir(parents=True, exist_ok=True)
        return rendering

    def rendered(
        self, recipe: Recipe, run_dir: Path, workspace: Workspace, views: list[View]
    ) -> tuple[RenderContext, Rendering]:
        """Where everything of a run is, and what is rendered for it.

        Raises:
            RequestError: The trainer is not installed, or cannot do what the recipe asks for.
            BaseModelError: A file was not pulled.
        """
        entry = find_entry(recipe, workspace)
        context = make_context(recipe, entry, workspace, run_dir / "config", run=run_dir, views=views)
        return context, get_renderer(recipe.trainer).render(recipe, entry, context, own_keys(recipe))

    def _own(self, name: str, run_dir: Path, workspace: Workspace) -> Stage:
        argv = [
            sys.executable,
            "-P",
            "-m",
            "lorapod.trainers.stages",
            name,
            str(run_dir),
            "--workspace",
            str(workspace.root),
        ]
        return Stage(name, argv, dict(os.environ) | {"PYTHONUNBUFFERED": "1"}, workspace.root)


class ExternalWatch:
    """Reads a trainer's output, and tells at the end what happened."""

    def __init__(self, title: str, stage: str, reader: LineReader) -> None:
        self.stage, self.reader = stage, reader
        self.diagnosis = Diagnosis(title)
        self.asked = False

    def read(self, line: str) -> Event | None:
        self.diagnosis.feed(line)
        return self.reader.read(line)

    def ask_to_stop(self) -> bool:
        self.asked = True
        return False

    def ended(self, code: int) -> Ending | None:
        if code == 0:
            return Ending("stopped") if self.reader.stopped else None
        if self.asked:
            return Ending("stopped")
        return Ending("failed", self.diagnosis.verdict(self.stage, code))


def _environment(python: Path) -> dict[str, str]:
    """The environment with the trainer's own first; what belongs to lorapod's own Python is left out."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"}
