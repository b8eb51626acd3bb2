"""Where everything of a person's lives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lorapod.files import disk_error


@dataclass(frozen=True)
class Workspace:
    """The folder that holds datasets, base models, caches and runs."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "training_outputs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def private(self) -> Path:
        """What belongs to lorapod itself: tokens and host keys of a pod's services, mode 600."""
        return self.root / ".lorapod"

    @property
    def store(self) -> Path:
        return self.root / "lorapod.sqlite"

    def make_dataset_folders(self) -> None:
        """Makes the folders that a person puts pictures and clips into.

        Raises:
            DiskError: They cannot be made.
        """
        for name in DATASET_FOLDERS:
            folder = self.root / name
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, folder) from error


POD_VOLUME = Path("/workspace")
"""Where rented pods mount what outlives them."""
DATASET_FOLDERS = ("image_dataset_here", "video_dataset_here")
"""Where a person puts pictures and clips."""
_OLD_TEMPLATE = "diffusion_pipe_working_folder"
_OLD_MARKS = ("diffusion_pipe", "runpod-diffusion_pipe", "interactive_start_training.sh", "Captioning", "HowToUse.txt")
"""What the old template puts into its workspace."""
_OLD_SETTINGS = ("runpod-diffusion_pipe/toml_files/*.toml", "diffusion_pipe/examples/*.toml")


def left_by_old_template(workspace: Workspace) -> tuple[str, ...]:
    """What the old template put into the workspace, by name; () where it is none of its."""
    return tuple(mark for mark in _OLD_MARKS if (workspace.root / mark).exists())


def old_settings(workspace: Workspace) -> list[Path]:
    """The trainings' settings that the old template left, which `lorapod recipe import` reads; newest first."""
    found = [path for pattern in _OLD_SETTINGS for path in workspace.root.glob(pattern) if path.name != "dataset.toml"]
    return sorted(found, key=lambda path: -path.stat().st_mtime)


def find_workspace(override: Path | None = None) -> Workspace:
    """The workspace: `override`, else `$NETWORK_VOLUME`, else one on the pod's volume, else `~/lorapod`.

    On a pod's volume (`/workspace`) it is `lorapod`; where that is not there yet but the workspace of the old template is
    (`diffusion_pipe_working_folder`, or the volume itself with its dataset folders), that one is used as it is.
    """
    if override is not None:
        return Workspace(override.expanduser().resolve())
    volume = os.environ.get("NETWORK_VOLUME", "").strip()
    if volume:
        return Workspace(Path(volume).expanduser().resolve())
    if POD_VOLUME.is_dir():
        own, old = POD_VOLUME / "lorapod", POD_VOLUME / _OLD_TEMPLATE
        if not own.is_dir() and old.is_dir():
            return Workspace(old)
        if not own.is_dir() and any((POD_VOLUME / name).is_dir() for name in DATASET_FOLDERS):
            return Workspace(POD_VOLUME)
        return Workspace(own)
    return Workspace(Path.home() / "lorapod")
