"""Which files a folder holds, by kind, and which folders were not looked into.

Every path under the folder but lorapod's own comes back: as a file of a `Folder`, or in a problem. Links are followed
once. Files are told apart by name and by what the folder's listing says of them; but for the leavings of macOS none is
opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path

from lorapod.data.captions import CAPTION_EXTENSIONS
from lorapod.data.media_cache import FileId
from lorapod.data.names import name_key, shown
from lorapod.data.pictures import picture_extensions

CLIP_EXTENSIONS = frozenset({
    ".3gp", ".avi", ".flv", ".gifv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".webm", ".wmv",
})  # fmt: skip
UNREADABLE_EXTENSIONS = frozenset({
    ".ai", ".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heics", ".heif", ".hif",
    ".jxl", ".jxr", ".kra", ".nef", ".orf", ".pdf", ".ps", ".psb", ".raf", ".raw", ".rw2", ".srw", ".svg",
    ".svgz", ".wmf", ".xcf",
})  # fmt: skip
"""Pictures and drawings that Pillow does not read by itself."""

PHOTOGRAPHS = frozenset({
    ".arw", ".cr2", ".cr3", ".dng", ".heic", ".heics", ".heif", ".hif", ".nef", ".orf", ".raf", ".raw", ".rw2", ".srw",
})  # fmt: skip
"""Those of them that phones and cameras write, which are hardly ever there for another purpose."""

_NOT_LOOKED_INTO = frozenset({"__MACOSX", "@eaDir"})
"""Copies and thumbnails that macOS archives and Synology disks put beside pictures."""

OWN_FOLDER = ".lorapod"
"""Where lorapod keeps what it knows about a folder's captions: no part of the dataset, and not worth a word."""

MASK_FOLDERS = frozenset({"mask", "masks"})
"""Sub-folders in which other trainers' users keep masks, lower case."""

CONTROL_FOLDER = "control"
"""Sub-folder in which exports, and most people, put control pictures, lower case."""

UNUSED_SUB_FOLDER = "This sub-folder holds pictures that are not used"

_APPLE_DOUBLE = b"\x00\x05\x16\x07"


class Severity(StrEnum):
    """How much a problem matters. Ordered by `Problem.rank`, worst first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Problem:
    """Something about a dataset that the person should know.

    Attributes:
        severity: `error`: the item at `path` cannot be used; `warning`: look at it; `info`: good to know, and probably
            meant.
        path: The file or folder.
        what: One sentence without a full stop.
        remedy: What to do.
    """

    severity: Severity
    path: Path
    what: str
    remedy: str

    @property
    def rank(self) -> int:
        """0 for the worst severity."""
        return list(Severity).index(self.severity)


class Kind(StrEnum):
    PICTURE = "picture"
    CLIP = "clip"
    UNREADABLE = "unreadable"
    CAPTION = "caption"
    OTHER = "other"


@dataclass
class Folder:
    """The files of one folder, in natural order."""

    path: Path
    files: dict[Kind, list[FileId]] = field(default_factory=lambda: {kind: [] for kind in Kind})

    def paths(self, *kinds: Kind) -> list[Path]:
        """Of the files of these kinds."""
        return [file.path for kind in kinds for file in self.files[kind]]


def walk(
    root: Path, recursive: bool, *, also: Collection[Path] = (), leave_out: Collection[Path] = ()
) -> tuple[list[Folder], list[Problem]]:
    """The folders under `root` (it alone unless `recursive`) and problems with what could not be looked at.

    Args:
        also: Sub-folders that are looked into in any case.
        leave_out: Folders that belong to the dataset but hold no items, such as masks.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    folders: list[Folder] = []
    problems: list[Problem] = []
    seen: set[tuple[int, int]] = set()
    apart = {identity for identity in map(_folder_identity, leave_out) if identity}
    pending = [root]
    while pending:
        path = pending.pop()
        folder = Folder(path)
        try:
            status = path.stat()
            below = [] if (status.st_dev, status.st_ino) in seen else _sort_in(folder, problems)
        except OSError as error:
            if path == root:
                raise
            what = f"The folder cannot be looked into: {error.strerror}"
            problems.append(Problem(Severity.ERROR, path, what, "Check that you may read it."))
            continue
        if (status.st_dev, status.st_ino) in seen:
            what = "This link leads to a folder that was looked into already"
            problems.append(Problem(Severity.WARNING, path, what, "Remove the link if its pictures are missing."))
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.append(folder)
        below = [each for each in below if not apart or _folder_identity(each) not in apart]
        wanted = [each for each in below if each in also or (recursive and not is_hidden(each))]
        problems += [_mask_folder(each, used=True) for each in wanted if each.name.lower() in MASK_FOLDERS]
        problems += [_passed_by(each) for each in below if each not in wanted]
        pending += reversed(wanted)
    return folders, problems


