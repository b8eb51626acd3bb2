"""SDXL's conventions, each against diffusers' own pipeline or an independent computation."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import picture_models
import pytest
import torch
from parity import same_loss
from torch import nn

from lorapod.data.buckets import Bucket, Placement
from lorapod.engine.families import family_of
from lorapod.engine.families.base import PreviewRequest
from lorapod.engine.families.sdxl import SDXL
from lorapod.errors import BaseModelError
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

CPU, FP32 = torch.device("cpu"), torch.float32
V_ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KINDS: dict[str, dict[str, Any]] = {"epsilon": {}, "v": {"prediction_type": "v_prediction"}, "v-zero-snr": V_ZERO_SNR}


@pytest.fixture(scope="module", params=list(KINDS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = picture_models.build_sdxl(tmp_path_factory.mktemp("models") / request.param, **KINDS[request.param])
    return BaseModel(request.param, "sdxl", folder)


@pytest.fixture(scope="module")
def pipeline(base: BaseModel) -> Any:
    return picture_models.pipeline_of(base.folder)


def alphas(base: BaseModel) -> torch.Tensor:
    """Cumulated alphas from the betas, written out; zero terminal SNR as algorithm 1 of arXiv 2305.08891."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    if base.name == "v-zero-snr":
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2


def test_text_embeddings_equal_the_pipelines(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    captions = ["a red star", "two blue fish and a house on the left, sand, " * 4]
    ours = family.encode_text(family.load_text_encoder(base, CPU, FP32), captions)
    tokens, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    torch.testing.assert_close(torch.stack([text["tokens"] for text in ours]), tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack([text["pooled"] for text in ours]), pooled, atol=1e-5, rtol=1e-5)
    assert int(ours[0]["length"]) < family.token_limit() < int(ours[1]["length"])


def test_loss_equals_an_independent_computation(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(3, 4, 1, 16, 24, generator=generator) for _ in range(2))
    levels = torch.tensor([0.0, 0.3004, 0.9999])
    texts = [
        {"tokens": torch.randn(77, 64, generator=generator), "pooled": torch.randn(32, generator=generator)}
        for _ in range(3)
    ]
    place = Placement(Bucket(192, 128), (1000, 500), (256, 128), (32, 0, 224, 128), 0.25, 0.256)
    ours = family.loss(denoiser, latents, noise, levels, [family.placed({}, place)] * 3, texts)
    bars = alphas(base)
    for i, t in enumerate([0, 300, 999]):  # the objective of diffusers' SDXL training script, one item at a time
        signal, sigma = math.sqrt(bars[t]), math.sqrt(1 - bars[t])
        target = noise[i] if base.name == "epsilon" else signal * noise[i] - sigma * latents[i]
        conditions = {"text_embeds": texts[i]["pooled"][None],
                      "time_ids": torch.tensor([[500.0, 1000, 0, 32, 128, 192]])}  # fmt: skip
        predicted = pipeline.unet(
            (signal * latents[i] + sigma * noise[i])[None, :, 0], torch.tensor([t]),
            encoder_hidden_states=texts[i]["tokens"][None], added_cond_kwargs=conditions,
        ).sample  # fmt: skip
        expected = torch.mean((predicted - target[None, :, 0]) ** 2)
        same_loss(f"SDXL, {base.name}", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss(base: BaseModel) -> None:
    latents, noise = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 4, 1, 8, 8)
    bars = alphas(base).float()

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Any, t: Any, **_: Any) -> Any:
            # Finds the noise from the noisy input and the time alone, knowing x0.
            signal, sigma = bars[t].sqrt(), (1 - bars[t]).sqrt()
            found = (x - signal * latents[:, :, 0]) / sigma
            return (found if base.name == "epsilon" else (x * signal - latents[:, :, 0]) / sigma,)

    texts = [{"tokens": torch.zeros(77, 64), "pooled": torch.zeros(32)}]
    loss = family_of(base).loss(Oracle(), latents, noise, torch.tensor([0.7]), [{}], texts)
    assert loss.item() < 1e-8


def test_min_snr_weights_follow_the_paper(base: BaseModel) -> None:
    family = family_of(base)
    assert isinstance(family, SDXL)
    weights = family.min_snr_weight(torch.tensor([0.01, 0.5, 0.95]), 5.0)
    for weight, t in zip(weights, [10, 500, 950], strict=True):
        ratio = float(alphas(base)[t] / (1 - alphas(base)[t]))
        expected = min(ratio, 5.0) / (ratio if base.name == "epsilon" else ratio + 1)
        assert float(weight) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_preview_is_the_picture_that_the_pipeline_draws(base: BaseModel, pipeline: Any, guidance: float) -> None:
    family = family_of(base)
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star", "blue"])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 48, 1, 4, guidance, 11))
    theirs = pipeline(
        "a red star", negative_prompt="blue", width=64, height=48, num_inference_steps=4, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents[:, 0], theirs[0], atol=1e-4, rtol=1e-4)


def test_latents_are_scaled_as_the_vae_says_and_decode_back(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    vae = family.load_vae(base, CPU, torch.bfloat16)
    assert vae.dtype is FP32  # it overflows in half precision
    pixels = torch.rand(1, 3, 1, 64, 48) * 2 - 1
    entry = family.encode_pixels(vae, pixels)[0]
    posterior = pipeline.vae.encode(pixels[:, :, 0]).latent_dist
    torch.testing.assert_close(entry["mean"][:, 0], posterior.mean[0] * 0.13025)
    torch.testing.assert_close(entry["deviation"][:, 0], posterior.std[0] * 0.13025)
    decoded = family.decode_latents(vae, entry["mean"][None])[:, :, 0]
    torch.testing.assert_close(decoded, pipeline.vae.decode(posterior.mean).sample, atol=1e-4, rtol=1e-4)


def test_a_model_that_predicts_something_else_is_refused(tmp_path: Path) -> None:
    folder = picture_models.build_sdxl(tmp_path / "sample", prediction_type="sample")
    with pytest.raises(BaseModelError, match="predicts sample"):
        family_of(BaseModel("sample", "sdxl", folder))


def test_keys_and_shapes_at_full_size_are_those_that_comfyui_maps() -> None:
    family = SDXL()
    denoiser = picture_models.full_size("sdxl")
    assert sum(p.numel() for p in denoiser.parameters()) == 2_567_463_684
    linears = {name: module for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}

    def chosen(targets: Targets) -> list[str]:
        return [name for name in linears if re.fullmatch(family.targets(targets), name)]

    assert len(chosen(Targets.ATTENTION)) == 560
    assert len(chosen(Targets.ATTENTION_FEED_FORWARD)) == 700
    # Two projections around each of the 11 transformers, and the time embedding of each of the 17 residual blocks.
    assert len(chosen(Targets.ALL)) == 700 + 22 + 17
    comfyui = {f"lora_unet_{name.replace('.', '_')}": name for name in linears}
    assert len(comfyui) == len(linears)
    for name in chosen(Targets.ALL):
        key = family.export_key(name, LoraFormat.COMFYUI)
        assert comfyui[key] == name == family.module_of(key)
        assert key == family.export_key(name, LoraFormat.KOHYA)
        assert family.module_of(family.export_key(name, LoraFormat.DIFFUSERS)) == name
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tuple(linears[comfyui[key]].weight.shape) == (640, 640)
    key = "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_ff_net_0_proj"
    assert tuple(linears[comfyui[key]].weight.shape) == (10240, 1280)
