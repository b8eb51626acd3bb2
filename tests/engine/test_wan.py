"""Wan's conventions, each against diffusers' own pipelines or an independent computation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wan_made
from parity import same_loss
from PIL import Image
from torch import Tensor, nn

from lorapod.engine.experts import renamed_for
from lorapod.engine.families import family_of
from lorapod.engine.families.base import Expert, PreviewRequest
from lorapod.engine.noise import draw_levels
from lorapod.models import BaseModel
from lorapod.recipe.choices import LoraFormat, Targets, TimestepSampling
from lorapod.recipe.timesteps import NoiseLevels

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BaseModel]:
    """Gives a tiny base model of a kind, each built once."""
    made: dict[str, BaseModel] = {}

    def base(kind: str) -> BaseModel:
        if kind not in made:
            folder = wan_made.build(tmp_path_factory.mktemp("models") / kind, kind)
            made[kind] = BaseModel(kind, "wan", folder)
        return made[kind]

    return base


def pipeline_of(base: BaseModel) -> Any:
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(base.folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_text_embeddings_equal_the_pipelines(wan: Callable[[str], BaseModel]) -> None:
    base = wan("t2v")
    family = family_of(base)
    captions = ["a red  star &amp; the fish", "zorb jumps", ""]
    ours = family.encode_text(family.load_text_encoder(base, CPU, FP32), captions)
    theirs, _ = pipeline_of(base).encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)
    for mine, other in zip(ours, theirs, strict=True):
        count = len(mine["tokens"])
        torch.testing.assert_close(mine["tokens"], other[:count], atol=1e-5, rtol=1e-5)
        assert not other[count:].any()


@pytest.mark.parametrize("kind", ["t2v", "t2v-a14b"])
@pytest.mark.parametrize("frames", [1, 9])
def test_loss_of_pictures_and_clips_equals_an_independent_computation(
    wan: Callable[[str], BaseModel], frames: int, kind: str
) -> None:
    base = wan(kind)
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    latents, noise = drawn(2, 16, (frames - 1) // 4 + 1, 4, 6), drawn(2, 16, (frames - 1) // 4 + 1, 4, 6, seed=4)
    sigmas = [0.3, 0.9]
    texts = [{"tokens": drawn(n, 32, seed=n)} for n in (5, 9)]
    ours = family.loss(denoiser, latents, noise, torch.tensor(sigmas), [{}, {}], texts)
    transformer = pipeline_of(base).transformer
    for i, sigma in enumerate(sigmas):  # the flow-matching objective, one item at a time
        padded = torch.cat([texts[i]["tokens"], torch.zeros(512 - len(texts[i]["tokens"]), 32)])[None]
        mixed = latents[i : i + 1] + sigma * (noise[i : i + 1] - latents[i : i + 1])
        with torch.no_grad():
            out = transformer(mixed, torch.tensor([1000.0 * sigma]), padded).sample[0]
        expected = torch.nn.functional.mse_loss(out, noise[i] - latents[i])
        same_loss(f"Wan {kind}, {frames} frames", ours[i].item(), expected.item())


class Oracle(nn.Module):
    """Recovers noise - x_0 from the noisy input and the time alone, knowing x_0: any wrong sign or time shows."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(1, 1, 1)
        self.clean = clean
        self.config = type("Config", (), {"patch_size": (1, 2, 2)})

    def forward(self, x: Tensor, times: Tensor, text: Tensor, image: Tensor | None, return_dict: bool) -> Any:
        b, c, f, h, w = self.clean.shape
        if times.ndim == 2:  # a time each token: frames, then rows, then columns of 2 x 2 patches
            grid = times.view(b, f, h // 2, w // 2)
            s = grid.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, None] / 1000
        else:
            s = times.view(-1, 1, 1, 1, 1) / 1000
        return ((x[:, :c] - self.clean) / s.clamp(min=1e-9),)


