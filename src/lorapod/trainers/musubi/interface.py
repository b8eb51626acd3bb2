"""The options that musubi-tuner takes, as written down in `interface.toml`, and a person's own options checked by them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from lorapod.errors import RequestError

KINDS = ("cache_latents", "cache_text", "train")
"""Kinds of stages; a person's own tables are called so, and `dataset` for what all datasets of the dataset TOML are told."""

_TABLES = ("dataset", *KINDS)
_TAKEN = {"dataset_config", "output_dir", "output_name", "config_file"}
"""What lorapod itself has to say."""


@cache
def interface() -> dict[str, Any]:
    """The table: `commit`, `[general]` of the dataset TOML and what its datasets take for control pictures (key to type),
    and for each kind and family option to what it takes."""
    return tomllib.loads((resources.files(__package__) / "interface.toml").read_text(encoding="utf-8"))


def options_of(kind: str, family: str) -> dict[str, str]:
    """Option to what it takes: `flag`, `int`, `float`, `str`, `path`, or `one of a, b`; with `...` for several."""
    table = interface()[kind]
    return {**table["common"], **table.get(family, {})}


def check_own(own: Mapping[str, Any], family: str) -> None:
    """Checks a person's own options.

    Raises:
        RequestError: A table or an option that musubi-tuner does not have, or a value that it does not take.
    """
    for name, table in own.items():
        if name not in _TABLES or not isinstance(table, Mapping):
            raise _wrong(name, list(_TABLES), f"`{name}` is not a table of options for musubi-tuner")
        known = interface()["general"] | interface()["control"] if name == "dataset" else options_of(name, family)
        for option, value in table.items():
            if option in _TAKEN:
                raise RequestError(f"`{name}.{option}` is set by lorapod", "The run depends on it.", "Leave it out.")
            if option not in known:
                raise _wrong(option, list(known), f"musubi-tuner has no option `{option}` in `{name}`")
            if not _fits(value, known[option]):
                raise RequestError(
                    f"`{name}.{option}` takes {_said(known[option])}, not {value!r}",
                    "musubi-tuner would refuse it.",
                    "Change the value.",
                )


def _said(takes: str) -> str:
    words = {"flag": "true or false", "int": "a whole number", "float": "a number", "bool": "true or false"}
    one = takes.removesuffix("...")
    return ("a list of " if one != takes else "") + words.get(one, "text" if one in ("str", "text") else one)


def _fits(value: Any, takes: str) -> bool:
    if takes.endswith("..."):
        return isinstance(value, list) and all(_fits(each, takes.removesuffix("...")) for each in value)
    if takes in ("flag", "bool"):
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if takes == "int":
        return isinstance(value, int)
    if takes == "float":
        return isinstance(value, int | float)
    if takes.startswith("one of "):
        return value in takes.removeprefix("one of ").split(", ")
    return isinstance(value, str | int | float)


def _wrong(word: str, known: list[str], what: str) -> RequestError:
    near = difflib.get_close_matches(word, known, n=1)
    return RequestError(what, f"Did you mean `{near[0]}`?" if near else "", "See its documentation, or leave it out.")
