"""Entries of a person's own: a fine-tune of a known family, from the hub, Civitai, an address or this disk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from lorapod.errors import BaseModelError
from lorapod.files import write_text_whole
from lorapod.models.base_model import FAMILY_OF_PIPELINE
from lorapod.models.catalogue import FAMILIES, NAME_PATTERN, Entry, FileSpec, Layout, catalogue, entries, entries_folder
from lorapod.models.hub import PICKLES, Sources, civitai_version
from lorapod.models.weights import check_shapes
from lorapod.workspace import Workspace

_DIFFUSERS_FILES = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja")
_CIVITAI_FAMILIES = {
    "SDXL": "sdxl", "Pony": "sdxl", "Illustrious": "sdxl", "NoobAI": "sdxl", "Flux.1 D": "flux", "ZImage": "z_image",
    "Wan Video": "wan", "Qwen": "qwen_image",
}  # fmt: skip
"""What Civitai's `baseModel` starts with, to family; used to contradict a wrong --family, never to guess one."""


@dataclass(frozen=True)
class Source:
    """Where an added base model comes from: exactly one of `hub`, `civitai`, `url` and `local`.

    Attributes:
        hub: Repository, with `@revision` if it is not `main`.
        file: The file in the repository; without it, the whole repository in diffusers layout.
        local: A file, or a folder in diffusers layout.
    """

    hub: str | None = None
    file: str | None = None
    civitai: int | None = None
    url: str | None = None
    local: Path | None = None


def add(name: str, family: str, source: Source, workspace: Workspace, based_on: str | None = None) -> Entry:
    """Writes an entry, after looking at its source.

    Args:
        based_on: Entry that the new one is a fine-tune of: it gives all that a single file has not (text encoder, VAE).

    Raises:
        BaseModelError: The name is taken, the source does not exist, or it is not of the family.
        FetchError: The source cannot be reached.
    """
    _check_name(name, workspace)
    if family not in FAMILIES:
        raise BaseModelError(
            f"No family is called {family!r}", f"There are {', '.join(FAMILIES)}.", "Choose one of them."
        )
    base = _base(family, based_on, workspace)
    spec = _spec(source, family)
    entry = _entry(name, family, spec, base)
    _look_at(entry, spec, base)
    text = tomlkit.document()
    text.add(tomlkit.comment("Added with `lorapod models add`."))
    text.update(json.loads(entry.model_dump_json(exclude_defaults=True, exclude_none=True)))
    write_text_whole(entries_folder(workspace) / f"{name}.toml", tomlkit.dumps(text))
    return entry


def forget(name: str, workspace: Workspace) -> None:
    """Removes an entry of the person's own; packaged entries stay."""
    (entries_folder(workspace) / f"{name}.toml").unlink(missing_ok=True)


def _check_name(name: str, workspace: Workspace) -> None:
    if not re.match(NAME_PATTERN, name):
        raise BaseModelError(
            f"{name!r} cannot be the name of a base model",
            "Names are lower-case letters, digits, dots, dashes and underscores, and start with a letter or digit.",
            "Choose another name.",
        )
    if name in ("entries",) or name in entries(workspace):
        raise BaseModelError(
            f"There is a base model called {name} already",
            "Names are unique." if name in catalogue() else "It was added before.",
            f"Choose another name, or remove it with `lorapod models remove {name}`.",
        )


def _base(family: str, based_on: str | None, workspace: Workspace) -> Entry | None:
    if based_on is None:
        return None
    known = entries(workspace)
    base = known.get(based_on)
    if base is None or base.family != family:
        fitting = [e.name for e in known.values() if e.family == family]
        raise BaseModelError(
            f"{based_on} is not a base model of the family {family}",
            f"Of that family the catalogue has {', '.join(fitting)}.",
            "Give one of these as --base.",
        )
    return base


def _spec(source: Source, family: str) -> FileSpec:
    """The file, or the folder in diffusers layout, that a source means."""
    given = [g for g in (source.hub, source.civitai, source.url, source.local) if g is not None]
    if len(given) != 1:
        raise BaseModelError(
            "It is not clear where the base model comes from",
            f"{len(given) or 'No'} sources were given." if len(given) != 1 else "",
            "Give exactly one of --hub, --civitai, --url and --local.",
        )
    part = "checkpoint" if family == "sdxl" else "transformer"
    values: dict[str, Any] = {"layout": Layout.SINGLE_FILES, "part": part}
    if source.hub:
        repo, _, revision = source.hub.partition("@")
        values |= {"repo": repo, "revision": revision or "main"}
        if source.file:
            values["path"] = source.file
        else:
            values |= {"layout": Layout.DIFFUSERS, "part": "all", "include": _DIFFUSERS_FILES}
    elif source.civitai is not None:
        values["civitai"] = source.civitai
    elif source.url:
        values["url"] = source.url
    elif source.local is not None:
        values |= _local(source.local)
    try:
        return FileSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BaseModelError(
            "That is not where a base model can come from",
            f"{first['msg']} ({first['input']!r}).",
            "Check the spelling.",
        ) from error


