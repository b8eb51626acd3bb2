"""Weights from single files are those of the folder, tensor by tensor; a file that is not right is one clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fakes.single_files import as_bf16, comfy_transformer, fp8_scaled, single_files
from lorapod import recipe as recipes
from lorapod.engine import weights
from lorapod.engine.families import family_named
from lorapod.errors import BaseModelError
from lorapod.models import BaseModel, entries
from lorapod.models.fetch import pull
from lorapod.workspace import Workspace

CPU = torch.device("cpu")
FAMILY = family_named("z_image")


@pytest.fixture(scope="module")
def folder(tiny_z_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with bf16 weights, as published ones are."""
    copy = Path(shutil.copytree(tiny_z_image, tmp_path_factory.mktemp("bf16") / "tiny"))
    as_bf16(copy)
    return copy


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return single_files(folder, tmp_path_factory.mktemp("single"))


def in_folder(folder: Path) -> BaseModel:
    return BaseModel("tiny", "z_image", folder)


def in_files(folder: Path, files: dict[str, Path]) -> BaseModel:
    return BaseModel("tiny", "z_image", folder, single_files=files)


def load(base: BaseModel, component: str, dtype: torch.dtype) -> nn.Module:
    if component == "transformer":
        return FAMILY.load_denoiser(base, FAMILY.experts[0], CPU, dtype)
    if component == "vae":
        return FAMILY.load_vae(base, CPU, dtype)
    return FAMILY.load_text_encoder(base, CPU, dtype).model


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def by_diffusers(folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import AutoModel

    if component == "text_encoder":
        return AutoModel.from_pretrained(folder / component, dtype=dtype)
    kind = AutoencoderKL if component == "vae" else ZImageTransformer2DModel
    return kind.from_pretrained(folder / component, torch_dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_both_layouts_give_what_diffusers_and_transformers_read_from_the_folder(
    folder: Path, files: dict[str, Path], component: str, dtype: torch.dtype
) -> None:
    theirs = tensors_of(by_diffusers(folder, component, dtype))
    for base in (in_folder(folder), in_files(folder, files)):
        model = load(base, component, dtype)
        assert_same(tensors_of(model), theirs)
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_an_independent_converter_agrees_on_the_names(folder: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers as convert

    plain = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    assert_same(convert(dict(comfy_transformer(folder))), plain)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_prefix_and_other_models_in_the_file_make_no_difference(folder: Path, tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in comfy_transformer(folder).items()}
    if prefix == "model.diffusion_model.":
        tensors["vae.decoder.conv_in.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "all.safetensors")
    base = in_files(folder, {"transformer": tmp_path / "all.safetensors"})
    assert_same(
        tensors_of(load(base, "transformer", torch.float32)),
        tensors_of(load(in_folder(folder), "transformer", torch.float32)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("style", ["scaled_fp8", "comfy_quant"])
def test_fp8_with_scales_is_read_as_what_it_means(
    folder: Path, files: dict[str, Path], tmp_path: Path, style: str, by_row: bool, dtype: torch.dtype
) -> None:
    scaled = {name: tmp_path / f"{name}.safetensors" for name in ("transformer", "text_encoder")}
    for name, path in scaled.items():
        meant = fp8_scaled(files[name], path, style, by_row)
        plain = tmp_path / f"{name}_plain.safetensors"
        save_file({key: value.to(dtype) for key, value in meant.items()}, plain)
        ours = load(in_files(folder, {name: path}), name, dtype)
        assert_same(tensors_of(ours), tensors_of(load(in_files(folder, {name: plain}), name, dtype)))
        assert sum(p.is_meta for p in ours.parameters()) == 0
    original = tensors_of(load(in_folder(folder), "transformer", torch.float32))
    ours32 = tensors_of(load(in_files(folder, scaled), "transformer", torch.float32))
    name = "layers.0.attention.to_k.weight"
    assert 0 < (ours32[name] - original[name]).abs().max() < 0.05 * original[name].abs().max()


def test_pieces_join_to_what_one_read_gives(
    folder: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8_scaled(files["transformer"], tmp_path / "t.safetensors", "comfy_quant", by_row=True)
    for base in (in_folder(folder), in_files(folder, {"transformer": tmp_path / "t.safetensors"})):
        whole = tensors_of(load(base, "transformer", torch.float16))
        with monkeypatch.context() as patch:
            patch.setattr(weights, "PIECE_BYTES", 100)
            assert_same(tensors_of(load(base, "transformer", torch.float16)), whole)


NAME = "layers.0.feed_forward.w1.weight"


def change_row(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME][:-1].contiguous()


def other_quantisation(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME].to(torch.uint8)
    tensors[NAME.replace("weight", "weight_scale")] = torch.ones(64, 4)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a tensor is missing": (lambda t: t.pop(NAME), f"1 of 73 tensors are missing, as {NAME}"),
    "a tensor has another shape": (change_row, f"{NAME} is ["),
    "a tensor too many": (lambda t: t.update({"layers.9.w": torch.ones(1)}), "no use for, as layers.9.w"),
    "another quantisation": (other_quantisation, f"{NAME} is U8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_error_that_says_in_what(
    folder: Path, files: dict[str, Path], tmp_path: Path, case: str
) -> None:
    change, said = WRONG[case]
    tensors = load_file(files["transformer"])
    change(tensors)
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(BaseModelError) as caught:
        load(in_files(folder, {"transformer": tmp_path / "wrong.safetensors"}), "transformer", torch.float32)
    assert said in caught.value.why and "wrong.safetensors" in caught.value.what


@pytest.mark.parametrize("other", ["vae", "text_encoder"])
def test_the_file_of_another_part_is_refused(folder: Path, files: dict[str, Path], other: str) -> None:
    with pytest.raises(BaseModelError, match="is not the transformer of tiny") as caught:
        load(in_files(folder, {"transformer": files[other]}), "transformer", torch.float32)
    assert "73 of 73 tensors are missing" in caught.value.why


def test_a_cut_off_file_is_refused(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(files["transformer"].read_bytes()[:-1])
    with pytest.raises(BaseModelError, match=r"short\.safetensors is not a whole safetensors file"):
        load(in_files(folder, {"transformer": tmp_path / "short.safetensors"}), "transformer", torch.float32)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(
    folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(files["transformer"], tmp_path / "t.safetensors"))
    with weights.StoredWeights([path], "transformer of tiny") as stored:
        path.open("r+b").truncate(path.stat().st_size // 2)
        with pytest.raises(BaseModelError, match="Cannot read") as caught:
            for name, (_, tensor) in stored.tensors.items():
                stored.read(name, torch.empty(tensor.shape))
    assert "shorter" in caught.value.why


def test_parts_of_a_folder_are_read_as_its_index_says(folder: Path, tmp_path: Path) -> None:
    from diffusers import ZImageTransformer2DModel

    parts = Path(shutil.copytree(folder, tmp_path / "parts"))
    for path in (parts / "transformer").glob("*.safetensors"):
        path.unlink()
    whole = by_diffusers(folder, "transformer", torch.float32)
    assert isinstance(whole, ZImageTransformer2DModel)
    whole.save_pretrained(parts / "transformer", max_shard_size="200KB")
    base = in_folder(parts)
    assert len(base.weights("transformer")) > 1
    (parts / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    assert_same(tensors_of(load(base, "transformer", torch.float32)), tensors_of(whole))


def test_the_fingerprint_is_of_the_content_and_not_of_names_and_places(
    folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copy(files["transformer"], tmp_path / "other_name.safetensors"))
    one = in_files(folder, files).fingerprint("transformer")
    assert in_files(folder, {"transformer": moved}).fingerprint("transformer") == one
    assert in_folder(folder).fingerprint("transformer") != one
    with moved.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert in_files(folder, {"transformer": moved}).fingerprint("transformer") != one


ENTRY = """
name = "tiny"
title = "Tiny"
family = "z_image"
modality = "picture"
licence = "none"
files = [
    {{ layout = "diffusers", part = "config", local = "{config}" }},
    {{ layout = "single-files", part = "transformer", local = "{transformer}" }},
    {{ layout = "single-files", part = "text_encoder", local = "{text_encoder}" }},
    {{ layout = "single-files", part = "vae", local = "{vae}" }},
    {{ layout = "single-files", part = "training_adapter", local = "{training_adapter}" }},
]
[trainers.builtin]
needs = ["diffusers/config", "single-files/*"]
"""


def workspace_of(at: Path, folder: Path, files: dict[str, Path], by_hand: bool) -> Workspace:
    """A workspace with `tiny` in its catalogue: in single files, or in a whole folder that was put there by hand."""
    workspace = Workspace(at)
    config = Path(shutil.copytree(folder, at / "config", ignore=shutil.ignore_patterns("*.safetensors")))
    (workspace.models / "entries").mkdir(parents=True)
    (workspace.models / "entries/tiny.toml").write_text(ENTRY.format(config=config, **files), encoding="utf-8")
    if by_hand:
        shutil.copytree(folder, workspace.models / "tiny")
    else:
        pull(entries(workspace)["tiny"], None, workspace)
    return workspace


def trained(recipe: Path, workspace: Workspace, *overrides: str) -> Path:
    """The run of a short training by the engine's process."""
    run = workspace.runs / "run"
    run.mkdir(parents=True)
    made = recipes.load(recipe, ["base_model.name='tiny'", *overrides])
    (run / "recipe.toml").write_text(recipes.dumps(made), encoding="utf-8")
    argv = [sys.executable, "-m", "lorapod.engine", "train", str(run), "--workspace", str(workspace.root)]
    ended = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return run


@pytest.fixture
def training_adapter(tmp_path: Path) -> Path:
    """One that reaches into fused layers."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in ("attention.to_k", "attention.to_out.0", "feed_forward.w1"):
        out = 85 if layer.endswith("w1") else 32
        tensors[f"diffusion_model.layers.0.{layer}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
        tensors[f"diffusion_model.layers.0.{layer}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    save_file(tensors, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_training_from_single_files_gives_the_lora_that_training_from_the_folder_gives(
    folder: Path, files: dict[str, Path], recipe_file: Callable[..., Path], tmp_path: Path, training_adapter: Path
) -> None:
    recipe = recipe_file()
    merged = 'base_model.training_adapter="catalogue"'
    given = files | {"training_adapter": training_adapter}
    by_files = trained(recipe, workspace_of(tmp_path / "a", folder, given, by_hand=False), merged)
    by_folder = trained(recipe, workspace_of(tmp_path / "b", folder, given, by_hand=True), merged)
    ours, theirs = ({p.name: p.read_bytes() for p in run.glob("previews/*.png")} for run in (by_files, by_folder))
    assert ours == theirs and ours
    assert_same(*(load_file(run / "lora/zorb.safetensors") for run in (by_files, by_folder)))
    plain = trained(recipe, workspace_of(tmp_path / "c", folder, given, by_hand=False))
    without = load_file(plain / "lora/zorb.safetensors")
    key = "diffusion_model.layers.1.attention.to_q.lora_B.weight"
    assert not torch.equal(load_file(by_files / "lora/zorb.safetensors")[key], without[key])
