"""`lorapod sample`: a grid of prompts by strengths of a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorapod.errors import sentences
from lorapod.events import Event
from lorapod.workspace import Workspace


def sample(
    context: typer.Context,
    lora: Annotated[str, typer.Argument(metavar="LORA", help="A LoRA file, or a run (id, name or folder).")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; several times for several rows.")] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="Strengths of the LoRA, a column each. [default: 0, 0.5, 1]")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds, a row each. [default: the recipe's]")] = None,
    first_frame: Annotated[
        list[Path] | None,
        typer.Option(
            help="Pictures that clips begin with, taken in turn, for base models that make a clip out of one."
        ),
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures that are edited, taken in turn by the prompts, for base models that edit."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG to write, a new one. [default: beside the LoRA]")] = None,
) -> None:
    """Draw a grid of prompts by strengths with a trained LoRA."""
    from rich.console import Console

    from lorapod.runs.sampling import sample_grid

    workspace: Workspace = context.obj
    console, progress = Console(highlight=False), Console(highlight=False, stderr=True)
    with progress.status("Loading the base model") as status:

        def show(event: Event) -> None:
            if event["type"] == "progress":
                drawn = f"{event['done']} of {event['total']} {event['unit']} drawn"
                if progress.is_terminal:
                    status.update(drawn)
                else:
                    progress.print(f"  {drawn}")
            elif event["type"] in ("info", "warning"):
                progress.print(sentences(event["message"], event.get("hint", "")), soft_wrap=True, markup=False)

        grid = sample_grid(
            lora,
            workspace,
            prompts=prompt,
            strengths=strength or [0.0, 0.5, 1.0],
            seeds=seed,
            out=out,
            first_frames=first_frame,
            controls=control,
            told=show,
        )
    console.print(f"Grid  {grid}", soft_wrap=True, markup=False)