@pytest.mark.parametrize("kind", list(wan_made.DENOISERS))
def test_a_model_that_knows_the_answer_has_no_loss(wan: Callable[[str], BaseModel], kind: str) -> None:
    base, texts, level = wan(kind), [{"tokens": torch.zeros(1, 32)}] * 2, torch.tensor([0.7, 0.2])
    channels = 48 if kind == "ti2v-5b" else 16
    latents, noise = drawn(2, channels, 3, 4, 4), drawn(2, channels, 3, 4, 4, seed=5)
    item = {"first_frame": drawn(20, 3, 4, 4, seed=6), "image": drawn(257, 16, seed=7)} if "i2v" in kind[:3] else {}
    answer = Oracle(latents)
    for expert in family_of(base).experts:
        inside = expert.lowest + (expert.highest - expert.lowest) * level
        loss = family_of(base).loss(answer, latents, noise, inside, [item, item], texts)
        assert loss.max().item() < 1e-8
        other = family_of(base).loss(answer, latents + 1, noise, inside, [item, item], texts)
        assert other.min().item() > 0.1  # it is this answer that has none


@pytest.mark.parametrize(("kind", "frames", "expected"), [
    ("t2v", 1, (16, 1, 8, 6)), ("t2v", 9, (16, 3, 8, 6)), ("ti2v-5b", 9, (48, 3, 4, 3)),
])  # fmt: skip
def test_latents_are_normalised_as_the_vae_says_and_decode_back(
    wan: Callable[[str], BaseModel], kind: str, frames: int, expected: tuple[int, ...]
) -> None:
    base = wan(kind)
    family, vae_of_pipeline = family_of(base), pipeline_of(base).vae
    vae = family.load_vae(base, CPU, torch.bfloat16)  # stays in float32 all the same
    pixels = drawn(1, 3, frames, 64, 48).clamp(-1, 1)
    (entry,) = family.encode_pixels(vae, pixels)
    assert set(entry) == {"mean"} and entry["mean"].shape == expected
    mode = vae_of_pipeline.encode(pixels).latent_dist.mode()
    config = vae_of_pipeline.config
    for channel in range(expected[0]):
        wanted = (mode[0, channel] - config.latents_mean[channel]) / config.latents_std[channel]
        torch.testing.assert_close(entry["mean"][channel], wanted, atol=1e-5, rtol=1e-5)
    decoded = family.decode_latents(vae, entry["mean"][None])
    torch.testing.assert_close(decoded, vae_of_pipeline.decode(mode).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("guidance", "frames"), [(1.0, 1), (3.0, 9)])
def test_preview_is_what_the_pipeline_draws(wan: Callable[[str], BaseModel], guidance: float, frames: int) -> None:
    base = wan("t2v")
    family = family_of(base)
    encoder = family.load_text_encoder(base, CPU, FP32)
    text, negative = family.encode_text(encoder, ["a red star turns", "sand"])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 48, frames, 5, guidance, 11))
    theirs = pipeline_of(base)(
        "a red star turns", negative_prompt="sand", width=64, height=48, num_frames=frames, num_inference_steps=5,
        guidance_scale=guidance, generator=torch.Generator().manual_seed(11), output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(latents, theirs[0], atol=1e-4, rtol=1e-4)


ORIGINAL_LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
                   "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip


PARAMETERS = {
    "t2v-1.3b": 1_418_996_800, "t2v-14b": 14_288_491_584, "i2v-14b": 16_394_878_784, "i2v-a14b": 14_288_901_184,
    "ti2v-5b": 4_999_787_712,
}  # fmt: skip
"""As published, so that `wan_made.FULL_SIZE` is what it is called; the experts of both A14B models are as large."""


@pytest.mark.parametrize(("name", "blocks", "width", "ff", "extra"), [
    ("t2v-1.3b", 30, 1536, 8960, ()), ("t2v-14b", 40, 5120, 13824, ()), ("ti2v-5b", 30, 3072, 14336, ()),
    ("i2v-14b", 40, 5120, 13824, ("cross_attn.k_img", "cross_attn.v_img")), ("i2v-a14b", 40, 5120, 13824, ()),
])  # fmt: skip
def test_exported_keys_and_shapes_at_full_size_are_those_of_the_original_checkpoint(
    wan: Callable[[str], BaseModel], name: str, blocks: int, width: int, ff: int, extra: tuple[str, ...]
) -> None:
    family = family_of(wan("t2v"))
    pattern = family.targets(Targets.ATTENTION_FEED_FORWARD)
    denoiser = wan_made.full_size(name)
    assert sum(p.numel() for p in denoiser.parameters()) == PARAMETERS[name]
    linears = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)}
    sizes = {"ffn.0": (ff, width), "ffn.2": (width, ff)}
    table = {
        f"blocks.{block}.{layer}": sizes.get(layer, (width, width))
        for block in range(blocks)
        for layer in (*ORIGINAL_LAYERS, *extra)
    }
    for format, named in (
        (LoraFormat.COMFYUI, {f"diffusion_model.{key}": size for key, size in table.items()}),
        (LoraFormat.KOHYA, {f"lora_unet_{key.replace('.', '_')}": size for key, size in table.items()}),
    ):
        found = {family.export_key(module, format): tuple(layer.weight.shape) for module, layer in linears.items()}
        assert found == named


