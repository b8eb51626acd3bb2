"""`--set a.b=c`: single values that override what a recipe's file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lorapod.errors import RecipeError
from lorapod.recipe.describe import type_at, without_none
from lorapod.recipe.locate import KeyPath, dotted

ALTERNATIVES: tuple[tuple[KeyPath, KeyPath], ...] = ((("training", "steps"), ("training", "epochs")),)
"""Keys of which a recipe has one: giving the one in a later layer takes back the other of an earlier layer."""

_FORM = "Write --set key=value with the key's full path, as in --set training.steps=500 or --set datasets.0.repeats=2."


@dataclass(frozen=True)
class Override:
    """One `--set`: the value for the key at `path`, and the text as it was typed."""

    path: KeyPath
    value: Any
    text: str


def parse(text: str) -> Override:
    """Reads `a.b=c`; `c` is a TOML value, and where it is not valid TOML it is taken as text.

    Raises:
        RecipeError: There is no `=`, a part of the key is empty, or it is not Unicode text.
    """
    key, equals, value = text.partition("=")
    text = text.replace("\n", "\\n")  # it is shown in messages of one line
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"--set {text}: not of the form key=value", remedy=_FORM)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RecipeError(f"--set {text!r}: not Unicode text", remedy=_FORM)
    path = tuple(int(part) if part.isascii() and part.isdigit() else part for part in parts)
    return Override(path, _value(path, value.strip()), text)


def _value(path: KeyPath, text: str) -> Any:
    value = _toml_value(text)
    found = type_at(path)
    annotation = without_none(found[0]) if found else None
    wants_text = isinstance(annotation, type) and issubclass(annotation, str | Path)
    # A shell takes the quotes away: a name of digits is still a name.
    return text if wants_text and isinstance(value, bool | int | float | date | time) else value


def _toml_value(text: str) -> Any:
    try:
        document = tomlkit.parse(f"value = {text}").unwrap()
    except TOMLKitError:
        return text
    # A text with a line end could hold further keys; it is then no single TOML value.
    return document["value"] if len(document) == 1 else text


def apply(raw: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Writes the overrides into `raw`, plain data of a recipe's file; of two for one key the later counts.

    Whether the keys exist in the schema is left to its validation.

    Raises:
        RecipeError: A path leads through a plain value, or to a place that a list does not have.
    """
    given = {override.path for override in overrides}
    for one, other in ALTERNATIVES:
        for mine, rival in ((one, other), (other, one)):
            if mine in given and rival not in given:
                _remove(raw, rival)
    for override in overrides:
        _set(raw, override)


def _set(raw: dict[str, Any], override: Override) -> None:
    place: Any = raw
    for depth, part in enumerate(override.path):
        last = depth == len(override.path) - 1
        if isinstance(place, dict) and isinstance(part, str):
            if last:
                place[part] = override.value
            else:
                place = place.setdefault(part, {})
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            if last:
                place[part] = override.value
            else:
                place = place[part]
        else:
            raise _no_such_place(override, override.path[:depth], place)


def _no_such_place(override: Override, path: KeyPath, place: Any) -> RecipeError:
    if isinstance(place, list):
        count = f"{len(place)} element{'' if len(place) == 1 else 's'}"
        why = f"`{dotted(path)}` is a list of {count}, addressed by a number from 0."
    elif isinstance(place, dict):
        why = f"`{dotted(path)}` is a table, addressed by the names of its keys, not by numbers."
    else:
        why = f"`{dotted(path)}` is a single value; there is nothing below it."
    return RecipeError(f"--set {override.text}: there is no `{dotted(override.path)}`", why, _FORM)


def _remove(raw: Mapping[str, Any], path: KeyPath) -> None:
    place: Any = raw
    for part in path[:-1]:
        place = place.get(part) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place.pop(path[-1], None)
