"""Reading recipes: layers, paths, and what a person is told about mistakes."""
# ruff: noqa: E501 - a message stands on one line, as a person reads it

from collections.abc import Callable
from pathlib import Path

import pytest

from lorapod import recipe
from lorapod.errors import RecipeError

Write = Callable[..., Path]


def refusal(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.what
    return caught.value


def test_what_is_left_out_comes_from_the_preset_and_then_from_the_schema(write: Write):
    found = recipe.load(write())
    assert (found.training.steps, found.adapter.rank, found.previews.width) == (1000, 16, 128)
    assert found.datasets[0].resolutions == [128]
    assert found.optimizer.weight_decay == 0.01


def test_the_recipe_wins_over_the_preset_and_an_override_over_both(write: Write):
    path = write("resolutions = [64, 256]\n[adapter]\nrank = 8\n")
    assert recipe.load(path).adapter.rank == 8
    assert recipe.load(path).datasets[0].resolutions == [64, 256]
    assert recipe.load(path, ["adapter.rank=4"]).adapter.rank == 4
    assert recipe.load(path, ["adapter.rank=4", "adapter.rank=2"]).adapter.rank == 2


def test_epochs_take_back_the_steps_of_an_earlier_layer(write: Write):
    by_file = recipe.load(write("[training]\nepochs = 3\n")).training
    by_override = recipe.load(write("[training]\nsteps = 9\n"), ["training.epochs=3"]).training
    assert (by_file.steps, by_file.epochs) == (by_override.steps, by_override.epochs) == (None, 3)


def test_steps_and_epochs_together_are_refused(write: Write):
    error = refusal(write("[training]\nsteps = 9\nepochs = 3\n"))
    assert error.what == "recipe.toml, line 8: `training`: both `steps` and `epochs` are given; leave one out"
    assert "both" in refusal(write(), "training.steps=1", "training.epochs=2").what


def test_relative_paths_start_at_the_recipes_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write('[adapter]\ncontinue_from = "../start.safetensors"\n').absolute()
    (tmp_path / "sub").mkdir()
    moved = path.rename(tmp_path / "sub/recipe.toml")
    moved.write_text(moved.read_text().replace('"pictures"', '"../pictures"'))
    (tmp_path / "start.safetensors").touch()
    monkeypatch.chdir("/")
    found = recipe.load(moved)
    assert found.datasets[0].path == tmp_path / "pictures"
    assert found.adapter.continue_from == tmp_path / "start.safetensors"


def test_a_link_to_a_file_keeps_its_name(write: Write, tmp_path: Path):
    (tmp_path / "blob").touch()
    (tmp_path / "adapter.safetensors").symlink_to("blob")
    path = write('[adapter]\ncontinue_from = "adapter.safetensors"\n')
    assert recipe.load(path).adapter.continue_from == tmp_path / "adapter.safetensors"


def test_a_base_model_in_a_folder_gets_its_familys_preset(write: Write, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    for name in ("./model", "model", str(tmp_path / "model")):
        found = recipe.load(write(text=Path(write()).read_text().replace('"demo"', f'"{name}"')))
        assert found.base_model.name == str(tmp_path / "model")
        assert found.adapter.rank == 32
        write()


def test_a_catalogue_name_wins_over_a_folder_called_the_same(write: Write, tmp_path: Path):
    (tmp_path / "demo").mkdir()
    assert recipe.load(write()).base_model.name == "demo"


def test_a_base_model_without_preset_must_be_given_a_length(write: Write):
    path = write(text=write().read_text().replace('"demo"', '"z-image-turb"'))
    assert "did you mean base model `z-image-turbo`?" in refusal(path).what
    assert recipe.load(path, ["training.steps=5"]).base_model.name == "z-image-turb"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("[optimizer]\n\nlearning_rat = 1\n", "line 10: unknown key `optimizer.learning_rat`; did you mean `learning_rate`?"),
        ("[optimizer]\nlr = 1\n", "line 9: unknown key `optimizer.lr`; did you mean `learning_rate`?"),
        ("[training]\nbatch = 1\n", "line 9: unknown key `training.batch`; did you mean `batch_size`?"),
        ("[training]\nepoch = 1\n", "line 9: unknown key `training.epoch`; did you mean `epochs`?"),
        ("[training]\nlr = 1\n", "line 9: unknown key `training.lr`; did you mean `optimizer.learning_rate`?"),
        ("[training]\nevery = 1\n", "line 9: unknown key `training.every`; did you mean `evaluation.every` or `previews.every`?"),
        ("[optimiser]\nx = 1\n", "line 8: unknown key `optimiser`; did you mean `optimizer`?"),
        ("num-repeats = 1\n", "line 8: unknown key `datasets.0.num-repeats`; did you mean `repeats`?"),
        ("[saving]\nxyzzy = 1\n", "line 9: unknown key `saving.xyzzy`; valid here: `checkpoint_every`, `keep_checkpoints`, "
         "`lora_every`, `formats`, `precision`"),
        ('repeats = "2"\n', 'line 8: `datasets.0.repeats` must be a whole number from 1 to 100_000, not "2"; write 2 without quotes'),
        ("repeats = 0\n", "line 8: `datasets.0.repeats` must be a whole number from 1 to 100_000, not 0"),
        ("repeats = 2.0\n", "line 8: `datasets.0.repeats` must be a whole number from 1 to 100_000, not 2.0; write 2"),
        ("repeats = true\n", "line 8: `datasets.0.repeats` must be a whole number from 1 to 100_000, not true"),
        ('caption_dropout = "5%"\n', 'line 8: `datasets.0.caption_dropout` must be a number from 0 to 1, not "5%"; '
         "write 0.05 for 5%"),
        ("[training]\nsteps = 99999999999999999999999\n", "line 9: `training.steps` must be a whole number from 1 to "
         "1_000_000_000, not 99999999999999999999999"),
        ('[training]\ngpus = "2"\n', 'line 9: `training.gpus` must be `auto` or a whole number from 1 to 64, not "2"; write 2 '
         "without quotes"),
        ('[adapter]\ntargets = "atention"\n', "line 9: `adapter.targets` must be one of `attention`, `attention+feed-forward`, "
         '`all`, `style`, `character` or a list of texts, not "atention"; did you mean `attention`?'),
        ("resolutions = 512\n", "line 8: `datasets.0.resolutions` must be a list of whole numbers from 64 to 4096, not 512; "
         "write `[512]`"),
        ("resolutions = [\n  512,\n  8,\n]\n", "line 10: `datasets.0.resolutions.1` must be a whole number from 64 to 4096, not 8"),
        ("resolutions = []\n", "line 8: `datasets.0.resolutions` must not be empty"),
        ("trigger_word = 7\n", 'line 8: `datasets.0.trigger_word` must be text, not 7; write it in quotes: "7"'),
        ("trigger_word = 1979-05-27\n", "line 8: `datasets.0.trigger_word` must be text, not a date or time"),
        ('recursive = "true"\n', 'line 8: `datasets.0.recursive` must be `true` or `false`, not "true"; write true without quotes'),
        ('[optimizer]\nkind = "AdamW"\n', "line 9: `optimizer.kind` must be one of `adamw`, `adamw-8bit`, `prodigy`, "
         '`adafactor`, `schedule-free`, not "AdamW"; did you mean `adamw`?'),
        ("[optimizer]\nbetas = [0.9]\n", "line 9: `optimizer.betas` must be a list of 2 numbers from 0 to below 1, not [0.9]"),
        ("[optimizer]\nlearning_rate = nan\n", "line 9: `optimizer.learning_rate` must be a number above 0 and below 10, not NaN"),
        ("[optimizer]\nweight_decay = inf\n", "line 9: `optimizer.weight_decay` must be a number, at least 0, not Infinity"),
        ("[training]\nhuber_c = 0.2\n", "line 8: `training`: `huber_c` is for the losses `huber` and `smooth-l1`: set `loss`, or "
         "leave it out"),
        ('[training]\nloss = "huber"\nhuber_c = 2\n', "line 8: `training`: `huber_c` is what the width falls to from 1: set it to 1 "
         "or less, or `huber_schedule` to constant"),
        ("[[datasets]]\n", "line 8: `datasets.1.path` is missing; it must be a path"),
        ('[adapter]\ncontinue_from = "no.safetensors"\n', "line 9: `adapter.continue_from`: there is no file {}/no.safetensors"),
        ('[adapter]\ncontinue_from = "pictures"\n', "line 9: `adapter.continue_from`: {}/pictures is a folder, not a file"),
        ('[adapter]\ncontinue_from = ""\n', "line 9: `adapter.continue_from`: the path is empty"),
        ('[[datasets]]\npath = "a\\nb"\n', "line 9: `datasets.1.path`: there is no folder {}/a\\nb"),
        ('[[datasets]]\npath = "a\\u0000b"\n', "line 9: `datasets.1.path`: the path holds a NUL character"),
        (f'[[datasets]]\npath = "{"x" * 300}"\n', "line 9: `datasets.1.path`: {}/" + "x" * 300 + " cannot be looked at (File name too long)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_was_expected(write: Write, tmp_path: Path, more: str, what: str):
    error = refusal(write(more))
    assert error.what == "recipe.toml, " + what.replace("{}", str(tmp_path))
    assert error.why == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "recipe.toml: `name` is missing; it must be text"),
        ('name = "a/b"\n', "recipe.toml, line 1: `name`: it becomes a file name, so it must not hold"),
        ('name = "a"\nbase_model = "demo"\n', 'recipe.toml, line 2: `base_model` must be a table, not "demo"; write `[base_model]`'),
        ("[datasets]\npath = 'pictures'\n", "recipe.toml, line 1: `datasets` must be a list of tables, not a table; write `[[datasets]]`"),
        ('base_model.name = "./nowhere"\n', "recipe.toml, line 1: `base_model.name`: there is no folder {}/nowhere"),
        ("[[dataset]]\npath = 'pictures'\n", "recipe.toml, line 1: unknown key `dataset`; did you mean `datasets`?"),
    ],
)  # fmt: skip
def test_mistakes_at_the_top_are_named(write: Write, tmp_path: Path, text: str, what: str):
    error = refusal(write(text=text))
    assert what.replace("{}", str(tmp_path)) in str(error)


