"""Trainers: from a recipe to processes, from their output to events."""

from lorapod.trainers.base import Ending, Stage, StageWatch, Trainer
from lorapod.trainers.builtin import BuiltinTrainer
from lorapod.trainers.registry import get_dialect, get_trainer

__all__ = ["BuiltinTrainer", "Ending", "Stage", "StageWatch", "Trainer", "get_dialect", "get_trainer"]
