"""Presets of a goal: how long to train for a character, a style, a concept or a motion, by the number of items.

The values and their sources are in `goals.toml`. What captions leave out for a goal is `lorapod.captioning.wording`'s,
how many items it wants `lorapod.data.checks`'.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any

import tomlkit
from pydantic import BaseModel, ConfigDict, Field

from lorapod.recipe import presets
from lorapod.workspace import Workspace

USUAL_STEPS = 2000
"""Steps for a base model that no preset knows."""

_ROUND = 50


class Goal(StrEnum):
    """What a training is for."""

    CHARACTER = "character"
    STYLE = "style"
    CONCEPT = "concept"
    MOTION = "motion"


class GoalPreset(BaseModel):
    """What a goal asks for.

    Attributes:
        passes: How often each item is seen.
        least, most: Bounds of the steps, as shares of the base model's usual ones.
        learns, captions, trigger: What is learnt, what captions say, and what the trigger word is, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passes: int = Field(ge=1)
    least: float = Field(gt=0)
    most: float = Field(gt=0)
    learns: str
    captions: str
    trigger: str


@cache
def _stored() -> dict[str, Any]:
    text = (resources.files("lorapod.recipe") / "goals.toml").read_text("utf-8")
    return dict(tomlkit.parse(text).unwrap())


def goal_preset(goal: Goal) -> GoalPreset:
    """What a goal asks for."""
    return GoalPreset.model_validate(_stored()[goal.value])


def usual_steps(base_model: str, workspace: Workspace | None = None) -> int:
    """Steps of the base model's preset."""
    training = presets.preset_for(base_model, workspace).get("training", {})
    return int(training.get("steps") or USUAL_STEPS)


def steps_for(goal: Goal | None, items: int, base_model: str, workspace: Workspace | None = None) -> int:
    """Optimizer steps for so many items.

    Each item is seen as often as the goal asks for, within the goal's bounds. A base model that trains with a training
    adapter keeps its own steps as the most: the adapter wears off in longer runs.
    """
    usual = usual_steps(base_model, workspace)
    if goal is None or not items or base_model in _stored()["not_for"]:
        return usual
    preset, asked = presets.preset_for(base_model, workspace), goal_preset(goal)
    training = preset.get("training", {})
    a_step = int(training.get("batch_size", 1)) * int(training.get("accumulation", 1))
    most = usual if "training_adapter" in preset.get("base_model", {}) else usual * asked.most
    steps = min(max(asked.passes * items / a_step, usual * asked.least), most)
    return max(_ROUND, round(steps / _ROUND) * _ROUND)


def passes_of(steps: int, items: int, base_model: str, workspace: Workspace | None = None) -> int:
    """How often each of so many items is seen in so many steps, rounded."""
    training = presets.preset_for(base_model, workspace).get("training", {})
    a_step = int(training.get("batch_size", 1)) * int(training.get("accumulation", 1))
    return round(steps * a_step / max(1, items))
