"""Base models: the catalogue, getting their files, and what is on disk."""

from lorapod.models.base_model import BaseModel, find_base_model, find_files, find_training_adapter
from lorapod.models.catalogue import Entry, Layout, catalogue, entries

__all__ = [
    "BaseModel",
    "Entry",
    "Layout",
    "catalogue",
    "entries",
    "find_base_model",
    "find_files",
    "find_training_adapter",
]
