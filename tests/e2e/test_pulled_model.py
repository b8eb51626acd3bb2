"""A base model from a hub with faults to a LoRA, by the commands that a person types."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes.hub import FakeHub, Fault, Repo
from fakes.single_files import as_bf16, single_files

ENTRY = """
name = "tiny-turbo"
title = "Tiny Turbo"
family = "z_image"
modality = "picture"
licence = "Apache-2.0"
hub = "maker/tiny"

[[files]]
layout = "diffusers"
part = "config"
repo = "maker/tiny"
include = ["model_index.json", "*/*.json", "*/*.jinja", "*/*.txt"]

[[files]]
layout = "single-files"
part = "transformer"
repo = "comfy/tiny"
path = "split_files/diffusion_models/tiny.safetensors"

[[files]]
layout = "single-files"
part = "text_encoder"
repo = "comfy/tiny"
path = "split_files/text_encoders/qwen.safetensors"

[[files]]
layout = "single-files"
part = "vae"
repo = "comfy/tiny"
path = "split_files/vae/ae.safetensors"

[[files]]
layout = "single-files"
part = "training_adapter"
repo = "helper/adapter"
path = "adapter.safetensors"

[trainers.builtin]
needs = ["diffusers/config", "single-files/*"]
"""
LAYER = "diffusion_model.layers.0.attention.to_q"

Command = Callable[..., str]


@pytest.fixture
def hub(tiny_z_image: Path, tmp_path: Path) -> Iterator[FakeHub]:
    folder = Path(shutil.copytree(tiny_z_image, tmp_path / "published"))
    as_bf16(folder)
    files = single_files(folder, tmp_path / "files")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
    save_file({f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}, tmp_path / "adapter.safetensors")
    with FakeHub() as fake:
        fake.repos["maker/tiny"] = Repo(
            {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )
        fake.repos["comfy/tiny"] = Repo(
            {
                "split_files/diffusion_models/tiny.safetensors": files["transformer"].read_bytes(),
                "split_files/diffusion_models/tiny_fp8.safetensors": b"not wanted" * 9000,
                "split_files/text_encoders/qwen.safetensors": files["text_encoder"].read_bytes(),
                "split_files/vae/ae.safetensors": files["vae"].read_bytes(),
            }
        )
        fake.repos["helper/adapter"] = Repo({"adapter.safetensors": (tmp_path / "adapter.safetensors").read_bytes()})
        yield fake


@pytest.fixture
def lorapod(hub: FakeHub, tmp_path: Path) -> Command:
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def call(*words: str | Path) -> str:
        argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(tmp_path / "workspace"), *map(str, words)]
        ended = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended.stdout

    return call


def lora_of(output: str) -> dict[str, torch.Tensor]:
    run = re.search(r"^Run \S+ of zorb: (.+)$", output, re.MULTILINE)
    assert run, output
    (path,) = (Path(run[1]) / "lora").glob("*.safetensors")
    return load_file(path)


def test_a_model_is_pulled_through_faults_and_a_lora_is_trained_on_it_and_on_a_fine_tune(
    hub: FakeHub, lorapod: Command, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "models/entries").mkdir(parents=True)
    (workspace / "models/entries/tiny-turbo.toml").write_text(ENTRY, encoding="utf-8")
    hub.faults = {
        "tiny.safetensors": [Fault("reset", 30_000), Fault("flip", 900)],
        "qwen.safetensors": [Fault("503"), Fault("reset", 5_000)],
        "ae.safetensors": [Fault("429")],
        "tiny": [Fault("503", where="info")],
    }
    assert "ready for builtin" in lorapod("models", "pull", "tiny-turbo")
    assert not any(hub.faults.values()), "a fault was not met"
    assert not any("fp8" in name or name.startswith("transformer/diff") for name in hub.sent), "more than is needed"
    assert "are right" in lorapod("models", "verify", "tiny-turbo")

    recipe = recipe_file("[training]\nsteps = 2\nprecision = 'bf16'\nseed = 1", "[saving]\ncheckpoint_every = 0")
    short = ["--set", "evaluation.every=0", "--set", "previews.prompts=[]", "--set", "previews.at_start=false"]

    def trained(model: str, adapter: str) -> dict[str, torch.Tensor]:
        given = ["--set", f"base_model.name={model}", "--set", f"base_model.training_adapter={adapter}"]
        return lora_of(lorapod("train", recipe, *short, *given))

    with_adapter, without = trained("tiny-turbo", "catalogue"), trained("tiny-turbo", "none")
    assert with_adapter.keys() == without.keys() and with_adapter[f"{LAYER}.lora_B.weight"].abs().max() > 0
    assert any(not torch.equal(tensor, without[name]) for name, tensor in with_adapter.items()), "it was not merged"

    fine_tune = tmp_path / "mine.safetensors"
    save_file(
        {n: (t * 1.5).contiguous() for n, t in load_file(tmp_path / "files/transformer.safetensors").items()}, fine_tune
    )
    sent = hub.sent_bytes
    added = lorapod("models", "add", "mine", "--family", "z_image", "--base", "tiny-turbo", "--local", fine_tune)
    assert "ready for builtin" in added and hub.sent_bytes == sent
    of_mine = trained("mine", "catalogue")
    assert any(not torch.equal(tensor, with_adapter[name]) for name, tensor in of_mine.items()), "the base was trained"
    tiny = ["--set", "training.steps=1", "--set", "datasets.0.resolutions=[64]", "--set", "previews.at_end=false"]
    assert "pictures.safetensors" in lorapod("train", "--model", "mine", "--data", tmp_path / "pictures", *tiny, *short)
