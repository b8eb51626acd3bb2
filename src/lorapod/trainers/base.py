"""What a trainer is: a recipe in, processes to run and events out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorapod.events import Event
from lorapod.recipe import Recipe
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """One process of a run. Secrets reach it through `env`, never through `argv`."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(repr=False)
    cwd: Path


class Trainer(Protocol):
    """Plans the stages of a run, and reads what they print."""

    name: str

    def check(self, recipe: Recipe) -> None:
        """Refuses, before anything is started, what this trainer cannot do with the recipe.

        Raises:
            RequestError: What it is, and what to change.
        """

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        """The stages of a run, in order."""

    def parse(self, line: str) -> Event | None:
        """The event that a line of output stands for, or None for a line that is only for the log."""