def test_a_misspelt_required_key_is_one_problem(write: Write):
    error = refusal(write(text='nam = "x"\n[base_model]\nname = "demo"\n[[dataset]]\npath = "pictures"\n'))
    assert error.what.endswith("unknown key `nam`; did you mean `name`?")
    assert error.why == "recipe.toml, line 4: unknown key `dataset`; did you mean `datasets`?"


def test_all_problems_are_listed_in_the_order_of_the_file(write: Write):
    error = refusal(write('repeats = 0\n[[datasets]]\npath = "nowhere"\n[adapter]\nrang = 4\nalpha = -1\n'))
    assert error.what.startswith("recipe.toml, line 8:")
    assert [line.split(":")[0] for line in error.why.split("\n")] == [
        "recipe.toml, line 10", "recipe.toml, line 12", "recipe.toml, line 13",
    ]  # fmt: skip


def test_paths_of_an_old_run_need_not_exist_any_more(write: Write, tmp_path: Path):
    path = write()
    (tmp_path / "pictures").rmdir()
    assert "there is no folder" in refusal(path).what
    assert recipe.load(path, check_paths=False).datasets[0].path == tmp_path / "pictures"


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("recursive = True", "line 8, column 13: unexpected character: 'T'", "lower case"),
        ("trigger_word = ohwx", "line 8, column 16", "quotes"),
        ("caption_dropout = .5", "line 8, column 19", "0.5"),
        ("repeats = 1,000", "line 8, column 12", "without commas"),
        ('path2 = "C:\\Users"', "line 8, column", "forward slashes"),
        ("repeats: 2", "line 8, column", "key = value"),
        ('trigger_word = "ohwx', "line 8, column 21: the text has no closing quote on its line", "text in quotes"),
        ("resolutions = [512", "line 8, column 1: the file ends in the middle of something", "closing"),
    ],
)
def test_broken_toml_is_shown_with_its_place_and_a_way_out(write: Write, line: str, what: str, remedy: str):
    error = refusal(write(line + "\n"))
    assert f"recipe.toml, {what}" in error.what
    assert remedy in error.remedy


