"""The stages of lorapod's own around an external trainer's: `python -m lorapod.trainers.stages prepare|collect RUN`.

Prints events, as the engine does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.errors import LorapodError
from lorapod.events import PREFIX, Event, event, to_line
from lorapod.trainers import get_trainer
from lorapod.trainers.external import PREPARE, ExternalTrainer
from lorapod.trainers.installed import find_installation
from lorapod.trainers.renderers import find_entry
from lorapod.workspace import Workspace

_SECONDS_BETWEEN_EVENTS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lorapod.trainers.stages", description=__doc__)
    parser.add_argument("stage", choices=("prepare", "collect"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    arguments = parser.parse_args()
    workspace = Workspace(arguments.workspace)
    try:
        recipe = recipes.load(arguments.run / "recipe.toml", check_paths=False)
        trainer = get_trainer(recipe.trainer)
        assert isinstance(trainer, ExternalTrainer)
        if arguments.stage == PREPARE:
            _say(event("stage", name="prepare data", index=1, count=4))
            rendering = trainer.prepare(recipe, arguments.run, workspace, _Progress())
            for note in rendering.notes:
                _say(event("warning", message=note, hint=""))
        else:
            commit = find_installation(trainer.name, workspace).commit
            for found in trainer.collect(recipe, find_entry(recipe, workspace), arguments.run, commit):
                _say(found)
    except LorapodError as error:
        _say(event("error", message=error.what, hint=error.to_hint()))
        return 1
    return 0


class _Progress:
    """`progress` events, at most two a second, and always the last."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_EVENTS or done == total:
            self._shown = now
            _say(event("progress", stage="prepare data", done=done, total=total, unit="items"))


def _say(item: Event) -> None:
    sys.stdout.write(PREFIX + to_line(item) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
