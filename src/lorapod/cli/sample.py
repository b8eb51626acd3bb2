"""`lorapod sample`: a grid of prompts by strengths of a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    out: Annotated[Path | None, typer.Option(help="The PNG to write. [default: beside the LoRA]")] = None,
) -> None:
    """Draw a grid of prompts by strengths with a trained LoRA."""
    from rich.console import Console

    from lorapod.runs.sampling import sample_grid

    workspace: Workspace = context.obj
    console = Console(highlight=False)
    with console.status("Sampling"):
        grid = sample_grid(
            lora,
            workspace,
            prompts=prompt,
            strengths=strength or [0.0, 0.5, 1.0],
            seeds=seed,
            out=out,
            first_frames=first_frame,
            controls=control,
        )
    console.print(f"Grid  {grid}", soft_wrap=True, markup=False)
