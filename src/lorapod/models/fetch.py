"""Pulling a base model: plan, check, transfer, verify, link.

Each file is checked when it arrives (size and hash as the source says; a pickle is opened with weights-only loading and
converted), each component when its last file is there (tensor names and shapes of the family). What is done is recorded at
once, so that a pull that is broken off goes on where it was, and what is there is never fetched again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from lorapod.errors import BaseModelError, FetchError
from lorapod.files import disk_error, make_writable, sha256_of, sync_folder
from lorapod.models.catalogue import Entry, Layout
from lorapod.models.hub import RemoteFile, Sources, gated_error
from lorapod.models.parts import Part, bytes_there, locked
from lorapod.models.pickles import open_weights
from lorapod.models.plan import Plan, PlannedFile, check_space, make_plan, part_name
from lorapod.models.store import FileRecord, Record, Store
from lorapod.models.transfer import ChangedError, Patience, Watcher, transfer
from lorapod.models.web import RefusedError
from lorapod.models.weights import check_shapes
from lorapod.workspace import Workspace

FILES_AT_ONCE = 3
"""More do not pay on network volumes, which write 150 to 400 MB a second in all (shared measurements of pods)."""
_WEIGHTLESS = {"tokenizer", "tokenizer_2", "scheduler", "feature_extractor", "image_processor"}


class Progress:
    """Hears how a pull goes; this one says nothing. All methods may be called from any thread."""

    def begin(self, plan: Plan) -> None:
        """The plan was made and there is space for it."""

    def advance(self, file: RemoteFile, count: int) -> None:
        """New bytes of a file; a negative count takes back what was thrown away."""

    def note(self, text: str) -> None:
        """Something to tell the person."""

    def finished(self, file: RemoteFile) -> None:
        """A file is there and right."""


@dataclass(frozen=True)
class Options:
    """How a pull goes about it."""

    connections: int = 4
    files_at_once: int = FILES_AT_ONCE
    patience: Patience = field(default_factory=Patience)


def pull(
    entry: Entry,
    trainer: str | None,
    workspace: Workspace,
    progress: Progress | None = None,
    options: Options | None = None,
) -> Record:
    """Fetches what `trainer` needs of a base model (everything for None) and puts it where trainers look for it.

    Raises:
        BaseModelError: No access, no such file, or a file is not one of this base model.
        FetchError: A source cannot be reached or keeps failing; what has arrived is kept.
        DiskError: There is no space, or the workspace may only be read; then nothing was asked of a source.
        MissingPackageError: A pickle has to be opened and torch is not installed.
    """
    make_writable(workspace.models)
    job = _Pull(entry, trainer, workspace, progress or Progress(), options or Options())
    try:
        try:
            return job.run()
        except _StaleError:
            job.sources.forget_pins()
            return job.run()
    except _StaleError as error:
        raise FetchError(
            f"A file of {entry.name} changed at its source while it was fetched",
            str(error),
            "Run the same command again.",
        ) from error


class _StaleError(Exception):
    """What was planned is not at the source any more."""


class _Pull:
    def __init__(
        self, entry: Entry, trainer: str | None, workspace: Workspace, progress: Progress, options: Options
    ) -> None:
        self.entry, self.trainer, self.progress, self.options = entry, trainer, progress, options
        self.store = Store(workspace)
        self.record = self.store.record(entry.name)
        self.sources = Sources(entry, self.record.pins, options.patience, progress.note)
        self.stop = threading.Event()
        self.lock = threading.Lock()

    def run(self) -> Record:
        self.stop.clear()
        plan = make_plan(self.entry, self.trainer, self.store, self.sources)
        check_space(plan, self.store)
        self.progress.begin(plan)
        self.record.pins.update(plan.pins)
        for own in plan.locals:
            self._keep(own)
        self._fetch_all(plan)
        components = sorted({(f.layout, component_of(f)) for f in self.record.files})
        for layout, component in components:
            check_component(self.entry, self.record, self.store, Layout(layout), component)
        return self.record

    def _fetch_all(self, plan: Plan) -> None:
        """Small files first: they say soonest that something is wrong."""
        same: dict[str, list[PlannedFile]] = {}
        for planned in sorted(plan.files, key=lambda f: f.remote.size):
            same.setdefault(planned.remote.key, []).append(planned)
        with ThreadPoolExecutor(self.options.files_at_once, thread_name_prefix="lorapod-pull") as pool:
            jobs = [pool.submit(self._fetch_one, files) for files in same.values()]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            except BaseException:
                self._end(jobs)
                raise
            failed = [error for job in done if (error := job.exception()) is not None]
            if failed:
                self._end(jobs)
                raise failed[0]

    def _end(self, jobs: Iterable[Future[None]]) -> None:
        self.stop.set()
        for job in jobs:
            job.cancel()

    def _fetch_one(self, files: list[PlannedFile]) -> None:
        """Fetches what several places of the plan have in common, and links it into each."""
        first = files[0]
        key = first.key or self._fetch(first.remote)
        if key is None or self.stop.is_set():
            return
        for planned in files:
            self._keep(self._record_of(planned.remote, key))
        self.progress.finished(first.remote)

    def _record_of(self, remote: RemoteFile, key: str) -> FileRecord:
        path = self.store.path(key)
        found = path.stat()
        target = remote.target
        if remote.is_pickle and remote.spec.pickle == "convert":
            target = str(Path(target).with_suffix(".safetensors"))
        return FileRecord(
            layout=remote.spec.layout,
            part=remote.spec.part,
            target=target,
            size=found.st_size,
            key=key,
            origin=remote.origin,
            asked=remote.key if remote.key != key else "",
            modified=found.st_mtime_ns,
        )

    def _keep(self, record: FileRecord) -> None:
        name = self.entry.name
        with self.lock, locked(self.store.lock(f"record-{name}"), lambda: None):
            self.store.link(record, name)
            self.record.files = self.store.record(name).files  # another process may pull for another trainer
            self.record.put(record)
            self.store.save(self.record)

    def _fetch(self, remote: RemoteFile) -> str | None:
        """The key of a file in the store, fetched by this process or another one; None when stopped."""
        name = part_name(remote.key)
        seen = bytes_there(self.store.part(name))

        def waiting() -> None:
            nonlocal seen
            if self.stop.is_set():
                raise FetchError("The pull was stopped", "Another file of it failed.", "")
            now = bytes_there(self.store.part(name))
            if now > seen:
                self.progress.advance(remote, now - seen)
                seen = now

        with locked(self.store.lock(name), waiting):
            key = self._known(remote)
            if key is not None:
                self.progress.advance(remote, remote.size - seen)
                return key
            raw = self._fetch_raw(remote)
            if raw is None:
                return None
            if not remote.is_pickle:
                if raw != remote.key:
                    self.store.set_alias(remote.alias, raw)
                return raw
            return self._open_pickle(remote, raw)

    def _known(self, remote: RemoteFile) -> str | None:
        if remote.is_pickle or remote.key.startswith("http"):
            return self.store.alias(remote.alias)
        path = self.store.path(remote.key)
        return remote.key if path.is_file() and path.stat().st_size == remote.size else None

    def _fetch_raw(self, remote: RemoteFile) -> str | None:
        """The key of the bytes as they are at the source."""
        if not remote.key.startswith("http") and self.store.path(remote.key).is_file():
            return remote.key  # a pickle that could not be opened the last time
        for again in (False, True):
            digest = self._transfer(remote)
            if digest is None:
                return None
            expected = remote.key.partition(":")[2]
            if remote.key.startswith("http") or digest == expected:
                key = f"{remote.algorithm}:{digest}"
                self._finish(remote, key)
                return key
            with self._part(remote) as part:
                part.discard()
            self.progress.advance(remote, -remote.size)
            if not again:
                self.progress.note(
                    f"{remote.target} arrived damaged (its {remote.algorithm} is wrong); fetching it once more"
                )
        raise FetchError(
            f"{remote.target} arrives damaged",
            f"Its hash was wrong twice: {digest} in place of {expected}, from {remote.address.shown}.",
            "Something between the source and this machine changes it, or it is damaged at its source. Try another network.",
        )

    def _part(self, remote: RemoteFile) -> Part:
        return Part(self.store.part(part_name(remote.key)), remote.size, remote.key)

    def _transfer(self, remote: RemoteFile) -> str | None:
        watcher = Watcher(lambda count: self.progress.advance(remote, count), self.progress.note)
        with self._part(remote) as part:
            try:
                return transfer(
                    remote.address,
                    part,
                    remote.algorithm,
                    self.options.connections,
                    watcher,
                    self.options.patience,
                    self.stop,
                )
            except ChangedError as error:
                part.discard()
                raise _StaleError(str(error)) from error
            except RefusedError as error:
                if error.code in ("RevisionNotFound", "EntryNotFound", "RepoNotFound") or error.status in (
                    404,
                    410,
                    416,
                ):
                    raise _StaleError(str(error)) from error
                if error.status in (401, 403) and remote.spec.repo:
                    raise gated_error(remote.spec.repo) from error
                raise FetchError(
                    f"{remote.address.shown} does not hand the file out",
                    f"It answered {error.status}.",
                    "Try again later.",
                ) from error

    def _finish(self, remote: RemoteFile, key: str) -> None:
        target = self.store.path(key)
        try:
            with self._part(remote) as part:
                part.finish(target)
            sync_folder(target.parent)
        except OSError as error:
            raise disk_error(error, target) from error

    def _open_pickle(self, remote: RemoteFile, raw: str) -> str:
        """Looks into a pickle, converts it unless a trainer needs it as it is, and remembers what became of it."""
        path = self.store.path(raw)
        if remote.spec.pickle == "keep":
            open_weights(path, None)
            self.store.set_alias(remote.alias, raw)
            return raw
        self.progress.note(f"{remote.target}: converting to safetensors")
        temporary = self.store.root / "parts" / f"{part_name(remote.key)}.safetensors"
        try:
            open_weights(path, temporary)
            key = f"sha256:{sha256_of(temporary)}"
            target = self.store.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.chmod(0o444)
            temporary.replace(target)
        except OSError as error:
            raise disk_error(error, temporary) from error
        self.store.set_alias(remote.alias, key)
        if key != raw and not any(f.key == raw for r in self.store.records() for f in r.files):
            path.unlink(missing_ok=True)
        return key


def component_of(record: FileRecord) -> str:
    """What a file is a part of: in diffusers layout the folder that it is in, elsewhere its part."""
    return record.target.partition("/")[0] if record.layout == Layout.DIFFUSERS else record.part


def check_component(entry: Entry, record: Record, store: Store, layout: Layout, component: str) -> None:
    """Checks the headers of a component's files, and its tensors against the family's.

    Raises:
        BaseModelError: A file is cut off, missing, or of another base model.
    """
    files = [f for f in record.files if f.layout == layout and component_of(f) == component]
    gone = [f.target for f in files if not store.place(f).is_file()]
    if gone:
        raise BaseModelError(
            f"{entry.name} is not complete",
            f"Missing: {', '.join(gone[:5])}.",
            f"Run `lorapod models pull {entry.name}`.",
        )
    weights = [store.place(f) for f in files if f.target.endswith(".safetensors")]
    if weights and component not in _WEIGHTLESS:
        check_shapes(entry, layout, component, weights)
