"""The catalogue of base models: what is known of each before a byte of it is on disk.

One TOML file an entry, in the folder `entries` beside this module; entries of a person's own are the same files in
`models/entries` of the workspace, written by `lorapod models add`. Facts that could not be checked are left out, or
stand in `unverified`. What a recipe gets by default from a base model is not here but in `lorapod.recipe.presets`.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lorapod.errors import BaseModelError
from lorapod.models.families import family_facts
from lorapod.recipe import presets
from lorapod.workspace import Workspace

FAMILIES: dict[str, str] = {name: facts.title for name, facts in family_facts().items()}
"""Family to what a person calls it."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Layout(StrEnum):
    """How the files of a base model are cut up."""

    DIFFUSERS = "diffusers"
    """A folder with model_index.json and one folder a component."""
    SINGLE_FILES = "single-files"
    """One file a component, in the folders that ComfyUI reads them from."""
    ORIGINAL = "original"
    """The folder that the makers of the model published."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSpec(_Table):
    """One file, or several of one repository, of one layout. Exactly one of `repo`, `civitai`, `url` and `local`."""

    layout: Layout
    part: str = Field(description="Component: transformer, transformer_high, vae, text_encoder, ... or `all`.")
    components: tuple[str, ...] = Field(
        (),
        description="What a single file has the weights of, in diffusers' names, where that is not what `part` says.",
    )
    repo: str | None = Field(None, description="Hub repository, owner/name.", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field("main", description="Branch, tag or commit; the commit is pinned when it is pulled.")
    path: str | None = Field(None, description="The file in the repository.")
    include: tuple[str, ...] = Field((), description="Patterns of files in the repository, in place of `path`.")
    exclude: tuple[str, ...] = ()
    civitai: int | None = Field(None, description="Civitai model version.")
    url: str | None = None
    local: Path | None = Field(None, description="A file or folder of the person's own; used where it is.")
    to: str | None = Field(None, description="Where in the layout's folder the file goes.")
    gigabytes: float | None = Field(None, gt=0, description="Rounded; the exact size is asked of the source.")
    size: int | None = Field(None, ge=0, description="Bytes, where they are known for certain.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    dtype: str | None = None
    pickle: Literal["convert", "keep"] = Field(
        "convert",
        description="What becomes of a .pt, .pth or .bin: `convert` to safetensors, or `keep` where a trainer reads nothing "
        "else (it is then opened with weights-only loading once, to see that nothing else is in it).",
    )
    unverified: str | None = Field(None, description="What could not be checked.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.repo, self.civitai, self.url, self.local)) != 1:
            raise ValueError("exactly one of repo, civitai, url and local")
        if (self.repo is not None) != bool(self.path or self.include):
            raise ValueError("a repo needs path or include, and nothing else has them")
        if self.path and self.include:
            raise ValueError("path or include, not both")
        return self

    @field_validator("to", "path")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        return value if value is None else inside(value)

    @field_validator("url")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise ValueError("a URL starts with https://")
        return value

    @property
    def source(self) -> str:
        """Where it comes from, for a person."""
        if self.repo:
            return self.repo
        if self.civitai is not None:
            return f"Civitai version {self.civitai}"
        return self.url.split("?")[0] if self.url else str(self.local)


class ControlCount(_Table):
    """How many control pictures a trainer takes of each item."""

    least: int = Field(0, ge=0, description="1: it trains with control pictures alone.")
    most: int | None = Field(None, ge=1)


class TrainerSupport(_Table):
    """What a trainer needs of a base model."""

    needs: tuple[str, ...] = Field(min_length=1, description="`layout/part`, or `layout/*` for all parts of a layout.")
    options: dict[str, Any] = Field({}, description="What the trainer must be told for this base model.")
    control: ControlCount | None = Field(
        None, description="Of an external trainer: the control pictures that it takes; None: it takes none."
    )
    note: str = ""


class Geometry(_Table):
    """What sizes a base model takes."""

    divisor: int = Field(gt=0, description="Sides are multiples of this many pixels.")
    frame_step: int | None = Field(None, description="Clips have a multiple of this many frames, plus one.")
    fps: float | None = Field(None, gt=0)


class Memory(_Table):
    """Memory that training a LoRA was reported to need: a quotation, not a measurement of ours."""

    gigabytes: float = Field(gt=0)
    conditions: str
    source: str


class Shapes(_Table):
    """Tensors that tell this base model from its relatives, looked for in the headers of fetched files."""

    layout: Layout
    part: str
    tensors: dict[str, tuple[int, ...]]
    absent: tuple[str, ...] = ()


class Entry(_Table):
    """A base model of the catalogue."""

    name: str = Field(pattern=NAME_PATTERN)
    title: str
    family: str
    modality: Literal["picture", "clip"]
    parameters: int | None = Field(None, description="Weights of the denoiser; of one expert where there are two.")
    licence: str
    commercial_use: bool | None = Field(None, description="None: not known, or under conditions; read the licence.")
    gated: bool | None = Field(None, description="Whether access has to be asked for; None: not known.")
    hub: str | None = Field(None, description="Repository of the model card, where access is asked for.")
    packaged: str | None = None
    based_on: str | None = Field(None, description="The entry that an entry of one's own is a fine-tune of.")
    note: str = ""
    files: tuple[FileSpec, ...] = ()
    trainers: dict[str, TrainerSupport] = {}
    geometry: Geometry | None = None
    text_tokens: int | None = Field(None, description="Tokens that its text encoder reads at most.")
    text_tokens_around: int = Field(0, description="Those of them that the family puts around a caption.")
    lora_targets: tuple[str, ...] = ()
    timesteps: tuple[float, float] | None = Field(None, description="Range of s of an expert; s = 1 is pure noise.")
    memory: tuple[Memory, ...] = ()
    shapes: tuple[Shapes, ...] = ()
    own: bool = Field(False, description="Added by the person.", exclude=True)

    @field_validator("family")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FAMILIES:
            raise ValueError(f"one of {', '.join(FAMILIES)}")
        return value

    @model_validator(mode="after")
    def _needs_exist(self) -> Self:
        for trainer, support in self.trainers.items():
            for need in support.needs:
                if not self.matching(need):
                    raise ValueError(f"{trainer} needs {need}, which no file gives")
        return self

    def matching(self, need: str) -> tuple[FileSpec, ...]:
        """The files that `layout/part` or `layout/*` means."""
        layout, _, part = need.partition("/")
        return tuple(f for f in self.files if f.layout == layout and part in ("*", f.part))

    def files_for(self, trainer: str | None) -> tuple[FileSpec, ...]:
        """The files that a trainer needs, each once; every file of the entry for None.

        Raises:
            BaseModelError: The trainer cannot train this base model.
        """
        if trainer is None:
            return self.files
        if trainer not in self.trainers:
            can = ", ".join(self.trainers or (["builtin"] if self.packaged else []))
            raise BaseModelError(
                f"{trainer} cannot train {self.name}",
                f"These can: {can}." if can else "No trainer that lorapod knows can.",
                "Name one of them (as `trainer` in a recipe, with --for where files are fetched), or another base model."
                if can
                else "Choose another base model.",
            )
        wanted = [spec for need in self.trainers[trainer].needs for spec in self.matching(need)]
        return tuple(dict.fromkeys(wanted))

    @property
    def control(self) -> str | None:
        """Whether each item needs control pictures (`needed`) or may have some (`taken`); None if it does not edit."""
        known = (presets.control_of(name) for name in (self.name, self.based_on, self.family) if name)
        return next(filter(None, known), None)

    @property
    def page(self) -> str | None:
        """Web page of the model, where access is asked for."""
        if self.hub is None:
            return None
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.hub}"


def inside(path: str) -> str:
    """`path` if it stays inside the folder that it is joined to.

    Raises:
        ValueError: It is absolute, goes up, or holds characters that no file of a model has.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or any(ord(c) < 32 for c in path):
        raise ValueError(f"{path!r} does not stay inside its folder")
    return path


@cache
def catalogue() -> dict[str, Entry]:
    """The packaged entries by name."""
    folder = resources.files("lorapod.models") / "entries"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    entries = [Entry.model_validate(tomllib.loads(f.read_text(encoding="utf-8"))) for f in files]
    return {entry.name: entry for entry in entries}


def entries(workspace: Workspace) -> dict[str, Entry]:
    """The packaged entries and those of the workspace, by name.

    Raises:
        BaseModelError: An entry of the workspace cannot be read or is not valid.
    """
    found = dict(catalogue())
    for path in sorted(entries_folder(workspace).glob("*.toml")):
        entry = _read(path)
        if entry.name in catalogue():
            raise BaseModelError(
                f"{path} has a name of the catalogue", f"{entry.name} is packaged with lorapod.", "Rename or delete it."
            )
        found[entry.name] = entry
    return found


def entries_folder(workspace: Workspace) -> Path:
    """Where entries of the person's own are."""
    return workspace.models / "entries"


def _read(path: Path) -> Entry:
    try:
        return Entry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")) | {"own": True})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BaseModelError(f"Cannot read {path}", str(error), "Mend or delete the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BaseModelError(f"{path} is not a base model", f"{where}: {first['msg']}", "Mend or delete it.") from error
