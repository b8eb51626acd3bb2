"""`lorapod pod`: what a container on a rented machine runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Boot a rented machine's container.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Boot a rented machine's container."""


@app.command()
def boot(
    context: typer.Context,
    jupyter_port: Annotated[int, typer.Option(help="Port of JupyterLab.", min=1, max=65535)] = 8888,
    ssh_port: Annotated[int, typer.Option(help="Port of SSH.", min=1, max=65535)] = 22,
) -> None:
    """Make the workspace ready, judge the GPU, start JupyterLab and SSH, and stay until SIGTERM."""
    from lorapod.pods.boot import boot as boot_pod
    from lorapod.pods.services import Ports

    raise typer.Exit(boot_pod(context.obj, print_line, Ports(jupyter_port, ssh_port)))


def print_line(text: str) -> None:
    """To the container's log, at once: nobody may be there to fill a buffer."""
    typer.echo(text)
    sys.stdout.flush()
