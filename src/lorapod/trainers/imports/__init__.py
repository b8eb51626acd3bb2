"""Recipes out of other trainers' configurations: `lorapod recipe import`.

What a configuration says goes into the recipe in lorapod's words; what it leaves out goes in too, as that trainer's own
default, since lorapod's may be another. For the trainers that lorapod renders for, the recipe is rendered back and held
against the configuration: where they differ, the trainer's own words are kept in `trainer_options`, so that the training is
the same. Each key ends carried, changed or left, with the reason. Nothing is run or sourced.
"""

from lorapod.trainers.imports.notes import Fate, Imported, Note
from lorapod.trainers.imports.recognise import FORMATS, import_files

__all__ = ["FORMATS", "Fate", "Imported", "Note", "import_files"]
