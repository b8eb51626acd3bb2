"""External trainers on this machine: each a checkout at a pinned commit, with a virtual environment of its own.

    trainers/NAME/checkout/       the trainer's sources, never edited
    trainers/NAME/venv/           its environment
    trainers/NAME/install.json    what is there: where it came from, the commit, which steps are done
    trainers/NAME/lock-COMMIT-pyVERSION-KIND.txt    the versions that went into it, one for each Python and kind of torch

An installation that was broken off goes on with the step that it was at. Nothing is upgraded unasked: another commit is
another `install`, and a later one of the same kind takes the versions of its lock. A checkout of the person's own is used
where it is (`--use`). Not covered: Windows; flash-attention, which no base model of the catalogue needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorapod.errors import RequestError, StageFailedError
from lorapod.files import disk_error, write_text_whole
from lorapod.machine import find_gpus
from lorapod.recipe import TrainerName
from lorapod.trainers.pins import Pin, pin_of
from lorapod.workspace import Workspace

Say = Callable[[str], None]

_TORCH = "https://download.pytorch.org/whl/"
"""Below it is an index of torch for each kind."""


@dataclass
class Installation:
    """A trainer on this machine.

    Attributes:
        home: Its checkout.
        python: Interpreter of its environment.
        commit: Of the checkout; empty where it is no git checkout.
        own: The person's own checkout and environment, which lorapod does not change.
        kind: Of its torch, as `cu128` or `cpu`.
        done: Steps of the installation that are done.
    """

    name: str
    home: str
    python: str
    commit: str = ""
    source: str = ""
    own: bool = False
    kind: str = ""
    done: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.own or "checked" in self.done


def folder_of(name: TrainerName, workspace: Workspace) -> Path:
    """Where a trainer is, or will be: in the workspace, or where a container's image brings it (`$LORAPOD_TRAINERS`)."""
    own = workspace.root / "trainers" / name.value
    baked = Path(os.environ.get("LORAPOD_TRAINERS") or "/nowhere") / name.value
    return baked if (baked / "install.json").is_file() and not own.exists() else own


def find_installation(name: TrainerName, workspace: Workspace) -> Installation:
    """The trainer, ready to be started.

    Raises:
        RequestError: It is not installed, or not wholly, or was removed by hand.
    """
    found = read_installation(name, workspace)
    install = f"lorapod trainers install {name.value}"
    if found is None:
        raise RequestError(
            f"The trainer {name.value} is not installed",
            f"It is looked for in {folder_of(name, workspace)}.",
            f"Install it with `{install}`, or name a checkout of your own with `{install} --use FOLDER`.",
        )
    if not found.is_complete:
        raise RequestError(
            f"The installation of {name.value} was broken off",
            f"Done so far: {', '.join(found.done) or 'nothing'}.",
            f"Go on with `{install}`; what is done is kept.",
        )
    for path in (Path(found.home), Path(found.python)):
        if not path.exists():
            raise RequestError(f"The trainer {name.value} is not there any more", f"{path} is missing.", f"`{install}`")
    return found


def read_installation(name: TrainerName, workspace: Workspace) -> Installation | None:
    """What is noted of a trainer's installation; None where nothing is."""
    path = folder_of(name, workspace) / "install.json"
    try:
        return Installation(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"Cannot read {path}", str(error), "Delete it and install the trainer again.") from error


def use(name: TrainerName, workspace: Workspace, home: Path, python: Path | None) -> Installation:
    """Notes a checkout and an environment of the person's own.

    Raises:
        RequestError: There is no such checkout or interpreter.
    """
    home = home.expanduser().resolve()
    pin = pin_of(name)
    if not (home / pin.marker).is_file():
        raise RequestError(f"{home} is no checkout of {name.value}", f"It has no {pin.marker}.", "Check the path.")
    candidates = [python] if python else [home / "venv/bin/python", home / ".venv/bin/python"]
    found = next((each.expanduser().absolute() for each in candidates if each.expanduser().is_file()), None)
    if found is None:
        raise RequestError(
            f"The environment of {home} was not found",
            "It has neither venv/bin/python nor .venv/bin/python." if python is None else f"There is no {python}.",
            "Name its interpreter with --python.",
        )
    installation = Installation(name.value, str(home), str(found), commit_of(home), str(home), own=True)
    _write(installation, workspace)
    return installation


