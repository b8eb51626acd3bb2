"""Trainers by name. An external trainer is a `Dialect`, what is special about it; all else is `ExternalTrainer`'s."""

from __future__ import annotations

from importlib import import_module

from lorapod.errors import RequestError
from lorapod.recipe import TrainerName
from lorapod.trainers.base import Trainer
from lorapod.trainers.dialect import Dialect

_DIALECTS = {
    TrainerName.DIFFUSION_PIPE: "lorapod.trainers.diffusion_pipe.dialect:DiffusionPipe",
}
"""Name to module:class."""


def get_trainer(name: TrainerName) -> Trainer:
    """The trainer of that name.

    Raises:
        RequestError: This version cannot run it yet.
    """
    if name is TrainerName.BUILTIN:
        from lorapod.trainers.builtin import BuiltinTrainer

        return BuiltinTrainer()
    from lorapod.trainers.external import ExternalTrainer

    return ExternalTrainer(get_dialect(name))


def get_dialect(name: TrainerName) -> Dialect:
    """What is special about an external trainer.

    Raises:
        RequestError: It is none, or this version does not know it yet.
    """
    if name not in _DIALECTS:
        known = ", ".join(each.value for each in _DIALECTS)
        raise RequestError(
            f"The trainer {name.value} cannot be run yet"
            if name is not TrainerName.BUILTIN
            else "The built-in engine is given no files; it reads the recipe itself",
            f"This version knows the external trainers: {known}.",
            f'Set `trainer = "{next(iter(_DIALECTS)).value}"`'
            + (' or `trainer = "builtin"`.' if name is not TrainerName.BUILTIN else ", or `--trainer`."),
        )
    module, _, attribute = _DIALECTS[name].partition(":")
    made: Dialect = getattr(import_module(module), attribute)()
    return made
