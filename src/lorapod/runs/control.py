"""Starting, resuming and stopping runs, from any process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from lorapod import recipe as recipes
from lorapod.errors import CheckpointError, MissingPackageError, RequestError, RunError, StageFailedError, sentences
from lorapod.events import event
from lorapod.files import write_text_whole
from lorapod.models import entries
from lorapod.models.base_model import unknown
from lorapod.recipe import Recipe
from lorapod.runs.folder import RunFolder, all_runs, create_run
from lorapod.runs.journal import Journal, state_of, stop_asked, supervisor_of
from lorapod.trainers import get_trainer
from lorapod.workspace import Workspace

_START_SECONDS = 30.0


def start_run(recipe: Recipe, workspace: Workspace) -> RunFolder:
    """Makes a run and starts its supervisor, which goes on without this process.

    Raises:
        RequestError: The trainer or the base model cannot be used; nothing was started.
        DiskError: The workspace cannot be written.
    """
    check_before(recipe, workspace)
    run = create_run(recipe, workspace)
    spawn(run, workspace, resume=False)
    return run


def check_before(recipe: Recipe, workspace: Workspace) -> None:
    """Refuses what the recipe's trainer cannot do, and what is missing on this machine. Raises RequestError."""
    trainer = get_trainer(recipe.trainer)
    trainer.check(recipe)
    trainer.ready(recipe, workspace)


def check_alone(recipe: Recipe, workspace: Workspace) -> str:
    """Refuses what would never train, on any machine; nothing is started and no media are opened.

    Returns:
        What is missing on this machine and how to get it, in sentences; empty where nothing is.

    Raises:
        RequestError: There is no such base model, or the trainer cannot do what the recipe asks for.
    """
    known = entries(workspace)
    name = recipe.base_model.name
    if name not in known and not Path(name).is_dir():
        raise unknown(name, known)
    trainer = get_trainer(recipe.trainer)
    try:
        trainer.check(recipe)
    except MissingPackageError as error:
        return sentences(error.what, error.remedy)
    try:
        trainer.ready(recipe, workspace)
    except RequestError as error:
        return sentences(error.what, error.remedy)
    return ""


def resume_run(run: RunFolder, workspace: Workspace, recipe: Recipe | None = None) -> RunFolder:
    """Goes on with a run from its newest checkpoint, with `recipe` in place of its own where one is given.

    Raises:
        RunError: It is still going on, or it is done.
        CheckpointError: `recipe` would train something else.
    """
    state = state_of(run)
    if state.status == "running":
        raise RunError(f"The run {run.id} is still going on", "", f"Watch it with `lorapod runs attach {run.id}`.")
    own = run.recipe()
    if recipe is not None and recipes.digest(recipe) != recipes.digest(own):
        raise CheckpointError(
            f"The run {run.id} was trained with another recipe",
            "These differ: " + ", ".join(recipes.differences(own, recipe)) + ".",
            "Put them back to resume, or leave out --resume to start a new run.",
        )
    changed = recipe is not None and recipes.dumps(recipe) != recipes.dumps(own)
    if state.status == "done" and not changed:
        raise RunError(
            f"The run {run.id} is done",
            f"It trained all of its {state.total} steps.",
            "To train further, raise `training.steps` in the recipe and resume with it, or start a new run with "
            "`adapter.continue_from`.",
        )
    check_before(recipe or own, workspace)
    if recipe is not None and changed:
        write_text_whole(run.recipe_file, recipes.dumps(recipe))
    spawn(run, workspace, resume=True)
    return run


def newest_run_of(name: str, workspace: Workspace) -> RunFolder:
    """The newest run of a recipe's name.

    Raises:
        RunError: There is none.
    """
    for run in all_runs(workspace):
        if run.name == name:
            return run
    raise RunError(
        f"There is no run of {name} to resume", f"{workspace.runs} holds none.", "Leave out --resume to start one."
    )


def stop_run(run: RunFolder, now: bool = False) -> None:
    """Asks a run to stop after the present step with a checkpoint; `now`: at once, without one.

    Asking again without `now` changes nothing: only `now` ends a run that is about to write its checkpoint.

    Raises:
        RunError: It is not going on, or belongs to another user.
    """
    supervisor = supervisor_of(run)
    if supervisor is None:
        raise RunError(
            f"The run {run.id} is not going on", f"It is {state_of(run).status}.", "There is nothing to stop."
        )
    if stop_asked(run) and not now:
        return
    try:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            supervisor.send_signal(signal.SIGINT)
            if now:
                time.sleep(0.2)  # two signals at the same instant would count as one
                supervisor.send_signal(signal.SIGINT)
    except psutil.AccessDenied as error:
        raise RunError(
            f"The run {run.id} cannot be stopped", "Another user started it.", "Stop it as that user."
        ) from error


def spawn(run: RunFolder, workspace: Workspace, resume: bool) -> None:
    """Starts a run's supervisor, on its own GPU where the run is one of a pair.

    Raises:
        RunError: Another supervisor has it.
        StageFailedError: The supervisor did not start.
    """
    noted = run.pair()
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": noted["gpu"]} if noted else {})
    # -P: a file in the present folder that is named like a module must not be imported in its place
    argv = [sys.executable, "-P", "-m", "lorapod.runs.supervise", str(run.path), "--workspace", str(workspace.root)]
    before = run.lock.read_text() if run.lock.exists() else ""
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            argv + (["--resume"] if resume else []),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    try:
        while time.monotonic() < deadline:
            if run.lock.exists() and run.lock.read_text() != before:
                return
            if process.poll() is not None:
                break
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        raise
    process.terminate()
    if supervisor_of(run) is not None:
        raise RunError(f"The run {run.id} is already going on", "", f"Watch it with `lorapod runs attach {run.id}`.")
    last = "\n".join(run.log.read_text(errors="replace").strip().split("\n")[-3:])
    journal = Journal(run)
    journal.add(event("error", message="The supervisor did not start", hint=last))
    journal.add(event("end", status="failed", seconds=0))
    journal.close()
    raise StageFailedError("The run's supervisor did not start", last, f"The whole output is in {run.log}.")
