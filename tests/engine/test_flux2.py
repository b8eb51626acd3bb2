"""FLUX.2 klein's conventions, each against diffusers' own pipeline or an independent computation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import picture_models
import pytest
import torch
from parity import same_loss
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lorapod import lora_convert, lora_file
from lorapod.engine.families import PreviewRequest, family_named, family_of
from lorapod.engine.families.control import with_controls
from lorapod.lora_names import flux2
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel("tiny", "flux2", picture_models.build_flux2(tmp_path_factory.mktemp("models") / "flux2"))


@pytest.fixture(scope="module")
def pipeline(base: BaseModel) -> Any:
    return picture_models.pipeline_of(base.folder)


def test_text_embeddings_equal_the_pipelines(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    captions = ["a red star", "two blue fish and a house on the left, sand, " * 60]
    ours = family.encode_text(family.load_text_encoder(base, CPU, FP32), captions)
    tokens, _ = pipeline.encode_prompt(captions)
    torch.testing.assert_close(torch.stack([text["tokens"] for text in ours]), tokens, atol=1e-5, rtol=1e-5)
    assert tokens.shape[1:] == (512, 48)
    assert int(ours[0]["length"]) < family.token_limit() < int(ours[1]["length"])


def test_loss_equals_an_independent_computation(base: BaseModel, pipeline: Any) -> None:
    """Items of one batch without, with one, and with two control pictures of different sizes."""
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(3, 32, 1, 4, 6, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.9, 0.5])
    sizes: list[list[tuple[int, int]]] = [[], [(4, 6)], [(3, 2), (4, 4)]]
    controls = [[torch.randn(32, 1, *size, generator=generator) for size in each] for each in sizes]
    texts = [{"tokens": torch.randn(16, 48, generator=generator)} for _ in sizes]
    ours = family.loss(denoiser, latents, noise, sigma, [with_controls({}, each) for each in controls], texts)
    for i, given in enumerate(controls):
        noisy = ((1 - sigma[i]) * latents[i] + sigma[i] * noise[i])[None, :, 0]
        rows, ids = [pipeline._pack_latents(noisy)], [pipeline._prepare_latent_ids(noisy)]
        if given:
            rows += [pipeline._pack_latents(control[None, :, 0]) for control in given]
            ids.append(pipeline._prepare_image_ids([control[None, :, 0] for control in given]))
        predicted = pipeline.transformer(
            hidden_states=torch.cat(rows, dim=1), timestep=sigma[i : i + 1] * 1000 / 1000, guidance=None,
            encoder_hidden_states=texts[i]["tokens"][None],
            txt_ids=pipeline._prepare_text_ids(texts[i]["tokens"][None]), img_ids=torch.cat(ids, dim=1),
            return_dict=False,
        )[0][:, :24]  # fmt: skip
        (predicted,) = pipeline._unpack_latents_with_ids(predicted, ids[0], 4, 6)
        expected = torch.mean((predicted - (noise[i] - latents[i])[:, 0]) ** 2)
        same_loss("FLUX.2 klein", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss() -> None:
    """It takes the clean picture from the second control picture, by the positions that it is given."""
    latents, noise, other = (torch.randn(1, 32, 1, 2, 3) for _ in range(3))

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, hidden_states: Any, timestep: Any, img_ids: Any, **_: Any) -> Any:
            s = timestep[0]
            places = [tuple(place) for place in img_ids.long().tolist()]
            out = torch.full_like(hidden_states, torch.nan)
            for n, (which, row, column, _last) in enumerate(places):
                if which == 0:
                    clean = hidden_states[0, places.index((20, row, column, 0))]
                    out[0, n] = (hidden_states[0, n] - (1 - s) * clean) / s - clean
            return (out,)

    items = [with_controls({}, [other[0], latents[0]])]
    loss = family_named("flux2").loss(
        Oracle(), latents, noise, torch.tensor([0.7]), items, [{"tokens": torch.zeros(4, 48)}]
    )
    assert loss.item() < 1e-9


@pytest.mark.parametrize("controls", [0, 2])
@pytest.mark.parametrize("distilled", [False, True])
def test_preview_is_the_picture_that_the_pipeline_draws(
    tmp_path_factory: pytest.TempPathFactory, controls: int, distilled: bool
) -> None:
    folder = tmp_path_factory.mktemp("models") / "flux2"
    base = BaseModel("tiny", "flux2", picture_models.build_flux2(folder, is_distilled=distilled))
    pipeline, family = picture_models.pipeline_of(base.folder), family_of(base)
    generator = np.random.default_rng(5)
    pixels = [generator.integers(0, 256, (48 + 16 * n, 64, 3), dtype=np.uint8) for n in range(controls)]
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star", ""])
    vae = family.load_vae(base, CPU, FP32)
    given = [torch.from_numpy(each).permute(2, 0, 1).float()[None, :, None] / 127.5 - 1 for each in pixels]
    item = with_controls({}, [family.encode_pixels(vae, each)[0]["mean"] for each in given])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 48, 1, 4, 3.0, 11, item=item))
    # The pipeline refuses pictures of less than 64 x 64 pixels, and those here are as large as they need be.
    pipeline.image_processor.check_image_input = lambda *_, **__: None
    theirs = pipeline(
        [Image.fromarray(each) for each in pixels] or None, "a red star", width=64, height=48, num_inference_steps=4,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(11), output_type="pt",
    ).images  # fmt: skip
    ours = family.decode_latents(vae, latents[None])[:, :, 0] / 2 + 0.5
    torch.testing.assert_close(ours.clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)
    assert 0 < theirs.mean() < 1


def test_latents_are_normalised_by_the_batch_norms_statistics_and_decode_back(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    vae = family.load_vae(base, CPU, FP32)
    pixels = torch.rand(1, 3, 1, 64, 48) * 2 - 1
    entry = family.encode_pixels(vae, pixels)[0]
    theirs = pipeline._encode_vae_image(pixels[:, :, 0], torch.Generator())
    torch.testing.assert_close(entry["mean"][None, :, 0], theirs, atol=1e-5, rtol=1e-5)
    decoded = family.decode_latents(vae, entry["mean"][None])[:, :, 0]
    raw = pipeline.vae.encode(pixels[:, :, 0]).latent_dist.mean
    torch.testing.assert_close(decoded, pipeline.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
    assert entry["deviation"].shape == entry["mean"].shape == (32, 1, 4, 3)


def test_keys_and_shapes_at_full_size_are_those_that_comfyui_maps() -> None:
    """ComfyUI's `flux_to_diffusers` has FLUX.2's layers by diffusers' names, which are rows of the original's."""
    width, table = 3072, dict[str, tuple[int, int]]()
    for block in range(5):
        at = f"transformer.transformer_blocks.{block}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            table[f"{at}.attn.{name}"] = (width, width)
        for stream in ("", "_context"):
            table[f"{at}.ff{stream}.linear_in"] = (6 * width, width)
            table[f"{at}.ff{stream}.linear_out"] = (width, 3 * width)
    for block in range(20):
        at = f"transformer.single_transformer_blocks.{block}.attn"
        table[f"{at}.to_qkv_mlp_proj"] = (9 * width, width)
        table[f"{at}.to_out"] = (width, 4 * width)
    family, denoiser = family_named("flux2"), picture_models.full_size("flux2")
    assert sum(p.numel() for p in denoiser.parameters()) == 3_875_544_576
    found = {
        family.export_key(name, LoraFormat.COMFYUI): tuple(module.weight.shape)
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(family.targets(Targets.ALL), name)
    }
    assert found == table and len(found) == 100
    for key in found:
        module = key.removeprefix("transformer.")
        whole = flux2.fused_of(module)
        assert whole is not None and module in flux2.parts_of(whole)


def test_the_makers_single_file_gives_the_same_denoiser(base: BaseModel, tmp_path: Path) -> None:
    """Written as diffusers' own converter reads it, and read here without one."""
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    family = family_of(base)
    held = load_file(base.folder / "transformer/diffusion_pytorch_model.safetensors")
    original: dict[str, torch.Tensor] = {}
    for name in held:
        rows = family.denoiser_naming({}).of(name)
        if rows.name not in original:
            names = [n for n in held if family.denoiser_naming({}).of(n).name == rows.name]
            runs = {family.denoiser_naming({}).of(n).runs: held[n] for n in names}
            if rows.runs == (1, 0):
                original[rows.name] = held[name].roll(len(held[name]) // 2, dims=0).clone()
            else:
                original[rows.name] = torch.cat([runs[each] for each in sorted(runs)])
    assert "double_blocks.0.img_attn.qkv.weight" in original and "single_blocks.1.linear1.weight" in original
    converted = convert_flux2_transformer_checkpoint_to_diffusers(dict(original))
    assert converted.keys() == held.keys()
    assert all(torch.equal(converted[name], value) for name, value in held.items())
    save_file(original, tmp_path / "flux2.safetensors")
    single = BaseModel("tiny", "flux2", base.folder, single_files={"transformer": tmp_path / "flux2.safetensors"})
    read = family.load_denoiser(single, family.experts[0], CPU, FP32).state_dict()
    assert all(torch.equal(read[name], value) for name, value in held.items())


def test_a_lora_with_the_makers_fused_layers_is_cut_and_fused_again(tmp_path: Path) -> None:
    """musubi-tuner writes them so; its architecture is known by the metadata, ours by the layers' names."""
    generator = torch.Generator().manual_seed(1)
    modules = {
        "double_blocks_0_txt_attn_qkv": (96, 32),
        "double_blocks_1_img_mlp_0": (192, 32),
        "single_blocks_1_linear1": (288, 32),
    }
    held: dict[str, torch.Tensor] = {}
    for module, (out, into) in modules.items():
        held[f"lora_unet_{module}.lora_down.weight"] = torch.randn(4, into, generator=generator)
        held[f"lora_unet_{module}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        held[f"lora_unet_{module}.alpha"] = torch.tensor(2.0)
    save_file(held, tmp_path / "musubi.safetensors", {"modelspec.architecture": "Flux.2-klein-4b/lora"})
    lora_convert.convert(tmp_path / "musubi.safetensors", tmp_path / "ours.safetensors", LoraFormat.COMFYUI)
    ours = load_file(tmp_path / "ours.safetensors")
    assert {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in ours} == {
        *(f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"),
        "transformer_blocks.1.ff.linear_in",
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
    }
    assert lora_file.inspect(tmp_path / "ours.safetensors").family == "flux2"
    save_file(ours, tmp_path / "bare.safetensors")
    assert lora_file.inspect(tmp_path / "bare.safetensors").family == "flux2"
    lora_convert.convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", LoraFormat.KOHYA)
    back = load_file(tmp_path / "back.safetensors")
    for module in modules:
        at = f"lora_unet_{module}"
        scale = back[f"{at}.alpha"] / back[f"{at}.lora_down.weight"].shape[0]
        change = scale * back[f"{at}.lora_up.weight"] @ back[f"{at}.lora_down.weight"]
        was = 0.5 * held[f"{at}.lora_up.weight"] @ held[f"{at}.lora_down.weight"]
        torch.testing.assert_close(change, was, atol=1e-5, rtol=1e-5)
