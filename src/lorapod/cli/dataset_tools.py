"""The commands of `lorapod dataset` that make a new folder from a dataset; the originals are never touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lorapod.data.remake import Made

_LISTED = 200


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
        if names != [shown(each.source.name)]:
            typer.echo(f"    → {', '.join(names)}")
    if len(changed) > _LISTED:
        typer.echo(f"  and {len(changed) - _LISTED} more")
    copied = len(made) - len(changed)
    typer.echo(
        f"{len(changed)} made anew, {copied} copied as they are, into {shown(out)}. The originals are untouched."
    )
