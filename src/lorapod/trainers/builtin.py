"""The built-in trainer: the engine, as two processes, so that the text encoder's and the VAE's memory is free again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lorapod.events import PREFIX, Event, from_line
from lorapod.recipe import Recipe
from lorapod.trainers.base import Stage
from lorapod.workspace import Workspace


class BuiltinTrainer:
    """Starts `python -m lorapod.engine`, which prints events itself."""

    name = "builtin"

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        train = ["train", str(run_dir), *(["--resume"] if resume else [])]
        return [self._stage("cache", ["cache", str(run_dir)], workspace), self._stage("train", train, workspace)]

    def sample_stage(self, request: Path, workspace: Workspace) -> Stage:
        """The stage that draws the grid which the JSON file `request` asks for."""
        return self._stage("sample", ["sample", str(request)], workspace)

    def parse(self, line: str) -> Event | None:
        return from_line(line.removeprefix(PREFIX)) if line.startswith(PREFIX) else None

    def _stage(self, name: str, arguments: list[str], workspace: Workspace) -> Stage:
        argv = [sys.executable, "-m", "lorapod.engine", *arguments, "--workspace", str(workspace.root)]
        return Stage(name, argv, dict(os.environ) | {"PYTHONUNBUFFERED": "1"}, workspace.root)
