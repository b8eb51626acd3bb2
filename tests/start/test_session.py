"""The guided session as a state machine: defaults, going back, changing by number, going on later."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod import recipe as recipes
from lorapod.errors import LorapodError, RequestError
from lorapod.machine import Gpus
from lorapod.start.answers import Answers, kept_in, read_answers
from lorapod.start.data import shared_word
from lorapod.start.facts import machine_sentence
from lorapod.start.paths import typed_folder
from lorapod.start.recipe_file import checked_recipe, write_recipe
from lorapod.start.session import Session
from lorapod.workspace import Workspace
from start.helpers import asked, folder_of, gpu, session_on


def choices_of(session: Session, key: str) -> dict[str, str]:
    """Value to what it lacks."""
    return {choice.value: choice.lacks for choice in session.step(key).question(session).choices}


def test_enter_all_the_way_without_a_gpu_trains_the_demo_model_on_the_demos_pictures(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    assert asked(session) == ["model", "goal", "data", "trigger", "name"]
    recipe = checked_recipe(session, write_recipe(session))
    assert recipe.base_model.name == "demo" and [each.path.name for each in recipe.datasets] == ["momo", "things"]
    assert recipe.datasets[0].trigger_word == "momo" and recipe.training.steps == 1000


def test_enter_all_the_way_on_a_gpu_trains_what_fits_on_the_pictures_that_are_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "w/image_dataset_here", captions="zorb on a hill {}")
    session = session_on(tmp_path / "w", gpu(24))
    assert asked(session) == ["model", "goal", "data", "trigger", "name", "trainer"]
    recipe = checked_recipe(session, write_recipe(session))
    assert recipe.base_model.name == "z-image-turbo" and recipe.datasets[0].path == folder
    assert (recipe.datasets[0].trigger_word, recipe.name, recipe.trainer) == ("zorb", "zorb", "builtin")


def test_clips_alone_lead_to_a_base_model_of_clips_and_motion(tmp_path: Path) -> None:
    folder_of(tmp_path / "w/video_dataset_here", 0, clips=4)
    session = session_on(tmp_path / "w", gpu(24))
    session.answer(session.step("model").question(session).default)
    assert session.facts.entries[session.model].modality == "clip"
    assert session.step("goal").question(session).default == "motion"
    session.answer("motion")
    assert "4 clips" in session.step("data").question(session).choices[0].title


def test_a_base_model_that_is_here_already_is_proposed_before_one_to_fetch(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w", gpu(24), here={"sdxl": ["builtin"]})
    assert session.step("model").question(session).default == "sdxl"


@pytest.mark.parametrize(
    ("gigabytes", "fits", "too_large"),
    [(6, ["sdxl"], ["wan2.1-t2v-14b"]), (10, ["sdxl", "flux-dev"], ["wan2.2-t2v-a14b"]),
     (24, ["z-image-turbo", "wan2.2-ti2v-5b", "qwen-image"], []),
     (48, ["flux-dev", "qwen-image", "wan2.2-t2v-a14b"], [])],
)  # fmt: skip
def test_base_models_that_do_not_fit_are_listed_with_the_reason(
    tmp_path: Path, gigabytes: int, fits: list[str], too_large: list[str]
) -> None:
    session = session_on(tmp_path / "w", gpu(gigabytes))
    lacking = choices_of(session, "model")
    assert all(not lacking[name] for name in [*fits, "demo"])
    for name in too_large:
        assert "GB of GPU memory" in lacking[name] and f"has {gigabytes}" in lacking[name]
    assert session.step("model").question(session).default in [*fits, "z-image-turbo"]


def test_a_base_model_whose_weights_must_be_rounded_is_offered_and_says_so(tmp_path: Path) -> None:
    """And is not what is recommended while another one fits as it is."""
    session = session_on(tmp_path / "w", gpu(24))
    offered = choices_of(session, "model")
    assert "flux-kontext-dev" in offered and "qwen-image-edit-2509" not in offered  # nobody asks for control pictures
    (flux,) = [c for c in session.step("model").question(session).choices if c.value == "flux-dev"]
    assert not flux.lacks and "(here in 8 bits)" in flux.title
    assert session.step("model").question(session).default == "z-image-turbo"
    small = session_on(tmp_path / "small", gpu(8))
    assert small.step("model").question(small).default == "sdxl"


@pytest.mark.parametrize(
    ("model", "trainers"),
    [("flux-kontext-dev", ["builtin", "diffusion-pipe"]), ("flux2-klein-base-4b", ["builtin", "musubi"])],
)
def test_editing_models_are_offered_with_the_trainers_that_need_no_control_pictures(
    tmp_path: Path, model: str, trainers: list[str]
) -> None:
    folder_of(tmp_path / "w/image_dataset_here", captions="zorb on a hill {}")
    session = session_on(tmp_path / "w", gpu(80), environment={"HF_TOKEN": "right"})
    offered = choices_of(session, "model")
    assert model in offered and "qwen-image-edit-2509" not in offered
    session.answer(model)
    assert [name for name, lacks in choices_of(session, "trainer").items() if not lacks] == trainers
    if "musubi" not in trainers:
        assert "with control pictures alone" in choices_of(session, "trainer")["musubi"]


def test_without_a_gpu_only_the_demo_is_offered_and_the_sentence_says_why(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    lacking = choices_of(session, "model")
    assert [name for name, reason in lacking.items() if not reason] == ["demo"]
    assert lacking["sdxl"] == "there is no GPU"
    assert "no GPU" in machine_sentence(session.facts) and "demo model" in machine_sentence(session.facts)
    hidden = session_on(tmp_path / "w", Gpus(gpu(24).found, hidden=True))
    assert "CUDA_VISIBLE_DEVICES" in machine_sentence(hidden.facts)
    rounded = machine_sentence(session_on(tmp_path / "w", gpu(24)).facts).partition("By rounding their weights")[2]
    assert "FLUX.1-dev" in rounded and "Z-Image" not in rounded
    assert "14B" in machine_sentence(session_on(tmp_path / "w", gpu(10)).facts).partition("Too large")[2]


def test_back_takes_the_last_answer_back_and_proposes_it_again(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    session.answer("demo")
    session.answer("style")
    assert session.back() and session.current and session.current.key == "goal"
    assert session.current.question(session).default == "style"
    assert session.back() and session.current.key == "model"
    assert not session.back()
    assert asked(session) == ["model", "goal", "data", "trigger", "name"]
    assert session.answers.goal == "style"


def test_any_line_of_the_summary_can_be_changed_by_its_number(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    asked(session)
    for number, step, _ in session.numbered():
        if step.key == "captioner":
            continue
        session.change(number)
        assert session.current is step
        session.answer({"steps": "12", "name": "other"}.get(step.key, step.question(session).default))
        assert session.current is None
    assert (session.answers.steps, session.answers.name) == (12, "other")
    assert "12 steps (usual: 1000)" in [text for _, _, text in session.numbered()]
    assert recipes.load(write_recipe(session)).training.steps == 12
    with pytest.raises(RequestError, match="no line 99"):
        session.change(99)


def test_the_goal_and_the_number_of_pictures_decide_how_long_is_trained_and_the_summary_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", 30, captions="zorb on a hill {}")
    said = {}
    for goal in ("character", "style"):
        session = session_on(tmp_path / goal, gpu(24))
        session.take(Answers(model="sdxl", goal=goal, data=[folder]))
        session.fill()
        lines = {step.key: text for _, step, text in session.numbered()}
        said[goal] = lines
        steps = checked_recipe(session, write_recipe(session)).training.steps
        assert lines["steps"].startswith(f"{steps} steps: each picture about")
    assert said["character"]["steps"] == "3000 steps: each picture about 100 times, as is usual"
    assert said["style"]["steps"] == "1500 steps: each picture about 50 times, as is usual"
    for count, end in (
        (4, "fewest steps that are usual; with more items it would be about 100 times"),
        (90, "most steps"),
    ):
        session = session_on(tmp_path / f"w{count}", gpu(24))
        data = folder_of(tmp_path / f"{count}", count, captions="zorb on a hill {}")
        session.take(Answers(model="sdxl", goal="character", data=[data]))
        session.fill()
        assert end in {step.key: text for _, step, text in session.numbered()}["steps"]
    assert "leave the face and body" in said["character"]["goal"] and "brushwork" in said["style"]["goal"]


def test_the_size_is_said_can_be_changed_and_is_what_the_pictures_are_checked_for(tmp_path: Path) -> None:
    from lorapod.cli.start_ask import PlainAsker
    from lorapod.cli.start_shown import say_worst

    folder = folder_of(tmp_path / "mine", 12, captions="zorb on a hill {}")
    session = session_on(tmp_path / "w", gpu(24))
    session.take(Answers(model="sdxl", goal="style", data=[folder]))
    session.fill()
    [(number, _, text)] = [row for row in session.numbered() if row[1].key == "size"]
    assert text == "about 1024x1024 pixels, each in its own shape"
    session.change(number)
    with pytest.raises(RequestError, match="no size"):
        session.answer("huge")
    session.answer("64 px")
    assert session.unusable is None  # to be looked at anew
    say_worst(session, PlainAsker())
    assert checked_recipe(session, write_recipe(session)).datasets[0].resolutions == [64]
    assert "64x64 pixels, each in its own shape (usual: 1024)" in [row[2] for row in session.numbered()][number - 1]


def test_a_workspace_of_the_old_template_is_used_as_it_is_and_its_settings_are_pointed_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod.cli.start_ask import PlainAsker
    from lorapod.cli.start_shown import welcome

    root = tmp_path / "w"
    folder_of(root / "image_dataset_here", 12, captions="zorb on a hill {}")
    for name in ("runpod-diffusion_pipe/toml_files/flux.toml", "diffusion_pipe/examples/dataset.toml", "models/Wan/a.pt",
                 "training_outputs/flux/20250101_00-00-00/epoch40/adapter_model.safetensors", "HowToUse.txt"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name} = 1")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr("builtins.input", lambda text="": "")
    session = session_on(root, gpu(24))
    welcome(session, PlainAsker())
    said = " ".join(capsys.readouterr().out.split())
    assert "workspace is that of the old template" in said
    assert f"lorapod recipe import {root}/runpod-diffusion_pipe/toml_files/flux.toml" in said
    asked(session)
    recipe = checked_recipe(session, write_recipe(session))
    assert recipe.datasets[0].path == root / "image_dataset_here" and recipe.datasets[0].trigger_word == "zorb"
    assert {path: path.read_bytes() for path in before} == before


def test_back_from_a_line_that_is_changed_leaves_it_as_it_was(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    asked(session)
    session.change(1)
    assert session.back() and session.current is None and session.answers.model == "demo"


def test_another_base_model_asks_again_what_does_not_suit_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "w/video_dataset_here", 0, clips=4)
    session = session_on(tmp_path / "w", gpu(80))
    for text in ("wan2.1-t2v-1.3b", "motion", str(tmp_path / "w/video_dataset_here")):
        session.answer(text)
    asked(session)
    session.change(1)
    session.answer("z-image")
    assert session.current and session.current.key == "goal"
    assert {"goal", "data"}.isdisjoint(session.done)


def test_every_answer_is_on_disk_at_once_and_the_next_session_goes_on(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    expected = ["model", "goal", "data", "trigger", "name"]
    for i, key in enumerate(expected):
        kept = kept_in(Workspace(tmp_path / "w"))
        assert (kept.done if kept else []) == expected[:i]
        later = session_on(tmp_path / "w")
        if kept:
            later.go_on(kept)
        assert later.current and later.current.key == key
        session.answer(session.step(key).question(session).default)


def test_going_on_asks_again_for_data_that_is_gone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", captions="zorb {}")
    session = session_on(tmp_path / "w")
    session.answer("demo")
    session.answer("character")
    session.answer(str(folder))
    folder.rename(tmp_path / "elsewhere")
    later = session_on(tmp_path / "w")
    kept = kept_in(Workspace(tmp_path / "w"))
    assert kept is not None
    later.go_on(kept)
    assert later.current and later.current.key == "data"


def test_a_key_is_asked_for_only_where_it_is_needed_tried_and_never_written_with_the_answers(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w", gpu(48))
    session.answer("flux-dev")
    assert session.current and session.current.key == "model_key"
    assert session.current.question(session).secret
    with pytest.raises(LorapodError, match="not known"):
        session.answer("wrong")
    with pytest.raises(LorapodError, match="needed"):
        session.answer("")
    assert session.current.key == "model_key"
    session.answer("right")
    assert session.current and session.current.key == "goal"
    assert session.facts.environment["HF_TOKEN"] == "right"
    assert "right" not in (tmp_path / "w/start.toml").read_text()
    known = session_on(tmp_path / "w", gpu(48), environment={"HF_TOKEN": "hf"})
    known.answer("flux-dev")
    assert known.current and known.current.key == "goal"


def test_captioners_that_cannot_be_used_are_listed_with_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = folder_of(tmp_path / "mine")
    session = session_on(tmp_path / "w")
    for text in ("demo", "character", str(folder), "zorb", "figure"):
        session.answer(text)
    assert session.current and session.current.key == "captioner"
    lacking = choices_of(session, "captioner")
    assert lacking["joycaption"] and lacking["qwen-vl"] and not lacking["template"]
    assert session.current.question(session).default == "template"
    assert not lacking["gemini"]  # only its key is lacking, and that can be given
    session.answer("gemini")
    assert session.current and session.current.key == "captioner_key"
    session.answer("right")
    assert session.current and session.current.key == "name"
    session.back()
    session.back()
    with pytest.raises(RequestError, match="cannot be used here"):
        session.answer("joycaption")


@pytest.mark.parametrize(("answer", "key"), [("trigger", "allow_missing_captions"), ("keep", "skip_unusable")])
def test_missing_captions_may_stay_missing(tmp_path: Path, answer: str, key: str) -> None:
    folder = folder_of(tmp_path / "mine", 4, captions="zorb {}")
    (folder / "02.txt").unlink()
    session = session_on(tmp_path / "w")
    session.take(Answers(model="demo", data=[folder], captioner=answer, trigger="zorb"))
    session.fill()
    dataset = checked_recipe(session, write_recipe(session)).datasets[0]
    assert getattr(dataset, key) is True


def test_two_folders_become_two_datasets(tmp_path: Path) -> None:
    one, two = (folder_of(tmp_path / name, captions="zorb {}") for name in ("one", "two"))
    session = session_on(tmp_path / "w")
    session.take(Answers(model="demo", data=[one, two], trigger="zorb"))
    session.fill()
    datasets = checked_recipe(session, write_recipe(session)).datasets
    assert [(each.path, each.trigger_word) for each in datasets] == [(one, "zorb"), (two, "zorb")]


def test_the_same_answers_write_the_same_recipe_once_and_other_answers_another_file(tmp_path: Path) -> None:
    session = session_on(tmp_path / "w")
    asked(session)
    first = write_recipe(session)
    assert write_recipe(session) == first
    session.answers.steps = 7
    assert write_recipe(session) == first.with_name("momo-2.toml")


@pytest.mark.parametrize(
    ("step", "answer"),
    [("model", "sdxxl"), ("goal", "motion"), ("goal", "fame"), ("data", ""), ("data", "/nowhere"), ("name", "a/b"),
     ("trigger", "x" * 70)],
)  # fmt: skip
def test_answers_that_cannot_be_taken_change_nothing(tmp_path: Path, step: str, answer: str) -> None:
    session = session_on(tmp_path / "w")
    asked(session)
    before = session.answers.model_copy(deep=True)
    with pytest.raises(LorapodError):
        session.step(step).take(session, answer)
    assert session.answers == before


def test_folders_without_what_the_base_model_learns_from_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    clips = folder_of(tmp_path / "clips", 0, clips=2)
    session = session_on(tmp_path / "w")
    session.answer("demo")
    session.answer("style")
    for folder in (tmp_path / "empty", clips):
        with pytest.raises(LorapodError, match="holds"):
            session.answer(str(folder))


@pytest.mark.parametrize(
    "written",
    ["{}", "'{}'", '"{}"', "  {} ", "{escaped}", "'{}' ", "file://{url}", "'file://{url}'"],
)
def test_a_dropped_folder_is_understood_as_terminals_write_it(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "my best (2) pictures"
    folder.mkdir()
    escaped = str(folder).replace(" ", "\\ ").replace("(", "\\(").replace(")", "\\)")
    text = written.format(folder, escaped=escaped, url=str(folder).replace(" ", "%20"))
    assert typed_folder(text, Workspace(tmp_path / "w")) == folder


def test_a_folder_may_be_named_within_the_workspace_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w/pics").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"")
    assert typed_folder("pics", Workspace(tmp_path / "w")) == tmp_path / "w/pics"
    with pytest.raises(RequestError, match="is a file"):
        typed_folder(str(tmp_path / "a.png"), Workspace(tmp_path / "w"))


def test_the_trigger_word_is_read_off_captions(tmp_path: Path) -> None:
    from lorapod.start.data import contents_of

    assert shared_word(contents_of([folder_of(tmp_path / "a", 6, "a photo of zorb, number {}")])) == ""
    assert shared_word(contents_of([folder_of(tmp_path / "b", 6, "zorb sits on stone {}")])) == "zorb"
    assert shared_word(contents_of([folder_of(tmp_path / "c", 6, "the {} trees")])) in ("", "trees")


def test_answers_from_a_file_may_be_those_of_a_session_or_plain(tmp_path: Path) -> None:
    file = tmp_path / "answers.toml"
    file.write_text('model = "demo"\ndata = ["pics"]\n')
    assert read_answers(file) == Answers(model="demo", data=[tmp_path / "pics"])
    file.write_text('done = ["model"]\n[answers]\nmodel = "demo"\n')
    assert read_answers(file).model == "demo"
    file.write_text("modle = 1")
    with pytest.raises(RequestError, match="modle"):
        read_answers(file)
    file.write_text("steps = 0")
    with pytest.raises(RequestError, match="steps"):
        read_answers(file)


@pytest.mark.parametrize("text", ["not = [toml", "[answers]\nfuture = 1\n", "\xff"])
def test_a_session_file_that_cannot_be_read_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "start.toml").write_text(text, encoding="latin-1")
    with pytest.raises(RequestError, match="cannot be read"):
        kept_in(Workspace(tmp_path))
    assert (tmp_path / "start.toml").read_text(encoding="latin-1") == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modle = "demo"', "Did you mean `model`?"),
        ('data = "pictures"', "`data`: it must be a list in brackets"),
        ("size = -3", "`size`: it must be greater than or equal to 64"),
        ("size = ", "cannot be read"),
    ],
)
def test_a_wrong_file_of_answers_is_told_in_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "answers.toml").write_text(text)
    with pytest.raises(RequestError) as refused:
        read_answers(tmp_path / "answers.toml")
    assert said in str(refused.value)
