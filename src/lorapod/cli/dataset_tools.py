"""The commands of `lorapod dataset` that make a new folder from a dataset; the originals are never touched."""

from __future__ import annotations

from typing import Annotated

import typer

from lorapod.cli.dataset_asked import Frames, Model, Out, Recursive, Resolutions, Source, Trigger, checked_of
from lorapod.cli.dataset_shown import print_made
from lorapod.cli.media_progress import making_progress
from lorapod.errors import RequestError


def register(app: typer.Typer) -> None:
    """Adds the commands to `lorapod dataset`."""
    app.command("split")(split_command)
    app.command("resize")(resize_command)
    app.command("export")(export_command)


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
    from lorapod.data.making import refuse_taken

    refuse_taken(out)
    checked = checked_of(context, path, model=model, frames=frames, recursive=recursive)
    with making_progress("Splitting clips") as progress:
        made = split_clips(checked, out, progress)
    print_made(made, out)


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
    from lorapod.data.making import refuse_taken

    refuse_taken(out)
    checked = checked_of(context, path, model=model, resolution=resolution, recursive=recursive)
    with making_progress("Resizing") as progress:
        made = resize(checked, out, longest_side, progress)
    print_made(made, out)


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
    caption_extension: Annotated[
        str, typer.Option("--caption-extension", metavar="EXT", help=".txt or .caption; the trainer's file names it.")
    ] = ".txt",
) -> None:
    """Copy a dataset into a new folder in the layout of another trainer, with the file that the trainer reads."""
    from lorapod.data.export import CAPTION_EXTENSIONS, Layout, export
    from lorapod.data.making import refuse_taken

    if to not in list(Layout):
        raise RequestError(f"There is no layout {to!r}", "", f"Choose one of {', '.join(Layout)}.")
    if caption_extension not in CAPTION_EXTENSIONS:
        remedy = f"Choose one of {', '.join(CAPTION_EXTENSIONS)}."
        raise RequestError(f"No trainer reads captions from {caption_extension!r}", "", remedy)
    refuse_taken(out)
    checked = checked_of(
        context, path, model=model, resolution=resolution, frames=frames, recursive=recursive, trigger=trigger
    )
    with making_progress("Exporting") as progress:
        made, file = export(checked, Layout(to), out, progress, caption_extension=caption_extension)
    print_made(made, out)
    typer.echo(f"For {to}: {file}")
