"""The boot as a container meets it: process 1 in namespaces of its own, with a full, read-only or missing disk, no network,
and real sshd. Needs root and Linux namespaces.

With `LORAPOD_TEST_ROOT=FOLDER`, a root folder such as

    debootstrap --variant=minbase --include=openssh-server,openssh-client,git bookworm FOLDER

the boot runs chrooted in it: with that system's files, sshd and empty home, and only Python brought in.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fakes import gpus as fakes
from pods.test_boot import free_port

pytest.importorskip("jupyterlab")

SOURCE = Path(__file__).parents[2] / "src"
ROOT = os.environ.get("LORAPOD_TEST_ROOT", "")


def _can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(not _can_unshare(), reason="needs root and namespaces")


class Container:
    """A boot as process 1 of a process namespace, in a mount namespace where `/workspace` and `/root` are its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.ssh_port = folder, free_port(), free_port()
        self.log = folder / "container.log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *setup: str, network: bool = True, **environment: str) -> None:
        """Starts the boot after the shell lines `setup`, in which $W is the volume and $H the home."""
        root = Path(ROOT or self.folder / "root")
        brought = {sys.base_prefix, sys.prefix, str(SOURCE), str(self.bin), *self._packages()}
        lines = ["set -e", "mount --make-rprivate /"]
        if ROOT:
            lines += [f"for f in proc dev sys; do mount --rbind /$f {root}/$f; done"]
            lines += [f"mkdir -p {root}{f} && mount --bind {f} {root}{f}" for f in sorted(brought) if f]
        lines += [
            f"W={self.folder}/volume; H={self.folder}/home; mkdir -p $W $H",
            "mount -t tmpfs -o size=64m tmpfs $W && mount -t tmpfs tmpfs $H && mount -t tmpfs -o mode=755 tmpfs /run",
            *setup,
        ]
        if ROOT:
            lines += [
                f"mkdir -p {root}$W {root}$H",
                f"mount --rbind $W {root}$W",
                f"mount --rbind $H {root}$H",
                f"mount -t tmpfs -o mode=755 tmpfs {root}/run",
            ]
        if not network:
            lines += ["ip link set lo up || true"]
        words = [sys.executable, "-m", "lorapod.cli.main", "pod", "boot"]
        words += [f"--jupyter-port={self.port}", f"--ssh-port={self.ssh_port}"]
        command = shlex.join(words)
        lines += [f"exec chroot {root} {command}" if ROOT else f"exec {command}"]
        own = {
            "PATH": f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *self._packages()]),
            "NETWORK_VOLUME": f"{self.folder}/volume",
            "HOME": f"{self.folder}/home",
            "RUNPOD_POD_ID": "abc123xyz",
        }
        argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", *([] if network else ["--net"])]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*argv, "/bin/bash", "-c", "\n".join(lines)], env=own | environment, stdout=log, stderr=log
            )

    @staticmethod
    def _packages() -> list[str]:
        """Folders of packages, also those that a `.pth` file brings in."""
        found = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
        return list(dict.fromkeys([*found, *site.getsitepackages()]))

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def flat(self) -> str:
        return " ".join(self.said().replace("!", " ").split())

    def ready(self) -> str:
        assert self.process is not None
        deadline = time.monotonic() + 40
        while "Ready after" not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return self.said()

    def first(self) -> psutil.Process:
        """The boot itself, as seen from outside; it is process 1 inside."""
        assert self.process is not None
        (boot,) = psutil.Process(self.process.pid).children()
        return boot

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the namespaces of the boot."""
        pid = self.first().pid
        enter = [
            "nsenter",
            "-t",
            str(pid),
            "--mount",
            "--pid",
            "--net",
            *([f"--root=/proc/{pid}/root"] if ROOT else []),
        ]
        environment = psutil.Process(pid).environ()
        return subprocess.run([*enter, *words], capture_output=True, text=True, env=environment, timeout=60)

    def lorapod(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.inside(sys.executable, "-m", "lorapod.cli.main", *words)

    def token(self) -> str:
        found = re.search(r"\?token=(\w+)", self.said())
        assert found, self.said()
        return found[1]

    def is_open(self) -> int:
        headers = {"Authorization": f"token {self.token()}"}
        return httpx.get(f"http://127.0.0.1:{self.port}/api/contents", headers=headers).status_code

    def stop(self) -> int:
        assert self.process is not None
        self.first().send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        for child in psutil.Process(made.process.pid).children():
            child.kill()  # with process 1 its whole namespace goes
        made.process.wait()


def test_as_process_1_it_leaves_no_zombie_and_stops_cleanly(container: Container) -> None:
    fakes.smi(container.bin, (fakes.RTX4090,))
    container.start()
    container.ready()
    assert container.is_open() == 200
    container.inside("sh", "-c", "setsid sh -c 'sleep 0.2; exit 3' & exit 0")  # an orphan, left to process 1
    time.sleep(1.5)
    states = [child.status() for child in container.first().children(recursive=True)]
    assert states and psutil.STATUS_ZOMBIE not in states
    assert container.stop() == 0
    assert "Asked to stop." in container.said()


def test_a_full_volume_stops_no_service_and_is_told(container: Container) -> None:
    container.start("dd if=/dev/zero of=$W/filler bs=1M 2>/dev/null || true")
    container.ready()
    assert "is full" in container.flat() and "Free some space" in container.flat()
    assert container.is_open() == 200
    kept = container.inside("sh", "-c", "cat /run/lorapod/jupyter.token; stat -c %a /run/lorapod/jupyter.token")
    assert kept.stdout.split() == [container.token(), "600"]
    assert container.token() in container.lorapod("status").stdout
    assert container.lorapod("doctor").returncode == 1


def test_a_read_only_home_and_a_read_only_workspace(container: Container) -> None:
    container.start("mount -o remount,ro $H", "mkdir $W/training_outputs", "mount -o remount,ro $W")
    container.ready()
    assert "Cannot write" in container.flat() or "cannot be written" in container.flat()
    assert container.is_open() == 200


def test_without_a_network_it_is_ready_in_time(container: Container) -> None:
    container.start(network=False)
    said = container.ready()
    assert float(re.search(r"Ready after ([\d.]+) s", said)[1]) < 10  # type: ignore[index]
    assert "are not found" in container.flat() and "global networking" in container.flat()
    probe = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{container.port}/api').status)"
    assert container.inside(sys.executable, "-c", probe).stdout.strip() == "200"


@pytest.mark.skipif(not ROOT and shutil.which("sshd", path="/usr/sbin:/usr/bin") is None, reason="no sshd")
def test_ssh_lets_in_the_key_and_nobody_else_and_its_shells_know_the_workspace(container: Container) -> None:
    making, prefix = "ssh-keygen -q -t ed25519 -N '' -f /tmp/lorapod-test-key", f"chroot {ROOT} " if ROOT else ""
    key_file = Path(f"{ROOT}/tmp/lorapod-test-key")
    key_file.unlink(missing_ok=True)
    key_file.with_suffix(".pub").unlink(missing_ok=True)
    subprocess.run(shlex.split(prefix + making), check=True)
    try:
        public = key_file.with_suffix(".pub").read_text()
        container.start(
            PUBLIC_KEY=public, HF_TOKEN="hf_a \"quoted\" value=", RUNPOD_PUBLIC_IP="203.0.113.7",
            **{f"RUNPOD_TCP_PORT_{container.ssh_port}": "41022"},
        )  # fmt: skip
        container.ready()
        assert "ssh root@203.0.113.7 -p 41022" in container.said()
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "IdentitiesOnly=yes")
        ssh = ["ssh", "-p", str(container.ssh_port), *(word for option in options for word in ("-o", option))]
        asked = 'printf "%s|%s" "$NETWORK_VOLUME" "$HF_TOKEN"'
        inside = container.inside(*ssh, "-i", "/tmp/lorapod-test-key", "root@127.0.0.1", asked)
        assert inside.stdout == f'{container.folder}/volume|hf_a "quoted" value=', inside.stderr
        stranger = container.inside(*ssh, "-i", "/dev/null", "root@127.0.0.1", "true")
        assert stranger.returncode == 255 and "Permission denied (publickey)" in stranger.stderr
        kept = container.inside("stat", "-c", "%a", f"{container.folder}/volume/.lorapod/ssh_host_ed25519_key")
        assert kept.stdout.strip() == "600"
    finally:
        key_file.unlink(missing_ok=True)
        key_file.with_suffix(".pub").unlink(missing_ok=True)
