"""`lorapod train`: a recipe in, a LoRA out; the run goes on without the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorapod.errors import RequestError
from lorapod.workspace import Workspace


def train(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a TOML file.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in adapter.rank=32."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of the recipe, or with the run named by --run.")
    ] = False,
    run: Annotated[str | None, typer.Option("--run", help="With --resume: the run, by id, name or folder.")] = None,
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
    loaded = None
    reference = run
    if recipe is not None and resume and run is None and recipe.suffix != ".toml" and not recipe.is_file():
        reference = str(recipe)  # `lorapod train --resume RUN`
    elif recipe is not None:
        loaded = recipes.load(recipe, set_ or [])
    if not resume:
        if loaded is None:
            raise RequestError(
                "What to train is missing", "Neither a recipe nor --resume was given.", "Run `lorapod train RECIPE`."
            )
        started = start_run(loaded, workspace)
    else:
        wanted = (
            find_run(reference, workspace) if reference or loaded is None else newest_run_of(loaded.name, workspace)
        )
        started = resume_run(wanted, workspace, loaded)
    console.print(f"Run {started.id} of {started.name}: {started.path}", soft_wrap=True)
    if detach:
        console.print(f"Watch it with: lorapod runs attach {started.id}")
        return
    status = watch(started, console)
    finish(started, status, console, write_comparison(started))
