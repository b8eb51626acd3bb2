"""Z-Image's conventions, each against diffusers' own pipeline or an independent computation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import z_image_made
from parity import same_loss
from torch import nn

from lorapod.engine.families import family_named
from lorapod.engine.families.base import PreviewRequest
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tiny_z_image: Path) -> BaseModel:
    return BaseModel("tiny", "z_image", tiny_z_image)


@pytest.fixture(scope="module")
def pipeline(tiny_z_image: Path):
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(tiny_z_image)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_text_embeddings_equal_the_pipelines(base: BaseModel, pipeline) -> None:
    family = family_named("z_image")
    captions = ["a red star", "two blue fish and a house on the left, sand background"]
    encoder = family.load_text_encoder(base, CPU, FP32)
    ours = family.encode_text(encoder, captions)
    theirs, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine["tokens"], other, atol=1e-5, rtol=1e-5)


def test_loss_equals_an_independent_computation(base: BaseModel, pipeline) -> None:
    family = family_named("z_image")
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 16, 1, 8, 8, generator=generator)
    noise = torch.randn(2, 16, 1, 8, 8, generator=generator)
    sigma = torch.tensor([0.3, 0.9])
    texts = [{"tokens": torch.randn(n, 16, generator=generator)} for n in (5, 9)]
    ours = family.loss(denoiser, latents, noise, sigma, [{}, {}], texts)
    for i in range(
        2
    ):  # diffusers' DreamBooth objective for Z-Image, one item at a time: prediction = -model(1 - sigma)
        noisy = (1.0 - sigma[i]) * latents[i] + sigma[i] * noise[i]
        timestep = ((1000 - sigma[i] * 1000) / 1000)[None]
        prediction = -pipeline.transformer([noisy], timestep, [texts[i]["tokens"]], return_dict=False)[0][0]
        expected = torch.mean((prediction - (noise[i] - latents[i])) ** 2)
        same_loss("Z-Image", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss(base: BaseModel) -> None:
    family = family_named("z_image")
    latents, noise = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 16, 1, 4, 4)
    sigma = torch.tensor([0.7])

    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=FP32))

        def forward(self, x, t, text, return_dict):
            # Recovers x0 - noise from the noisy input alone, knowing x0: any wrong sign or time shows.
            s = 1 - t[0]
            return ([latents[0] - (x[0] - (1 - s) * latents[0]) / s],)

    loss = family.loss(Oracle(), latents, noise, sigma, [{}], [{"tokens": torch.zeros(1, 16)}])
    assert loss.item() < 1e-9


def test_latents_are_normalised_as_the_vae_says_and_decode_back(base: BaseModel, pipeline) -> None:
    family = family_named("z_image")
    vae = family.load_vae(base, CPU, FP32)
    pixels = torch.rand(1, 3, 1, 64, 48) * 2 - 1
    entry = family.encode_pixels(vae, pixels)[0]
    posterior = pipeline.vae.encode(pixels[:, :, 0]).latent_dist
    torch.testing.assert_close(entry["mean"][:, 0], (posterior.mean[0] - 0.1159) * 0.3611)
    torch.testing.assert_close(entry["deviation"][:, 0], posterior.std[0] * 0.3611)
    decoded = family.decode_latents(vae, entry["mean"][None])[:, :, 0]
    torch.testing.assert_close(decoded, pipeline.vae.decode(posterior.mean).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_preview_is_the_picture_that_the_pipeline_draws(base: BaseModel, pipeline, guidance: float) -> None:
    family = family_named("z_image")
    encoder = family.load_text_encoder(base, CPU, FP32)
    text, negative = family.encode_text(encoder, ["a red star", ""])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    request = PreviewRequest(text, negative, 64, 48, 1, 4, guidance, 11)
    latents = family.sample(denoiser, base, request)
    theirs = pipeline(
        "a red star", width=64, height=48, num_inference_steps=4, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents[:, 0], theirs[0], atol=1e-4, rtol=1e-4)


def test_keys_and_shapes_at_full_size_are_those_that_comfyui_maps() -> None:
    """The names of the checkpoint but for the split attention, which ComfyUI's table for the class Lumina2 has so too."""
    width, inner, blocks = 3840, 10240, [*(f"layers.{i}" for i in range(30))]
    refiners = [f"{kind}_refiner.{i}" for kind in ("noise", "context") for i in range(2)]
    table: dict[str, tuple[int, int]] = {}
    for block in [*blocks, *refiners]:
        at = f"diffusion_model.{block}"
        table |= {f"{at}.attention.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        table |= {f"{at}.feed_forward.{name}": (inner, width) for name in ("w1", "w3")}
        table[f"{at}.feed_forward.w2"] = (width, inner)
        if not block.startswith("context"):
            table[f"{at}.adaLN_modulation.0"] = (4 * width, 256)
    family, denoiser = family_named("z_image"), z_image_made.full_size()
    assert sum(p.numel() for p in denoiser.parameters()) == 6_154_908_736
    linears = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)}
    found = {
        family.export_key(name, LoraFormat.COMFYUI): tuple(module.weight.shape)
        for name, module in linears.items()
        if re.fullmatch(family.targets(Targets.ALL), name)
    }
    assert found == table
    both = [name for name in linears if re.fullmatch(family.targets(Targets.ATTENTION_FEED_FORWARD), name)]
    assert len(both) == 7 * len(blocks)


def test_adapter_targets_match_the_layers_that_their_preset_names(base: BaseModel) -> None:
    family = family_named("z_image")
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    linears = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    count: Callable[[Targets], int] = lambda t: sum(bool(re.fullmatch(family.targets(t), n)) for n in linears)  # noqa: E731
    assert count(Targets.ATTENTION) == 2 * 4
    assert count(Targets.ATTENTION_FEED_FORWARD) == 2 * 7
    assert count(Targets.ALL) == 4 * 7 + 3  # two layers, two refiners; the context refiner has no modulation
    assert np.all([not n.startswith("t_embedder") for n in linears if re.fullmatch(family.targets(Targets.ALL), n)])
