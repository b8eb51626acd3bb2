"""A base model on disk: found, checked for completeness, fingerprinted.

`find_base_model` finds one for the built-in engine, which wants the configuration, tokenizer and scheduler of a diffusers
folder, and the weights of each component either beside them or in a single file as ComfyUI ships it. `find_files` gives
the files that another trainer needs, as they were pulled. Nothing is loaded here; weights are only looked at through
their safetensors headers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from lorapod.errors import BaseModelError
from lorapod.files import is_whole_safetensors
from lorapod.models.catalogue import Entry, Layout, entries
from lorapod.models.families import family_facts
from lorapod.models.store import Store
from lorapod.models.weights import check_shapes
from lorapod.recipe.schema import BaseModelSection
from lorapod.workspace import Workspace

FAMILY_OF_PIPELINE = {pipeline: name for name, facts in family_facts().items() for pipeline in facts.pipelines}
"""Class of the diffusers pipeline (`model_index.json`) to family."""

_WEIGHTLESS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
    "processor": "tokenizer_config.json",
}
"""Components without weights, and the file that each must have."""

NOT_COMPONENTS = frozenset({"training_adapter"})
"""Parts of single files that are not loaded as components of a base model."""

_INDEX = ".safetensors.index.json"
_SAMPLED_BYTES = 1 << 16
_SAMPLES = 64


@dataclass(frozen=True)
class BaseModel:
    """A complete base model on disk.

    Attributes:
        name: Name of the catalogue, or of the folder.
        family: Architecture, as in `z_image`.
        folder: Folder in diffusers layout, with weights for what `single_files` does not name.
        expert: `high` or `low` where the name is that of one expert of a base model with two.
        single_files: Component to the file that its weights are in.
    """

    name: str
    family: str
    folder: Path
    expert: str = ""
    single_files: Mapping[str, Path] = field(default_factory=dict, hash=False)

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """Its `model_index.json`; empty where there is none."""
        file = self.folder / "model_index.json"
        return _read_json(file) if file.is_file() else {}

    @property
    def pipeline(self) -> str:
        """Class of its diffusers pipeline; empty where none is named."""
        return str(self.index.get("_class_name", ""))

    def weights(self, component: str) -> list[Path]:
        """The files that hold a component's weights; empty for one without."""
        if component in self.single_files:
            return [self.single_files[component]]
        return weight_files(self.folder / component)

    def fingerprint(self, component: str) -> str:
        """SHA-256 of a component, as hex: its small files, and sizes and 64 spread samples of its weight files.

        It tells models apart in well under a second even where the files are tens of gigabytes; it is no proof against
        somebody who wants two models to look alike. Where the files are, and what weights are called, does not count.
        """
        digest = hashlib.sha256()
        for path in self.weights(component):
            size = path.stat().st_size
            digest.update(f"{size}\n".encode())
            with path.open("rb") as file:
                for i in range(_SAMPLES):
                    file.seek(max(0, (size - _SAMPLED_BYTES) * i // (_SAMPLES - 1)))
                    digest.update(file.read(_SAMPLED_BYTES))
        for path in sorted((self.folder / component).glob("*")):
            if path.suffix in (".json", ".jinja", ".txt", ".model") and not path.name.endswith(_INDEX):
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weights of a component's folder, as diffusers and transformers choose them: what the index lists, else the one
    file of the usual name, else all there are."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}{_INDEX}"
        if index.is_file():
            return [folder / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
        if (plain := folder / f"{stem}.safetensors").is_file():
            return [plain]
    return sorted(folder.glob("*.safetensors"))


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
    if entry is None:
        place = Path(name).expanduser()
        if not place.is_dir():
            raise _not_there(name, None, place)
        return BaseModel(place.name, _check(place, None, {}), place)
    if entry.own:
        entry.files_for("builtin")  # a single file without a base has nothing to train it with
    whole, expert = _whole_of(entry, known)
    folder = _folder_of(whole, known, workspace)
    if not folder.is_dir():
        raise _not_there(name, whole, folder)
    single_files = _single_files_of(whole, folder, known, workspace)
    return BaseModel(name, _check(folder, whole, single_files), folder, expert, single_files)


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
    if place := _single_file(entry, "training_adapter", entries(workspace), store):
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
        (f"Did you mean {near[0]}? " if near else "") + f"The catalogue holds {', '.join(known)}.",
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


def _lineage(entry: Entry, known: dict[str, Entry]) -> list[Entry]:
    """An entry and what it is a fine-tune of, nearest first: the files of those serve for what is not its own."""
    found = [entry]
    while (base := known.get(found[-1].based_on or "")) and base not in found:
        found.append(base)
    return found


def _folder_of(entry: Entry, known: dict[str, Entry], workspace: Workspace) -> Path:
    """The folder in diffusers layout, of weights too or of configuration alone; where it would be if there is none."""
    if entry.packaged:
        return Path(str(resources.files("lorapod") / entry.packaged))
    store = Store(workspace)
    places = [
        place
        for each in _lineage(entry, known)
        for place in (workspace.models / each.name, store.folder(each.name, Layout.DIFFUSERS))
    ]
    return next((place for place in places if (place / "model_index.json").is_file()), places[1])


def _single_files_of(entry: Entry, folder: Path, known: dict[str, Entry], workspace: Workspace) -> dict[str, Path]:
    """The components whose weights are in single files, of those that the built-in engine takes from such.

    A file that is not there is left out where the folder has the weights, as one put there by hand has.

    Raises:
        BaseModelError: A single file is not one of this base model.
    """
    support, store = entry.trainers.get("builtin"), Store(workspace)
    if support is None or folder == workspace.models / entry.name:
        return {}
    found: dict[str, Path] = {}
    for spec in (spec for need in support.needs for spec in entry.matching(need)):
        part, components = spec.part, spec.components or (spec.part,)
        if spec.layout is not Layout.SINGLE_FILES or part in NOT_COMPONENTS:
            continue
        place = _single_file(entry, part, known, store)
        if place is None and spec.local is not None:
            raise BaseModelError(
                f"The {part.replace('_', ' ')} of {entry.name} is not there any more",
                f"It was added from {spec.local}.",
                "Put it back, or add the base model again.",
            )
        if place is None and not all(weight_files(folder / component) for component in components):
            raise _incomplete(folder, entry, [f"the single file of the {part.replace('_', ' ')}"])
        if place is not None:
            if is_whole_safetensors(place):
                check_shapes(entry, Layout.SINGLE_FILES, part, [place])
            found |= dict.fromkeys(components, place)
    return found


def _single_file(entry: Entry, part: str, known: dict[str, Entry], store: Store) -> Path | None:
    """Where a single file of an entry is: the person's own, else one that was pulled for it or for what it is based on."""
    spec = entry.matching(f"{Layout.SINGLE_FILES}/{part}")[0]
    if spec.local is not None:
        return spec.local if spec.local.is_file() else None
    for each in _lineage(entry, known):
        if spec not in each.files:
            continue
        for file in store.record(each.name).files:
            place = store.folder(each.name, file.layout) / file.target
            if (file.layout, file.part) == (spec.layout, part) and place.is_file():
                return place
    return None


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


def _check(folder: Path, entry: Entry | None, single_files: Mapping[str, Path]) -> str:
    """Family of the complete model in `folder` and `single_files`, which is of `entry` if that is given."""
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
    missing = [p for part, spec in _components(index) for p in _missing(folder, part, spec, single_files.get(part))]
    if missing:
        raise _incomplete(folder, entry, missing)
    return family


def _incomplete(folder: Path, entry: Entry | None, missing: list[str]) -> BaseModelError:
    return BaseModelError(
        f"The base model in {folder} is not complete",
        "Missing or damaged: " + ", ".join(missing) + ".",
        f"Run `lorapod models pull {entry.name}`; what is whole is kept."
        if entry and not entry.packaged
        else "Fetch it again; files that are already whole are kept by the download tools.",
    )


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


def _missing(folder: Path, part: str, class_name: str, single_file: Path | None) -> Iterator[str]:
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
    if single_file is not None:
        if not is_whole_safetensors(single_file):
            yield f"{single_file} (cut off)"
        return
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
