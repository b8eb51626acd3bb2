"""How the commands of `lorapod dataset` show what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.data import DataPlan, Problem
    from lorapod.data.checks import Checked
    from lorapod.data.remake import Made

_SHOWN_OF_A_KIND = 20

_LISTED = 200


def print_buckets(plan: DataPlan, folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from lorapod.cli.wide import table_console
    from lorapod.data import shown
    from lorapod.data.epochs import summary

    console = table_console()
    table = Table("bucket")
    for column in ("items", "enlarged", "mean crop", "worst crop"):
        table.add_column(column, justify="right")
    table.add_column("worst item", overflow="fold")
    for row in summary(plan):
        worst = row.worst
        table.add_row(
            str(row.bucket),
            str(row.items),
            str(row.upscaled or ""),
            f"{row.mean_lost_share:.1%}",
            f"{worst.placement.lost_share:.1%}",
            Text(shown(_within(worst.item.path, folder))),
        )
    console.print(table)
    if plan.unusable:
        count = len(plan.unusable)
        console.print(f"{count} {'file' if count == 1 else 'files'} cannot be used; see `lorapod dataset check`.")


def print_epoch(batches: dict[str, int], left_over: Sequence[str], batch_size: int) -> None:
    counts = ", ".join(f"{trainer} {count}" for trainer, count in batches.items())
    typer.echo(f"Batches of {batch_size} in an epoch: {counts}")
    for line in left_over:
        typer.echo(f"  {line}")


def print_check(checked: Checked, folder: Path) -> None:
    from rich.console import Console

    console = Console()
    _print_problems(console, checked.problems, folder)
    if checked.sections and any(problem.what.startswith("Its caption has about") for problem in checked.problems):
        typer.echo("Caption lengths are estimated, because the base model's tokenizer is not on this machine.")
    items = len(checked.trained_on)
    console.print(f"{items} {'item' if items == 1 else 'items'} can be trained on.", markup=False)


def print_unread(checked: Checked) -> None:
    """That captions may be too long for a base model that was not named; nothing where every model reads them whole."""
    from lorapod.data.checks.tokens import LEAST_READ, estimate

    longest = max((estimate(item.caption or "") for item in checked.items), default=0)
    if longest > LEAST_READ:
        typer.echo(
            f"The longest caption has about {longest} tokens; whether all of it is read was not checked, because no base "
            "model is named. Name one with --model."
        )


def _print_problems(console: Console, problems: Sequence[Problem], folder: Path) -> None:
    """Problems with one remedy together: what it is and what to do, then the files; where each has something of its
    own, that comes first."""
    from rich.text import Text

    from lorapod.data import shown
    from lorapod.errors import sentences

    style = {"error": "bold red", "warning": "yellow", "info": "dim"}
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.severity.value, problem.remedy or problem.what), []).append(problem)
    for (severity, _), alike in kinds.items():
        same = len({problem.what for problem in alike}) == 1
        count = f"{len(alike)} {'item' if len(alike) == 1 else 'items'}"
        head = sentences(alike[0].what, alike[0].remedy) if same else f"{count}:"
        console.print(Text.assemble((severity, style[severity]), f"  {head}"))
        for problem in alike[:_SHOWN_OF_A_KIND]:
            name = shown(_within(problem.path, folder))
            console.print(Text(f"    {name}" if same else f"    {name}: {problem.what}"))
        if len(alike) > _SHOWN_OF_A_KIND:
            console.print(Text(f"    and {len(alike) - _SHOWN_OF_A_KIND} more"))
        if not same and alike[0].remedy:
            console.print(Text(f"  {alike[0].remedy}"))


def check_as_json(checked: Checked) -> dict[str, Any]:
    return {
        "items": len(checked.trained_on),
        "problems": [
            {
                "severity": problem.severity.value,
                "path": str(problem.path),
                "what": problem.what,
                "remedy": problem.remedy,
            }
            for problem in checked.problems
        ],
    }


def print_made(made: Sequence[Made], out: Path, *, quiet: bool = False) -> None:
    """What became of each file that was not simply copied, and how many were."""
    from lorapod.data import shown

    if quiet:
        return
    root = out.expanduser().absolute()
    changed = [each for each in made if each.what]
    for each in changed[:_LISTED]:
        typer.echo(f"  {shown(each.source.name)}: {'; '.join(each.what)}")
        names = [shown(target.relative_to(root)) for target in each.targets]
        if names and names != [shown(each.source.name)]:
            typer.echo(f"    → {', '.join(names)}")
    if len(changed) > _LISTED:
        typer.echo(f"  and {len(changed) - _LISTED} more")
    left_out = sum(not each.targets for each in made)
    counts = [f"{len(changed) - left_out} changed", f"{len(made) - len(changed)} copied as they are"]
    counts += [f"{left_out} left out"] if left_out else []
    typer.echo(f"{', '.join(counts)}, into {shown(out)}. The originals are untouched.")


def _within(path: Path, folder: Path) -> Path:
    root = folder.expanduser().absolute()
    return path.relative_to(root) if path != root and path.is_relative_to(root) else path
