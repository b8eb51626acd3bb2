"""A workspace with a base model's files and a stand-in trainer in it, and what tests of both need."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from typer.testing import CliRunner

from lorapod.cli.main import app
from lorapod.errors import LorapodError
from lorapod.models import catalogue
from lorapod.models.hub import target_of
from lorapod.models.store import FileRecord, Record, Store
from lorapod.recipe import TrainerName
from lorapod.trainers.installs import use
from lorapod.workspace import Workspace

FAKES = {
    TrainerName.DIFFUSION_PIPE: Path(__file__).parent / "diffusion_pipe",
    TrainerName.MUSUBI: Path(__file__).parent / "musubi",
}


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


def with_trainer(workspace: Workspace, trainer: TrainerName = TrainerName.DIFFUSION_PIPE) -> None:
    """Installs the stand-in, as a checkout of the person's own."""
    use(trainer, workspace, FAKES[trainer], Path(sys.executable))


def train(workspace: Workspace, *words: str) -> tuple[int, str]:
    """`lorapod train` with an exit status and what it printed; an error is raised as it is."""
    result = CliRunner().invoke(app, ["--workspace", str(workspace.root), "train", *words], env={"COLUMNS": "200"})
    if isinstance(result.exception, LorapodError):
        raise result.exception
    return result.exit_code, result.output


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def processes_left(folder: Path, seconds: float = 10) -> list[str]:
    """Command lines with a path in `folder` whose processes do not end in time."""
    left = [process for process in psutil.process_iter() if str(folder) in " ".join(_words(process))]
    deadline = time.monotonic() + seconds
    while any(process.is_running() for process in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [" ".join(_words(p)) for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
