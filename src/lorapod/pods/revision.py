"""Which revision of lorapod a pod runs: the image's own, or with `is_dev` or `git_branch` one of its repository.

Only lorapod's own code is fetched, never a package: a revision that needs other packages than the image has does not start,
and the image's own runs instead, with a word about it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lorapod.workspace import Workspace

REPOSITORY_VARIABLE = "LORAPOD_REPOSITORY"
"""Where the code comes from; the image sets it when it was built with one."""
RUNNING_VARIABLE = "LORAPOD_REVISION"
"""Set for the boot that runs in another revision, so that it does not fetch again."""
DEV_BRANCH = "dev"
_FETCH_SECONDS = 60.0
_TRUE = ("1", "true", "yes", "on")

Say = Callable[[str], None]


def wished(environment: Mapping[str, str]) -> str:
    """The branch, tag or commit that the person asks for; empty for the image's own."""
    branch = environment.get("git_branch", "").strip() or environment.get("GIT_BRANCH", "").strip()
    dev = environment.get("is_dev", "") or environment.get("IS_DEV", "")
    return branch or (DEV_BRANCH if dev.strip().lower() in _TRUE else "")


def other_revision(workspace: Workspace, environment: Mapping[str, str], say: Say) -> Path | None:
    """The `src` folder of the revision that is asked for, fetched if possible; None: go on with the image's own."""
    name = wished(environment)
    if not name or environment.get(RUNNING_VARIABLE):
        return None
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", name) or ".." in name:
        say(f"Revision {name!r} is not a name of git; the image's own lorapod runs.")
        return None
    repository = environment.get(REPOSITORY_VARIABLE, "").strip()
    if not repository:
        say(
            f"Revision {name} is asked for, but ${REPOSITORY_VARIABLE} names no repository; the image's own lorapod runs."
        )
        return None
    folder = workspace.private / "source" / name.replace("/", "-")
    fetched = _fetch(repository, name, folder)
    source = folder / "src"
    if not (source / "lorapod").is_dir():
        say(f"Revision {name} could not be fetched ({fetched}); the image's own lorapod runs.")
        return None
    if fetched:
        say(f"Revision {name} could not be brought up to date ({fetched}); the copy from last time runs.")
    wrong = _wrong_with(source)
    if wrong:
        say(f"Revision {name} does not start in this image ({wrong}); the image's own lorapod runs.")
        return None
    return source


def run_in(source: Path, name: str) -> None:
    """Goes on as the same command in another revision; does not return."""
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")])),
        RUNNING_VARIABLE: name,
    }
    os.execve(sys.executable, [sys.executable, "-P", "-m", "lorapod.cli.main", *sys.argv[1:]], environment)


def _fetch(repository: str, name: str, folder: Path) -> str:
    """Brings the folder to the revision; returns why not, or nothing."""
    git = shutil.which("git")
    if git is None:
        return "git is not installed"
    base = [git, "-C", str(folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for words in (
            [*base, "init", "--quiet"],
            [*base, "fetch", "--quiet", "--depth", "1", "--", repository, name],
            [*base, "checkout", "--quiet", "--detach", "FETCH_HEAD"],
        ):
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=_FETCH_SECONDS, check=False,
                stdin=subprocess.DEVNULL, env=dict(os.environ) | {"GIT_TERMINAL_PROMPT": "0"},
            )  # fmt: skip
            if done.returncode:
                said = done.stderr.strip().splitlines()
                return said[-1] if said else f"git ended with exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        return f"no answer within {_FETCH_SECONDS:.0f} s"
    except OSError as error:
        return str(error)
    return ""


def _wrong_with(source: Path) -> str:
    """Why a revision cannot be imported here; empty if it can."""
    environment = dict(os.environ) | {"PYTHONPATH": str(source)}
    question = "import lorapod.cli.main, lorapod.pods.boot"
    argv = [sys.executable, "-P", "-c", question]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=environment, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]
