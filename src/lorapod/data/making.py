"""A new folder that files are made into, one item after another, so that work that was stopped goes on.

While the work is unfinished the folder holds a journal: a line that says what the work is, then one for each item that
is done. The same work asked for again takes what the journal says as done, as long as the item and what was made of it
are as they were; another work, or a finished folder, is refused. Every file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorapod.data.facts import Progress
from lorapod.data.media_cache import FileId
from lorapod.data.names import shown
from lorapod.data.remake import Made
from lorapod.data.scan import Item
from lorapod.data.threads import in_order
from lorapod.errors import DatasetError
from lorapod.files import disk_error, written_whole

_LONGEST_STEM = 228
"""Bytes; file systems take names of 255, and `-masklabel.png` or a number has to fit behind it."""

JOURNAL = ".lorapod-unfinished.jsonl"

Make = Callable[[Item, Path], Made]


class NewFolder:
    """The folder that a work makes.

    Attributes:
        root: Absolute.
        resumed: How many items were done before.
    """

    def __init__(self, out: Path, work: dict[str, Any], sources: Iterable[Path]) -> None:
        """
        Args:
            out: A folder that is missing, empty, or holds the same work unfinished.
            work: What is made, in values of JSON: whatever decides what the files become.
            sources: Folders of the datasets that it is made from.

        Raises:
            DatasetError: It holds anything else, is a file, or lies in one of the sources.
            DiskError: It cannot be made.
        """
        self.root = out.expanduser().absolute()
        self.resumed = 0
        self._work = json.dumps(work, sort_keys=True)
        self._journal = self.root / JOURNAL
        self._done: dict[str, dict[str, Any]] = {}
        self._went_on = False
        refuse_taken(out)
        for source in sources:
            if self.root.resolve().is_relative_to(source.resolve()):
                raise DatasetError(
                    f"{shown(out)} lies in the dataset itself",
                    f"Nothing is put into {shown(source)}, where it would be taken for a part of the dataset.",
                    "Give a folder elsewhere.",
                )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self._journal.exists():
                self._read(out)
            else:
                self._journal.write_text(self._work + "\n", encoding="utf-8")
        except OSError as error:
            raise disk_error(error, self.root) from error

    def _read(self, out: Path) -> None:
        lines = self._journal.read_text(encoding="utf-8", errors="replace").split("\n")
        if not lines[0]:  # Stopped before its first line was written, so nothing was made.
            self._journal.write_text(self._work + "\n", encoding="utf-8")
            return
        if lines[0] != self._work:
            raise DatasetError(
                f"{shown(out)} holds other work that was stopped",
                "What was begun there had another dataset, other options or another command.",
                "Run that command again to finish it, or give a new folder.",
            )
        self._went_on = True
        for line in lines[1:]:
            try:
                done = json.loads(line)
                self._done[done["target"]] = done
            except (ValueError, KeyError, TypeError):
                continue  # The last line, where the machine went down while it was written.
        # What is written next begins a line of its own.
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write("\n")

    def make(self, work: Sequence[tuple[Item, Path]], make: Make, progress: Progress | None = None) -> list[Made]:
        """What became of each item, made with several threads, or before.

        Args:
            work: Items with the paths that are wanted for them, no two alike.

        Raises:
            DatasetError, DiskError: As `make`.
        """
        made = []
        for done, each in enumerate(self._each(work, make), start=1):
            made.append(each)
            if progress:
                progress(done, len(work))
        return made

    def _each(self, work: Sequence[tuple[Item, Path]], make: Make) -> Iterator[Made]:
        def made_of(job: tuple[Item, Path]) -> tuple[Made, bool]:
            known = self._known(*job)
            return (known, True) if known else (make(*job), False)

        try:
            with self._journal.open("a", encoding="utf-8") as journal:
                for job, (made, before) in zip(work, in_order(made_of, work), strict=True):
                    self.resumed += before
                    if not before:
                        journal.write(json.dumps(self._line(*job, made)) + "\n")
                        journal.flush()
                    yield made
        except OSError as error:
            raise disk_error(error, self._journal) from error

    def _line(self, item: Item, target: Path, made: Made) -> dict[str, Any]:
        return {
            "target": self._inner(target),
            "source": _identity(item),
            "targets": [self._inner(each) for each in made.targets],
            "what": made.what,
        }

    def _known(self, item: Item, target: Path) -> Made | None:
        """What was made of an item before; None where it has to be made."""
        done = self._done.get(self._inner(target))
        if done is None or done["source"] != _identity(item):
            return None
        targets = tuple(self.root / each for each in done["targets"])
        return Made(item.path, targets, tuple(done["what"])) if all(each.is_file() for each in targets) else None

    def _inner(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def finish(self) -> None:
        """Says that all is made. Raises DiskError."""
        try:
            if self._went_on:
                self._sweep()
            self._journal.unlink()
        except OSError as error:
            raise disk_error(error, self._journal) from error

    def _sweep(self) -> None:
        """Removes halves of our own files that are left where the process was killed while it wrote them."""
        for half in self.root.rglob(".*.part"):
            name = half.name[1:].rpartition(".")[0].rpartition(".")[0]  # as `written_whole` calls them
            if any(each.name[:80] == name for each in half.parent.iterdir() if each != half):
                half.unlink()


def refuse_taken(out: Path) -> None:
    """Raises DatasetError where a new folder cannot be made because something else is there, DiskError where that can't
    be seen. Asked before long work whose result would go there."""
    root = out.expanduser().absolute()
    try:
        held = next((each for each in root.iterdir()), None) if root.exists() else None
        unfinished = (root / JOURNAL).is_file()
    except NotADirectoryError as error:
        raise DatasetError(f"{shown(out)} is a file", "A folder is to be made there.", "Give another path.") from error
    except OSError as error:
        raise disk_error(error, root) from error
    if held is not None and not unfinished:
        raise DatasetError(
            f"{shown(out)} is not empty",
            f"It holds {shown(held.name)}, for example; nothing is ever overwritten.",
            "Give a new folder, or empty that one.",
        )


def free_name(wanted: Path, taken: set[str]) -> Path:
    """A path like the wanted one whose stem no other has, whatever the case, since captions go by stems; it is noted in
    `taken`. A name so long that nothing could be put behind it is shortened."""
    stem = wanted.stem
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        mark = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
        stem = os.fsencode(stem)[: _LONGEST_STEM - 9].decode("utf-8", "ignore") + f" {mark}"
    target, number = wanted.with_stem(stem), 2
    while str(target.with_suffix("")).casefold() in taken:
        target, number = wanted.with_stem(f"{stem} {number}"), number + 1
    taken.add(str(target.with_suffix("")).casefold())
    return target


def renamed(item: Item, wanted: Path) -> list[str]:
    """What is said of an item whose wanted path has another name than it; nothing of others."""
    return [] if wanted.stem == item.path.stem else [f"renamed to {shown(wanted.name)}"]


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file with its time of change; it appears whole or not at all. Raises DiskError."""
    with written_whole(target) as temporary:
        shutil.copy2(source, temporary)


def _identity(item: Item) -> str:
    """What an item's files and caption are, so that a changed one is made again."""
    beside = [path for path in (item.mask_path, *item.control_paths) if path]
    parts = [item.sha256, "\n".join(item.caption_lines), *(FileId.of(path).identity for path in beside)]
    return json.dumps(parts)
