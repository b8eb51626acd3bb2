"""Trainers: from a recipe to processes, from their output to events."""

from __future__ import annotations

from lorapod.errors import RequestError
from lorapod.recipe import TrainerName
from lorapod.trainers.base import Ending, EventWatch, Stage, Trainer, Watch
from lorapod.trainers.builtin import BuiltinTrainer


def get_trainer(name: TrainerName) -> Trainer:
    """The trainer of that name.

    Raises:
        RequestError: This version cannot run it yet.
    """
    if name is TrainerName.BUILTIN:
        return BuiltinTrainer()
    if name is TrainerName.MUSUBI:
        from lorapod.trainers.musubi.trainer import MusubiTrainer

        return MusubiTrainer()
    raise RequestError(
        f"The trainer {name.value} cannot be run yet",
        "This version trains with the built-in engine and with musubi.",
        'Set `trainer = "builtin"`, or leave it out.',
    )


__all__ = ["BuiltinTrainer", "Ending", "EventWatch", "Stage", "Trainer", "Watch", "get_trainer"]
