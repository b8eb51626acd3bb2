"""The keys that diffusion-pipe reads, as written down in `interface.toml`, and configurations checked by them.

diffusion-pipe ignores a key that it does not know, at every level. lorapod refuses it, in a person's own options as in
what it renders itself. Not covered: which values go together, which only a run shows.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from lorapod.errors import RequestError

_TAKEN = {
    "main": {"output_dir", "dataset", "eval_datasets", "resume_from_checkpoint", "save_every_n_examples"},
    "model": {"type", "ckpt_path", "diffusers_path", "checkpoint_path", "diffusion_model", "vae", "text_encoders"},
    "adapter": {"type", "rank"},
    "monitoring": {"enable_wandb", "wandb_api_key"},
    "dataset": {"directory", "size_buckets", "subsample_ratio"},
}
"""Keys by table that lorapod has to set itself, since the run depends on them, or that no recipe may hold."""

_WHY_NOT = {
    "enable_wandb": "its key would be copied into every folder that diffusion-pipe writes",
    "wandb_api_key": "a key in it would be copied into every folder that diffusion-pipe writes",
}
_TABLES = ("model", "adapter", "optimizer", "monitoring", "dataset")
_ANY_OPTIMIZER = "any"


@cache
def interface() -> dict[str, Any]:
    """The table: `commit`, and for each table of a configuration key to what it takes."""
    return tomllib.loads((resources.files(__package__) / "interface.toml").read_text(encoding="utf-8"))


def keys_of(table: str, model_type: str, optimizer: str = "") -> dict[str, str] | None:
    """Key to what it takes, of `main`, `model`, `adapter`, `optimizer`, `monitoring`, `dataset` or `directory`.

    None for an optimizer that is a class of the package pytorch_optimizer, whose arguments are not known here.
    """
    known: dict[str, Any] = interface()[table]
    if table == "model":
        return {**known["common"], **known[model_type]}
    if table == "optimizer":
        own = known.get(optimizer.lower())
        return None if own is None else {**known["common"], **own}
    return known


def check_own(own: Mapping[str, Any], model_type: str, optimizer: str) -> None:
    """Checks a person's own options: keys of the main TOML, its tables, and `dataset` for the dataset TOML.

    Args:
        optimizer: The optimizer's name where the person's own options do not change it.

    Raises:
        RequestError: A key that diffusion-pipe does not read, or a value that it does not take.
    """
    optimizer = (
        str(own.get("optimizer", {}).get("type", optimizer)) if _is_table(own.get("optimizer", {})) else optimizer
    )
    for key, value in own.items():
        if key in _TABLES:
            if not _is_table(value):
                raise RequestError(f"`{key}` is a table of diffusion-pipe, not {value!r}", "", f"Write [… .{key}].")
            for inner, held in value.items():
                _check_one(key, inner, held, keys_of(key, model_type, optimizer))
        else:
            _check_one("main", key, value, keys_of("main", model_type))


def problems(config: Mapping[str, Any], dataset: Mapping[str, Any]) -> Iterator[str]:
    """Where two parsed TOML files hold what diffusion-pipe would ignore or refuse."""
    model_type = str(config["model"]["type"])
    optimizer = str(config["optimizer"]["type"])
    tables = [("main", config), ("dataset", dataset), *(("directory", each) for each in dataset["directory"])]
    tables += [(name, config[name]) for name in ("model", "adapter", "optimizer", "monitoring") if name in config]
    for name, table in tables:
        known = keys_of(name, model_type, optimizer)
        for key, value in table.items():
            if known is None:
                continue
            if key not in known:
                yield f"{name}.{key} is not read"
            elif not _fits(value, known[key]):
                yield f"{name}.{key} takes {_said(known[key])}, not {value!r}"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _check_one(table: str, key: str, value: object, known: Mapping[str, str] | None) -> None:
    name = key if table == "main" else f"{table}.{key}"
    if key in _TAKEN.get(table, ()):
        why = _WHY_NOT.get(key, "the run depends on it")
        raise RequestError(
            f"`{name}` of diffusion-pipe cannot be set by a recipe", f"lorapod sets it itself: {why}.", "Leave it out."
        )
    if known is None:
        return
    if key not in known:
        raise RequestError(
            f"diffusion-pipe reads no key `{name}`", "It would be ignored in silence.", _near(key, known)
        )
    if not _fits(value, known[key]):
        raise RequestError(
            f"`{name}` of diffusion-pipe takes {_said(known[key])}, not {value!r}", "", "Change the value."
        )


def _near(key: str, known: Mapping[str, str]) -> str:
    everywhere = {found: table for table in ("main", "dataset") for found in interface()[table]}
    everywhere |= dict.fromkeys(interface()["adapter"], "adapter")
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    if key in everywhere:
        return f"It belongs to the table `{everywhere[key]}`."
    return f"It reads {', '.join(sorted(known))}."


def _fits(value: object, takes: str) -> bool:
    return any(_fits_one(value, each) for each in takes.split(" | "))


def _fits_one(value: object, takes: str) -> bool:
    if takes.endswith("..."):
        return isinstance(value, list) and all(_fits_one(each, takes.removesuffix("...")) for each in value)
    if takes == "table":
        return isinstance(value, Mapping)
    if takes == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if takes == "int":
        return isinstance(value, int)
    if takes == "float":
        return isinstance(value, int | float)
    if takes.startswith("one of "):
        return value in takes.removeprefix("one of ").split(", ")
    return isinstance(value, str)


def _said(takes: str) -> str:
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "table": "a table"}

    def one(kind: str) -> str:
        if kind.endswith("..."):
            return f"a list of: {one(kind.removesuffix('...'))}"
        return words.get(kind, kind)

    return ", or ".join(one(kind) for kind in takes.split(" | "))
