"""Installs external trainers: checkout at a pinned commit, an environment of its own, and a lock of what went into it.

Each step is done once and noted, so that an install that was broken off goes on. Nothing is upgraded unasked: an install
that is whole is left alone, and a later one takes the versions of the lock. The lock is written after the first install that
passes the smoke test, beside the trainer, one for each Python and kind of torch. Not covered: flash-attention, which no
base model of the catalogue needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lorapod.errors import RequestError, StageFailedError
from lorapod.files import disk_error, write_text_whole
from lorapod.machine import find_gpus
from lorapod.trainers.installed import Installation, assumed, find_installation, folder_of
from lorapod.workspace import Workspace

Say = Callable[[str], None]
_TORCH_INDEX = "https://download.pytorch.org/whl/"
_LAST_LINES = 12


@dataclass(frozen=True)
class Source:
    """Where a trainer comes from, and what it needs."""

    name: str
    title: str
    repository: str
    commit: str
    submodules: tuple[str, ...]
    python: tuple[str, ...]
    torch: tuple[str, ...]
    install: tuple[str, ...]
    licence: str
    smoke: str


@dataclass(frozen=True)
class Wishes:
    """What a person may choose.

    Attributes:
        repository: A mirror or a local path in place of the trainer's own repository.
        commit: Another commit than the pinned one.
        python: Interpreter to make the environment with.
        cuda: Kind of torch, as in `cu128`, or `cpu`; found by the driver where it is not given.
        torch: Requirements of torch in place of those of the trainer; an empty list installs none.
    """

    repository: str | None = None
    commit: str | None = None
    python: Path | None = None
    cuda: str | None = None
    torch: tuple[str, ...] | None = None


@cache
def sources() -> dict[str, Source]:
    """The trainers that can be installed."""
    table = tomllib.loads((resources.files("lorapod.trainers") / "sources.toml").read_text(encoding="utf-8"))
    found = {}
    for name, values in table.items():
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        found[name] = Source(name=name, **fields)
    return found


def source_of(name: str) -> Source:
    """The trainer of that name.

    Raises:
        RequestError: There is none.
    """
    if name not in sources():
        raise RequestError(f"There is no trainer {name} to install", "", f"Name one of: {', '.join(sources())}.")
    return sources()[name]


def install(name: str, workspace: Workspace, wishes: Wishes, say: Say) -> Installation:
    """Installs a trainer, or goes on with an install that was broken off.

    Raises:
        RequestError: No such trainer, no fitting Python, or git is missing.
        StageFailedError: A step failed; what is done already is kept.
        DiskError: No space.
    """
    source, place = source_of(name), assumed(name, workspace)
    commit = wishes.commit or source.commit
    folder = folder_of(name, workspace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    note = folder / "installed.json"
    if _read(note).get("commit") == commit and place.python.exists():
        say(f"{source.title} is installed already, at {commit[:12]}")
        return find_installation(name, workspace)
    steps, home = _Steps(folder, say), place.home
    home.mkdir(exist_ok=True)
    git = _checkout(home, wishes.repository or source.repository, commit, source.submodules)
    steps.once(f"checkout {commit}", f"Fetching {source.title} at {commit[:12]}", git)
    python = _python(source, wishes.python)
    version, cuda = _version_of(python), wishes.cuda or _cuda()
    make = [str(python), "-m", "venv", "--clear", str(folder / "environment")]
    steps.once(f"environment {version}", f"Making its environment with Python {version}", [make])
    pip = [str(place.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    lock = folder / f"lock-{commit[:12]}-py{version}-{cuda}.txt"
    if lock.is_file():
        pip += ["--constraint", str(lock)]
    torch = list(source.torch if wishes.torch is None else wishes.torch)
    if torch:
        index = [] if wishes.torch is not None else ["--index-url", f"{_TORCH_INDEX}{cuda}"]
        steps.once(
            f"torch {cuda} {torch}", f"Installing {' '.join(torch)} ({cuda}), several GB", [[*pip, *index, *torch]]
        )
    steps.once(f"packages {commit}", "Installing what it needs", [[*pip, *source.install]])
    steps.once(f"smoke {commit}", "Looking whether it can be imported", [[str(place.python), "-c", source.smoke]])
    if not lock.is_file():
        write_text_whole(lock, steps.run([str(place.python), "-m", "pip", "freeze", "--exclude-editable"]))
    write_text_whole(note, json.dumps({"commit": commit, "python": version, "cuda": cuda, "lock": lock.name}) + "\n")
    return find_installation(name, workspace)


def check(name: str, workspace: Workspace) -> list[str]:
    """What is wrong with an installed trainer; nothing where it is whole.

    Raises:
        RequestError: It is not installed.
    """
    source, place = source_of(name), find_installation(name, workspace)
    wrong = []
    head = _output(["git", "-C", str(place.home), "rev-parse", "HEAD"])
    if head != place.commit:
        wrong.append(f"Its checkout is at {head[:12] or 'no commit'}, not at {place.commit[:12]}; install it again.")
    if _output(["git", "-C", str(place.home), "status", "--porcelain", "--untracked-files=no"]):
        wrong.append("Files of its checkout were changed.")
    wrong += [f"The submodule {path} is empty." for path in source.submodules if not any((place.home / path).glob("*"))]
    ended = subprocess.run(
        [str(place.python), "-c", source.smoke], cwd=place.home, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        wrong.append("It cannot be imported: " + (ended.stderr.strip().splitlines() or ["no reason given"])[-1])
    return wrong


def remove(name: str, workspace: Workspace) -> int:
    """Removes a trainer's checkout and environment, which lorapod made; the lock stays. Gives the bytes that are free now.

    Raises:
        RequestError: It is not there.
    """
    folder = folder_of(name, workspace)
    if not folder.is_dir():
        find_installation(name, workspace)
    freed = 0
    for part in ("environment", "repository"):
        for path in (folder / part).rglob("*"):
            freed += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        if (folder / part).exists():
            shutil.rmtree(folder / part)
    for note in ("installed.json", "steps.json"):
        (folder / note).unlink(missing_ok=True)
    return freed


class _Steps:
    """Runs steps once each; what is done is noted in `steps.json`, what is printed in `install.log`."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say = folder, say
        self.done: list[str] = _read(folder / "steps.json").get("done", [])

    def once(self, key: str, text: str, commands: list[list[str]]) -> None:
        """Runs the commands of a step, unless it was done before."""
        if key in self.done:
            return
        self.say(text)
        for argv in commands:
            self.run(argv)
        self.done.append(key)
        write_text_whole(self.folder / "steps.json", json.dumps({"done": self.done}))

    def run(self, argv: list[str]) -> str:
        """Runs a command; gives what it printed.

        Raises:
            RequestError: The program is not there.
            StageFailedError: It failed.
        """
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        environment["GIT_TERMINAL_PROMPT"] = "0"
        try:
            ended = subprocess.run(
                argv, cwd=self.folder / "repository", env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise RequestError(f"{argv[0]} is not on this machine", "", f"Install {argv[0]} and try again.") from error
        with (self.folder / "install.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(argv)}\n{ended.stdout}\n")
        if ended.returncode:
            last = "\n".join(ended.stdout.strip().splitlines()[-_LAST_LINES:])
            raise StageFailedError(
                f"A step of the installation failed: {Path(argv[0]).name} {' '.join(argv[1:5])}",
                last,
                f"The whole output is in {self.folder / 'install.log'}. Run the same command again to go on from here.",
            )
        return ended.stdout


def _checkout(home: Path, repository: str, commit: str, submodules: tuple[str, ...]) -> list[list[str]]:
    """Commands that bring a checkout to a commit, from whatever state an earlier attempt left it in."""
    git = ["git", "-C", str(home)]
    local = Path(repository).expanduser()
    address = str(local.resolve()) if local.exists() else repository
    commands = [[*git, "init", "--quiet"], [*git, "fetch", "--quiet", "--depth", "1", address, commit]]
    commands.append([*git, "checkout", "--quiet", "--detach", commit])
    return commands + [[*git, "submodule", "update", "--init", "--depth", "1", path] for path in submodules]


def _python(source: Source, wished: Path | None) -> Path:
    """An interpreter of a version that the trainer runs on."""
    names = [wished] if wished else [Path(sys.executable), *(Path(f"python{v}") for v in reversed(source.python))]
    for name in names:
        found = shutil.which(str(name))
        if found and _version_of(Path(found)) in source.python:
            return Path(found)
    raise RequestError(
        f"{source.title} needs Python {' or '.join(source.python)}",
        f"{wished} is another one." if wished else "None of them is on this machine.",
        "Install one, or give its path with --python.",
    )


def _version_of(python: Path) -> str:
    return _output([str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])


def _cuda() -> str:
    """The kind of torch for the driver: CUDA 12.8, the first that knows Blackwell, or none without a GPU."""
    return "cu128" if find_gpus().asked else "cpu"


def _output(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
