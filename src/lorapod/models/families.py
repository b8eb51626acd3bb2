"""What is known of a family without torch: one TOML file a family, in the folder `families` beside this module.

A family that the built-in engine trains has a module of the same name in `lorapod.engine.families`. What a recipe gets by
default from it is in `lorapod.recipe.presets`.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shift(_Table):
    """How the sampler shifts noise levels with the size of the picture: linear in its tokens, between two points."""

    tokens: tuple[int, int]
    mu: tuple[float, float]


class BlocksMemory(_Table):
    """What training takes of a denoiser of transformer blocks that are alike, in units of its width and of that inside its
    feed-forward layers."""

    width: tuple[str, ...] = Field(
        ("num_attention_heads", "attention_head_dim"),
        description="Keys of the denoiser's configuration whose product is its width.",
    )
    inner: str | None = Field(None, description="Key of the width inside feed-forward layers, where it counts apart.")
    layers: dict[str, int] = Field(min_length=1, description="Keys that count its blocks, with how often each counts.")
    saved: float = Field(
        description="Bytes kept of a token by a block without checkpointing, in 16 bits, over the width."
    )
    saved_inner: float = Field(0, description="Likewise, over the inner width.")
    saved_image: float = Field(0, description="Likewise, added where the denoiser attends to a picture's tokens.")
    attention: float = Field(1, description="Outputs of attention of a block, over the width.")
    largest: float = Field(
        1.5,
        description="What is kept of a block that is computed again, over the mean: the largest, and what comes on top.",
    )
    trained: float = Field(description="Weights of an adapter of rank 1 on a block, over the width.")
    trained_inner: float = Field(0, description="Likewise, over the inner width.")
    text_tokens: int = Field(0, description="That go through the blocks beside those of the picture.")
    control_tokens: dict[str, int] = Field(
        {}, description="Of the pipelines whose text encoder is shown control pictures: tokens of each in the text."
    )
    cells: dict[int, int] = Field({}, description="Channels of the latents to pixels a side of a token, where not 16.")


class WholeMemory(_Table):
    """What training takes of a denoiser of one size."""

    blocks: int = Field(description="Repeated ones, whose weights may wait on the host.")
    saved: float = Field(description="Bytes kept of a token without checkpointing, in 16 bits, by all blocks together.")
    kept: float = Field(description="Likewise with checkpointing.")
    largest: float = Field(description="Likewise of the largest part that is computed again.")
    attention: float = Field(description="Likewise of the outputs of attention.")
    trained: float = Field(description="Weights of an adapter of rank 1.")


class Size(_Table):
    """A full size of the denoiser."""

    most: float = Field(float("inf"), description="Weights up to which a base model is of this size.")
    config: dict[str, Any] = Field(description="Configuration of the denoiser, as far as memory asks.")


class FamilyFacts(_Table):
    """One family."""

    title: str = Field(description="What a person calls it.")
    pipelines: list[str] = Field(description="Classes of diffusers' pipelines that its base models name.")
    architecture: str = Field(
        description="Of ModelSpec, as sd-scripts and musubi-tuner (`sai_model_spec.py`) and AI Toolkit write it."
    )
    lora_keys: str = Field(description="Regular expression of what only its LoRAs' module names begin with.")
    shift: Shift | None = None
    memory: BlocksMemory | WholeMemory | None = None
    sizes: tuple[Size, ...] = Field((), description="The smallest first.")


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
