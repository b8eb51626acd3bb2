"""A run of musubi-tuner from the recipe to the collected LoRA, against a stand-in that behaves as the real one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lorapod.lora_file import inspect

STAND_IN = Path(__file__).parents[1] / "fakes/musubi"
COMMIT = "30c658c4f4b0bf05038b3346eff9670259b10fc7"

Lorapod = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with the stand-in installed and an entry whose files are the person's own."""
    root = tmp_path / "workspace"
    home = root / "trainers/musubi"
    shutil.copytree(STAND_IN, home / "repository")
    python = home / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{home}/repository" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (home / "installed.json").write_text(json.dumps({"commit": COMMIT}), encoding="utf-8")
    weights = tmp_path / "weights"
    weights.mkdir()
    parts = ("transformer_high", "transformer_low", "vae", "text_encoder")
    for part in parts:
        (weights / f"{part}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    files = "".join(
        f'[[files]]\nlayout = "{"original" if part == "text_encoder" else "single-files"}"\npart = "{part}"\n'
        f'local = "{weights / part}.safetensors"\ndtype = "fp16"\n'
        for part in parts
    )
    options = 'options = { task = "t2v-A14B", timestep_boundary = 875 }'
    (root / "models/entries").mkdir(parents=True)
    (root / "models/entries/pair.toml").write_text(
        'name = "pair"\ntitle = "Pair"\nfamily = "wan"\nmodality = "clip"\nlicence = "Apache-2.0"\n'
        "geometry = { divisor = 16, frame_step = 4, fps = 16 }\n"
        f'{files}[trainers.musubi]\nneeds = ["single-files/*", "original/*"]\n{options}\n',
        encoding="utf-8",
    )
    return root


@pytest.fixture
def lorapod(workspace: Path) -> Lorapod:
    def call(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(workspace), *map(str, words)]
        env = os.environ | {"COLUMNS": "200"} | environment
        return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120)

    return call


@pytest.fixture
def recipe(workspace: Path, pictures: Callable[..., Path], lorapod: Lorapod, tmp_path: Path) -> Path:
    data = pictures("zorbs", 4)
    pulled = lorapod("models", "pull", "pair", "--for", "musubi")
    assert pulled.returncode == 0, pulled.stderr
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'name = "zorb"\ntrainer = "musubi"\n[base_model]\nname = "pair"\nexpert = "low"\n'
        f'[[datasets]]\npath = "{data}"\ntrigger_word = "zorb"\nresolutions = [64]\n'
        '[adapter]\nrank = 4\nalpha = 2\n[optimizer]\nschedule = "constant"\nwarmup_steps = 0\n'
        "[training]\nsteps = 12\n[saving]\ncheckpoint_every = 5\n",
        encoding="utf-8",
    )
    return file


def run_of(workspace: Path) -> Path:
    return max((workspace / "training_outputs/zorb").iterdir())


