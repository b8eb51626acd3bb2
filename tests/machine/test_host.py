"""Memory, processors and disks as a container may use them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from lorapod.machine import Disk, Host, Keeping, Severity, disk_of, find_host, host_findings

GB = 1_000_000_000


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_limit_of_a_container_counts_and_file_caches_are_free(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    write(group / "memory.max", f"{4 * GB}\n")
    write(group / "memory.current", f"{3 * GB}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {2 * GB}\n")
    write(group / "cpu.max", "150000 100000\n")
    host = find_host(tmp_path)
    assert host.memory_total == 4 * GB and host.memory_free == min(3 * GB, psutil.virtual_memory().available)
    assert host.cpus == min(1.5, len(os.sched_getaffinity(0)))


def test_version_1_groups_and_no_limit(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")
    write(group / "memory/docker/abc/memory.limit_in_bytes", f"{2 * GB}\n")
    write(group / "memory/docker/abc/memory.usage_in_bytes", f"{GB}\n")
    write(group / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(group / "cpu/docker/abc/cpu.cfs_quota_us", "50000\n")
    write(group / "cpu/docker/abc/cpu.cfs_period_us", "100000\n")
    host = find_host(tmp_path)
    assert (host.memory_total, host.memory_free, host.cpus) == (2 * GB, GB, 0.5)
    write(group / "memory/docker/abc/memory.limit_in_bytes", "-1\n")
    unlimited = tmp_path / "none"
    write(unlimited / "sys/fs/cgroup/memory.max", "max\n")
    assert find_host(unlimited).memory_total == psutil.virtual_memory().total


MOUNTS = """\
20 1 0:50 / / rw,relatime - {root} overlay rw
21 20 0:60 / {mount} rw,relatime - {system} storage rw
22 20 0:61 / /tmpfolder rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("root_system", "system", "volume_id", "keeping"),
    [
        ("overlay", "fuse", "", Keeping.NETWORK),
        ("overlay", "nfs4", "", Keeping.NETWORK),
        ("overlay", "xfs", "", Keeping.VOLUME),
        ("overlay", "ext4", "vol123", Keeping.NETWORK),
        ("overlay", "overlay", "", Keeping.CONTAINER),
        ("overlay", "tmpfs", "", Keeping.MEMORY),
        ("ext4", "ext4", "", Keeping.LOCAL),
    ],
)
def test_what_a_folder_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root_system: str, system: str, volume_id: str, keeping: Keeping
) -> None:
    monkeypatch.delenv("RUNPOD_POD_ID", raising=False)
    monkeypatch.setenv("RUNPOD_VOLUME_ID", volume_id)
    volume = tmp_path / "my volume"
    (volume / "workspace").mkdir(parents=True)
    mounted = str(volume).replace(" ", "\\040")
    write(tmp_path / "proc/self/mountinfo", MOUNTS.format(root=root_system, mount=mounted, system=system))
    disk = disk_of(volume / "workspace/not/there/yet", tmp_path)
    assert disk.keeping is keeping and disk.mount == volume and disk.total > 0
    findings = host_findings(Host(8, 64 * GB, 60 * GB), disk)
    lost = [f for f in findings if "LOST" in f.what]
    assert bool(lost) == (keeping in (Keeping.CONTAINER, Keeping.MEMORY))


def test_without_a_mount_of_its_own_a_pods_folder_is_on_the_containers_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", "abc")
    write(tmp_path / "proc/self/mountinfo", "20 1 0:50 / / rw,relatime - ext4 disk rw\n")
    assert disk_of(tmp_path, tmp_path).keeping is Keeping.CONTAINER


def _disk(free: int, **more: bool) -> Disk:
    return Disk(Path("/w"), Path("/w"), "ext4", 100 * GB, free, Keeping.VOLUME, **more)


def test_a_full_disk_is_a_fault_and_a_small_rest_a_warning() -> None:
    host = Host(8, 64 * GB, 60 * GB)
    assert host_findings(host, _disk(50 * GB)) == []
    assert [f.severity for f in host_findings(host, _disk(3 * GB))] == [Severity.WARNING]
    assert [f.severity for f in host_findings(host, _disk(1000))] == [Severity.FAULT]
    assert "cannot be written" in host_findings(host, _disk(50 * GB, writable=False))[0].what
    assert "memory" in host_findings(Host(2, 8 * GB, 7 * GB), _disk(50 * GB))[0].about
