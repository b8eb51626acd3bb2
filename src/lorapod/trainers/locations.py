"""Where the files of a base model are, or would be, for an external trainer.

A part of one file is given as its path, a part of several as the folder of its layout, below which they have the places
that they have at their source.
"""

from __future__ import annotations

from pathlib import Path

from lorapod.models import Entry, find_files, find_training_adapter
from lorapod.models.hub import target_of
from lorapod.models.store import Store
from lorapod.recipe import Recipe
from lorapod.workspace import Workspace

ADAPTER = "single-files/training_adapter"


def present_files(recipe: Recipe, entry: Entry, workspace: Workspace) -> dict[str, Path]:
    """The files of the base model by `layout/part`, and its training adapter where the recipe merges one.

    Raises:
        BaseModelError: A file is not there.
    """
    store = Store(workspace)
    found = find_files(entry.name, workspace, recipe.trainer)
    files = {
        need: places[0]
        if len(places) == 1 and _is_one_file(entry, need)
        else store.folder(entry.name, need.split("/")[0])
        for need, places in found.items()
    }
    adapter = find_training_adapter(recipe.base_model, workspace)
    return files if adapter is None else files | {ADAPTER: adapter}


def assumed_files(recipe: Recipe, entry: Entry, workspace: Workspace) -> dict[str, Path]:
    """As `present_files`, as they would be after they were pulled.

    Raises:
        BaseModelError: The trainer cannot train this base model.
    """
    store = Store(workspace)
    files: dict[str, Path] = {}
    for spec in entry.files_for(recipe.trainer):
        folder = store.folder(entry.name, spec.layout)
        need = f"{spec.layout}/{spec.part}"
        source = spec.path or (spec.local.name if spec.local else None)
        files[need] = folder / target_of(spec, source) if source and _is_one_file(entry, need) else folder
    if isinstance(recipe.base_model.training_adapter, Path):
        files[ADAPTER] = recipe.base_model.training_adapter
    return files


def _is_one_file(entry: Entry, need: str) -> bool:
    specs = entry.matching(need)
    return len(specs) == 1 and not specs[0].include
