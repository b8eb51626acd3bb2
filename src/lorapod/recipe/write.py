"""Writes a recipe as TOML, and compares recipes as far as they decide what is trained."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import tomlkit
from tomlkit.items import AoT, Item

from lorapod.recipe.schema import Recipe

_WITHOUT_EFFECT: dict[str, set[str]] = {
    "": {"name", "notes", "evaluation", "previews", "saving"},
    # The length is left out so that a run can be extended; what trades time for memory gives the same result.
    "training": {
        "steps",
        "epochs",
        "gradient_checkpointing",
        "swap_blocks",
        "memory_gb",
        "gpus",
        "shard_base",
        "attention",
    },
}
"""Keys by section ("" is the top) that do not change the weights that a step produces."""

_TRADES = {
    "activation_checkpointing", "blocks_to_swap", "caching_batch_size", "checkpoint_every_n_epochs",
    "checkpoint_every_n_minutes", "disable_block_swap_for_eval", "gradient_checkpointing_cpu_offload", "map_num_proc",
    "max_data_loader_n_workers", "num_workers", "persistent_data_loader_workers", "save_every_n_epochs",
    "save_every_n_steps", "steps_per_print",
}  # fmt: skip
"""Likewise of `trainer_options`: what trades memory for time, so that a run that lacked memory can go on with more."""


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML with every value written out; `load` reads an equal recipe from it."""
    document = tomlkit.document()
    for key, value in recipe.model_dump(mode="json", exclude_none=True).items():
        document.add(key, _item(value))
    return tomlkit.dumps(document)


def _item(value: Any) -> Item:
    if isinstance(value, dict):
        table = tomlkit.table()
        for key, inner in value.items():
            table.add(key, _item(inner))
        return table
    if isinstance(value, list) and value and isinstance(value[0], dict):
        tables = [_item(element) for element in value]
        return AoT(tables)  # type: ignore[arg-type]
    if isinstance(value, list):
        array = tomlkit.array()
        array.extend(value)
        array.multiline(any(isinstance(element, str) for element in value) and len(value) > 1)
        return array
    item: Item = tomlkit.item(value)
    return item


def digest(recipe: Recipe) -> str:
    """A short hash of everything that changes what is trained; equal for recipes without `differences`.

    Values at the schema's defaults do not count, so that a key that a later lorapod adds does not part a checkpoint
    from its recipe.
    """
    text = json.dumps(_decisive(recipe, exclude_defaults=True), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _without_trades(options: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _without_trades(v) if isinstance(v, dict) else v for key, v in options.items() if key not in _TRADES}
    return {key: value for key, value in kept.items() if value != {}}


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys that change what is trained and differ between two recipes; a dataset that one lacks as a whole."""
    left, right = _decisive(a), _decisive(b)
    pairs = {"": (left, right)}
    for section in left.keys() | right.keys():
        if isinstance(right.get(section), dict):
            left.setdefault(section, {})
        if isinstance(left.get(section), dict):
            pairs[section] = (left.pop(section), right.pop(section, {}))
    mine, theirs = left.pop("datasets"), right.pop("datasets")
    shared = min(len(mine), len(theirs))
    pairs |= {f"datasets.{index}": (mine[index], theirs[index]) for index in range(shared)}
    found = [f"datasets.{index}" for index in range(shared, max(len(mine), len(theirs)))]
    for section, (one, other) in pairs.items():
        keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        found += [f"{section}.{key}" if section else key for key in keys]
    return sorted(found)


def _decisive(recipe: Recipe, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The recipe as plain data, without what has no effect on the weights."""
    values = recipe.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for section, keys in _WITHOUT_EFFECT.items():
        table = values.get(section, {}) if section else values
        for key in keys:
            table.pop(key, None)
    chosen = values.pop("trainer_options", {}).get(recipe.trainer.value, {})
    values["trainer_options"] = _without_trades(chosen)
    # An alpha that is not given is the rank; said or not, it is the same training.
    values.setdefault("adapter", {})["alpha"] = recipe.alpha
    # A section at its defaults is left out: it must not matter whether only keys without effect are set in it.
    return {key: value for key, value in values.items() if value != {}}
