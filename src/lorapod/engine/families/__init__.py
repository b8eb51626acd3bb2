"""The families, by name. A module is imported only when its family is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lorapod.engine.families.base import (
    ByBaseModel,
    Conditions,
    Expert,
    Family,
    NamesLayers,
    PreviewRequest,
    SamplesByExperts,
    ShiftsByResolution,
    TakesControl,
    TakesFirstFrame,
    TakesPlacement,
    TellsGuidance,
    TextSeesControl,
    TrainsTextEncoders,
    WeighsBySnr,
)
from lorapod.models import BaseModel


def family_named(name: str) -> Family:
    """The family of that name: `FAMILY` of the module that is called so. The catalogue only knows those that there are."""
    return cast(Family, import_module(f"lorapod.engine.families.{name}").FAMILY())


def family_of(base: BaseModel) -> Family:
    """The family of a base model, as that base model has it."""
    family = family_named(base.family)
    return family.of(base) if isinstance(family, ByBaseModel) else family


__all__ = [
    "ByBaseModel",
    "Conditions",
    "Expert",
    "Family",
    "NamesLayers",
    "PreviewRequest",
    "SamplesByExperts",
    "ShiftsByResolution",
    "TakesControl",
    "TakesFirstFrame",
    "TakesPlacement",
    "TellsGuidance",
    "TextSeesControl",
    "TrainsTextEncoders",
    "WeighsBySnr",
    "family_named",
    "family_of",
]
