"""`lorapod dataset`: look at a dataset before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.data import DatasetPlan, Problem
    from lorapod.data.scan import Progress

app = typer.Typer(
    help="Look at datasets before training.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

_SHOWN_OF_A_KIND = 20

Folder = Annotated[Path, typer.Argument(metavar="PATH", help="The dataset's folder.", show_default=False)]
Resolutions = Annotated[
    list[int] | None,
    typer.Option(
        "--resolution",
        min=64,
        max=4096,
        help="Side in pixels of the square whose area the buckets keep; may be given several times. Default: 1024.",
        show_default=False,
    ),
]
Divisor = Annotated[
    int, typer.Option("--divisor", min=1, max=256, help="Sides are multiples of this many pixels; the base model's.")
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")]


@app.command("buckets")
def buckets_command(
    path: Folder, resolution: Resolutions = None, divisor: Divisor = 16, recursive: Recursive = False
) -> None:
    """Show which buckets the pictures go into and what cropping costs them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lorapod.data import shown, summary

    console = Console()
    plan = _plan(path, resolution, divisor, recursive, console)
    table = Table("bucket")
    for column in ("items", "enlarged", "mean crop", "worst crop"):
        table.add_column(column, justify="right")
    table.add_column("worst item", overflow="fold")
    for row in summary(plan):
        worst = row.worst
        table.add_row(
            str(row.bucket),
            str(row.items),
            str(row.upscaled),
            f"{row.mean_lost_share:.1%}",
            f"{worst.placement.lost_share:.1%}",
            Text(shown(_within(worst.item.path, path))),
        )
    console.print(table)
    if plan.unusable:
        console.print(
            f"{_files(len(plan.unusable))} cannot be used and are not in this table: `lorapod dataset check` says why.",
            markup=False,
        )


@app.command("check")
def check_command(
    path: Folder,
    resolution: Resolutions = None,
    divisor: Divisor = 16,
    recursive: Recursive = False,
    captions_optional: Annotated[
        bool, typer.Option("--captions-optional", help="As with `allow_missing_captions` in a recipe.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List what is wrong with a dataset, worst first. Exit code 1 if an item cannot be used."""
    from rich.console import Console

    console = Console()
    plan = _plan(path, resolution, divisor, recursive, console, must_have_captions=not captions_optional)
    problems = sorted(plan.problems, key=lambda problem: problem.rank)
    items = len({each.item.path for each in plan.train})
    if as_json:
        typer.echo(json.dumps({"items": items, "problems": [_as_json(p) for p in problems]}, indent=2))
    else:
        _print_problems(console, problems, path)
        console.print(f"{items} {'item' if items == 1 else 'items'} can be trained on.", markup=False)
    if plan.unusable:
        raise typer.Exit(1)


def _plan(
    path: Path,
    resolution: list[int] | None,
    divisor: int,
    recursive: bool,
    console: Console,
    must_have_captions: bool = False,
) -> DatasetPlan:
    from lorapod.data import Geometry, plan_dataset
    from lorapod.recipe.schema import DatasetSection

    section = DatasetSection(
        path=path,
        resolutions=resolution or [1024],
        recursive=recursive,
        allow_missing_captions=not must_have_captions,
        validation_share=0,
    )
    with _progress(console) as progress:
        return plan_dataset(section, Geometry(divisor), progress=progress)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, on standard error so that what a program reads stays clean; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Looking at pictures", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _print_problems(console: Console, problems: list[Problem], folder: Path) -> None:
    """Problems of one kind together: the kind, its files, what to do."""
    from rich.text import Text

    from lorapod.data import shown

    style = {"error": "bold red", "warning": "yellow", "info": "dim"}
    kinds: dict[tuple[str, str, str], list[Path]] = {}
    for problem in problems:
        kinds.setdefault((problem.severity.value, problem.what, problem.remedy), []).append(problem.path)
    for (severity, what, remedy), paths in kinds.items():
        console.print(Text.assemble((severity, style[severity]), f"  {what}. {remedy}".rstrip()))
        for each in paths[:_SHOWN_OF_A_KIND]:
            console.print(Text(f"    {shown(_within(each, folder))}"))
        if len(paths) > _SHOWN_OF_A_KIND:
            console.print(Text(f"    and {len(paths) - _SHOWN_OF_A_KIND} more"))


def _as_json(problem: Problem) -> dict[str, str]:
    return {
        "severity": problem.severity.value,
        "path": str(problem.path),
        "what": problem.what,
        "remedy": problem.remedy,
    }


def _within(path: Path, folder: Path) -> Path:
    root = folder.expanduser().absolute()
    return path.relative_to(root) if path != root and path.is_relative_to(root) else path


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
