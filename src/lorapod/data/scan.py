"""A folder of media, looked at: items that can be trained on, and problems with the rest.

Every file under the folder ends as an item, as what lies beside one (its caption, mask or control pictures), in a
problem, or in `Scan.others`. Other trainers' layouts are read as they are (`lorapod.data.layouts`). With a `MediaCache`
a folder that did not change is looked at without opening a file of it, metadata excepted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapod.data.facts import Fact, Failure, facts_about
from lorapod.data.facts import Progress as Progress
from lorapod.data.layouts import (
    Metadata,
    NumberedFolder,
    about_numbered,
    missing_from_metadata,
    numbered_folders,
    read_metadata,
)
from lorapod.data.media_cache import FileId, MediaCache
from lorapod.data.names import natural_key, shown
from lorapod.data.sidecars import Paired, all_files, match_captions, shape_differs, take_mask_labels
from lorapod.data.walk import PHOTOGRAPHS, UNUSED_SUB_FOLDER, Folder, Kind, Problem, Severity, walk
from lorapod.errors import DatasetError

Facts = dict[str, dict[Path, Fact | Failure]]
"""By kind and path, as from `facts_about`."""

_NO_READER = "Pictures of this format cannot be read"


@dataclass(frozen=True)
class ControlPicture:
    """A picture that an editing model is given beside an item.

    Attributes:
        width, height: In pixels, oriented as it is looked at.
        sha256: Of the file's bytes, as hex.
    """

    path: Path
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Item:
    """One picture or clip of a dataset with its caption, and its mask and control pictures if any.

    Attributes:
        path: Absolute.
        width, height: In pixels, oriented as it is looked at.
        caption: As written for it, on one line, or None.
        caption_path: The file that the caption stands in, which is a folder's metadata for some.
        sha256: Of the file's bytes, as hex.
        frames: 1 for a picture.
        seconds, fps: Of a clip, 0 for a picture; `fps` is the mean.
        mask_path: A picture whose white is learnt; the item's own path where its alpha channel is the mask.
        controls: Pictures that an editing model is given, in order.
        repeats: How often the dataset's layout says that it is seen, as kohya's folder names do.
        caption_lines: The caption as it stands in its file, a line each; none where there is no caption.
    """

    path: Path
    width: int
    height: int
    caption: str | None
    caption_path: Path | None
    size_bytes: int
    sha256: str
    frames: int = 1
    seconds: float = 0.0
    fps: float = 0.0
    mask_path: Path | None = None
    controls: tuple[ControlPicture, ...] = ()
    repeats: int = 1
    caption_lines: tuple[str, ...] = ()

    @property
    def is_clip(self) -> bool:
        return self.seconds > 0

    @property
    def control_paths(self) -> tuple[Path, ...]:
        return tuple(control.path for control in self.controls)


@dataclass(frozen=True)
class Scan:
    """What a folder holds, each list in natural order of paths.

    Attributes:
        others: Files that are neither media nor captions, such as notes and metadata.
    """

    folder: Path
    items: list[Item]
    problems: list[Problem]
    others: list[Path]


def scan(
    folder: Path,
    recursive: bool = False,
    progress: Progress | None = None,
    *,
    cache: MediaCache | None = None,
    masks: Path | None = None,
    alpha_masks: bool = False,
    control: Path | None = None,
    caption_per_line: bool = False,
) -> Scan:
    """Looks at every file of a folder; media are decoded or read through, so that damage shows now.

    Args:
        cache: What is known from the last time, and where to keep what is found out now.
        masks: Folder of masks, paired with items by name.
        alpha_masks: Take the alpha channel for the mask of a picture that has one and no other mask.
        control: Folder of control pictures, which every item must have then.
        caption_per_line: The lines of a caption file are captions of their own, so nothing is said of joining them.

    Raises:
        DatasetError: The folder is missing, is a file, cannot be read, or holds nothing to train on at all.
    """
    root = _absolute(folder)
    apart = [_absolute(each) for each in (masks, control) if each]
    numbered = numbered_folders(root)
    folders, problems = list_folders(root, recursive, numbered, apart)
    problems += [about_numbered(path, numbered[path]) for path in sorted(numbered, key=natural_key)]
    found = _Listing(root, recursive, numbered, folders, problems, caption_per_line)
    found.pair(_absolute(masks) if masks else None, _absolute(control) if control else None)
    known = facts_about(
        {
            "caption": list({file.path: file for file in found.captions.values()}.values()),
            "picture": [*found.pictures, *found.beside],
            "clip": found.clips,
        },
        cache,
        progress,
    )
    items = [
        item for item in (found.item(file, known, alpha_masks, control is not None) for file in found.media) if item
    ]
    if not items and not any(problem.severity is Severity.ERROR for problem in problems):
        raise _empty(root, problems)
    problems += _twins(items)
    problems.sort(key=lambda problem: natural_key(problem.path))
    others = sorted((path for path in found.others if path not in found.metadata_files), key=natural_key)
    return Scan(folder=root, items=items, problems=problems, others=others)


class _Unusable(Exception):
    """Why a media file is no item; caught where its item would have been made."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class _Listing:
    """The files of a dataset by their roles, before any is opened; and from them the items."""

    def __init__(
        self,
        root: Path,
        recursive: bool,
        numbered: dict[Path, NumberedFolder],
        folders: list[Folder],
        problems: list[Problem],
        caption_per_line: bool,
    ) -> None:
        self.root, self.numbered, self.problems = root, numbered, problems
        self.caption_per_line = caption_per_line
        self.others = [path for each in folders for path in each.paths(Kind.OTHER)]
        self.captions: dict[Path, FileId] = {}
        self.labels: dict[Path, FileId] = {}
        self.metadata: list[Metadata] = []
        self.masks: dict[Path, tuple[FileId, ...]] = {}
        self.controls: dict[Path, tuple[FileId, ...]] = {}
        self._class_words_used: set[Path] = set()
        for each in folders:
            for roles, (found, about) in (
                (self.labels, take_mask_labels(each)),
                (self.captions, match_captions(each)),
            ):
                roles |= found
                problems += about
            self.metadata.append(read_metadata(each))
            problems += self.metadata[-1].problems
            problems += _unreadable(each, self.captions)
        self.pictures = [file for each in folders for file in each.files[Kind.PICTURE]]
        self.clips = [file for each in folders for file in each.files[Kind.CLIP]]
        self.media = [*self.pictures, *self.clips]
        if self.clips or len(folders) > 1:
            self.media.sort(key=lambda file: natural_key(file.path))
        self.written = {path: (text, m.file) for m in self.metadata for path, text in m.captions.items()}
        self.metadata_files = {m.file for m in self.metadata if m.file}
        paths = {file.path for file in self.media} if self.written else set()
        for metadata in self.metadata:
            problems += missing_from_metadata(metadata, paths, recursive)

    @property
    def beside(self) -> list[FileId]:
        """Masks and control pictures."""
        return all_files([*self.masks.values(), *self.controls.values()])

    def pair(self, masks: Path | None, control: Path | None) -> None:
        """Finds masks and control pictures of the items."""
        media = [file.path for file in self.media]
        self.masks = {path: (label,) for path, label in self.labels.items()}
        if masks:
            paired = Paired(masks, self.root, media, "mask", counted=False)
            self.masks |= paired.of
            self._take(paired)
        if control:
            paired = Paired(control, self.root, media, "control picture", counted=True)
            self.controls = paired.of
            self._take(paired)

    def _take(self, paired: Paired) -> None:
        self.problems += paired.problems
        self.others += paired.others

    def item(self, file: FileId, known: Facts, alpha_masks: bool, wants_control: bool) -> Item | None:
        """The item of a media file; None where it cannot be used, which is then among the problems."""
        path = file.path
        fact = known["picture"].get(path) or known["clip"][path]
        try:
            if isinstance(fact, Failure):
                raise _Unusable(*fact)
            if "seconds" not in fact and fact["frames"] > 1:
                what = f"Only the first of its {fact['frames']} frames is used"
                self._warn(path, what, "Export the frames that you want as single pictures.")
            caption_path, lines = self._caption(path, known["caption"])
            mask = self._beside(path, fact, self.masks.get(path, ()), known["picture"], "mask")
            controls = self._beside(path, fact, self.controls.get(path, ()), known["picture"], "control picture")
            if wants_control and not controls:
                raise _Unusable("It has no control picture", "Put one of its name into the folder of control pictures.")
        except _Unusable as error:
            self.problems.append(Problem(Severity.ERROR, path, error.what, error.remedy))
            return None
        if not mask and alpha_masks and fact.get("has_alpha"):
            mask = (path,)
        if not mask and self.masks:
            what = "It has no mask, so all of it is learnt"
            self.problems.append(Problem(Severity.INFO, path, what, "Add a mask of its name if that is not meant."))
        return Item(
            path=path,
            width=fact["width"],
            height=fact["height"],
            caption=None if lines is None else " ".join(lines),
            caption_path=caption_path,
            size_bytes=file.size,
            sha256=fact["sha256"],
            frames=fact["frames"] if "seconds" in fact else 1,
            seconds=fact.get("seconds", 0.0),
            fps=fact.get("fps", 0.0),
            mask_path=mask[0] if mask else None,
            controls=tuple(
                ControlPicture(each, about["width"], about["height"], about["sha256"])
                for each in controls
                if not isinstance(about := known["picture"][each], Failure)  # `_beside` refused those
            ),
            repeats=self._repeats(path),
            caption_lines=lines or (),
        )

    def _warn(self, path: Path, what: str, remedy: str) -> None:
        self.problems.append(Problem(Severity.WARNING, path, what, remedy))

    def _caption(self, path: Path, known: dict[Path, Fact | Failure]) -> tuple[Path | None, tuple[str, ...] | None]:
        """Lines of the caption and the file they stand in: of its own file, else of metadata, else the class words of its
        folder."""
        file = self.captions.get(path)
        written, metadata = self.written.get(path, (None, None))
        if file is None:
            text = written if metadata else self._class_words(path)
            return metadata, None if text is None else (text,)
        fact = known[file.path]
        if isinstance(fact, Failure):
            raise _Unusable(*fact)
        lines = tuple(fact["lines"])
        text = " ".join(lines)
        if len(lines) == 1 and not metadata:
            return file.path, lines
        name = shown(file.path.name)
        if not text:
            self._warn(path, f"Its caption file {name} is empty", "Write what is to be seen, or remove the file.")
        if len(lines) > 1 and not self.caption_per_line:
            what = f"The {len(lines)} lines of its caption file {name} are joined to one caption"
            remedy = "Set `caption_per_line = true` in the recipe if they were meant as alternatives."
            self.problems.append(Problem(Severity.INFO, path, what, remedy))
        if metadata and written != text:
            what = f"Its caption file {name} counts, not what {metadata.name} says of it"
            self._warn(path, what, "Remove the one that is not meant.")
        elif metadata:
            what = f"Its caption file {name} counts; {metadata.name} says the same of it"
            self.problems.append(Problem(Severity.INFO, path, what, "Keep one of the two, so that they cannot part."))
        return file.path, lines

    def _class_words(self, path: Path) -> str | None:
        folder = self._numbered_folder(path)
        if folder is None:
            return None
        words = self.numbered[folder].words
        if folder not in self._class_words_used:
            self._class_words_used.add(folder)
            what = f"Its items without a caption file are captioned `{shown(words)}`, as kohya's trainers do"
            self.problems.append(Problem(Severity.INFO, folder, what, "Write caption files if that is not meant."))
        return words

    def _beside(
        self, path: Path, fact: Fact, files: Sequence[FileId], known: dict[Path, Fact | Failure], what: str
    ) -> tuple[Path, ...]:
        """Paths of masks or control pictures, once they were looked at."""
        for file in files:
            other, name = known[file.path], shown(file.path.name)
            if isinstance(other, Failure):
                raise _Unusable(f"Its {what} {name} cannot be used: {other.what}", other.remedy)
            sides = fact["width"], fact["height"], other["width"], other["height"]
            if shape_differs(*sides):
                text = f"Its {what} {name} has another shape: {sides[2]}x{sides[3]} to its own {sides[0]}x{sides[1]}"
                if what == "mask":
                    raise _Unusable(text, "Crop one of the two, so that they cover each other.")
                self._warn(path, text, "Crop it to the item's shape, or what sticks out is cut off.")
        return tuple(file.path for file in files)

    def _repeats(self, path: Path) -> int:
        folder = self._numbered_folder(path)
        return self.numbered[folder].repeats if folder else 1

    def _numbered_folder(self, path: Path) -> Path | None:
        if not self.numbered:
            return None
        return next((parent for parent in path.parents if parent in self.numbered), None)


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - links in the path are the person's own names


