"""A supervisor over stand-in stages: `supervise_stage.py RUN WORKSPACE MODE...`, one stage a MODE."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lorapod.runs.folder import RunFolder
from lorapod.runs.supervise import Supervisor
from lorapod.trainers import BuiltinTrainer, Stage
from lorapod.workspace import Workspace

run, workspace = RunFolder(Path(sys.argv[1])), Workspace(Path(sys.argv[2]))
stage = str(Path(__file__).with_name("stage.py"))
stages = [Stage("train", [sys.executable, stage, mode], dict(os.environ), run.path) for mode in sys.argv[3:]]
print(Supervisor(run, workspace, BuiltinTrainer(), patience_seconds=2).run(stages))
