"""The engine's process: `python -m lorapod.engine train RUN --workspace DIR [--resume]`, or `sample REQUEST`.

`train` caches what is missing and trains; `cache` does the first half alone.

With several GPUs it starts itself once for each (`engine.launch`).

The first SIGINT or SIGTERM stops after the present step with a checkpoint (exit 130); the second at once. Errors that a
person can do something about are printed as an `error` event (exit 1).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from lorapod import recipe as recipes
from lorapod.engine.launch import count_for, launch, take_own_gpu
from lorapod.engine.output import emit, emit_error
from lorapod.engine.status import LOST, STOPPED, by_torchrun, rank_and_count
from lorapod.errors import LorapodError, LostRankError, OutOfMemoryError
from lorapod.files import disk_error
from lorapod.machine import visible_gpus
from lorapod.workspace import Workspace

_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
"""What tells torch's allocator; all of torch from 2.9 on reads the first, the older name, and 2.9 that one alone."""


class StopSignal:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(STOPPED)
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def run(arguments: argparse.Namespace, stopped: StopSignal) -> int:
    """Runs one stage; returns the exit code."""
    import torch

    from lorapod.engine.job import Job

    workspace = Workspace(arguments.workspace)
    job = Job(arguments.run, workspace)
    try:
        if arguments.stage == "sample":
            from lorapod.engine.sample import sample

            sample(arguments.run, workspace)
            return 0
        from lorapod.engine.prepare import prepare
        from lorapod.engine.ranks import Ranks

        ranks = Ranks.joined()
        if not prepare(job, stopped, ranks):
            return STOPPED
        if arguments.stage == "cache":
            return 0
        from lorapod.engine.train import Training

        return 0 if Training(job, ranks).run(arguments.resume, stopped) else STOPPED
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "The GPU ran out of memory",
            str(error).split(". ")[0] + ".",
            "Set `training.memory_gb` below what the GPU has, so that more is saved, or take a smaller "
            "`training.batch_size` or smaller `resolutions`.",
        ) from error


def main() -> int:
    """Parses arguments, runs the stage, turns errors into events."""
    parser = argparse.ArgumentParser(prog="python -m lorapod.engine", description=__doc__)
    parser.add_argument("stage", choices=["cache", "train", "sample"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every file is on disk already; nothing here may wait for a network
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not _ALLOCATOR & os.environ.keys():  # else batches of many sizes leave gaps in a GPU's memory
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    stopped = StopSignal()
    try:
        if by_torchrun():
            take_own_gpu(visible_gpus())
        elif arguments.stage != "sample" and rank_and_count()[1] == 1:
            count = count_for(recipes.load(arguments.run / "recipe.toml", check_paths=False), visible_gpus())
            if count > 1:
                return launch(count, sys.argv[1:])
        return run(arguments, stopped)
    except LostRankError:
        return LOST
    except LorapodError as error:
        emit_error(error)
    except OSError as error:
        if error.errno is None:
            raise
        emit_error(disk_error(error, Path(error.filename or arguments.run)))
    except ImportError as error:
        emit(
            "error",
            message=f"The engine needs the package {error.name}",
            hint="Install it with: pip install 'lorapod[engine]'",
        )
    return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; taking torch down in an orderly way would cost half a second