def test_every_name_of_a_layer_leads_back_to_its_module(wan: Callable[[str], BaseModel]) -> None:
    family = family_of(wan("i2v"))
    pattern = family.targets(Targets.ALL)
    modules = [n for n, m in wan_made.full_size("i2v-14b").named_modules() if re.fullmatch(pattern, n)]
    assert len(modules) == 480
    for module in modules:
        original = family.export_key(module, LoraFormat.COMFYUI).removeprefix("diffusion_model.")
        kohya = "lora_unet_" + original.replace(".", "_")
        assert family.export_key(module, LoraFormat.DIFFUSERS) == f"transformer.{module}"
        assert family.module_of(original) == family.module_of(kohya) == family.module_of(module) == module


def test_experts_and_geometry_are_read_from_the_base_model(wan: Callable[[str], BaseModel]) -> None:
    family = family_of(wan("t2v"))
    assert (family.pixel_divisor, family.frame_step, family.fps, family.experts) == (16, 4, 16.0, (Expert(),))
    family = family_of(wan("ti2v-5b"))
    assert (family.pixel_divisor, family.fps, family.experts) == (32, 24.0, (Expert(),))
    high, low = family_of(wan("t2v-a14b")).experts
    assert (high.component, high.lowest, high.highest, high.suffix) == ("transformer", 0.875, 1.0, "-high")
    assert (low.component, low.lowest, low.highest, low.suffix) == ("transformer_2", 0.0, 0.875, "-low")


@pytest.mark.parametrize("format", ["", *(f"-{each.value}" for each in LoraFormat)])
def test_the_file_of_the_other_expert_is_known_by_its_name_in_every_layout(format: str) -> None:
    high, low = Expert("transformer", 0.875, 1.0, "-high"), Expert("transformer_2", 0.0, 0.875, "-low")
    for step in ("", "-step000100"):
        file = Path(f"zorb-high{step}{format}.safetensors")
        assert renamed_for(low, file) == Path(f"zorb-low{step}{format}.safetensors")
        assert renamed_for(high, file) == file
    assert renamed_for(low, Path("zorb.safetensors")) is None


def image_to_video(base: BaseModel) -> Any:
    """diffusers' pipeline from pictures, whatever pipeline the folder names."""
    import diffusers
    from diffusers.pipelines.wan import pipeline_wan_i2v

    if not hasattr(pipeline_wan_i2v, "ftfy"):  # which diffusers 0.42.1 uses here whether or not it is installed
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)
    pipe = pipeline_of(base)
    if not isinstance(pipe, diffusers.WanImageToVideoPipeline):
        parts = {k: v for k, v in pipe.components.items() if k != "transformer_2"}
        pipe = diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=pipe.config.expand_timesteps)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width: int = 64, height: int = 48) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def beginning(width: int, height: int, frames: int) -> Tensor:
    """Pixels of a clip that is `picture` and then something else."""
    pixels = drawn(1, 3, frames, height, width).clamp(-1, 1)
    pixels[0, :, 0] = torch.from_numpy(np.asarray(picture(width, height))).permute(2, 0, 1) / 127.5 - 1
    return pixels


@pytest.mark.parametrize("kind", ["i2v", "i2v-a14b"])
def test_what_is_cached_of_a_first_frame_is_what_the_pipeline_is_given(
    wan: Callable[[str], BaseModel], kind: str
) -> None:
    base = wan(kind)
    family, pipe = family_of(base), image_to_video(base)
    (entry,) = family.encode_pixels(family.load_vae(base, CPU, FP32), beginning(64, 48, 9))
    image = pipe.video_processor.preprocess(picture(), height=48, width=64)
    _, condition = pipe.prepare_latents(image, 1, 16, 48, 64, 9, FP32, CPU, torch.Generator())
    torch.testing.assert_close(entry["first_frame"], condition[0], atol=1e-5, rtol=1e-5)
    assert entry["first_frame"][:4, 0].eq(1).all() and entry["first_frame"][:4, 1:].eq(0).all()
    assert entry["first_frame"][4:, 1:].abs().max() > 0.01  # grey is not zero in latents
    assert ("image" in entry) == (kind == "i2v")
    if kind == "i2v":
        torch.testing.assert_close(entry["image"], pipe.encode_image(picture(), CPU)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["i2v", "i2v-a14b"])
def test_loss_from_first_frames_equals_an_independent_computation(wan: Callable[[str], BaseModel], kind: str) -> None:
    base = wan(kind)
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    latents, noise = drawn(2, 16, 3, 4, 4), drawn(2, 16, 3, 4, 4, seed=4)
    conditions, images = drawn(2, 20, 3, 4, 4, seed=5), drawn(2, 257, 16, seed=6)
    items = [{"first_frame": conditions[i], "image": images[i]} for i in range(2)]
    texts = [{"tokens": drawn(n, 32, seed=n)} for n in (5, 9)]
    ours = family.loss(denoiser, latents, noise, torch.tensor([0.4, 0.95]), items, texts)
    transformer = pipeline_of(base).transformer
    for i, sigma in enumerate((0.4, 0.95)):
        padded = torch.cat([texts[i]["tokens"], torch.zeros(512 - len(texts[i]["tokens"]), 32)])[None]
        mixed = latents[i] + sigma * (noise[i] - latents[i])
        image = images[i][None] if kind == "i2v" else None
        with torch.no_grad():
            given = torch.cat([mixed, conditions[i]])[None]  # 16 noisy, 4 mask, 16 of the first frame
            out = transformer(given, torch.tensor([1000.0 * sigma]), padded, image).sample[0]
        expected = (out - (noise[i] - latents[i])).square().mean()
        same_loss(f"Wan {kind}", ours[i].item(), expected.item())


def test_a_given_first_frame_of_the_5b_is_clean_at_time_zero_and_not_learnt(wan: Callable[[str], BaseModel]) -> None:
    family = family_of(wan("ti2v-5b"))
    latents, noise = drawn(2, 48, 3, 4, 4), drawn(2, 48, 3, 4, 4, seed=5)
    level, texts = torch.tensor([0.7, 0.2]), [{"tokens": torch.zeros(1, 32)}] * 2
    seen: dict[str, Tensor] = {}

    class Watched(Oracle):
        def forward(self, x: Tensor, times: Tensor, text: Tensor, image: Tensor | None, return_dict: bool) -> Any:
            seen.update(x=x, times=times)
            return super().forward(x, times, text, image, return_dict)

    items = [{"given_frames": torch.tensor(1)}, {"given_frames": torch.tensor(0)}]
    assert family.loss(Watched(latents), latents, noise, level, items, texts).max().item() < 1e-8
    assert (seen["x"][0, :, 0] == latents[0, :, 0]).all() and (seen["x"][1, :, 0] != latents[1, :, 0]).any()
    torch.testing.assert_close(seen["times"][0], torch.tensor([0.0] * 4 + [700.0] * 8))
    torch.testing.assert_close(seen["times"][1], torch.tensor([200.0] * 12))


