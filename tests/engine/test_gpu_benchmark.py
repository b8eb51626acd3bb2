"""The GPU benchmark runs through the very same code on tiny models, and its results are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from fakes.external import FAKES, with_model
from lorapod.recipe import TrainerName
from lorapod.workspace import Workspace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    import gpu

    return gpu


def test_one_command_measures_two_families(tmp_path: Path) -> None:
    command = [
        sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "z-image", "wan2.1-t2v-1.3b", "64x64x5",
        "--checkpointing", "off", "--peak-tflops", "0.5", "--results", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if torch.cuda.is_available():
        pytest.skip("the rest is of the CPU")
    rows = json.loads((tmp_path / "gpu-cpu-tiny.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["model"], row["shape"]) for row in rows] == [("z-image", "64x64"), ("wan2.1-t2v-1.3b", "64x64x5")]
    for row in rows:
        assert row["state"] == "measured" and row["steps_timed"] == 6 and row["adapter_tensors"] > 0, row
        assert 0 < row["fastest_window"] <= row["seconds_a_step"] <= row["slowest_window"]
        assert row["samples_a_second"] == pytest.approx(1 / row["seconds_a_step"])
        used = row["model_tflop"] / row["seconds_a_step"] / 0.5
        assert row["utilisation"] == pytest.approx(used) and 0 < used < 1
        parts = [row[f"of_which_{part}"] for part in ("imports", "weights", "first_step")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(row["seconds_to_first_step"])
        assert row["goal"] is None and row["peak_gb"] > 0
    table = (tmp_path / "gpu-cpu-tiny.md").read_text(encoding="utf-8")
    assert (
        "| lorapod | z-image | 64x64 | 1 | bf16 | eager | no checkpointing |" in table
        and "says nothing of speed" in table
    )


def test_another_trainer_is_timed_in_the_same_cell(tmp_path: Path) -> None:
    """With the stand-in for musubi-tuner, which reads the dataset's configuration and counts the caches as it does."""
    command = [
        sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "wan2.1-t2v-1.3b", "flux-dev", "64x64x5",
        "--checkpointing", "off", "--results", str(tmp_path), "--musubi", str(FAKES[TrainerName.MUSUBI]),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "STEP_SECONDS": "0.05"}
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))["rows"]
    cells = [(row.get("trainer"), row["model"], row["shape"], row["state"]) for row in rows]
    assert cells == [
        (None, "wan2.1-t2v-1.3b", "64x64x5", "measured"), ("musubi", "wan2.1-t2v-1.3b", "64x64x5", "measured"),
        (None, "flux-dev", "64x64", "measured"), ("musubi", "flux-dev", "64x64", "not possible"),
    ]  # fmt: skip
    ours, theirs = rows[:2]
    assert theirs["seconds_a_step"] >= 0.05 and theirs["steps_timed"] >= 6
    assert theirs["ours_is_faster_by"] == pytest.approx(theirs["seconds_a_step"] / ours["seconds_a_step"])
    assert not psutil.Process().children(recursive=True)


def test_diffusion_pipe_is_timed_on_what_was_pulled_for_it(tmp_path: Path) -> None:
    """With the stand-in for it: pictures and clips are cached first; a base model that is not here is a row that says so."""
    workspace = Workspace(tmp_path / "workspace")
    with_model(workspace, "wan2.1-t2v-1.3b")
    command = [
        sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "wan2.1-t2v-1.3b", "z-image", "64x64x5",
        "--checkpointing", "on", "--results", str(tmp_path), "--workspace", str(workspace.root),
        "--diffusion-pipe", str(FAKES[TrainerName.DIFFUSION_PIPE]),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "FAKE_DP_SECONDS": "0.05"}
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))["rows"]
    theirs = [row for row in rows if row.get("trainer") == "diffusion-pipe"]
    assert [(row["model"], row["shape"], row["state"]) for row in theirs] == [
        ("wan2.1-t2v-1.3b", "64x64x5", "measured"), ("z-image", "64x64", "not possible"),
    ]  # fmt: skip
    assert theirs[0]["seconds_a_step"] >= 0.05 and theirs[0]["ours_is_faster_by"] > 0
    assert "lorapod models pull z-image" in theirs[1]["why"]
    assert not psutil.Process().children(recursive=True)


