"""What trainers plan and how they read what their stages print."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod.errors import RequestError
from lorapod.events import PREFIX, event, to_line
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers import Stage, get_dialect, get_trainer
from lorapod.workspace import Workspace

RECIPE = Recipe.model_validate({"name": "x", "base_model": {"name": "demo"}, "datasets": [{"path": "/nowhere"}]})


def test_the_built_in_engine_is_given_no_files() -> None:
    with pytest.raises(RequestError, match="given no files") as caught:
        get_dialect(TrainerName.BUILTIN)
    assert "diffusion-pipe" in caught.value.remedy and "musubi" in caught.value.remedy


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
    item = event("info", message="hello")
    watch = get_trainer(TrainerName.BUILTIN).watch(Stage("train", [], {}, Path()))
    assert watch.read(PREFIX + to_line(item)) == [item]
    assert watch.read(to_line(item)) == []
    assert watch.read(PREFIX + to_line(item)[:-5]) == []
