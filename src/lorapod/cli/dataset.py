"""`lorapod dataset`: look at datasets, alone or all of a recipe, before anything is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorapod.cli import dataset_tools
from lorapod.cli.dataset_asked import (
    Asked,
    Divisor,
    Frames,
    Json,
    Model,
    Recursive,
    Resolutions,
    Source,
    Trigger,
    asked_of,
    cache_of,
)
from lorapod.cli.dataset_shown import check_as_json, print_buckets, print_check, print_epoch, print_made, print_unread
from lorapod.cli.media_progress import making_progress, media_progress
from lorapod.errors import DatasetError, RequestError
from lorapod.files import refuse_to_overwrite, write_drawing

if TYPE_CHECKING:
    from lorapod.data import DataPlan, MediaCache
    from lorapod.data.checks import Checked

app = typer.Typer(
    help="Look at datasets before training, and put them right.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("check")
def check_command(
    context: typer.Context,
    path: Source,
    resolution: Resolutions = None,
    frames: Frames = None,
    model: Model = None,
    divisor: Divisor = None,
    recursive: Recursive = False,
    trigger: Trigger = "",
    captions_optional: Annotated[
        bool, typer.Option("--captions-optional", help="Items without a caption file are fine.")
    ] = False,
    goal: Annotated[
        str | None,
        typer.Option("--goal", help="What it is for: character, style, concept or motion; how many items are few."),
    ] = None,
    as_json: Json = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a page with thumbnails of all items and what was found."),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", metavar="OUT", help="Copy the dataset to a new folder, with what can be put right safely."
        ),
    ] = None,
) -> None:
    """List what is wrong or doubtful, worst first. Exit code 1 if an item cannot be used."""
    from lorapod.data.checks import Goal, check

    if goal is not None and goal not in list(Goal):
        raise RequestError(f"There is no goal {goal!r}", "", f"Choose one of {', '.join(Goal)}.")
    if fix is not None:
        from lorapod.data.making import refuse_taken

        refuse_taken(fix)
    if report is not None:
        refuse_to_overwrite(report, "--report", ".html", but_own=True)
    asked = asked_of(context, path, resolution, frames, model, divisor, recursive, trigger, not captions_optional)
    with media_progress("Looking at media") as progress:
        checked = check(
            asked.sections,
            asked.geometry,
            seed=asked.seed,
            text=asked.text,
            sightings=asked.sightings,
            goal=Goal(goal) if goal else None,
            cache=cache_of(context),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(check_as_json(checked), indent=2))
    else:
        print_check(checked, asked.root or path)
        if asked.text is None:
            print_unread(checked)
    if report is not None:
        _write_sheet(checked, report, quiet=as_json)
    if fix is not None:
        from lorapod.data.fix import fix_datasets

        with making_progress("Putting right") as progress:
            made = fix_datasets(checked, fix, progress=progress)
        print_made(made, fix, quiet=as_json)
    if checked.unusable:
        raise typer.Exit(1)


@app.command("buckets")
def buckets_command(
    context: typer.Context,
    path: Source,
    resolution: Resolutions = None,
    frames: Frames = None,
    model: Model = None,
    divisor: Divisor = None,
    recursive: Recursive = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Items a forward pass. Default: the recipe's, or 1.")
    ] = None,
    draw: Annotated[Path | None, typer.Option("--draw", metavar="FILE", help="Draw the buckets as a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Show which buckets the items go into, what cropping costs them, and what does not fill a batch."""
    from lorapod.data.epochs import batches_per_epoch, leftovers, summary

    if draw is not None:
        refuse_to_overwrite(draw, "--draw", ".png", but_own=True)
    asked = asked_of(context, path, resolution, frames, model, divisor, recursive, "", False)
    plan = _plan(asked, cache_of(context))
    size = batch_size or asked.batch_size
    counts = batches_per_epoch(plan, size, accumulation=asked.accumulation)
    left = leftovers(plan, size, accumulation=asked.accumulation)
    if as_json:
        rows = [
            {
                "bucket": str(row.bucket),
                "items": row.items,
                "lost": round(row.mean_lost_share, 4),
                "enlarged": row.upscaled,
            }
            for row in summary(plan)
        ]
        batches = {trainer.value: count for trainer, count in counts.items()}
        typer.echo(
            json.dumps({"buckets": rows, "batches": batches, "left_over": [str(each) for each in left]}, indent=2)
        )
    else:
        print_buckets(plan, asked.root or path)
        print_epoch({trainer.value: count for trainer, count in counts.items()}, [str(each) for each in left], size)
    if draw is not None:
        from lorapod.data.bucket_chart import draw_buckets

        write_drawing(draw, draw_buckets(plan))
        if not as_json:
            typer.echo(f"Drawn: {draw}")


@app.command("stats")
def stats_command(
    context: typer.Context, path: Source, recursive: Recursive = False, trigger: Trigger = "", as_json: Json = False
) -> None:
    """Count items: sizes, lengths, captions and their words."""
    from lorapod.data import scan
    from lorapod.data.stats import statistics

    asked = asked_of(context, path, None, None, None, None, recursive, trigger, False)
    cache = cache_of(context)
    rows = []
    for section in asked.sections:
        with media_progress("Looking at media") as progress:
            found = scan(section.path, section.recursive, progress, cache=cache)
        rows.append(statistics(found, section.trigger_word))
    if as_json:
        typer.echo(json.dumps({"datasets": [row.as_json() for row in rows]}, indent=2))
        return
    typer.echo("\n\n".join(str(row) for row in rows))


def _plan(asked: Asked, cache: MediaCache) -> DataPlan:
    """The plan of all datasets together, without what cannot be used."""
    from lorapod.data import DataPlan, plan_dataset

    plans = []
    for i, section in enumerate(asked.sections):
        with media_progress("Looking at media") as progress:
            plans.append(plan_dataset(section, asked.geometry, asked.seed, dataset=i, cache=cache, progress=progress))
    plan = DataPlan(
        [each for plan in plans for each in plan.train],
        [each for plan in plans for each in plan.validation],
        [problem for plan in plans for problem in plan.problems],
        [each for plan in plans for each in plan.unused],
    )
    if not plan.train:
        worst = plan.unusable[0] if plan.unusable else None
        raise DatasetError(
            "Nothing can be put into buckets", worst.what if worst else "", "See `lorapod dataset check`."
        )
    return plan


def _write_sheet(checked: Checked, report: Path, *, quiet: bool) -> None:
    from lorapod.data.sheet import write_sheet

    with media_progress("Drawing thumbnails") as progress:
        write_sheet(checked, report, progress)
    if not quiet:
        typer.echo(f"Report: {report}")


dataset_tools.register(app)
