"""What trainers plan and how they read what their stages print."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod.errors import RequestError
from lorapod.events import PREFIX, event, to_line
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers import get_trainer
from lorapod.workspace import Workspace

RECIPE = Recipe.model_validate({"name": "x", "base_model": {"name": "demo"}, "datasets": [{"path": "/nowhere"}]})


def test_a_trainer_of_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="musubi") as caught:
        get_trainer(TrainerName.MUSUBI)
    assert "diffusion-pipe" in caught.value.why


def test_a_run_is_one_process_that_resumes_and_no_secret_is_in_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    stages = get_trainer(TrainerName.BUILTIN).plan(RECIPE, tmp_path / "run", Workspace(tmp_path), resume=True)
    assert [stage.name for stage in stages] == ["train"]
    assert "--resume" in stages[0].argv
    assert all("hf_very_secret" not in " ".join(stage.argv) for stage in stages)
    assert all("hf_very_secret" not in repr(stage) for stage in stages)


def test_only_lines_with_the_prefix_are_events() -> None:
    trainer, item = get_trainer(TrainerName.BUILTIN), event("info", message="hello")
    assert trainer.parse(PREFIX + to_line(item)) == item
    assert trainer.parse(to_line(item)) is None
    assert trainer.parse(PREFIX + to_line(item)[:-5]) is None
