"""`lorapod train` with diffusion-pipe, against a program that behaves as it does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.external import processes_left, train, until, with_model, with_trainer
from lorapod.errors import LorapodError
from lorapod.lora_file import inspect
from lorapod.runs import RunFolder, all_runs, read_events, resume_run, start_run, state_of, stop_run
from lorapod.workspace import Workspace

MODEL = "wan2.1-t2v-1.3b"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    with_model(made, MODEL)
    with_trainer(made)
    return made


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = processes_left(tmp_path)
    assert not left, left


@pytest.fixture
def recipe(tmp_path: Path, pictures: Callable[..., Path]) -> Path:
    pictures("pictures", 6)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"name = 'zorb'\ntrainer = 'diffusion-pipe'\n[base_model]\nname = '{MODEL}'\n"
        "[[datasets]]\npath = 'pictures'\nresolutions = [64]\ntrigger_word = 'zorb'\nvalidation_share = 0.34\n"
        "[adapter]\nrank = 4\n[training]\nsteps = 10\n[evaluation]\nevery = 5\n"
        "[saving]\ncheckpoint_every = 4\nlora_every = 4\n",
        encoding="utf-8",
    )
    return path


def newest(workspace: Workspace) -> RunFolder:
    return all_runs(workspace)[0]


def test_a_training_from_recipe_to_lora(
    workspace: Workspace, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*")}
    code, output = train(workspace, str(recipe))
    run = newest(workspace)
    assert code == 0, output + run.log.read_text()
    state, events = state_of(run), read_events(run)
    assert (state.status, state.step, state.total) == ("done", 10, 10)
    assert [e["name"] for e in events if e["type"] == "stage"] == ["prepare", "cache", "train"]
    assert [e["step"] for e in events if e["type"] == "step"] == list(range(1, 11))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*")} == before
    assert [point[0] for point in state.evals["held_out"]] == [0, 5, 10]
    assert sorted(path.name for path in run.lora.iterdir()) == [
        "zorb-step000004.safetensors", "zorb-step000008.safetensors", "zorb.safetensors"
    ]  # fmt: skip
    final = inspect(run.lora / "zorb.safetensors")
    assert final.format == "comfyui" and final.family == "wan" and final.steps == 10 and final.trigger == "zorb"
    assert final.metadata["lorapod.trainer"] == "diffusion-pipe" and len(final.metadata["lorapod.trainer_commit"]) == 40
    assert [path.name for path in (run.path / "output").glob("*/step*")] != []  # the trainer's own files stay
    assert all((run.path / event["path"]).exists() for event in events if event["type"] in ("checkpoint", "lora")
               and event["step"] != 10)  # fmt: skip
    assert json.loads((run.path / "rendered/02-train.command.json").read_text())["argv"][1] == "-m"
    view = run.path / "data/0-pictures-pictures"
    captions = [path.read_text() for path in view.glob("*.txt")]
    assert len(captions) == 4 and all("zorb" in caption for caption in captions)
    assert all(path.is_symlink() for path in view.glob("*.png")) and list(view.glob("cache/*/*.bin"))
    assert len(list((view.parent / "0-pictures-pictures-held-out").glob("*.png"))) == 2
    for path in run.path.rglob("*"):
        if path.is_file() and "data" not in path.relative_to(run.path).parts:
            assert b"hf_very_secret_value" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("mode", "says", "hint"),
    [
        ("oom=3", "GPU ran out of memory in train", "Swap more blocks"),
        ("kill=2", "train was killed", "memory"),
        ("quiet=train", "without having done its work", "before it said"),
        ("nan=3", "no number at step 3", "learning rate"),
    ],
)
def test_a_failure_is_one_error_with_what_to_change(
    mode: str, says: str, hint: str, workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DP", mode)
    monkeypatch.setenv("FAKE_DP_SECONDS", "0.4" if mode.startswith("nan") else "0.01")
    code, _ = train(workspace, str(recipe))
    run = newest(workspace)
    errors = [event for event in read_events(run) if event["type"] == "error"]
    assert code == 1 and state_of(run).status == "failed" and len(errors) == 1
    assert says in errors[0]["message"] and hint in errors[0]["hint"], errors


def test_a_trainer_that_hangs_after_an_error_is_ended_with_all_that_it_started(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_DP", "hang=cache")
    run = start_run_with(recipe, workspace, tmp_path, hang_seconds=1.0)
    state = state_of(run)
    assert state.status == "failed" and state.error and "nothing to train on" in state.error["message"]


def start_run_with(recipe: Path, workspace: Workspace, tmp_path: Path, **settings: float) -> RunFolder:
    """A run under a supervisor of less patience than the real one has."""
    from lorapod import recipe as recipes
    from lorapod.runs.folder import create_run

    run = create_run(recipes.load(recipe), workspace)
    driver = Path(__file__).parents[1] / "fakes/supervise_external.py"
    given = [f"{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, str(driver), str(run.path), str(workspace.root), *given], check=False, timeout=90)
    return run


def test_a_stop_writes_a_checkpoint_and_a_resume_goes_on_from_it(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod import recipe as recipes

    monkeypatch.setenv("FAKE_DP_SECONDS", "0.1")
    run = start_run(recipes.load(recipe, ["training.steps=40"]), workspace)
    until(lambda: state_of(run).step >= 5)
    stop_run(run)
    until(lambda: state_of(run).status != "running")
    state = state_of(run)
    assert state.status == "stopped" and state.checkpoints
    stopped_at = state.step
    monkeypatch.setenv("FAKE_DP_SECONDS", "0.01")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    assert state_of(run).status == "done", run.log.read_text()
    seen = [e["step"] for e in read_events(run) if e["type"] == "step"]
    assert seen == list(range(1, 41)) and stopped_at < 40
    assert len(list((run.path / "output").iterdir())) == 1


def test_a_stop_while_caching_does_not_wait(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod import recipe as recipes

    monkeypatch.setenv("FAKE_DP", "slow=30")
    run = start_run(recipes.load(recipe), workspace)
    until(lambda: state_of(run).phase == "cache")
    time.sleep(1)
    stop_run(run)
    until(lambda: state_of(run).status != "running", 10)
    assert state_of(run).status == "stopped"
    monkeypatch.setenv("FAKE_DP", "")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    assert state_of(run).status == "done"


def test_a_trainer_that_does_not_heed_a_stop_is_ended_after_patience(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_DP", "deaf,stubborn=2")
    monkeypatch.setenv("FAKE_DP_SECONDS", "0.3")
    run = start_run_with(recipe, workspace, tmp_path, patience=1.0, stop_at=3)
    state = state_of(run)
    assert state.status == "stopped" and state.step < 10


def test_data_that_changed_is_not_resumed_with(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod import recipe as recipes

    monkeypatch.setenv("FAKE_DP", "kill=7")
    run = start_run(recipes.load(recipe), workspace)
    until(lambda: state_of(run).status != "running")
    monkeypatch.setenv("FAKE_DP", "")
    for caption in (recipe.parent / "pictures").glob("*.txt"):
        caption.write_text("another caption\n")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    state = state_of(run)
    assert state.status == "failed" and state.error and "not what the run was trained on" in state.error["message"]


def test_what_it_cannot_do_and_what_is_missing_is_said_before_a_run_is_made(
    workspace: Workspace, recipe: Path, tmp_path: Path
) -> None:
    for words, says in (
        (["--set", "adapter.alpha=2"], "alpha equal to the rank"),
        (["--set", "base_model.name=sdxl"], "is not on this machine"),
        (["--set", "trainer_options.diffusion-pipe.block_swap=2"], "reads no key"),
    ):
        with pytest.raises(LorapodError) as caught:
            train(workspace, str(recipe), *words)
        assert says in str(caught.value)
    bare = Workspace(tmp_path / "bare")
    with pytest.raises(LorapodError) as caught:
        train(bare, str(recipe))
    assert "lorapod trainers install diffusion-pipe" in str(caught.value)
    assert not all_runs(workspace) and not all_runs(bare)


def test_both_experts_are_trained_one_after_the_other_over_one_cache(
    workspace: Workspace, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapod import recipe as recipes

    with_model(workspace, "wan2.2-t2v-a14b")
    monkeypatch.setenv("FAKE_DP", "kill=7")
    run = start_run(recipes.load(recipe, ["base_model.name=wan2.2-t2v-a14b"]), workspace)
    until(lambda: state_of(run).status != "running")
    assert state_of(run).status == "failed" and state_of(run).checkpoints
    monkeypatch.setenv("FAKE_DP", "")
    resume_run(run, workspace)
    until(lambda: state_of(run).status != "running")
    assert state_of(run).status == "done", run.log.read_text()
    assert {"zorb-high.safetensors", "zorb-low.safetensors"} <= {path.name for path in run.lora.iterdir()}
    stages = [event["name"] for event in read_events(run) if event["type"] == "stage"]
    assert stages == ["prepare", "cache", "train-high", "prepare", "cache", "train-high", "train-low"]


def test_pictures_are_refused_where_a_first_frame_is_needed(workspace: Workspace, recipe: Path) -> None:
    with_model(workspace, "wan2.1-i2v-14b-480p")
    code, _ = train(workspace, str(recipe), "--set", "base_model.name=wan2.1-i2v-14b-480p")
    state = state_of(newest(workspace))
    assert code == 1 and state.error and "clips alone" in state.error["message"]
    assert not list((newest(workspace).path / "output").glob("*"))


def test_a_base_model_and_a_folder_are_enough(workspace: Workspace, recipe: Path, tmp_path: Path) -> None:
    words = ["--model", MODEL, "--data", str(tmp_path / "pictures"), "--trainer", "diffusion-pipe"]
    short = ["--set", "training.steps=3", "--set", "datasets.0.resolutions=[64]"]
    code, output = train(workspace, *words, *short)
    assert code == 0 and state_of(newest(workspace)).status == "done"
    kept = workspace.root / "recipes/pictures.toml"
    assert str(kept) in output and MODEL in kept.read_text()
    with pytest.raises(LorapodError, match="belong together"):
        train(workspace, "--model", MODEL)
