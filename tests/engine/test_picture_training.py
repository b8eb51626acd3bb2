"""The picture families through the engine's process: train, resume, write every key layout, load it in diffusers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import picture_models
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lorapod import lora_file
from lorapod import recipe as recipes
from lorapod.engine import adapters
from lorapod.engine.families import PreviewRequest, family_of
from lorapod.events import PREFIX, from_line
from lorapod.models import BaseModel
from lorapod.recipe.choices import Targets
from lorapod.recipe.schema import AdapterSection

BUILD: dict[str, Callable[..., Path]] = {
    "sdxl": picture_models.build_sdxl,
    "flux": picture_models.build_flux,
    "flux2": picture_models.build_flux2,
    "qwen_image": picture_models.build_qwen_image,
}
LAYOUTS = {
    "sdxl": ["comfyui", "diffusers", "kohya"],
    "flux": ["comfyui", "diffusers"],
    "flux2": ["comfyui", "diffusers"],
    "qwen_image": ["comfyui", "diffusers", "kohya"],
}
FIRST_KEY = {
    ("sdxl", "comfyui"): "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    ("sdxl", "diffusers"): "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    ("sdxl", "kohya"): "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    ("flux", "comfyui"): "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("flux", "diffusers"): "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("flux2", "comfyui"): "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("flux2", "diffusers"): "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("qwen_image", "comfyui"): "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("qwen_image", "diffusers"): "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ("qwen_image", "kohya"): "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")
    return lambda family: folder / family if (folder / family).exists() else BUILD[family](folder / family)


def run_folder(recipe_file: Callable[..., Path], model: Path, at: Path, overrides: list[str]) -> Path:
    recipe = recipe_file("[saving]\nprecision = 'fp32'\ncheckpoint_every = 2", "[optimizer]\nlearning_rate = 0.5")
    at.mkdir(parents=True)
    changes = [f"base_model.name='{model}'", "training.steps=3", "previews.guidance=3.0", *overrides]
    (at / "recipe.toml").write_text(recipes.dumps(recipes.load(recipe, changes)), encoding="utf-8")
    return at


def train(run: Path, workspace: Path, *more: str) -> list[dict[str, Any]]:
    """Events of a training that goes through to its end."""
    argv = [sys.executable, "-m", "lorapod.engine", "train", str(run), "--workspace", str(workspace), *more]
    ended = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    lines = [line.removeprefix(PREFIX) for line in ended.stdout.split("\n") if line.startswith(PREFIX)]
    found = [event for event in map(from_line, lines) if event]
    errors = [event for event in found if event["type"] == "error"]
    assert ended.returncode == 0 or errors, ended.stderr
    return found


def draw(pipe: Any, family: str) -> np.ndarray[Any, Any]:
    guidance = {"true_cfg_scale": 3.0} if family == "qwen_image" else {"guidance_scale": 3.0}
    away = {} if family.startswith("flux") else {"negative_prompt": ""}
    picture = pipe(prompt="zorb", width=64, height=64, num_inference_steps=2, generator=torch.Generator().manual_seed(1),
                   **guidance, **away).images[0]  # fmt: skip
    return np.asarray(picture, dtype=int)


def assert_goes_on_from(lora: Path, checkpoint: Path, model: Path, family: str) -> None:
    """An adapter that starts from the file is what the checkpoint of the same step holds."""
    base = BaseModel("tiny", family, model)
    engine = family_of(base)
    denoiser = engine.load_denoiser(base, engine.experts[0], torch.device("cpu"), torch.float32)
    adapters.add_adapter(denoiser, engine, AdapterSection(rank=4, alpha=2), 2, 1)
    adapters.continue_from(denoiser, engine, lora)
    held = load_file(checkpoint)
    for name, value in adapters.adapter_tensors(denoiser).items():
        torch.testing.assert_close(value, held[f"adapter.{name}"])


@pytest.mark.parametrize("family", list(BUILD))
def test_trains_resumes_and_writes_loras_that_diffusers_draws_with(
    recipe_file: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path], family: str
) -> None:
    workspace, model = tmp_path / "workspace", models(family)
    layouts = f"saving.formats={json.dumps(LAYOUTS[family])}"
    more = [layouts, "adapter.alpha=2"]
    more += ["training.min_snr_gamma=5"] if family == "sdxl" else ["training.resolution_shift=true"]
    whole = run_folder(recipe_file, model, workspace / "whole", more)
    told = train(whole, workspace)
    assert [event["step"] for event in told if event["type"] == "eval"] == [0, 2, 3]
    assert not [event for event in told if event["type"] == "warning"]
    resumed = run_folder(recipe_file, model, workspace / "resumed", more)
    (resumed / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints/step-0000002.safetensors", resumed / "checkpoints")
    train(resumed, workspace, "--resume")
    files = {event["format"]: event["path"] for event in told if event["type"] == "lora"}
    assert list(files) == LAYOUTS[family]
    pipe = picture_models.pipeline_of(model)
    before, after = (np.asarray(Image.open(p), dtype=int) for p in sorted((whole / "previews").glob("*.png")))
    assert np.abs(draw(pipe, family) - before).max() <= 2  # the base model
    assert np.abs(after - before).max() > 2
    for layout, file in files.items():
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
        assert load_file(whole / file)[FIRST_KEY[family, layout]].shape[0] == 4
        info = lora_file.inspect(whole / file)
        has_alpha = any(key.endswith(".alpha") for key in load_file(whole / file))
        assert has_alpha != FIRST_KEY[family, layout].startswith(("unet.", "transformer."))  # the scale is in B there
        assert (info.family, info.ranks, info.alphas) == (family, [4], [2.0 if has_alpha else 4.0])
        # The text stream of Qwen-Image's last block ends there: what is after its keys and values has no effect.
        assert not info.warnings or (family == "qwen_image" and "untrained" in "".join(info.warnings))
        assert_goes_on_from(whole / file, whole / "checkpoints/step-0000003.safetensors", model, family)
        pipe.load_lora_weights(whole / file)
        assert np.abs(draw(pipe, family) - after).max() <= 2
        pipe.unload_lora_weights()


@pytest.mark.parametrize("family", list(BUILD))
def test_bf16_learns_with_checkpointing_and_previews(models: Callable[[str], Path], family: str) -> None:
    base = BaseModel("tiny", family, models(family))
    engine, cpu, bf16 = family_of(base), torch.device("cpu"), torch.bfloat16
    texts = engine.encode_text(engine.load_text_encoder(base, cpu, bf16), ["zorb", "a zorb and a star"])
    latents = engine.encode_pixels(engine.load_vae(base, cpu, bf16), torch.rand(2, 3, 1, 64, 64))
    denoiser = engine.load_denoiser(base, engine.experts[0], cpu, bf16)
    adapters.add_adapter(denoiser, engine, AdapterSection(rank=4, targets=Targets.ALL), 4, 1)
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    clean = torch.stack([entry["mean"] for entry in latents])
    loss = engine.loss(denoiser, clean, torch.randn_like(clean), torch.tensor([0.2, 0.8]), latents, texts)
    drawn = engine.sample(denoiser.eval(), base, PreviewRequest(texts[0], texts[1], 64, 64, 1, 2, 3.0, 1))
    assert loss.shape == (2,) and loss.dtype is torch.float32
    loss.sum().backward()
    trained = [p.grad for p in adapters.adapter_parameters(denoiser) if p.grad is not None]
    assert trained and all(grad.isfinite().all() for grad in trained)
    assert drawn.shape == clean.shape[1:] and drawn.isfinite().all()


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("sdxl", "training.resolution_shift=true", "size of the picture"),
        ("flux", "training.min_snr_gamma=5", "Min-SNR"),
        ("flux", "saving.formats=['kohya']", "layout `kohya`"),
    ],
)
def test_what_a_family_cannot_do_is_refused_before_anything_is_cached(
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    models: Callable[[str], Path],
    family: str,
    change: str,
    words: str,
) -> None:
    workspace = tmp_path / "workspace"
    told = train(run_folder(recipe_file, models(family), workspace / "run", [change]), workspace)
    assert words in told[-1]["message"] and told[-1]["hint"]
    assert not (workspace / "cache").exists()


def test_a_negative_prompt_without_effect_is_named(
    recipe_file: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path]
) -> None:
    change = ["training.steps=1", "previews.negative_prompt='blurry'", "previews.at_start=false"]
    run = run_folder(recipe_file, models("flux"), tmp_path / "workspace/run", change)
    warnings = [event for event in train(run, tmp_path / "workspace") if event["type"] == "warning"]
    assert len(warnings) == 1 and "negative prompt" in warnings[0]["message"]


def test_a_caption_that_clip_cannot_read_whole_is_named(
    recipe_file: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path]
) -> None:
    recipe_file()
    (tmp_path / "pictures/pictures-0.txt").write_text("zorb " * 40, encoding="utf-8")
    run = run_folder(recipe_file, models("sdxl"), tmp_path / "workspace/run", ["training.steps=1"])
    warnings = [event for event in train(run, tmp_path / "workspace") if event["type"] == "warning"]
    assert len(warnings) == 1 and "longer than 77 tokens" in warnings[0]["message"]


def test_sdxl_is_told_how_each_picture_was_cut(
    recipe_file: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path]
) -> None:
    from lorapod.engine.batches import Batches
    from lorapod.engine.job import Job
    from lorapod.workspace import Workspace

    recipe_file()
    for picture in (tmp_path / "pictures").glob("*.png"):
        Image.open(picture).resize((200, 120)).save(picture)
    run = run_folder(recipe_file, models("sdxl"), tmp_path / "workspace/run", ["training.steps=1"])
    train(run, tmp_path / "workspace")
    job = Job(run, Workspace(tmp_path / "workspace"))
    entry = Batches(job).latents(job.data.train[0])
    height, width, top, left, high, wide = entry["time_ids"].tolist()
    assert (height, width) == (120, 200)
    place = job.data.train[0].placement
    assert (left, top) == place.crop[:2] and (wide, high) == (place.bucket.width, place.bucket.height)
    assert entry["mean"].shape[-2:] == (high // 8, wide // 8)


def test_a_lora_of_another_trainer_starts_a_training(
    recipe_file: Callable[..., Path], tmp_path: Path, models: Callable[[str], Path]
) -> None:
    """As sd-scripts writes one: alpha 1 at rank 4, so a quarter of the strength."""
    model, workspace = models("sdxl"), tmp_path / "workspace"
    plain = train(run_folder(recipe_file, model, workspace / "plain", ["training.steps=1"]), workspace)
    ours = load_file(workspace / "plain/lora/zorb.safetensors")
    generator = torch.Generator().manual_seed(0)
    theirs = {
        key: torch.tensor(1.0) if key.endswith("alpha") else torch.randn(value.shape, generator=generator)
        for key, value in ours.items()
    }
    save_file(theirs, tmp_path / "theirs.safetensors")
    pipe = picture_models.pipeline_of(model)
    pipe.load_lora_weights(tmp_path / "theirs.safetensors")
    run = run_folder(
        recipe_file, model, workspace / "on",
        ["training.steps=1", "optimizer.learning_rate=1e-9", f"adapter.continue_from='{tmp_path}/theirs.safetensors'"],
    )  # fmt: skip
    assert any(event["type"] == "lora" for event in train(run, workspace)) and plain
    preview = np.asarray(Image.open(sorted((run / "previews").glob("*.png"))[0]), dtype=int)
    assert np.abs(draw(pipe, "sdxl") - preview).max() <= 2
