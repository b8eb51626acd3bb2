"""Base models on disk: found, complete, of the family that they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tomlkit

from fakes.hub_models import entry
from lorapod.errors import BaseModelError
from lorapod.models import entries, find_base_model
from lorapod.models.fetch import pull
from lorapod.models.upkeep import trainers_on_disk
from lorapod.workspace import Workspace


@pytest.fixture
def model(tiny_z_image: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_z_image, tmp_path / "model"))


def test_the_demo_model_is_complete_and_small(workspace: Workspace) -> None:
    base = find_base_model("demo", workspace)
    assert base.family == "z_image"
    assert sum(f.stat().st_size for f in base.folder.rglob("*") if f.is_file()) < 15e6
    assert (base.folder / "README.md").is_file()


def test_a_folder_is_a_base_model(model: Path, workspace: Workspace) -> None:
    base = find_base_model(str(model), workspace)
    assert (base.name, base.family, base.folder) == ("model", "z_image", model)


def test_an_unknown_name_gets_the_nearest(workspace: Workspace) -> None:
    with pytest.raises(BaseModelError) as caught:
        find_base_model("z-image-turbp", workspace)
    assert "z-image-turbo" in caught.value.why


def test_a_model_that_is_not_on_disk_says_where_to_get_it(workspace: Workspace) -> None:
    with pytest.raises(BaseModelError) as caught:
        find_base_model("z-image-turbo", workspace)
    assert "lorapod models pull z-image-turbo" in caught.value.remedy
    assert str(workspace.models / "z-image-turbo") in caught.value.why


def test_a_folder_put_into_the_workspace_by_hand_is_found(model: Path, workspace: Workspace) -> None:
    workspace.models.mkdir(parents=True)
    shutil.copytree(model, workspace.models / "z-image-turbo")
    assert find_base_model("z-image-turbo", workspace).folder == workspace.models / "z-image-turbo"


@pytest.mark.parametrize("name", ["sdxl", "flux-dev", "qwen-image", "wan2.1-t2v-1.3b", "z-image"])
def test_every_family_of_the_catalogue_can_be_trained_once_it_is_fetched(workspace: Workspace, name: str) -> None:
    with pytest.raises(BaseModelError, match="is not on this machine") as caught:
        find_base_model(name, workspace)
    assert f"lorapod models pull {name}" in caught.value.remedy


@pytest.mark.parametrize(
    "gone",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder",
    ],
)
def test_what_is_missing_is_named(model: Path, workspace: Workspace, gone: str) -> None:
    place = model / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(BaseModelError) as caught:
        find_base_model(str(model), workspace)
    assert gone.split("/")[0] in caught.value.why


def test_a_missing_shard_is_named(model: Path, workspace: Workspace) -> None:
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    place = model / "transformer"
    (place / "diffusion_pytorch_model.safetensors").rename(place / "part-1.safetensors")
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="not complete") as caught:
        find_base_model(str(model), workspace)
    assert "part-2.safetensors" in caught.value.why and "part-1" not in caught.value.why


def test_a_cut_off_file_is_named(model: Path, workspace: Workspace) -> None:
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(BaseModelError) as caught:
        find_base_model(str(model), workspace)
    assert "vae/diffusion_pytorch_model.safetensors (cut off)" in caught.value.why


def test_another_family_is_refused_by_name(model: Path, workspace: Workspace) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(BaseModelError) as caught:
        find_base_model(str(model), workspace)
    assert "StableDiffusion3Pipeline" in caught.value.why and "z_image" in caught.value.remedy


def test_a_transformer_of_another_class_than_the_index_says_is_refused(model: Path, workspace: Workspace) -> None:
    config = json.loads((model / "transformer/config.json").read_text())
    (model / "transformer/config.json").write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(BaseModelError, match="another family"):
        find_base_model(str(model), workspace)


def test_the_fingerprint_tells_weights_apart(model: Path, workspace: Workspace) -> None:
    base = find_base_model(str(model), workspace)
    before = base.fingerprint("transformer")
    assert before == base.fingerprint("transformer") != base.fingerprint("vae")
    weights = model / "transformer/diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base.fingerprint("transformer") != before


def in_parts(model: Path, workspace: Workspace) -> Path:
    """The model as an entry `parts`: a folder without the transformer's weights, and those in a single file."""
    single = model.parent / "transformer.safetensors"
    (model / "transformer/diffusion_pytorch_model.safetensors").rename(single)
    file = {"layout": "single-files", "part": "transformer", "local": str(single)}
    rest = {"layout": "diffusers", "part": "config", "local": str(model)}
    made = entry("parts", files=[rest, file], trainers={"builtin": {"needs": ["diffusers/config", "single-files/*"]}})
    (workspace.models / "entries").mkdir(parents=True)
    values = json.loads(made.model_dump_json(exclude_defaults=True, exclude_none=True))
    (workspace.models / "entries/parts.toml").write_text(tomlkit.dumps(values), encoding="utf-8")
    pull(entries(workspace)["parts"], None, workspace)
    return single


def test_weights_in_a_single_file_are_found_beside_a_folder(model: Path, workspace: Workspace) -> None:
    single = in_parts(model, workspace)
    base = find_base_model("parts", workspace)
    assert base.weights("transformer") == [single]
    assert [p.name for p in base.weights("vae")] == ["diffusion_pytorch_model.safetensors"]
    assert trainers_on_disk(entries(workspace)["parts"], workspace) == ["builtin"]


def test_a_single_file_that_is_cut_off_or_gone_is_named_before_anything_starts(
    model: Path, workspace: Workspace
) -> None:
    single = in_parts(model, workspace)
    single.write_bytes(single.read_bytes()[:-1])
    with pytest.raises(BaseModelError, match="not complete") as caught:
        find_base_model("parts", workspace)
    assert "transformer.safetensors (cut off)" in caught.value.why
    single.unlink()
    with pytest.raises(BaseModelError, match="not there any more"):
        find_base_model("parts", workspace)


def test_a_single_file_of_another_base_model_is_refused_before_anything_starts(
    model: Path, workspace: Workspace
) -> None:
    in_parts(model, workspace)
    place = workspace.models / "entries/parts.toml"
    wanted = 'shapes = [{layout = "single-files", part = "transformer", tensors = {"layers.9.w" = [2, 2]}}]\n'
    place.write_text(wanted + place.read_text())
    with pytest.raises(BaseModelError, match="not one of Toy") as caught:
        find_base_model("parts", workspace)
    assert "layers.9.w is missing" in caught.value.why
