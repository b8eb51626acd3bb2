"""A base model on disk, in diffusers layout: found, checked for completeness, fingerprinted.

Nothing is loaded here; weights are only looked at through their safetensors headers. Single files as ComfyUI ships them
and fetching are not covered yet.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lorapod.errors import BaseModelError
from lorapod.files import is_whole_safetensors
from lorapod.models.catalogue import Entry, catalogue
from lorapod.workspace import Workspace

FAMILY_OF_PIPELINE = {"ZImagePipeline": "z_image"}
"""Class of the diffusers pipeline (`model_index.json`) to family."""

_OTHER_PIPELINES = {
    "FluxPipeline": "flux",
    "StableDiffusionXLPipeline": "sdxl",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
    "QwenImagePipeline": "qwen_image",
}
_WEIGHTLESS = {"tokenizer", "tokenizer_2", "scheduler"}
_SAMPLED_BYTES = 1 << 16
_SAMPLES = 64


@dataclass(frozen=True)
class BaseModel:
    """A complete base model on disk.

    Attributes:
        name: Name of the catalogue, or of the folder.
        family: Architecture, as in `z_image`.
        folder: Folder in diffusers layout.
    """

    name: str
    family: str
    folder: Path

    def fingerprint(self, component: str) -> str:
        """SHA-256 of a component, as hex: its small files, and names, sizes and 64 spread samples of its weight files.

        It tells models apart in well under a second even where the files are tens of gigabytes; it is no proof against
        somebody who wants two models to look alike.
        """
        digest = hashlib.sha256()
        for path in sorted((self.folder / component).glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for i in range(_SAMPLES):
                    file.seek(max(0, (size - _SAMPLED_BYTES) * i // (_SAMPLES - 1)))
                    digest.update(file.read(_SAMPLED_BYTES))
        for path in sorted((self.folder / component).glob("*")):
            if path.suffix in (".json", ".jinja", ".txt", ".model"):
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def find_base_model(name: str, workspace: Workspace) -> BaseModel:
    """The base model of that catalogue name, or at that path, checked for completeness.

    Raises:
        BaseModelError: Unknown name, not on disk, a file is missing or damaged, or the family cannot be trained.
    """
    entry = catalogue().get(name)
    if entry is None and "/" not in name and not Path(name).is_dir():
        near = difflib.get_close_matches(name, catalogue(), n=1)
        raise BaseModelError(
            f"No base model is called {name!r}",
            f"The catalogue holds {', '.join(catalogue())}." + (f" Did you mean {near[0]}?" if near else ""),
            "Name one of these, or give the path of a folder in diffusers layout.",
        )
    folder = _folder_of(entry, workspace) if entry else Path(name).expanduser()
    if not folder.is_dir():
        raise _not_there(name, entry, folder)
    return BaseModel(name if entry else folder.name, _check(folder), folder)


def _folder_of(entry: Entry, workspace: Workspace) -> Path:
    if entry.packaged:
        return Path(str(resources.files("lorapod") / entry.packaged))
    return workspace.models / entry.name


def _not_there(name: str, entry: Entry | None, folder: Path) -> BaseModelError:
    if entry and entry.hub:
        return BaseModelError(
            f"The base model {name} is not on this machine",
            f"It is looked for in {folder}.",
            f"Fetch it with: hf download {entry.hub} --local-dir {folder}",
        )
    return BaseModelError(
        f"There is no base model at {folder}", "The folder does not exist.", "Check `base_model.name`."
    )


def _check(folder: Path) -> str:
    """Family of the complete model in `folder`."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise BaseModelError(
            f"{folder} is not a base model in diffusers layout",
            "It has no model_index.json.",
            "Give the folder that holds model_index.json, transformer/, vae/, text_encoder/ and tokenizer/.",
        )
    index = _read_json(index_file)
    pipeline = index.get("_class_name")
    family = FAMILY_OF_PIPELINE.get(str(pipeline))
    if family is None:
        known = _OTHER_PIPELINES.get(str(pipeline))
        raise BaseModelError(
            f"The base model in {folder} cannot be trained by the built-in engine",
            f"It is of the family {known}."
            if known
            else f"Its pipeline class is {pipeline}, which lorapod does not know.",
            f"Use a base model of one of these families: {', '.join(sorted(set(FAMILY_OF_PIPELINE.values())))}.",
        )
    missing = [part for part, spec in _components(index) for part in _missing(folder, part, spec)]
    if missing:
        raise BaseModelError(
            f"The base model in {folder} is not complete",
            "Missing or damaged: " + ", ".join(missing) + ".",
            "Fetch it again; files that are already whole are kept by the download tools.",
        )
    return family


def _components(index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part, spec in index.items():
        if not part.startswith("_") and isinstance(spec, list) and len(spec) == 2 and spec[1]:
            yield part, str(spec[1])


def _missing(folder: Path, part: str, class_name: str) -> Iterator[str]:
    place = folder / part
    if not place.is_dir():
        yield f"{part}/"
        return
    if part in _WEIGHTLESS:
        name = "scheduler_config.json" if part == "scheduler" else "tokenizer_config.json"
        if not (place / name).is_file():
            yield f"{part}/{name}"
        words = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
        if part.startswith("tokenizer") and not any((place / name).is_file() for name in words):
            yield f"{part}/tokenizer.json"
        return
    config_file = place / "config.json"
    if not config_file.is_file():
        yield f"{part}/config.json"
    else:
        config = _read_json(config_file)
        found = config.get("_class_name") or (config.get("architectures") or [class_name])[0]
        if part == "transformer" and found != class_name:
            raise BaseModelError(
                f"The base model in {folder} is of another family than it says",
                f"model_index.json names {class_name}, but transformer/config.json is a {found}.",
                "Fetch the model again, or fix the folder that was put there by hand.",
            )
    indexes = sorted(place.glob("*.safetensors.index.json"))
    wanted = {name for i in indexes for name in _read_json(i).get("weight_map", {}).values()}
    files = {p.name for p in place.glob("*.safetensors")}
    if not wanted and not files:
        yield f"{part}/*.safetensors"
    yield from (f"{part}/{name}" for name in sorted(wanted - files))
    for name in sorted(files):
        if not is_whole_safetensors(place / name):
            yield f"{part}/{name} (cut off)"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"Cannot read {path}", str(error), "Fetch the base model again.") from error
    return value if isinstance(value, dict) else {}