def events(run: Path, type: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").split("\n")
    return [item for item in map(json.loads, filter(None, lines)) if item["type"] == type]


def alive(workspace: Path) -> list[psutil.Process]:
    """Processes that were started with a path in the workspace."""
    found = psutil.process_iter(["cmdline", "status"])
    return [p for p in found if str(workspace) in " ".join(p.info["cmdline"] or []) and p.info["status"] != "zombie"]


def test_from_a_recipe_to_a_lora_that_comfyui_loads(lorapod: Lorapod, recipe: Path, workspace: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (recipe.parent / "zorbs").iterdir()}
    ended = lorapod("train", recipe)
    assert ended.returncode == 0, ended.stderr
    run = run_of(workspace)
    steps = events(run, "step")
    assert [s["step"] for s in steps] == list(range(1, 13)) and steps[-1]["total"] == 12
    assert (steps[3]["loss"], steps[3]["seconds"]) == (0.25, 0.2)
    found = inspect(run / "lora/zorb-low.safetensors")
    assert (found.ranks, found.alphas) == ([4], [2])
    assert "musubi-tuner" in str(found.metadata) and COMMIT in str(found.metadata)
    assert (run / "lora/zorb-low-step000010.safetensors").is_file() and (run / "report.html").is_file()
    captions = [p.read_text(encoding="utf-8") for p in sorted((run / "data").rglob("*.txt"))]
    assert len(captions) == 4 and all(text.startswith("zorb") for text in captions)
    assert {p: p.stat().st_mtime_ns for p in (recipe.parent / "zorbs").iterdir()} == before, (
        "the person's folder is left alone"
    )
    commands = sorted(p.name for p in (run / "config").glob("*.command.json"))
    assert commands == ["01-cache-latents.command.json", "02-cache-text.command.json", "03-train-low.command.json"]
    assert "no caption dropout" in ended.stdout + ended.stderr


def test_both_experts_are_trained_one_after_the_other_and_kept_together(
    lorapod: Lorapod, recipe: Path, workspace: Path
) -> None:
    ended = lorapod("train", recipe, "--set", "base_model.expert=both", "--set", "training.steps=4")
    assert ended.returncode == 0, ended.stderr
    names = sorted(p.name for p in (run_of(workspace) / "lora").glob("*.safetensors"))
    assert names == ["zorb-high.safetensors", "zorb-low.safetensors"]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("cache_latents:crash", ("KeyError", "latents_image")),
        ("train:oom", ("ran out of GPU memory", "batch_size")),
        ("train:full", ("disk is full", "Free space")),
        ("train:killed", ("failed", "-9")),
    ],
)
def test_what_really_happened_is_said_with_what_to_change(
    lorapod: Lorapod, recipe: Path, workspace: Path, mode: str, words: tuple[str, ...]
) -> None:
    ended = lorapod("train", recipe, MODE=mode)
    assert ended.returncode == 1
    assert all(word in ended.stderr + ended.stdout for word in words), ended.stderr + ended.stdout
    assert len(events(run_of(workspace), "error")) == 1


def test_a_stopped_run_leaves_no_process_and_goes_on_from_its_state(
    lorapod: Lorapod, recipe: Path, workspace: Path
) -> None:
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("steps = 12", "steps = 100"), encoding="utf-8")
    started = lorapod("train", recipe, "--detach", STEP_SECONDS="0.2")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 60
    while not (steps := events(run_of(workspace), "step")) or steps[-1]["step"] < 7:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert lorapod("runs", "stop").returncode == 0
    while not (ends := events(run_of(workspace), "end")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ends[-1]["status"] == "stopped"
    while alive(workspace):  # the supervisor writes the report after its last event
        assert time.monotonic() < deadline, alive(workspace)
        time.sleep(0.1)
    ended = lorapod("train", recipe, "--resume")
    assert ended.returncode == 0, ended.stderr
    run = run_of(workspace)
    again = [s["step"] for s in events(run, "step")][len(steps) :]
    assert again[-1] == 100 and events(run, "step")[-1]["total"] == 100
    assert (run / "output/from-000000/zorb-low-step00000005-state").is_dir(), "nothing of the trainer's is moved"
    later = [folder for folder in (run / "output").iterdir() if folder.name != "from-000000"]
    assert [int(folder.name.removeprefix("from-")) % 5 for folder in later] == [0], (
        "the newest state, after a whole number"
    )
    assert (later[0] / "zorb-low.safetensors").is_file()
    assert (run / "lora/zorb-low.safetensors").is_file()


def test_a_supervisor_that_is_killed_takes_the_trainer_with_it(lorapod: Lorapod, recipe: Path, workspace: Path) -> None:
    lorapod("train", recipe, "--detach", STEP_SECONDS="0.2")
    run, deadline = run_of(workspace), time.monotonic() + 60
    while not events(run, "step"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(json.loads((run / "supervisor.json").read_bytes())["pid"], signal.SIGKILL)
    while alive(workspace):
        assert time.monotonic() < deadline, "the trainer goes on alone"
        time.sleep(0.1)


def test_a_trainer_that_is_not_installed_is_said_before_anything_starts(
    lorapod: Lorapod, recipe: Path, workspace: Path
) -> None:
    (workspace / "trainers/musubi/installed.json").unlink()
    ended = lorapod("train", recipe)
    assert ended.returncode == 2 and "lorapod trainers install musubi" in ended.stderr
    assert not (workspace / "training_outputs").exists()