def test_a_key_written_twice_is_named_with_both_lines(write: Write):
    error = refusal(write("repeats = 1\nrepeats = 2\n"))
    assert error.what == "recipe.toml, line 9: `datasets.0.repeats` is written a second time"
    assert "line 8" in error.why


def test_files_that_are_no_recipe_are_refused_in_words(write: Write, tmp_path: Path):
    path = write()
    assert "is a folder, not a recipe" in refusal(tmp_path).what
    assert "recipe.toml" in refusal(tmp_path).remedy
    assert refusal(Path("other.toml")).what == "There is no recipe other.toml"
    path.write_bytes(b'name = "x"\nnotes = "caf\xe9"\n')
    assert refusal(path).what == "recipe.toml, line 2: not UTF-8 text"
    path.write_text('name = "x"', encoding="utf-16")
    assert refusal(path).what == "recipe.toml is UTF-16 text, not UTF-8"
    path.write_bytes(b"x" * 2_000_000)
    assert "too large" in refusal(path).what
    path.write_text("a = " + "[" * 5000 + "]" * 5000)
    assert "deep" in refusal(path).what


def test_a_byte_order_mark_and_windows_line_ends_are_read(write: Write):
    path = write()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert recipe.load(path).name == "cat"


def test_overrides_reach_into_lists_and_take_toml_values_or_text(write: Write):
    found = recipe.load(
        write(),
        ["datasets.0.repeats = 3", "datasets.0.trigger_word=ohwx cat", 'previews.prompts=["a", "b=c"]', "name=2024",
         "optimizer.kind=prodigy", "saving.formats=['diffusers']", "notes=a=b"],
    )  # fmt: skip
    assert (found.datasets[0].repeats, found.datasets[0].trigger_word) == (3, "ohwx cat")
    assert (found.previews.prompts, found.name, found.notes) == (["a", "b=c"], "2024", "a=b")
    assert found.optimizer.kind is recipe.OptimizerKind.PRODIGY
    assert found.saving.formats == [recipe.LoraFormat.DIFFUSERS]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("optimizer.learning_rat=1", "--set optimizer.learning_rat=1: unknown key `optimizer.learning_rat`; did you mean `learning_rate`?"),
        ("optimiser.learning_rate=1", "--set optimiser.learning_rate=1: unknown key `optimiser`; did you mean `optimizer`?"),
        ("lr=1", "--set lr=1: unknown key `lr`; did you mean `optimizer.learning_rate`?"),
        ("datasets.3.repeats=1", "--set datasets.3.repeats=1: there is no `datasets.3.repeats`"),
        ("datasets.repeats=1", "--set datasets.repeats=1: there is no `datasets.repeats`"),
        ("name.x=1", "--set name.x=1: there is no `name.x`"),
        ("adapter.rank=many", '--set adapter.rank=many: `adapter.rank` must be a whole number from 1 to 1024, not "many"'),
        ("adapter.rank", "--set adapter.rank: not of the form key=value"),
        ("adapter..rank=1", "--set adapter..rank=1: not of the form key=value"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_as_it_was_typed(write: Write, override: str, what: str):
    assert refusal(write(), override).what == what


def test_an_override_sets_one_key_only(write: Write):
    with pytest.raises(RecipeError, match="must be a whole number"):
        recipe.load(write(), ["adapter.rank=4\nname='x'"])
