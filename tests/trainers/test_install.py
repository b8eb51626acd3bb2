"""`lorapod trainers`: installs from a repository on this machine, broken off, gone on with, checked and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorapod.trainers.install import sources

Lorapod = Callable[..., subprocess.CompletedProcess[str]]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
pytestmark = pytest.mark.skipif(PYTHON not in sources()["musubi"].python, reason="musubi-tuner needs an older Python")


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """A repository whose package has the trainer's name and needs nothing; its commit."""
    folder = tmp_path / "musubi-tuner"
    for name in ("torch", "accelerate", "musubi_tuner", "tensorboard"):
        (folder / "src" / name).mkdir(parents=True)
        (folder / "src" / name / "__init__.py").touch()
    (folder / "broken").write_text("", encoding="utf-8")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return folder, head


@pytest.fixture
def lorapod(tmp_path: Path) -> Lorapod:
    """`lorapod trainers` with a pip that does not look anything up: it puts the checkout's packages on the path."""
    pip = tmp_path / "pip/pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        "import os, pathlib, sys, sysconfig\n"
        "if 'freeze' in sys.argv:\n    print('somepackage==1.0')\n    sys.exit()\n"
        "if os.environ.get('PIP_FAILS'):\n    sys.exit('ERROR: no matching distribution')\n"
        "folder = pathlib.Path(sysconfig.get_paths()['purelib'])\n"
        "(folder / 'checkout.pth').write_text(os.getcwd() + '/src')\n",
        encoding="utf-8",
    )

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [
            sys.executable,
            "-m",
            "lorapod.cli.main",
            "--workspace",
            str(tmp_path / "workspace"),
            "trainers",
            *words,
        ]
        env = os.environ | {"COLUMNS": "200"} | environment
        return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120)

    return call


def install(lorapod: Lorapod, repository: tuple[Path, str], **environment: str) -> subprocess.CompletedProcess[str]:
    folder, commit = repository
    words = ("--source", str(folder), "--commit", commit, "--torch", "", "--cuda", "cpu", "--python", sys.executable)
    return lorapod("install", "musubi", *words, **environment)


def test_an_unknown_trainer_and_a_missing_commit_are_clear_errors(
    lorapod: Lorapod, repository: tuple[Path, str]
) -> None:
    unknown = lorapod("install", "kohya")
    assert unknown.returncode == 2 and "diffusion-pipe" in unknown.stderr
    missing = install(lorapod, (repository[0], "0" * 40))
    assert missing.returncode == 1 and "install.log" in missing.stderr and "Traceback" not in missing.stderr
    assert "no" in lorapod("list").stdout.split("musubi")[1].split()[0]


def test_an_environment_is_made_once_and_an_install_goes_on_where_it_failed(
    lorapod: Lorapod, repository: tuple[Path, str], tmp_path: Path
) -> None:
    # No index is at hand in a test: the step that looks packages up fails, all before it is kept.
    first = install(lorapod, repository, PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0", PIP_NO_INDEX="1")
    home = tmp_path / "workspace/trainers/musubi"
    assert first.returncode == 1 and "Run the same command again" in first.stderr
    assert (home / "repository/src/musubi_tuner").is_dir() and (home / "environment/bin/python").exists()
    made = (home / "environment/pyvenv.cfg").stat().st_mtime_ns
    pip = next((home / "environment/lib").glob("python*/site-packages/pip"))
    for file in (tmp_path / "pip/pip").iterdir():
        (pip / file.name).write_bytes(file.read_bytes())
    second = install(lorapod, repository)
    assert second.returncode == 0, second.stderr + second.stdout
    assert "Fetching" not in second.stdout and "environment" not in second.stdout, "done already"
    assert (home / "environment/pyvenv.cfg").stat().st_mtime_ns == made
    assert "is ready" in second.stdout and repository[1][:12] in lorapod("list").stdout
    (lock,) = home.glob("lock-*.txt")
    assert lock.read_text(encoding="utf-8") == "somepackage==1.0\n"
    assert "installed already" in install(lorapod, repository).stdout
    assert lorapod("check", "musubi").returncode == 0
    (home / "repository/src/musubi_tuner/__init__.py").write_text("raise ImportError('half')\n", encoding="utf-8")
    damaged = lorapod("check", "musubi")
    assert damaged.returncode == 1 and "changed" in damaged.stdout and "half" in damaged.stdout
    assert lorapod("remove", "musubi", "--yes").returncode == 0
    assert not (home / "environment").exists() and lock.is_file()
    assert lorapod("check", "musubi").returncode == 2
