"""FLUX.1 Kontext's conventions, each against diffusers' own pipeline or an independent computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import picture_models
import pytest
import torch
from parity import same_loss
from PIL import Image
from torch import nn

from lorapod.engine.families import PreviewRequest, TakesControl, family_of
from lorapod.engine.families.control import with_controls
from lorapod.models import BaseModel

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel("tiny", "flux", picture_models.build_kontext(tmp_path_factory.mktemp("models") / "kontext"))


@pytest.fixture(scope="module")
def pipeline(base: BaseModel) -> Any:
    return picture_models.pipeline_of(base.folder)


def test_control_is_taken_by_kontext_alone(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> None:
    family = family_of(base)
    assert isinstance(family, TakesControl) and (family.control, family.most_controls) == ("taken", 1)
    plain = BaseModel("tiny", "flux", picture_models.build_flux(tmp_path_factory.mktemp("models") / "flux"))
    assert not isinstance(family_of(plain), TakesControl)


def test_loss_equals_an_independent_computation(base: BaseModel, pipeline: Any) -> None:
    """Items of one batch with control pictures of different sizes, one without any."""
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(4, 16, 1, 8, 12, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.9, 0.5, 0.6])
    sizes = [(8, 12), (6, 4), None, (8, 12)]
    controls = [None if size is None else torch.randn(16, 1, *size, generator=generator) for size in sizes]
    texts = [
        {"tokens": torch.randn(16, 32, generator=generator), "pooled": torch.randn(32, generator=generator)}
        for _ in sizes
    ]
    items = [with_controls({}, [] if control is None else [control]) for control in controls]
    ours = family.loss(denoiser, latents, noise, sigma, items, texts)
    for i, control in enumerate(controls):
        noisy = ((1 - sigma[i]) * latents[i] + sigma[i] * noise[i])[None, :, 0]
        rows = [pipeline._pack_latents(noisy, 1, 16, 8, 12)]
        ids = [pipeline._prepare_latent_image_ids(1, 4, 6, CPU, FP32)]
        if control is not None:
            h, w = control.shape[-2:]
            rows.append(pipeline._pack_latents(control[None, :, 0], 1, 16, h, w))
            of_control = pipeline._prepare_latent_image_ids(1, h // 2, w // 2, CPU, FP32)
            of_control[..., 0] = 1
            ids.append(of_control)
        predicted = pipeline.transformer(
            hidden_states=torch.cat(rows, dim=1), timestep=sigma[i : i + 1] * 1000 / 1000,
            guidance=torch.tensor([1.0]), pooled_projections=texts[i]["pooled"][None],
            encoder_hidden_states=texts[i]["tokens"][None], txt_ids=torch.zeros(16, 3), img_ids=torch.cat(ids),
            return_dict=False,
        )[0][:, :24]  # fmt: skip
        predicted = pipeline._unpack_latents(predicted, 64, 96, 8)
        expected = torch.mean((predicted - (noise[i] - latents[i])[None, :, 0]) ** 2)
        same_loss("FLUX.1 Kontext", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss(base: BaseModel) -> None:
    """It takes the clean picture from the control picture, which is the same, by the positions that it is given."""
    latents, noise = torch.randn(1, 16, 1, 4, 6), torch.randn(1, 16, 1, 4, 6)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.config = type("Config", (), {"guidance_embeds": True})

        def forward(self, hidden_states: Any, timestep: Any, img_ids: Any, **_: Any) -> Any:
            s = timestep[0]
            places = [tuple(place) for place in img_ids.long().tolist()]
            out = torch.full_like(hidden_states, torch.nan)
            for n, (which, row, column) in enumerate(places):
                if which == 0:
                    clean = hidden_states[0, places.index((1, row, column))]
                    out[0, n] = (hidden_states[0, n] - (1 - s) * clean) / s - clean
            return (out,)

    texts = [{"tokens": torch.zeros(4, 32), "pooled": torch.zeros(32)}]
    items = [with_controls({}, [latents[0]])]
    loss = family_of(base).loss(Oracle(), latents, noise, torch.tensor([0.7]), items, texts)
    assert loss.item() < 1e-9


def test_preview_is_the_picture_that_the_pipeline_draws(base: BaseModel, pipeline: Any) -> None:
    family = family_of(base)
    pixels = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (text,) = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star"])
    given = torch.from_numpy(pixels).permute(2, 0, 1).float()[None, :, None] / 127.5 - 1
    control = family.encode_pixels(family.load_vae(base, CPU, FP32), given)[0]["mean"]
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    request = PreviewRequest(text, None, 64, 48, 1, 4, 2.5, 11, item=with_controls({}, [control]))
    latents = family.sample(denoiser, base, request)
    theirs = pipeline(
        Image.fromarray(pixels), "a red star", width=64, height=48, num_inference_steps=4, guidance_scale=2.5,
        generator=torch.Generator().manual_seed(11), output_type="latent", max_area=64 * 48, _auto_resize=False,
    ).images  # fmt: skip
    theirs = pipeline._unpack_latents(theirs, 48, 64, 8)
    torch.testing.assert_close(latents[None, :, 0], theirs, atol=1e-4, rtol=1e-4)
    without = family.sample(denoiser, base, PreviewRequest(text, None, 64, 48, 1, 4, 2.5, 11))
    assert (latents - without).abs().max() > 1e-2  # it looks at the control picture
