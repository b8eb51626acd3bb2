"""The built-in trainer: the engine, as one process, since importing torch and diffusers anew for each phase costs seconds
of a paid pod. Its phases free their models' memory themselves."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from lorapod.errors import MissingPackageError, RequestError
from lorapod.models import find_base_model, find_training_adapter
from lorapod.recipe import Recipe
from lorapod.recipe.choices import AdapterKind, OptimizerKind
from lorapod.trainers.base import Stage, StageWatch
from lorapod.workspace import Workspace

_PACKAGES = {
    OptimizerKind.ADAMW_8BIT: "bitsandbytes",
    OptimizerKind.PRODIGY: "prodigyopt",
    OptimizerKind.SCHEDULE_FREE: "schedulefree",
}


class BuiltinTrainer:
    """Starts `python -m lorapod.engine`, which prints events itself."""

    name = "builtin"

    def check(self, recipe: Recipe) -> None:
        optimizer = recipe.optimizer
        adapter = recipe.adapter
        if adapter.dropout and adapter.kind in (AdapterKind.LOKR, AdapterKind.LOHA, AdapterKind.OFT):
            raise RequestError(
                f"Adapters of kind {adapter.kind.value} are trained without dropout here",
                f"`adapter.dropout` is {adapter.dropout:g}.",
                "Leave it out.",
            )
        package = _PACKAGES.get(optimizer.kind)
        if package and find_spec(package) is None:
            raise MissingPackageError(
                f"The optimizer {optimizer.kind.value} needs the package {package}",
                "It is not installed.",
                f"Install it with `pip install {package}`, or set `optimizer.kind` to `adamw`.",
            )
        if adapter.text_encoders and optimizer.kind in (OptimizerKind.PRODIGY, OptimizerKind.SCHEDULE_FREE):
            raise RequestError(
                f"Text encoders are not trained with {optimizer.kind.value}",
                "They have a learning rate of their own, and this optimizer finds its rate or schedule for all alike.",
                "Set `optimizer.kind` to `adamw`, or leave `adapter.text_encoders` out.",
            )
        if optimizer.kind is OptimizerKind.PRODIGY and optimizer.learning_rate < 0.1:
            raise RequestError(
                f"Prodigy hardly trains at a learning rate of {optimizer.learning_rate:g}",
                "It finds the rate itself and multiplies it by this one.",
                "Set `optimizer.learning_rate = 1.0`.",
            )

    def ready(self, recipe: Recipe, workspace: Workspace) -> None:
        find_base_model(recipe.base_model.name, workspace)
        find_training_adapter(recipe.base_model, workspace)

    def plan(self, recipe: Recipe, run_dir: Path, workspace: Workspace, resume: bool) -> list[Stage]:
        return [self._stage("train", ["train", str(run_dir), *(["--resume"] if resume else [])], workspace)]

    def sample_stage(self, request: Path, workspace: Workspace) -> Stage:
        """The stage that draws the grid which the JSON file `request` asks for."""
        return self._stage("sample", ["sample", str(request)], workspace)

    def watch(self, stage: Stage) -> StageWatch:
        return StageWatch()

    def _stage(self, name: str, arguments: list[str], workspace: Workspace) -> Stage:
        argv = [sys.executable, "-P", "-m", "lorapod.engine", *arguments, "--workspace", str(workspace.root)]
        return Stage(name, argv, dict(os.environ) | {"PYTHONUNBUFFERED": "1"}, workspace.root)
