"""Other trainers' layouts, understood as they are: kohya's numbered folders, and Hugging Face's metadata files.

A dataset is in kohya's layout where its folder holds no media itself but sub-folders called `10_name`, all of them: the
number says how often their items are seen, and the name captions items that have no caption file. Metadata is a
`metadata.jsonl` or `metadata.csv` beside the media, with a `file_name` and a `text` (or `caption`) for each. Not covered:
`metadata.parquet` (said in a problem), the `.json` of sd-scripts' fine-tuning, archives.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorapod.data.media_cache import FileId
from lorapod.data.names import shown
from lorapod.data.walk import Folder, Kind, Problem, Severity, is_hidden, kind_of

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
"""In order of preference where a folder has both."""

CAPTION_COLUMNS = ("text", "caption")
"""In order of preference; `text` is what the examples of Hugging Face and diffusers use."""

MAX_METADATA_BYTES = 1 << 28

_NUMBERED = re.compile(r"([1-9][0-9]{0,2})_(.+)", re.DOTALL)
"""kohya takes longer numbers too; a folder `2024_summer` is more likely to be a year than 2,024 repeats."""

_OUTSIDE = "It captions files outside of its folder, which are not used"

_LISTED = 10


@dataclass(frozen=True)
class NumberedFolder:
    """What the name of one of kohya's folders says: how often its items are seen, and their class words."""

    repeats: int
    words: str


@dataclass
class Metadata:
    """Captions by file from the metadata of one folder.

    Attributes:
        file: The metadata file that was read; None where there is none.
    """

    file: Path | None = None
    captions: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def numbered_folders(root: Path) -> dict[Path, NumberedFolder]:
    """kohya's folders in a dataset; {} where it isn't in that layout, or cannot be listed."""
    found: dict[Path, NumberedFolder] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.is_dir():
                    if _is_media(entry.name):
                        return {}
                    continue
                match = _NUMBERED.fullmatch(entry.name)
                path = Path(entry.path)
                if match:
                    found[path] = NumberedFolder(int(match[1]), match[2].strip())
                elif not is_hidden(path) and _holds_media(path):
                    return {}
    except OSError:
        return {}
    return {path: numbered for path, numbered in found.items() if _holds_media(path)}


def about_numbered(path: Path, numbered: NumberedFolder) -> Problem:
    """That a number in a folder's name was taken seriously."""
    times = "once" if numbered.repeats == 1 else f"{numbered.repeats} times"
    what = f"Its items are seen {times} in an epoch, as its name says (kohya's layout), times the recipe's `repeats`"
    return Problem(Severity.INFO, path, what, "Rename it without the number if that is not meant.")


def read_metadata(folder: Folder) -> Metadata:
    """The captions in the metadata of a folder. Nothing is raised: what is wrong with it is in the problems."""
    by_name = {file.path.name: file for file in folder.files[Kind.OTHER] if file.path.name.startswith("metadata.")}
    found = Metadata()
    for name in METADATA_FILES:
        file = by_name.get(name)
        if file and found.file:
            what = f"It is not used, because {found.file.name} is read"
            found.problems.append(Problem(Severity.WARNING, file.path, what, "Keep one of the two."))
        elif file:
            found.file = file.path
            _read(file, folder.path, found)
    parquet = by_name.get("metadata.parquet")
    if parquet and not found.file:
        what = "Captions in Parquet are not read"
        remedy = "Save them as metadata.jsonl: a line of JSON a file, with `file_name` and `text`."
        found.problems.append(Problem(Severity.WARNING, parquet.path, what, remedy))
    return found


def _read(file: FileId, folder: Path, found: Metadata) -> None:
    path = file.path

    def refuse(what: str, remedy: str) -> None:
        found.problems.append(Problem(Severity.ERROR, path, what, remedy))

    if file.size > MAX_METADATA_BYTES:
        refuse(f"It has more than {MAX_METADATA_BYTES >> 20} MiB, too many for captions", "Keep captions alone in it.")
        return
    broken: list[int] = []
    again: list[str] = []
    outside: list[str] = []
    captions: dict[Path, str] = {}
    try:
        for number, name, caption in _jsonl(path) if path.suffix == ".jsonl" else _csv(path):
            if name is None or caption is None:
                broken.append(number)
                continue
            target = Path(os.path.normpath(folder / name))
            if not target.is_relative_to(folder):
                outside.append(name)
            elif target in captions:
                again.append(name)
            else:
                captions[target] = " ".join(caption.split())
    except UnicodeDecodeError as error:
        refuse(f"It is not UTF-8 text (byte 0x{error.object[error.start]:02x})", "Save it as UTF-8.")
    except (csv.Error, ValueError) as error:
        refuse(f"It cannot be read: {shown(str(error))}", "Mend or remove it.")
    except OSError as error:
        refuse(f"It cannot be opened: {error.strerror}", "Check that you may read it.")
    found.captions = captions
    if broken:
        lines = ", ".join(map(str, broken[:_LISTED])) + (" and more" if len(broken) > _LISTED else "")
        what = f"{len(broken)} of its lines name no file with a caption: line {lines}"
        remedy = "Each needs `file_name` and `text` (or `caption`), both text."
        found.problems.append(Problem(Severity.WARNING, path, what, remedy))
    for names, what in ((again, "It captions files twice, of which the first counts"), (outside, _OUTSIDE)):
        if names:
            found.problems.append(Problem(Severity.WARNING, path, f"{what}: {_some(names)}", "Remove those lines."))


def _jsonl(path: Path) -> Iterator[tuple[int, str | None, str | None]]:
    """Number, file name and caption of each line that holds anything."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            row = row if isinstance(row, dict) else {}
            yield number, _text(row.get("file_name")), _caption(row)


def _csv(path: Path) -> Iterator[tuple[int, str | None, str | None]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        if "file_name" not in (reader.fieldnames or ()):
            raise ValueError("its first line has no column `file_name`")
        for row in reader:
            yield reader.line_num, _text(row.get("file_name")), _caption(row)


def _caption(row: dict[str, object]) -> str | None:
    return next((text for text in (_text(row.get(column)) for column in CAPTION_COLUMNS) if text is not None), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


def _some(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:_LISTED]) + (" and more" if len(names) > _LISTED else "")


def missing_from_metadata(metadata: Metadata, media: set[Path], recursive: bool) -> list[Problem]:
    """That metadata captions files that are not among the media."""
    if not metadata.file:
        return []
    gone = [str(path.relative_to(metadata.file.parent)) for path in metadata.captions if path not in media]
    if not gone:
        return []
    below = not recursive and all(os.sep in name for name in gone)
    remedy = "Set `recursive = true` to use what is in sub-folders." if below else "Remove those lines."
    what = f"It captions {len(gone)} files that are not in the dataset: {_some(gone)}"
    return [Problem(Severity.WARNING, metadata.file, what, remedy)]


def _is_media(name: str) -> bool:
    return kind_of(name) in (Kind.PICTURE, Kind.CLIP) and not name.startswith("._")


def _holds_media(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_media(entry.name) for entry in entries)
    except OSError:
        return True  # It cannot be listed, which the walk says by name.
