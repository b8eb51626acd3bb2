"""`lorapod trainers`: external trainers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorapod.errors import RequestError
from lorapod.recipe import TrainerName
from lorapod.workspace import Workspace

app = typer.Typer(
    help="Install, check and remove external trainers, each in an environment of its own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The trainer, as diffusion-pipe.", show_default=False)]
Source = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="URL", help="Repository or folder in place of the trainer's own.", show_default=False
    ),
]
Commit = Annotated[
    str | None,
    typer.Option("--commit", help="Commit in place of the one that this lorapod was made for.", show_default=False),
]
Python = Annotated[
    Path | None, typer.Option("--python", help="Interpreter to make the environment with.", show_default=False)
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--torch", metavar="KIND", help="Kind of torch, as cu128 or cpu. [default: by the GPU]", show_default=False
    ),
]
Mirror = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Where submodules are found as OWNER/NAME.", show_default=False),
]


def _trainer(name: str) -> TrainerName:
    from lorapod.trainers.pins import installable

    for each in installable():
        if each.value == name:
            return each
    known = ", ".join(each.value for each in installable())
    raise RequestError(f"{name} is no trainer to install", f"lorapod installs {known}.", "Name one of these.")


@app.command("list")
def list_command(context: typer.Context) -> None:
    """List external trainers and what is installed of them."""
    from lorapod.trainers.installs import read_installation
    from lorapod.trainers.pins import installable, pin_of

    for name in installable():
        found, pin = read_installation(name, context.obj), pin_of(name)
        if found is None:
            state = f"not installed (licence: {pin.licence})"
        elif not found.is_complete:
            state = f"broken off after: {', '.join(found.done) or 'nothing'}"
        else:
            at = f"{found.commit[:12]}{'' if found.commit == pin.commit else f', made for {pin.commit[:12]}'}"
            state = f"{'your own, ' if found.own else ''}{found.home} ({at if found.commit else 'no git checkout'})"
        typer.echo(f"{name.value}: {state}")


@app.command("install")
def install_command(
    context: typer.Context,
    name: Name,
    source: Source = None,
    commit: Commit = None,
    python: Python = None,
    mirror: Mirror = None,
    kind: Kind = None,
    own: Annotated[
        Path | None,
        typer.Option("--use", metavar="FOLDER", help="Use a checkout of your own, as it is.", show_default=False),
    ] = None,
) -> None:
    """Install a trainer at its pinned commit, or go on where an installation was broken off."""
    from lorapod.trainers.installs import install, use

    trainer, workspace = _trainer(name), _workspace(context)
    if own is not None:
        found = use(trainer, workspace, own, python)
        typer.echo(f"{name}: {found.home} is used with {found.python}; lorapod changes neither.")
        return
    found = install(
        trainer, workspace, typer.echo, source=source, commit=commit, python=python, mirror=mirror, kind=kind
    )
    typer.echo(f"{name}: installed at {found.commit[:12]} in {found.home}")


@app.command("update")
def update_command(
    context: typer.Context,
    name: Name,
    source: Source = None,
    commit: Commit = None,
    python: Python = None,
    mirror: Mirror = None,
    kind: Kind = None,
) -> None:
    """Bring an installed trainer to the commit that this lorapod was made for; nothing happens where it is there."""
    from lorapod.trainers.installs import install, read_installation
    from lorapod.trainers.pins import pin_of

    trainer, workspace = _trainer(name), _workspace(context)
    found = read_installation(trainer, workspace)
    if found is None or found.own:
        raise RequestError(
            f"{name} is not installed by lorapod",
            f"It is your own checkout, {found.home}." if found else "Nothing of it is there.",
            "Update your checkout yourself." if found else f"`lorapod trainers install {name}`",
        )
    wanted = commit or pin_of(trainer).commit
    if found.is_complete and found.commit == wanted:
        typer.echo(f"{name}: is at {wanted[:12]} already")
        return
    done = install(
        trainer,
        workspace,
        typer.echo,
        source=source or found.source,
        commit=wanted,
        python=python,
        mirror=mirror,
        kind=kind,
    )
    typer.echo(f"{name}: now at {done.commit[:12]}")


@app.command("remove")
def remove_command(context: typer.Context, name: Name) -> None:
    """Remove what lorapod installed of a trainer; runs stay, and a checkout of your own is only forgotten."""
    from lorapod.trainers.installs import remove

    done = remove(_trainer(name), _workspace(context))
    typer.echo(f"{name}: removed" if done else f"{name}: was not installed")


@app.command("check")
def check_command(context: typer.Context, name: Name) -> None:
    """Check that a trainer can be started: its commit, its environment, what it imports."""
    from lorapod.trainers.installs import check

    said = check(_trainer(name), _workspace(context))
    for line in said:
        typer.echo(f"{name}: {line}")
    if said:
        raise typer.Exit(1)
    typer.echo(f"{name}: can be started")


def _workspace(context: typer.Context) -> Workspace:
    workspace: Workspace = context.obj
    return workspace
