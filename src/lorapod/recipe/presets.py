"""Presets: named defaults for a recipe, in `presets/*.toml`.

A preset is a partial recipe. Four keys are its own: `extends` names a preset whose values it starts from, `[dataset]`
holds defaults for every table of `[[datasets]]`, `control` says of a base model that edits whether each item needs control
pictures or may have some, and `pipelines` marks a family's preset and lists the diffusers
pipelines that are of the family, so that a base model given as a folder gets defaults too.

A preset gives no key that may be absent from a recipe (`adapter.alpha`, paths), `training.steps` excepted: a resolved
recipe that leaves such a key out would otherwise get it back when it is read again.

Those of a goal (character, style) are `lorapod.recipe.goals`. Not covered yet: presets of a memory class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit

from lorapod.recipe.overrides import ALTERNATIVES
from lorapod.workspace import Workspace


@cache
def _stored() -> dict[str, dict[str, Any]]:
    folder = resources.files("lorapod.recipe") / "presets"
    files = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name: tomlkit.parse(files[name].read_text("utf-8")).unwrap() for name in sorted(files)}


def names() -> list[str]:
    """Base models that have a preset, sorted."""
    return [name for name, preset in _stored().items() if "pipelines" not in preset]


def families() -> list[str]:
    """Families that have a preset, sorted."""
    return [name for name, preset in _stored().items() if "pipelines" in preset]


def values(name: str) -> dict[str, Any]:
    """The partial recipe of a preset, with what it extends; `dataset` in it is for every dataset.

    Raises:
        KeyError: There is no such preset.
    """
    preset = dict(_stored()[name])
    base = preset.pop("extends", None)
    for own in ("pipelines", "control"):
        preset.pop(own, None)
    return merge(values(base), preset) if base else merge({}, preset)


def preset_for(base_model: str, workspace: Workspace | None = None) -> dict[str, Any]:
    """The partial recipe for a base model.

    Its own preset; for one that was added to `workspace`, that of what it is a fine-tune of, else its family's; for a
    diffusers folder, its family's; {} for anything else.
    """
    name = _name_for(base_model, workspace)
    return values(name) if name else {}


def control_for(base_model: str, workspace: Workspace | None = None) -> str | None:
    """Whether a base model's items need control pictures (`needed`) or may have some (`taken`); None if it does not edit."""
    name = _name_for(base_model, workspace)
    return control_of(name) if name else None


def control_of(name: str) -> str | None:
    """Likewise of a preset, a base model's or a family's."""
    preset = _stored().get(name, {})
    own: str | None = preset.get("control")
    return own or (control_of(preset["extends"]) if "extends" in preset else None)


def _name_for(base_model: str, workspace: Workspace | None) -> str | None:
    if base_model in names():
        return base_model
    added = _added(base_model, workspace)
    seen = {base_model}
    while (base := added.get("based_on")) in _stored() or (isinstance(base, str) and base not in seen):
        if base in _stored():
            return str(base)
        seen.add(base)
        added = added | {"based_on": None} | _added(base, workspace)
    if added.get("family") in families():
        return str(added["family"])
    pipeline = _pipeline_of(Path(base_model))
    return next((name for name in families() if pipeline in _stored()[name]["pipelines"]), None)


def is_added(name: str, workspace: Workspace | None) -> bool:
    """Whether a base model of that name was added to the workspace."""
    return bool(_added(name, workspace))


def _added(name: str, workspace: Workspace | None) -> dict[str, Any]:
    """What `lorapod models add` wrote of a base model; {} if it wrote nothing that can be read, which
    `lorapod.models` says when the model is looked for."""
    if workspace is None or "/" in name or "\0" in name:
        return {}
    try:
        return tomlkit.parse((workspace.models / "entries" / f"{name}.toml").read_text("utf-8")).unwrap()
    except (OSError, ValueError):
        return {}


def _pipeline_of(folder: Path) -> str | None:
    """The pipeline class that a folder in diffusers layout names; None for anything else."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError):
        return None
    name = index.get("_class_name") if isinstance(index, dict) else None
    return name if isinstance(name, str) else None


def fill(raw: Mapping[str, Any], workspace: Workspace | None = None) -> dict[str, Any]:
    """`raw`, plain data of a recipe, on top of the preset for its base model. Wrong types pass through untouched."""
    section = raw.get("base_model")
    name = section.get("name") if isinstance(section, dict) else None
    preset = preset_for(name, workspace) if isinstance(name, str) else {}
    for_each_dataset = preset.pop("dataset", {})
    for one, other in ALTERNATIVES:
        for mine, rival in ((one, other), (other, one)):
            written = raw.get(str(mine[0]))
            if isinstance(written, dict) and mine[1] in written:
                preset.get(str(rival[0]), {}).pop(rival[1], None)
    filled = merge(preset, raw)
    if isinstance(filled.get("datasets"), list):
        filled["datasets"] = [
            merge(for_each_dataset, dataset) if isinstance(dataset, dict) else dataset for dataset in filled["datasets"]
        ]
    return filled


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` on top of `lower`: tables are merged key by key, everything else is replaced. Neither is changed."""
    merged = {key: merge({}, value) if isinstance(value, dict) else value for key, value in lower.items()}
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged
