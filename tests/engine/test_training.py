"""The engine's process from recipe to LoRA: what it writes, and what survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorapod import recipe as recipes
from lorapod.errors import DiskError
from lorapod.events import PREFIX, from_line
from lorapod.workspace import Workspace

KILLED = Path(__file__).parents[1] / "fakes/killed_engine.py"


def run_folder(recipe_file: Path, at: Path, overrides: list[str] | None = None) -> Path:
    at.mkdir(parents=True)
    (at / "recipe.toml").write_text(recipes.dumps(recipes.load(recipe_file, overrides or [])), encoding="utf-8")
    return at


def engine(
    *arguments: str | Path, program: tuple[str, ...] = ("-m", "lorapod.engine")
) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)


def events(ended: subprocess.CompletedProcess[str], type: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix(PREFIX) for line in ended.stdout.split("\n") if line.startswith(PREFIX)]
    return [e for e in map(from_line, lines) if e and e["type"] == type]


def train(run: Path, workspace: Path, resume: bool = False) -> subprocess.CompletedProcess[str]:
    return engine("train", run, "--workspace", workspace, *(["--resume"] if resume else []))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


def test_a_run_trains_evaluates_previews_and_writes_a_lora(recipe_file: Callable[..., Path], workspace: Path) -> None:
    run = run_folder(recipe_file(), workspace / "run")
    ended = train(run, workspace)
    assert ended.returncode == 0, ended.stderr
    steps = events(ended, "step")
    assert steps[0]["step"] == 1 and steps[-1]["step"] == 4  # quick steps are reported together
    assert all(s["total"] == 4 and s["loss"] > 0 and s["seconds"] > 0 for s in steps)
    assert [e["step"] for e in events(ended, "eval")] == [0, 2, 4]
    assert [e["step"] for e in events(ended, "preview")] == [0, 4]
    assert all((run / e["path"]).is_file() for e in events(ended, "preview"))
    assert [e["step"] for e in events(ended, "checkpoint")] == [2, 4]
    (lora,) = events(ended, "lora")
    tensors = load_file(run / lora["path"])
    assert tensors["diffusion_model.layers.0.attention.to_q.lora_A.weight"].shape == (4, 32)
    assert any(value.abs().max() > 0 for key, value in tensors.items() if "lora_B" in key)


def test_the_lora_loads_in_diffusers_and_draws_the_last_preview(
    recipe_file: Callable[..., Path], workspace: Path, tiny_z_image: Path
) -> None:
    import numpy as np
    import torch
    from diffusers import ZImagePipeline
    from PIL import Image

    recipe = recipe_file("[saving]\ncheckpoint_every = 0\nprecision = 'fp32'", "[optimizer]\nlearning_rate = 0.05")
    run = run_folder(recipe, workspace / "run", ["previews.guidance=2.0"])
    assert train(run, workspace).returncode == 0
    pipe = ZImagePipeline.from_pretrained(tiny_z_image)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Any:
        picture = pipe("zorb", width=64, height=64, num_inference_steps=2, guidance_scale=2.0,
                       generator=torch.Generator().manual_seed(1)).images[0]  # fmt: skip
        return np.asarray(picture, dtype=int)

    previews = sorted((run / "previews").glob("*.png"))
    ours = [np.asarray(Image.open(p), dtype=int) for p in previews]
    assert np.abs(draw() - ours[0]).max() <= 2  # the base model
    pipe.load_lora_weights(run / "lora/zorb.safetensors")
    with_lora = draw()
    assert np.abs(with_lora - ours[1]).max() <= 2
    assert np.abs(ours[1] - ours[0]).max() > 2


@pytest.mark.parametrize(("where", "nth"), [("cache", 3), ("step", 3), ("checkpoint", 2), ("lora", 1)])
def test_resume_after_kill_gives_a_byte_identical_lora(
    recipe_file: Callable[..., Path], workspace: Path, tmp_path: Path, where: str, nth: int
) -> None:
    recipe = recipe_file("[adapter]\nrank = 4\ndropout = 0.1")
    whole = run_folder(recipe, workspace / "whole")
    assert train(whole, workspace).returncode == 0
    other = tmp_path / "other-workspace"
    broken = run_folder(recipe, other / "broken")
    program = (str(KILLED), where, str(nth))
    ended = engine("train", broken, "--workspace", other, program=program)
    assert ended.returncode == -signal.SIGKILL
    assert not list(broken.glob("lora/*.safetensors"))
    ended = train(broken, other, resume=True)
    assert ended.returncode == 0, ended.stderr
    said = [e["message"] for e in events(ended, "info")]
    place = {"step": "Going on from step 2", "checkpoint": "Going on from step 2", "lora": "Going on from step 4"}
    assert any(place.get(where, "no checkpoint yet") in message for message in said)
    assert (broken / "lora/zorb.safetensors").read_bytes() == (whole / "lora/zorb.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "prodigy", "schedule-free"])
def test_each_optimizer_resumes_bit_for_bit(recipe_file: Callable[..., Path], workspace: Path, optimizer: str) -> None:
    recipe = recipe_file(f"[optimizer]\nkind = '{optimizer}'\nlearning_rate = 0.01\nwarmup_steps = 1")
    whole = run_folder(recipe, workspace / "whole")
    assert train(whole, workspace).returncode == 0
    resumed = run_folder(recipe, workspace / "resumed")
    (resumed / "checkpoints").mkdir()
    first = sorted((whole / "checkpoints").iterdir())[0]
    shutil.copy(first, resumed / "checkpoints")
    assert train(resumed, workspace, resume=True).returncode == 0
    assert (resumed / "lora/zorb.safetensors").read_bytes() == (whole / "lora/zorb.safetensors").read_bytes()


def test_only_what_changed_is_cached_anew(recipe_file: Callable[..., Path], workspace: Path, tmp_path: Path) -> None:
    recipe = recipe_file()
    assert engine("cache", run_folder(recipe, workspace / "one"), "--workspace", workspace).returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (workspace / "cache").rglob("*.safetensors")}
    (tmp_path / "pictures/pictures-0.txt").write_text("zorb changed", encoding="utf-8")
    assert engine("cache", run_folder(recipe, workspace / "two"), "--workspace", workspace).returncode == 0
    after = {p: p.stat().st_mtime_ns for p in (workspace / "cache").rglob("*.safetensors")}
    assert all(after[p] == t for p, t in before.items())
    assert [p.parts[-3] for p in set(after) - set(before)] == ["text"]


def test_sigint_stops_after_the_step_with_a_checkpoint(recipe_file: Callable[..., Path], workspace: Path) -> None:
    recipe = recipe_file()
    run = run_folder(recipe, workspace / "run", ["training.steps=100000", "saving.checkpoint_every=0"])
    assert engine("cache", run, "--workspace", workspace).returncode == 0
    argv = [sys.executable, "-m", "lorapod.engine", "train", str(run), "--workspace", str(workspace)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if '"type":"step"' in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 130
    saved = [json.loads(x.removeprefix(PREFIX)) for x in rest.split("\n") if '"checkpoint"' in x]
    assert len(saved) == 1 and (run / saved[0]["path"]).is_file()


def test_a_full_disk_is_refused_before_the_first_step(
    recipe_file: Callable[..., Path],
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not at the first checkpoint, with hours behind it."""
    from lorapod.engine.job import Job
    from lorapod.engine.prepare import prepare
    from lorapod.engine.train import Training

    job = Job(run_folder(recipe_file(), workspace / "run"), Workspace(workspace))
    prepare(job, lambda: False)
    usage = shutil.disk_usage(workspace)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(DiskError, match="MB free, and this training writes") as caught:
        Training(job).run(False, lambda: False)
    assert "--resume" in caught.value.remedy and '"type":"step"' not in capsys.readouterr().out


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_what_to_change(
    recipe_file: Callable[..., Path], workspace: Path
) -> None:
    run = run_folder(recipe_file(), workspace / "run", ["saving.checkpoint_every=1"])
    assert engine("cache", run, "--workspace", workspace).returncode == 0
    third_loss_is_nan = (
        "import runpy, sys, torch\nfrom dataclasses import replace\n"
        "from lorapod.engine.families.z_image import ZImage\nreal, calls = ZImage.answer, []\n"
        "def answer(*given):\n    calls.extend([1] * torch.is_grad_enabled())\n    said = real(*given)\n"
        "    broken = len(calls) == 3 and torch.is_grad_enabled()\n"
        "    return replace(said, predicted=said.predicted * float('nan')) if broken else said\n"
        "ZImage.answer = answer\nsys.argv[0] = 'engine'\nrunpy.run_module('lorapod.engine', run_name='__main__')"
    )
    ended = engine("train", run, "--workspace", workspace, program=("-c", third_loss_is_nan))
    assert ended.returncode == 1
    (error,) = events(ended, "error")
    assert "loss became" in error["message"] and "learning_rate" in error["hint"] and "last good" in error["hint"]
    assert not list(run.glob("lora/*"))
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert all(v.isfinite().all() for k, v in load_file(newest).items() if k.startswith("adapter."))


