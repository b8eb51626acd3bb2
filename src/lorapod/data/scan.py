"""A folder of media, looked at: items that can be trained on, and problems with the rest.

Every file under the folder ends as an item, as an item's caption, in a problem, or in `Scan.others` (files that are
neither media nor captions). Clips are named but not opened; importing other layouts is not covered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorapod.data.captions import CAPTION_EXTENSIONS, read_caption
from lorapod.data.names import natural_key, shown
from lorapod.data.pictures import PictureInfo, probe
from lorapod.data.walk import UNUSED_SUB_FOLDER, Folder, Kind, Problem, Severity, walk
from lorapod.errors import CaptionError, DatasetError
from lorapod.files import sha256_of

Progress = Callable[[int, int], None]
"""Told how many of how many files are done."""

MAX_THREADS = 8
"""Each may hold a decoded picture, which takes hundreds of megabytes at the largest."""

_NO_CLIPS = "Clips are not trained on yet by this version"
_NO_READER = "Pictures of this format cannot be read"


@dataclass(frozen=True)
class Item:
    """One picture of a dataset with its caption.

    Attributes:
        path: Absolute.
        width, height: In pixels, oriented as it is looked at.
        caption: As in its file; None where it has none.
        sha256: Of the picture's bytes, as hex.
        frames: 1 for a picture.
    """

    path: Path
    width: int
    height: int
    caption: str | None
    caption_path: Path | None
    size_bytes: int
    sha256: str
    frames: int = 1


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


def scan(folder: Path, recursive: bool = False, progress: Progress | None = None) -> Scan:
    """Looks at every file of a folder; pictures are decoded, so that damage shows now.

    Raises:
        DatasetError: The folder is missing, is a file, cannot be read, or holds no picture at all.
    """
    root = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - links in the path are the person's own names
    folders, problems = _listed(root, recursive)
    captions: dict[Path, Path] = {}
    for each in folders:
        found, caption_problems = match_captions(each)
        captions |= found
        problems += caption_problems
        problems += _unused_media(each, found)
    pictures = [path for each in folders for path in each.files[Kind.PICTURE]]
    items: list[Item] = []
    for item, item_problems in _looked_at(pictures, captions, progress):
        items += [item] if item else []
        problems += item_problems
    if not items and not any(problem.severity is Severity.ERROR for problem in problems):
        raise _empty(root, problems)
    problems += _twins(items)
    return Scan(
        folder=root,
        items=sorted(items, key=lambda item: natural_key(item.path)),
        problems=sorted(problems, key=lambda problem: natural_key(problem.path)),
        others=sorted((path for each in folders for path in each.files[Kind.OTHER]), key=natural_key),
    )


def match_captions(folder: Folder) -> tuple[dict[Path, Path], list[Problem]]:
    """Caption file of each media file of a folder, and what is doubtful about them.

    A caption has its picture's name but for the extension. Where no name fits exactly, one that differs in upper and
    lower case alone is taken if it is the only one, as after a way through Windows.
    """
    media = [path for kind in (Kind.PICTURE, Kind.CLIP, Kind.UNREADABLE) for path in folder.files[kind]]
    files = sorted(folder.files[Kind.CAPTION], key=lambda p: (CAPTION_EXTENSIONS.index(p.suffix.lower()), str(p)))
    exact: dict[str, list[Path]] = {}
    for path in files:
        exact.setdefault(path.stem, []).append(path)
    stems = {path.stem for path in media}
    loose: dict[str, list[Path]] = {}
    for path in files:
        if path.stem not in stems:
            loose.setdefault(path.stem.casefold(), []).append(path)

    problems: list[Problem] = []
    found: dict[Path, Path] = {}
    users: dict[Path, list[Path]] = {}
    for path in media:
        candidates = exact.get(path.stem, [])
        if not candidates and len(loose.get(path.stem.casefold(), [])) == 1:
            candidates = loose[path.stem.casefold()]
        if candidates:
            found[path] = candidates[0]
            users.setdefault(candidates[0], []).append(path)
        for extra in candidates[1:]:
            what = f"It is not used, because {shown(candidates[0].name)} is the caption of {shown(path.name)}"
            problems.append(Problem(Severity.WARNING, extra, what, "Keep one of the two."))
    for caption, paths in users.items():
        if len(paths) > 1:
            what = "It is the caption of several files: " + ", ".join(shown(path.name) for path in paths)
            problems.append(
                Problem(Severity.WARNING, caption, what, "Give the files different names if it's not meant.")
            )
    spoken_for = set(users) | {problem.path for problem in problems}
    for path in files:
        if path not in spoken_for:
            what = "There is no picture or clip of this caption's name"
            remedy = "Name it as its picture, but for the extension, or move it out of the dataset."
            problems.append(Problem(Severity.WARNING, path, what, remedy))
    return found, problems


def _listed(root: Path, recursive: bool) -> tuple[list[Folder], list[Problem]]:
    name = shown(root)
    try:
        return walk(root, recursive)
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no dataset folder {name}", "Nothing is at that path.", "Check how it is spelled."
        ) from error
    except NotADirectoryError as error:
        raise DatasetError(
            f"{name} is a file", "A dataset is a folder of pictures.", f"Give the folder: {shown(root.parent)}"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The dataset folder {name} cannot be read", f"{error.strerror}.", "Check that you may read it."
        ) from error


def _unused_media(folder: Folder, captions: dict[Path, Path]) -> list[Problem]:
    """Clips and formats that cannot be read. With a caption beside it, a file was surely meant to be trained on."""
    found = []
    for kind, what, remedy in (
        (Kind.CLIP, _NO_CLIPS, "Leave it for a later version, or export pictures from it."),
        (Kind.UNREADABLE, _NO_READER, "Export it as PNG, JPEG or WebP to use it."),
    ):
        for path in folder.files[kind]:
            severity = Severity.WARNING if path in captions else Severity.INFO
            found.append(Problem(severity, path, what, remedy))
    return found


def _looked_at(
    pictures: list[Path], captions: dict[Path, Path], progress: Progress | None
) -> Iterable[tuple[Item | None, list[Problem]]]:
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(partial(_look_at, captions=captions), pictures), start=1):
            yield result
            if progress:
                progress(done, len(pictures))


def _look_at(path: Path, captions: dict[Path, Path]) -> tuple[Item | None, list[Problem]]:
    try:
        info = probe(path)
        size, digest = path.stat().st_size, sha256_of(path)
    except DatasetError as error:
        return None, [Problem(Severity.ERROR, path, error.why.rstrip("."), error.remedy)]
    except OSError as error:
        what = f"It cannot be read: {error.strerror}"
        return None, [Problem(Severity.ERROR, path, what, "Check that it is there and that you may read it.")]
    caption_path = captions.get(path)
    problems = _about(path, info)
    caption = None
    if caption_path:
        try:
            caption = read_caption(caption_path)
        except CaptionError as error:
            what = f"{error.what}. {error.why.rstrip('.')}"
            return None, [*problems, Problem(Severity.ERROR, path, what, error.remedy)]
        if not caption:
            what = f"Its caption file {shown(caption_path.name)} is empty"
            problems.append(Problem(Severity.WARNING, path, what, "Write what is to be seen, or remove the file."))
    return Item(path, info.width, info.height, caption, caption_path, size, digest), problems


def _about(path: Path, info: PictureInfo) -> list[Problem]:
    if info.frames == 1:
        return []
    what = f"Only the first of its {info.frames} frames is used"
    return [Problem(Severity.WARNING, path, what, "Export the frames that you want as single pictures.")]


def _twins(items: list[Item]) -> list[Problem]:
    first: dict[str, Path] = {}
    problems = []
    for item in items:
        other = first.setdefault(item.sha256, item.path)
        if other != item.path:
            what = f"It is the same picture as {shown(other.name)}, which is therefore seen more often"
            problems.append(Problem(Severity.WARNING, item.path, what, "Remove one, or use `repeats` if it's meant."))
    return problems


def _empty(root: Path, problems: list[Problem]) -> DatasetError:
    media = [problem for problem in problems if problem.what in (_NO_CLIPS, _NO_READER)]
    folders = [problem for problem in problems if problem.what == UNUSED_SUB_FOLDER]
    if folders:
        names = ", ".join(shown(problem.path.name) for problem in folders[:5])
        why, remedy = f"Pictures are only in its sub-folders: {names}.", folders[0].remedy
    elif media:
        why, remedy = f"It holds {shown(media[0].path.name)}, for example. {media[0].what}.", media[0].remedy
    else:
        why, remedy = "No file in it is a picture.", "Put pictures into it (PNG, JPEG or WebP), or give another folder."
    return DatasetError(f"The dataset {shown(root)} holds no picture to train on", why, remedy)
