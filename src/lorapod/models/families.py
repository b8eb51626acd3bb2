"""What is known of a family without torch: one TOML file a family, in the folder `families` beside this module.

A family that the built-in engine trains has a module of the same name in `lorapod.engine.families`. What a recipe gets by
default from it is in `lorapod.recipe.presets`.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shift(_Table):
    """How the sampler shifts noise levels with the size of the picture: linear in its tokens, between two points."""

    tokens: tuple[int, int]
    mu: tuple[float, float]


class Memory(_Table):
    """What training takes of a denoiser of transformer blocks that are alike."""

    layers: Annotated[list[str], Field(min_length=1)] = Field(
        description="Keys of the denoiser's configuration that count its blocks."
    )
    saved: float = Field(
        description="Bytes kept of a token by a block without checkpointing, in 16 bits, over the model's width."
    )
    trained: float = Field(description="Weights of an adapter of rank 1 on a block, over the model's width.")
    text_tokens: int = Field(description="That go through the blocks beside those of the picture.")


class FamilyFacts(_Table):
    """One family."""

    title: str = Field(description="What a person calls it.")
    pipelines: list[str] = Field(description="Classes of diffusers' pipelines that its base models name.")
    architecture: str = Field(
        description="Of ModelSpec, as sd-scripts and musubi-tuner (`sai_model_spec.py`) and AI Toolkit write it."
    )
    lora_keys: str = Field(description="Regular expression of what only its LoRAs' module names begin with.")
    shift: Shift | None = None
    memory: Memory | None = None
    config: dict[str, Any] = Field({}, description="Full-size configuration of the denoiser, as far as memory asks.")


@cache
def family_facts() -> dict[str, FamilyFacts]:
    """Every family by its name, in the order in which a LoRA's names are held against `lora_keys`: longer names first, so
    that `flux2` is asked before `flux`."""
    folder = resources.files(__package__) / "families"
    found = {
        file.name.removesuffix(".toml"): FamilyFacts.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }
    return dict(sorted(found.items(), key=lambda each: (-len(each[0]), each[0])))
