"""What is on disk: verifying it, what uses it, and removing it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lorapod.errors import BaseModelError, LorapodError
from lorapod.models.base_model import find_base_model
from lorapod.models.catalogue import Entry, Layout
from lorapod.models.fetch import check_component, component_of
from lorapod.models.parts import is_locked
from lorapod.models.store import FileRecord, Record, Store
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class Verdict:
    """What verifying found of one file, or of one component.

    Attributes:
        problem: Empty if all is well.
        removed: Whether the file was taken out of the store, so that the next pull fetches it again.
    """

    what: str
    problem: str = ""
    removed: bool = False


def verify(
    entry: Entry, workspace: Workspace, on_bytes: Callable[[FileRecord, int], None] = lambda record, count: None
) -> Iterator[Verdict]:
    """Reads every file of a base model and compares it with the hash that its source gave; then looks at the tensors.

    A damaged file that lorapod fetched is removed: it is of no use, and `pull` gets it again.

    Raises:
        BaseModelError: Nothing of it was fetched.
    """
    store = Store(workspace)
    record = store.record(entry.name)
    if not record.files:
        raise BaseModelError(
            f"Nothing of {entry.name} was fetched",
            "There is nothing to verify.",
            f"Run `lorapod models pull {entry.name}`.",
        )
    whole = True
    for file in sorted(record.files, key=lambda f: (f.layout, f.target)):
        verdict = _verify_file(file, store, on_bytes)
        whole = whole and not verdict.problem
        yield verdict
    if not whole:
        return
    for layout, component in sorted({(f.layout, component_of(f)) for f in record.files}):
        try:
            check_component(entry, record, store, Layout(layout), component)
        except LorapodError as error:
            yield Verdict(f"{layout}/{component}", f"{error.what}. {error.why}")


def _verify_file(file: FileRecord, store: Store, on_bytes: Callable[[FileRecord, int], None]) -> Verdict:
    path, shown = store.place(file), f"{file.layout}/{file.target}"
    if not path.is_file():
        return Verdict(shown, "it is not there any more")
    if file.local:
        return Verdict(shown)  # the person's own: there is nothing to compare it with
    algorithm, _, expected = file.key.partition(":")
    size = path.stat().st_size
    problem = f"it has {size} bytes in place of {file.size}" if size != file.size else ""
    if not problem:
        found = _hash(path, algorithm, lambda count: on_bytes(file, count))
        problem = "" if found == expected else f"its {algorithm} is {found[:16]}... in place of {expected[:16]}..."
    if problem:
        path.unlink()
    return Verdict(shown, problem, removed=bool(problem))


def _hash(path: Path, algorithm: str, on_bytes: Callable[[int], None]) -> str:
    size = path.stat().st_size
    digest = hashlib.sha1(f"blob {size}\0".encode()) if algorithm == "git" else hashlib.new(algorithm)
    with path.open("rb") as file:
        while content := file.read(4 << 20):
            digest.update(content)
            on_bytes(len(content))
    return digest.hexdigest()


@dataclass(frozen=True)
class Use:
    """What a base model takes on the disk.

    Attributes:
        size: Bytes of its files.
        alone: Bytes that would be free if it were removed.
        shared_with: Other base models that use some of its files.
    """

    model: str
    files: int
    size: int
    alone: int
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """What the store and the caches take on the disk, in bytes."""

    models: tuple[Use, ...]
    unused: int
    unfinished: int
    by_hand: tuple[tuple[str, int], ...]
    caches: tuple[tuple[str, int], ...]
    free: int


def space(workspace: Workspace) -> Space:
    """What is on disk, what uses it, and what could go."""
    store = Store(workspace)
    sizes = {key: path.stat().st_size for key, path in store.objects()}
    records = store.records()
    users: dict[str, set[str]] = {}
    for record in records:
        for file in record.files:
            if file.key in sizes:
                users.setdefault(file.key, set()).add(record.model)
    models = tuple(_use(record, sizes, users) for record in records)
    unused = sum(size for key, size in sizes.items() if key not in users)
    known = {record.model for record in records}
    return Space(
        models,
        unused,
        sum(size for _, size in store.unfinished()),
        tuple((f.name, folder_size(f)) for f in _by_hand(workspace, known)),
        tuple((name, folder_size(path)) for name, path in _caches(workspace) if path.is_dir()),
        store.free(),
    )


def _use(record: Record, sizes: dict[str, int], users: dict[str, set[str]]) -> Use:
    keys = {f.key for f in record.files if f.key in sizes}
    others = sorted(set().union(*(users[k] for k in keys)) - {record.model}) if keys else []
    alone = sum(sizes[k] for k in keys if users[k] == {record.model})
    return Use(record.model, len(record.files), sum(sizes[k] for k in keys), alone, tuple(others))


def _by_hand(workspace: Workspace, known: set[str]) -> list[Path]:
    """Folders of base models that somebody else put there."""
    if not workspace.models.is_dir():
        return []
    found = (p for p in workspace.models.iterdir() if p.is_dir() and p.name not in ("entries", *known))
    return sorted(p for p in found if not p.name.startswith("."))


def _caches(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    from huggingface_hub import constants

    if workspace.cache.is_dir():
        for folder in sorted(p for p in workspace.cache.iterdir() if p.is_dir()):
            yield f"cache/{folder.name}", folder
    yield "the hub client's cache (`hf cache prune` clears it)", Path(constants.HF_HUB_CACHE)


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed and hard links counted once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        found = path.stat()
        seen[(found.st_dev, found.st_ino)] = found.st_size
    return sum(seen.values())


def trainers_on_disk(entry: Entry, workspace: Workspace) -> list[str]:
    """The trainers that find all parts of a base model that they need on this disk."""
    if entry.packaged:
        return ["builtin"]
    store = Store(workspace)
    there = {(f.layout, f.part) for f in store.record(entry.name).files if store.place(f).is_file()}
    return [
        trainer
        for trainer in entry.trainers
        if all((s.layout, s.part) in there for s in entry.files_for(trainer))
        or (trainer == "builtin" and _is_found(entry.name, workspace))
    ]


def _is_found(name: str, workspace: Workspace) -> bool:
    """Whether the built-in engine finds a base model: pulled, put there by hand, or with what it is based on."""
    try:
        find_base_model(name, workspace)
    except BaseModelError:
        return False
    return True


@dataclass(frozen=True)
class Removal:
    """What removing would do: nothing is done until `remove` is called.

    Attributes:
        keys: Stored files that nothing else uses.
        bytes: Space that becomes free.
        kept: Files that another base model uses too.
        own: Files of the person's own, which stay where they are.
    """

    record: Record
    keys: tuple[str, ...]
    bytes: int
    kept: int
    own: tuple[str, ...]


def plan_removal(model: str, workspace: Workspace) -> Removal:
    """What removing a base model would do.

    Raises:
        BaseModelError: lorapod fetched nothing of it.
    """
    store = Store(workspace)
    record = store.record(model)
    if not record.files:
        raise BaseModelError(
            f"lorapod fetched nothing of {model}",
            "Only what lorapod fetched is removed.",
            "`lorapod models` shows what is on disk.",
        )
    elsewhere = {f.key for r in store.records() if r.model != model for f in r.files}
    keys = {f.key for f in record.files if f.key}
    mine = sorted(keys - elsewhere)
    size = sum(store.path(k).stat().st_size for k in mine if store.path(k).is_file())
    own = tuple(f.local for f in record.files if f.local)
    return Removal(record, tuple(mine), size, len(keys & elsewhere), own)


def remove(removal: Removal, workspace: Workspace) -> None:
    """Removes a base model's links, and the stored files that nothing else uses."""
    store = Store(workspace)
    for file in removal.record.files:
        store.unlink(file, removal.record.model)
    for key in removal.keys:
        store.path(key).unlink(missing_ok=True)
    removal.record.files = []
    store.save(removal.record)


def clean(workspace: Workspace) -> int:
    """Removes stored files that no base model uses, and files on their way that no process works on. Returns bytes freed."""
    store = Store(workspace)
    used = {f.key for r in store.records() for f in r.files}
    freed = 0
    for key, path in list(store.objects()):
        if key not in used:
            freed += path.stat().st_size
            path.unlink()
    for path in sorted((store.root / "parts").glob("*")):
        if is_locked(store.lock(path.name.partition(".")[0])):
            continue
        freed += path.stat().st_blocks * 512
        path.unlink()
    return freed
