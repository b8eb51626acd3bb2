"""Shared test material: a tiny random base model of the real Z-Image classes, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from engine.z_image_made import build_tiny_z_image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_z_image(tmp_path_factory.mktemp("models") / "tiny-z-image")


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of small captioned pictures: `pictures("name", count)`."""

    def make(name: str = "pictures", count: int = 6, size: tuple[int, int] = (64, 64)) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i in range(count):
            picture = Image.new("RGB", size, (40 * i % 255, 90, 200 - 20 * i))
            ImageDraw.Draw(picture).ellipse([10, 10, 30 + 3 * i, 50], fill=(250, 200 - 15 * i, 30 * i % 255))
            picture.save(folder / f"{name}-{i}.png")
            (folder / f"{name}-{i}.txt").write_text(f"zorb number {i}\n", encoding="utf-8")
        return folder

    return make


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_z_image: Path, pictures: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a recipe for the tiny model: `recipe_file("extra toml")`; sections given replace the usual ones."""

    def make(*extra: str, count: int = 6, name: str = "recipe") -> Path:
        folder = tmp_path / "pictures"
        if not folder.exists():
            pictures("pictures", count)
        sections = {
            "training": "steps = 4\nbatch_size = 2\nprecision = 'fp32'\nseed = 1",
            "adapter": "rank = 4",
            "evaluation": "every = 2\nquantiles = 2",
            "previews": "prompts = ['zorb']\nwidth = 64\nheight = 64\nsteps = 2\nevery = 0",
            "saving": "checkpoint_every = 2\nformats = ['comfyui']",
            "optimizer": "learning_rate = 0.001\nwarmup_steps = 1",
        }
        for text in extra:
            head, _, body = text.strip().partition("\n")
            sections[head.strip("[]")] = body
        tables = "\n\n".join(f"[{head}]\n{body}" for head, body in sections.items())
        path = tmp_path / f"{name}.toml"
        path.write_text(
            f"name = 'zorb'\n[base_model]\nname = '{tiny_z_image}'\n\n"
            "[[datasets]]\npath = 'pictures'\nresolutions = [64]\ntrigger_word = 'zorb'\nvalidation_share = 0.34\n\n"
            + tables
            + "\n",
            encoding="utf-8",
        )
        return path

    return make
