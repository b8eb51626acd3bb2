"""The reference of all keys, `docs/recipe.md`, generated from the schema and the presets."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from lorapod.recipe import presets
from lorapod.recipe.describe import section_of, type_text, walk_fields
from lorapod.recipe.locate import dotted
from lorapod.recipe.problems import shown
from lorapod.recipe.schema import Recipe, Section

_INTRODUCTION = """\
# The recipe

A recipe is one TOML file that says all of a training. `lorapod recipe new` writes a short one, `lorapod recipe check`
finds what is wrong with it, and `lorapod recipe show` prints it with every value.

What a recipe leaves out comes from the preset of its base model, and what the preset leaves out from the defaults
below. `--set` overrides single values for one run: `--set training.steps=500`, `--set datasets.0.repeats=2`. Tables
are merged key by key; a list replaces a list. Relative paths start at the recipe's folder.
"""


def reference_markdown() -> str:
    """The whole page: a table of keys for every section, then the values that the presets give."""
    top = {key: info for key, info in Recipe.model_fields.items() if section_of(info.annotation) is None}
    parts = [_INTRODUCTION, "## Top of the file", _key_table(top)]
    for key, info in Recipe.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            header = f"[[{key}]]" if get_origin(info.annotation) is list else f"[{key}]"
            parts += [
                f"## `{header}`",
                _section_text(section, is_list=header.startswith("[[")),
                _key_table(section.model_fields),
            ]
    parts += ["## Presets", "What a base model's preset sets; the other keys keep their defaults.", *_preset_tables()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


@dataclass(frozen=True)
class Explained:
    """A key in words.

    Attributes:
        key: With dots, as `--set` takes it; `N` is a dataset's number.
    """

    key: str
    takes: str
    default: str
    what: str


def explained(word: str = "") -> list[Explained]:
    """Every key whose name, with its section, holds a word; all without one. In the order of the file."""
    found = []
    for path, info in walk_fields():
        key = dotted((path[0], "N", *path[1:]) if path[0] == "datasets" else path)
        if word.casefold() in key.casefold():
            takes = type_text(info.annotation, info.metadata).replace("`", "")
            found.append(Explained(key, takes, _default(info).strip("`"), (info.description or "").replace("`", "")))
    return found


def _section_text(section: type[Section], *, is_list: bool) -> str:
    text = inspect.cleandoc(section.__doc__ or "")
    return text + " Write the table once for each." if is_list else text


def _key_table(fields: dict[str, FieldInfo]) -> str:
    return _table(
        ("Key", "Takes", "Default", "What it does"),
        [
            (f"`{key}`", type_text(info.annotation, info.metadata), _default(info), info.description or "")
            for key, info in fields.items()
        ],
    )


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return "none" if info.default is None else f"`{_toml(info.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(element) for element in value) + "]"
    return shown(value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value)


def _preset_tables() -> list[str]:
    """Heading and table of each preset; base models with the same values share one."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in presets.names():
        preset = presets.values(name)
        rows = []
        for path, _ in walk_fields():
            # A preset speaks of every dataset at once.
            place = ("dataset", *path[1:]) if path[0] == "datasets" else path
            if cell := _cell(preset, place):
                rows.append((f"`{dotted(path)}`", cell))
        alike.setdefault(tuple(rows), []).append(name)
    parts = []
    for rows_of_all, names in alike.items():
        parts += ["### " + ", ".join(f"`{name}`" for name in names), _table(("Key", "Value"), rows_of_all)]
    return parts


def _cell(preset: dict[str, Any], path: Sequence[str]) -> str:
    value: Any = preset
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else f"`{_toml(value)}`"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
