"""`lorapod demo`: the whole job on the packaged tiny model, through the same code as a real one."""

from __future__ import annotations

from typing import Annotated

import typer

from lorapod.workspace import Workspace


def demo(
    context: typer.Context,
    steps: Annotated[int | None, typer.Option(help="Train for so many steps instead of the recipe's.")] = None,
) -> None:
    """Train a LoRA on the packaged tiny model, on any CPU, in about two minutes."""
    from rich.console import Console

    from lorapod import recipe as recipes
    from lorapod.cli.progress import finish, watch
    from lorapod.runs import start_run, write_comparison
    from lorapod.start.demo_data import unpack

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    folder = workspace.root / "demo"
    unpack(folder)
    recipe = recipes.load(folder / "recipe.toml", [f"training.steps={steps}"] if steps else [])
    console.print(
        f"The demo teaches a tiny base model a character that it does not know. Its pictures and its recipe are in {folder}",
        markup=False,
        soft_wrap=True,
    )
    run = start_run(recipe, workspace)
    status = watch(run, console)
    comparison = write_comparison(run)
    finish(run, status, console, pictures=comparison)
