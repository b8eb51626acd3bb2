"""External trainers: from a recipe to their processes.

A run's stages are `prepare` (our own process: looks at the data, makes its view, writes what the trainer is given) and those
that the trainer's dialect renders. In the run folder:

    rendered/   what the trainer is given, NN-STAGE.command.json (the commands), state.json (what was prepared)
    data/       views of the datasets, in which the trainer's caches are too
    output/     what the trainer writes; nothing in it is moved or deleted
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorapod.events import Event, event
from lorapod.files import write_text_whole
from lorapod.models import Entry, catalogue, entries
from lorapod.models.base_model import unknown
from lorapod.models.store import Store
from lorapod.recipe import Recipe
from lorapod.trainers.base import Ending, Stage, StageWatch
from lorapod.trainers.dialect import Dialect, Followed
from lorapod.trainers.installs import Installation, find_installation
from lorapod.trainers.locations import present_files
from lorapod.trainers.rendering import RenderContext, Rendering
from lorapod.workspace import Workspace

PREPARE = "prepare"
RENDERED, DATA, OUTPUT, STATE = "rendered", "data", "output", "state.json"


class ExternalTrainer:
    """Runs the stages of a dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.name = dialect.name.value
        self._planned: dict[str, Followed] = {}

    def check(self, recipe: Recipe) -> None:
        entry = catalogue().get(recipe.base_model.name)
        if entry is not None:  # an entry of the person's own is known with the workspace: `ready`
            self.dialect.check(recipe, entry)

    def ready(self, recipe: Recipe, workspace: Workspace) -> None:
        entry = entry_of(recipe, workspace)
        self.dialect.check(recipe, entry)
        find_installation(self.dialect.name, workspace)
        present_files(recipe, entry, workspace)

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        entry = entry_of(recipe, workspace)
        installation = find_installation(self.dialect.name, workspace)
        context = context_of(recipe, entry, run_dir, workspace, installation)
        if resume:
            context = replace(context, resume=self.dialect.resume_points(recipe, entry, context.output))
        rendering = self.dialect.render(recipe, entry, context)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "lorapod.trainers.prepare",
            str(run_dir),
            "--workspace",
            str(workspace.root),
        ]
        argv += ["--port", str(context.port), *(["--resume"] if resume else [])]
        environment = dict(os.environ)
        stages = [Stage(PREPARE, argv, environment | {"PYTHONUNBUFFERED": "1"}, run_dir)]
        done = stages_done(run_dir, recipe) if resume else set()
        for stage in rendering.stages:
            if stage.name not in done:
                # What the person set in the environment wins over what is only good practice.
                stages.append(Stage(stage.name, stage.argv, stage.env | _theirs(context.python), stage.cwd))
        self._planned = {
            stage.name: Followed(
                stage.name,
                recipe,
                entry,
                run_dir,
                (i, len(stages)),
                {},
                installation.commit,
                _hash(entry, workspace),
                context.resume.get(stage.name),
            )
            for i, stage in enumerate(stages, start=1)
        }
        return stages

    def watch(self, stage: Stage) -> StageWatch:
        followed = self._planned[stage.name]
        if stage.name == PREPARE:
            return PrepareWatch(followed)
        return self.dialect.watch(replace(followed, state=read_state(followed.run_dir)))


def _theirs(python: Path) -> dict[str, str]:
    """The environment of a trainer's process: its own programs first, and nothing of lorapod's own Python."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"}


class PrepareWatch(StageWatch):
    """Follows our own process, which prints events."""

    def __init__(self, followed: Followed) -> None:
        super().__init__()
        self.followed = followed

    def begin(self, pid: int) -> list[Event]:
        index, count = self.followed.place
        return [event("stage", name=PREPARE, index=index, count=count)]

    def end(self, code: int, *, stopped: bool, forced: bool) -> Ending | None:
        return Ending("stopped") if stopped else None


def entry_of(recipe: Recipe, workspace: Workspace) -> Entry:
    """The catalogue's entry of the recipe's base model.

    Raises:
        BaseModelError: There is none; external trainers take no folder.
    """
    known = entries(workspace)
    if recipe.base_model.name not in known:
        raise unknown(recipe.base_model.name, known)
    return known[recipe.base_model.name]


def context_of(
    recipe: Recipe, entry: Entry, run_dir: Path, workspace: Workspace, installation: Installation
) -> RenderContext:
    """Where everything of a run is.

    Raises:
        BaseModelError: A file of the base model is not there.
    """
    # One GPU is used: the first that the person made visible, which the launchers would otherwise not heed.
    visible = re.match(r"\d+", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return RenderContext(
        folder=run_dir / RENDERED,
        home=Path(installation.home),
        python=Path(installation.python),
        model_files=present_files(recipe, entry, workspace),
        data=[run_dir / DATA / str(index) for index in range(len(recipe.datasets))],
        output=run_dir / OUTPUT,
        devices=visible[0] if visible else "",
        port=free_port(),
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_rendering(rendering: Rendering, folder: Path) -> list[Path]:
    """Writes a rendering's files and commands; gives their paths.

    Raises:
        DiskError: They cannot be written.
    """
    written = []
    for file in rendering.files:
        written.append(folder / file.path)
        write_text_whole(folder / file.path, file.text)
    for number, stage in enumerate(rendering.stages, start=1):
        path = folder / f"{number:02d}-{stage.name.replace(' ', '-')}.command.json"
        command = {
            "argv": stage.argv,
            "env": stage.env,
            "cwd": str(stage.cwd),
            "shell": shlex.join([*(f"{key}={value}" for key, value in stage.env.items()), *stage.argv]),
        }
        write_text_whole(path, json.dumps(command, ensure_ascii=False, indent=1) + "\n")
        written.append(path)
    return written


def read_state(run_dir: Path) -> dict[str, Any]:
    """What a run noted when it was prepared."""
    try:
        state = json.loads((run_dir / RENDERED / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def stage_is_done(run_dir: Path, stage: str, recipe: Recipe) -> None:
    """Notes that a stage is done with, so that a run that is resumed does not begin it again."""
    write_text_whole(run_dir / RENDERED / f"{stage}.done", json.dumps(_length(recipe)) + "\n")


def stages_done(run_dir: Path, recipe: Recipe) -> set[str]:
    """Training stages that are done with, unless the recipe has another length by now."""
    done = set()
    for path in (run_dir / RENDERED).glob("*.done"):
        try:
            length = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if length == _length(recipe):
            done.add(path.stem)
    return done


def _length(recipe: Recipe) -> dict[str, int | None]:
    return {"steps": recipe.training.steps, "epochs": recipe.training.epochs}


def _hash(entry: Entry, workspace: Workspace) -> str:
    """SHA-256 of the denoiser's weights, as they were when they were fetched."""
    for file in Store(workspace).record(entry.name).files:
        if file.part.startswith(("transformer", "checkpoint")) and file.sha256:
            return file.sha256
    return ""
