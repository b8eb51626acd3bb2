"""What lies beside an item and is paired with it by name: its caption file, its mask, its control pictures.

Masks and control pictures stay where they are: in a folder of their own with the items' names, sub-folders included.
A `cat-masklabel.png` beside `cat.jpg`, as OneTrainer writes it, is the mask of that picture and no item. Not covered:
masks that are clips; one picture masks all frames of a clip.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lorapod.data.buckets import Placement, place
from lorapod.data.captions import CAPTION_EXTENSIONS
from lorapod.data.media_cache import FileId
from lorapod.data.names import shown
from lorapod.data.walk import Folder, Kind, Problem, Severity, walk

MASK_LABEL = "-masklabel"

_COUNTED = re.compile(r"(.+)_([0-9]{1,3})", re.DOTALL)
"""`cat_0`, `cat_1`: the control pictures of `cat`."""


def match_captions(folder: Folder) -> tuple[dict[Path, FileId], list[Problem]]:
    """Caption file of each media file of a folder, and what is doubtful about them.

    A caption has its picture's name but for the extension. Where no name fits exactly, one that differs in upper and
    lower case alone is taken if it is the only one, as after a way through Windows.
    """
    media = [(_stem(path), path) for path in folder.paths(Kind.PICTURE, Kind.CLIP, Kind.UNREADABLE)]
    exact: dict[str, list[FileId]] = {}
    for file in sorted(folder.files[Kind.CAPTION], key=lambda file: _rank(file.path)):
        exact.setdefault(_stem(file.path), []).append(file)
    loose: dict[str, list[FileId]] = {}
    for stem in exact.keys() - {stem for stem, _ in media}:
        loose.setdefault(stem.casefold(), []).extend(exact[stem])

    problems: list[Problem] = []
    found: dict[Path, FileId] = {}
    users: dict[Path, list[Path]] = {}
    for stem, path in media:
        candidates = exact.get(stem, [])
        if not candidates and loose and len(loose.get(stem.casefold(), [])) == 1:
            candidates = loose[stem.casefold()]
        if candidates:
            found[path] = candidates[0]
            users.setdefault(candidates[0].path, []).append(path)
        for extra in candidates[1:]:
            what = f"It is not used, because {shown(candidates[0].path.name)} is the caption of {shown(path.name)}"
            problems.append(Problem(Severity.WARNING, extra.path, what, "Keep one of the two."))
    for caption, paths in users.items():
        if len(paths) > 1:
            what = "It is the caption of several files: " + ", ".join(shown(path.name) for path in paths)
            problems.append(
                Problem(Severity.WARNING, caption, what, "Give the files different names if it's not meant.")
            )
    spoken_for = set(users) | {problem.path for problem in problems}
    problems += [_orphan(path) for path in folder.paths(Kind.CAPTION) if path not in spoken_for]
    return found, problems


def _stem(path: Path) -> str:
    """`path.stem` of a file that has an extension, in a third of the time, which tells among a hundred thousand."""
    return path.name.rpartition(".")[0]


def _rank(path: Path) -> int:
    return CAPTION_EXTENSIONS.index("." + path.name.rpartition(".")[2].lower())


def _orphan(path: Path) -> Problem:
    what = "There is no picture or clip of this caption's name"
    if path.stem.casefold() == "trigger":
        what += ", and a trigger word is not read from files"
        return Problem(Severity.WARNING, path, what, "Write it into the recipe, as `trigger_word`.")
    remedy = "Name it as its picture, but for the extension, or move it out of the dataset."
    return Problem(Severity.WARNING, path, what, remedy)


def take_mask_labels(folder: Folder) -> tuple[dict[Path, FileId], list[Problem]]:
    """Masks that lie beside their pictures by OneTrainer's names; they are taken out of the folder's pictures."""
    pictures = folder.files[Kind.PICTURE]
    labels = [file for file in pictures if MASK_LABEL in file.path.name and file.path.stem.endswith(MASK_LABEL)]
    if not labels:
        return {}, []
    by_stem: dict[str, list[Path]] = {}
    for path in folder.paths(Kind.PICTURE, Kind.CLIP):
        by_stem.setdefault(path.stem, []).append(path)
    found: dict[Path, FileId] = {}
    problems = []
    for label in labels:
        owners = by_stem.get(label.path.stem.removesuffix(MASK_LABEL), [])
        if owners:
            found |= dict.fromkeys(owners, label)
            pictures.remove(label)
            what = f"It is taken for the mask of {shown(owners[0].name)}, as OneTrainer names masks"
            problems.append(Problem(Severity.INFO, label.path, what, "Give it another name if it is a picture."))
    return found, problems


class Paired:
    """Pictures of a folder by the items that they belong to.

    Attributes:
        of: Pictures of each item that has any, in order.
        problems: With the folder, and with pictures that belong to no item.
        others: Files of the folder that are no pictures.
    """

    def __init__(self, folder: Path, root: Path, media: Sequence[Path], what: str, *, counted: bool) -> None:
        """
        Args:
            folder: Where the pictures are.
            root: The dataset's folder, from which the items' names count.
            what: Name of one of the pictures, as in `mask`.
            counted: An item may have several, `cat_0.png` and on.
        """
        self.of: dict[Path, tuple[FileId, ...]] = {}
        self.problems: list[Problem] = []
        self.others: list[Path] = []
        try:
            folders, self.problems = walk(folder, recursive=True)
        except OSError as error:
            why = f"The folder of {what}s cannot be looked into: {error.strerror}"
            self.problems = [Problem(Severity.ERROR, folder, why, "Check its path, and that you may read it.")]
            return
        by_name: dict[str, list[FileId]] = {}
        items = set(media)  # where the folder is the dataset's own, an item is not its own mask
        for each in folders:
            self.others += each.paths(*(kind for kind in Kind if kind is not Kind.PICTURE))
            for file in each.files[Kind.PICTURE]:
                if file.path not in items:
                    by_name.setdefault(_name_from(folder, file.path), []).append(file)
        self._pair(media, root, by_name, counted)
        if not self.of:
            why = f"No picture in it has the name of an item, so it holds no {what} for this dataset"
            remedy = "Give each its item's name, but for the extension, or leave the key out of the recipe."
            self.problems.append(Problem(Severity.ERROR, folder, why, remedy))
        used = {file.path for files in self.of.values() for file in files}
        for files in by_name.values():
            for file in files:
                if file.path not in used:
                    text = f"There is no item of this {what}'s name"
                    remedy = "Name it as its item, but for the extension."
                    self.problems.append(Problem(Severity.WARNING, file.path, text, remedy))

    def _pair(self, media: Sequence[Path], root: Path, by_name: dict[str, list[FileId]], counted: bool) -> None:
        numbered: dict[str, list[tuple[int, FileId]]] = {}
        for name, files in by_name.items() if counted else ():
            match = _COUNTED.fullmatch(name)
            if match:
                numbered.setdefault(match[1], []).append((int(match[2]), files[0]))
        for path in media:
            name = _name_from(root, path)
            for candidate in dict.fromkeys((name, path.stem)):
                found = by_name.get(candidate) or by_name.get(candidate + MASK_LABEL)
                if found:
                    self.of[path] = (found[0],)
                    break
                if candidate in numbered:
                    self.of[path] = tuple(file for _, file in sorted(numbered[candidate]))
                    break


def _name_from(root: Path, path: Path) -> str:
    """Path from a folder without the extension."""
    return os.path.splitext(os.path.relpath(path, root))[0]  # noqa: PTH122 - as text, for many


def shape_differs(width: int, height: int, other_width: int, other_height: int) -> bool:
    """Whether two pictures differ in their ratio of sides by more than rounding a reduced size explains."""
    return abs(width * other_height - other_width * height) > 0.02 * width * other_height


def placed_beside(width: int, height: int, placement: Placement) -> Placement:
    """Where a picture goes that belongs to one that is placed so.

    Where both have the same shape it is cut as that one, so that they show the same places; else it covers the bucket and
    what sticks out is cut off evenly.

    Args:
        width, height: Of the picture, in pixels, oriented as it is looked at.
    """
    if shape_differs(width, height, *placement.source):
        return place(width, height, [placement.bucket])
    return replace(placement, source=(width, height))


def all_files(paired: Iterable[tuple[FileId, ...]]) -> list[FileId]:
    """Every file once."""
    return list({file.path: file for files in paired for file in files}.values())
