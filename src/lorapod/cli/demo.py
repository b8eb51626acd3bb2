"""`lorapod demo`: the whole job on the packaged tiny model, through the same code as a real one."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from lorapod.files import disk_error
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

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    folder = workspace.root / "demo"
    unpack(folder)
    recipe = recipes.load(folder / "recipe.toml", [f"training.steps={steps}"] if steps else [])
    console.print(
        f"The demo teaches a tiny base model a character that it does not know. Everything is in {folder}",
        markup=False,
        soft_wrap=True,
    )
    run = start_run(recipe, workspace)
    status = watch(run, console)
    comparison = write_comparison(run)
    finish(run, status, console, pictures=comparison)


def unpack(folder: Path) -> None:
    """Copies the packaged dataset and recipe to `folder`; files that are there already are left as they are.

    Raises:
        DiskError: The folder cannot be written.
    """
    source = Path(str(resources.files("lorapod") / "demo"))
    try:
        for name in ("recipe.toml", "dataset"):
            for file in [source / name, *(source / name).rglob("*")]:
                target = folder / file.relative_to(source)
                if file.is_file() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
    except OSError as error:
        raise disk_error(error, folder) from error
