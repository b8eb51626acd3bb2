"""`lorapod train`: a recipe in, a LoRA out; the run goes on without the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorapod.errors import LorapodError, RequestError
from lorapod.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.recipe import Recipe
    from lorapod.runs import RunFolder


def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE", help="The recipe, a TOML file; with --resume it may be left out.", show_default=False
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="With --resume: the run, by id, name or folder. [default: the newest]",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in adapter.rank=32."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and come back at once.")] = False,
    one_gpu: Annotated[
        bool,
        typer.Option(
            "--one-gpu",
            help="Train both experts of Wan 2.2 one after the other, where there are GPUs enough for both at once.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Without a recipe: the base model, with its usual settings.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="With --model: folder of captioned pictures or clips.", show_default=False),
    ] = None,
    trainer: Annotated[str, typer.Option("--trainer", help="With --model: what trains.")] = "builtin",
    name: Annotated[
        str | None,
        typer.Option("--name", help="With --model: name of the LoRA; else the folder's.", show_default=False),
    ] = None,
) -> None:
    """Train a LoRA from a recipe, from a base model and a folder alone, or go on with a run.

    Ctrl-C once stops after the present step with a checkpoint, twice at once. Closing the terminal does not end the run.
    """
    from rich.console import Console

    from lorapod import recipe as recipes
    from lorapod.cli.progress import finish, watch
    from lorapod.machine import visible_gpus
    from lorapod.runs import (
        find_run,
        newest_run_of,
        partner_of,
        resume_run,
        start_pair,
        start_run,
        write_comparison,
    )

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    is_new = False
    if resume and recipe is not None and run is None and not recipe.is_file() and recipe.suffix != ".toml":
        recipe, run = None, str(recipe)  # `lorapod train --resume RUN`
    if model is not None or data is not None:
        if model is None or data is None or recipe is not None or resume:
            raise RequestError(
                "--model and --data belong together, without a recipe",
                "They stand in place of a recipe, which is written for you and kept.",
                "Run `lorapod train --model NAME --data FOLDER`, or `lorapod train RECIPE`.",
            )
        recipe, is_new = _written_recipe(workspace, model, data, trainer, name)
    try:
        loaded = recipes.load(recipe, set_ or [], workspace=workspace) if recipe is not None else None
    except LorapodError:
        if is_new and recipe is not None:
            recipe.unlink()
        raise
    if model is not None:
        console.print(f"Recipe: {recipe}", soft_wrap=True, markup=False)
    if resume and loaded is None and set_:
        loaded = recipes.load(find_run(run, workspace).recipe_file, set_, workspace=workspace)
        wanted = find_run(run, workspace)
        started = resume_run(wanted, workspace, loaded)
    elif resume:
        newest = loaded is not None and run is None
        wanted = newest_run_of(loaded.name, workspace) if newest and loaded else find_run(run, workspace)
        started = resume_run(wanted, workspace, loaded)
    elif loaded is None or run is not None:
        what = "What to train is missing" if loaded is None else f"It is not clear what {run} is for"
        raise RequestError(what, "A run is named only with --resume.", "Run `lorapod train RECIPE` to start one.")
    elif not one_gpu and _at_once(loaded, workspace) and len(gpus := visible_gpus()) > 1:
        pair = start_pair(loaded, workspace, gpus[:2])
        console.print(
            f"Both experts are trained at once: {pair.high.id} on GPU {gpus[0]}, {pair.low.id} on GPU {gpus[1]}."
        )
        started = pair.high
    else:
        started = start_run(loaded, workspace)
    console.print(f"Run {started.id} of {started.name}: {started.path}", soft_wrap=True, markup=False)
    if detach:
        console.print(f"Watch it with: lorapod runs attach {started.id}")
        return
    status = watch(started, console)
    other = partner_of(started, workspace)
    if other is not None:
        _see_to_other(other, status, console)
    finish(started, status, console, write_comparison(started))


def _at_once(recipe: Recipe, workspace: Workspace) -> bool:
    """Whether both experts are trained beside each other; a recipe that splits each step over GPUs wants it otherwise."""
    from lorapod.runs import has_two_experts

    return recipe.training.gpus in ("auto", 1) and has_two_experts(recipe, workspace)


def _see_to_other(other: RunFolder, status: str, console: Console) -> None:
    """The second of a pair: stopped where the first was stopped, else watched to its end; then told of, over or not."""
    from lorapod.cli.progress import watch
    from lorapod.runs import state_of, stop_run

    ended = state_of(other).status
    if ended == "running":
        if status == "stopped":
            stop_run(other)
        ended = watch(other, console)
    files = [other.path / path for _, path in state_of(other).newest_loras.values()]
    told = f"LoRA {files[0]}" if ended == "done" and files else f"go on with it: lorapod train --resume {other.id}"
    console.print(f"The other expert, run {other.id}, is {ended}; {told}", soft_wrap=True, markup=False)


def _written_recipe(workspace: Workspace, model: str, data: Path, trainer: str, name: str | None) -> tuple[Path, bool]:
    """A recipe for a base model and a folder in the workspace, and whether it was written now: one that is there and says
    the same is taken."""
    from lorapod import recipe as recipes
    from lorapod.files import write_text_whole

    folder = data.expanduser().absolute()
    if not folder.is_dir():
        raise RequestError(f"There is no folder {data}", "", "Give the folder of your pictures or clips with --data.")
    text = recipes.new(model, folder, trainer, name, workspace)
    stem = name or folder.name
    number = 1
    while True:
        path = workspace.root / "recipes" / (f"{stem}.toml" if number == 1 else f"{stem}-{number}.toml")
        if not path.exists():
            write_text_whole(path, text)
            return path, True
        if path.read_text(encoding="utf-8", errors="replace") == text:
            return path, False
        number += 1
