"""A base model on disk, in diffusers layout: found, checked for completeness, fingerprinted.

Nothing is loaded here; weights are only looked at through their safetensors headers. `find_files` gives the files that a
trainer needs as they were pulled; `find_base_model` a base model for the built-in engine, which reads diffusers folders.
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
from lorapod.models.catalogue import Entry, Layout, entries
from lorapod.models.store import Store
from lorapod.recipe.schema import BaseModelSection
from lorapod.workspace import Workspace

FAMILY_OF_PIPELINE = {
    "FluxPipeline": "flux",
    "QwenImagePipeline": "qwen_image",
    "StableDiffusionXLPipeline": "sdxl",
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
    "ZImagePipeline": "z_image",
}
"""Class of the diffusers pipeline (`model_index.json`) to family."""

_WEIGHTLESS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
}
"""Components without weights, and the file that each must have."""

_SAMPLED_BYTES = 1 << 16
_SAMPLES = 64


@dataclass(frozen=True)
class BaseModel:
    """A complete base model on disk.

    Attributes:
        name: Name of the catalogue, or of the folder.
        family: Architecture, as in `z_image`.
        folder: Folder in diffusers layout.
        expert: `high` or `low` where the name is that of one expert of a base model with two.
    """

    name: str
    family: str
    folder: Path
    expert: str = ""

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
    known = entries(workspace)
    entry = known.get(name)
    if entry is None and "/" not in name and not Path(name).is_dir():
        raise unknown(name, known)
    if entry is not None and entry.family not in FAMILY_OF_PIPELINE.values():
        raise _cannot_train(f"{entry.title} cannot be trained by the built-in engine yet", entry.family)
    whole, expert = _whole_of(entry, known) if entry else (None, "")
    folder = _folder_of(whole, workspace) if whole else Path(name).expanduser()
    if not folder.is_dir():
        raise _not_there(name, whole, folder)
    return BaseModel(name if entry else folder.name, _check(folder, whole), folder, expert)


def find_training_adapter(section: BaseModelSection, workspace: Workspace) -> Path | None:
    """The LoRA to merge before training, or None where the recipe asks for none.

    Raises:
        BaseModelError: The one of the catalogue is asked for, and there is none or it was not pulled.
    """
    if isinstance(section.training_adapter, Path):
        return section.training_adapter
    if section.training_adapter == "none":
        return None
    name = section.name
    entry, store = entries(workspace).get(name), Store(workspace)
    if entry is None or not entry.matching(f"{Layout.SINGLE_FILES}/training_adapter"):
        raise BaseModelError(
            f"The catalogue has no training adapter for {name}",
            'The recipe says `base_model.training_adapter = "catalogue"`.',
            'Give the path of a LoRA file, or "none".',
        )
    for file in store.record(name).files:
        place = store.folder(name, file.layout) / file.target
        if file.part == "training_adapter" and place.is_file():
            return place
    raise BaseModelError(
        f"The training adapter of {name} is not on this machine",
        "Without it training wears the distillation of the base model away.",
        f"Fetch it with: lorapod models pull {name}",
    )


def find_files(name: str, workspace: Workspace, trainer: str) -> dict[str, list[Path]]:
    """The files of a base model that a trainer needs, as `layout/part` to their places in the layouts' folders.

    Raises:
        BaseModelError: Unknown name, the trainer cannot train it, or a file was not pulled.
    """
    known = entries(workspace)
    if name not in known:
        raise unknown(name, known)
    entry, store = known[name], Store(workspace)
    needed = {(spec.layout.value, spec.part) for spec in entry.files_for(trainer)}
    found: dict[str, list[Path]] = {f"{layout}/{part}": [] for layout, part in sorted(needed)}
    for file in store.record(name).files:
        if (file.layout, file.part) in needed and store.place(file).is_file():
            found[f"{file.layout}/{file.part}"].append(store.folder(name, file.layout) / file.target)
    missing = [need for need, paths in found.items() if not paths]
    if missing:
        raise BaseModelError(
            f"The base model {name} is not on this machine as {trainer} needs it",
            f"Missing: {', '.join(missing)}.",
            f"Fetch it with: lorapod models pull {name} --for {trainer}",
        )
    return found


def unknown(name: str, known: dict[str, Entry]) -> BaseModelError:
    """The error for a name that no entry has, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1)
    return BaseModelError(
        f"No base model is called {name!r}",
        f"The catalogue holds {', '.join(known)}." + (f" Did you mean {near[0]}?" if near else ""),
        "Name one of these, give the path of a folder in diffusers layout, or add it with `lorapod models add`.",
    )


def _whole_of(entry: Entry, known: dict[str, Entry]) -> tuple[Entry, str]:
    """The base model whose diffusers folder an entry's weights are in, and which expert of it the entry is.

    One expert alone is published as single files; in diffusers layout both are in one folder.
    """
    if any(spec.layout is Layout.DIFFUSERS for spec in entry.files):
        return entry, ""
    name, _, expert = entry.name.rpartition("-")
    return (known[name], expert) if expert in ("high", "low") and name in known else (entry, "")


def _folder_of(entry: Entry, workspace: Workspace) -> Path:
    if entry.packaged:
        return Path(str(resources.files("lorapod") / entry.packaged))
    by_hand = workspace.models / entry.name
    if (by_hand / "model_index.json").is_file():
        return by_hand
    return Store(workspace).folder(entry.name, Layout.DIFFUSERS)


def _not_there(name: str, entry: Entry | None, folder: Path) -> BaseModelError:
    if entry:
        return BaseModelError(
            f"The base model {name} is not on this machine",
            f"It is looked for in {folder}.",
            f"Fetch it with: lorapod models pull {entry.name}",
        )
    return BaseModelError(
        f"There is no base model at {folder}", "The folder does not exist.", "Check `base_model.name`."
    )


def _cannot_train(what: str, family: str) -> BaseModelError:
    can = ", ".join(sorted(set(FAMILY_OF_PIPELINE.values())))
    return BaseModelError(what, f"It is of the family {family}.", f"Use a base model of one of these families: {can}.")


def _check(folder: Path, entry: Entry | None) -> str:
    """Family of the complete model in `folder`, which is of `entry` if that is given."""
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
        raise BaseModelError(
            f"The base model in {folder} cannot be trained by the built-in engine",
            f"Its pipeline class is {pipeline}, which lorapod does not know.",
            f"Use a base model of one of these families: {', '.join(sorted(set(FAMILY_OF_PIPELINE.values())))}.",
        )
    if entry is not None and family != entry.family:
        raise BaseModelError(
            f"The base model in {folder} is of the family {family}, not {entry.family}",
            f"{entry.name} is an entry of {entry.family}.",
            "Remove the entry and add it again with the right --family.",
        )
    missing = [part for part, spec in _components(index) for part in _missing(folder, part, spec)]
    if missing:
        raise BaseModelError(
            f"The base model in {folder} is not complete",
            "Missing or damaged: " + ", ".join(missing) + ".",
            f"Run `lorapod models pull {entry.name}`; what is whole is kept."
            if entry and not entry.packaged
            else "Fetch it again; files that are already whole are kept by the download tools.",
        )
    return family


def family_of_folder(folder: Path) -> str | None:
    """Family of a folder in diffusers layout, whether or not it can be trained; None if it is not known.

    Raises:
        BaseModelError: model_index.json is not there or cannot be read.
    """
    return FAMILY_OF_PIPELINE.get(str(_read_json(folder / "model_index.json").get("_class_name")))


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
        name = _WEIGHTLESS[part]
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
