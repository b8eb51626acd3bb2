"""Where everything of a person's lives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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
    def store(self) -> Path:
        return self.root / "lorapod.sqlite"


def find_workspace(override: Path | None = None) -> Workspace:
    """The workspace: `override`, else `$NETWORK_VOLUME`, else `/workspace/lorapod` on a pod, else `~/lorapod`."""
    if override is not None:
        return Workspace(override.expanduser().resolve())
    volume = os.environ.get("NETWORK_VOLUME")
    if volume:
        return Workspace(Path(volume).expanduser().resolve())
    if Path("/workspace").is_dir():
        return Workspace(Path("/workspace/lorapod"))
    return Workspace(Path.home() / "lorapod")
