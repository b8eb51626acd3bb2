"""The families, by name. A module is imported only when its family is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from lorapod.engine.families.base import Conditions, Expert, Family, PreviewRequest

_FAMILIES = {"z_image": ("lorapod.engine.families.z_image", "ZImage")}


def family_named(name: str) -> Family:
    """The family of that name; the catalogue only knows names that are listed here."""
    module, class_name = _FAMILIES[name]
    return cast(Family, getattr(import_module(module), class_name)())


__all__ = ["Conditions", "Expert", "Family", "PreviewRequest", "family_named"]
