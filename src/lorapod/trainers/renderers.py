"""The trainers that are rendered, and where everything is that a rendering names.

    training_outputs/NAME/data/     a view of the datasets: media linked, captions as trained on
    training_outputs/NAME/output/   what the trainer itself writes
    trainers/NAME/repository/       a trainer's checkout
    trainers/NAME/environment/      its virtual environment

A renderer is a module with `check(recipe, entry)` and `render(recipe, entry, context, own)`. Nothing is started here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from lorapod.errors import BaseModelError, RequestError
from lorapod.files import write_text_whole
from lorapod.models import Entry, entries, find_files, find_training_adapter
from lorapod.models.base_model import unknown
from lorapod.models.catalogue import FileSpec
from lorapod.models.hub import target_of
from lorapod.models.store import Store
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers.installed import assumed, find_installation
from lorapod.trainers.rendering import RenderContext, Rendering, View
from lorapod.workspace import Workspace

_MODULES = {
    TrainerName.DIFFUSION_PIPE: "lorapod.trainers.diffusion_pipe",
    TrainerName.MUSUBI: "lorapod.trainers.musubi",
}
_ADAPTER = "single-files/training_adapter"


class Renderer(Protocol):
    """What a trainer's module gives."""

    def check(self, recipe: Recipe, entry: Entry) -> None:
        """Raises RequestError for what the trainer cannot do."""

    def render(
        self, recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any] | None = None
    ) -> Rendering:
        """Everything for one run; `own` holds the person's own keys for this trainer."""


def get_renderer(trainer: TrainerName) -> Renderer:
    """The module that renders for a trainer.

    Raises:
        RequestError: The trainer reads the recipe itself.
    """
    if trainer not in _MODULES:
        raise RequestError(
            f"There is nothing to render for the trainer {trainer.value}",
            "It reads the recipe itself.",
            f"Give --trainer {' or '.join(name.value for name in _MODULES)}, or start it with `lorapod train`.",
        )
    return cast(Renderer, importlib.import_module(_MODULES[trainer]))


def find_entry(recipe: Recipe, workspace: Workspace) -> Entry:
    """The entry of the catalogue for a recipe's base model.

    Raises:
        BaseModelError: There is none: these trainers have to be told where each file is.
    """
    name, known = recipe.base_model.name, entries(workspace)
    if name in known:
        return known[name]
    if Path(name).is_dir():
        raise BaseModelError(
            f"{recipe.trainer.value} needs a base model of the catalogue",
            "It reads other files than those of a diffusers folder.",
            "Name one of `lorapod models list`, add it with `lorapod models add`, or use the built-in trainer.",
        )
    raise unknown(name, known)


def make_context(
    recipe: Recipe,
    entry: Entry,
    workspace: Workspace,
    folder: Path,
    *,
    run: Path | None = None,
    assume_files: bool = False,
    gpus: int = 1,
    views: Sequence[View] = (),
) -> RenderContext:
    """Where everything is, or, with `assume_files`, where the workspace would have it.

    Args:
        folder: Where the rendered files go.
        run: The run folder; None for no run in particular.

    Raises:
        BaseModelError: A file of the base model was not pulled, or the trainer cannot train it.
        RequestError: The trainer is not installed.
    """
    name = recipe.trainer.value
    place = assumed(name, workspace) if assume_files else find_installation(name, workspace)
    files = (assumed_files if assume_files else present_files)(recipe, entry, workspace)
    run = run or workspace.runs / recipe.name
    data = [run / "data" / str(index) for index in range(len(recipe.datasets))]
    return RenderContext(folder, place.home, place.python, files, data, run / "output", gpus, list(views))


def own_keys(recipe: Recipe) -> dict[str, Any]:
    """The person's own keys for the recipe's trainer."""
    return recipe.trainer_options.get(recipe.trainer, {})


def present_files(recipe: Recipe, entry: Entry, workspace: Workspace) -> dict[str, Path]:
    """The base model's files by `layout/part`, with the training adapter where the recipe merges that of the catalogue.

    Raises:
        BaseModelError: A file was not pulled, or the trainer cannot train this base model.
    """
    trainer = recipe.trainer.value
    entry.files_for(trainer)
    files = {
        need: paths[0] if _is_one_file(entry, need) else Store(workspace).folder(entry.name, need.split("/")[0])
        for need, paths in find_files(entry.name, workspace, trainer).items()
    }
    if recipe.base_model.training_adapter == "catalogue" and (
        adapter := find_training_adapter(recipe.base_model, workspace)
    ):
        files[_ADAPTER] = adapter
    return files


def assumed_files(recipe: Recipe, entry: Entry, workspace: Workspace) -> dict[str, Path]:
    """As `present_files`, as they would be after `lorapod models pull`.

    Raises:
        BaseModelError: The trainer cannot train this base model.
    """
    files = {}
    for spec in entry.files_for(recipe.trainer.value):
        need, folder = f"{spec.layout}/{spec.part}", Store(workspace).folder(entry.name, spec.layout)
        files[need] = folder / _target(spec) if _is_one_file(entry, need) else folder
    return files


def _target(spec: FileSpec) -> str:
    name = spec.path or (spec.local.name if spec.local else (spec.url or "").split("?")[0].rpartition("/")[2])
    return target_of(spec, name or f"{spec.part}.safetensors")


def _is_one_file(entry: Entry, need: str) -> bool:
    specs = entry.matching(need)
    return len(specs) == 1 and not specs[0].include and not (specs[0].local and specs[0].local.is_dir())


def texts(rendering: Rendering) -> dict[str, str]:
    """The files of a rendering, and each stage's command as `NN-<stage>.command.json`: name to text."""
    files = {str(file.path): file.text for file in rendering.files}
    for number, stage in enumerate(rendering.stages, start=1):
        command = {"argv": stage.argv, "env": stage.env, "cwd": str(stage.cwd)}
        name = f"{number:02d}-{stage.name.replace(' ', '-')}.command.json"
        files[name] = json.dumps(command, indent=2, ensure_ascii=False) + "\n"
    return files


def write(rendering: Rendering, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes `texts` of a rendering below `folder`; gives their paths.

    Raises:
        RequestError: One of them is there with another text, and `overwrite` is not given; nothing is written.
        DiskError: The folder cannot be written.
    """
    wanted = {folder / name: text for name, text in texts(rendering).items()}
    other = [path for path, text in wanted.items() if path.exists() and not _holds(path, text)]
    if other and not overwrite:
        raise RequestError(
            f"{other[0]} is there already, and differs", "It was left as it is.", "Give another folder, or --force."
        )
    for path, text in wanted.items():
        write_text_whole(path, text)
    return list(wanted)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