def list_folders(
    root: Path, recursive: bool, also: dict[Path, Any], leave_out: list[Path]
) -> tuple[list[Folder], list[Problem]]:
    """As `walk`, with DatasetError where the dataset's own folder cannot be listed."""
    name = shown(root)
    try:
        return walk(root, recursive, also=also, leave_out=leave_out)
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no dataset folder {name}", "Nothing is at that path.", "Check how it is spelled."
        ) from error
    except NotADirectoryError as error:
        raise DatasetError(
            f"{name} is a file",
            "A dataset is a folder of pictures and clips.",
            f"Give the folder: {shown(root.parent)}",
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The dataset folder {name} cannot be read", f"{error.strerror}.", "Check that you may read it."
        ) from error


def _unreadable(folder: Folder, captions: dict[Path, FileId]) -> list[Problem]:
    """Formats that cannot be read. A photograph, and a file with a caption beside it, were surely meant to be trained on."""
    remedy = "Export it as PNG, JPEG or WebP to use it."
    return [
        Problem(
            Severity.WARNING if path in captions or path.suffix.lower() in PHOTOGRAPHS else Severity.INFO,
            path,
            _NO_READER,
            remedy,
        )
        for path in folder.paths(Kind.UNREADABLE)
    ]


def _twins(items: list[Item]) -> list[Problem]:
    first: dict[str, Path] = {}
    problems = []
    for item in items:
        other = first.setdefault(item.sha256, item.path)
        if other != item.path:
            what = f"It is the same file as {shown(other.name)}, which is therefore seen more often"
            problems.append(Problem(Severity.WARNING, item.path, what, "Remove one, or use `repeats` if it's meant."))
    return problems


def _empty(root: Path, problems: list[Problem]) -> DatasetError:
    media = [problem for problem in problems if problem.what == _NO_READER]
    folders = [problem for problem in problems if problem.what == UNUSED_SUB_FOLDER]
    if folders:
        names = ", ".join(shown(problem.path.name) for problem in folders[:5])
        why, remedy = f"Pictures are only in its sub-folders: {names}.", folders[0].remedy
    elif media:
        why, remedy = f"It holds {shown(media[0].path.name)}, for example. {media[0].what}.", media[0].remedy
    else:
        why = "No file in it is a picture or a clip."
        remedy = "Put pictures (PNG, JPEG or WebP) or clips (MP4, for example) into it, or give another folder."
    return DatasetError(f"The dataset {shown(root)} holds nothing to train on", why, remedy)
