"""The workspace of a pod: found, its folders made, and what an earlier template or pod left there told.

Nothing that is there is moved, renamed or changed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorapod.files import disk_error
from lorapod.machine import Finding, Severity
from lorapod.workspace import DATASET_FOLDERS, Workspace, left_by_old_template

_MEDIA = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".mp4", ".mov", ".mkv", ".webm", ".avi"}
_MOST_COUNTED = 10_000


@dataclass(frozen=True)
class Place:
    """A prepared workspace.

    Attributes:
        media: Dataset folder to the number of pictures and clips in it.
        adopted: What an earlier template left, in words; empty if nothing.
        recipes: TOML files at its top.
    """

    workspace: Workspace
    media: dict[str, int]
    adopted: tuple[str, ...]
    recipes: int


def prepare(workspace: Workspace) -> tuple[Place, list[Finding]]:
    """Makes the workspace's folders where they are missing, and looks at what is there."""
    findings = []
    for folder in (workspace.root, *(workspace.root / n for n in DATASET_FOLDERS), workspace.runs, workspace.models):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            findings.append(
                Finding(
                    Severity.FAULT, "workspace", f"{folder} is not a folder", "A file or broken link is in its place.",
                    "Rename it; lorapod leaves it as it is.",
                )
            )  # fmt: skip
        except OSError as error:
            shown = disk_error(error, folder)
            findings.append(Finding(Severity.FAULT, "workspace", shown.what, shown.why, shown.remedy))
            break
    media = {name: _count(workspace.root / name) for name in DATASET_FOLDERS}
    adopted = left_by_old_template(workspace)
    recipes = 0
    with suppress(OSError):
        recipes = sum(1 for path in workspace.root.glob("*.toml") if path.is_file())
    return Place(workspace, media, adopted, recipes), findings


def _count(folder: Path) -> int:
    """Pictures and clips in a folder and those in it; stops at a number that a boot has time for."""
    found = 0
    with suppress(OSError):
        for number, path in enumerate(folder.rglob("*")):
            found += path.suffix.lower() in _MEDIA
            if number >= _MOST_COUNTED:
                break
    return found
