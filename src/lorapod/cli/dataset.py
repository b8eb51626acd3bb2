"""`lorapod dataset`: look at datasets, alone or all of a recipe, before anything is trained on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorapod.cli.dataset_tools import print_made
from lorapod.cli.media_progress import media_progress
from lorapod.errors import DatasetError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from lorapod.data import DataPlan, Geometry, MediaCache, Problem
    from lorapod.data.checks import Checked, TextLimit
    from lorapod.recipe.schema import DatasetSection
    from lorapod.workspace import Workspace

app = typer.Typer(
    help="Look at datasets before training, and put them right.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_SHOWN_OF_A_KIND = 20

_DIVISOR, _FRAME_STEP, _FPS = 16, 4, 16.0
"""What a folder is looked at with where no base model is named: Wan's, which suit most families."""

Source = Annotated[
    Path, typer.Argument(metavar="PATH", help="A dataset's folder, or a recipe's TOML file.", show_default=False)
]
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
Frames = Annotated[
    list[int] | None,
    typer.Option(
        "--frames", min=1, max=1024, help="Length of clips in frames; may be given several times. Default: 33."
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Base model whose sizes, frame rate and text limit count. A recipe names its own."),
]
Divisor = Annotated[
    int | None, typer.Option("--divisor", min=1, max=256, help="Sides are multiples of this many pixels. Default: 16.")
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")]
Trigger = Annotated[str, typer.Option("--trigger", help="Trigger word that captions should hold.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or an empty one.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@dataclass(frozen=True)
class _Asked:
    """Datasets that a command is about, with what their base model wants."""

    sections: list[DatasetSection]
    geometry: Geometry
    seed: int = 0
    text: TextLimit | None = None
    batch_size: int = 1
    accumulation: int = 1
    sightings: int | None = None
    root: Path | None = None


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
    from lorapod.data.checks import check

    asked = _asked(context, path, resolution, frames, model, divisor, recursive, trigger, not captions_optional)
    with media_progress("Looking at media") as progress:
        checked = check(
            asked.sections,
            asked.geometry,
            seed=asked.seed,
            text=asked.text,
            sightings=asked.sightings,
            cache=_cache(context),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(_check_as_json(checked), indent=2))
    else:
        _print_check(checked, asked.root or path)
    if report is not None:
        _write_sheet(checked, report, quiet=as_json)
    if fix is not None:
        from lorapod.data.fix import fix_datasets

        with media_progress("Putting right") as progress:
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

    asked = _asked(context, path, resolution, frames, model, divisor, recursive, "", False)
    plan = _plan(asked, _cache(context))
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
        _print_buckets(plan, asked.root or path)
        _print_epoch({trainer.value: count for trainer, count in counts.items()}, [str(each) for each in left], size)
    if draw is not None:
        from lorapod.data.bucket_chart import draw_buckets
        from lorapod.files import written_whole

        with written_whole(draw) as temporary:
            draw_buckets(plan).save(temporary, "PNG")
        if not as_json:
            typer.echo(f"Drawn: {draw}")


@app.command("stats")
def stats_command(
    context: typer.Context, path: Source, recursive: Recursive = False, trigger: Trigger = "", as_json: Json = False
) -> None:
    """Count items: sizes, lengths, captions and their words."""
    from lorapod.data import scan
    from lorapod.data.stats import statistics

    asked = _asked(context, path, None, None, None, None, recursive, trigger, False)
    cache = _cache(context)
    rows = []
    for section in asked.sections:
        with media_progress("Looking at media") as progress:
            found = scan(section.path, section.recursive, progress, cache=cache)
        rows.append(statistics(found, section.trigger_word))
    if as_json:
        typer.echo(json.dumps({"datasets": [row.as_json() for row in rows]}, indent=2))
        return
    typer.echo("\n\n".join(str(row) for row in rows))


@app.command("split")
def split_command(
    context: typer.Context,
    path: Source,
    out: Out,
    frames: Frames = None,
    model: Model = None,
    recursive: Recursive = False,
) -> None:
    """Copy a dataset into a new folder, with its clips split where the scene changes."""
    from lorapod.data.fix import split_clips

    checked = _checked(context, path, model=model, frames=frames, recursive=recursive)
    with media_progress("Splitting clips") as progress:
        made = split_clips(checked, out, progress)
    print_made(made, out)


@app.command("resize")
def resize_command(
    context: typer.Context,
    path: Source,
    out: Out,
    longest_side: Annotated[
        int | None,
        typer.Option("--longest-side", min=16, max=16384, help="Pixels; nothing is enlarged. Default: to its bucket."),
    ] = None,
    resolution: Resolutions = None,
    model: Model = None,
    recursive: Recursive = False,
) -> None:
    """Copy a dataset into a new folder, each item at the size that it is trained at, or smaller."""
    from lorapod.data.fix import resize

    checked = _checked(context, path, model=model, resolution=resolution, recursive=recursive)
    with media_progress("Resizing") as progress:
        made = resize(checked, out, longest_side, progress)
    print_made(made, out)


@app.command("export")
def export_command(
    context: typer.Context,
    path: Source,
    out: Out,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TRAINER", help="diffusion-pipe, musubi, kohya or ai-toolkit.", show_default=False
        ),
    ],
    resolution: Resolutions = None,
    frames: Frames = None,
    model: Model = None,
    recursive: Recursive = False,
    trigger: Trigger = "",
) -> None:
    """Copy a dataset into a new folder in the layout of another trainer, with the file that the trainer reads."""
    from lorapod.data.export import Layout, export

    if to not in list(Layout):
        raise RequestError(f"There is no layout {to!r}", "", f"Choose one of {', '.join(Layout)}.")
    checked = _checked(
        context, path, model=model, resolution=resolution, frames=frames, recursive=recursive, trigger=trigger
    )
    with media_progress("Exporting") as progress:
        made, file = export(checked, Layout(to), out, progress)
    print_made(made, out)
    typer.echo(f"For {to}: {file}")


def _checked(
    context: typer.Context,
    path: Path,
    *,
    model: str | None,
    resolution: list[int] | None = None,
    frames: list[int] | None = None,
    recursive: bool = False,
    trigger: str = "",
) -> Checked:
    """The datasets of a command that makes a new folder; what cannot be used is named and left out."""
    from lorapod.data.checks import check

    asked = _asked(context, path, resolution, frames, model, None, recursive, trigger, False)
    with media_progress("Looking at media") as progress:
        checked = check(asked.sections, asked.geometry, seed=asked.seed, cache=_cache(context), progress=progress)
    for problem in checked.unusable:
        typer.echo(f"left out: {problem.path}: {problem.what}", err=True)
    return checked


def _asked(
    context: typer.Context,
    path: Path,
    resolution: list[int] | None,
    frames: list[int] | None,
    model: str | None,
    divisor: int | None,
    recursive: bool,
    trigger: str,
    must_have_captions: bool,
) -> _Asked:
    """What a path and options mean. Raises RequestError where options contradict a recipe."""
    from lorapod.data import Geometry
    from lorapod.recipe.schema import DatasetSection

    if path.suffix.lower() == ".toml":
        given = {"--resolution": resolution, "--frames": frames, "--model": model, "--divisor": divisor}
        given |= {"--recursive": recursive, "--trigger": trigger}
        extra = [name for name, value in given.items() if value]
        if extra:
            raise RequestError(
                f"A recipe says itself what {' and '.join(extra)} would say",
                f"{path} is a recipe.",
                "Leave the options out, or give a dataset's folder.",
            )
        return _of_recipe(context, path)
    section = DatasetSection(
        path=path,
        resolutions=resolution or [1024],
        frames=frames or [33],
        recursive=recursive,
        trigger_word=trigger,
        allow_missing_captions=not must_have_captions,
        validation_share=0,
    )
    geometry, text = (None, None) if model is None else _of_model(model, _workspace(context))
    geometry = geometry or Geometry(_DIVISOR, frame_step=_FRAME_STEP, fps=_FPS)
    if divisor:
        geometry = Geometry(divisor, frame_step=geometry.frame_step, fps=geometry.fps)
    return _Asked([section], geometry, text=text, root=path)


def _of_recipe(context: typer.Context, path: Path) -> _Asked:
    from lorapod import recipe as recipes

    recipe = recipes.load(path, workspace=_workspace(context))
    geometry, text = _of_model(recipe.base_model.name, _workspace(context))
    training = recipe.training
    a_step = training.batch_size * training.accumulation
    return _Asked(
        recipe.datasets,
        geometry,
        recipe.training.seed,
        text,
        training.batch_size,
        training.accumulation,
        training.steps * a_step if training.steps else None,
    )


def _of_model(name: str, workspace: Workspace) -> tuple[Geometry, TextLimit | None]:
    """Sizes and text limit of a base model, from the catalogue; of a folder, those of its family."""
    from lorapod.data import Geometry
    from lorapod.data.checks import limit_of
    from lorapod.errors import BaseModelError
    from lorapod.models import find_base_model
    from lorapod.models.catalogue import entries

    known = entries(workspace)
    folder, family = None, None
    try:
        base = find_base_model(name, workspace)
        folder, family = base.folder, base.family
    except BaseModelError:
        if name not in known:
            raise
    family = known[name].family if name in known else family
    # An entry says what is its own; the rest is as with the others of its family.
    related = [*([known[name]] if name in known else []), *(e for e in known.values() if e.family == family)]
    sizes = next((e.geometry for e in related if e.geometry), None)
    tokens = next((e.text_tokens for e in related if e.text_tokens), None)
    geometry = (
        Geometry(sizes.divisor, frame_step=sizes.frame_step or 1, fps=sizes.fps)
        if sizes
        else Geometry(_DIVISOR, frame_step=_FRAME_STEP, fps=_FPS)
    )
    return geometry, limit_of(Path(name).name, family or "", tokens, folder)


def _workspace(context: typer.Context) -> Workspace:
    from lorapod.workspace import Workspace, find_workspace

    return context.obj if isinstance(context.obj, Workspace) else find_workspace()


def _cache(context: typer.Context) -> MediaCache:
    from lorapod.data import MediaCache

    return MediaCache.of(_workspace(context))


def _plan(asked: _Asked, cache: MediaCache) -> DataPlan:
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


def _print_buckets(plan: DataPlan, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lorapod.data import shown
    from lorapod.data.epochs import summary

    console = Console()
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


def _print_epoch(batches: dict[str, int], left_over: Sequence[str], batch_size: int) -> None:
    counts = ", ".join(f"{trainer} {count}" for trainer, count in batches.items())
    typer.echo(f"Batches of {batch_size} in an epoch: {counts}")
    for line in left_over:
        typer.echo(f"  {line}")


def _print_check(checked: Checked, folder: Path) -> None:
    from rich.console import Console

    console = Console()
    _print_problems(console, checked.problems, folder)
    if checked.sections and any(problem.what.startswith("Its caption has about") for problem in checked.problems):
        typer.echo("Caption lengths are estimated, because the base model's tokenizer is not on this machine.")
    items = len(checked.trained_on)
    console.print(f"{items} {'item' if items == 1 else 'items'} can be trained on.", markup=False)


def _print_problems(console: Console, problems: Sequence[Problem], folder: Path) -> None:
    """Problems with one remedy together: what it is and what to do, then the files, each with what is its own."""
    from rich.text import Text

    from lorapod.data import shown

    style = {"error": "bold red", "warning": "yellow", "info": "dim"}
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.severity.value, problem.remedy or problem.what), []).append(problem)
    for (severity, _), alike in kinds.items():
        whats = {problem.what for problem in alike}
        remedy = alike[0].remedy
        head = f"{alike[0].what}. {remedy}" if len(whats) == 1 else remedy or f"{len(alike)} items"
        console.print(Text.assemble((severity, style[severity]), f"  {head}".rstrip()))
        for problem in alike[:_SHOWN_OF_A_KIND]:
            name = shown(_within(problem.path, folder))
            console.print(Text(f"    {name}" if len(whats) == 1 else f"    {name}: {problem.what}"))
        if len(alike) > _SHOWN_OF_A_KIND:
            console.print(Text(f"    and {len(alike) - _SHOWN_OF_A_KIND} more"))


def _check_as_json(checked: Checked) -> dict[str, Any]:
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


def _write_sheet(checked: Checked, report: Path, *, quiet: bool) -> None:
    from lorapod.data.sheet import write_sheet

    with media_progress("Drawing thumbnails") as progress:
        write_sheet(checked, report, progress)
    if not quiet:
        typer.echo(f"Report: {report}")


def _within(path: Path, folder: Path) -> Path:
    root = folder.expanduser().absolute()
    return path.relative_to(root) if path != root and path.is_relative_to(root) else path
