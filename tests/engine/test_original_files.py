"""FLUX.1, SDXL, Wan and Qwen-Image from single files: tensor by tensor the diffusers folder, and as diffusers converts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_models import build_flux, build_qwen_image, build_sdxl
from safetensors.torch import save_file
from torch import Tensor, nn
from wan_made import build as build_wan

from fakes.original_files import (
    Tensors,
    component,
    flux_transformer,
    prefixed,
    sdxl_checkpoint,
    wan22_vae,
    wan_transformer,
    wan_vae,
)
from lorapod.engine.families import Family, family_of, ldm_names
from lorapod.engine.families.wan import Wan
from lorapod.models import BaseModel, entries, find_base_model
from lorapod.models.fetch import pull
from lorapod.workspace import Workspace

CPU = torch.device("cpu")
FP32 = torch.float32


def tensors_of(model: nn.Module) -> Tensors:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def assert_gives_what_is_there(given: Tensors, stored: Tensors) -> None:
    for name, tensor in stored.items():
        assert torch.equal(given[name].reshape(tensor.shape), tensor), name
    assert len(given) >= len(stored)


def from_files(folder: Path, family: str, **files: Path) -> BaseModel:
    return BaseModel("tiny", family, folder, single_files=files)


def saved(tensors: Tensors, path: Path) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def denoisers(base: BaseModel, other: BaseModel, dtype: torch.dtype = FP32) -> tuple[Tensors, Tensors]:
    family: Family = family_of(base)
    expert = family.experts[0]
    return tuple(tensors_of(family.load_denoiser(each, expert, CPU, dtype)) for each in (base, other))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("models")
    made = {
        "flux": build_flux(at / "flux"),
        "sdxl": build_sdxl(at / "sdxl"),
        "qwen_image": build_qwen_image(at / "qwen"),
    }
    return made | {kind: build_wan(at / kind, kind) for kind in ("t2v", "i2v", "ti2v-5b")}


FAMILY = {"t2v": "wan", "i2v": "wan", "ti2v-5b": "wan"}


def whole(folders: dict[str, Path], kind: str) -> BaseModel:
    return BaseModel("tiny", FAMILY.get(kind, kind), folders[kind])


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["flux", "sdxl", "qwen_image", "t2v", "i2v", "ti2v-5b"])
def test_a_folder_is_read_as_diffusers_reads_it(folders: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    """Which weights stay in float32 is part of it (Wan's time embedding)."""
    import diffusers

    base = whole(folders, kind)
    family = family_of(base)
    part = family.experts[0].component
    theirs = getattr(diffusers, type(family).denoiser_class).from_pretrained(base.folder / part, torch_dtype=dtype)
    ours = family.load_denoiser(base, family.experts[0], CPU, dtype)
    assert_same(tensors_of(ours), tensors_of(theirs))
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_text_encoders_are_read_as_transformers_reads_them(folders: dict[str, Path], dtype: torch.dtype) -> None:
    import transformers

    def check(model: nn.Module, kind: str, folder: Path, part: str = "") -> None:
        theirs = getattr(transformers, kind).from_pretrained(folder, dtype=dtype)
        assert_same(tensors_of(model), tensors_of(getattr(theirs, part) if part else theirs))

    def encoder(kind: str) -> Any:
        base = whole(folders, kind)
        return family_of(base).load_text_encoder(base, CPU, dtype)

    flux = encoder("flux")
    check(flux.clip, "CLIPTextModel", folders["flux"] / "text_encoder")
    check(flux.t5, "T5EncoderModel", folders["flux"] / "text_encoder_2")
    sdxl = encoder("sdxl")
    check(sdxl.models[0], "CLIPTextModel", folders["sdxl"] / "text_encoder")
    check(sdxl.models[1], "CLIPTextModelWithProjection", folders["sdxl"] / "text_encoder_2")
    qwen = encoder("qwen_image").model
    check(qwen, "Qwen2_5_VLForConditionalGeneration", folders["qwen_image"] / "text_encoder", "model")
    check(encoder("t2v").model, "UMT5EncoderModel", folders["t2v"] / "text_encoder")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux_from_the_makers_file(folders: dict[str, Path], tmp_path: Path, prefix: str) -> None:
    path = saved(prefixed(flux_transformer(folders["flux"]), prefix), tmp_path / "flux.safetensors")
    assert_same(*denoisers(from_files(folders["flux"], "flux", transformer=path), whole(folders, "flux")))


def test_diffusers_converts_such_a_flux_file_to_the_same(tmp_path: Path) -> None:
    """Its converter knows the published width alone, so one block of each kind is made that wide."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert

    torch.manual_seed(0)
    config = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config, guidance_embeds=True)
    marks = {n: torch.arange(p.shape[0]).float().view(-1, *[1] * (p.ndim - 1)) + 31 * i
             for i, (n, p) in enumerate(model.named_parameters())}  # fmt: skip
    (tmp_path / "transformer").mkdir()
    saved(marks, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    assert_same(convert(flux_transformer(tmp_path)), component(tmp_path / "transformer"))


def test_flux_encoders_and_vae_from_single_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """CLIP-L and T5 as ComfyUI has them: transformers' names, T5 with its embedding once."""
    folder = folders["flux"]
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in component(folder / "text_encoder").items()}
    clip["text_projection.weight"] = torch.ones(2, 2)
    files = {
        "text_encoder": saved(clip, tmp_path / "clip_l.safetensors"),
        "text_encoder_2": saved(component(folder / "text_encoder_2"), tmp_path / "t5xxl.safetensors"),
    }
    family, base = family_of(whole(folders, "flux")), from_files(folder, "flux", **files)
    ours, theirs = (family.load_text_encoder(each, CPU, FP32) for each in (base, whole(folders, "flux")))
    assert_same(tensors_of(ours.clip), tensors_of(theirs.clip))
    assert_same(tensors_of(ours.t5), tensors_of(theirs.t5))


@pytest.mark.parametrize("kind", ["t2v", "i2v", "ti2v-5b"])
def test_wan_from_the_makers_file(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert

    tensors = wan_transformer(folders[kind])
    assert_same(convert(dict(tensors)), component(folders[kind] / "transformer"))
    path = saved(tensors, tmp_path / "wan.safetensors")
    for dtype in (FP32, torch.bfloat16):
        base = from_files(folders[kind], "wan", transformer=path)
        assert_same(*denoisers(base, whole(folders, kind), dtype))


def published_vae(folder: Path, nested: bool) -> Path:
    """A VAE with as many residual blocks as the published ones."""
    from diffusers import AutoencoderKLWan

    more: dict[str, Any] = {}
    if nested:
        more = {"decoder_base_dim": 4, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
                "scale_factor_spatial": 16, "scale_factor_temporal": 4}  # fmt: skip
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
                           temperal_downsample=[False, True, True], **more)  # fmt: skip
    for number, tensor in enumerate(vae.parameters()):
        nn.init.constant_(tensor, number)
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.mark.parametrize("nested", [False, True])
def test_both_vaes_of_wan_from_the_makers_files(folders: dict[str, Path], tmp_path: Path, nested: bool) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers as convert

    folder = published_vae(Path(shutil.copytree(folders["t2v"], tmp_path / "wan")), nested)
    stored = component(folder / "vae")
    tensors = wan22_vae(folder / "vae", 2) if nested else wan_vae(folder / "vae")
    if nested:  # names of Wan2.2_VAE.pth
        assert {"encoder.downsamples.1.downsamples.2.time_conv.weight", "decoder.upsamples.0.upsamples.3.resample.1.weight",
                "decoder.upsamples.1.upsamples.0.residual.2.weight", "encoder.downsamples.1.downsamples.0.shortcut.weight",
                "conv1.weight", "decoder.head.2.bias"} <= tensors.keys()  # fmt: skip
    else:
        assert_same(convert(dict(tensors)), stored)
    base = from_files(folder, "wan", vae=saved(tensors, tmp_path / "vae.safetensors"))
    assert_gives_what_is_there(tensors_of(Wan().load_vae(base, CPU, FP32).vae), stored)


def test_the_image_encoder_of_wan_from_a_single_file(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["i2v"]
    clip = component(folder / "image_encoder")
    tensors = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in clip.items()}
    tensors["visual_projection.weight"] = torch.ones(2, 2)
    base = from_files(folder, "wan", image_encoder=saved(tensors, tmp_path / "clip_vision_h.safetensors"))
    frames = torch.rand(1, 3, 16, 16) * 2 - 1
    views = [family_of(each).load_vae(each, CPU, FP32).image_tokens(frames) for each in (base, whole(folders, "i2v"))]
    assert torch.equal(*views)


