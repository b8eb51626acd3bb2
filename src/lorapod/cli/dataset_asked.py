"""What the commands of `lorapod dataset` are asked about: their common options, and the datasets that these name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorapod.cli.media_progress import media_progress
from lorapod.errors import RequestError

if TYPE_CHECKING:
    from lorapod.data import Geometry, MediaCache
    from lorapod.data.checks import Checked, TextLimit
    from lorapod.recipe.schema import DatasetSection
    from lorapod.workspace import Workspace

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
class Asked:
    """Datasets that a command is about, with what their base model wants."""

    sections: list[DatasetSection]
    geometry: Geometry
    seed: int = 0
    text: TextLimit | None = None
    batch_size: int = 1
    accumulation: int = 1
    sightings: int | None = None
    root: Path | None = None


def asked_of(
    context: typer.Context,
    path: Path,
    resolution: list[int] | None,
    frames: list[int] | None,
    model: str | None,
    divisor: int | None,
    recursive: bool,
    trigger: str,
    must_have_captions: bool,
) -> Asked:
    """What a path and options mean. Raises RequestError where options contradict a recipe."""
    from lorapod.captioning.wishes import DIVISOR, FPS, FRAME_STEP, rules_of
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
    geometry, text = (None, None) if model is None else rules_of(model, workspace_of(context))
    geometry = geometry or Geometry(DIVISOR, frame_step=FRAME_STEP, fps=FPS)
    if divisor:
        geometry = Geometry(divisor, frame_step=geometry.frame_step, fps=geometry.fps)
    return Asked([section], geometry, text=text, root=path)


def _of_recipe(context: typer.Context, path: Path) -> Asked:
    from lorapod import recipe as recipes
    from lorapod.captioning.wishes import rules_of

    recipe = recipes.load(path, workspace=workspace_of(context))
    geometry, text = rules_of(recipe.base_model.name, workspace_of(context))
    training = recipe.training
    a_step = training.batch_size * training.accumulation
    return Asked(
        recipe.datasets,
        geometry,
        recipe.training.seed,
        text,
        training.batch_size,
        training.accumulation,
        training.steps * a_step if training.steps else None,
    )


def workspace_of(context: typer.Context) -> Workspace:
    from lorapod.workspace import Workspace, find_workspace

    return context.obj if isinstance(context.obj, Workspace) else find_workspace()


def cache_of(context: typer.Context) -> MediaCache:
    from lorapod.data import MediaCache

    return MediaCache.of(workspace_of(context))


def checked_of(
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

    asked = asked_of(context, path, resolution, frames, model, None, recursive, trigger, False)
    with media_progress("Looking at media") as progress:
        checked = check(asked.sections, asked.geometry, seed=asked.seed, cache=cache_of(context), progress=progress)
    for problem in checked.unusable:
        typer.echo(f"left out: {problem.path}: {problem.what}", err=True)
    return checked
