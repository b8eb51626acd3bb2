"""Where an external trainer is installed: `trainers/NAME` of the workspace, with its checkout and an environment of its own.

trainers/NAME/repository/        the checkout, at a pinned commit
trainers/NAME/environment/       its virtual environment
trainers/NAME/installed.json     commit and Python, written when everything was there
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lorapod.errors import RequestError
from lorapod.workspace import Workspace


@dataclass(frozen=True)
class Installation:
    """A trainer on this machine.

    Attributes:
        home: Its checkout.
        python: Interpreter of its environment.
        commit: What is checked out.
    """

    name: str
    home: Path
    python: Path
    commit: str


def folder_of(name: str, workspace: Workspace) -> Path:
    """Where the trainer is, or will be: in the workspace, or where a container's image brings it (`$LORAPOD_TRAINERS`)."""
    own = workspace.root / "trainers" / name
    baked = Path(os.environ.get("LORAPOD_TRAINERS") or "/nowhere") / name
    return baked if (baked / "installed.json").is_file() and not own.exists() else own


def assumed(name: str, workspace: Workspace) -> Installation:
    """Where everything would be, whether or not it is."""
    folder = folder_of(name, workspace)
    return Installation(name, folder / "repository", folder / "environment/bin/python", "")


def find_installation(name: str, workspace: Workspace) -> Installation:
    """The trainer as it is installed.

    Raises:
        RequestError: It is not, or not to the end.
    """
    place = assumed(name, workspace)
    try:
        note = json.loads((folder_of(name, workspace) / "installed.json").read_bytes())
        commit = str(note["commit"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _missing(name, place, "It was never installed, or not to the end.") from error
    if not place.python.exists() or not place.home.is_dir():
        gone = place.python if place.home.is_dir() else place.home
        raise _missing(name, place, f"{gone} is not there any more.")
    return Installation(name, place.home, place.python, commit)


def _missing(name: str, place: Installation, why: str) -> RequestError:
    return RequestError(
        f"The trainer {name} is not installed in this workspace",
        why,
        f'Install it with `lorapod trainers install {name}`, or set `trainer = "builtin"`.',
    )
