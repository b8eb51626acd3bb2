"""What is wrong with a recipe, in sentences that name the place, the key and what was expected."""

from __future__ import annotations

import datetime
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from lorapod.errors import RecipeError
from lorapod.recipe import describe
from lorapod.recipe.locate import KeyPath, Locations, dotted
from lorapod.recipe.schema import Section

_REMEDY = "Correct this and run again; `lorapod recipe keys` explains every key."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at `path`."""

    path: KeyPath
    text: str


@dataclass(frozen=True)
class Source:
    """Where a recipe's values come from: the file and the overrides on top of it."""

    name: str
    locations: Locations
    overrides: Mapping[KeyPath, str]
    """The `--set` text of each overridden path."""

    def place(self, path: KeyPath) -> tuple[int, str]:
        """A sort key, and the place of `path` as a person can find it."""
        for key, text in self.overrides.items():
            if path[: len(key)] == key or (key[: len(path)] == path and path not in self.locations.lines):
                return 0, f"--set {text}"
        line = self.locations.line(path)
        return (line, f"{self.name}, line {line}") if line else (0, self.name)

    def error(self, problems: Iterable[Problem]) -> RecipeError:
        """All problems in one error, in the order of the file: the first says what, the others follow, one a line."""
        placed = sorted(
            (self.place(problem.path), number, problem) for number, problem in enumerate(_distinct(problems))
        )
        # Keys and paths may hold line ends; a problem stays on one line.
        first, *others = [f"{place}: {problem.text}".replace("\n", "\\n") for (_, place), _, problem in placed]
        return RecipeError(first, "\n".join(others), _REMEDY)


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def from_validation(error: ValidationError, raw: Mapping[str, Any]) -> list[Problem]:
    """The problems that pydantic found in `raw`."""
    details = error.errors(include_url=False)
    renamed = {
        (*item["loc"][:-1], name)
        for item in details
        if item["type"] == "extra_forbidden"
        for name in describe.meant_keys(item["loc"])
    }
    found = []
    for item in details:
        path: KeyPath = item["loc"]
        if item["type"] == "extra_forbidden":
            found.append(Problem(path, _unknown_key(path)))
        elif item["type"] == "missing" and isinstance(path[-1], str):
            # A misspelt required key is one mistake, not an unknown key and a missing one.
            if path not in renamed:
                found.append(Problem(path, _missing_key(path)))
        elif item["type"] == "json_invalid":
            found.append(Problem((), "it is nested too deeply, or a path in it is not Unicode text"))
        elif item["type"] == "value_error":
            found.append(Problem(path, f"`{dotted(path)}`: {item['ctx']['error']}"))
        else:
            # A tuple that is too short is reported at the element that is missing: speak of the tuple.
            whole = _key_of(path[:-1] if item["type"] == "missing" else path)
            found.append(Problem(whole, _wrong_value(whole, value_at(raw, whole), item["msg"])))
    return found


def _key_of(path: KeyPath) -> KeyPath:
    """The key that `path` leads to: where a key takes several kinds, pydantic goes on with the kind that it tried."""
    while path and describe.type_at(path) is None:
        path = path[:-1]
    return path


def value_at(raw: Any, path: KeyPath) -> Any:
    """The value that `path` leads to in plain data; None where it leads nowhere."""
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _unknown_key(path: KeyPath) -> str:
    meant = describe.meant_keys(path)
    if meant:
        return f"unknown key `{dotted(path)}`; did you mean {' or '.join(f'`{key}`' for key in meant)}?"
    section = describe.section_at(path[:-1])
    known = ", ".join(f"`{key}`" for key in section.model_fields) if section else ""
    return f"unknown key `{dotted(path)}`; valid here: {known}"


def _missing_key(path: KeyPath) -> str:
    found = describe.type_at(path)
    section = describe.section_of(found[0]) if found else None
    if section is not None and found is not None:
        header = f"[[{dotted(path)}]]" if get_origin(found[0]) is list else f"[{dotted(path)}]"
        required = next(key for key, info in section.model_fields.items() if info.is_required())
        return f"`{dotted(path)}` is missing; write `{header}` and below it `{required} = ...`"
    return f"`{dotted(path)}` is missing; it must be {describe.type_text(*found) if found else 'given'}"


def _wrong_value(path: KeyPath, value: Any, message: str) -> str:
    expected = describe.type_at(path)
    if expected is None:
        return f"`{dotted(path)}`: {message}"
    annotation = describe.without_none(expected[0])
    if value in ("", []):
        return f"`{dotted(path)}` must not be empty"
    if (
        isinstance(annotation, type)
        and issubclass(annotation, str)
        and isinstance(value, str)
        and not issubclass(annotation, Enum)
    ):
        return f"`{dotted(path)}`: {message[0].lower()}{message[1:]}"
    hint = _hint(path, annotation, value)
    return f"`{dotted(path)}` must be {describe.type_text(*expected)}, not {shown(value)}{'; ' + hint if hint else ''}"


def _hint(path: KeyPath, annotation: Any, value: Any) -> str:
    """What to write instead, for mistakes that people make."""
    if get_origin(annotation) is list:
        if describe.section_of(annotation) is not None:
            return f"write `[[{dotted(path)}]]` with two brackets" if isinstance(value, dict) else ""
        return "" if isinstance(value, dict) else f"write `[{shown(value)}]`"
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [get_args(each)[0] if get_origin(each) is Annotated else each for each in get_args(annotation)]
        hints = [_hint(path, each, value) for each in choices if isinstance(each, type)]
        return next(filter(None, hints), "")
    if not isinstance(annotation, type):
        return ""
    if issubclass(annotation, Section):
        is_element = isinstance(path[-1], int)
        return "" if is_element else f"write `[{dotted(path)}]` on a line of its own and its keys below it"
    if issubclass(annotation, Enum):
        near = difflib.get_close_matches(str(value).lower(), [str(member.value) for member in annotation], n=1)
        return f"did you mean `{near[0]}`?" if near else ""
    if issubclass(annotation, bool):
        return f"write {value.lower()} without quotes" if str(value).lower() in ("true", "false") else ""
    if issubclass(annotation, int | float):
        return _number_hint(annotation, value)
    return (
        f'write it in quotes: "{value}"'
        if issubclass(annotation, str | Path) and isinstance(value, int | float)
        else ""
    )


def _number_hint(annotation: type, value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and issubclass(annotation, int):
        return f"write {int(value)}"
    if not isinstance(value, str):
        return ""
    text = value.strip()
    try:
        if text.endswith("%"):
            return f"write {float(text[:-1]) / 100:g} for {text}" if issubclass(annotation, float) else ""
        float(text)
    except ValueError:
        return ""
    return f"write {text} without quotes"


def shown(value: Any) -> str:
    """A value as it would be written in TOML, short."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, datetime.date | datetime.time):
        return "a date or time"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
