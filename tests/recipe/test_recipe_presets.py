"""Presets, the newcomer's recipe and the reference page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorapod import recipe
from lorapod.errors import RecipeError
from lorapod.workspace import Workspace

Write = Callable[..., Path]


def load_with(write: Write, model: str) -> recipe.Recipe:
    return recipe.load(write(text=write().read_text().replace('"demo"', f'"{model}"')))


def test_every_preset_makes_a_recipe_of_three_lines_complete(write: Write):
    expected = {"demo", "flux-dev", "qwen-image", "sdxl", "wan2.1-t2v-1.3b", "z-image", "z-image-turbo"}
    assert expected <= set(recipe.presets.names())
    assert recipe.presets.families() == [
        "flux", "flux2", "flux_kontext", "qwen_image", "qwen_image_edit", "stable_diffusion_xl", "wan", "z_image",
    ]  # fmt: skip
    for name in recipe.presets.names():
        assert load_with(write, name).training.steps


def test_turbo_is_previewed_as_it_was_distilled_and_the_base_with_guidance(write: Write):
    turbo, base = load_with(write, "z-image-turbo"), load_with(write, "z-image")
    assert (turbo.previews.steps, turbo.previews.guidance) == (9, 0.0)
    assert (base.previews.steps, base.previews.guidance) == (28, 4.0)
    assert turbo.optimizer.learning_rate == base.optimizer.learning_rate == 1e-4
    assert turbo.datasets[0].resolutions == [1024]


def test_reading_a_preset_does_not_change_it(write: Write):
    recipe.load(write("[training]\nepochs = 2\n"))
    assert recipe.load(write()).training.steps == 1000


@pytest.mark.parametrize("name", recipe.presets.names())
def test_a_new_recipe_is_valid_short_and_commented(write: Write, tmp_path: Path, name: str):
    write()
    if needs := recipe.presets.control_for(name) == "needed":
        Path("pictures/control").mkdir()
    text = recipe.new(name, Path("pictures"), "builtin", 'a "cat"'.replace('"', "'"))
    path = tmp_path / "new.toml"
    path.write_text(text)
    found = recipe.load(path)
    assert (found.name, found.base_model.name) == ("a 'cat'", name)
    # It says what the preset says, so that reading it without its lines gives the same training.
    same = recipe.load(
        write(), [f'base_model.name="{name}"', *(['datasets.0.control="pictures/control"'] if needs else [])]
    )
    assert recipe.differences(found, same) == []
    assert len(text.splitlines()) < 40
    assert all("#" in line for line in text.splitlines() if "=" in line and "path" not in line)


def test_a_new_recipe_takes_its_name_from_the_folder(tmp_path: Path):
    assert 'name = "my-cats"' in recipe.new("demo", tmp_path / "my:cats")


def test_a_new_recipe_is_refused_for_what_does_not_exist(tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean `z-image-turbo`"):
        recipe.new("zimage-turbo", tmp_path)
    with pytest.raises(RecipeError, match="did you mean `diffusion-pipe`"):
        recipe.new("demo", tmp_path, "diffusionpipe")
    with pytest.raises(RecipeError, match="file name"):
        recipe.new("demo", tmp_path, name="a/b")


def test_the_reference_has_every_key_with_type_default_and_description():
    page = recipe.reference_markdown()
    for section in recipe.Recipe.model_fields.values():
        for key, info in getattr(section.annotation, "model_fields", {}).items():
            assert f"| `{key}` |" in page
            assert info.description and info.description in page
    assert "| `rank` | a whole number from 1 to 1024 | `16` |" in page
    assert "## `[[datasets]]`" in page
    turbo = page.partition("### `z-image-turbo`")[2]
    assert "| `previews.steps` | `9` |" in turbo


@pytest.mark.parametrize(
    ("entry", "steps"), [({"based_on": "z-image-turbo"}, 9), ({"based_on": "gone"}, 28), ({"based_on": "mine-too"}, 9)]
)
def test_an_added_base_model_gets_the_preset_of_its_base_else_of_its_family(
    write: Write, tmp_path: Path, entry: dict[str, str], steps: int
):
    workspace = Workspace(tmp_path / "workspace")
    entries = workspace.models / "entries"
    entries.mkdir(parents=True)
    lines = "".join(f"{key} = '{value}'\n" for key, value in ({"family": "z_image"} | entry).items())
    (entries / "mine.toml").write_text(lines)
    (entries / "mine-too.toml").write_text("family = 'z_image'\nbased_on = 'z-image-turbo'\n")
    written = write(text=write().read_text().replace('"demo"', '"mine"'))
    assert recipe.load(written, workspace=workspace).previews.steps == steps
    assert "mine" in recipe.new("mine", tmp_path, workspace=workspace)
    with pytest.raises(RecipeError):
        recipe.load(written)


def test_a_new_recipe_for_a_base_model_that_edits_names_the_control_pictures(write: Write, tmp_path: Path):
    def control(model: str) -> Path | None:
        path = tmp_path / "new.toml"
        path.write_text(recipe.new(model, Path("pictures")))
        return recipe.load(path, check_paths=False).datasets[0].control

    write()
    named = Path("pictures/control").absolute()
    assert control("qwen-image-edit-2509") == named  # it cannot do without
    assert control("flux-kontext-dev") is None and control("flux-dev") is None
    named.mkdir()
    assert control("flux-kontext-dev") == control("flux2-klein-base-4b") == named
    assert control("flux-dev") is None
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    assert control(str(folder)) == named
