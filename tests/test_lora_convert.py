"""LoRA files between key layouts: what diffusers' own loaders make of them, and what they do to the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorapod import lora_convert
from lorapod.cli.main import app
from lorapod.engine.adapter_files import read_adapter
from lorapod.engine.families.sdxl import SDXL
from lorapod.errors import AdapterError
from lorapod.lora_file import inspect
from lorapod.recipe.choices import LoraFormat

sys.path.insert(0, str(Path(__file__).parent / "engine"))
import picture_models

WIDTH = 32  # of the tiny FLUX.1


def halves(
    name: str, rows: int, columns: int, rank: int = 4, alpha: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """One layer in kohya's layout."""
    generator = torch.Generator().manual_seed(hash_of(name) + seed)
    made = {
        f"{name}.lora_down.weight": torch.randn(rank, columns, generator=generator),
        f"{name}.lora_up.weight": torch.randn(rows, rank, generator=generator),
    }
    return made | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


def hash_of(name: str) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(name))


def flux_kohya(alpha: float = 2.0, width: int = WIDTH) -> dict[str, Any]:
    """Every layer of two blocks of each kind, as sd-scripts writes them."""
    made: dict[str, Any] = {}
    for block in range(2):
        at = f"lora_unet_double_blocks_{block}"
        for stream in ("img", "txt"):
            made |= halves(f"{at}_{stream}_attn_qkv", 3 * width, width, alpha=alpha)
            made |= halves(f"{at}_{stream}_attn_proj", width, width, alpha=alpha)
            made |= halves(f"{at}_{stream}_mlp_0", 4 * width, width, alpha=alpha)
            made |= halves(f"{at}_{stream}_mlp_2", width, 4 * width, alpha=alpha)
            made |= halves(f"{at}_{stream}_mod_lin", 6 * width, width, alpha=alpha)
        at = f"lora_unet_single_blocks_{block}"
        made |= halves(f"{at}_linear1", 7 * width, width, alpha=alpha)
        made |= halves(f"{at}_linear2", width, 5 * width, alpha=alpha)
        made |= halves(f"{at}_modulation_lin", 3 * width, width, alpha=alpha)
    return made


