"""FLUX.1's conventions, each against diffusers' own pipeline or an independent computation."""

from __future__ import annotations

import math
import re
from typing import Any

import picture_models
import pytest
import torch
from parity import same_loss
from torch import nn

from lorapod.engine.families import family_named
from lorapod.engine.families.base import PreviewRequest
from lorapod.engine.families.flux import Flux
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel("tiny", "flux", picture_models.build_flux(tmp_path_factory.mktemp("models") / "flux"))


@pytest.fixture(scope="module")
def pipeline(base: BaseModel) -> Any:
    return picture_models.pipeline_of(base.folder)


def test_text_embeddings_equal_the_pipelines(base: BaseModel, pipeline: Any) -> None:
    family = family_named("flux")
    captions = ["a red star", "two blue fish and a house on the left, sand, " * 20]
    ours = family.encode_text(family.load_text_encoder(base, CPU, FP32), captions)
    tokens, pooled, _ = pipeline.encode_prompt(captions, None)
    torch.testing.assert_close(torch.stack([text["tokens"] for text in ours]), tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack([text["pooled"] for text in ours]), pooled, atol=1e-5, rtol=1e-5)
    assert tokens.shape[1] == 512
    assert int(ours[0]["length"]) < family.token_limit() < int(ours[1]["length"])


def test_loss_equals_an_independent_computation(base: BaseModel, pipeline: Any) -> None:
    family = family_named("flux")
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(2, 16, 1, 8, 12, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.9])
    texts = [
        {"tokens": torch.randn(16, 32, generator=generator), "pooled": torch.randn(32, generator=generator)}
        for _ in range(2)
    ]
    ours = family.loss(denoiser, latents, noise, sigma, [{}, {}], texts)
    for i in range(2):  # the objective of diffusers' DreamBooth script, with the pipeline's own packing and positions
        noisy = ((1 - sigma[i]) * latents[i] + sigma[i] * noise[i])[None, :, 0]
        predicted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, 1, 16, 8, 12), timestep=sigma[i : i + 1] * 1000 / 1000,
            guidance=torch.tensor([1.0]), pooled_projections=texts[i]["pooled"][None],
            encoder_hidden_states=texts[i]["tokens"][None], txt_ids=torch.zeros(16, 3),
            img_ids=pipeline._prepare_latent_image_ids(1, 4, 6, CPU, FP32), return_dict=False,
        )[0]  # fmt: skip
        predicted = pipeline._unpack_latents(predicted, 64, 96, 8)
        expected = torch.mean((predicted - (noise[i] - latents[i])[None, :, 0]) ** 2)
        same_loss("FLUX.1", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss() -> None:
    latents, noise = torch.randn(1, 16, 1, 4, 6), torch.randn(1, 16, 1, 4, 6)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.config = type("Config", (), {"guidance_embeds": True})

        def forward(self, hidden_states: Any, timestep: Any, img_ids: Any, **_: Any) -> Any:
            # Unpacks by the positions that it is given, and finds noise - x0 from input and time alone, knowing x0.
            s = timestep[0]
            out = torch.empty_like(hidden_states)
            for n, (_, row, column) in enumerate(img_ids.long().tolist()):
                clean = latents[0, :, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
                out[0, n] = (hidden_states[0, n] - (1 - s) * clean) / s - clean
            return (out,)

    texts = [{"tokens": torch.zeros(4, 32), "pooled": torch.zeros(32)}]
    loss = family_named("flux").loss(Oracle(), latents, noise, torch.tensor([0.7]), [{}], texts)
    assert loss.item() < 1e-9


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_preview_is_the_picture_that_the_pipeline_draws(base: BaseModel, pipeline: Any, guidance: float) -> None:
    family = family_named("flux")
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star", ""])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 48, 1, 4, guidance, 11))
    theirs = pipeline(
        "a red star", width=64, height=48, num_inference_steps=4, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents, pipeline._unpack_latents(theirs, 48, 64, 8).squeeze(0)[:, None])


def test_a_model_without_a_guidance_input_is_previewed_with_classifier_free_guidance(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = picture_models.build_flux(tmp_path_factory.mktemp("models") / "flux", guidance_embeds=False)
    base, family, pipe = BaseModel("tiny", "flux", folder), family_named("flux"), picture_models.pipeline_of(folder)
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star", "fish"])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 64, 1, 3, 4.0, 11))
    theirs = pipe(
        "a red star", negative_prompt="fish", true_cfg_scale=4.0, width=64, height=64, num_inference_steps=3,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents[None, :, 0], pipe._unpack_latents(theirs, 64, 64, 8), atol=1e-4, rtol=1e-4)


def test_latents_are_normalised_as_the_vae_says_and_decode_back(base: BaseModel, pipeline: Any) -> None:
    family = family_named("flux")
    vae = family.load_vae(base, CPU, FP32)
    pixels = torch.rand(1, 3, 1, 64, 48) * 2 - 1
    entry = family.encode_pixels(vae, pixels)[0]
    posterior = pipeline.vae.encode(pixels[:, :, 0]).latent_dist
    torch.testing.assert_close(entry["mean"][:, 0], (posterior.mean[0] - 0.1159) * 0.3611)
    decoded = family.decode_latents(vae, entry["mean"][None])[:, :, 0]
    torch.testing.assert_close(decoded, pipeline.vae.decode(posterior.mean).sample, atol=1e-4, rtol=1e-4)


def test_the_shift_grows_with_the_picture_as_in_the_pipeline() -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    family = Flux()
    for side, about in ((512, 1.878), (768, 2.332), (1024, 3.158)):
        shift = family.resolution_shift((1, 16, 1, side // 8, side // 8))
        assert shift == pytest.approx(math.exp(calculate_shift((side // 16) ** 2)), rel=1e-6)
        assert shift == pytest.approx(about, abs=1e-3)


def test_keys_and_shapes_at_full_size_are_those_that_comfyui_maps() -> None:
    """ComfyUI's table of FLUX's layers by diffusers' names, with the rows that each has of the fused original."""
    table: dict[str, tuple[int, int]] = {}
    width, mlp = 3072, 12288
    for block in range(19):
        at = f"transformer.transformer_blocks.{block}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            table[f"{at}.attn.{name}"] = (width, width)
        for stream in ("", "_context"):
            table[f"{at}.ff{stream}.net.0.proj"] = (mlp, width)
            table[f"{at}.ff{stream}.net.2"] = (width, mlp)
            table[f"{at}.norm1{stream}.linear"] = (6 * width, width)
    for block in range(38):
        at = f"transformer.single_transformer_blocks.{block}"
        for name in ("to_q", "to_k", "to_v"):
            table[f"{at}.attn.{name}"] = (width, width)
        table[f"{at}.proj_mlp"] = (mlp, width)
        table[f"{at}.proj_out"] = (width, width + mlp)
        table[f"{at}.norm.linear"] = (3 * width, width)
    family, denoiser = Flux(), picture_models.full_size("flux")
    assert sum(p.numel() for p in denoiser.parameters()) == 11_901_408_320
    found = {
        family.export_key(name, LoraFormat.COMFYUI): tuple(module.weight.shape)
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(family.targets(Targets.ALL), name)
    }
    assert found == table
    attention = [key for key in found if re.fullmatch(family.targets(Targets.ATTENTION), key.partition(".")[2])]
    both = [k for k in found if re.fullmatch(family.targets(Targets.ATTENTION_FEED_FORWARD), k.partition(".")[2])]
    assert len(attention) == 19 * 8 + 38 * 3 and len(both) == 19 * 12 + 38 * 5
