"""Reads a recipe: file, overrides and presets in, a checked `Recipe` out.

Later layers win: the schema's defaults, the base model's preset, what the person wrote, `--set`. Tables merge key by
key, lists are replaced whole. Whether the base model exists in the catalogue is left to `lorapod.models`, and what is
inside the dataset folders to `lorapod.data`.
"""

from __future__ import annotations

import datetime
import difflib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from lorapod.errors import RecipeError
from lorapod.recipe import overrides as changes
from lorapod.recipe import presets, problems
from lorapod.recipe.locate import KeyPath, Locations, dotted, locate
from lorapod.recipe.problems import Problem, Source
from lorapod.recipe.schema import Recipe
from lorapod.workspace import Workspace

_LARGEST_FILE = 1_000_000
"""Bytes; what is larger is not a recipe but a mistyped path to a model or a picture."""


def load(
    path: Path, overrides: Sequence[str] = (), *, check_paths: bool = True, workspace: Workspace | None = None
) -> Recipe:
    """The recipe in a TOML file, complete and checked, with absolute paths.

    Args:
        path: The recipe's file; relative paths in it and in the overrides start at its folder.
        overrides: `a.b=c` each, as given to `--set`.
        check_paths: Refuse datasets and files that do not exist. False is for reading the recipe of an old run.
        workspace: Whose added base models get presets too. None is for a recipe that has every value, as that of a run.

    Raises:
        RecipeError: It cannot be read or is not valid; all problems are listed, each with its line.
    """
    text = _read(path)
    locations = locate(text)
    raw = _parse(text, str(path), locations)
    given = [changes.parse(override) for override in overrides]
    changes.apply(raw, given)
    source = Source(str(path), locations, {override.path: override.text for override in given})
    found = _make_paths_absolute(raw, path.expanduser().absolute().parent, check_paths, workspace)
    filled = presets.fill(raw, workspace)
    try:
        # Through JSON, because there alone "strict" means what it means in TOML: enums and paths are texts, but a
        # text is not a number, and `true` is not 1.
        recipe = Recipe.model_validate_json(json.dumps(filled, default=_not_json), strict=True)
    except ValidationError as error:
        raise source.error([*problems.from_validation(error, filled), *found]) from None
    if recipe.training.steps is None and recipe.training.epochs is None:
        found.append(Problem(("training",), _no_length(recipe.base_model.name)))
    if found:
        raise source.error(found)
    return recipe


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, not a recipe", "", _nearby_recipes(path))
        if path.stat().st_size > _LARGEST_FILE:
            raise RecipeError(f"{path} is too large to be a recipe", "", "Give the path of a recipe's TOML file.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}", "", _nearby_recipes(path.absolute().parent)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(f"Cannot read the recipe {path}", reason, "Check the path and who may read it.") from error
    try:
        # Some editors on Windows put a byte order mark first.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"{path} is UTF-16 text, not UTF-8" if utf16 else f"{path}, line {line}: not UTF-8 text",
            "" if utf16 else f"Byte 0x{data[error.start]:02x} cannot be read there.",
            "Save the file in your editor with the encoding UTF-8.",
        ) from None


def _nearby_recipes(folder: Path) -> str:
    files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
    recipes = list(itertools.islice((file.name for file in files if _looks_like_one(file)), 8))
    new = "`lorapod recipe new` writes one."
    return f"Recipes there: {', '.join(recipes)}; {new}" if recipes else f"Give the path of a recipe; {new}"


def _looks_like_one(file: Path) -> bool:
    """Whether a TOML file is likely a recipe, and not the settings of some other program."""
    try:
        return file.stat().st_size <= _LARGEST_FILE and b"base_model" in file.read_bytes()
    except OSError:
        return False


def _parse(text: str, name: str, locations: Locations) -> dict[str, Any]:
    try:
        return tomlkit.parse(text).unwrap()
    except RecursionError:
        raise RecipeError(f"{name} is nested too deeply to be a recipe") from None
    except TOMLKitError as error:
        if locations.repeated:
            path, number = locations.repeated[0]
            first = locations.lines[path]
            raise RecipeError(
                f"{name}, line {number}: `{dotted(path)}` is written a second time",
                f"It stands on line {first} already.",
                "Leave one of them out; another table of a list is written with two brackets, as `[[datasets]]`.",
            ) from None
        raise _syntax_error(text, name, error) from None


def _syntax_error(text: str, name: str, error: TOMLKitError) -> RecipeError:
    number, column = getattr(error, "line", None), getattr(error, "col", 0)
    reason = re.sub(r" at line \d+ col \d+$", "", str(error))
    reason = reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason
    if "end of file" in reason or ("\\x00" in reason and "\0" not in text):  # how tomlkit names the end of the text
        return RecipeError(
            f"{name}, line {number or 1}, column {column + 1}: the file ends in the middle of something",
            "",
            "Look there and above for a quote or a bracket without its closing one.",
        )
    if "\\u000a" in reason:  # how tomlkit names a line end inside quotes
        reason = "the text has no closing quote on its line"
    if number is None:
        return RecipeError(f"{name}: {reason}", "", "Correct the TOML.")
    lines = text.split("\n")
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return RecipeError(
        f"{name}, line {number}, column {column + 1}: {reason}",
        f"The line reads: {line}" if line else "",
        _syntax_hint(line),
    )