def test_what_fails_is_noted_and_replaced_when_it_is_measured_again(gpu: ModuleType, tmp_path: Path) -> None:
    (cell,) = gpu.cells(
        gpu.arguments(["--tiny", "sdxl", "64x68", "--checkpointing", "off", "--results", str(tmp_path)])
    )
    impossible = gpu.run_cell(cell, 120)
    assert impossible["state"] == "not possible" and "steps of 8" in impossible["why"]
    slow = gpu.run_cell(cell, 0.1)
    assert slow["state"] == "too slow"
    broken = gpu.run_cell({**cell, "rank": -1}, 120)
    assert broken["state"] == "failed" and "rank" in broken["why"]
    gpu.write_results(tmp_path, [slow], tiny=True)
    data, table = gpu.write_results(tmp_path, [impossible], tiny=True)
    assert [row["state"] for row in json.loads(data.read_text(encoding="utf-8"))["rows"]] == ["not possible"]
    assert "steps of 8" in table.read_text(encoding="utf-8")


def test_out_of_memory_is_a_row(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts import measure

    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")

    monkeypatch.setattr(measure, "random_denoiser", full)
    row = measure.measure(measure.Cell("flux-dev", "64x64", False, False, tiny=True), 0.0)
    assert row["state"] == "out of memory" and row["why"].endswith("2 GiB.")
    assert "out of memory" in gpu.line_of(row)


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "tflop"),
    [
        ("z-image", "1024x1024", 6.155e9, 123),
        ("flux-dev", "1024x1024", 11.901e9, 165),
        ("qwen-image", "1024x1024", 20.430e9, 156),
        ("sdxl", "1024x1024", 2.567e9, 14.57),
        ("flux2-klein-4b", "1024x1024", 3.876e9, 76.7),
        ("wan2.1-t2v-1.3b", "832x480x81", 1.419e9, 771),
        ("wan2.1-t2v-14b", "832x480x33", 14.288e9, 1183),
    ],
)
def test_cost_at_full_size(
    gpu: ModuleType, tmp_path: Path, name: str, shape: str, parameters: float, tflop: float
) -> None:
    """Against figures that were counted layer by layer, from widths and tokens."""
    from gpu_parts.cost import step_cost
    from gpu_parts.models import MODELS, Shape, write_base

    from lorapod.engine import adapters
    from lorapod.engine.families import family_of
    from lorapod.recipe.schema import AdapterSection

    base = write_base(name, False, tmp_path)
    family = family_of(base)
    denoiser = family.empty_denoiser(base, family.experts[0]).requires_grad_(False)
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(parameters, rel=1e-3)
    adapters.add_adapter(denoiser, family, AdapterSection(), 16.0, 0)
    cost = step_cost(base, family, denoiser, Shape.of(shape), MODELS[name].text_tokens, 1)
    assert cost.model / 1e12 == pytest.approx(tflop, rel=0.01)


def test_random_weights_keep_activations_in_bounds(gpu: ModuleType, tmp_path: Path) -> None:
    from gpu_parts.models import random_denoiser, write_base

    base = write_base("flux-dev", True, tmp_path)
    denoiser = random_denoiser(base, torch.device("cpu"), torch.float32)
    weight = denoiser.transformer_blocks[0].attn.to_q.weight
    assert weight.std().item() == pytest.approx(1 / 32**0.5, rel=0.1) and not weight.requires_grad
    assert not any((p == 0).all() for p in denoiser.parameters())
    assert denoiser.transformer_blocks[0].attn.to_out[0].weight.std() < weight.std() / 2
