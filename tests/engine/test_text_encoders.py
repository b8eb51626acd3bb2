"""SDXL's text encoders trained beside the U-Net: what is learnt, kept, written and read by diffusers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import picture_models
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lorapod import recipe as recipes
from lorapod.engine import adapters
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.previews import Previews
from lorapod.engine.text_encoders import live_text
from lorapod.engine.train import Training
from lorapod.errors import LorapodError
from lorapod.workspace import Workspace

KINDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, iter(range(100))
        self.model = picture_models.build_sdxl(folder / "sdxl")
        (folder / "pictures").mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 120, 200 - 40 * i)).save(folder / "pictures" / f"{i}.png")
            (folder / "pictures" / f"{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")

    def run(self, *changes: str, model: Path | None = None) -> Path:
        file = self.folder / "recipe.toml"
        file.write_text(
            f"name = 'zorb'\n[base_model]\nname = '{model or self.model}'\n[[datasets]]\npath = 'pictures'\n"
            "resolutions = [64]\nvalidation_share = 0.25\n[training]\nsteps = 4\nprecision = 'fp32'\n[optimizer]\n"
            "learning_rate = 0.01\nwarmup_steps = 0\n[adapter]\nrank = 4\ntext_encoders = true\n[evaluation]\nevery = 0\n"
            "[previews]\nprompts = ['a zorb']\nwidth = 64\nheight = 64\nsteps = 2\n[saving]\nprecision = 'fp32'\n"
            "formats = ['comfyui', 'diffusers']\ncheckpoint_every = 2\n",
            encoding="utf-8",
        )
        run = self.folder / f"run-{next(self.numbers)}"
        run.mkdir()
        (run / "recipe.toml").write_text(recipes.dumps(recipes.load(file, list(changes))), encoding="utf-8")
        return run

    def train(self, run: Path, resume: bool = False, stop_at: int | None = None) -> Training:
        with contextlib.redirect_stdout(io.StringIO()):
            job = Job(run, Workspace(self.folder))
            prepare(job, lambda: False)
            training = Training(job)
            finished = training.run(resume, lambda: stop_at is not None and training.step >= stop_at)
        assert finished == (stop_at is None)
        return training


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Training:
    return bench.train(bench.run())


def encoded(encode: Callable[[list[str]], list[dict[str, torch.Tensor]]]) -> torch.Tensor:
    with torch.no_grad():
        return encode(["a zorb in the rain"])[0]["tokens"]


def test_both_encoders_learn_at_a_rate_of_their_own(trained: Training) -> None:
    tensors = adapters.adapter_tensors(trained.denoiser)
    for encoder in ("text_encoder", "text_encoder_2"):
        of = [name for name in tensors if name.startswith(f"{encoder}.")]
        assert {name.split(".")[-2] for name in of} == set(KINDS)
        learnt = [name for name in of if name.endswith(".B") and tensors[name].abs().max() > 0]
        assert len(learnt) >= len(KINDS) and any(
            ".layers.0." in name for name in learnt
        )  # of CLIP-L the last is not used
    first, second = trained.optimizer.param_groups
    assert second["lr"] == pytest.approx(first["lr"] / 2) and len(second["params"]) > 0
    assert len(first["params"]) + len(second["params"]) == len(trained.parameters)


def test_captions_are_encoded_with_what_was_learnt(bench: Bench, trained: Training) -> None:
    live = live_text(trained.denoiser)
    assert live is not None
    now = encoded(live)
    with adapters.switched_off(trained.denoiser):
        before = encoded(live)
    entry = trained.job.family.encode_text(
        trained.job.family.load_text_encoder(trained.job.base, trained.job.device, torch.float32),
        ["a zorb in the rain"],
    )[0]["tokens"]
    torch.testing.assert_close(before, entry, rtol=1e-5, atol=1e-5)
    assert (now - before).abs().max() > 1e-3
    request = Previews(trained.job).request("a zorb", 1, live)
    assert not torch.equal(request.text["tokens"], Previews(trained.job).request("a zorb", 1).text["tokens"])


def test_diffusers_loads_the_file_with_the_same_effect_on_the_encoders(bench: Bench, trained: Training) -> None:
    live = live_text(trained.denoiser)
    assert live is not None
    for name in ("zorb.safetensors", "zorb-diffusers.safetensors"):
        pipe = picture_models.pipeline_of(bench.model)
        pipe.load_lora_weights(trained.job.folder / "lora" / name)
        theirs = pipe.encode_prompt(["a zorb in the rain"], do_classifier_free_guidance=False)[0]
        torch.testing.assert_close(encoded(live), theirs[0], rtol=1e-4, atol=1e-4)


def test_the_keys_are_those_that_comfyui_and_sd_scripts_read(trained: Training) -> None:
    keys = set(load_file(trained.job.folder / "lora" / "zorb.safetensors"))
    for number in (1, 2):
        for kind in KINDS:
            part = "mlp" if kind.startswith("fc") else "self_attn"
            layer = f"lora_te{number}_text_model_encoder_layers_0_{part}_{kind}"
            assert {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"} <= keys
    theirs = set(load_file(trained.job.folder / "lora" / "zorb-diffusers.safetensors"))
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in theirs


def test_it_goes_on_to_the_same_bytes(bench: Bench, trained: Training) -> None:
    run = bench.run()
    bench.train(run, stop_at=2)
    bench.train(run, resume=True)
    ours, theirs = (each / "lora" / "zorb.safetensors" for each in (run, trained.job.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_file_with_encoders_is_drawn_with_them(bench: Bench, trained: Training) -> None:
    """By `lorapod sample`'s own code: at strength 1 what training drew last, at 0 the base model."""
    from lorapod.engine.sample import _by_strength

    job = Job(bench.run("adapter.text_encoders=false"), Workspace(bench.folder))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(job, lambda: False)
        previews = Previews(job)
        file = trained.job.folder / "lora" / "zorb.safetensors"
        plain, full = _by_strength(job, previews, {job.family.experts[0]: file}, [0.0, 1.0])
    drawn = Previews(trained.job).latents(trained.denoiser, previews.pairs)
    torch.testing.assert_close(full[0], drawn[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain[0], full[0], atol=1e-3)


def test_it_can_be_continued_from(bench: Bench, trained: Training) -> None:
    file = trained.job.folder / "lora" / "zorb.safetensors"
    again = bench.train(bench.run(f"adapter.continue_from={file}", "optimizer.learning_rate=1e-9", "training.steps=1"))
    before, after = adapters.adapter_tensors(trained.denoiser), adapters.adapter_tensors(again.denoiser)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)


def test_a_base_model_with_large_encoders_refuses(bench: Bench, tiny_z_image: Path) -> None:
    with pytest.raises(LorapodError, match="text encoders of this base model cannot be trained"):
        bench.train(bench.run(model=tiny_z_image))
