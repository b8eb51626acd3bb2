"""`lorapod pod boot` as a process: what it says, what it makes, what listens, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fakes import gpus as fakes

pytest.importorskip("jupyterlab")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pod:
    """One container's worth of folders, and the boots in it."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.runtime, self.bin = folder / "volume", folder / "run", folder / "bin"
        self.bin.mkdir()
        self.port = free_port()
        self.home = folder / "home"
        self.home.mkdir()
        self.boots: list[subprocess.Popen[bytes]] = []
        self.log = folder / "container.log"
        self.environment = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(self.home),
            "NETWORK_VOLUME": str(self.workspace),
            "LORAPOD_RUNTIME": str(self.runtime),
            "RUNPOD_POD_ID": "abc123xyz",
        }

    def boot(self, **extra: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "lorapod.cli.main", "pod", "boot", f"--jupyter-port={self.port}"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(argv, env=self.environment | extra, stdout=log, stderr=log)
        self.boots.append(process)
        return process

    def ready(self, process: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + 40
        while "Ready after" not in self.said():
            assert process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return self.said()

    def said(self) -> str:
        return self.log.read_text()

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(20)

    def token(self) -> str:
        found = re.search(r"\?token=(\w+)", self.said())
        assert found
        return found[1]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, follow_redirects=False)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lorapod.cli.main", *words]
        return subprocess.run(argv, env=self.environment | {"COLUMNS": "80"}, capture_output=True, text=True)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    yield made
    for process in made.boots:
        if process.poll() is None:
            process.kill()
            process.wait()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_boot_opens_one_door_and_it_asks_for_the_token_in_the_log(pod: Pod) -> None:
    fakes.smi(pod.bin, (fakes.RTX4090,))
    process = pod.boot(HUGGING_FACE_TOKEN="hf_abcdefghijkl", GEMINI_API_KEY="gm_secret_value_1")
    said = pod.ready(process)
    seconds = float(re.search(r"Ready after ([\d.]+) s", said)[1])  # type: ignore[index]
    assert seconds < 10
    assert "NVIDIA GeForce RTX 4090" in said and "sm_89" in said and "570.86.15" in said
    assert f"https://abc123xyz-{pod.port}.proxy.runpod.net/lab?token={pod.token()}" in said
    assert "set: HF_TOKEN, GEMINI_API_KEY" in said
    assert "hf_abcdefghijkl" not in said and "gm_secret_value_1" not in said
    assert (pod.workspace / "image_dataset_here").is_dir() and (pod.workspace / "video_dataset_here").is_dir()

    assert pod.get("/api/contents").status_code == 403
    assert pod.get("/lab").status_code == 302
    assert pod.get("/api/contents", Authorization="token wrong").status_code == 403
    with httpx.Client(base_url=f"http://127.0.0.1:{pod.port}") as browser:
        assert browser.get("/lab", params={"token": pod.token()}).status_code == 200
        assert browser.get("/api/contents").status_code == 200  # by its cookie
        foreign = browser.get("/api/contents", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers  # another site's page cannot read it

    kept = pod.workspace / ".lorapod/jupyter.token"
    assert mode(kept) == 0o600 and mode(kept.parent) == 0o700 and kept.read_text().strip() == pod.token()
    for secret_file in (pod.runtime / "services.json", pod.workspace / ".lorapod/boot.log"):
        assert mode(secret_file) == 0o600
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    arguments = " ".join(word for one in family for word in one.cmdline())
    assert pod.token() not in arguments and "hf_abcdefghijkl" not in arguments and "allow_origin" not in arguments
    outside = {
        c.laddr.port
        for one in family for c in one.net_connections("tcp")
        if c.status == "LISTEN" and not c.laddr.ip.startswith("127.")
    }  # fmt: skip
    assert outside == {pod.port}

    services = [one.pid for one in family[1:]]
    assert pod.stop(process) == 0
    assert not any(psutil.pid_exists(pid) for pid in services)
    assert not (pod.runtime / "services.json").read_text().strip("[]\n ")


def test_a_second_boot_keeps_the_token_and_a_torn_one_is_made_anew(pod: Pod) -> None:
    first = pod.boot()
    pod.ready(first)
    token = pod.token()
    refused = pod.command("pod", "boot", f"--jupyter-port={free_port()}")
    assert refused.returncode == 2 and "booted already" in refused.stderr
    first.kill()  # as a provider does: nothing is cleaned up
    first.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not_free(pod.port):  # the services go with it
        time.sleep(0.1)
    second = pod.boot()
    pod.ready(second)
    assert pod.token() == token
    assert pod.stop(second) == 0
    (pod.workspace / ".lorapod/jupyter.token").write_text(token[:7])
    third = pod.boot()
    pod.ready(third)
    assert len(pod.token()) >= 22 and pod.token() != token
    assert pod.get("/api/contents", Authorization=f"token {token[:7]}").status_code == 403


def not_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_given_password_is_used_and_shown_nowhere(pod: Pod) -> None:
    process = pod.boot(JUPYTER_PASSWORD="my own long password")
    said = pod.ready(process)
    assert "my own long password" not in said and "asks for the password that you set" in said
    assert pod.get("/api/contents", Authorization="token my own long password").status_code == 200
    assert not (pod.workspace / ".lorapod/jupyter.token").exists()
    assert pod.command("status").stdout.count("my own long password") == 0


def test_settings_of_ones_own_that_open_jupyter_to_everybody_end_it(pod: Pod) -> None:
    config = pod.home / ".jupyter"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text("c.IdentityProvider.token = ''\n")
    process = pod.boot()
    said = pod.ready(process)
    assert "was ended: it let in a caller without a token" in said
    time.sleep(1)
    assert not not_free(pod.port)


def test_a_service_that_ends_is_started_again_and_leaves_no_zombie(pod: Pod) -> None:
    process = pod.boot()
    pod.ready(process)
    (jupyter,) = psutil.Process(process.pid).children()
    jupyter.kill()
    deadline = time.monotonic() + 20
    while "was started again" not in pod.said():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children()
    assert [child.status() for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
    assert children[0].pid != jupyter.pid


def test_an_old_templates_workspace_is_adopted_byte_for_byte(pod: Pod) -> None:
    for name in ("image_dataset_here", "diffusion_pipe/examples", "training_outputs/old", "models/Wan"):
        (pod.workspace / name).mkdir(parents=True)
    (pod.workspace / "image_dataset_here/a.jpg").write_bytes(b"jpg")
    (pod.workspace / "image_dataset_here/a.txt").write_text("caption")
    (pod.workspace / "diffusion_pipe/examples/dataset.toml").write_text("x = 1")
    (pod.workspace / "interactive_start_training.sh").write_text("#!/bin/sh")
    before = {p: p.read_bytes() for p in pod.workspace.rglob("*") if p.is_file()}
    process = pod.boot()
    said = pod.ready(process)
    assert "older template" in said and "image_dataset_here/ (1 there)" in said
    assert {p: p.read_bytes() for p in before} == before


def test_a_half_written_workspace_boots_and_is_left_as_it_is(pod: Pod) -> None:
    pod.workspace.mkdir()
    (pod.workspace / "image_dataset_here").write_text("a file where a folder should be")
    (pod.workspace / "training_outputs").symlink_to(pod.workspace / "gone")
    (pod.workspace / ".lorapod").mkdir()
    (pod.workspace / ".lorapod/jupyter.token").write_bytes(b"\xff\xfe\x00")
    process = pod.boot()
    said = pod.ready(process)
    assert "image_dataset_here is not a folder" in " ".join(said.split())
    assert (pod.workspace / "image_dataset_here").read_text() == "a file where a folder should be"
    assert pod.get("/api/contents", Authorization=f"token {pod.token()}").status_code == 200


def test_sigterm_lets_a_run_write_its_checkpoint_first(pod: Pod, recipe_file: Callable[..., Path]) -> None:
    process = pod.boot()
    pod.ready(process)
    started = pod.command("train", str(recipe_file()), "--detach", "--set", "training.steps=5000")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 90
    while json.loads(pod.command("runs", "show", "--json").stdout)["step"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "writes a checkpoint" in pod.said() and "Go on later with: lorapod train --resume" in pod.said()
    shown = json.loads(pod.command("runs", "show", "--json").stdout)
    assert shown["status"] == "stopped" and shown["checkpoints"]


def test_without_a_word_of_an_unknown_revision_the_images_own_runs(pod: Pod) -> None:
    process = pod.boot(git_branch="fancy")
    assert "names no repository" in pod.ready(process)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_another_revision_is_run_and_one_that_does_not_start_is_not(pod: Pod, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    source = Path(__file__).parents[2] / "src"
    shutil.copytree(source, repository / "src", ignore=shutil.ignore_patterns("__pycache__"))
    version = repository / "src/lorapod/__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.9.9"', version.read_text()))
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "dev"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (repository / "src/lorapod/cli/main.py").write_text("import a_package_that_is_not_in_the_image\n")
    for words in (["checkout", "-qb", "broken"], ["commit", "-qam", "y"]):
        subprocess.run([*git, *words], check=True)
    process = pod.boot(LORAPOD_REPOSITORY=str(repository), IS_DEV="true")
    assert "lorapod 9.9.9" in pod.ready(process)
    assert pod.stop(process) == 0
    process = pod.boot(LORAPOD_REPOSITORY=str(repository), git_branch="broken")
    said = pod.ready(process)
    assert "does not start in this image" in said and "lorapod 9.9.9" not in said
