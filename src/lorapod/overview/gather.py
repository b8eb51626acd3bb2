"""What is here: machine, workspace, keys, base models, trainers, captioners, runs, services. Nothing is judged here."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from lorapod import __version__
from lorapod.errors import LorapodError, RequestError
from lorapod.machine import Disk, Gpus, Host, TorchBuild, disk_of, find_gpus, find_host, find_torch
from lorapod.pods.runtime import Running, read_running
from lorapod.runs import list_runs
from lorapod.settings import KEYS
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class BaseModelState:
    """A base model that was fetched; `size` in bytes, `whole` whether every file of it is there."""

    name: str
    size: int
    whole: bool = True


@dataclass(frozen=True)
class TrainerState:
    """A trainer; `commit` is empty where it is not installed, or the built-in one."""

    name: str
    installed: bool
    commit: str = ""


@dataclass(frozen=True)
class CaptionerState:
    """A captioner; `lacks` says in words what it needs before it can be used."""

    name: str
    lacks: str = ""


@dataclass(frozen=True)
class RunState:
    """A run that goes on, or one of the last."""

    id: str
    name: str
    base_model: str
    status: str
    step: int
    total: int


@dataclass(frozen=True)
class Overview:
    """One look at everything.

    Attributes:
        keys: Name of a key to whether it is set; never its value.
        runs: Those that go on, then the last few.
        trouble: What could not be looked at, each with its remedy.
    """

    version: str
    workspace: Workspace
    host: Host
    disk: Disk
    gpus: Gpus
    torch: TorchBuild | None
    keys: dict[str, bool]
    models: tuple[BaseModelState, ...] = ()
    trainers: tuple[TrainerState, ...] = ()
    captioners: tuple[CaptionerState, ...] = ()
    runs: tuple[RunState, ...] = ()
    services: tuple[Running, ...] = ()
    trouble: tuple[LorapodError, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """For programs; sizes in bytes. Links of services hold their tokens, as the screen does."""
        found = asdict(self)
        del found["trouble"]
        found["workspace"] = str(self.workspace.root)
        found["disk"] |= {"folder": str(self.disk.folder), "mount": str(self.disk.mount)}
        found["services"] = [asdict(one) | {"alive": one.alive} for one in self.services]
        return found


_LAST_RUNS = 3


def gather(workspace: Workspace) -> Overview:
    """Looks at everything; what cannot be read is `trouble`, and the rest is there all the same."""
    trouble: list[LorapodError] = []
    gpus = find_gpus()
    keys = {key.name: key.is_set(os.environ) for key in KEYS}
    return Overview(
        version=__version__,
        workspace=workspace,
        host=find_host(),
        disk=disk_of(workspace.root),
        gpus=gpus,
        torch=find_torch(),
        keys=keys,
        models=_models(workspace, trouble),
        trainers=_trainers(workspace),
        captioners=_captioners(gpus),
        runs=_runs(workspace),
        services=tuple(read_running()),
        trouble=tuple(trouble),
    )


def _models(workspace: Workspace, trouble: list[LorapodError]) -> tuple[BaseModelState, ...]:
    from lorapod.models.store import Store

    store, found = Store(workspace), []
    for path in sorted((store.root / "records").glob("*.json")):
        try:
            record = store.record(path.stem)
        except LorapodError as error:
            trouble.append(error)
            continue
        whole = all(store.place(file).is_file() for file in record.files)
        found.append(BaseModelState(record.model, sum(file.size for file in record.files), whole))
    return tuple(found)


def _trainers(workspace: Workspace) -> tuple[TrainerState, ...]:
    from lorapod.trainers.installs import find_installation
    from lorapod.trainers.pins import installable

    found = [TrainerState("builtin", installed=all(map(_has, ("torch", "diffusers", "transformers", "peft"))))]
    for name in installable():
        try:
            found.append(TrainerState(name.value, True, find_installation(name, workspace).commit))
        except RequestError:
            found.append(TrainerState(name.value, False))
    return tuple(found)


def _captioners(gpus: Gpus) -> tuple[CaptionerState, ...]:
    from lorapod.captioning.registry import KNOWN, lacks

    largest = gpus.largest
    memory = (largest.memory_total or 0) / (1 << 30) if largest else 0.0
    return tuple(CaptionerState(name, " and ".join(lacks(name, os.environ, memory))) for name in KNOWN)


def _has(package: str) -> bool:
    """Whether a package is there, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _runs(workspace: Workspace) -> tuple[RunState, ...]:
    if not workspace.runs.is_dir():  # a look makes nothing, not even the list of runs
        return ()
    rows = list_runs(workspace)
    going = [row for row in rows if row.status == "running"]
    shown = going + [row for row in rows if row not in going][: max(0, _LAST_RUNS - len(going))]
    return tuple(RunState(row.id, row.name, row.base_model, row.status, row.step, row.total) for row in shown)
