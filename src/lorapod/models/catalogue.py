"""The catalogue of base models: one TOML file an entry, in the folder `entries` beside this module."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Entry(BaseModel):
    """What is known of a base model before it is on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    family: str
    modality: Literal["picture", "clip"]
    licence: str
    commercial_use: bool | None = None
    gated: bool
    hub: str | None = None
    packaged: str | None = None


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name."""
    folder = resources.files("lorapod.models") / "entries"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    entries = [Entry.model_validate(tomllib.loads(f.read_text(encoding="utf-8"))) for f in files]
    return {entry.name: entry for entry in entries}
