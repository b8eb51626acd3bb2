"""Masks as weights of the loss, from the picture beside an item to the trained adapter."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from engine.test_training import KILLED, engine, events, run_folder, train
from lorapod.engine.losses import mean_over_weights, weight_of


def with_masks(recipe: Path, draw: Callable[[int], Image.Image], least: float = 0.0) -> Path:
    """The recipe with a mask beside each picture."""
    folder = recipe.parent / "masks"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(sorted((recipe.parent / "pictures").glob("*.png"))):
        draw(number).save(folder / picture.name)
    text = recipe.read_text(encoding="utf-8")
    text = text.replace("path = 'pictures'", f"path = 'pictures'\nmasks = 'masks'\nunmasked_weight = {least}")
    recipe.write_text(text, encoding="utf-8")
    return recipe


def left_half(number: int) -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return mask


def white(number: int) -> Image.Image:
    return Image.new("L", (64, 64), 255)


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "lora/zorb.safetensors")


def test_the_loss_is_a_mean_over_weights() -> None:
    torch.manual_seed(0)
    squares, weight = torch.rand(2, 3, 1, 4, 4), torch.rand(2, 1, 1, 4, 4)
    found = mean_over_weights(squares, weight).numpy()
    for item in range(2):
        e, w = squares[item].numpy().astype(np.float64), weight[item].numpy().astype(np.float64)
        assert abs(found[item] - (e * w).sum() / (w.sum() * 3)) < 1e-6
    assert torch.equal(mean_over_weights(squares, None), squares.flatten(1).mean(1))
    assert mean_over_weights(squares, torch.zeros(2, 1, 1, 4, 4)).tolist() == [0, 0], "nothing to learn is no NaN"


def test_items_without_a_mask_count_whole_beside_those_with_one() -> None:
    latents = torch.zeros(2, 4, 1, 2, 2)
    assert weight_of([{}, {}], latents) is None
    found = weight_of([{"weight": torch.full((1, 1, 2, 2), 0.5)}, {}], latents)
    assert found is not None and found[0].unique().tolist() == [0.5] and found[1].unique().tolist() == [1.0]


def test_a_mask_is_cached_at_the_size_of_the_latents_and_weighs_what_is_learnt(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    plain = run_folder(recipe_file(), workspace / "plain")
    assert train(plain, workspace).returncode == 0
    whole = run_folder(with_masks(recipe_file(name="white"), white), workspace / "white")
    assert train(whole, workspace).returncode == 0
    before = set((workspace / "cache/latents").rglob("*.safetensors"))
    half = run_folder(with_masks(recipe_file(name="half"), left_half), workspace / "half")
    ended = train(half, workspace)
    assert ended.returncode == 0, events(ended, "error")
    assert not [e for e in events(ended, "warning") if "mask" in e["message"]]
    new = [load_file(path) for path in set((workspace / "cache/latents").rglob("*.safetensors")) - before]
    assert len(new) == 6 and all(list(entry) == ["share"] for entry in new), "latents are not computed again"
    share = new[0]["share"][0, 0]
    assert share[:, : share.shape[1] // 2].eq(1).all() and share[:, share.shape[1] // 2 :].eq(0).all()
    a, b, c = adapter(plain), adapter(whole), adapter(half)
    same = max((a[key].float() - b[key].float()).abs().max().item() for key in a)
    other = max((a[key].float() - c[key].float()).abs().max().item() for key in a)
    assert other > 10 * same, "white masks change nothing, others do"


def test_a_run_with_masks_resumes_bit_for_bit_and_not_with_other_masks(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    recipe = with_masks(recipe_file(), left_half, least=0.2)
    whole = run_folder(recipe, workspace / "whole")
    assert train(whole, workspace).returncode == 0
    broken = run_folder(recipe, workspace / "broken")
    ended = engine("train", broken, "--workspace", workspace, program=(str(KILLED), "step", "3"))
    assert ended.returncode == -signal.SIGKILL
    other = run_folder(recipe, workspace / "other")
    (other / "checkpoints").mkdir()
    for checkpoint in (broken / "checkpoints").iterdir():
        (other / "checkpoints" / checkpoint.name).write_bytes(checkpoint.read_bytes())
    assert train(broken, workspace, resume=True).returncode == 0
    assert (broken / "lora/zorb.safetensors").read_bytes() == (whole / "lora/zorb.safetensors").read_bytes()
    with_masks(recipe_file(name="again"), white)
    ended = train(other, workspace, resume=True)
    assert ended.returncode != 0 and "checkpoint" in events(ended, "error")[0]["message"].lower()


def test_masks_that_are_black_all_over_are_named(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = with_masks(recipe_file(), lambda number: Image.new("L", (64, 64), 0), least=0.5)
    ended = train(run_folder(recipe, tmp_path / "workspace/run"), tmp_path / "workspace")
    assert ended.returncode == 0, events(ended, "error")
    (said,) = [e for e in events(ended, "warning") if "black all over" in e["message"]]
    assert "pictures-0.png" in said["message"]
