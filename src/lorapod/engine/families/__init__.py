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

_FAMILIES = {
    "flux": ("lorapod.engine.families.flux", "Flux"),
    "qwen_image": ("lorapod.engine.families.qwen_image", "QwenImage"),
    "sdxl": ("lorapod.engine.families.sdxl", "SDXL"),
    "wan": ("lorapod.engine.families.wan", "Wan"),
    "z_image": ("lorapod.engine.families.z_image", "ZImage"),
}


def family_named(name: str) -> Family:
    """The family of that name; the catalogue only knows names that are listed here."""
    module, class_name = _FAMILIES[name]
    return cast(Family, getattr(import_module(module), class_name)())


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