def test_qwen_image_from_single_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """The transformer has diffusers' names; the encoder is that of Qwen2.5-VL in one file, by old or new names."""
    folder = folders["qwen_image"]
    transformer = saved(component(folder / "transformer"), tmp_path / "t.safetensors")
    assert_same(*denoisers(from_files(folder, "qwen_image", transformer=transformer), whole(folders, "qwen_image")))
    published = component(folder / "text_encoder")
    assert "visual.patch_embed.proj.weight" in published and "model.norm.weight" in published
    new = {
        name if name == "lm_head.weight" else f"model.{name}" if name.startswith("visual.") else
        name.replace("model.", "model.language_model.", 1): tensor for name, tensor in published.items()
    }  # fmt: skip
    family = family_of(whole(folders, "qwen_image"))
    theirs = family.load_text_encoder(whole(folders, "qwen_image"), CPU, FP32)
    for number, tensors in enumerate((published, new)):
        file = saved(tensors, tmp_path / f"encoder-{number}.safetensors")
        ours = family.load_text_encoder(from_files(folder, "qwen_image", text_encoder=file), CPU, FP32)
        assert_same(tensors_of(ours.model), tensors_of(theirs.model))


def sdxl_file(folder: Path) -> Tensors:
    """Names of U-Net and VAE by our tables; that diffusers converts them back is what proves them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = ldm_names.unet(UNet2DConditionModel.load_config(folder / "unet"))
    vae = ldm_names.vae(AutoencoderKL.load_config(folder / "vae"))
    return sdxl_checkpoint(folder, lambda name: unet.of(name).name, lambda name: vae.of(name).name)


def test_sdxl_from_one_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["sdxl"]
    path = saved(sdxl_file(folder), tmp_path / "sdxl.safetensors")
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    base, there = from_files(folder, "sdxl", **dict.fromkeys(parts, path)), whole(folders, "sdxl")
    assert_same(*denoisers(base, there))
    family = family_of(base)
    assert_same(*(tensors_of(family.load_vae(each, CPU, FP32)) for each in (base, there)))
    ours, theirs = (family.load_text_encoder(each, CPU, FP32).models for each in (base, there))
    for one, other in zip(ours, theirs, strict=True):
        assert_same(tensors_of(one), tensors_of(other))


def test_diffusers_converts_such_a_checkpoint_to_the_same(folders: dict[str, Path]) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as utils

    folder = folders["sdxl"]
    tensors = sdxl_file(folder)
    unet = utils.convert_ldm_unet_checkpoint(dict(tensors), dict(UNet2DConditionModel.load_config(folder / "unet")))
    assert_same(unet, component(folder / "unet"))
    vae = utils.convert_ldm_vae_checkpoint(dict(tensors), dict(AutoencoderKL.load_config(folder / "vae")))
    assert_gives_what_is_there(vae, component(folder / "vae"))
    model = family_of(whole(folders, "sdxl")).load_text_encoder(whole(folders, "sdxl"), CPU, FP32).models[1]
    big = utils.convert_open_clip_checkpoint(model, dict(tensors), prefix="conditioner.embedders.1.model.")
    stored: dict[str, Tensor] = component(folder / "text_encoder_2")
    assert_gives_what_is_there({name: tensor for name, tensor in big.items() if name in stored}, stored)


ENTRY = """
name = "tiny"
title = "Tiny"
family = "sdxl"
modality = "picture"
licence = "none"
files = [
    {{ layout = "diffusers", part = "config", local = "{config}" }},
    {{ layout = "single-files", part = "checkpoint", local = "{file}", components = ["unet", "vae", "text_encoder", "text_encoder_2"] }},
]
[trainers.builtin]
needs = ["diffusers/config", "single-files/*"]
"""  # noqa: E501


def test_a_checkpoint_of_the_catalogue_is_found_as_all_its_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    config = shutil.copytree(folders["sdxl"], tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    path = saved(sdxl_file(folders["sdxl"]), tmp_path / "sdxl.safetensors")
    (workspace.models / "entries").mkdir(parents=True)
    (workspace.models / "entries/tiny.toml").write_text(ENTRY.format(config=config, file=path), encoding="utf-8")
    pull(entries(workspace)["tiny"], None, workspace)
    base = find_base_model("tiny", workspace)
    assert all(base.weights(part) == [path] for part in ("unet", "vae", "text_encoder", "text_encoder_2"))
    assert_same(*denoisers(base, whole(folders, "sdxl")))
