"""The demo's own pictures and recipe, copied to where a person can see and change them."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from lorapod.files import disk_error
from lorapod.workspace import Workspace

DEMO_FOLDERS = "demo"
"""The answer that means the demo's own pictures."""

NAMES = ("momo", "things")
"""Its datasets: the character that the demo model does not know, and what it does."""


def demo_folders(workspace: Workspace) -> list[Path]:
    """The demo's datasets in the workspace, put there where they are not.

    Raises:
        DiskError: The folder cannot be written.
    """
    unpack(workspace.root / "demo")
    return [workspace.root / "demo" / "dataset" / name for name in NAMES]


def unpack(folder: Path) -> None:
    """Copies the packaged dataset and recipe to `folder`; files that are there already are left as they are.

    Raises:
        DiskError: The folder cannot be written.
    """
    source = Path(str(resources.files("lorapod") / "demo"))
    try:
        for name in ("recipe.toml", "dataset"):
            for file in [source / name, *(source / name).rglob("*")]:
                target = folder / file.relative_to(source)
                if file.is_file() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
    except OSError as error:
        raise disk_error(error, folder) from error
