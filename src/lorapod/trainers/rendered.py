"""A recipe rendered for an external trainer into a folder, without a run: to look at, to keep, or to run by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorapod.data.making import refuse_taken
from lorapod.recipe import Recipe
from lorapod.trainers.external import DATA, OUTPUT, context_of, entry_of, write_rendering
from lorapod.trainers.installs import find_installation, folder_of, read_installation
from lorapod.trainers.locations import assumed_files
from lorapod.trainers.registry import get_dialect
from lorapod.trainers.rendering import RenderContext
from lorapod.workspace import Workspace


def render_to(recipe: Recipe, out: Path, workspace: Workspace, *, assume_files: bool) -> tuple[list[Path], list[str]]:
    """Writes a rendering into a new folder; gives the paths of what was written, and what a person should read.

    Args:
        assume_files: Take the places where the base model and the trainer would be, and look at no data: what hangs on the
            data, such as the number of epochs, is then a guess that the notes name.

    Raises:
        RequestError: The trainer cannot do what the recipe asks for, or something is missing.
        DatasetError: The data cannot be trained on as it is, or the folder is not empty.
        DiskError: Something cannot be written.
    """
    dialect, entry = get_dialect(recipe.trainer), entry_of(recipe, workspace)
    dialect.check(recipe, entry)
    folder = out.expanduser().absolute()
    if assume_files:
        context = _assumed(recipe, folder, workspace)
        rendering = dialect.render(recipe, entry, context)
        refuse_taken(out)
        return write_rendering(rendering, folder), rendering.notes
    from lorapod.trainers.prepare import look_at_data, prepare

    installation = find_installation(recipe.trainer, workspace)
    context = context_of(recipe, entry, folder, workspace, installation)
    context = replace(context, folder=folder)
    refuse_taken(out)
    views = look_at_data(recipe, entry, folder / DATA, workspace, one_rate=dialect.one_rate_a_view, quiet=True)
    measured, rendering = prepare(recipe, entry, dialect, context, views)
    notes = [*rendering.notes, *(f"{message}. {hint}" for message, hint in measured.warnings)]
    return write_rendering(rendering, folder), notes


def _assumed(recipe: Recipe, folder: Path, workspace: Workspace) -> RenderContext:
    installed = read_installation(recipe.trainer, workspace)
    home = Path(installed.home) if installed else folder_of(recipe.trainer, workspace) / "checkout"
    python = Path(installed.python) if installed else folder_of(recipe.trainer, workspace) / "venv/bin/python"
    return RenderContext(
        folder=folder,
        home=home,
        python=python,
        model_files=assumed_files(recipe, entry_of(recipe, workspace), workspace),
        data=[folder / DATA / str(index) for index in range(len(recipe.datasets))],
        output=folder / OUTPUT,
    )
