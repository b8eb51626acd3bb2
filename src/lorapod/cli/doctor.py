"""`lorapod doctor`: what is off with this machine and workspace, and what to do about it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lorapod.cli.status import Json, as_program, show, show_finding


def doctor(
    context: typer.Context,
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not let torch compute on the GPU, which takes seconds.")
    ] = False,
) -> None:
    """Look for what is off, each with its remedy; exit code 1 where something keeps training from working."""
    from rich.console import Console
    from rich.text import Text

    from lorapod.machine import Severity
    from lorapod.machine.torch_build import ask_torch
    from lorapod.overview import examine, gather

    overview = gather(context.obj)
    ask = overview.torch is not None and bool(overview.gpus.found) and not quick
    answer = ask_torch() if ask else None
    findings = examine(overview, answer)
    faults = [one for one in findings if one.severity is Severity.FAULT]
    if as_json:
        typer.echo(json.dumps(as_program(overview, findings), indent=2))
        raise typer.Exit(1 if faults else 0)
    console = Console(highlight=False)
    show(overview, console)
    for one in findings:
        console.print()
        show_finding(one, console)
    console.print()
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        console.print(
            Text(f"{count}: training will not work, or work may be lost, until this is put right.", style="bold red")
        )
        raise typer.Exit(1)
    checked = " torch computes on the GPU." if answer is not None and answer.works else ""
    console.print(Text(f"No fault found.{checked}", style="bold green"))
