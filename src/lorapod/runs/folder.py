"""Run folders: made, found, and nothing else. `training_outputs/<recipe name>/<UTC time>-<short id>/`."""

from __future__ import annotations

import difflib
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.errors import RunError
from lorapod.files import disk_error, write_text_whole
from lorapod.recipe import Recipe
from lorapod.workspace import Workspace

PAIR = "pair.json"
"""In a run that belongs together with another one: which that is, and the GPU of this one."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one execution of a recipe."""

    path: Path

    @property
    def id(self) -> str:
        """Short id, unique in the workspace."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return self.path.parent.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / "supervisor.json"

    @property
    def lora(self) -> Path:
        return self.path / "lora"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def pair(self) -> dict[str, str] | None:
        """`with`, the id of the run that this one belongs together with, and `gpu`, its own; None for a run alone."""
        try:
            noted = json.loads((self.path / PAIR).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return noted if isinstance(noted, dict) and {"with", "gpu"} <= noted.keys() else None

    def recipe(self) -> Recipe:
        """The recipe as resolved when the run was made; paths are not checked again."""
        return recipes.load(self.recipe_file, check_paths=False)


def create_run(recipe: Recipe, workspace: Workspace) -> RunFolder:
    """A new run folder with the recipe in it.

    Raises:
        DiskError: The workspace cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = RunFolder(workspace.runs / recipe.name / f"{stamp}-{secrets.token_hex(3)}")
    try:
        run.path.mkdir(parents=True)
        for name in ("previews", "checkpoints", "lora"):
            (run.path / name).mkdir()
        write_text_whole(run.recipe_file, recipes.dumps(recipe))
        run.events.touch()
    except OSError as error:
        raise disk_error(error, run.path) from error
    return run


def all_runs(workspace: Workspace) -> list[RunFolder]:
    """Every run of the workspace, newest first."""
    found = [RunFolder(file.parent) for file in workspace.runs.glob("*/*/recipe.toml")]
    return sorted(found, key=lambda run: (run.path.name, run.name), reverse=True)


def find_run(reference: str | None, workspace: Workspace) -> RunFolder:
    """The run meant by `reference`: a folder, an id or its beginning, or a recipe's name (its newest run); None: the newest.

    Raises:
        RunError: No run, or several, are meant.
    """
    runs = all_runs(workspace)
    if reference is None:
        if not runs:
            raise RunError(
                "There is no run yet", f"{workspace.runs} holds none.", "Start one with `lorapod train RECIPE`."
            )
        return runs[0]
    folder = Path(reference).expanduser()
    if (folder / "recipe.toml").is_file() and (folder / "events.jsonl").exists():
        return RunFolder(folder.resolve())
    named = [run for run in runs if run.name == reference]
    if named:
        return named[0]
    matching = [run for run in runs if run.id.startswith(reference) or run.path.name == reference]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise RunError(
            f"{reference} is the beginning of {len(matching)} runs",
            ", ".join(f"{run.id} ({run.name})" for run in matching[:8]) + ".",
            "Give more of the id.",
        )
    known = ", ".join(f"{run.id} ({run.name})" for run in runs[:5])
    words = dict.fromkeys(word for run in runs for word in (run.name, run.id))
    near = difflib.get_close_matches(reference, words, n=3)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    raise RunError(
        f"There is no run called {reference}",
        f"The newest are {known}." if known else f"{workspace.runs} holds no runs.",
        f"{meant}See them all with `lorapod runs list`.",
    )
