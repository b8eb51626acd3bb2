"""The store: a table of the workspace's runs, for lists. It only repeats what the run folders say.

A store that is missing, damaged or of another version is made anew from the folders.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from lorapod.errors import DiskError, LorapodError
from lorapod.files import disk_error
from lorapod.runs.folder import RunFolder, all_runs
from lorapod.runs.journal import state_of
from lorapod.workspace import Workspace

VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    path TEXT PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL, base_model TEXT NOT NULL, status TEXT NOT NULL,
    step INTEGER NOT NULL, total INTEGER NOT NULL, loss REAL, started REAL, ended REAL
)
"""


@dataclass(frozen=True)
class RunRow:
    """A run as the list shows it; times are Unix seconds."""

    path: str
    id: str
    name: str
    base_model: str
    status: str
    step: int
    total: int
    loss: float | None
    started: float | None
    ended: float | None


def record(run: RunFolder, workspace: Workspace) -> RunRow:
    """Writes the present state of a run into the store."""
    row = _row_of(run)
    with _opened(workspace) as store:
        _put(store, row)
    return row


def list_runs(workspace: Workspace) -> list[RunRow]:
    """Every run, newest first. Runs that were not finished when last recorded are looked at again."""
    folders = {str(run.path): run for run in all_runs(workspace)}
    with _opened(workspace) as store:
        known = {row[0]: RunRow(*row) for row in store.execute("SELECT * FROM runs")}
        for path in known.keys() - folders.keys():
            store.execute("DELETE FROM runs WHERE path = ?", (path,))
        rows = []
        for path, run in folders.items():
            row = known.get(path)
            if row is None or row.status not in ("done", "failed", "stopped"):
                row = _row_of(run)
                _put(store, row)
            rows.append(row)
    return rows


def _put(store: sqlite3.Connection, row: RunRow) -> None:
    values = (
        row.path,
        row.id,
        row.name,
        row.base_model,
        row.status,
        row.step,
        row.total,
        row.loss,
        row.started,
        row.ended,
    )
    store.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _row_of(run: RunFolder) -> RunRow:
    state = state_of(run)
    try:
        base_model = run.recipe().base_model.name
    except LorapodError:
        base_model = "?"
    loss = state.smooth_loss
    return RunRow(
        str(run.path),
        run.id,
        run.name,
        base_model,
        state.status,
        state.step,
        state.total,
        loss,
        state.started,
        state.ended,
    )


@contextmanager
def _opened(workspace: Workspace) -> Iterator[sqlite3.Connection]:
    """A connection inside a transaction; a store that cannot be used is put aside and made anew."""
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        try:
            store = _connect(workspace)
        except sqlite3.OperationalError:
            raise  # locked, or not writable: not damage
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                workspace.store.with_name(workspace.store.name + suffix).unlink(missing_ok=True)
            store = _connect(workspace)
        with closing(store), store:
            yield store
    except sqlite3.Error as error:
        raise DiskError(
            f"The list of runs in {workspace.store} cannot be used",
            str(error),
            "Remove that file; it is made anew from the run folders.",
        ) from error
    except OSError as error:
        raise disk_error(error, workspace.store) from error


def _connect(workspace: Workspace) -> sqlite3.Connection:
    store = sqlite3.connect(workspace.store, timeout=30)
    try:
        store.execute("PRAGMA journal_mode = WAL")
        (version,) = store.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            with store:
                store.execute("BEGIN IMMEDIATE")
                store.execute("DROP TABLE IF EXISTS runs")
                store.execute(_SCHEMA)
                store.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.DatabaseError:
        store.close()
        raise
    return store
