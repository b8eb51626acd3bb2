"""The keys that diffusion-pipe reads, as written down in `interface.toml`, and a person's own keys checked by them.

diffusion-pipe ignores a key that it does not know, so a misspelt one would be lost without a word.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from lorapod.errors import RequestError

_TABLES = ("model", "adapter", "optimizer", "dataset")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "pairs": "a list of pairs of numbers",
    "triples": "a list of [width, height, frames]",
    "tables": "a list of tables with name and config",
}


@cache
def interface() -> dict[str, Any]:
    """The table: `commit`, then key to what it takes, for each table of the two files."""
    return tomllib.loads((resources.files(__package__) / "interface.toml").read_text(encoding="utf-8"))


def keys_of(table: str, model: str, optimizer: str) -> dict[str, str]:
    """Key to what it takes, of `main`, `model`, `adapter`, `optimizer` or `dataset`.

    Args:
        model: `type` of [model], as in `z_image`.
        optimizer: `type` of [optimizer], as in `adamw_optimi`.
    """
    known: dict[str, Any] = interface()[table]
    if table in ("model", "optimizer"):
        own: dict[str, str] = known.get(model if table == "model" else optimizer, {})
        return {**known["common"], **own}
    return dict(known)


def check_own(own: Mapping[str, Any], model: str, optimizer: str) -> None:
    """Checks a person's own keys: keys of the main TOML, with the tables model, adapter and optimizer, and the table
    `dataset` for keys of the dataset TOML.

    Raises:
        RequestError: A key that diffusion-pipe does not read here, that the recipe says, or with a value of another type.
    """
    for key, value in own.items():
        if key == "monitoring":
            raise RequestError(
                "`monitoring` cannot be given",
                "diffusion-pipe copies its file, with the key for W&B in it, into the folder of every LoRA.",
                "Leave it out; `lorapod report` and TensorBoard show the loss.",
            )
        if key in _TABLES and isinstance(value, Mapping):
            for inner, each in value.items():
                _check(key, f"{key}.{inner}", inner, each, model, optimizer)
        elif key in _TABLES and key != "dataset":
            raise RequestError(f"`{key}` is a table", f"It was given as {value!r}.", f"Write `{key}.KEY = VALUE`.")
        else:
            _check("main", key, key, value, model, optimizer)


def _check(table: str, dotted: str, key: str, value: Any, model: str, optimizer: str) -> None:
    taken: dict[str, str] = interface()["taken"][table]
    if key in taken:
        said = taken[key]
        raise RequestError(
            f"`{dotted}` is set by lorapod",
            f"The recipe says it in `{said}`." if said else "The run depends on it.",
            f"Leave it out, and set `{said}` in the recipe." if said else "Leave it out.",
        )
    known = keys_of(table, model, optimizer)
    if key not in known:
        raise _unknown(table, dotted, key, known, model, optimizer)
    if not any(_fits(value, takes) for takes in known[key].split(" or ")):
        said = " or ".join(_said(takes) for takes in known[key].split(" or "))
        raise RequestError(
            f"`{dotted}` takes {said}, not {value!r}", "diffusion-pipe would fail or misread it.", "Change the value."
        )


def _unknown(table: str, dotted: str, key: str, known: Mapping[str, str], model: str, optimizer: str) -> RequestError:
    where = {"model": f" for the model type {model}", "optimizer": f" for the optimizer {optimizer}"}.get(table, "")
    near = difflib.get_close_matches(key, known, n=1)
    prefix = "" if table == "main" else f"{table}."
    if near:
        hint = f"Did you mean `{prefix}{near[0]}`?"
    else:
        others = [
            name if other == "main" else f"{other}.{name}"
            for other in ("main", *_TABLES)
            for name in keys_of(other, model, optimizer)
            if other != table and name == key
        ]
        hint = f"It is written `{others[0]}`." if others else f"It reads {', '.join(prefix + name for name in known)}."
    return RequestError(
        f"diffusion-pipe reads no key `{dotted}`{where}", hint, "Correct it or leave it out; it would be ignored."
    )


def _said(takes: str) -> str:
    one = takes.removesuffix("...")
    return "a list of " + _WORDS[one] if one != takes else _WORDS.get(one, one)


def _fits(value: Any, takes: str) -> bool:
    if takes.endswith("..."):
        return isinstance(value, list) and bool(value) and all(_fits(each, takes[:-3]) for each in value)
    if takes in ("pairs", "triples"):
        length = 2 if takes == "pairs" else 3
        return isinstance(value, list) and bool(value) and all(_numbers(each, length) for each in value)
    if takes == "tables":
        return isinstance(value, list) and all(isinstance(t, Mapping) and set(t) == {"name", "config"} for t in value)
    if takes.startswith("one of "):
        return isinstance(value, str) and value in takes.removeprefix("one of ").split(", ")
    if takes == "bool" or isinstance(value, bool):
        return takes == "bool" and isinstance(value, bool)
    if takes == "int":
        return isinstance(value, int)
    if takes == "float":
        return isinstance(value, int | float)
    return isinstance(value, str)


def _numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(_fits(each, "float") for each in value)
