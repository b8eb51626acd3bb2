"""A file on its way: the bytes that are there, and which.

A part is two files, `KEY.part` (as long as the whole will be, with holes) and `KEY.state` (a line of JSON, then one byte
a block: 1 when the block is written). A block is marked by writing one byte in place after its bytes were written, so
that a process that is killed leaves a state that says less than what is there, never more. After a power cut it may say
more; the hash at the end finds that.

One process at a time works on a part: `locked` waits for the other one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_HEADER_BYTES = 2048
_MOST_BLOCKS = 4096
_LEAST_BLOCK = 1 << 16
SEGMENT_BYTES = 64 << 20
"""Most that is asked for in one request."""


class Part:
    """The bytes of one file that are there so far. Safe to use from several threads.

    Args:
        path: Without a suffix; `.part` and `.state` are added.
        size: Bytes of the whole file.
        identity: What the bytes belong to (a hash, or an address with its ETag); a part of anything else is thrown away.
    """

    def __init__(self, path: Path, size: int, identity: str) -> None:
        self.data_path, self.state_path = Path(f"{path}.part"), Path(f"{path}.state")
        self.size, self.identity = size, identity
        self.block = max(_LEAST_BLOCK, -(-size // _MOST_BLOCKS // _LEAST_BLOCK) * _LEAST_BLOCK)
        self.blocks = -(-size // self.block)
        self.changed = threading.Condition()
        self.etag: str | None = None
        self._open = False

    def __enter__(self) -> Self:
        self.data_path.parent.mkdir(parents=True, exist_ok=True)
        done = self._saved()
        flags = os.O_RDWR | os.O_CREAT | (0 if done else os.O_TRUNC)
        self._data = os.open(self.data_path, flags, 0o644)
        self._state = os.open(self.state_path, flags, 0o644)
        self._open = True
        self._done = bytearray(done or bytes(self.blocks))
        self._taken: set[int] = set()
        self._reached: dict[int, int] = {}
        if not done:
            os.ftruncate(self._data, self.size)
            self._write_header()
            os.pwrite(self._state, bytes(self.blocks), _HEADER_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._data)
        os.close(self._state)
        self._open = False

    def _saved(self) -> bytes | None:
        """The marks of an earlier process, if they are of the same bytes."""
        head = read_state(self.state_path)
        if head is None or head["identity"] != self.identity or head["size"] != self.size:
            return None
        if head["block"] != self.block or not self.data_path.is_file() or self.data_path.stat().st_size != self.size:
            return None
        marks = self.state_path.read_bytes()[_HEADER_BYTES:]
        etag = head.get("etag")
        self.etag = etag if isinstance(etag, str) else None
        return marks if len(marks) == self.blocks else None

    def _write_header(self) -> None:
        head = {"identity": self.identity, "size": self.size, "block": self.block, "etag": self.etag}
        line = json.dumps(head).encode() + b"\n"
        os.pwrite(self._state, line.ljust(_HEADER_BYTES, b" "), 0)

    def remember_etag(self, etag: str | None) -> None:
        """Keeps the ETag that the bytes came with, for `If-Range` of a later process."""
        if etag != self.etag and (etag is None or len(etag) < 512):
            self.etag = etag
            self._write_header()

    @property
    def there(self) -> int:
        """Bytes that are there, in whole blocks."""
        with self.changed:
            done = sum(self._done)
            short = self.blocks * self.block - self.size if self._done and self._done[-1] else 0
            return done * self.block - short

    def has(self, at: int) -> bool:
        """Whether the block of that offset is there."""
        with self.changed:
            return bool(self._done[at // self.block])

    @property
    def complete(self) -> bool:
        with self.changed:
            return all(self._done)

    def take(self, most: int = SEGMENT_BYTES) -> tuple[int, int] | None:
        """The next stretch that is missing and that no other thread has taken: first byte, and one past the last.

        A block that a broken connection left half goes on where it stopped.
        """
        with self.changed:
            first = next((b for b in range(self.blocks) if not self._done[b] and b not in self._taken), None)
            if first is None:
                return None
            last = first
            while (
                (last + 2 - first) * self.block <= most
                and last + 1 < self.blocks
                and not self._done[last + 1]
                and last + 1 not in self._taken
                and last + 1 not in self._reached
            ):
                last += 1
            self._taken.update(range(first, last + 1))
            return self._reached.get(first, first * self.block), min(self.size, (last + 1) * self.block)

    def take_on(self, end: int) -> int:
        """Takes the block after a stretch that ends at `end` too, if it is free; returns where the stretch ends now."""
        with self.changed:
            block = end // self.block
            if end >= self.size or self._done[block] or block in self._taken or block in self._reached:
                return end
            self._taken.add(block)
            return min(self.size, end + self.block)

    def write(self, at: int, content: bytes | memoryview) -> None:
        """Writes bytes at an offset of a stretch that was taken, each stretch from its front."""
        view = memoryview(content)
        while view:
            written = os.pwrite(self._data, view, at)
            view = view[written:]
            self._mark(at, at + written)
            at += written

    def _mark(self, start: int, end: int) -> None:
        first, last = start // self.block, (end - 1) // self.block
        finished = []
        for block in range(first, last + 1):
            if end >= min(self.size, (block + 1) * self.block):
                finished.append(block)
        if finished:
            os.pwrite(self._state, b"\1" * len(finished), _HEADER_BYTES + finished[0])
        with self.changed:
            for block in finished:
                self._done[block] = 1
                self._reached.pop(block, None)
            if last not in finished:
                self._reached[last] = end
            if finished:
                self.changed.notify_all()

    def give_back(self, start: int, end: int) -> None:
        """Says that nobody works on a stretch any more, however far it got."""
        with self.changed:
            self._taken.difference_update(range(start // self.block, -(-end // self.block)))
            self.changed.notify_all()

    def forget(self) -> None:
        """Throws every byte away."""
        with self.changed:
            self._done = bytearray(self.blocks)
            self._reached.clear()
            os.pwrite(self._state, bytes(self.blocks), _HEADER_BYTES)

    def digest(self, algorithm: str, stopped: Callable[[], bool]) -> str | None:
        """Hash of the whole file as hex, read behind the writers as far as they are; None when `stopped` says so.

        Args:
            algorithm: `sha256`, or `git` for what git calls a blob (SHA-1 over a header and the bytes).
        """
        digest = hashlib.sha1(f"blob {self.size}\0".encode()) if algorithm == "git" else hashlib.new(algorithm)
        buffer, at = memoryview(bytearray(min(4 << 20, max(1, self.size)))), 0
        while at < self.size:
            front = self._front(at, stopped)
            if front is None:
                return None
            while at < front:
                got = os.preadv(self._data, [buffer[: front - at]], at)
                digest.update(buffer[:got])
                at += got
        return digest.hexdigest()

    def _front(self, at: int, stopped: Callable[[], bool]) -> int | None:
        """Where the unbroken stretch that `at` is in ends; waits until it is longer than nothing."""
        with self.changed:
            while not self._done[at // self.block]:
                if stopped():
                    return None
                self.changed.wait(0.25)
            missing = self._done.find(0, at // self.block)
            return self.size if missing < 0 else missing * self.block

    def finish(self, target: Path) -> None:
        """Moves the file to `target`, synced to disk, and removes the state."""
        os.fsync(self._data)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.data_path.chmod(0o444)  # shared by every layout that links to it, so nothing may edit it in place
        self.data_path.replace(target)
        self.state_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes both files."""
        self.data_path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, object] | None:
    """The first line of a `.state` file; None if there is none or it cannot be read."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.read(_HEADER_BYTES))
    except (OSError, ValueError):
        return None
    return head if isinstance(head, dict) and {"identity", "size", "block"} <= head.keys() else None


def bytes_there(path: Path) -> int:
    """Bytes of a part that are there, as its state says; 0 if there is none. `path` is without a suffix."""
    head = read_state(Path(f"{path}.state"))
    if head is None:
        return 0
    try:
        marks = Path(f"{path}.state").read_bytes()[_HEADER_BYTES:]
    except OSError:
        return 0
    size, block = head["size"], head["block"]
    assert isinstance(size, int) and isinstance(block, int)
    return min(size, sum(marks) * block)


@contextmanager
def locked(path: Path, waiting: Callable[[], None], pause: float = 0.2) -> Iterator[None]:
    """Holds the lock file at `path`; calls `waiting` about every `pause` seconds while another process has it.

    The lock goes with the process, so that a killed one leaves none behind; its empty file stays, since removing it would
    let two processes hold locks of one name. Where a file system has no locks, a lock file
    in the temporary folder of this machine is used: two machines that share such a volume then both fetch, and the hash at
    the end still decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                time.sleep(pause)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                os.close(handle)
                name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
                handle = os.open(Path(tempfile.gettempdir()) / f"lorapod-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
                continue
            break
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file at `path`."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
