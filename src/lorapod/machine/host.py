"""Processors, memory and disks, as this container may use them.

A pod sees the memory of its whole host, and is killed at its own limit, which is in the control groups.

Not covered: quotas of network volumes, whose free space the file system may state for the whole cluster.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

_NETWORK_SYSTEMS = re.compile(r"^(fuse(\..*)?|nfs\d?|cifs|smb3|ceph|lustre|beegfs|gpfs|glusterfs|9p|virtiofs|wekafs)$")
_LAYERED_SYSTEMS = frozenset({"overlay", "aufs", "fuse-overlayfs", "fuse.fuse-overlayfs"})
_NO_LIMIT = 1 << 60
"""Control groups of version 1 write a number near 2^63 for none."""


class Keeping(StrEnum):
    """How long what is written to a disk is kept."""

    NETWORK = "network volume"
    VOLUME = "volume"
    CONTAINER = "container disk"
    MEMORY = "memory"
    LOCAL = "local disk"


@dataclass(frozen=True)
class Disk:
    """Where a folder is.

    Attributes:
        mount: The mount that holds it.
        system: File system, as in `ext4`.
        total: Bytes.
        free: Bytes that this user may write.
        writable: Whether this user may write there.
    """

    folder: Path
    mount: Path
    system: str
    total: int
    free: int
    keeping: Keeping
    writable: bool = True

    @property
    def outlives_container(self) -> bool:
        return self.keeping in (Keeping.NETWORK, Keeping.VOLUME, Keeping.LOCAL)


@dataclass(frozen=True)
class Host:
    """Processors and memory.

    Attributes:
        cpus: Processors' worth of time that this process may use.
        memory_total: Bytes until the system kills a process.
        memory_free: Bytes of those that are free now; caches of files count as free.
        container: Whether this is inside a container.
        pod: The provider's id of this pod, or empty.
    """

    cpus: float
    memory_total: int
    memory_free: int
    container: bool = False
    pod: str = ""


def find_host(root: Path = Path("/")) -> Host:
    """The processors and the memory that are there for us.

    Args:
        root: Where `sys` and `proc` are, for tests.
    """
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _memory_limits(root):
        if limit < total:
            total = limit
        free = min(free, max(0, limit - used))
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = min([float(own), *_cpu_limits(root)])
    return Host(cpus, total, free, in_container(root), os.environ.get("RUNPOD_POD_ID", ""))


def in_container(root: Path = Path("/")) -> bool:
    """Whether this is inside a container, by the marks that the usual runtimes leave."""
    if os.environ.get("RUNPOD_POD_ID") or (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    entry = _mount_of(Path("/"), _read(root / "proc/self/mountinfo"))
    return entry is not None and entry[1] in _LAYERED_SYSTEMS


def disk_of(folder: Path, root: Path = Path("/")) -> Disk:
    """The disk that a folder is, or would be, on.

    Args:
        root: Where `proc` is, for tests.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    there = there.resolve()
    mounts = _read(root / "proc/self/mountinfo")
    mount, system = _mount_of(there, mounts) or (Path("/"), "")
    usage = shutil.disk_usage(there)
    return Disk(
        folder=folder,
        mount=mount,
        system=system,
        total=usage.total,
        free=usage.free,
        keeping=_keeping(mount, system, in_container(root)),
        writable=os.access(there, os.W_OK | os.X_OK),
    )


def _keeping(mount: Path, system: str, container: bool) -> Keeping:
    if system in ("tmpfs", "ramfs"):
        return Keeping.MEMORY
    if system in _LAYERED_SYSTEMS:
        return Keeping.CONTAINER
    if _NETWORK_SYSTEMS.match(system):
        return Keeping.NETWORK
    if not container:
        return Keeping.LOCAL
    if mount == Path("/"):
        return Keeping.CONTAINER
    return Keeping.NETWORK if os.environ.get("RUNPOD_VOLUME_ID") else Keeping.VOLUME


def _mount_of(folder: Path, mountinfo: str) -> tuple[Path, str] | None:
    """The mount that holds a folder and its file system, by `/proc/self/mountinfo` (proc(5)); the last one mounted wins."""
    best: tuple[Path, str] | None = None
    for line in mountinfo.splitlines():
        left, mark, right = line.partition(" - ")
        words = left.split(" ")
        if not mark or len(words) < 5:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4]))
        if folder.is_relative_to(mount) and (best is None or len(mount.parts) >= len(best[0].parts)):
            best = (mount, right.split(" ")[0])
    return best


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every control group above this process, in bytes; file caches are not counted as used."""
    base = root / "sys/fs/cgroup"
    for folder in _groups(root, base, ""):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None:
            yield limit, max(0, (used or 0) - _field(folder / "memory.stat", "inactive_file"))
    for folder in _groups(root, base / "memory", "memory"):
        limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            yield limit, max(0, (used or 0) - _field(folder / "memory.stat", "total_inactive_file"))


def _cpu_limits(root: Path) -> Iterator[float]:
    base = root / "sys/fs/cgroup"
    for folder in _groups(root, base, ""):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            yield int(words[0]) / int(words[1])
    for folder in _groups(root, base / "cpu", "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period


def _groups(root: Path, base: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of those above it; in a container, mostly just the base."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            folder = base / path.strip("/")
            if folder.is_dir():
                return [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return [base]


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _field(path: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", _read(path), re.MULTILINE)
    return int(found[1]) if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
