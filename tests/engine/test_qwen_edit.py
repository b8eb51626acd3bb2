"""Qwen-Image-Edit's conventions, each against diffusers' own pipelines or an independent computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import picture_models
import pytest
import torch
from numpy.typing import NDArray
from parity import same_loss
from PIL import Image
from torch import Tensor, nn

from lorapod.engine.families import PreviewRequest, TakesControl, TextSeesControl, family_of
from lorapod.engine.families.control import with_controls
from lorapod.models import BaseModel

CPU, FP32 = torch.device("cpu"), torch.float32
EDIT, PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BaseModel]:
    folder = tmp_path_factory.mktemp("models")

    def base(pipeline: str) -> BaseModel:
        if not (folder / pipeline).exists():
            picture_models.build_qwen_edit(folder / pipeline, pipeline)
        return BaseModel("tiny", "qwen_image", folder / pipeline)

    return base


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float()[None, :, None] / 127.5 - 1


def test_how_many_control_pictures_there_may_be(bases: Callable[[str], BaseModel]) -> None:
    for pipeline, most in ((EDIT, 1), (PLUS, 3)):
        family = family_of(bases(pipeline))
        assert isinstance(family, TakesControl) and isinstance(family, TextSeesControl)
        assert (family.control, family.most_controls) == ("needed", most)


def test_text_is_encoded_with_its_pictures_as_the_pipelines_do(bases: Callable[[str], BaseModel]) -> None:
    for pipeline, pictures in ((EDIT, [pixels(1024, 1024)]), (PLUS, [pixels(384, 384), pixels(64, 96)])):
        base = bases(pipeline)
        family, pipe = family_of(base), picture_models.pipeline_of(base.folder)
        assert isinstance(family, TextSeesControl)
        ours = family.encode_seen_text(family.load_text_encoder(base, CPU, FP32), "make it a zorb", pictures)
        shown = [Image.fromarray(each) for each in pictures]
        shown = [each.resize((480, 320), Image.Resampling.LANCZOS) if each.width == 96 else each for each in shown]
        theirs, _ = pipe.encode_prompt("make it a zorb", image=shown if pipeline == PLUS else shown[0])
        torch.testing.assert_close(ours["tokens"][None], theirs, atol=1e-5, rtol=1e-5)
        assert int(ours["length"]) <= family.token_limit()  # type: ignore[attr-defined]


def test_loss_equals_an_independent_computation(bases: Callable[[str], BaseModel]) -> None:
    """Items of one batch with one and with two control pictures, and captions of different lengths."""
    base = bases(PLUS)
    family, pipe = family_of(base), picture_models.pipeline_of(base.folder)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(3, 16, 1, 8, 12, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 0.9, 0.6])
    sizes = [[(8, 12)], [(4, 6), (8, 8)], [(8, 12)]]
    controls = [[torch.randn(16, 1, *size, generator=generator) for size in each] for each in sizes]
    texts = [{"tokens": torch.randn(length, 16, generator=generator)} for length in (9, 7, 5)]
    ours = family.loss(denoiser, latents, noise, sigma, [with_controls({}, each) for each in controls], texts)
    for i, given in enumerate(controls):
        noisy = ((1 - sigma[i]) * latents[i] + sigma[i] * noise[i])[None]
        rows = [
            pipe._pack_latents(each.transpose(1, 2), 1, 16, *each.shape[-2:])
            for each in [noisy, *(c[None] for c in given)]
        ]
        predicted = pipe.transformer(
            hidden_states=torch.cat(rows, dim=1), timestep=sigma[i : i + 1] * 1000 / 1000,
            encoder_hidden_states=texts[i]["tokens"][None], encoder_hidden_states_mask=None,
            img_shapes=[[(1, 4, 6), *((1, h // 2, w // 2) for h, w in sizes[i])]], return_dict=False,
        )[0][:, :24]  # fmt: skip
        predicted = pipe._unpack_latents(predicted, 64, 96, 8)
        expected = torch.mean((predicted - (noise[i] - latents[i])[None]) ** 2)
        same_loss("Qwen-Image-Edit", ours[i].item(), expected.item())


def test_a_model_that_knows_the_answer_has_no_loss(bases: Callable[[str], BaseModel]) -> None:
    """It takes the clean picture from the second control picture, by the shapes that it is given."""
    latents, noise, other = torch.randn(1, 16, 1, 4, 6), torch.randn(1, 16, 1, 4, 6), torch.randn(16, 1, 4, 4)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, hidden_states: Any, timestep: Any, img_shapes: Any, **_: Any) -> Any:
            assert img_shapes == [[(1, 2, 3), (1, 2, 2), (1, 2, 3)]]
            s, clean = timestep[0], hidden_states[:, 10:]
            out = torch.full_like(hidden_states, torch.nan)
            out[:, :6] = (hidden_states[:, :6] - (1 - s) * clean) / s - clean
            return (out,)

    items = [with_controls({}, [other, latents[0]])]
    texts = [{"tokens": torch.zeros(4, 16)}]
    loss = family_of(bases(PLUS)).loss(Oracle(), latents, noise, torch.tensor([0.7]), items, texts)
    assert loss.item() < 1e-9


@pytest.mark.parametrize(("pipeline", "count"), [(EDIT, 1), (PLUS, 2)])
def test_preview_is_the_picture_that_the_pipeline_draws(
    bases: Callable[[str], BaseModel], monkeypatch: pytest.MonkeyPatch, pipeline: str, count: int
) -> None:
    """The pipelines bring control pictures to a million pixels; here to those that they have."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    calculate = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: calculate(64 * 64, ratio))
    monkeypatch.setattr("lorapod.engine.families.qwen_image.SEEN_ALONE", 64)
    base = bases(pipeline)
    family, pipe = family_of(base), picture_models.pipeline_of(base.folder)
    assert isinstance(family, TextSeesControl)
    pictures = [pixels(64, 64), np.flip(pixels(64, 64), axis=0).copy()][:count]
    encoder, vae = family.load_text_encoder(base, CPU, FP32), family.load_vae(base, CPU, FP32)  # type: ignore[attr-defined]
    text, negative = (family.encode_seen_text(encoder, each, pictures) for each in ("make it red", " "))
    family = family_of(base)
    item = with_controls({}, [family.encode_pixels(vae, as_tensor(each))[0]["mean"] for each in pictures])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 96, 64, 1, 4, 3.0, 11, item=item))
    given = [Image.fromarray(each) for each in pictures]
    theirs = pipe(
        given if pipeline == PLUS else given[0], "make it red", negative_prompt=" ", true_cfg_scale=3.0, width=96,
        height=64, num_inference_steps=4, generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    theirs = pipe._unpack_latents(theirs, 64, 96, 8)
    torch.testing.assert_close(latents[None], theirs, atol=1e-4, rtol=1e-4)
