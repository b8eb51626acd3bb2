"""The first stage of a run with an external trainer: `python -m lorapod.trainers.prepare RUN --workspace DIR`.

Looks at the data, makes its view in the run, counts its steps as the trainer will, and writes what the trainer is given.
Prints events, as the engine does. A run that is resumed has to find its data as it left it: the trainer would not notice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.data import Geometry, MediaCache, Severity, plan_datasets
from lorapod.errors import CheckpointError, LorapodError
from lorapod.events import PREFIX, EventType, event, to_line
from lorapod.files import write_text_whole
from lorapod.machine import find_gpus
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.trainers.data_view import DataViews, build_views
from lorapod.trainers.dialect import Dialect, Measured
from lorapod.trainers.external import DATA, RENDERED, STATE, context_of, entry_of, read_state, write_rendering
from lorapod.trainers.installs import find_installation
from lorapod.trainers.registry import get_dialect
from lorapod.trainers.rendering import RenderContext, Rendering
from lorapod.workspace import Workspace

_REPORT_SECONDS = 0.5


def geometry_of(entry: Entry) -> Geometry:
    """What sizes the base model takes."""
    sizes = entry.geometry
    if sizes is None:
        return Geometry(16)
    return Geometry(sizes.divisor, frame_step=sizes.frame_step or 1, fps=sizes.fps)


def look_at_data(
    recipe: Recipe, entry: Entry, folder: Path, workspace: Workspace, *, one_rate: bool, quiet: bool = False
) -> DataViews:
    """Plans the recipe's datasets and makes their views in `folder`.

    Args:
        one_rate: Put clips of different frame rates into different views.
        quiet: Print no events.

    Raises:
        DatasetError: They cannot be trained on as they are.
    """
    cache = MediaCache.of(workspace)
    plan = plan_datasets(
        recipe.datasets,
        geometry_of(entry),
        recipe.training.seed,
        cache=cache,
        progress=None if quiet else _Progress("scanning"),
    )
    for problem in plan.problems:
        if problem.severity is not Severity.INFO and not quiet:
            _say("warning", message=f"{problem.path.name}: {problem.what}", hint=problem.remedy)
    return build_views(plan, list(recipe.datasets), folder, None if quiet else _Progress("linking"), one_rate=one_rate)


def prepare(
    recipe: Recipe, entry: Entry, dialect: Dialect, context: RenderContext, views: DataViews
) -> tuple[Measured, Rendering]:
    """What the data makes of a run, and what the trainer is given."""
    measured = dialect.measure(recipe, entry, replace(context, views=views.views, gpu_gigabytes=gpu_memory()), views)
    return measured, dialect.render(recipe, entry, measured.context)


def gpu_memory() -> float | None:
    """Gigabytes (10^9 bytes) of the smallest GPU; None where there is none or it does not tell."""
    sizes = [gpu.memory_total for gpu in find_gpus().found if gpu.memory_total]
    return min(sizes) / 1e9 if sizes else None


def _run(run_dir: Path, workspace: Workspace, port: int, resume: bool) -> None:
    recipe = recipes.load(run_dir / "recipe.toml", check_paths=False)
    entry, dialect = entry_of(recipe, workspace), get_dialect(recipe.trainer)
    installation = find_installation(recipe.trainer, workspace)
    context = replace(context_of(recipe, entry, run_dir, workspace, installation), port=port)
    if resume:
        context = replace(context, resume=dialect.resume_points(recipe, entry, context.output))
    before = read_state(run_dir)
    views = look_at_data(recipe, entry, run_dir / DATA, workspace, one_rate=dialect.one_rate_a_view)
    measured, rendering = prepare(recipe, entry, dialect, context, views)
    now = {
        "trainer": recipe.trainer.value,
        "commit": installation.commit,
        "data": views.fingerprint,
        "items": sum(view.items for view in views.views if not view.held_out),
        "model_files": {need: str(path) for need, path in sorted(context.model_files.items())},
        "totals": measured.totals,
        "steps_per_epoch": measured.context.steps_per_epoch,
    }
    if resume and before:
        _refuse_changes(before, now)
    for note in rendering.notes:
        _say("info", message=note)
    for message, hint in measured.warnings:
        _say("warning", message=message, hint=hint)
    write_rendering(rendering, run_dir / RENDERED)
    write_text_whole(run_dir / RENDERED / STATE, json.dumps(now, ensure_ascii=False, indent=1) + "\n")


_UNSEEN = {
    "data": ("The data is not what the run was trained on so far", "its checkpoint would go on with other items"),
    "commit": ("The trainer is at another commit than when the run was begun", "it may read its checkpoint otherwise"),
    "model_files": ("The base model's files are in other places", "it may not be the same base model"),
}


def _refuse_changes(before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Refuses to resume where something changed that the trainer itself would not notice.

    Raises:
        CheckpointError: What it is.
    """
    for key, (what, why) in _UNSEEN.items():
        if before.get(key) != now.get(key):
            raise CheckpointError(what, f"The trainer would not notice: {why}.", "Put it back, or start a new run.")


class _Progress:
    """Reports a share of work, not more often than a person can read."""

    def __init__(self, what: str) -> None:
        self.what, self.at = what, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self.at > _REPORT_SECONDS:
            self.at = now
            _say("progress", stage=self.what, done=done, total=total, unit="items")


def _say(type: EventType, /, **fields: object) -> None:
    sys.stdout.write(PREFIX + to_line(event(type, **fields)) + "\n")
    sys.stdout.flush()


def main() -> int:
    """The stage's command line."""
    parser = argparse.ArgumentParser(prog="python -m lorapod.trainers.prepare", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    try:
        _run(arguments.run, Workspace(arguments.workspace), arguments.port, arguments.resume)
    except LorapodError as error:
        _say("error", message=error.what, hint=error.to_hint())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