def test_loss_of_the_5b_equals_an_independent_computation(wan: Callable[[str], BaseModel]) -> None:
    base = wan("ti2v-5b")
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32)
    latents, noise = drawn(1, 48, 3, 4, 4), drawn(1, 48, 3, 4, 4, seed=4)
    tokens = drawn(5, 32)
    padded, transformer = torch.cat([tokens, torch.zeros(507, 32)])[None], pipeline_of(base).transformer
    mixed = 0.4 * latents + 0.6 * noise
    level, texts = torch.tensor([0.6]), [{"tokens": tokens}]
    with torch.no_grad():
        out = transformer(mixed, torch.full((1, 12), 600.0), padded).sample
        plain = (out - (noise - latents)).square().mean()
        mixed[:, :, 0] = latents[:, :, 0]
        out = transformer(mixed, torch.tensor([[0.0] * 4 + [600.0] * 8]), padded).sample
        given = (out - (noise - latents))[:, :, 1:].square().mean()
    same_loss("Wan ti2v-5b", family.loss(denoiser, latents, noise, level, [{}], texts).item(), plain.item())
    item = {"given_frames": torch.tensor(1)}
    same_loss(
        "Wan ti2v-5b, first frame", family.loss(denoiser, latents, noise, level, [item], texts).item(), given.item()
    )


@pytest.mark.parametrize("kind", ["i2v", "ti2v-5b"])
def test_preview_from_a_picture_is_what_the_pipeline_draws(wan: Callable[[str], BaseModel], kind: str) -> None:
    base = wan(kind)
    family = family_of(base)
    height = 64 if kind == "ti2v-5b" else 48
    encoder = family.load_text_encoder(base, CPU, FP32)
    text, negative = family.encode_text(encoder, ["a red star turns", "sand"])
    (item,) = family.encode_pixels(family.load_vae(base, CPU, FP32), beginning(64, height, 9))
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, height, 9, 4, 3.0, 11, item))
    theirs = image_to_video(base)(
        picture(64, height), "a red star turns", negative_prompt="sand", width=64, height=height, num_frames=9,
        num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(11), output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(latents, theirs[0], atol=1e-4, rtol=1e-4)


def test_preview_of_the_5b_from_text_is_what_the_pipeline_draws(wan: Callable[[str], BaseModel]) -> None:
    base = wan("ti2v-5b")
    family = family_of(base)
    text, negative = family.encode_text(family.load_text_encoder(base, CPU, FP32), ["a red star turns", ""])
    denoiser = family.load_denoiser(base, family.experts[0], CPU, FP32).eval()
    latents = family.sample(denoiser, base, PreviewRequest(text, negative, 64, 64, 9, 4, 3.0, 11))
    theirs = pipeline_of(base)(
        "a red star turns", width=64, height=64, num_frames=9, num_inference_steps=4, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(latents, theirs[0], atol=1e-4, rtol=1e-4)


def test_bf16_keeps_the_time_embedding_exact(wan: Callable[[str], BaseModel]) -> None:
    base = wan("t2v")
    family = family_of(base)
    denoiser = family.load_denoiser(base, family.experts[0], CPU, torch.bfloat16)
    assert denoiser.patch_embedding.weight.dtype is torch.bfloat16
    with torch.no_grad():
        assert denoiser.condition_embedder.time_embedder(drawn(1, 256)).dtype is torch.float32


@pytest.mark.parametrize("sampling", list(TimestepSampling))
@pytest.mark.parametrize(("lowest", "highest"), [(0.875, 1.0), (0.0, 0.875), (0.0, 1.0)])
def test_an_experts_noise_levels_are_those_of_the_whole_range_that_fall_to_it(
    sampling: TimestepSampling, lowest: float, highest: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = NoiseLevels(sampling, shift=5.0)
    everything = draw_levels(20_000, levels, generator)
    own = draw_levels(20_000, levels.within(lowest, highest), generator)
    assert own.min() >= lowest - 1e-6 and own.max() <= highest + 1e-6
    kept = everything[(everything >= lowest) & (everything <= highest)]
    for share in (0.1, 0.5, 0.9):
        assert abs(own.quantile(share) - kept.quantile(share)) < 0.01
