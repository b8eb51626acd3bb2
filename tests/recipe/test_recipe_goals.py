"""How long is trained for a goal, by the number of items."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod import recipe
from lorapod.recipe.goals import Goal, goal_preset, passes_of, steps_for, usual_steps
from lorapod.recipe.presets import names


@pytest.mark.parametrize(
    ("goal", "items", "steps"),
    [("character", 20, 2000), ("character", 5, 1000), ("character", 90, 3000), ("style", 20, 1500), ("style", 60, 3000),
     ("style", 400, 4000), ("motion", 10, 1500), ("concept", 15, 1500)],
)  # fmt: skip
def test_each_item_is_seen_as_often_as_the_goal_asks_within_its_bounds(goal: str, items: int, steps: int) -> None:
    assert steps_for(Goal(goal), items, "wan2.1-t2v-1.3b") == steps


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("name", names())
def test_no_goal_leaves_the_range_that_trainers_document(goal: Goal, name: str) -> None:
    for items in (1, 7, 30, 1000):
        assert 500 <= steps_for(goal, items, name) <= 4000
    assert goal_preset(goal).captions and goal_preset(goal).trigger


def test_what_is_not_to_be_changed_by_a_goal_is_not() -> None:
    assert steps_for(Goal.STYLE, 500, "demo") == usual_steps("demo")
    assert steps_for(None, 500, "sdxl") == steps_for(Goal.STYLE, 0, "sdxl") == usual_steps("sdxl")
    # the adapter that keeps a distilled model together wears off in longer runs
    assert steps_for(Goal.CHARACTER, 50, "z-image-turbo") == usual_steps("z-image-turbo")
    assert steps_for(Goal.CHARACTER, 10, "z-image-turbo") == 1000


def test_a_new_recipe_says_how_long_and_why(tmp_path: Path) -> None:
    text = recipe.new("sdxl", tmp_path, goal=Goal.STYLE, items=60)
    assert "steps = 3000  # 60 items, each about 50 times; or, in its place" in text
    assert passes_of(3000, 60, "sdxl") == 50
