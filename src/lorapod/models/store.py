"""Where fetched files are: each once, by what is in it, and folders of links that look as trainers expect them.

    models/.store/sha256/ab/ab12...     a file, named by its SHA-256 (`git/...`: by git's hash, for the hub's small files)
    models/.store/parts/                files on their way (`lorapod.models.parts`)
    models/.store/locks/                who fetches what
    models/.store/records/NAME.json     what belongs to a base model: where each file came from, and its hash
    models/entries/NAME.toml            entries of the person's own
    models/NAME/LAYOUT/...              links into the store

The links are relative symbolic links, as in the hub client's own cache: they go with the workspace when it is moved or
mounted elsewhere, are shown for what they are, are copied as such by tar and rsync, and exist on network volumes whose
file systems have no hard links (s3fs, gcsfuse). Where there are none (Windows without developer mode), hard links are used.
Nothing is ever copied. A file that two base models share, as a text encoder, is one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorapod.errors import BaseModelError, DiskError
from lorapod.files import disk_error, write_text_whole
from lorapod.models.parts import read_state
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class FileRecord:
    """A file of a base model on disk.

    Attributes:
        target: Its place in the folder of its layout.
        key: What the store calls it; empty for a file of the person's own, which `local` names.
        asked: The key at the source, where that differs (a pickle that was converted, a file of unknown hash).
        sha256: Hash of its bytes.
        modified: Nanoseconds, as when its hash was last found right.
    """

    layout: str
    part: str
    target: str
    size: int
    key: str
    origin: str
    asked: str = ""
    sha256: str = ""
    modified: int = 0
    local: str = ""


@dataclass
class Record:
    """What lorapod put on this disk for a base model."""

    model: str
    pins: dict[str, str] = field(default_factory=dict)
    files: list[FileRecord] = field(default_factory=list)

    def put(self, record: FileRecord) -> None:
        """Adds a file, in place of the one that has its target."""
        self.files = [f for f in self.files if (f.layout, f.target) != (record.layout, record.target)]
        self.files.append(record)


class Store:
    """The store of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.models = workspace.models
        self.root = workspace.models / ".store"

    def path(self, key: str) -> Path:
        """Where the file of a key is, or would be."""
        kind, _, name = key.partition(":")
        if kind not in ("sha256", "git") or not name.isalnum():
            raise ValueError(f"not a key: {key}")
        return self.root / kind / name[:2] / name

    def part(self, name: str) -> Path:
        """Where a file on its way is, without a suffix; `name` is a hash."""
        return self.root / "parts" / name

    def lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    def folder(self, model: str, layout: str) -> Path:
        return self.models / model / layout

    def place(self, record: FileRecord) -> Path:
        """The bytes of a recorded file."""
        return Path(record.local) if record.local else self.path(record.key)

    def alias(self, key: str) -> str | None:
        """The key of what a file was converted to, or turned out to be, when it was fetched before."""
        path = self._alias(key)
        try:
            found = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return found if self.path(found).is_file() else None

    def set_alias(self, key: str, found: str) -> None:
        write_text_whole(self._alias(key), found + "\n")

    def _alias(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()  # an address may hold anything
        return self.root / "aliases" / name

    def record(self, model: str) -> Record:
        """What is recorded of a base model; an empty record if nothing is.

        Raises:
            BaseModelError: The record is damaged.
        """
        path = self.root / "records" / f"{model}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return Record(stored["model"], stored["pins"], [FileRecord(**f) for f in stored["files"]])
        except FileNotFoundError:
            return Record(model)
        except (ValueError, KeyError, TypeError) as error:
            raise BaseModelError(
                f"Cannot read {path}",
                f"It is not what lorapod wrote ({error}).",
                f"Delete it and run `lorapod models pull {model}`; no file is fetched twice.",
            ) from error

    def save(self, record: Record) -> None:
        """Writes a record; without files it is removed."""
        path = self.root / "records" / f"{record.model}.json"
        if not record.files:
            path.unlink(missing_ok=True)
            return
        content = {"model": record.model, "pins": record.pins, "files": [asdict(f) for f in record.files]}
        write_text_whole(path, json.dumps(content, indent=1) + "\n")

    def records(self) -> list[Record]:
        """All records, by name."""
        return [self.record(path.stem) for path in sorted((self.root / "records").glob("*.json"))]

    def link(self, record: FileRecord, model: str) -> Path:
        """Makes the place of a file in its layout's folder lead to it.

        Raises:
            DiskError: The file system has neither symbolic nor hard links, or something of the person's own is there.
        """
        place = self.folder(model, record.layout) / record.target
        source = self.place(record)
        try:
            if place.is_symlink() or (place.is_file() and place.samefile(source)):
                place.unlink()
            elif place.exists():
                raise DiskError(
                    f"{place} is there already and is not lorapod's",
                    "lorapod puts a link there and does not overwrite what it did not make.",
                    "Move it away, then run the same command again.",
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(source if record.local else Path(os.path.relpath(source, place.parent)), place)
        except OSError as error:
            raise disk_error(error, place) from error
        return place

    def unlink(self, record: FileRecord, model: str) -> None:
        """Removes a file's place in its layout's folder, and folders that are empty then."""
        place = self.folder(model, record.layout) / record.target
        if place.is_symlink() or (
            place.is_file() and self.place(record).is_file() and place.samefile(self.place(record))
        ):
            place.unlink()
        stop = self.models
        for folder in place.parents:
            if folder == stop or not folder.is_relative_to(stop):
                break
            try:
                folder.rmdir()
            except OSError:
                break  # not empty, or never made

    def objects(self) -> Iterator[tuple[str, Path]]:
        """Keys and paths of all stored files."""
        for kind in ("sha256", "git"):
            for path in sorted((self.root / kind).glob("??/*")):
                yield f"{kind}:{path.name}", path

    def unfinished(self) -> list[tuple[str, int]]:
        """Names and bytes on disk of files on their way."""
        found = []
        for path in sorted((self.root / "parts").glob("*.part")):
            state = read_state(path.with_suffix(".state"))
            used = path.stat().st_blocks * 512
            found.append((str(state["identity"]) if state else path.name, used))
        return found

    def free(self) -> int:
        """Bytes free where the store is."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


def _link(source: Path, place: Path) -> None:
    try:
        place.symlink_to(source)
    except (NotImplementedError, PermissionError, OSError) as error:
        whole = source if source.is_absolute() else place.parent / source
        try:
            os.link(whole.resolve(), place)
        except OSError as second:
            if isinstance(error, OSError) and error.errno == second.errno:
                raise
            raise DiskError(
                f"Cannot make a link at {place}",
                f"The file system has neither symbolic links ({error}) nor hard links ({second.strerror}).",
                "Put the workspace on another disk; copies would take the space of each model twice.",
            ) from second
