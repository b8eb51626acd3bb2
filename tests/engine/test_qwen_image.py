"""Qwen-Image's conventions, each against diffusers' own pipeline or an independent computation."""

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
from lorapod.engine.families.qwen_image import QwenImage
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = picture_models.build_qwen_image(tmp_path_factory.mktemp("models") / "qwen")
    return BaseModel("tiny", "qwen_image", folder)


@pytest.fixture(scope="module")
def pipeline(base: BaseModel) -> Any:
    return picture_models.pipeline_of(base.folder)


def test_text_embeddings_equal_the_pipelines(base: BaseModel, pipeline: Any) -> None:
    family = family_named("qwen_image")
    captions = ["a red star", "two blue fish and a house on the left", ""]
    ours = family.encode_text(family.load_text_encoder(base, CPU, FP32), captions)
    theirs, mask = pipeline.encode_prompt(captions)
    for mine, other, real in zip(ours, theirs, mask.bool(), strict=True):
        torch.testing.assert_close(mine["tokens"], other[real], atol=1e-5, rtol=1e-5)


def test_an_entry_does_not_depend_on_the_captions_beside_it(base: BaseModel) -> None:
    family = family_named("qwen_image")
    encoder = family.load_text_encoder(base, CPU, FP32)
    alone = family.encode_text(encoder, ["a red star"])[0]["tokens"]
    beside = family.encode_text(encoder, ["a red star", "a house that is a good deal longer"])[0]["tokens"]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(7, 7), (5, 9)])
def test_loss_equals_an_independent_computation(base: BaseModel, pipeline: Any, lengths: tuple[int, int]) -> None:
    family = family_named("qwen_image")
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(2, 16, 1, 8, 12, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.9])
    texts = [{"tokens": torch.randn(length, 16, generator=generator)} for length in lengths]
    ours = family.loss(denoiser, latents, noise, sigma, [{}, {}], texts)
    for i in range(2):  # the objective of diffusers' DreamBooth script, one item at a time and so without any padding
        noisy = (1 - sigma[i]) * latents[i] + sigma[i] * noise[i]
        predicted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy.transpose(0, 1)[None], 1, 16, 8, 12),
            encoder_hidden_states=texts[i]["tokens"][None], encoder_hidden_states_mask=None,
            timestep=sigma[i : i + 1], img_shapes=[[(1, 4, 6)]], return_dict=False,
        )[0]  # fmt: skip
        predicted = pipeline._unpack_latents(predicted, 64, 96, 8)
        expected = torch.mean((predicted[0] - (noise[i] - latents[i])) ** 2)
        same_loss("Qwen-Image", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss() -> None:
    latents, noise = torch.randn(1, 16, 1, 4, 6), torch.randn(1, 16, 1, 4, 6)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, hidden_states: Any, timestep: Any, img_shapes: Any, **_: Any) -> Any:
            # Row by row as img_shapes says; finds noise - x0 from input and time alone, knowing x0.
            s, (_, rows, columns) = timestep[0], img_shapes[0][0]
            out = torch.empty_like(hidden_states)
            for n in range(rows * columns):
                row, column = divmod(n, columns)
                clean = latents[0, :, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
                out[0, n] = (hidden_states[0, n] - (1 - s) * clean) / s - clean
            return (out,)

    texts = [{"tokens": torch.zeros(4, 16)}]
    loss = family_named("qwen_image").loss(Oracle(), latents, noise, torch.tensor([0.7]), [{}], texts)
    assert loss.item() < 1e-9


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_preview_is_the_picture_that_the_pipeline_draws(base: BaseModel, pipeline: Any, guidance: float) -> None:
    family = family_named("qwen_image")
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star", ""])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 48, 1, 4, guidance, 11))
    theirs = pipeline(
        "a red star", negative_prompt="", width=64, height=48, num_inference_steps=4, true_cfg_scale=guidance,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents, pipeline._unpack_latents(theirs, 48, 64, 8)[0], atol=1e-4, rtol=1e-4)


def test_latents_are_normalised_channel_by_channel_and_decode_back(base: BaseModel, pipeline: Any) -> None:
    family = family_named("qwen_image")
    vae = family.load_vae(base, CPU, FP32)
    pixels = torch.rand(1, 3, 1, 64, 48) * 2 - 1
    entry = family.encode_pixels(vae, pixels)[0]
    posterior = pipeline.vae.encode(pixels).latent_dist
    config = pipeline.vae.config
    for channel in range(16):
        expected = (posterior.mean[0, channel] - config.latents_mean[channel]) / config.latents_std[channel]
        torch.testing.assert_close(entry["mean"][channel], expected)
        expected = posterior.std[0, channel] / config.latents_std[channel]
        torch.testing.assert_close(entry["deviation"][channel], expected)
    decoded = family.decode_latents(vae, entry["mean"][None])
    torch.testing.assert_close(decoded, pipeline.vae.decode(posterior.mean).sample, atol=1e-4, rtol=1e-4)


def test_the_shift_grows_with_the_picture_as_in_the_pipeline() -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    for side, about in ((1024, 2.001), (1328, 2.303)):
        shift = QwenImage().resolution_shift((1, 16, 1, side // 8, side // 8))
        assert shift == pytest.approx(math.exp(calculate_shift((side // 16) ** 2, 256, 8192, 0.5, 0.9)), rel=1e-6)
        assert shift == pytest.approx(about, abs=1e-3)


def test_keys_and_shapes_at_full_size_are_those_that_comfyui_maps() -> None:
    """The names of the checkpoint itself, which are diffusers'."""
    table: dict[str, tuple[int, int]] = {}
    for block in range(60):
        at = f"diffusion_model.transformer_blocks.{block}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            table[f"{at}.attn.{name}"] = (3072, 3072)
        for stream in ("img", "txt"):
            table[f"{at}.{stream}_mlp.net.0.proj"] = (12288, 3072)
            table[f"{at}.{stream}_mlp.net.2"] = (3072, 12288)
            table[f"{at}.{stream}_mod.1"] = (18432, 3072)
    family, denoiser = QwenImage(), picture_models.full_size("qwen_image")
    assert sum(p.numel() for p in denoiser.parameters()) == 20_430_401_088
    found = {
        family.export_key(name, LoraFormat.COMFYUI): tuple(module.weight.shape)
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(family.targets(Targets.ALL), name)
    }
    assert found == table
    for key in table:
        name = key.removeprefix("diffusion_model.")
        kohya = family.export_key(name, LoraFormat.KOHYA)
        assert kohya == "lora_unet_" + name.replace(".", "_") and family.module_of(kohya) == name
    both = [k for k in found if re.fullmatch(family.targets(Targets.ATTENTION_FEED_FORWARD), k.partition(".")[2])]
    assert len(both) == 720