def install(
    name: TrainerName,
    workspace: Workspace,
    say: Say,
    *,
    source: str | None = None,
    commit: str | None = None,
    python: Path | None = None,
    mirror: str | None = None,
    kind: str | None = None,
) -> Installation:
    """Installs a trainer, or goes on where an installation was broken off.

    Args:
        source: Repository or path in place of the trainer's own.
        commit: In place of the pinned one, which lorapod was tested with.
        python: Interpreter to make the environment with.
        mirror: Address or folder below which submodules are found as `OWNER/NAME`, in place of where the trainer says.
        kind: Of torch, as `cu128` or `cpu`; found by the GPU where it is not given.

    Raises:
        RequestError: No fitting interpreter, or a kind of torch that is none.
        StageFailedError: A command failed; what is done stays.
    """
    pin, folder = pin_of(name), folder_of(name, workspace)
    source, commit = source or pin.repository, commit or pin.commit
    found = read_installation(name, workspace)
    kind = kind or (found.kind if found else "") or torch_kind()
    if not re.fullmatch(r"cpu|cu\d{3}|rocm\d\.\d", kind):
        raise RequestError(f"{kind} is no kind of torch", "", "Give one as cu128 or cpu.")
    if found is None or found.own or (found.source, found.commit, found.kind) != (source, commit, kind):
        done = [] if found is None or found.own or found.source != source else [s for s in found.done if s == "cloned"]
        found = Installation(
            name.value, str(folder / "checkout"), str(folder / "venv/bin/python"), commit, source, kind=kind, done=done
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    for step, argv in _steps(found, pin, folder, python, mirror):
        if step in found.done and step != "checked":
            continue
        say(f"{name.value}: {_SAID[step]}")
        for command in argv:
            _run(command, folder, step, name)
        found.done = [*(each for each in found.done if each != step), step]
        _write(found, workspace)
    lock = _lock(found, folder)
    if not lock.exists():
        listed = subprocess.run(
            [found.python, "-m", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True, check=False
        )
        if listed.returncode == 0:
            write_text_whole(lock, listed.stdout)
    return found


def torch_kind() -> str:
    """The kind of torch for this machine's GPU: CUDA 12.8, the first that knows Blackwell, or none without a GPU."""
    return "cu128" if find_gpus().found else "cpu"


def _lock(found: Installation, folder: Path) -> Path:
    """Where the versions of an environment are written down."""
    asked = subprocess.run(
        [found.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return folder / f"lock-{found.commit[:12]}-py{asked.stdout.strip()}-{found.kind}.txt"


_SAID = {
    "cloned": "fetching the sources",
    "checked out": "checking out the pinned commit",
    "submodules": "fetching what the sources need",
    "environment": "making a virtual environment",
    "torch": "installing torch (gigabytes; a few minutes)",
    "packages": "installing its packages",
    "checked": "checking that it can be imported",
}


def _steps(
    found: Installation, pin: Pin, folder: Path, python: Path | None, mirror: str | None
) -> Iterator[tuple[str, list[list[str]]]]:
    home, interpreter = Path(found.home), found.python
    git = ["git", "-C", str(home), "-c", "advice.detachedHead=false"]
    if "cloned" not in found.done and home.exists():
        shutil.rmtree(home)  # ours, and half of a clone
    yield "cloned", [["git", "clone", "--no-checkout", "--quiet", found.source, str(home)]]
    yield (
        "checked out",
        [[*git, "fetch", "--quiet", "origin", found.commit], [*git, "checkout", "--quiet", found.commit]],
    )
    commands = []
    for path, repository in pin.submodules.items():
        address = f"{mirror.rstrip('/')}/{repository}" if mirror else f"https://github.com/{repository}"
        commands += [
            [*git, "config", f"submodule.{path}.url", address],
            [*git, "submodule", "--quiet", "init", path],
            [*git, "config", f"submodule.{path}.url", address],  # `init` takes the address of .gitmodules
            [*git, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--depth", "1", path],
        ]
    yield "submodules", commands
    yield "environment", [[_interpreter(pin, python), "-m", "venv", str(folder / "venv")]]
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    lock = _lock(found, folder) if Path(interpreter).exists() else None
    if lock and lock.is_file():
        pip += ["--constraint", str(lock)]
    yield "torch", [[*pip, "--index-url", f"{_TORCH}{found.kind}", *pin.torch]] if pin.torch else []
    requirements = [
        str(home / part) if part.endswith(".txt") else str(home) if part == "." else part for part in pin.requirements
    ]
    yield "packages", [[*pip, *requirements]] if requirements else []
    yield "checked", check_commands(found, pin)


def check_commands(found: Installation, pin: Pin) -> list[list[str]]:
    """The commands that show whether a trainer can be imported."""
    return [
        [found.python, "-c", f"import os, sys; os.chdir({found.home!r}); sys.path.insert(0, '')\n{line}"]
        for line in pin.smoke
    ]


def check(name: TrainerName, workspace: Workspace) -> list[str]:
    """What is wrong with an installation; nothing where it can be started.

    Raises:
        RequestError: It is not installed.
    """
    found, pin, said = find_installation(name, workspace), pin_of(name), []
    if found.commit and found.commit != pin.commit:
        said.append(f"Its commit is {found.commit[:12]}; this lorapod was made for {pin.commit[:12]}")
    if not found.own and commit_of(Path(found.home)) not in ("", found.commit):
        said.append("Its checkout is at another commit than was installed")
    if not found.own and _changed(Path(found.home)):
        said.append("Files of its checkout were changed")
    for argv in check_commands(found, pin):
        asked = subprocess.run(argv, capture_output=True, text=True, cwd=found.home, check=False)
        if asked.returncode:
            said.append((asked.stderr.strip().splitlines() or ["It failed without a word"])[-1])
    return said


def _changed(home: Path) -> bool:
    asked = subprocess.run(
        ["git", "-C", str(home), "status", "--porcelain", "--untracked-files=no"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return bool(asked.stdout.strip())


def remove(name: TrainerName, workspace: Workspace) -> bool:
    """Removes what lorapod installed, but for its locks; a checkout of the person's own is only forgotten. False: there was
    nothing."""
    folder = folder_of(name, workspace)
    if not (folder / "install.json").exists():
        return False
    try:
        for part in ("checkout", "venv"):
            shutil.rmtree(folder / part, ignore_errors=not (folder / part).exists())
        (folder / "install.json").unlink()
    except OSError as error:
        raise disk_error(error, folder) from error
    return True


def commit_of(home: Path) -> str:
    """The commit of a checkout; empty where it is none."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return asked.stdout.strip() if asked.returncode == 0 and (home / ".git").exists() else ""


def _interpreter(pin: Pin, python: Path | None) -> str:
    least, newest = (".".join(map(str, version)) for version in (pin.python, pin.newest_python))
    named = (
        [str(python)]
        if python
        else [f"python3.{minor}" for minor in range(pin.newest_python[1], pin.python[1] - 1, -1)]
    )
    for name in [*named, *([] if python else ["python3"])]:
        where = shutil.which(name)
        if where is None:
            continue
        asked = subprocess.run(
            [where, "-c", f"import sys; sys.exit(not {pin.python!r} <= sys.version_info[:2] <= {pin.newest_python!r})"],
            check=False,
        )
        if asked.returncode == 0:
            return where
    raise RequestError(
        f"{pin.name} needs Python {least} to {newest}",
        f"Looked for {', '.join(named)}.",
        "Install one, or name it with --python.",
    )


def _run(argv: Sequence[str], folder: Path, step: str, name: TrainerName) -> None:
    """Runs a command with its output in install.log.

    Raises:
        StageFailedError: It failed.
    """
    log = folder / "install.log"
    with log.open("ab") as file:
        file.write(f"--- {' '.join(argv)}\n".encode())
        file.flush()
        try:
            code = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, env=_environment()
            ).returncode
        except OSError as error:
            raise StageFailedError(f"{argv[0]} cannot be run", str(error), "Install it, then go on.") from error
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise StageFailedError(
            f"Installing {name.value} failed while {_SAID[step]}",
            "\n".join(last),
            f"The whole output is in {log}. `lorapod trainers install {name.value}` goes on with this step.",
        )


def _environment() -> dict[str, str]:
    """Nobody is there to be asked for a password."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"GIT_TERMINAL_PROMPT": "0"}


def _write(installation: Installation, workspace: Workspace) -> None:
    path = folder_of(TrainerName(installation.name), workspace) / "install.json"
    write_text_whole(path, json.dumps(asdict(installation), indent=1) + "\n")


__all__ = ["Installation", "check", "find_installation", "install", "read_installation", "remove", "use"]
