"""What a trainer is: a recipe in, processes to run and events out; and what follows one of its processes."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorapod.errors import LorapodError
from lorapod.events import PREFIX, EndStatus, Event, from_line
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
    """How a stage ended, where its trainer knows better than its exit status says."""

    status: EndStatus
    events: list[Event] = field(default_factory=list)
    error: LorapodError | None = None


class StageWatch:
    """Follows one process of a run. This one suits a process that prints its own events and stops on SIGINT.

    Attributes:
        stop_signal: What asks the process group to stop where `ask_to_stop` has no better way.
        doom: Set to the reason where the process is to be ended as failed.
    """

    stop_signal = signal.SIGINT

    def __init__(self) -> None:
        self.doom: LorapodError | None = None

    def begin(self, pid: int) -> list[Event]:
        """The process was started."""
        return []

    def read(self, text: str) -> list[Event]:
        """The events of a line; none for one that is only for the log."""
        found = from_line(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None
        return [] if found is None else [found]

    def tick(self) -> list[Event]:
        """About once a second while the process is alive."""
        return []

    def ask_to_stop(self) -> bool:
        """Asks the process to stop in its own way; False where it has none now. Called from a signal handler."""
        return False

    def end(self, code: int, *, stopped: bool, forced: bool) -> Ending | None:
        """The process is over and all of its output was read; None: its exit status says it all."""
        return None

    def close(self) -> None:
        """Ends what the process left behind."""


class Trainer(Protocol):
    """Plans the stages of a run, and follows them."""

    name: str

    def check(self, recipe: Recipe) -> None:
        """Refuses, before anything is started, what this trainer cannot do with the recipe.

        Raises:
            RequestError: What it is, and what to change.
        """

    def ready(self, recipe: Recipe, workspace: Workspace) -> None:
        """Refuses, before anything is started, what is missing on this machine.

        Raises:
            RequestError: What it is, and how to get it.
        """

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        """The stages of a run, in order.

        Raises:
            RequestError: They cannot be planned any more, as where the trainer was removed meanwhile.
        """

    def watch(self, stage: Stage) -> StageWatch:
        """What follows a stage of the plan that was made last."""
