"""Both experts of a base model at the same time, each as a run of its own on a GPU of its own.

The two runs have one recipe name and so lie in one folder; `pair.json` in each says which the other is and which GPU it has,
also when it is resumed. Their LoRA files end in -high and -low, as with one run for both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from lorapod.files import write_text_whole
from lorapod.models import entries
from lorapod.recipe import Recipe
from lorapod.recipe.choices import ExpertChoice
from lorapod.runs.control import check_before, spawn
from lorapod.runs.folder import PAIR, RunFolder, all_runs, create_run
from lorapod.workspace import Workspace

_EXPERTS = (ExpertChoice.HIGH, ExpertChoice.LOW)


@dataclass(frozen=True)
class Pair:
    """Two runs that belong together, the high-noise expert's first."""

    high: RunFolder
    low: RunFolder


def has_two_experts(recipe: Recipe, workspace: Workspace) -> bool:
    """Whether a recipe trains both experts of a base model that has two."""
    entry = entries(workspace).get(recipe.base_model.name)
    parts = {spec.part for spec in entry.files} if entry else set()
    both = {"transformer_high", "transformer_low"} <= parts or {"transformer", "transformer_2"} <= parts
    return both and recipe.base_model.expert is ExpertChoice.BOTH


def start_pair(recipe: Recipe, workspace: Workspace, gpus: list[str]) -> Pair:
    """Makes two runs and starts their supervisors; if the second cannot be started, the first is left going.

    Args:
        gpus: Two numbers as `CUDA_VISIBLE_DEVICES` has them.

    Raises:
        RequestError: The trainer or the base model cannot be used; nothing was started.
        DiskError: The workspace cannot be written.
    """
    check_before(recipe, workspace)
    recipes = []
    for expert in _EXPERTS:
        section = recipe.base_model.model_copy(update={"expert": expert})
        recipes.append(recipe.model_copy(update={"base_model": section}))
    runs = [create_run(each, workspace) for each in recipes]
    for run, other, gpu in zip(runs, reversed(runs), gpus, strict=False):
        write_text_whole(run.path / PAIR, json.dumps({"with": other.id, "gpu": gpu}) + "\n")
    for run in runs:
        spawn(run, workspace, resume=False)
    return Pair(runs[0], runs[1])


def partner_of(run: RunFolder, workspace: Workspace) -> RunFolder | None:
    """The other run of a pair; None for a run alone, or where the other is gone."""
    noted = run.pair()
    return next((each for each in all_runs(workspace) if noted and each.id == noted["with"]), None)
