"""What was found out about files, remembered, so that a folder that did not change is not read again.

A file is known by its path, size, time of change and inode: whoever changes it changes one of these. Everything kept
here can be found out again, so the database may be deleted at any time, and one that is damaged, locked by another
process or not writable makes a scan slower and never fails it. Nothing is ever removed but by being replaced.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lorapod.workspace import Workspace

_SECONDS_TO_WAIT = 2.0
"""For another process to be done writing; looking at the files again is not so bad that longer would be worth it."""

_AT_ONCE = 500
"""Paths a query. SQLite takes at least 999 parameters."""

_TABLE = """
CREATE TABLE IF NOT EXISTS found (
    kind TEXT NOT NULL, path BLOB NOT NULL, version INTEGER NOT NULL, identity TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (kind, path)
) WITHOUT ROWID
"""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class FileId(NamedTuple):
    """A file as it was when it was looked at; `path` is absolute, `size` in bytes."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result | None = None) -> FileId:
        """The identity of a file now. Raises OSError where it cannot be looked at."""
        status = status or path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)

    @property
    def identity(self) -> str:
        # One text, because inodes and times of some file systems don't fit SQLite's signed integers.
        return f"{self.size} {self.mtime_ns} {self.inode}"


class MediaCache:
    """A database of JSON values by kind (who found out), version (what the values mean) and file.

    Safe to use from many threads and processes. Methods never raise for the state of the database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, workspace: Workspace) -> MediaCache:
        """The one of a workspace."""
        return cls(workspace.cache / "media.sqlite")

    def known(self, kind: str, version: int, files: Iterable[FileId]) -> dict[Path, dict[str, Any]]:
        """What is known of those of the files that are as they were when it was kept."""
        wanted = {os.fsencode(file.path): file for file in files}
        paths = list(wanted)
        found: dict[Path, dict[str, Any]] = {}

        def read(database: sqlite3.Connection) -> None:
            for start in range(0, len(paths), _AT_ONCE):
                some = paths[start : start + _AT_ONCE]
                rows = database.execute(
                    "SELECT path, identity, value FROM found WHERE kind = ? AND version = ? "
                    f"AND path IN ({','.join('?' * len(some))})",
                    (kind, version, *some),
                )
                for path, identity, text in rows:
                    file = wanted[path]
                    value = _value(text) if identity == file.identity else None
                    if value is not None:
                        found[file.path] = value

        if paths:
            self._attempt(read)
        return found

    def keep(self, kind: str, version: int, rows: Mapping[FileId, dict[str, Any]]) -> None:
        """Keeps values for files; what was kept of the same kind for the same paths is replaced."""
        values = [
            (kind, os.fsencode(file.path), version, file.identity, json.dumps(value)) for file, value in rows.items()
        ]

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?, ?)", values)

        if values:
            self._attempt(write)

    def _attempt(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Works on the database as far as its state allows; one that is damaged makes way for a new one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT)) as database:
                # Whoever comes second where the database is made is refused this, and goes on without it.
                with suppress(sqlite3.OperationalError):
                    database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute(_TABLE)
                work(database)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._remove()
        except OSError:
            return  # No folder to keep it in: everything is looked at each time.

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)


def _value(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, dict) else None
