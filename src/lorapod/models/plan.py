"""Before a byte is fetched: which files, from where, how large, what is there already, and whether it can work."""

from __future__ import annotations

from dataclasses import dataclass

from lorapod.errors import BaseModelError, DiskError
from lorapod.models.catalogue import Entry, FileSpec, Layout
from lorapod.models.hub import PICKLES, RemoteFile, Sources
from lorapod.models.parts import bytes_there
from lorapod.models.store import FileRecord, Store

_MOST_HEADROOM = 1 << 30


@dataclass(frozen=True)
class PlannedFile:
    """One file of a pull.

    Attributes:
        key: Its key in the store when it is there, else None.
        missing: Bytes that still have to be fetched.
        extra: Bytes that are needed beside it for a while, to convert it.
    """

    remote: RemoteFile
    key: str | None
    missing: int
    extra: int = 0


@dataclass(frozen=True)
class Plan:
    """What a pull will do."""

    entry: Entry
    files: tuple[PlannedFile, ...]
    locals: tuple[FileRecord, ...]
    pins: dict[str, str]

    @property
    def total(self) -> int:
        """Bytes of all files, those of one content counted once."""
        return sum({f.remote.key: f.remote.size for f in self.files}.values())

    @property
    def missing(self) -> int:
        """Bytes that have to be fetched, those of one content counted once."""
        return sum({f.remote.key: f.missing for f in self.files}.values())


def make_plan(entry: Entry, trainer: str | None, store: Store, sources: Sources) -> Plan:
    """What has to be fetched so that `trainer` can train the base model; for None, every file of the entry.

    Raises:
        BaseModelError: The trainer cannot train it, there is no access, or a file is not at its source.
        FetchError: A source cannot be reached.
    """
    files: list[PlannedFile] = []
    own: list[FileRecord] = []
    for spec in entry.files_for(trainer):
        if spec.local is not None:
            own.extend(_local_records(spec))
            continue
        files.extend(_planned(remote, store) for remote in sources.files_of(spec))
    return Plan(entry, tuple(files), tuple(own), sources.pins)


def _planned(remote: RemoteFile, store: Store) -> PlannedFile:
    known = None if remote.key.startswith("http") else remote.key
    converts = remote.is_pickle and remote.spec.pickle == "convert"
    there = store.alias(remote.alias) if converts or remote.is_pickle or known is None else known
    if there and _is_there(store, there, remote):
        return PlannedFile(remote, there, 0)
    missing = remote.size - min(remote.size, bytes_there(store.part(part_name(remote.key))))
    return PlannedFile(remote, None, missing, remote.size if converts else 0)


def _is_there(store: Store, key: str, remote: RemoteFile) -> bool:
    path = store.path(key)
    return path.is_file() and (key != remote.key or path.stat().st_size == remote.size)


def part_name(key: str) -> str:
    """What the files of a key on their way are called."""
    import hashlib

    return key.partition(":")[2] if not key.startswith("http") else hashlib.sha256(key.encode()).hexdigest()


def _local_records(spec: FileSpec) -> list[FileRecord]:
    """Records of a file or folder of the person's own.

    Raises:
        BaseModelError: It is not there any more, or is a pickle.
    """
    assert spec.local is not None
    place = spec.local
    if not place.exists():
        raise BaseModelError(
            f"{place} is not there any more",
            "The base model was added with this path.",
            "Put it back, or add it again.",
        )
    inner = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    records = []
    for path in inner:
        if path.suffix.lower() in PICKLES and spec.layout is not Layout.DIFFUSERS:
            raise BaseModelError(
                f"{path.name} is a pickle", "A pickle can run any code when it is opened.", "Use a .safetensors file."
            )
        target = str(path.relative_to(place)) if place.is_dir() else (spec.to or path.name)
        records.append(
            FileRecord(spec.layout, spec.part, target, path.stat().st_size, "", f"local:{path}", local=str(path))
        )
    return records


def check_space(plan: Plan, store: Store) -> None:
    """Whether what is missing fits on the disk, with a little to spare.

    Raises:
        DiskError: It does not.
    """
    need = plan.missing + max((f.extra for f in plan.files), default=0)
    headroom = min(_MOST_HEADROOM, need // 20)
    free = store.free()
    if need and need + headroom > free:
        raise DiskError(
            f"There is no space for {plan.entry.name}: {size_text(need + headroom)} are needed, {size_text(free)} are free",
            f"{size_text(plan.missing)} are still to be fetched to {store.models}.",
            "`lorapod models` shows what is on disk and what could go; or choose another disk with --workspace.",
        )


def size_text(size: float) -> str:
    """`812 B`, `4.2 MB` or `32.8 GB`, of decimal units."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
