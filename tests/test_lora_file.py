"""Reading LoRA files of every layout, and what lorapod writes into their headers."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorapod.errors import AdapterError
from lorapod.lora_file import inspect, make_reproducible
from lorapod.lora_metadata import metadata_for
from lorapod.recipe.schema import Recipe

DOWN = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)  # (r, i)
UP = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)  # (o, r)


RECIPE = """
name = "momo"
notes = "a tester"

[base_model]
name = "/models/of/someone/demo"

[[datasets]]
path = "/home/someone/private/momo"
trigger_word = "momo"
resolutions = [96, 128]

[training]
steps = 200

[adapter]
rank = 4
alpha = 2.0
"""


def metadata(text: str = RECIPE) -> dict[str, str]:
    recipe = Recipe.model_validate(tomllib.loads(text))
    return metadata_for(recipe, recipe_text=text, base_model_hash="ab" * 32, family="z_image", steps=150, items=10)


def lora(path: Path, module: str, halves: tuple[str, str], alpha: float | None = None, **metadata: str) -> Path:
    tensors = {f"{module}{halves[0]}": DOWN, f"{module}{halves[1]}": UP}
    if alpha is not None:
        tensors[f"{module}.alpha"] = np.array(alpha, dtype=np.float32)
    save_file(tensors, path, metadata or None)
    return path


AB = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


@pytest.mark.parametrize(
    ("module", "halves", "format", "family", "block"),
    [
        ("diffusion_model.layers.3.attention.to_q", AB, "comfyui", "z_image", "layers.3"),
        ("diffusion_model.noise_refiner.1.feed_forward.w1", AB, "comfyui", "z_image", "noise_refiner.1"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", AB, "diffusers", "qwen_image", "transformer_blocks.0"),
        ("transformer.single_transformer_blocks.5.attn.to_q", AB, "diffusers", "flux", "single_transformer_blocks.5"),
        ("blocks.0.attn1.to_q", AB, "diffusers", "wan", "blocks.0"),
        ("blocks.0.attn1.to_q", (".lora_A.default.weight", ".lora_B.default.weight"), "diffusers", "wan", "blocks.0"),
        ("lora_unet_blocks_12_self_attn_q", KOHYA, "kohya", "wan", "blocks.12"),
        ("lora_unet_single_blocks_7_linear1", KOHYA, "kohya", "flux", "single_blocks.7"),
        ("lora_unet_input_blocks_4_1_proj_in", KOHYA, "kohya", "sdxl", "input_blocks.4"),
        ("something.else", AB, "diffusers", None, "something"),
    ],
)
def test_each_key_layout_is_understood(
    tmp_path: Path, module: str, halves: tuple[str, str], format: str, family: str | None, block: str
) -> None:
    info = inspect(lora(tmp_path / "a.safetensors", module, halves))
    assert (info.format, info.family, list(info.block_norms)) == (format, family, [block])
    assert (info.ranks, info.alphas, info.warnings) == ([4], [4.0], ())


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (1.0, 0.25), (8.0, 2.0)])
def test_norm_is_that_of_the_scaled_product(tmp_path: Path, alpha: float | None, scale: float) -> None:
    info = inspect(lora(tmp_path / "a.safetensors", "diffusion_model.layers.0.attention.to_q", AB, alpha))
    expected = scale * float(np.linalg.norm(UP @ DOWN))
    assert info.modules[0].norm == pytest.approx(expected, rel=1e-5)
    assert info.block_norms["layers.0"] == pytest.approx(expected, rel=1e-5)


def test_block_norm_joins_its_modules_in_the_order_of_the_model(tmp_path: Path) -> None:
    names = [f"diffusion_model.layers.{i}.attention.{p}" for i in (10, 2) for p in ("to_q", "to_k")]
    save_file({f"{n}{h}": t for n in names for h, t in zip(AB, (DOWN, UP), strict=True)}, tmp_path / "a.safetensors")
    info = inspect(tmp_path / "a.safetensors")
    assert list(info.block_norms) == ["layers.2", "layers.10"]
    assert info.block_norms["layers.2"] == pytest.approx(math.sqrt(2) * np.linalg.norm(UP @ DOWN), rel=1e-5)


def test_convolutions_are_measured(tmp_path: Path) -> None:
    down, up = DOWN.reshape(4, 6, 2, 2), UP.reshape(32, 4, 1, 1)
    save_file({"lora_unet_input_blocks_0_0.lora_down.weight": down, "lora_unet_input_blocks_0_0.lora_up.weight": up},
              tmp_path / "a.safetensors")  # fmt: skip
    assert inspect(tmp_path / "a.safetensors").modules[0].norm == pytest.approx(np.linalg.norm(UP @ DOWN), rel=1e-5)


def test_bf16_is_read_without_torch(tmp_path: Path) -> None:
    def bf16(values: np.ndarray[Any, Any]) -> bytes:
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()

    a, b = bf16(DOWN), bf16(UP)
    header = {
        "layers.0.attention.to_q.lora_A.weight": {"dtype": "BF16", "shape": [4, 24], "data_offsets": [0, len(a)]},
        "layers.0.attention.to_q.lora_B.weight": {
            "dtype": "BF16", "shape": [32, 4], "data_offsets": [len(a), len(a) + len(b)],
        },
    }  # fmt: skip
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + a + b)
    info = inspect(path)
    assert info.dtypes == {"BF16": 2}
    assert info.modules[0].norm == pytest.approx(np.linalg.norm(UP @ DOWN), rel=0.01)


def test_nan_zero_and_missing_halves_are_warned_of(tmp_path: Path) -> None:
    nan = DOWN.copy()
    nan[0, 0] = np.nan
    save_file(
        {
            "layers.0.attention.to_q.lora_A.weight": nan,
            "layers.0.attention.to_q.lora_B.weight": UP,
            "layers.1.attention.to_q.lora_A.weight": DOWN,
            "layers.1.attention.to_q.lora_B.weight": UP * 0,
            "layers.2.attention.to_q.lora_A.weight": DOWN,
            "layers.3.attention.to_q.lora_A.weight": DOWN,
            "layers.3.attention.to_q.lora_B.weight": UP,
            "layers.4.attention.to_q.lora_A.weight": DOWN[:2],
            "layers.4.attention.to_q.lora_B.weight": UP,
            "layers.3.attention.to_q.dora_scale": UP[:, :1],
        },
        tmp_path / "a.safetensors",
    )
    info = inspect(tmp_path / "a.safetensors")
    joined = "\n".join(info.warnings)
    for expected in ("layers.0.attention.to_q: NaN or infinity", "layers.1.attention.to_q: all zero",
                     "layers.2.attention.to_q: only one", "layers.4.attention.to_q: halves of different ranks",
                     "dora_scale"):  # fmt: skip
        assert expected in joined
    assert all(math.isfinite(norm) for norm in info.block_norms.values())
    json.dumps(info.to_json(), allow_nan=False)


def test_other_kinds_are_measured_where_that_is_known(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def made(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    hada = {"hada_w1_a": made(12, 3), "hada_w1_b": made(3, 10), "hada_w2_a": made(12, 3), "hada_w2_b": made(3, 10)}
    lokr = {"lokr_w1": made(3, 2), "lokr_w2_a": made(4, 2), "lokr_w2_b": made(2, 5)}
    layers = {"layers.0.attention.to_q": hada, "layers.1.attention.to_q": lokr,
              "layers.2.attention.to_q": {"oft_blocks": made(3, 4, 4)}}  # fmt: skip
    tensors = {f"diffusion_model.{m}.{part}": value for m, parts in layers.items() for part, value in parts.items()}
    tensors["diffusion_model.layers.1.attention.to_q.alpha"] = np.array(1.0, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    info = inspect(tmp_path / "a.safetensors")
    norms = {module.name: module.norm for module in info.modules}
    product = (hada["hada_w1_a"] @ hada["hada_w1_b"]) * (hada["hada_w2_a"] @ hada["hada_w2_b"])
    assert norms["layers.0.attention.to_q"] == pytest.approx(np.linalg.norm(product), rel=1e-5)
    kron = np.kron(lokr["lokr_w1"], lokr["lokr_w2_a"] @ lokr["lokr_w2_b"]) / 2  # alpha / rank
    assert norms["layers.1.attention.to_q"] == pytest.approx(np.linalg.norm(kron), rel=1e-5)
    assert norms["layers.2.attention.to_q"] is None
    assert (info.format, info.family, info.warnings) == ("comfyui", "z_image", ())


def test_untrained_file_is_said_to_change_nothing(tmp_path: Path) -> None:
    save_file({"x.0.lora_A.weight": DOWN, "x.0.lora_B.weight": UP * 0}, tmp_path / "a.safetensors")
    assert "changes nothing" in inspect(tmp_path / "a.safetensors").warnings[0]


def test_layout_that_comfyui_ignores_is_warned_of(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", "lora_unet_layers_0_attention_to_q", KOHYA, 4.0)
    assert any("ComfyUI does not load" in warning for warning in inspect(path).warnings)


def test_alpha_of_a_diffusers_file_comes_from_its_metadata(tmp_path: Path) -> None:
    config = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
    path = lora(tmp_path / "a.safetensors", "transformer.layers.0.attention.to_q", AB, lora_adapter_metadata=config)
    info = inspect(path)
    assert info.alphas == [8.0]
    assert any("ComfyUI does not look" in warning for warning in info.warnings)


def write_no_safetensors(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def write_short(path: Path) -> None:
    path.write_bytes(b"abc")


def write_cut_header(path: Path) -> None:
    lora(path, "layers.0.attention.to_q", AB)
    path.write_bytes(path.read_bytes()[:40])


def write_cut_data(path: Path) -> None:
    lora(path, "layers.0.attention.to_q", AB)
    path.write_bytes(path.read_bytes()[:-10])


def write_wrong_offsets(path: Path) -> None:
    text = b'{"x.lora_A.weight":{"dtype":"F32","shape":[4,4],"data_offsets":[0,8]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))


def write_json_list(path: Path) -> None:
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


def write_base_model(path: Path) -> None:
    save_file({"layers.0.attention.to_q.weight": DOWN}, path)


def write_lokr(path: Path) -> None:
    save_file({"layers.0.attention.to_q.lokr_w1": DOWN}, path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "no LoRA file at"),
        (write_no_safetensors, "not a whole safetensors"),
        (write_short, "not a whole safetensors"),
        (write_cut_header, "ends within its header"),
        (write_cut_data, "is cut off"),
        (write_wrong_offsets, "not a whole safetensors"),
        (write_json_list, "not a whole safetensors"),
        (write_base_model, "holds no LoRA"),
        (write_lokr, "holds a LoKr"),
    ],
)
def test_what_is_no_lora_is_refused_with_a_reason(tmp_path: Path, write: Any, says: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(AdapterError) as refusal:
        inspect(path)
    assert says in str(refusal.value)
    assert refusal.value.remedy


def test_what_lorapod_writes_is_read_back(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", "diffusion_model.layers.0.attention.to_q", AB, 2.0, **metadata())
    info = inspect(path)
    assert (info.base_model, info.base_model_hash, info.family) == ("demo", "ab" * 32, "z_image")
    assert (info.trigger, info.steps) == ("momo", 150)
    assert info.recipe is not None
    assert 'name = "momo"' in info.recipe


def test_metadata_holds_what_other_tools_look_for() -> None:
    found = metadata()
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "Z-Image/lora"
    assert found["modelspec.resolution"] == "128x128"
    assert found["modelspec.trigger_phrase"] == "momo"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2.0")
    assert (found["ss_steps"], found["ss_max_train_steps"]) == ("150", "200")
    assert found["ss_num_train_images"] == "10"
    assert json.loads(found["ss_tag_frequency"]) == {"1_momo": {"momo": 10}}


def test_metadata_tells_nothing_of_the_machine_or_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/models/of/someone")
    found = metadata()
    assert found == metadata()
    assert tomllib.loads(found["lorapod.recipe"])["datasets"][0]["path"] == "momo"
    assert tomllib.loads(found["lorapod.recipe"])["base_model"]["name"] == "~/demo"
    assert "someone" not in "".join(found.values())
    assert not any("date" in key or "_at" in key for key in found)


def test_metadata_without_trigger_or_notes_has_no_empty_entries() -> None:
    found = metadata(RECIPE.replace('"a tester"', '""').replace('trigger_word = "momo"', ""))
    assert "modelspec.trigger_phrase" not in found
    assert "modelspec.usage_hint" not in found
    assert all(found.values())


def test_metadata_order_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """safetensors orders metadata by a random hash; two files written alike must be alike byte for byte."""
    one, two = (lora(tmp_path / f"{i}.safetensors", "diffusion_model.layers.0.attention.to_q", AB) for i in range(2))
    entries = list(metadata().items())
    save_file(load_file(one), one, dict(entries))
    save_file(load_file(two), two, dict(reversed(entries)))
    make_reproducible(one)
    make_reproducible(two)
    assert one.read_bytes() == two.read_bytes()
    header = one.read_bytes()[8 : 8 + int.from_bytes(one.read_bytes()[:8], "little")]
    keys = list(json.loads(header)["__metadata__"])
    assert keys == sorted(keys)
    assert np.array_equal(load_file(one)["diffusion_model.layers.0.attention.to_q.lora_A.weight"], DOWN)
    assert inspect(one).metadata["modelspec.hash_sha256"].startswith("0x")
    before = one.read_bytes()
    make_reproducible(one)
    assert one.read_bytes() == before
