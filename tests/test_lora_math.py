"""LoRA files at another rank, merged and compared, against the full products written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from lorapod import lora_convert
from lorapod.cli.main import app
from lorapod.errors import AdapterError

AT = "lora_unet_transformer_blocks_0_"
SHAPES = {f"{AT}attn_to_q": (24, 16), f"{AT}img_mlp_net_0_proj": (48, 16)}


def write(path: Path, rank: int, seed: int, alpha: float = 3.0, shapes: dict[str, Any] = SHAPES) -> dict[str, Any]:
    """A Qwen-Image LoRA; returns what it adds to each layer."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    added = {}
    for name, (rows, columns) in shapes.items():
        down, up = (random.normal(size=size).astype(np.float32) for size in ((rank, columns), (rows, rank)))
        tensors |= {f"{name}.lora_down.weight": (down, "F32"), f"{name}.lora_up.weight": (up, "F32"),
                    f"{name}.alpha": (np.array(alpha, np.float32), "F32")}  # fmt: skip
        added[name.removeprefix("lora_unet_")] = alpha / rank * up @ down
    lora_convert.write_tensors(path, tensors, {"ss_network_dim": str(rank)})
    return added


def read(path: Path) -> dict[str, Any]:
    return {x.module.replace(".", "_"): x.scale * x.up @ x.down for x in lora_convert.read(path).layers}


def lorapod_lora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["lora", *map(str, arguments)])


def run(*arguments: str | Path) -> str:
    ended = CliRunner().invoke(app, ["lora", *map(str, arguments)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_resizing_gives_the_nearest_of_that_rank(tmp_path: Path) -> None:
    added = write(tmp_path / "a.safetensors", 6, 1)
    said = run("resize", tmp_path / "a.safetensors", "--rank", "2", "-o", tmp_path / "b.safetensors")
    kept = whole = 0.0
    for name, found in read(tmp_path / "b.safetensors").items():
        left, values, right = np.linalg.svd(added[name])
        np.testing.assert_allclose(found, (left[:, :2] * values[:2]) @ right[:2], atol=1e-4)
        kept, whole = kept + (values[:2] ** 2).sum(), whole + (values**2).sum()
    assert f"{kept / whole:.1%}" in said
    assert {layer.rank for layer in lora_convert.read(tmp_path / "b.safetensors").layers} == {2}
    assert "ss_network_dim" not in lora_convert.read(tmp_path / "b.safetensors").metadata


def test_a_rank_that_is_no_lower_changes_nothing(tmp_path: Path) -> None:
    added = write(tmp_path / "a.safetensors", 4, 1)
    said = run("resize", tmp_path / "a.safetensors", "--rank", "9", "--to", "kohya")
    assert "rank 4 (its own" in said and "100.0%" in said
    for name, found in read(tmp_path / "a-rank9.safetensors").items():
        np.testing.assert_allclose(found, added[name], atol=1e-4)


def test_merging_adds_each_at_its_strength_and_keeps_layers_of_one_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", 3, 1)
    second = write(tmp_path / "b.safetensors", 5, 2, shapes={f"{AT}attn_to_q": (24, 16), f"{AT}attn_to_k": (24, 16)})
    run(
        "merge",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        "-s",
        "0.5",
        "-s",
        "-2",
        "-o",
        tmp_path / "c.safetensors",
        "--family",
        "qwen_image",
    )
    found = read(tmp_path / "c.safetensors")
    q, k, mlp = (f"transformer_blocks_0_{name}" for name in ("attn_to_q", "attn_to_k", "img_mlp_net_0_proj"))
    np.testing.assert_allclose(found[q], 0.5 * first[q] - 2 * second[q], atol=1e-4)
    np.testing.assert_allclose(found[k], -2 * second[k], atol=1e-4)
    np.testing.assert_allclose(found[mlp], 0.5 * first[mlp], atol=1e-4)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", 3, 1)
    write(tmp_path / "b.safetensors", 3, 1, shapes={**SHAPES, f"{AT}attn_to_q": (24, 32)})
    write(tmp_path / "wan.safetensors", 3, 1, shapes={"lora_unet_blocks_0_self_attn_q": (24, 16)})
    for other, extra in (("b", []), ("wan", []), ("a", ["-s", "1"])):
        files = [str(tmp_path / f"{name}.safetensors") for name in ("a", other)]
        ended = CliRunner().invoke(app, ["lora", "merge", *files, *extra, "-o", str(tmp_path / "c.safetensors")])
        assert ended.exit_code != 0
    assert not (tmp_path / "c.safetensors").exists()
    compared = lorapod_lora("compare", tmp_path / "a.safetensors", tmp_path / "wan.safetensors")
    assert isinstance(compared.exception, AdapterError) and "different base models" in str(compared.exception)


@pytest.mark.parametrize("command", ["convert", "resize", "merge", "compare"])
def test_a_lora_that_holds_nan_is_refused(tmp_path: Path, command: str) -> None:
    write(tmp_path / "whole.safetensors", 3, 1)
    tensors = load_file(tmp_path / "whole.safetensors")
    tensors[f"{AT}attn_to_q.lora_up.weight"][1, 1] = np.nan
    save_file(tensors, tmp_path / "a.safetensors")
    rest = {"resize": ["--rank", "2"], "merge": ["-o", tmp_path / "out.safetensors"], "convert": []}
    more = rest.get(command, [tmp_path / "whole.safetensors"])
    ended = lorapod_lora(command, tmp_path / "a.safetensors", *more)
    assert isinstance(ended.exception, AdapterError) and "attn_to_q" in ended.exception.why
    assert {path.name for path in tmp_path.iterdir()} == {"whole.safetensors", "a.safetensors"}


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_comparing_is_the_cosine_of_what_is_added(tmp_path: Path, seeds: tuple[int, int]) -> None:
    first, second = (
        write(tmp_path / "a.safetensors", 3, seeds[0]),
        write(tmp_path / "b.safetensors", 3, seeds[1], alpha=6),
    )
    said = json.loads(run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json"))
    for row in said["layers"]:
        a, b = (each[row["module"].replace(".", "_")].ravel() for each in (first, second))
        assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        assert row["norms"] == pytest.approx([np.linalg.norm(a), np.linalg.norm(b)], rel=1e-5)
    whole = [np.concatenate([each[name].ravel() for name in sorted(first)]) for each in (first, second)]
    assert said["cosine"] == pytest.approx(whole[0] @ whole[1] / np.prod([np.linalg.norm(x) for x in whole]), abs=1e-5)
    assert "Least alike" in run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
