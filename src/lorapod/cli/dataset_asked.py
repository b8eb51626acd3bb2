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
    geometry = geometry or Geometry(_DIVISOR, frame_step=_FRAME_STEP, fps=_FPS)
    if divisor:
        geometry = Geometry(divisor, frame_step=geometry.frame_step, fps=geometry.fps)
    return Asked([section], geometry, text=text, root=path)


def _of_recipe(context: typer.Context, path: Path) -> Asked:
    from lorapod import recipe as recipes

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


def rules_of(name: str, workspace: Workspace) -> tuple[Geometry, TextLimit | None]:
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
    tokens, around = next(((e.text_tokens, e.text_tokens_around) for e in related if e.text_tokens), (None, 0))
    geometry = (
        Geometry(sizes.divisor, frame_step=sizes.frame_step or 1, fps=sizes.fps)
        if sizes
        else Geometry(_DIVISOR, frame_step=_FRAME_STEP, fps=_FPS)
    )
    return geometry, limit_of(Path(name).name, tokens, around, folder)


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
