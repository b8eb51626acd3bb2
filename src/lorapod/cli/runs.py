"""`lorapod runs`: what is and was going on."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorapod.workspace import Workspace

app = typer.Typer(help="List, watch and stop runs.", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
Reference = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run by id, name or folder. [default: the newest]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_WIDE = 80
"""Columns from which everything is shown; narrower ones leave base models and losses out."""


@app.command("list")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List all runs, newest first."""
    from rich.markup import escape
    from rich.table import Table

    from lorapod.cli.wide import table_console
    from lorapod.runs import list_runs

    workspace: Workspace = context.obj
    rows = list_runs(workspace)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    if not rows:
        typer.echo(f"There are no runs in {workspace.runs} yet. Start one with `lorapod train RECIPE`.")
        return
    console, table = table_console(), Table(box=None, header_style="bold")
    titles = ("run", "recipe", "base model", "status", "step", "loss", "started")
    shown = [title for title in titles if console.width >= _WIDE or title not in ("base model", "loss")]
    for title in shown:
        justify: Literal["left", "right"] = "right" if title in ("step", "loss") else "left"
        table.add_column(title, justify=justify, no_wrap=title not in ("recipe", "base model"), overflow="fold")
    for row in rows:
        cells = {
            "run": row.id,
            "recipe": escape(row.name),
            "base model": escape(Path(row.base_model).name),  # of a folder the name alone
            "status": row.status,
            "step": f"{row.step}/{row.total}" if row.total else "",
            "loss": f"{row.loss:.4f}" if row.loss is not None else "",
            "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started)) if row.started else "",
        }
        table.add_row(*(cells[title] for title in shown))
    console.print(table)


@app.command()
def show(context: typer.Context, run: Reference = None, as_json: Json = False) -> None:
    """Show where a run stands and what it made."""
    from rich.console import Console

    from lorapod.cli.progress import duration
    from lorapod.runs import find_run, state_of, step_text

    found = find_run(run, context.obj)
    state = state_of(found)
    facts = {
        "run": found.id,
        "recipe": found.name,
        "folder": str(found.path),
        "status": state.status,
        "phase": state.phase,
        "step": state.step,
        "total": state.total,
        "loss": state.loss,
        "smooth_loss": state.smooth_loss,
        "seconds_per_step": state.seconds_per_step,
        "seconds_left": state.seconds_left if state.status == "running" else None,
        "evals": state.evals,
        "loras": [str(found.path / path) for path in state.loras],
        "checkpoints": state.checkpoints,
        "error": state.error,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = Console(highlight=False)
    console.print(
        f"{found.name} {found.id}: {state.status}, {step_text(state.step, state.total)}", markup=False, style="bold"
    )
    console.print(str(found.path), markup=False, soft_wrap=True)
    if state.status == "running":
        console.print(f"{duration(state.seconds_left)} left")
    for name, curve in state.evals.items():
        console.print(
            f"held-out loss of {name}: " + ", ".join(f"{loss:.4f} ({step})" for step, loss in curve[-6:]), markup=False
        )
    for path in state.loras:
        console.print(f"LoRA {found.path / path}", markup=False, soft_wrap=True)
    if state.error:
        console.print(f"error: {state.error['message']}\n{state.error.get('hint', '')}", markup=False, soft_wrap=True)


@app.command()
def logs(
    context: typer.Context,
    run: Reference = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until the run ends.")] = False,
) -> None:
    """Print everything that the stages of a run printed."""
    from lorapod.runs import find_run, supervisor_of

    found = find_run(run, context.obj)
    if not found.log.exists():
        return
    with found.log.open(encoding="utf-8", errors="replace") as file:
        while True:
            over = supervisor_of(found) is None
            typer.echo(file.read(), nl=False)
            if over or not follow:
                return
            time.sleep(0.5)


@app.command()
def stop(
    context: typer.Context,
    run: Reference = None,
    now: Annotated[bool, typer.Option("--now", help="At once, without a checkpoint.")] = False,
) -> None:
    """Stop a run after the present step, with a checkpoint."""
    from lorapod.runs import find_run, stop_run

    found = find_run(run, context.obj)
    stop_run(found, now)
    typer.echo(f"Asked {found.id} to stop. Go on later with: lorapod train --resume {found.id}")


@app.command()
def attach(context: typer.Context, run: Reference = None) -> None:
    """Watch a run; Ctrl-C stops it cleanly, closing the terminal leaves it going."""
    from rich.console import Console

    from lorapod.cli.progress import finish, watch
    from lorapod.runs import find_run, write_comparison

    console = Console(highlight=False)
    found = find_run(run, context.obj)
    status = watch(found, console)
    finish(found, status, console, write_comparison(found))
