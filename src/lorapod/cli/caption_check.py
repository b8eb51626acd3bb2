"""`lorapod caption check`: what is suspicious about captions, and what they say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lorapod.captioning.check import Looked
    from lorapod.captioning.wording import Wish
    from lorapod.data import MediaCache
    from lorapod.data.scan import Scan

_SHOWN_WORDS = 24
_SHOWN_FINDINGS = 40


def look_at(folder: Path, wish: Wish, cache: MediaCache, *, recursive: bool, per_line: bool) -> tuple[Scan, Looked]:
    """The captions of a folder, looked at. Raises DatasetError as a scan does."""
    from lorapod.captioning.check import check_captions
    from lorapod.cli.media_progress import media_progress
    from lorapod.data.scan import scan
    from lorapod.recipe.schema import DatasetSection

    section = DatasetSection(path=folder, recursive=recursive, trigger_word=wish.trigger, caption_per_line=per_line)
    with media_progress("Looking at media") as progress:
        found = scan(folder, recursive, progress, cache=cache, caption_per_line=per_line)
    return found, check_captions(section, found, wish)


def check(folder: Path, wish: Wish, cache: MediaCache, *, recursive: bool, per_line: bool, as_json: bool) -> None:
    """Prints what was found. Raises `typer.Exit` with 1 where an item has no caption or one that is none."""
    found, looked = look_at(folder, wish, cache, recursive=recursive, per_line=per_line)
    if as_json:
        words = looked.words
        said = {
            "findings": [{"path": str(f.path), "what": f.what, "weight": f.weight} for f in looked.findings],
            "items": words.items,
            "captioned": words.captioned,
            "tokens": {
                "least": words.tokens[0],
                "median": words.tokens[1],
                "most": words.tokens[2],
                "read": words.limit,
            },
            "with_trigger": words.with_trigger,
            "always": [{"word": word, "share": round(share, 3)} for word, share in words.always],
            "once": words.once,
        }
        typer.echo(json.dumps(said, ensure_ascii=False, indent=1))
    else:
        _print(found, looked, wish, folder)
    if any(finding.weight >= 60 for finding in looked.findings):
        raise typer.Exit(1)


def _print(found: Scan, looked: Looked, wish: Wish, folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lorapod.data.names import shown

    console, words = Console(highlight=False), looked.words
    console.print(f"{shown(folder)}: {words.captioned} of {words.items} items have a caption.", soft_wrap=True)
    least, median, most = words.tokens
    counted = "" if words.is_counted else "about "
    reads = f"; the base model reads {words.limit}" if words.limit else " (--base says how many are read)"
    console.print(f"Tokens of a caption: {counted}{least} to {most}, {median} in the middle{reads}.")
    if wish.trigger:
        console.print(f"The trigger word “{escape(wish.trigger)}” is in {words.with_trigger} of them.")
    if words.always:
        named = ", ".join(f"{word} {share:.0%}" for word, share in words.always[:_SHOWN_WORDS])
        console.print(f"Nearly always there, so that it will not be part of the trigger word: {escape(named)}")
    if words.once:
        more = f" and {len(words.once) - _SHOWN_WORDS} more" if len(words.once) > _SHOWN_WORDS else ""
        console.print(f"Said once (slips hide here): {escape(', '.join(words.once[:_SHOWN_WORDS]))}{more}")
    if not looked.findings:
        console.print("[green]Nothing suspicious was found.[/]")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("Item", no_wrap=True, max_width=28)
    table.add_column("What", overflow="fold", ratio=1)
    for finding in looked.findings[:_SHOWN_FINDINGS]:
        style = "red" if finding.weight >= 60 else "yellow" if finding.weight >= 40 else ""
        table.add_row(escape(shown(finding.path.name)), escape(finding.what), style=style)
    console.print(table)
    if len(looked.findings) > _SHOWN_FINDINGS:
        console.print(f"and {len(looked.findings) - _SHOWN_FINDINGS} more; --json lists all.")
    console.print("Look at them one by one with: lorapod caption review", soft_wrap=True)
