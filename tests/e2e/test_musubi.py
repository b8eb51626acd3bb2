"""`lorapod train` with musubi-tuner, against programs that behave as it does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from fakes.external import processes_left, train, until, with_model, with_trainer
from lorapod import recipe as recipes
from lorapod.errors import LorapodError
from lorapod.lora_file import inspect
from lorapod.recipe import TrainerName
from lorapod.runs import RunFolder, all_runs, read_events, resume_run, start_run, state_of, stop_run
from lorapod.workspace import Workspace

MODEL = "wan2.2-t2v-a14b"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    with_model(made, MODEL, "musubi")
    with_trainer(made, TrainerName.MUSUBI)
    return made


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = processes_left(tmp_path)
    assert not left, left


@pytest.fixture
def recipe(tmp_path: Path, pictures: Callable[..., Path]) -> Path:
    pictures("zorbs", 4)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"name = 'zorb'\ntrainer = 'musubi'\n[base_model]\nname = '{MODEL}'\nexpert = 'low'\n"
        "[[datasets]]\npath = 'zorbs'\nresolutions = [64]\ntrigger_word = 'zorb'\n"
        "[adapter]\nrank = 4\nalpha = 2\n[optimizer]\nschedule = 'constant'\nwarmup_steps = 0\n"
        "[training]\nsteps = 12\n[saving]\ncheckpoint_every = 5\n",
        encoding="utf-8",
    )
    return path


def newest(workspace: Workspace) -> RunFolder:
    return all_runs(workspace)[0]


def test_a_training_from_recipe_to_lora(workspace: Workspace, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (recipe.parent / "zorbs").iterdir()}
    code, output = train(workspace, str(recipe))
    run = newest(workspace)
    assert code == 0, output + run.log.read_text()
    events = read_events(run)
    assert [e["name"] for e in events if e["type"] == "stage"] == [
        "prepare",
        "cache latents",
        "cache text",
        "train-low",
    ]
    steps = [e for e in events if e["type"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 13)) and steps[-1]["total"] == 12
    assert (steps[3]["loss"], steps[3]["seconds"]) == (0.25, 0.2)
    found = inspect(run.lora / "zorb-low.safetensors")
    assert (found.format, found.ranks, found.alphas, found.trigger) == ("comfyui", [4], [2], "zorb")
    assert found.metadata["lorapod.trainer"] == "musubi-tuner" and len(found.metadata["lorapod.trainer_commit"]) == 40
    assert found.metadata["lorapod.expert"] == "low" and "stand-in" in found.metadata["ss_training_comment"]
    assert sorted(path.name for path in run.lora.iterdir()) == [
        "zorb-low-step000005.safetensors", "zorb-low-step000010.safetensors", "zorb-low.safetensors"
    ]  # fmt: skip
    assert [e["step"] for e in events if e["type"] == "checkpoint"] == [5, 10]
    assert (run.path / "output/from-000000/zorb-low-step00000005.safetensors").is_file(), "its own files stay"
    captions = [path.read_text() for path in (run.path / "data").rglob("*.txt")]
    assert len(captions) == 4 and all(text.startswith("zorb") for text in captions)
    assert {path: path.stat().st_mtime_ns for path in (recipe.parent / "zorbs").iterdir()} == before
    commands = sorted(path.name for path in (run.path / "rendered").glob("*.command.json"))
    assert commands == ["01-cache-latents.command.json", "02-cache-text.command.json", "03-train-low.command.json"]
    assert "no caption dropout" in output and (run.path / "report.html").is_file()


def test_both_experts_are_trained_one_after_the_other_and_kept_together(workspace: Workspace, recipe: Path) -> None:
    code, output = train(workspace, str(recipe), "--set", "base_model.expert=both", "--set", "training.steps=4")
    assert code == 0, output
    names = sorted(path.name for path in newest(workspace).lora.iterdir())
    assert names == ["zorb-high.safetensors", "zorb-low.safetensors"]
    experts = {inspect(newest(workspace).lora / name).metadata["lorapod.expert"] for name in names}
    assert experts == {"high", "low"}


@pytest.mark.parametrize(
    ("mode", "says", "hint"),
    [
        ("cache_latents:crash", "cache latents failed: KeyError", "log.txt"),
        ("train:oom", "GPU ran out of memory in train-low", "Swap more blocks"),
        ("train:full", "No space left", "Free some space"),
        ("train:killed", "train-low", "log.txt"),
        ("train:nan", "no number at step 3", "learning rate"),
    ],
)
def test_a_failure_is_one_error_with_what_to_change(
    mode: str, says: str, hint: str, workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", mode)
    monkeypatch.setenv("STEP_SECONDS", "0.4" if mode.endswith("nan") else "0.01")
    code, _ = train(workspace, str(recipe))
    run = newest(workspace)
    errors = [event for event in read_events(run) if event["type"] == "error"]
    assert code == 1 and state_of(run).status == "failed" and len(errors) == 1
    assert says in errors[0]["message"] and hint in errors[0]["hint"], errors


@pytest.mark.parametrize("length", ["training.steps=60", "training.epochs=15"])
def test_a_stopped_run_says_what_is_lost_and_goes_on_from_its_state(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    text = recipe.read_text().replace("steps = 12\n", "").replace("'constant'", "'cosine'")
    recipe.write_text(
        text.replace("[training]\n", f"[training]\n{length.removeprefix('training.').replace('=', ' = ')}\n")
    )
    monkeypatch.setenv("STEP_SECONDS", "0.1")
    run = start_run(recipes.load(recipe), workspace)
    until(lambda: state_of(run).step >= 7)
    stop_run(run)
    until(lambda: state_of(run).status != "running")
    state = state_of(run)
    assert state.status == "stopped", run.log.read_text()
    lost = [event["message"] for event in read_events(run) if event["type"] == "warning" and "lost" in event["message"]]
    assert lost == [f"musubi-tuner cannot be asked to save: {state.step % 5} steps are lost"] or state.step % 5 == 0
    monkeypatch.setenv("STEP_SECONDS", "0.01")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    state = state_of(run)
    assert (state.status, state.step, state.total) == ("done", 60, 60), run.log.read_text()
    began = sorted(int(folder.name.removeprefix("from-")) for folder in (run.path / "output").glob("from-*"))
    assert began[0] == 0 and began[1] % 5 == 0 and began[1] > 0
    command = json.loads((run.path / "rendered/03-train-low.command.json").read_text())["argv"]
    assert command[command.index("--lr_scheduler_args") + 1] == "T_max=60"
    assert command[command.index("--max_train_steps") + 1] == str(60 - began[1])
    assert (run.lora / "zorb-low.safetensors").is_file() and (run.lora / "zorb-low-step000055.safetensors").is_file()


def test_a_state_that_was_not_written_to_its_end_is_passed_over(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "train:full")
    assert train(workspace, str(recipe), "--set", "saving.checkpoint_every=2")[0] == 1
    run = newest(workspace)
    half = run.path / "output/from-000000/zorb-low-step00000004-state"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    monkeypatch.setenv("MODE", "")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    assert state_of(run).status == "done" and (run.path / "output/from-000002").is_dir()


def test_data_that_changed_is_not_resumed_with(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "train:full")
    train(workspace, str(recipe))
    run = newest(workspace)
    for caption in (recipe.parent / "zorbs").glob("*.txt"):
        caption.write_text("another caption\n")
    monkeypatch.setenv("MODE", "")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    state = state_of(run)
    assert state.status == "failed" and state.error and "not what the run was trained on" in state.error["message"]


def test_a_supervisor_that_is_killed_takes_the_trainer_with_it(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEP_SECONDS", "0.2")
    run = start_run(recipes.load(recipe), workspace)
    until(lambda: state_of(run).step > 0)
    os.kill(json.loads((run.path / "supervisor.json").read_bytes())["pid"], signal.SIGKILL)
    assert not processes_left(tmp_path)


def test_what_it_cannot_do_and_what_is_missing_is_said_before_a_run_is_made(
    workspace: Workspace, recipe: Path, tmp_path: Path
) -> None:
    for words, says in (
        (["--set", "optimizer.kind=schedule-free"], "musubi-tuner cannot use the optimizer"),
        (["--set", "base_model.name=qwen-image"], "is not on this machine"),
        (["--set", "trainer_options.musubi.train.block_swap=2"], "blocks_to_swap"),
    ):
        with pytest.raises(LorapodError) as caught:
            train(workspace, str(recipe), *words)
        assert says in str(caught.value)
    bare = Workspace(tmp_path / "bare")
    with pytest.raises(LorapodError) as caught:
        train(bare, str(recipe))
    assert "lorapod trainers install musubi" in str(caught.value)
    assert not all_runs(workspace) and not all_runs(bare)


def test_both_experts_are_trained_at_once_on_two_gpus(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("STEP_SECONDS", "0.2")
    recipe.write_text(recipe.read_text().replace("expert = 'low'", "expert = 'both'"))
    code, output = train(workspace, str(recipe))
    assert code == 0, output
    assert "Both experts are trained at once" in output and "on GPU 3" in output and "on GPU 5" in output
    low, high = sorted(all_runs(workspace), key=lambda run: run.recipe().base_model.expert.value == "high")
    assert [path.name for path in sorted(low.lora.glob("zorb-*[a-z].safetensors"))] == ["zorb-low.safetensors"]
    assert (high.lora / "zorb-high.safetensors").is_file()
    assert low.pair() == {"with": high.id, "gpu": "5"} and high.pair() == {"with": low.id, "gpu": "3"}
    spans = []
    for run in (low, high):
        times = [event["t"] for event in read_events(run) if event["type"] == "step"]
        spans.append((times[0], times[-1]))
    assert max(start for start, _ in spans) < min(end for _, end in spans), "at the same time"
    assert f"run {low.id}, is done" in output and "zorb-low.safetensors" in output


def test_one_of_a_pair_is_stopped_and_resumed_with_its_own_gpu(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod.runs import partner_of, start_pair

    monkeypatch.setenv("STEP_SECONDS", "0.1")
    pair = start_pair(recipes.load(recipe, ["base_model.expert=both", "training.steps=30"]), workspace, ["0", "1"])
    until(lambda: state_of(pair.low).step >= 6 and state_of(pair.high).step >= 6)
    stop_run(pair.low)
    until(lambda: state_of(pair.low).status != "running")
    monkeypatch.setenv("STEP_SECONDS", "0.01")
    assert partner_of(pair.high, workspace) == pair.low
    resume_run(pair.low, workspace)
    until(lambda: state_of(pair.low).status != "running" and state_of(pair.high).status != "running", 60)
    assert (state_of(pair.low).status, state_of(pair.high).status) == ("done", "done")


def test_one_gpu_is_enough_where_it_is_asked_for(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    recipe.write_text(recipe.read_text().replace("expert = 'low'", "expert = 'both'").replace("12", "3"))
    assert train(workspace, str(recipe), "--one-gpu")[0] == 0
    (run,) = all_runs(workspace)
    assert {path.name for path in run.lora.iterdir()} == {"zorb-high.safetensors", "zorb-low.safetensors"}


@pytest.fixture
def editing(workspace: Workspace, tmp_path: Path) -> Path:
    """A recipe for FLUX.1 Kontext: four pictures, and what each was made from."""
    with_model(workspace, "flux-kontext-dev", "musubi")
    for folder, shade in (("after", 200), ("before", 90)):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(("cat", "cat_1", "dog", "emu")):
            Image.new("RGB", (80, 64), (shade + number, 0, 0)).save(tmp_path / folder / f"{name}.png")
            if folder == "after":
                (tmp_path / folder / f"{name}.txt").write_text(f"make it {name}")
    path = tmp_path / "edit.toml"
    path.write_text(
        "name = 'zorb'\ntrainer = 'musubi'\n[base_model]\nname = 'flux-kontext-dev'\n"
        "[[datasets]]\npath = 'after'\ncontrol = 'before'\nresolutions = [64]\nvalidation_share = 0.0\n"
        "[adapter]\nrank = 4\n[optimizer]\nwarmup_steps = 0\n[training]\nsteps = 12\n[saving]\ncheckpoint_every = 5\n"
        "[previews]\nprompts = ['make it dog', 'another']\nwidth = 64\nheight = 64\nevery = 4\n",
        encoding="utf-8",
    )
    return path


def test_an_editing_model_is_trained_and_previewed_with_its_control_pictures(
    workspace: Workspace, editing: Path
) -> None:
    code, output = train(workspace, str(editing))
    run = newest(workspace)
    assert code == 0, output + run.log.read_text()
    found = inspect(run.lora / "zorb.safetensors")
    assert found.family == "flux" and sorted(module.name.rpartition(".")[2] for module in found.modules) == [
        "to_k", "to_q", "to_v"
    ], "the fused layer that it trains, as ComfyUI reads it"  # fmt: skip
    previews = [event for event in read_events(run) if event["type"] == "preview"]
    assert [(each["step"], each["prompt"]) for each in previews] == [
        (step, prompt) for step in (0, 4, 8, 12) for prompt in ("make it dog", "another")
    ], "each once, though the end of an epoch draws again"
    with Image.open(run.path / previews[0]["path"]) as picture:
        assert picture.size == (64, 64) and picture.getpixel((9, 9)) == (92, 0, 0), "the control picture of the dog"


def test_a_resumed_training_finds_its_control_pictures_as_they_were(
    workspace: Workspace, editing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "train:crash")
    assert train(workspace, str(editing))[0] == 1
    monkeypatch.delenv("MODE")
    run, dog = newest(workspace), editing.parent / "before/dog.png"
    before = dog.read_bytes()
    Image.new("RGB", (80, 64), (1, 2, 3)).save(dog)
    resume_run(run, workspace)
    until(lambda: state_of(run).status == "failed" and len(errors_of(run)) == 2)
    assert "not what the run was trained on" in errors_of(run)[1]
    dog.write_bytes(before)
    resume_run(run, workspace)
    until(lambda: state_of(run).status == "done")
    assert (run.lora / "zorb.safetensors").is_file()


def errors_of(run: RunFolder) -> list[str]:
    return [event["message"] for event in read_events(run) if event["type"] == "error"]


def test_an_item_with_two_control_pictures_is_refused_before_anything_is_cached(
    workspace: Workspace, editing: Path
) -> None:
    (editing.parent / "before/emu.png").rename(editing.parent / "before/emu_0.png")
    Image.new("RGB", (80, 64)).save(editing.parent / "before/emu_1.png")
    code, _ = train(workspace, str(editing))
    errors = [event for event in read_events(newest(workspace)) if event["type"] == "error"]
    assert code == 1 and "one control picture an item" in errors[0]["message"]
    assert "emu_0.png, emu_1.png" in errors[0]["hint"] and not (newest(workspace).path / "cache").exists()
