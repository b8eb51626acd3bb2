"""`lorapod trainers`: install external trainers, and look whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

app = typer.Typer(
    help="Install and check the external trainers.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="diffusion-pipe or musubi.", show_default=False)]
Repository = Annotated[
    str | None, typer.Option("--source", help="A mirror or a local path in place of its own repository.")
]
Commit = Annotated[str | None, typer.Option(help="Another commit than the one that lorapod was tested with.")]
Python = Annotated[Path | None, typer.Option(help="Interpreter to make its environment with.")]
Cuda = Annotated[str | None, typer.Option(help="Kind of torch, as cu128 or cpu; else chosen by the driver.")]
Torch = Annotated[str | None, typer.Option(help="Requirements of torch, apart by spaces; an empty text installs none.")]


@app.callback()
def _group() -> None:
    """Install and check the external trainers."""


@app.command("list")
def list_command(context: typer.Context) -> None:
    """Show which trainers there are, and which are installed."""
    from lorapod.errors import RequestError
    from lorapod.trainers.install import sources
    from lorapod.trainers.installed import find_installation

    table = Table(box=None, pad_edge=False)
    for column in ("Trainer", "Installed", "Licence"):
        table.add_column(column)
    table.add_row("builtin", "always", "Apache-2.0")
    for source in sources().values():
        try:
            state = f"at {find_installation(source.name, context.obj).commit[:12]}"
        except RequestError:
            state = "no"
        table.add_row(source.name, state, source.licence)
    Console(highlight=False).print(table)


@app.command()
def install(
    context: typer.Context,
    name: Name,
    source: Repository = None,
    commit: Commit = None,
    python: Python = None,
    cuda: Cuda = None,
    torch: Torch = None,
) -> None:
    """Install a trainer into the workspace, in an environment of its own; goes on where it was broken off."""
    from lorapod.trainers import install as installing

    wishes = installing.Wishes(source, commit, python, cuda, None if torch is None else tuple(torch.split()))
    console = Console(highlight=False, soft_wrap=True)
    done = installing.install(name, context.obj, wishes, lambda text: console.print(text, markup=False))
    console.print(f"{name} is ready, at {done.commit[:12]}", markup=False)


@app.command()
def update(context: typer.Context, name: Name, commit: Commit = None, source: Repository = None) -> None:
    """Bring an installed trainer to the commit that this version of lorapod was tested with, or to another."""
    from lorapod.trainers import install as installing
    from lorapod.trainers.installed import find_installation

    before = find_installation(name, context.obj)
    console = Console(highlight=False, soft_wrap=True)
    wishes = installing.Wishes(source, commit)
    done = installing.install(name, context.obj, wishes, lambda text: console.print(text, markup=False))
    console.print(f"{name}: {before.commit[:12]} before, {done.commit[:12]} now", markup=False)


@app.command()
def check(context: typer.Context, name: Name) -> None:
    """Say whether an installed trainer is whole, and what is wrong if it is not."""
    from lorapod.trainers import install as installing

    wrong = installing.check(name, context.obj)
    for line in wrong:
        typer.echo(line)
    if wrong:
        raise typer.Exit(1)
    typer.echo(f"{name} is whole")


@app.command()
def remove(
    context: typer.Context, name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Remove an installed trainer; runs and what it trained are kept."""
    from lorapod.trainers import install as installing

    if not yes and not typer.confirm(f"Remove the trainer {name}?"):
        raise typer.Exit(1)
    typer.echo(f"Removed {name}: {decimal(installing.remove(name, context.obj))} are free again")