def kind_of(name: str) -> Kind:
    """The kind that a file's extension says."""
    return _kinds().get(os.path.splitext(name)[1].lower(), Kind.OTHER)  # noqa: PTH122 - a name, a hundred thousand times


@cache
def _kinds() -> dict[str, Kind]:
    """Kind by extension; of two that claim one, the later."""
    return {
        **dict.fromkeys(UNREADABLE_EXTENSIONS, Kind.UNREADABLE),
        **dict.fromkeys(picture_extensions(), Kind.PICTURE),
        **dict.fromkeys(CLIP_EXTENSIONS, Kind.CLIP),
        **dict.fromkeys(CAPTION_EXTENSIONS, Kind.CAPTION),
    }


def _sort_in(folder: Folder, problems: list[Problem]) -> list[Path]:
    """Puts the files of a folder where they belong, and gives its sub-folders, both in natural order."""
    with os.scandir(folder.path) as listing:
        entries = sorted(listing, key=lambda entry: name_key(entry.name))
    below: list[Path] = []
    for entry in entries:
        name = entry.name
        kind = kind_of(name)
        matters = Severity.INFO if kind is Kind.OTHER else Severity.ERROR
        path = Path(entry.path)
        try:
            status = entry.stat()
        except OSError as error:
            why = "The link leads nowhere" if entry.is_symlink() else f"It cannot be looked at: {error.strerror}"
            problems.append(Problem(matters, path, why, "Mend or remove it."))
            continue
        if stat.S_ISDIR(status.st_mode):
            if name != OWN_FOLDER:
                below.append(path)
        elif not stat.S_ISREG(status.st_mode):
            problems.append(Problem(matters, path, "It is a device, pipe or socket, no file", "Remove it."))
        else:
            kind = Kind.OTHER if _is_apple_double(path, name) else kind
            folder.files[kind].append(FileId(path, status.st_size, status.st_mtime_ns, status.st_ino))
    return below


def _folder_identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None  # Whoever needs the folder says what is wrong with it.
    return status.st_dev, status.st_ino


def is_hidden(folder: Path) -> bool:
    """Whether a sub-folder is left alone even where sub-folders are asked for."""
    return folder.name.startswith(".") or folder.name in _NOT_LOOKED_INTO


def _passed_by(folder: Path) -> Problem:
    if is_hidden(folder):
        what = "Hidden folders are not looked into"
        return Problem(Severity.INFO, folder, what, "Rename it if it belongs to the dataset.")
    if _holds_pictures(folder):
        if folder.name.lower() in MASK_FOLDERS:
            return _mask_folder(folder, used=False)
        use = "Set `recursive = true` to use them."
        if folder.name.lower() == CONTROL_FOLDER:
            use = "If they are what the others were edited from, for a base model that edits, set `control` to it."
        return Problem(Severity.WARNING, folder, UNUSED_SUB_FOLDER, use)
    return Problem(Severity.INFO, folder, "This sub-folder was not looked into", "")


def _mask_folder(folder: Path, *, used: bool) -> Problem:
    name = f"masks = '{shown(folder)}'"
    if used:
        what = "Its pictures are trained on like others, though it is named like a folder of masks"
        return Problem(Severity.WARNING, folder, what, f"Set `{name}` in the dataset if they are masks.")
    what = "It is named like a folder of masks, which are not used unless the recipe says so"
    return Problem(Severity.WARNING, folder, what, f"Set `{name}` in the dataset to use them.")


def _holds_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(kind_of(entry.name) in (Kind.PICTURE, Kind.CLIP) for entry in entries)
    except OSError:
        return False  # It wasn't asked for, and is named as not looked into all the same.


def _is_apple_double(path: Path, name: str) -> bool:
    """Whether it is one of the `._name` files in which macOS keeps what other disks have no place for."""
    if not name.startswith("._"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE
    except OSError:
        return False  # Whoever opens it next says what is wrong with it.