def added(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What a LoRA file adds to each weight, in diffusers' names."""
    return {
        f"{layer.component}.{layer.module}": layer.scale
        * layer.up.reshape(-1, layer.rank)
        @ layer.down.reshape(layer.rank, -1)
        for layer in lora_convert.read(path).layers
    }


def same_effect(one: Path, other: Path) -> bool:
    a, b = added(one), added(other)
    return a.keys() == b.keys() and all(np.allclose(a[key], b[key], atol=1e-4) for key in a)


def weights_with(folder: Path, lora: Path, part: str = "transformer") -> dict[str, torch.Tensor]:
    """The denoiser's weights after diffusers has loaded a LoRA file and merged it."""
    pipe = picture_models.pipeline_of(folder)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(components=[part])
    pipe.unload_lora_weights()
    return {name: value.detach().clone() for name, value in getattr(pipe, part).state_dict().items()}


def test_fused_layers_are_cut_as_diffusers_cuts_them(tmp_path: Path) -> None:
    """At full size, since diffusers' own converter knows no other."""
    from diffusers import FluxPipeline

    made = flux_kohya(width=3072)
    save_file(made, tmp_path / "kohya.safetensors")
    lora_convert.convert(tmp_path / "kohya.safetensors", tmp_path / "out.safetensors", LoraFormat.DIFFUSERS)
    theirs = FluxPipeline.lora_state_dict(dict(made))
    ours = load_file(tmp_path / "out.safetensors")
    assert ours.keys() == theirs.keys()
    generator = torch.Generator().manual_seed(5)
    for key, down in ours.items():
        if key.endswith("lora_A.weight"):
            probe = torch.randn(down.shape[1], generator=generator)
            up = key.replace("lora_A", "lora_B")
            torch.testing.assert_close(
                ours[up] @ (down @ probe), theirs[up] @ (theirs[key] @ probe), atol=1e-2, rtol=1e-4
            )


def test_a_converted_file_draws_what_its_layers_add(tmp_path: Path) -> None:
    folder = picture_models.build_flux(tmp_path / "model")
    save_file(flux_kohya(), tmp_path / "kohya.safetensors")
    lora_convert.convert(tmp_path / "kohya.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI)
    given = load_file(tmp_path / "kohya.safetensors")
    plain = picture_models.pipeline_of(folder).transformer.state_dict()
    found = weights_with(folder, tmp_path / "out.safetensors")
    fused = "lora_unet_single_blocks_1_linear1.lora_"
    whole = given[f"{fused}up.weight"] @ given[f"{fused}down.weight"] / 2  # alpha 2 at rank 4
    at = "single_transformer_blocks.1"
    rows = [
        found[f"{at}.{n}.weight"] - plain[f"{at}.{n}.weight"]
        for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-4, rtol=1e-4)
    changed = sum(not torch.equal(plain[name], value) for name, value in found.items())
    assert changed == 2 * (8 + 4 + 2) + 2 * (3 + 1 + 1 + 1)


def test_there_and_back_is_the_same_file(tmp_path: Path) -> None:
    save_file(flux_kohya(), tmp_path / "a.safetensors")
    lora_convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", LoraFormat.DIFFUSERS)
    lora_convert.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", LoraFormat.KOHYA)
    first, last = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "c.safetensors")
    assert first.keys() == last.keys()
    assert all(first[key].shape == last[key].shape for key in first)  # ranks have not grown
    assert same_effect(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_separate_layers_are_fused_at_the_sum_of_their_ranks(tmp_path: Path) -> None:
    at = "transformer.single_transformer_blocks.0"
    made = {}
    for number, (name, rows) in enumerate({"attn.to_q": WIDTH, "attn.to_v": WIDTH, "proj_mlp": 4 * WIDTH}.items()):
        made[f"{at}.{name}.lora_A.weight"] = torch.randn(2 + number, WIDTH)
        made[f"{at}.{name}.lora_B.weight"] = torch.randn(rows, 2 + number)
    save_file(made, tmp_path / "a.safetensors")
    lora_convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", LoraFormat.KOHYA)
    found = load_file(tmp_path / "b.safetensors")
    assert found["lora_unet_single_blocks_0_linear1.lora_down.weight"].shape == (2 + 3 + 4, WIDTH)
    whole = (
        found["lora_unet_single_blocks_0_linear1.lora_up.weight"]
        @ found["lora_unet_single_blocks_0_linear1.lora_down.weight"]
    )
    parts = added(tmp_path / "a.safetensors")
    q, v, mlp = (
        parts[f"denoiser.single_transformer_blocks.0.{name}"] for name in ("attn.to_q", "attn.to_v", "proj_mlp")
    )
    np.testing.assert_allclose(whole, np.concatenate([q, np.zeros_like(q), v, mlp]), atol=1e-5)


def test_z_image_of_diffusion_pipe_is_cut_so_that_diffusers_loads_it(tmp_path: Path, tiny_z_image: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    at = "diffusion_model.layers.0.attention"
    save_file(
        {f"{at}.qkv.lora_A.weight": torch.randn(4, 32, generator=generator),
         f"{at}.qkv.lora_B.weight": torch.randn(96, 4, generator=generator),
         f"{at}.out.lora_A.weight": torch.randn(4, 32, generator=generator),
         f"{at}.out.lora_B.weight": torch.randn(32, 4, generator=generator)},
        tmp_path / "pipe.safetensors",
    )  # fmt: skip
    lora_convert.convert(tmp_path / "pipe.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI)
    given = load_file(tmp_path / "pipe.safetensors")
    delta = given[f"{at}.qkv.lora_B.weight"] @ given[f"{at}.qkv.lora_A.weight"]
    plain = picture_models.pipeline_of(tiny_z_image).transformer.state_dict()
    found = weights_with(tiny_z_image, tmp_path / "out.safetensors")
    for number, part in enumerate("qkv"):
        name = f"layers.0.attention.to_{part}.weight"
        torch.testing.assert_close(
            found[name] - plain[name], delta[32 * number : 32 * (number + 1)], atol=1e-4, rtol=1e-4
        )
    with pytest.raises(AdapterError, match="no kohya layout"):
        lora_convert.convert(tmp_path / "out.safetensors", tmp_path / "k.safetensors", LoraFormat.KOHYA)
    assert not (tmp_path / "k.safetensors").exists()


def test_sdxl_under_the_names_of_the_original_checkpoint_comes_under_diffusers(tmp_path: Path) -> None:
    attention = "transformer_blocks_0_attn1_to_q"
    blocks = {
        "input_blocks_4_1": "down_blocks.1.attentions.0", "input_blocks_8_1": "down_blocks.2.attentions.1",
        "middle_block_1": "mid_block.attentions.0", "output_blocks_2_1": "up_blocks.0.attentions.2",
        "output_blocks_5_1": "up_blocks.1.attentions.2",
    }  # fmt: skip
    known = {f"{original}_{attention}": block for original, block in blocks.items()}
    full = {name for name, _ in picture_models.full_size("sdxl").named_modules()}
    made: dict[str, Any] = {}
    for name in known:
        made |= halves(f"lora_unet_{name}", 64, 64, alpha=1.0)
    made |= halves("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 32, 32, alpha=1.0)
    save_file(made, tmp_path / "sgm.safetensors")
    lora_convert.convert(tmp_path / "sgm.safetensors", tmp_path / "out.safetensors", LoraFormat.DIFFUSERS)
    keys = load_file(tmp_path / "out.safetensors")
    for block in known.values():
        assert f"unet.{block}.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
        assert f"{block}.transformer_blocks.0.attn1.to_q" in full
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert len(keys) == 2 * (len(known) + 1)
    lora_convert.convert(tmp_path / "out.safetensors", tmp_path / "back.safetensors", LoraFormat.COMFYUI)
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in load_file(
        tmp_path / "back.safetensors"
    )
    assert same_effect(tmp_path / "sgm.safetensors", tmp_path / "back.safetensors")


@pytest.mark.parametrize("name", [
    "lora_te1_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1",
])  # fmt: skip
def test_a_text_encoders_layers_have_one_name_whatever_version_of_transformers_wrote_them(
    tmp_path: Path, name: str
) -> None:
    made = halves("lora_unet_down_blocks_1_attentions_0_proj_in", 64, 64) | halves(name, 37, 32)
    save_file(made, tmp_path / "theirs.safetensors")
    lora_convert.convert(tmp_path / "theirs.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI)
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in load_file(tmp_path / "out.safetensors")
    file = read_adapter(tmp_path / "theirs.safetensors", SDXL())
    assert set(file.layers) == {
        "down_blocks.1.attentions.0.proj_in",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    }
    assert list(inspect(tmp_path / "theirs.safetensors").block_norms) == ["down_blocks.1", "text_encoder.layers.0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_and_metadata_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    made = {k: v.to(dtype) for k, v in halves("lora_unet_blocks_0_self_attn_q", 24, 24, alpha=2.0).items()}
    save_file(made, tmp_path / "wan.safetensors", metadata={"ss_learning_rate": "1e-4", "ss_steps": "7"})
    lora_convert.convert(tmp_path / "wan.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata()["ss_learning_rate"] == "1e-4"
        assert torch.equal(file.get_tensor("diffusion_model.blocks.0.self_attn.q.lora_A.weight"),
                           made["lora_unet_blocks_0_self_attn_q.lora_down.weight"])  # fmt: skip
    lora_convert.convert(tmp_path / "wan.safetensors", tmp_path / "diffusers.safetensors", LoraFormat.DIFFUSERS)
    found = load_file(tmp_path / "diffusers.safetensors")["transformer.blocks.0.attn1.to_q.lora_B.weight"]
    assert found.dtype is dtype and torch.equal(found, made["lora_unet_blocks_0_self_attn_q.lora_up.weight"] / 2)


def test_rounding_to_bfloat16_is_torchs(tmp_path: Path) -> None:
    values = torch.randn(1000, 4, generator=torch.Generator().manual_seed(2)) * 3
    tensors = {"x.lora_A.weight": (values.numpy(), "BF16")}
    lora_convert.write_tensors(tmp_path / "x.safetensors", tensors, {})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x.lora_A.weight"], values.bfloat16())


def test_what_would_change_is_refused(tmp_path: Path) -> None:
    made = halves("lora_unet_double_blocks_0_img_attn_qkv", 96, 32)
    wrong = {
        "columns": made | {"lora_unet_double_blocks_0_img_attn_qkv.dora_scale": torch.ones(1, 32)},
        "final": made | halves("lora_unet_final_layer_adaLN_modulation_1", 64, 32),
        "more": made | {"lora_unet_double_blocks_0_img_attn_qkv.diff": torch.ones(96, 32)},
        "lokr": {
            "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(12, 4),
            "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w2": torch.ones(8, 8),
        },
    }
    said = {
        "columns": "not of the layer's rows",
        "final": "final_layer.adaLN_modulation.1",
        "more": "more than",
        "lokr": "qkv",
    }
    for name, tensors in wrong.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(AdapterError, match=said[name]):
            lora_convert.convert(
                tmp_path / f"{name}.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI, "flux"
            )
    assert not (tmp_path / "out.safetensors").exists()


def test_a_dora_goes_with_the_rows_of_its_layers(tmp_path: Path) -> None:
    """kohya's fused FLUX.1 into diffusers' parts and back."""
    key, lengths = "lora_unet_double_blocks_0_img_attn_qkv", torch.arange(96.0)[:, None]
    save_file(halves(key, 96, 32) | {f"{key}.dora_scale": lengths}, tmp_path / "dora.safetensors")
    lora_convert.convert(tmp_path / "dora.safetensors", tmp_path / "parts.safetensors", LoraFormat.DIFFUSERS, "flux")
    parts = load_file(tmp_path / "parts.safetensors")
    stem = "transformer.transformer_blocks.0.attn"
    assert torch.equal(parts[f"{stem}.to_k.lora_magnitude_vector"], torch.arange(32.0, 64.0))
    lora_convert.convert(tmp_path / "parts.safetensors", tmp_path / "back.safetensors", LoraFormat.KOHYA, "flux")
    assert torch.equal(load_file(tmp_path / "back.safetensors")[f"{key}.dora_scale"], lengths)
    del parts[f"{stem}.to_v.lora_magnitude_vector"]
    save_file(parts, tmp_path / "some.safetensors")
    with pytest.raises(AdapterError, match=r"img_attn\.qkv cannot be converted"):
        lora_convert.convert(tmp_path / "some.safetensors", tmp_path / "x.safetensors", LoraFormat.KOHYA, "flux")


WHOLE = {
    "lokr_w1": torch.arange(16.0).view(4, 4), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 8),
    "alpha": torch.tensor(1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "comfyui", "kohya"),
    [
        ("sdxl", "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
        (
            "qwen_image",
            "diffusion_model.transformer_blocks.0.img_mlp.net.2",
            "lora_unet_transformer_blocks_0_img_mlp_net_2",
        ),
        ("wan", "diffusion_model.blocks.0.cross_attn.k_img", "lora_unet_blocks_0_cross_attn_k_img"),
        ("flux", "transformer.transformer_blocks.0.attn.to_out.0", "lora_unet_double_blocks_0_img_attn_proj"),
    ],
)
def test_a_lokr_is_renamed_both_ways(tmp_path: Path, family: str, comfyui: str, kohya: str) -> None:
    save_file({f"{comfyui}.{part}": value for part, value in WHOLE.items()}, tmp_path / "a.safetensors")
    lora_convert.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", LoraFormat.KOHYA, family)
    lora_convert.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", LoraFormat.COMFYUI, family)
    for path, key in (("b", kohya), ("c", comfyui)):
        found = load_file(tmp_path / f"{path}.safetensors")
        assert found.keys() == {f"{key}.{part}" for part in WHOLE}
        assert all(torch.equal(found[f"{key}.{part}"], value) for part, value in WHOLE.items())
    with pytest.raises(AdapterError, match="no layout of diffusers"):
        lora_convert.convert(tmp_path / "a.safetensors", tmp_path / "d.safetensors", LoraFormat.DIFFUSERS, family)
    with pytest.raises(AdapterError, match="holds a LoKr"):  # what computes with a LoRA's halves
        lora_convert.read(tmp_path / "a.safetensors", family)


def test_the_command_writes_beside_the_file_and_never_over_one(tmp_path: Path) -> None:
    save_file(flux_kohya(), tmp_path / "mine.safetensors")
    before = (tmp_path / "mine.safetensors").read_bytes()
    ended = CliRunner().invoke(app, ["lora", "convert", str(tmp_path / "mine.safetensors"), "--to", "diffusers"])
    assert ended.exit_code == 0 and "flux" in ended.output
    assert same_effect(tmp_path / "mine.safetensors", tmp_path / "mine-diffusers.safetensors")
    again = CliRunner().invoke(app, ["lora", "convert", str(tmp_path / "mine.safetensors"), "--to", "diffusers"])
    assert again.exit_code != 0
    assert (tmp_path / "mine.safetensors").read_bytes() == before


def test_musubis_file_for_flux2_adds_to_each_layer_what_it_was_trained_as(tmp_path: Path) -> None:
    """Names as its `networks.lora_flux_2` writes them for a model of one block of each kind."""
    folder = picture_models.build_flux2(tmp_path / "model")
    plain = picture_models.pipeline_of(folder).transformer.state_dict()
    width = plain["transformer_blocks.0.attn.to_q.weight"].shape[0]
    inner = plain["transformer_blocks.0.ff.linear_out.weight"].shape[1]
    made: dict[str, Any] = {}
    for stream in ("img", "txt"):
        at = f"lora_unet_double_blocks_0_{stream}"
        made |= halves(f"{at}_attn_qkv", 3 * width, width, alpha=2.0) | halves(
            f"{at}_attn_proj", width, width, alpha=2.0
        )
        made |= halves(f"{at}_mlp_0", 2 * inner, width, alpha=2.0) | halves(f"{at}_mlp_2", width, inner, alpha=2.0)
    made |= halves("lora_unet_single_blocks_0_linear1", 3 * width + 2 * inner, width, alpha=2.0)
    made |= halves("lora_unet_single_blocks_0_linear2", width, width + inner, alpha=2.0)
    save_file(made, tmp_path / "musubi.safetensors", {"modelspec.architecture": "Flux.2-klein-4b/lora"})
    assert inspect(tmp_path / "musubi.safetensors").family == "flux2"
    lora_convert.convert(tmp_path / "musubi.safetensors", tmp_path / "out.safetensors", LoraFormat.COMFYUI)
    found = weights_with(folder, tmp_path / "out.safetensors")

    def whole(name: str) -> torch.Tensor:
        return made[f"lora_unet_{name}.lora_up.weight"] @ made[f"lora_unet_{name}.lora_down.weight"] / 2

    for name, parts in {
        "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
        "double_blocks_0_txt_attn_qkv": [f"transformer_blocks.0.attn.add_{each}_proj" for each in "qkv"],
        "double_blocks_0_txt_mlp_0": ["transformer_blocks.0.ff_context.linear_in"],
        "single_blocks_0_linear1": ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"],
        "single_blocks_0_linear2": ["single_transformer_blocks.0.attn.to_out"],
    }.items():
        changed = [found[f"{part}.weight"] - plain[f"{part}.weight"] for part in parts]
        torch.testing.assert_close(torch.cat(changed), whole(name), atol=1e-4, rtol=1e-4)
    others = [key for key in plain if not torch.equal(plain[key], found[key]) and "_blocks.0." not in key]
    assert not others
