"""`lorapod train`: a recipe in, a LoRA out; the run goes on without the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorapod.errors import RequestError
from lorapod.workspace import Workspace


def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(help="The recipe, a TOML file; with --resume it may be left out.", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(help="With --resume: the run, by id, name or folder. [default: the newest]", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in adapter.rank=32."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and come back at once.")] = False,
) -> None:
    """Train a LoRA from a recipe, or go on with a run.

    Ctrl-C once stops after the present step with a checkpoint, twice at once. Closing the terminal does not end the run.
    """
    from rich.console import Console

    from lorapod import recipe as recipes
    from lorapod.cli.progress import finish, watch
    from lorapod.runs import find_run, newest_run_of, resume_run, start_run, write_comparison

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    if resume and recipe is not None and run is None and not recipe.is_file() and recipe.suffix != ".toml":
        recipe, run = None, str(recipe)  # `lorapod train --resume RUN`
    loaded = recipes.load(recipe, set_ or [], workspace=workspace) if recipe is not None else None
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
    else:
        started = start_run(loaded, workspace)
    console.print(f"Run {started.id} of {started.name}: {started.path}", soft_wrap=True, markup=False)
    if detach:
        console.print(f"Watch it with: lorapod runs attach {started.id}")
        return
    status = watch(started, console)
    finish(started, status, console, write_comparison(started))
