"""A workspace with a base model's files and the stand-in diffusion-pipe in it."""

from __future__ import annotations

import sys
from pathlib import Path

from lorapod.models import catalogue
from lorapod.models.hub import target_of
from lorapod.models.store import FileRecord, Record, Store
from lorapod.recipe import TrainerName
from lorapod.trainers.installs import use
from lorapod.workspace import Workspace

FAKE = Path(__file__).parent / "diffusion_pipe"


def with_model(workspace: Workspace, name: str, trainer: str = "diffusion-pipe") -> None:
    """Puts small files where those of a base model would be."""
    store, record = Store(workspace), Record(name)
    for number, spec in enumerate(catalogue()[name].files_for(trainer)):
        source = spec.path or spec.include[0].replace("*", "x")
        place = workspace.root / "own" / f"{name}-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(f"{name} {number}".encode())
        target = target_of(spec, source)
        record.put(
            FileRecord(spec.layout, spec.part, target, 9, "", "local:x", sha256=f"{number:064d}", local=str(place))
        )
        store.link(record.files[-1], name)
    store.save(record)


def with_trainer(workspace: Workspace) -> None:
    """Installs the stand-in, as a checkout of the person's own."""
    use(TrainerName.DIFFUSION_PIPE, workspace, FAKE, Path(sys.executable))
