"""`lorapod recipe new | show | check`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorapod import recipe
from lorapod.cli.recipe import app
from lorapod.errors import LorapodError, RecipeError, RequestError

Write = Callable[..., Path]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, LorapodError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_new_writes_a_recipe_that_check_accepts(write: Write, tmp_path: Path):
    write()
    out = run("new", "--model", "demo", "--data", "pictures", "--out", "new.toml")
    assert "lorapod train new.toml" in out
    assert 'path = "pictures"' in Path("new.toml").read_text()
    assert recipe.load(Path("new.toml")).saving.lora_every == 250  # the last LoRA is not always the best
    assert run("check", "new.toml") == "OK: new.toml (demo, 1 dataset, 1000 steps, trainer builtin)\n"


def test_new_into_another_folder_still_finds_the_pictures(write: Write, tmp_path: Path):
    write()
    run("new", "--model", "demo", "--data", "pictures", "--out", "recipes/new.toml")
    assert recipe.load(Path("recipes/new.toml")).datasets[0].path == tmp_path / "pictures"


def test_new_without_out_prints_the_recipe(write: Write, tmp_path: Path):
    write()
    text = run("new", "--model", "demo", "--data", "pictures", "--trainer", "musubi")
    (tmp_path / "printed.toml").write_text(text)
    assert recipe.load(tmp_path / "printed.toml").trainer is recipe.TrainerName.MUSUBI


def test_new_overwrites_only_with_force(write: Write):
    before = write().read_text()
    with pytest.raises(RequestError, match="is there already"):
        run("new", "--model", "demo", "--data", "pictures", "--out", "recipe.toml")
    assert Path("recipe.toml").read_text() == before
    run("new", "--model", "demo", "--data", "pictures", "--out", "recipe.toml", "--force")
    assert Path("recipe.toml").read_text() != before


def test_new_wants_a_folder_that_exists(write: Write):
    with pytest.raises(RecipeError, match="There is no folder nowhere"):
        run("new", "--model", "demo", "--data", "nowhere")


def test_show_prints_the_resolved_recipe_as_plain_toml(write: Write, tmp_path: Path):
    path = write()
    text = run("show", str(path), "--set", "training.steps=5", "--set", "name=dog")
    assert text == recipe.dumps(recipe.load(path, ["training.steps=5", "name=dog"]))
    assert "\x1b" not in text


def test_check_refuses_a_wrong_recipe_as_a_wrong_request(write: Write):
    with pytest.raises(RecipeError, match="line 9: unknown key") as caught:
        run("check", str(write("[training]\nbatch = 1\n")))
    assert caught.value.exit_code == 2


def test_check_refuses_what_no_machine_could_train_and_names_what_this_one_lacks(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NETWORK_VOLUME", str(tmp_path / "w"))
    path = str(write())
    steps = ("--set", "training.steps=5")
    assert run("check", path, *steps).count("\n") == 1
    for wrong, match in (("base_model.name=dmeo", "called 'dmeo'"), ("trainer=musubi", "musubi cannot train demo")):
        with pytest.raises(RequestError, match=match):
            run("check", path, "--set", wrong, *steps)
    shown = run("check", path, "--set", "base_model.name=z-image", *steps)
    assert (
        shown.startswith("OK: ") and "\nNot ready on this machine: " in shown and "lorapod models pull z-image" in shown
    )


def test_keys_are_explained_by_a_part_of_their_names():
    text = run("keys", "shard")
    assert text.startswith('training.shard_base  auto or true or false; default: "auto"') and "NVLink" in text
    assert "datasets.N.repeats" in run("keys", "repeats")
    everything = run("keys")
    assert all(f"{section}." in everything for section in ("base_model", "adapter", "training", "previews", "saving"))
    with pytest.raises(RequestError) as caught:
        run("keys", "lerning_rate")
    assert "learning_rate" in caught.value.why
