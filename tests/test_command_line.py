"""The command line before any command's own work: words that are nearly right, and what a refused command leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorapod.cli.main import app
from lorapod.errors import RecipeError


@pytest.mark.parametrize(("word", "meant"), [("data", "dataset"), ("model", "models"), ("trian", "train")])
def test_a_command_that_is_nearly_right_is_told(word: str, meant: str) -> None:
    result = CliRunner().invoke(app, [word])
    assert result.exit_code == 2 and f"Did you mean '{meant}'?" in result.stderr


def test_a_word_that_is_like_no_command_is_refused_without_guessing() -> None:
    result = CliRunner().invoke(app, ["xyz"])
    assert result.exit_code == 2 and "No such command 'xyz'." in result.stderr and "mean" not in result.stderr


def test_a_training_without_a_recipe_leaves_none_where_a_key_is_wrong(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    data.mkdir()
    command = [
        "--workspace",
        str(tmp_path / "w"),
        "train",
        "--model",
        "demo",
        "--data",
        str(data),
        "--set",
        "adapter.rnk=4",
    ]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, RecipeError) and "did you mean `rank`" in str(result.exception)
    assert "Recipe:" not in result.stdout
    assert list((tmp_path / "w/recipes").glob("*")) == []
