"""What a trainer is: a recipe in, processes to run and events out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lorapod.errors import LorapodError
from lorapod.events import PREFIX, Event, from_line
from lorapod.recipe import Recipe
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """One process of a run. Secrets reach it through `env`, never through `argv`."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(repr=False)
    cwd: Path


@dataclass(frozen=True)
class Ending:
    """How a stage ended, where its exit status alone does not tell."""

    status: Literal["done", "stopped", "failed"]
    error: LorapodError | None = None


class Watch(Protocol):
    """Looks after one stage while it runs."""

    def read(self, line: str) -> Event | None:
        """The event that a line of output stands for, or None for a line that is only for the log."""

    def ask_to_stop(self) -> bool:
        """Asks for a clean stop in the trainer's own way; False where it has none and wants a SIGINT."""

    def ended(self, code: int) -> Ending | None:
        """What an exit status (negative: a signal) meant; None where it means what it says."""


class EventWatch:
    """Watches a stage of lorapod's own, which prints events and stops at a SIGINT."""

    def read(self, line: str) -> Event | None:
        return from_line(line.removeprefix(PREFIX)) if line.startswith(PREFIX) else None

    def ask_to_stop(self) -> bool:
        return False

    def ended(self, code: int) -> Ending | None:
        return None


class Trainer(Protocol):
    """Plans the stages of a run, and watches them."""

    name: str

    def check(self, recipe: Recipe, workspace: Workspace) -> None:
        """Refuses, before anything is started, what this trainer cannot do with the recipe, or lacks on this machine.

        Raises:
            RequestError: What it is, and what to change.
        """

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        """The stages of a run, in order; those that a resumed run has behind it are left out."""

    def watch(self, stage: Stage) -> Watch:
        """What looks after a stage that is about to start."""