def test_a_checkpoint_of_another_recipe_is_refused(recipe_file: Callable[..., Path], workspace: Path) -> None:
    recipe = recipe_file()
    first = run_folder(recipe, workspace / "first")
    assert train(first, workspace).returncode == 0
    other = run_folder(recipe, workspace / "other", ["optimizer.learning_rate=0.5"])
    shutil.copytree(first / "checkpoints", other / "checkpoints")
    ended = train(other, workspace, resume=True)
    assert ended.returncode == 1
    assert "another recipe" in events(ended, "error")[0]["message"]


def test_a_damaged_checkpoint_is_named(recipe_file: Callable[..., Path], workspace: Path) -> None:
    run = run_folder(recipe_file(), workspace / "run")
    assert train(run, workspace).returncode == 0
    newest = sorted((run / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    ended = train(run, workspace, resume=True)
    assert ended.returncode == 1
    assert newest.name in events(ended, "error")[0]["message"]


@pytest.mark.parametrize(
    ("change", "words"), [("adapter.rank=8", "adapter.rank = 4"), ("adapter.targets='attention'", "targets")]
)
def test_a_lora_that_does_not_fit_is_not_continued_from(
    recipe_file: Callable[..., Path], workspace: Path, change: str, words: str
) -> None:
    recipe = recipe_file()
    first = run_folder(recipe, workspace / "first")
    assert train(first, workspace).returncode == 0
    lora = first / "lora/zorb.safetensors"
    other = run_folder(recipe, workspace / "other", [change, f"adapter.continue_from='{lora}'"])
    ended = train(other, workspace)
    assert ended.returncode == 1
    assert words in events(ended, "error")[0]["hint"]


def test_continuing_from_a_lora_starts_where_it_ended(recipe_file: Callable[..., Path], workspace: Path) -> None:
    recipe = recipe_file("[saving]\nprecision = 'fp32'", "[optimizer]\nlearning_rate = 0.05")
    first = run_folder(recipe, workspace / "first")
    ended = train(first, workspace)
    last = events(ended, "eval")[-1]["loss"]
    assert abs(last - events(ended, "eval")[0]["loss"]) > 1e-4
    lora = first / "lora/zorb.safetensors"
    other = run_folder(recipe, workspace / "other", [f"adapter.continue_from='{lora}'"])
    assert abs(events(train(other, workspace), "eval")[0]["loss"] - last) < 1e-4


def test_a_training_adapter_is_merged_before_and_left_out_of_the_result(
    recipe_file: Callable[..., Path], workspace: Path, tmp_path: Path
) -> None:
    import torch

    recipe = recipe_file()
    plain = events(train(run_folder(recipe, workspace / "plain"), workspace), "eval")[0]["loss"]
    adapter = tmp_path / "training_adapter.safetensors"
    key = "diffusion_model.layers.0.attention.to_q"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {f"{key}.lora_A.weight": torch.randn(4, 32, generator=generator),
         f"{key}.lora_B.weight": torch.randn(32, 4, generator=generator)}, adapter)  # fmt: skip
    merged = run_folder(recipe, workspace / "merged", [f"base_model.training_adapter='{adapter}'"])
    ended = train(merged, workspace)
    before = [next((workspace / name / "previews").glob("step-000000-*.png")) for name in ("plain", "merged")]
    assert before[0].read_bytes() == before[1].read_bytes()  # previews are drawn by the model that the LoRA is used on
    assert abs(events(ended, "eval")[0]["loss"] - plain) > 1e-4
    with safe_open(merged / "lora/zorb.safetensors", framework="pt") as file:
        assert file.get_tensor(f"{key}.lora_A.weight").shape == (4, 32)
        assert file.get_tensor(f"{key}.lora_B.weight").abs().max() < 0.1  # four small steps, not the merged adapter


def test_a_disk_that_takes_no_more_is_a_clear_error_and_resume_goes_on(
    recipe_file: Callable[..., Path], workspace: Path
) -> None:
    run = run_folder(recipe_file(), workspace / "run")
    assert engine("cache", run, "--workspace", workspace).returncode == 0
    # No file may grow past 20 kB: previews fit, the checkpoint does not.
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); sys.argv[0] = 'engine'; "
        "runpy.run_module('lorapod.engine', run_name='__main__')"
    )
    ended = engine("train", run, "--workspace", workspace, program=("-c", limited))
    assert ended.returncode == 1
    (error,) = events(ended, "error")
    assert "step-0000002.safetensors" in error["message"] and "Traceback" not in ended.stderr
    assert not list((run / "checkpoints").glob("step-*"))
    assert engine("train", run, "--workspace", workspace, "--resume").returncode == 0


