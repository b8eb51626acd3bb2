"""Which trainer's configuration a file is, by what is in it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorapod.errors import RequestError
from lorapod.trainers.imports import ai_toolkit, diffusion_pipe, kohya, musubi, template
from lorapod.trainers.imports.notes import Imported

FORMATS = ("diffusion-pipe", "musubi", "ai-toolkit", "kohya", "template")

_LARGEST = 1 << 20


def import_files(files: Sequence[Path], format: str | None = None, base: str | None = None) -> Imported:
    """A recipe out of the configuration of another trainer.

    Args:
        files: The configuration, with its dataset file or command line where these are files of their own.
        format: One of `FORMATS`; None: told by what is in the files.
        base: Name of the base model in the catalogue, where the configuration does not tell.

    Raises:
        RequestError: A file cannot be read, is none of a known kind, or something that is needed is not in it.
    """
    texts = {file: _text(file) for file in files}
    try:
        return _imported(files, texts, format, base)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        # The tables are a stranger's: a text in place of a number may turn up anywhere.
        said = " ".join(str(error).split())[:200]
        raise RequestError(
            f"A value in {', '.join(file.name for file in files)} is none that its trainer takes",
            f"{type(error).__name__}: {said}",
            "Look for a key whose value is of another kind, such as a text in place of a number.",
        ) from error


def _imported(files: Sequence[Path], texts: Mapping[Path, str], format: str | None, base: str | None) -> Imported:
    tables = {file: table for file, text in texts.items() if (table := _table(file, text)) is not None}
    if format is None:
        _refuse_of_several(texts, tables)
    kind = format or _kind(texts, tables)
    name = files[0].stem
    match kind:
        case "diffusion-pipe":
            main, dataset = _pair(files, tables)
            return diffusion_pipe.read(main, dataset, base, name)
        case "musubi":
            lines = musubi.command_lines("\n".join(text for file, text in texts.items() if file not in tables))
            return musubi.read(lines, _dataset(tables), base, name)
        case "ai-toolkit":
            return ai_toolkit.read(texts[files[0]], files[0], base)
        case "kohya":
            main = next((table for table in tables.values() if "datasets" not in table), {})
            dataset = next((table for table in tables.values() if "datasets" in table), {})
            if not dataset and (main.get("dataset_config") or not kohya.has_folders(main)):
                dataset = _named(main, files[0], "dataset_config")
            return kohya.read(main, dataset, base, name)
        case "template":
            return template.read(texts[files[0]], files[0].name, base)
    raise RequestError(f"There is no format {kind!r}", "", f"Choose one of {', '.join(FORMATS)}.")


def _kind(texts: Mapping[Path, str], tables: Mapping[Path, Mapping[str, Any]]) -> str:
    for table in tables.values():
        if {"model", "adapter", "optimizer"} & table.keys() and isinstance(table.get("model"), Mapping):
            return "diffusion-pipe"
    for text in texts.values():
        if "_train_network.py" in text and ("--dit" in text or "musubi" in text):
            return "musubi"
    for table in tables.values():
        if "network_module" in table and "dit" in table:
            return "musubi"
        if "pretrained_model_name_or_path" in table or "network_module" in table or _has_subsets(table):
            return "kohya"
    for file, text in texts.items():
        if file in tables:
            continue
        if template.is_one(text):
            return "template"
        if ai_toolkit.is_one(text):
            return "ai-toolkit"
    raise RequestError(
        "It cannot be told whose configuration this is",
        f"{', '.join(file.name for file in texts)} looks like none of {', '.join(FORMATS)}.",
        "Give its main file (a dataset file alone says too little), or name the trainer with --from.",
    )


def _refuse_of_several(texts: Mapping[Path, str], tables: Mapping[Path, Mapping[str, Any]]) -> None:
    """One recipe is made of one configuration: others beside it would be passed over in silence."""
    kinds: dict[str, list[Path]] = {}
    for file, text in texts.items():
        with suppress(RequestError):  # a dataset file alone, which may be of any
            kinds.setdefault(_kind({file: text}, {file: tables[file]} if file in tables else {}), []).append(file)
    alone = next(
        (files for kind, files in kinds.items() if kind in ("ai-toolkit", "template") and len(texts) > 1), None
    )
    if len(kinds) > 1 or alone:
        said = ", ".join(f"{file.name} of {kind}" for kind, files in kinds.items() for file in files)
        raise RequestError(
            "These files are more than one configuration",
            f"{said}.",
            "Import them one by one, or name their trainer with --from.",
        )


def _has_subsets(table: Mapping[str, Any]) -> bool:
    return any(isinstance(each, Mapping) and "subsets" in each for each in table.get("datasets", []))


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST:
            raise RequestError(f"{file} is too large for a configuration", "It has more than a megabyte.", "")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{file} is no text", f"Byte {error.start} is not UTF-8.", "Give a configuration file."
        ) from error
    except OSError as error:
        raise RequestError(f"{file} cannot be read", f"{error.strerror}.", "Check the path.") from error


def _table(file: Path, text: str) -> dict[str, Any] | None:
    """A TOML file's table, or the JSON of kohya's GUI; None where it is neither by its name."""
    if file.suffix.lower() == ".json":
        return _json(file, text)
    if file.suffix.lower() != ".toml":
        return None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{file} is not valid TOML", f"{error}.", "Mend the line.") from error


def _json(file: Path, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{file} is not valid JSON", f"{error}.", "Mend the line.") from error
    return kohya.of_gui(table) if isinstance(table, dict) else {}


def _pair(files: Sequence[Path], tables: Mapping[Path, dict[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    main_file = next((file for file, table in tables.items() if "model" in table), files[0])
    main = tables.get(main_file, {})
    if "model" not in main:
        raise RequestError(f"{main_file} is no main file of diffusion-pipe", "It has no [model] table.", "")
    dataset = next((table for table in tables.values() if "directory" in table), None)
    return main, dataset if dataset is not None else _named(main, main_file, "dataset")


def _named(table: Mapping[str, Any], file: Path, key: str) -> Mapping[str, Any]:
    """The file that a configuration names, from where it is, or from beside it."""
    said = str(table.get(key, ""))
    for place in (Path(said), file.parent / said, file.parent / Path(said).name) if said else ():
        if place.is_file():
            return _table(place.with_suffix(".toml"), _text(place)) or {}
    raise RequestError(
        f"The datasets of {file.name} are in a file that is not here",
        f"It names {said!r}." if said else f"It names none in `{key}`.",
        "Give that file as well.",
    )


def _dataset(tables: Mapping[Path, dict[str, Any]]) -> Mapping[str, Any]:
    found = next((table for table in tables.values() if "datasets" in table), None)
    if found is None:
        raise RequestError(
            "The datasets are not here", "They are in a TOML file of their own.", "Give that file as well."
        )
    return found
