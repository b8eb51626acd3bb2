"""The store: a table of the workspace's runs, for lists. It only repeats what the run folders say.

A store that is missing, damaged or of another version is made anew from the folders. One that cannot be used at all, as
on a disk that may only be read, is done without, with a warning.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from typing import TypeVar

from lorapod.errors import LorapodError
from lorapod.runs.folder import RunFolder, all_runs
from lorapod.runs.journal import state_of
from lorapod.workspace import Workspace

VERSION = 2
_SCHEMA = """
CREATE TABLE runs (
    path TEXT PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL, base_model TEXT NOT NULL, status TEXT NOT NULL,
    step INTEGER NOT NULL, total INTEGER NOT NULL, loss REAL, started REAL, ended REAL,
    events_size INTEGER NOT NULL
)
"""
_LARGEST = 2**63 - 1  # that SQLite holds
_BUSY_SECONDS = 30.0
_OVER = ("done", "failed", "stopped")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLITE_ERROR is what a query gets from a store whose tables are not ours."""

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RunRow:
    """A run as the list shows it; times are Unix seconds, `events_size` is the bytes of events it was added up from."""

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
    events_size: int


def record(run: RunFolder, workspace: Workspace) -> RunRow:
    """Writes the present state of a run into the store."""
    row = _row_of(run)
    _in_store(workspace, lambda store: _put(store, [row]))
    return row


def list_runs(workspace: Workspace) -> list[RunRow]:
    """Every run, newest first. Runs that were not over when last recorded, or went on since, are looked at again."""
    runs = all_runs(workspace)
    rows = _in_store(workspace, _rows_in) or []
    known = {row.path: row for row in rows}
    listed, news = [], []
    for run in runs:
        row = known.pop(str(run.path), None)
        if row is None or row.status not in _OVER or row.events_size != _events_size(run):
            row = _row_of(run)
            news.append(row)
        listed.append(row)
    if news or known:
        _in_store(workspace, lambda store: _put(store, news, gone=list(known)))
    return listed


def _rows_in(store: sqlite3.Connection) -> list[RunRow]:
    return [RunRow(*values) for values in store.execute("SELECT * FROM runs")]


def _put(store: sqlite3.Connection, rows: list[RunRow], gone: list[str] | None = None) -> None:
    store.executemany("DELETE FROM runs WHERE path = ?", [(path,) for path in gone or []])
    places = ", ".join("?" * len(RunRow.__dataclass_fields__))
    store.executemany(f"INSERT OR REPLACE INTO runs VALUES ({places})", [astuple(row) for row in rows])


def _events_size(run: RunFolder) -> int:
    return run.events.stat().st_size if run.events.exists() else 0


def _row_of(run: RunFolder) -> RunRow:
    size = _events_size(run)  # before they are read: events that come meanwhile make the row look old, not right
    state = state_of(run)
    try:
        base_model = run.recipe().base_model.name
    except LorapodError:
        base_model = "?"
    return RunRow(
        path=str(run.path),
        id=run.id,
        name=run.name,
        base_model=base_model,
        status=state.status,
        step=min(state.step, _LARGEST),
        total=min(state.total, _LARGEST),
        loss=state.smooth_loss,
        started=state.started,
        ended=state.ended,
        events_size=size,
    )


def _in_store(workspace: Workspace, work: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
    """What `work` returns, done in one transaction; None where the store cannot be used. A damaged one is made anew."""
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        try:
            return _transact(workspace, work)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            _logger.warning("The list of runs in %s is damaged (%s); it is made anew.", workspace.store, error)
            for suffix in ("", "-wal", "-shm"):
                workspace.store.with_name(workspace.store.name + suffix).unlink(missing_ok=True)
            return _transact(workspace, work)
    except (sqlite3.Error, OSError) as error:
        _logger.warning("The list of runs in %s cannot be used (%s); the run folders are read.", workspace.store, error)
        return None


def _transact(workspace: Workspace, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
    with closing(sqlite3.connect(workspace.store, timeout=_BUSY_SECONDS, isolation_level=None)) as store:
        with suppress(sqlite3.OperationalError):  # another process is just switching it, or the disk cannot
            store.execute("PRAGMA journal_mode = WAL")
        store.execute("BEGIN IMMEDIATE")
        try:
            if store.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                store.execute("DROP TABLE IF EXISTS runs")
                store.execute(_SCHEMA)
                store.execute(f"PRAGMA user_version = {VERSION}")
            result = work(store)
        except BaseException:
            store.rollback()
            raise
        store.execute("COMMIT")
    return result
