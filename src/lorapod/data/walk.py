"""Which files a folder holds, by kind, and which folders were not looked into.

Every path under the folder comes back: as a file of a `Folder`, or in a problem. Links are followed once.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lorapod.data.captions import CAPTION_EXTENSIONS
from lorapod.data.names import natural_key
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

_NOT_LOOKED_INTO = frozenset({"__MACOSX", "@eaDir"})
"""Copies and thumbnails that macOS archives and Synology disks put beside pictures."""

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
        severity: `error`: the item at `path` cannot be used; `warning`: it is used, but look at it; `info`: not used,
            and that is probably meant.
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
    files: dict[Kind, list[Path]] = field(default_factory=lambda: {kind: [] for kind in Kind})


def walk(root: Path, recursive: bool) -> tuple[list[Folder], list[Problem]]:
    """The folders under `root` (it alone unless `recursive`) and problems with what could not be looked at.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    folders: list[Folder] = []
    problems: list[Problem] = []
    seen: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            status = path.stat()
            entries = sorted(path.iterdir(), key=natural_key)
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
        folder = Folder(path)
        folders.append(folder)
        below = [entry for entry in entries if _sort_in(entry, folder, problems)]
        wanted = [entry for entry in below if recursive and not _hidden(entry)]
        problems += [_passed_by(entry) for entry in below if entry not in wanted]
        pending += reversed(wanted)
    return folders, problems


def kind_of(path: Path) -> Kind:
    """The kind that a file's extension says."""
    extension = path.suffix.lower()
    if extension in CAPTION_EXTENSIONS:
        return Kind.CAPTION
    if extension in CLIP_EXTENSIONS:
        return Kind.CLIP
    if extension in picture_extensions():
        return Kind.PICTURE
    return Kind.UNREADABLE if extension in UNREADABLE_EXTENSIONS else Kind.OTHER


def _sort_in(entry: Path, folder: Folder, problems: list[Problem]) -> bool:
    """Puts a file where it belongs; True for a folder."""
    kind = kind_of(entry)
    matters = Severity.INFO if kind is Kind.OTHER else Severity.ERROR
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        why = "The link leads nowhere" if entry.is_symlink() else f"It cannot be looked at: {error.strerror}"
        problems.append(Problem(matters, entry, why, "Mend or remove it."))
        return False
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        problems.append(Problem(matters, entry, "It is a device, pipe or socket, no file", "Remove it."))
    elif _is_apple_double(entry):
        folder.files[Kind.OTHER].append(entry)
    else:
        folder.files[kind].append(entry)
    return False


def _hidden(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _NOT_LOOKED_INTO


def _passed_by(folder: Path) -> Problem:
    if _hidden(folder):
        what = "Hidden folders are not looked into"
        return Problem(Severity.INFO, folder, what, "Rename it if it belongs to the dataset.")
    if _holds_pictures(folder):
        return Problem(Severity.WARNING, folder, UNUSED_SUB_FOLDER, "Set `recursive = true` to use them.")
    return Problem(Severity.INFO, folder, "This sub-folder was not looked into", "")


def _holds_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(kind_of(Path(entry.name)) in (Kind.PICTURE, Kind.CLIP) for entry in entries)
    except OSError:
        return False  # It wasn't asked for, and is named as not looked into all the same.


def _is_apple_double(path: Path) -> bool:
    """Whether it is one of the `._name` files in which macOS keeps what other disks have no place for."""
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE
    except OSError:
        return False  # Whoever opens it next says what is wrong with it.