def test_two_runs_of_one_recipe_report_the_same_losses(recipe_file: Callable[..., Path], workspace: Path) -> None:
    recipe = recipe_file()
    losses = [
        [s["loss"] for s in events(train(run_folder(recipe, workspace / name), workspace), "step")]
        for name in ("a", "b")
    ]
    assert losses[0] == losses[1]


def test_a_damaged_cache_entry_is_computed_again(recipe_file: Callable[..., Path], workspace: Path) -> None:
    run = run_folder(recipe_file(), workspace / "run")
    assert engine("cache", run, "--workspace", workspace).returncode == 0
    entries = sorted((workspace / "cache").rglob("*.safetensors"))
    whole = entries[0].read_bytes()
    entries[0].write_bytes(whole[: len(whole) // 2])
    assert engine("cache", run, "--workspace", workspace).returncode == 0
    assert entries[0].read_bytes() == whole


def test_changed_data_is_another_training(recipe_file: Callable[..., Path], workspace: Path, tmp_path: Path) -> None:
    run = run_folder(recipe_file(), workspace / "run")
    assert train(run, workspace).returncode == 0
    for caption in (tmp_path / "pictures").glob("*.txt"):
        caption.write_text(caption.read_text() + " changed")
    ended = train(run, workspace, resume=True)
    assert ended.returncode == 1 and "another recipe" in events(ended, "error")[0]["message"]


def test_accumulation_sees_as_many_items_as_a_larger_batch(recipe_file: Callable[..., Path], workspace: Path) -> None:
    run = run_folder(recipe_file(), workspace / "run", ["training.batch_size=1", "training.accumulation=2"])
    ended = train(run, workspace)
    assert ended.returncode == 0
    assert events(ended, "step")[-1]["epoch"] == 2  # four items, two a step: four steps are two epochs


def test_bf16_trains_and_resumes_bit_for_bit(recipe_file: Callable[..., Path], workspace: Path) -> None:
    recipe = recipe_file()
    whole = run_folder(recipe, workspace / "whole", ["training.precision=bf16"])
    ended = train(whole, workspace)
    assert ended.returncode == 0, ended.stderr
    resumed = run_folder(recipe, workspace / "resumed", ["training.precision=bf16"])
    (resumed / "checkpoints").mkdir()
    shutil.copy(sorted((whole / "checkpoints").iterdir())[0], resumed / "checkpoints")
    assert train(resumed, workspace, resume=True).returncode == 0
    assert (resumed / "lora/zorb.safetensors").read_bytes() == (whole / "lora/zorb.safetensors").read_bytes()


def test_without_a_compiler_a_run_that_asks_for_one_goes_on_and_says_so(
    recipe_file: Callable[..., Path], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_folder(recipe_file(), workspace / "plain")
    assert train(plain, workspace).returncode == 0
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    run = run_folder(recipe_file(), workspace / "run", ["training.compile=true"])
    ended = train(run, workspace)
    assert ended.returncode == 0, ended.stderr
    (warning,) = [e for e in events(ended, "warning") if "compiled" in e["message"]]
    assert "training.compile" in warning["hint"]
    ours, theirs = (load_file(folder / "lora" / "zorb.safetensors") for folder in (run, plain))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