def _syntax_hint(line: str) -> str:
    value = line.partition("=")[2].strip()
    if re.match(r"(True|False|Yes|No|yes|no|on|off)\b", value):
        return "Write `true` or `false`, in lower case."
    if re.match(r'"[^"]*\\', value):
        return "In double quotes a backslash is special: write the path in single quotes, or with forward slashes."
    if re.match(r"\.\d", value):
        return f"Write a zero before the point: 0{value.split()[0]}."
    if re.match(r"\d+,\d", value):
        return "Write numbers without commas, as 1000 or 1_000."
    if re.match(r"[A-Za-z/~.]", value):
        return "Write text in quotes."
    if ":" in line and "=" not in line:
        return "TOML takes `key = value`, not `key: value`."
    return "Correct the TOML there: `key = value` on one line, text in quotes, tables as `[table]`."


def _not_json(value: Any) -> Any:
    """Dates and times are no value of any key: something that no key takes, so that the schema refuses them."""
    if isinstance(value, datetime.date | datetime.time):
        return {"date": str(value)}
    raise TypeError(f"{type(value).__name__} is not TOML")


def _make_paths_absolute(raw: dict[str, Any], folder: Path, check: bool, workspace: Workspace | None) -> list[Problem]:
    """Makes the relative paths in `raw` absolute, from `folder`, and says which of them do not exist."""
    found: list[Problem] = []

    def resolve(table: Any, key: str | int, path: KeyPath, *, wants_folder: bool) -> None:
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, str):
            return
        wrong = _unusable(value)
        if not wrong:
            absolute = _absolute(value, folder)
            table[key] = str(absolute)
            wrong = _missing(absolute, wants_folder) if check else ""
        if wrong:
            found.append(Problem(path, f"`{dotted(path)}`: {wrong}"))

    model = raw.get("base_model")
    name = model.get("name") if isinstance(model, dict) else None
    if isinstance(name, str) and not presets.is_added(name, workspace) and _is_folder_name(name, folder):
        resolve(model, "name", ("base_model", "name"), wants_folder=True)
    if not isinstance(model, dict) or model.get("training_adapter") not in ("none", "catalogue"):
        resolve(model, "training_adapter", ("base_model", "training_adapter"), wants_folder=False)
    resolve(raw.get("adapter"), "continue_from", ("adapter", "continue_from"), wants_folder=False)
    adapter = raw.get("adapter")
    merged = adapter.get("merged") if isinstance(adapter, dict) else None
    for index, each in enumerate(merged if isinstance(merged, list) else []):
        resolve(each, "path", ("adapter", "merged", index, "path"), wants_folder=False)
    previews = raw.get("previews")
    for key in ("first_frames", "control"):
        pictures = previews.get(key) if isinstance(previews, dict) else None
        if isinstance(pictures, list):
            listed = dict(enumerate(pictures))
            for index in range(len(pictures)):
                resolve(listed, index, ("previews", key, index), wants_folder=False)
                pictures[index] = listed[index]
    datasets = raw.get("datasets")
    for index, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        for key in ("path", "masks", "control"):
            resolve(dataset, key, ("datasets", index, key), wants_folder=True)
    return found


def _is_folder_name(name: str, folder: Path) -> bool:
    """Whether a base model's name is a path. A name of the catalogue wins over a folder that is called the same."""
    if name in presets.names() or "\0" in name or not name:
        return False
    return "/" in name or "\\" in name or name.startswith("~") or not _missing(folder / name, wants_folder=True)


def _unusable(value: str) -> str:
    if not value.strip():
        return "the path is empty"
    return "the path holds a NUL character" if "\0" in value else ""


def _absolute(value: str, folder: Path) -> Path:
    """The path without `..`. A link that is itself the target stays, since its name says what kind of file it is."""
    try:
        path = folder / Path(value).expanduser()
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    except RuntimeError:  # `~` of an unknown user, or links in a circle: left as it is, and reported as missing
        return folder / value


def _missing(path: Path, wants_folder: bool) -> str:
    """Why there is no such folder, or file, at `path`; empty if there is one."""
    wanted, other = ("folder", "file") if wants_folder else ("file", "folder")
    try:
        if path.is_dir() if wants_folder else path.is_file():
            return ""
        return f"{path} is a {other}, not a {wanted}" if path.exists() else f"there is no {wanted} {path}"
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"


def _no_length(base_model: str) -> str:
    near = difflib.get_close_matches(base_model, presets.names(), n=1)
    meant = f"; did you mean base model `{near[0]}`?" if near else ""
    return f"give `steps` or `epochs`: there is no preset for base model `{base_model}` to take them from{meant}"