def _local(path: Path) -> dict[str, Any]:
    place = path.expanduser().absolute()
    if place.is_dir():
        if not (place / "model_index.json").is_file():
            raise BaseModelError(
                f"{place} is not a base model in diffusers layout",
                "It has no model_index.json.",
                "Give the folder that holds model_index.json, or a single .safetensors file.",
            )
        return {"local": place, "layout": Layout.DIFFUSERS, "part": "all"}
    if not place.is_file():
        raise BaseModelError(f"There is nothing at {place}", "The path does not exist.", "Check the path.")
    if place.suffix.lower() in PICKLES or place.suffix.lower() != ".safetensors":
        raise BaseModelError(
            f"{place.name} is not a .safetensors file", "Pickles of a person's own are not opened.", "Convert it first."
        )
    return {"local": place}


def _entry(name: str, family: str, spec: FileSpec, base: Entry | None) -> Entry:
    """The new entry: its own file, and of the base what it has not."""
    files: tuple[FileSpec, ...] = (spec,)
    trainers: dict[str, Any] = {}
    if spec.layout is Layout.SINGLE_FILES and base is not None:
        like = next((f for f in base.files if (f.layout, f.part) == (spec.layout, spec.part)), None)
        if like is not None:
            files = (spec := spec.model_copy(update={"components": like.components}),)
        rest = tuple(f for f in base.files if _serves(f) and f.part != spec.part)
        files += rest
        for trainer, support in base.trainers.items():
            needed = base.files_for(trainer)
            if all(f in rest or (f.layout, f.part) == (spec.layout, spec.part) for f in needed):
                trainers[trainer] = support
    elif spec.layout is Layout.DIFFUSERS and family in FAMILY_OF_PIPELINE.values():
        trainers["builtin"] = {"needs": ("diffusers/*",)}
    keep = (
        "geometry", "text_tokens", "text_tokens_around", "lora_targets", "timesteps", "shapes", "parameters", "modality",
    )  # fmt: skip
    shared = {k: getattr(base, k) for k in keep} if base else {"modality": "clip" if family == "wan" else "picture"}
    return Entry(
        name=name,
        title=name,
        family=family,
        licence=base.licence if base else "unknown; read it at the source",
        commercial_use=base.commercial_use if base else None,
        gated=None,
        hub=spec.repo,
        based_on=base.name if base else None,
        files=files,
        trainers=trainers,
        own=True,
        **shared,
    )


def _serves(file: FileSpec) -> bool:
    """Whether a file of a base model serves for a fine-tune that has a denoiser of its own."""
    return file.layout is not Layout.DIFFUSERS or file.part == "config"


def _look_at(entry: Entry, spec: FileSpec, base: Entry | None) -> None:
    """Asks the source for the file, so that a wrong name is found now."""
    if spec.local is None:
        if spec.civitai is not None:
            _check_civitai_family(spec.civitai, entry.family)
        files = Sources(entry).files_of(spec)
        if spec.layout is Layout.DIFFUSERS and not any(f.target == "model_index.json" for f in files):
            raise BaseModelError(
                f"{spec.repo} is not in diffusers layout",
                "It has no model_index.json.",
                "Name one of its files with --file.",
            )
    elif spec.layout is Layout.DIFFUSERS:
        _check_pipeline(spec.local, entry.family)
    else:
        check_shapes(entry if base else entry.model_copy(update={"shapes": ()}), spec.layout, spec.part, [spec.local])


def _check_pipeline(folder: Path, family: str) -> None:
    from lorapod.models.base_model import family_of_folder

    found = family_of_folder(folder)
    if found != family:
        raise BaseModelError(
            f"The base model in {folder} is not of the family {family}",
            f"Its model_index.json says that it is of {found}." if found else "lorapod does not know its pipeline.",
            f"Use --family {found}." if found else "Use a base model of a family that lorapod knows.",
        )


def _check_civitai_family(version: int, family: str) -> None:
    said = str(civitai_version(version).get("baseModel") or "")
    known = next((f for start, f in _CIVITAI_FAMILIES.items() if said.startswith(start)), None)
    if known is not None and known != family:
        raise BaseModelError(
            f"Civitai version {version} is not of the family {family}",
            f"Civitai says that its base model is {said}.",
            f"Use --family {known}, or another version.",
        )
