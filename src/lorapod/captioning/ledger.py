"""What lorapod wrote as captions, kept apart from them: so that nobody's own words are overwritten, and all can be undone.

Each folder of media has its own ledger, `.lorapod/captions.jsonl`, so a dataset that is moved or split up keeps it. It is
append-only: one JSON object a line, whole or (the last one, after a power cut) ignored. A line about a write stands before
the caption is replaced and one about an undoing after it was, so that a kill between the two leaves a ledger that still
knows both texts.

Not covered: captions of metadata files, which lorapod never writes; a caption file that was renamed is taken for the
person's own, and so left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from lorapod.data.walk import OWN_FOLDER
from lorapod.errors import RequestError
from lorapod.files import disk_error, sync_folder, write_text_whole

LEDGER_NAME = "captions.jsonl"


class State(StrEnum):
    """Whose a caption file is."""

    MISSING = "missing"
    """There is none, or it is blank."""
    OURS = "ours"
    """It is, to the byte, what lorapod wrote."""
    BY_HAND = "by hand"
    """Anything else."""


@dataclass(frozen=True)
class Write:
    """One caption written.

    Attributes:
        run: Of which run of the captioner; all of a run are undone together.
        name: The caption file's name within its folder.
        text: What was written, as it stands in the file.
        before: What stood there, as text; None where there was no file.
        by: Captioner and model.
        time: Unix seconds.
    """

    run: str
    name: str
    text: str
    before: str | None
    by: str
    time: float


@dataclass(frozen=True)
class Fault:
    """One item that could not be captioned.

    Attributes:
        run: Of which run.
        name: The media file's name within its folder.
        reason: Why, one sentence without a full stop.
        request: Hash of what was asked of which captioner.
        final: Whether the same request would be answered the same way, as a refusal is.
        time: Unix seconds.
    """

    run: str
    name: str
    reason: str
    request: str
    final: bool
    time: float


@dataclass(frozen=True)
class Undone:
    """What an undoing did, by caption file."""

    run: str
    restored: list[Path]
    removed: list[Path]
    kept: list[Path]


def digest(text: str) -> str:
    """SHA-256 of a text as it stands in a file, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """The ledger of one folder. Reading it needs nothing; writing to it, that the folder can be written.

    Attributes:
        damaged: Lines that could not be read. The captions that they were about count as the person's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / OWN_FOLDER / LEDGER_NAME
        self.damaged = 0
        self._written: dict[str, set[str]] = {}
        self._stacks: dict[str, list[tuple[str, int]]] = {}  # by caption: run and line of what can be undone
        self._faults: dict[str, Fault] = {}
        self._lines = 0
        self._whole = True
        for number, line in self._read():
            self._take(number, line)

    def state(self, caption: Path) -> State:
        """Whose the caption file is now. A file that cannot be read is somebody's."""
        raw = _bytes(caption)
        if raw is None or not raw.strip().strip(b"\xef\xbb\xbf"):
            return State.MISSING
        ours = hashlib.sha256(raw).hexdigest() in self._written.get(caption.name, ())
        return State.OURS if ours else State.BY_HAND

    def fault(self, media: Path) -> Fault | None:
        """Why the item was not captioned the last time, if it was not."""
        return self._faults.get(media.name)

    def write(self, writes: Sequence[Write]) -> list[Path]:
        """Writes captions, each whole; gives the files that became the person's meanwhile and were left alone.

        Raises:
            DiskError: The folder cannot be written.
        """
        taken = [each for each in writes if self.state(self.folder / each.name) is State.BY_HAND]
        left = [each for each in writes if each not in taken]
        self._append([{"did": "write", "sha256": digest(each.text), **asdict(each)} for each in left])
        for each in left:
            write_text_whole(self.folder / each.name, each.text, self.path.parent)
        return [self.folder / each.name for each in taken]

    def note_faults(self, faults: Sequence[Fault]) -> None:
        """Remembers what could not be captioned. Raises DiskError."""
        self._append([{"did": "fault", **asdict(each)} for each in faults])

    def settle(self, media: Iterable[str], run: str) -> None:
        """Forgets the faults of items that have a caption now. Raises DiskError."""
        self._append(
            [{"did": "settle", "name": name, "run": run, "time": time.time()} for name in media if name in self._faults]
        )

    def sweep(self) -> None:
        """Removes what a kill left of captions that were being written. Only for who holds the folder (`alone_in`)."""
        for path in self.path.parent.glob(".*.part"):
            path.unlink(missing_ok=True)

    def newest_run(self) -> tuple[float, str] | None:
        """When and which run wrote last what was not undone yet."""
        tops = {stack[-1][1] for stack in self._stacks.values() if stack}
        found = [(entry["time"], entry["run"]) for number, entry in self._read() if number in tops]
        return max(found, default=None)

    def undo(self, run: str) -> Undone:
        """Puts back what stood there before a run wrote. What the person changed since is kept.

        Raises:
            DiskError: The folder cannot be written.
        """
        tops = {stack[-1][1] for stack in self._stacks.values() if stack and stack[-1][0] == run}
        undone = Undone(run, [], [], [])
        for number, entry in list(self._read()):
            if number in tops:
                self._undo(entry, undone)
        return undone

    def _undo(self, entry: dict[str, Any], undone: Undone) -> None:
        path, before = self.folder / entry["name"], entry["before"]
        now = _bytes(path)
        here = None if now is None else hashlib.sha256(now).hexdigest()
        if here == entry["sha256"] and before is None:
            path.unlink()
            sync_folder(self.folder)
            undone.removed.append(path)
        elif here == entry["sha256"]:
            write_text_whole(path, before, self.path.parent)
            undone.restored.append(path)
        elif here != (
            None if before is None else digest(before)
        ):  # else: put back already, and killed before it was noted
            undone.kept.append(path)
        self._append([{"did": "undo", "name": entry["name"], "run": entry["run"], "time": time.time()}])

    def _append(self, entries: Sequence[dict[str, Any]]) -> None:
        if not entries:
            return
        lines = [json.dumps(entry, ensure_ascii=True) + "\n" for entry in entries]
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab") as file:
                file.write(("" if self._whole else "\n").encode() + "".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error
        if not self._whole:
            self._lines, self._whole = self._lines + 1, True
        for entry in entries:
            self._take(self._lines, entry)
            self._lines += 1

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Entries, each with the number of its line."""
        self._lines, self.damaged, self._whole = 0, 0, True
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise RequestError(
                f"The ledger of captions {self.path} cannot be read",
                f"{error.strerror}. Without it nobody's own captions could be told from ours.",
                "Check that you may read it.",
            ) from error
        with file:
            for number, raw in enumerate(file):
                self._lines, self._whole = number + (1 if raw.endswith(b"\n") else 0), raw.endswith(b"\n")
                entry = _entry(raw)
                if entry is None:
                    self.damaged += 1 if raw.strip() and self._whole else 0
                else:
                    yield number, entry

    def _take(self, number: int, entry: dict[str, Any]) -> None:
        name = entry["name"]
        match entry["did"]:
            case "write":
                self._written.setdefault(name, set()).add(entry["sha256"])
                self._stacks.setdefault(name, []).append((entry["run"], number))
            case "undo":
                stack = self._stacks.get(name)
                if stack:
                    stack.pop()
            case "fault":
                known = {field: entry[field] for field in Fault.__dataclass_fields__}
                self._faults[name] = Fault(**known)
            case "settle":
                self._faults.pop(name, None)


def _entry(raw: bytes) -> dict[str, Any] | None:
    """The entry of a line; None where it is no entry that this release understands."""
    needed = {
        "write": {"run", "name", "sha256", "before", "time"},
        "undo": {"name"},
        "fault": set(Fault.__dataclass_fields__),
        "settle": {"name"},
    }
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not needed.get(str(entry.get("did")), {"?"}) <= entry.keys():
        return None
    return entry


def read_exactly(caption: Path) -> str | None:
    """A caption file that is ours or blank, as it stands; None where there is none."""
    raw = _bytes(caption)
    return None if raw is None else raw.decode("utf-8", "replace")


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RequestError(
            f"The caption file {path} cannot be read", f"{error.strerror}.", "Check that you may read it."
        ) from error


class Ledgers:
    """The ledgers of the folders of a dataset, opened as they are needed."""

    def __init__(self) -> None:
        self._open: dict[Path, Ledger] = {}

    def of(self, file: Path) -> Ledger:
        """The ledger of the folder that a file lies in."""
        if file.parent not in self._open:
            self._open[file.parent] = Ledger(file.parent)
        return self._open[file.parent]

    @property
    def damaged(self) -> int:
        """Lines of all of them that could not be read."""
        return sum(ledger.damaged for ledger in self._open.values())


def undo_newest(folders: Iterable[Path]) -> Undone | None:
    """Undoes the newest run that wrote into any of the folders, in all of them; None where there is nothing to undo.

    Raises:
        DiskError: A folder cannot be written.
        RequestError: Captions are being written there at the moment.
    """
    ledgers = [Ledger(folder) for folder in folders]
    runs = [run for run in (ledger.newest_run() for ledger in ledgers) if run]
    if not runs:
        return None
    _, newest = max(runs)
    whole = Undone(newest, [], [], [])
    with alone_in([ledger.folder for ledger in ledgers if ledger.path.exists()]):
        for ledger in ledgers:
            part = ledger.undo(newest)
            whole.restored.extend(part.restored)
            whole.removed.extend(part.removed)
            whole.kept.extend(part.kept)
    return whole


@contextmanager
def alone_in(folders: Iterable[Path]) -> Iterator[None]:
    """Holds the folders, so that no other process writes captions there. The hold ends with the process.

    Raises:
        DiskError: A folder cannot be written.
        RequestError: Another process holds one.
    """
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_lock(folder))
        yield


def _lock(folder: Path) -> IO[str]:
    path = folder / OWN_FOLDER / "captions.lock"
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RequestError(
            f"Captions of {folder} are being written already",
            "Another lorapod works on this folder.",
            "Wait until it is done, or stop it with Ctrl-C.",
        ) from error
    except OSError:
        pass  # Some network disks know no locks; there the person has to see to it.
    return file
