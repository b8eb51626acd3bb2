"""`lorapod recipe import`: what became of another trainer's configuration, and the recipe as a file."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import tomlkit
import typer
from rich.console import Console
from rich.text import Text

from lorapod.errors import RequestError
from lorapod.trainers.imports import Fate, Imported, import_files
from lorapod.workspace import Workspace

_SAID = {Fate.LEFT: "Left behind", Fate.CHANGED: "Changed", Fate.CARRIED: "Carried over"}
_COLOURS = {Fate.CARRIED: "green", Fate.CHANGED: "yellow", Fate.LEFT: "red"}
_LONGEST = 24
_VOLUME = re.compile(r"^\$\{?NETWORK_VOLUME\}?/")


def import_recipe(
    files: list[Path],
    format: str | None,
    base: str | None,
    out: Path | None,
    as_json: bool,
    workspace: Workspace | None,
) -> None:
    """Writes the recipe and tells what became of each key.

    Raises:
        RequestError: The files cannot be imported, or the recipe would overwrite another one.
    """
    from lorapod import recipe as recipes
    from lorapod.files import write_text_whole

    imported = import_files([file.expanduser() for file in files], format, base)
    _find_volume(imported, workspace)
    target = (out or Path(f"{imported.recipe['name']}.toml")).expanduser()
    text = recipe_text(imported, files)
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") != text:
        raise RequestError(f"{target} is there already", "It was left as it is.", "Name another file with --out.")
    write_text_whole(target, text)
    loaded = recipes.load(target, check_paths=False, workspace=workspace)
    missing = [dataset.path for dataset in loaded.datasets if not dataset.path.exists()]
    if as_json:
        notes = [
            {"key": note.key, "value": note.value, "fate": note.fate.value, "why": note.why} for note in imported.notes
        ]
        result = {"recipe": str(target), "missing": [str(path) for path in missing], "keys": notes}
        typer.echo(json.dumps(result, ensure_ascii=False, indent=1, default=str))
        return
    _print_fates(imported, Console(highlight=False))
    counts = {fate: sum(note.fate is fate for note in imported.notes) for fate in Fate}
    typer.echo(
        f"{counts[Fate.CARRIED]} keys carried over, {counts[Fate.CHANGED]} changed, {counts[Fate.LEFT]} left behind."
    )
    for path in missing:
        typer.echo(f"The data is not here: {path}. Set `path` in the recipe to where it is.")
    quoted = shlex.quote(str(target))
    typer.echo(f"Recipe: {target}\nNext: lorapod recipe check {quoted}, then lorapod train {quoted}")


def _find_volume(imported: Imported, workspace: Workspace | None) -> None:
    """Paths below `$NETWORK_VOLUME`, which that template's scripts fill in, are below the workspace."""
    for dataset in imported.recipe["datasets"]:
        path = str(dataset["path"])
        if _VOLUME.match(path):
            inside = _VOLUME.sub("", path)
            dataset["path"] = str(workspace.root / inside) if workspace else inside
            imported.note("path", path, Fate.CHANGED, f"the workspace's: {dataset['path']}")


def recipe_text(imported: Imported, files: list[Path]) -> str:
    """The recipe as TOML, tables after keys."""
    document = tomlkit.document()
    document.add(tomlkit.comment(f"Made by `lorapod recipe import` out of {', '.join(file.name for file in files)}."))
    for name, value in imported.recipe.items():
        if not isinstance(value, dict | list):
            document.add(name, value)
    for name, value in imported.recipe.items():
        if name == "datasets":
            tables = tomlkit.aot()
            for each in value:
                tables.append(tomlkit.item(_plain(each)))
            document.add(name, tables)
        elif isinstance(value, dict):
            document.add(name, tomlkit.item(_plain(value)))
    return tomlkit.dumps(document)


def _print_fates(imported: Imported, console: Console) -> None:
    """What became of each key, first what needs the person's eye; keys with the same reason stand together under it."""
    for fate in (Fate.LEFT, Fate.CHANGED, Fate.CARRIED):
        reasons: dict[str, list[str]] = {}
        for note in imported.notes:
            if note.fate is fate:
                value = " ".join(str(note.value).split())
                shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
                reasons.setdefault(note.why, []).append(f"{note.key} = {shown}")
        for why, keys in reasons.items():
            console.print(Text.assemble((_SAID[fate], _COLOURS[fate]), f": {why}" if why else ""), soft_wrap=True)
            for key in keys:
                console.print(Text(f"  {key}"), soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
