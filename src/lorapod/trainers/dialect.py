"""What is special about an external trainer; `ExternalTrainer` does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorapod.models import Entry
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers.base import StageWatch
from lorapod.trainers.data_view import DataViews
from lorapod.trainers.rendering import RenderContext, Rendering, ResumePoint


@dataclass(frozen=True)
class Measured:
    """What is known of a run once its data is at hand.

    Attributes:
        context: With what the data says.
        totals: Optimizer steps by stage.
        warnings: As (message, hint).
    """

    context: RenderContext
    totals: dict[str, int]
    warnings: list[tuple[str, str]]


@dataclass(frozen=True)
class Followed:
    """What the follower of a stage is told.

    Attributes:
        place: (index, count) of the stage in the run, from 1.
        state: What the run noted of itself when it was prepared (`rendered/state.json`); {} before.
        commit: Of the trainer.
        resume: What the stage goes on with.
    """

    stage: str
    recipe: Recipe
    entry: Entry
    run_dir: Path
    place: tuple[int, int]
    state: dict[str, Any]
    commit: str
    base_model_hash: str = ""
    resume: ResumePoint | None = None


class Dialect(Protocol):
    """An external trainer's own ways."""

    name: TrainerName
    """What the recipe calls it."""

    one_rate_a_view: bool
    """Whether clips of different frame rates have to lie in different folders."""

    def check(self, recipe: Recipe, entry: Entry) -> None:
        """Refuses what it cannot do. Raises RequestError or BaseModelError."""

    def render(self, recipe: Recipe, entry: Entry, context: RenderContext) -> Rendering:
        """Its files and commands; `context.views` may be empty, and files then name `context.data`."""

    def measure(self, recipe: Recipe, entry: Entry, context: RenderContext, views: DataViews) -> Measured:
        """What the data makes of the run.

        Raises:
            DatasetError: It would not train on items that it is given.
        """

    def resume_points(self, recipe: Recipe, entry: Entry, output: Path) -> dict[str, ResumePoint]:
        """By stage what it goes on with, of the stages that left something behind to go on with."""

    def watch(self, followed: Followed) -> StageWatch:
        """What follows one of its stages."""
