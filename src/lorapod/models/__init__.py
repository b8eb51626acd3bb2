"""Base models: the catalogue, and what is on disk."""

from lorapod.models.base_model import BaseModel, find_base_model
from lorapod.models.catalogue import Entry, catalogue

__all__ = ["BaseModel", "Entry", "catalogue", "find_base_model"]
