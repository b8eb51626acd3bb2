"""Trainers by name. An external trainer is a `Dialect`, what is special about it; all else is `ExternalTrainer`'s."""

from __future__ import annotations

from importlib import import_module

from lorapod.errors import RequestError
from lorapod.recipe import TrainerName
from lorapod.trainers.base import Trainer
from lorapod.trainers.dialect import Dialect

_DIALECTS = {
    TrainerName.DIFFUSION_PIPE: "lorapod.trainers.diffusion_pipe.dialect:DiffusionPipe",
    TrainerName.MUSUBI: "lorapod.trainers.musubi.dialect:Musubi",
}
"""Name to module:class."""


def get_trainer(name: TrainerName) -> Trainer:
    """The trainer of that name."""
    if name is TrainerName.BUILTIN:
        from lorapod.trainers.builtin import BuiltinTrainer

        return BuiltinTrainer()
    from lorapod.trainers.external import ExternalTrainer

    return ExternalTrainer(get_dialect(name))


def get_dialect(name: TrainerName) -> Dialect:
    """What is special about an external trainer.

    Raises:
        RequestError: It is none.
    """
    if name not in _DIALECTS:
        raise RequestError(
            "The built-in engine is given no files",
            "It reads the recipe itself.",
            f"Name an external trainer: `--trainer {' or '.join(_DIALECTS)}`.",
        )
    module, _, attribute = _DIALECTS[name].partition(":")
    made: Dialect = getattr(import_module(module), attribute)()
    return made
