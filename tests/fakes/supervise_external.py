"""A supervisor of an external trainer with less patience: `supervise_external.py RUN WORKSPACE NAME=VALUE...`.

patience: seconds a stage may take to stop; hang_seconds: of silence after a traceback; stop_at: the step at which it is
asked to stop.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from lorapod.runs.folder import RunFolder
from lorapod.runs.journal import state_of
from lorapod.runs.supervise import Supervisor
from lorapod.trainers import get_trainer
from lorapod.trainers.follow import ProcessWatch
from lorapod.workspace import Workspace

run, workspace = RunFolder(Path(sys.argv[1])), Workspace(Path(sys.argv[2]))
settings = {name: float(value) for name, value in (word.split("=") for word in sys.argv[3:])}
ProcessWatch.hang_seconds = settings.get("hang_seconds", ProcessWatch.hang_seconds)


def stop() -> None:
    while state_of(run).step < settings["stop_at"]:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


if "stop_at" in settings:
    threading.Thread(target=stop, daemon=True).start()
recipe = run.recipe()
trainer = get_trainer(recipe.trainer)
stages = trainer.plan(recipe, run.path, workspace, False)
print(Supervisor(run, workspace, trainer, patience_seconds=settings.get("patience", 600)).run(stages))
