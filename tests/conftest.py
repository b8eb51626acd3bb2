"""Shared test material: a tiny random base model of the real Z-Image classes, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DEMO = Path(__file__).parents[1] / "src/lorapod/demo"


def build_tiny_z_image(folder: Path) -> Path:
    """Random weights in diffusers layout; the tokenizer is the demo model's."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model/tokenizer")
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    torch.nn.init.normal_(transformer.x_pad_token, std=0.02)
    torch.nn.init.normal_(transformer.cap_pad_token, std=0.02)
    text_encoder = Qwen3Model(
        Qwen3Config(
            hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=640,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[8, 8, 8, 8], layers_per_block=1,
        latent_channels=16, norm_num_groups=4, sample_size=64, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    return folder


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
