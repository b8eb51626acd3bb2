"""Recipes rendered for diffusion-pipe: what each base model's files say, what is refused, and the command line for it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorapod import recipe as recipes
from lorapod.cli.main import app
from lorapod.errors import BaseModelError, RequestError
from lorapod.models import catalogue
from lorapod.recipe import Recipe
from lorapod.trainers import diffusion_pipe, renderers
from lorapod.trainers.rendering import RenderContext, Rendering, View
from lorapod.workspace import Workspace

ALL = [name for name, entry in catalogue().items() if "diffusion-pipe" in entry.trainers]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


class Renderings:
    """Renders recipes of one base model, written with further lines."""

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self.folder, self.workspace = folder, workspace

    def recipe(self, model: str, *settings: str) -> Recipe:
        file = self.folder / "recipe.toml"
        file.write_text(
            f'name = "cat"\ntrainer = "diffusion-pipe"\n[base_model]\nname = "{model}"\n[[datasets]]\npath = "data"\n'
        )
        return recipes.load(file, settings, check_paths=False)

    def context(self, recipe: Recipe, gpus: int = 1) -> RenderContext:
        entry = renderers.find_entry(recipe, self.workspace)
        return renderers.make_context(recipe, entry, self.workspace, self.folder / "out", assume_files=True, gpus=gpus)

    def rendering(self, model: str, *settings: str, own: dict[str, Any] | None = None, gpus: int = 1) -> Rendering:
        recipe = self.recipe(model, *settings)
        return diffusion_pipe.render(recipe, catalogue()[model], self.context(recipe, gpus), own)

    def files(self, model: str, *settings: str, own: dict[str, Any] | None = None) -> dict[str, Any]:
        return {str(f.path): tomllib.loads(f.text) for f in self.rendering(model, *settings, own=own).files}

    def main(self, model: str, *settings: str, own: dict[str, Any] | None = None) -> dict[str, Any]:
        table: dict[str, Any] = self.files(model, *settings, own=own)["train.toml"]
        return table


@pytest.fixture
def renderings(tmp_path: Path, workspace: Workspace) -> Renderings:
    return Renderings(tmp_path, workspace)


def model(renderings: Renderings, name: str, *settings: str) -> dict[str, Any]:
    """[model], with paths below the models of the workspace."""
    table = renderings.main(name, *settings)["model"]
    folder = f"{renderings.workspace.models / name}/"
    return {key: value.replace(folder, "") if isinstance(value, str) else value for key, value in table.items()}


WAN = {"type": "wan", "ckpt_path": "original", "dtype": "bfloat16", "timestep_sample_method": "logit_normal"}
ENCODER = "single-files/text_encoders/umt5_xxl_fp16.safetensors"
WEIGHTS = "single-files/diffusion_models"


def test_flux_reads_the_diffusers_folder_in_float8_with_its_own_shift(renderings: Renderings) -> None:
    assert model(renderings, "flux-dev") == {
        "type": "flux", "diffusers_path": "diffusers", "dtype": "bfloat16", "transformer_dtype": "float8",
        "timestep_sample_method": "logit_normal", "flux_shift": True,
    }  # fmt: skip


def test_sdxl_reads_one_checkpoint_and_leaves_the_text_encoders_alone(renderings: Renderings) -> None:
    table = model(renderings, "sdxl")
    assert table.pop("checkpoint_path").startswith("single-files/checkpoints/")
    assert table == {
        "type": "sdxl", "dtype": "bfloat16", "min_snr_gamma": 5.0, "text_encoder_1_lr": 0.0, "text_encoder_2_lr": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "more"),
    [
        ("wan2.1-t2v-1.3b", "wan2.1_t2v_1.3B_fp16.safetensors", {"shift": 3.0}),
        ("wan2.1-t2v-14b", "wan2.1_t2v_14B_bf16.safetensors", {"shift": 3.0, "transformer_dtype": "float8"}),
        ("wan2.1-i2v-14b-480p", "wan2.1_i2v_480p_14B_bf16.safetensors", {"shift": 3.0, "transformer_dtype": "float8"}),
        (
            "wan2.2-t2v-a14b-high",
            "wan2.2_t2v_high_noise_14B_fp16.safetensors",
            {"shift": 5.0, "transformer_dtype": "float8", "min_t": 0.875, "max_t": 1.0},
        ),
        (
            "wan2.2-i2v-a14b-low",
            "wan2.2_i2v_low_noise_14B_fp16.safetensors",
            {"shift": 5.0, "transformer_dtype": "float8", "min_t": 0.0, "max_t": 0.9},
        ),
        ("wan2.2-ti2v-5b", "wan2.2_ti2v_5B_fp16.safetensors", {"shift": 5.0}),
    ],
)
def test_wan_reads_its_original_folder_and_single_files(
    renderings: Renderings, name: str, file: str, more: dict[str, Any]
) -> None:
    made = model(renderings, name, "base_model.name=" + name)
    assert made == {**WAN, "transformer_path": f"{WEIGHTS}/{file}", "llm_path": ENCODER, **more}


def test_both_experts_are_two_trainings_of_one_cache(renderings: Renderings) -> None:
    rendering = renderings.rendering("wan2.2-t2v-a14b")
    assert [stage.name for stage in rendering.stages] == ["cache", "train-high", "train-low"]
    files = renderings.files("wan2.2-t2v-a14b")
    high, low = files["train-high.toml"], files["train-low.toml"]
    assert (high["model"]["min_t"], high["model"]["max_t"]) == (0.875, 1.0)
    assert (low["model"]["min_t"], low["model"]["max_t"]) == (0.0, 0.875)
    assert "high_noise" in high["model"]["transformer_path"] and "low_noise" in low["model"]["transformer_path"]
    assert high["dataset"] == low["dataset"] and high["output_dir"] != low["output_dir"]
    only = renderings.rendering("wan2.2-i2v-a14b", "base_model.expert=low")
    assert [stage.name for stage in only.stages] == ["cache", "train-low"]
    assert tomllib.loads(only.files[1].text)["model"]["max_t"] == 0.9


def test_qwen_image_gets_the_diffusers_vae_and_its_own_shift_as_a_number(renderings: Renderings) -> None:
    table = model(renderings, "qwen-image")
    # mu on the line of Qwen-Image's scheduler at 1024 pixels: 4,096 tokens between 256 (0.5) and 8,192 (0.9).
    assert table.pop("shift") == pytest.approx(2.0008, abs=1e-3)
    assert table == {
        "type": "qwen_image", "transformer_path": f"{WEIGHTS}/qwen_image_bf16.safetensors",
        "text_encoder_path": "single-files/text_encoders/qwen_2.5_vl_7b.safetensors",
        "vae_path": "single-files/vae/qwen_image_vae_diffusers.safetensors", "dtype": "bfloat16",
        "transformer_dtype": "float8", "timestep_sample_method": "logit_normal",
    }  # fmt: skip


def test_z_image_turbo_merges_its_training_adapter(renderings: Renderings) -> None:
    table = renderings.main("z-image-turbo")["model"]
    folder = renderings.workspace.models / "z-image-turbo" / "single-files"
    assert table["diffusion_model"] == str(folder / "diffusion_models/z_image_turbo_bf16.safetensors")
    assert table["text_encoders"] == [{"path": str(folder / "text_encoders/qwen_3_4b.safetensors"), "type": "lumina2"}]
    (adapter,) = table["merge_adapters"]
    assert adapter.startswith(str(folder)) and adapter.endswith("zimage_turbo_training_adapter_v2.safetensors")
    assert "diffusion_model_dtype" not in table
    own = renderings.main("z-image-turbo", "base_model.training_adapter=/a/mine.safetensors")
    assert own["model"]["merge_adapters"] == ["/a/mine.safetensors"]
    assert "merge_adapters" not in renderings.main("z-image-turbo", "base_model.training_adapter=none")["model"]
    assert "merge_adapters" not in renderings.main("z-image")["model"]


@pytest.mark.parametrize("name", ALL)
def test_every_base_model_has_what_diffusion_pipe_finds_missing_only_after_hours(
    renderings: Renderings, name: str
) -> None:
    rendering = renderings.rendering(name)
    for file in rendering.files[1:]:
        main = tomllib.loads(file.text)
        assert {"output_dir", "dataset", "epochs", "checkpoint_every_n_minutes", "optimizer", "adapter"} <= set(main)
        assert main["max_steps"] <= main["epochs"] and main["steps_per_print"] == 1
        assert any(key.startswith("save_every") for key in main)
        assert "alpha" not in main["adapter"] and "monitoring" not in main
    dataset = tomllib.loads(rendering.files[0].text)
    assert {"resolutions", "min_ar", "max_ar", "num_ar_buckets"} <= set(dataset)
    assert ("frame_buckets" in dataset) == (catalogue()[name].modality == "clip")


def test_the_optimizer_adapter_and_lengths_are_those_of_the_recipe(renderings: Renderings) -> None:
    settings = ("adapter.rank=8", "adapter.dropout=0.1", "training.accumulation=4", "saving.lora_every=50")
    main = renderings.main("z-image", *settings, "training.epochs=7", "optimizer.schedule=cosine")
    assert main["adapter"]["rank"] == 8 and main["adapter"]["dropout"] == 0.1
    assert main["epochs"] == 7 and "max_steps" not in main and main["lr_scheduler"] == "cosine"
    assert main["gradient_accumulation_steps"] == 4 and main["save_every_n_steps"] == 50
    assert main["optimizer"] == {
        "type": "adamw_optimi", "lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.01, "eps": 1e-8
    }  # fmt: skip
    eight = renderings.main("z-image", "optimizer.kind=adamw-8bit")["optimizer"]
    assert eight["type"] == "AdamW8bitKahan" and eight["stabilize"] is False
    prodigy = renderings.main("z-image", "optimizer.kind=prodigy", "optimizer.learning_rate=1.0")["optimizer"]
    assert prodigy["type"] == "Prodigy" and prodigy["lr"] == 1.0


def test_all_of_the_two_files_of_a_run(renderings: Renderings) -> None:
    run = renderings.workspace.runs / "cat"
    files = renderings.files("wan2.1-t2v-1.3b", "datasets.0.caption_dropout=0.1", "saving.precision=fp32")
    for table in ("model", "adapter", "optimizer"):
        del files["train.toml"][table]
    assert files == {
        "train.toml": {
            "output_dir": str(run / "output"),
            "dataset": str(renderings.folder / "out" / "dataset.toml"),
            "epochs": 2000,
            "max_steps": 2000,
            "micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "pipeline_stages": 1,
            "activation_checkpointing": True,
            "lr_scheduler": "constant",
            "warmup_steps": 20,
            "uncond_fraction": 0.1,
            "video_clip_mode": "single_beginning",
            "save_every_n_epochs": 2000,
            "checkpoint_every_n_minutes": 30,
            "save_dtype": "float32",
            "caching_batch_size": 1,
            "steps_per_print": 1,
        },
        "dataset.toml": {
            "resolutions": [480],
            "enable_ar_bucket": True,
            "min_ar": 0.5,
            "max_ar": 2.0,
            "num_ar_buckets": 7,
            "frame_buckets": [1, 33],
            "skip_empty_caption": False,
            "directory": [
                {"path": str(run / "data" / "0"), "num_repeats": 1, "resolutions": [480], "frame_buckets": [1, 33]}
            ],
        },
    }


def test_lokr_and_adapters_merged_into_flux(renderings: Renderings) -> None:
    lokr = renderings.main("z-image", "adapter.kind=lokr")["adapter"]
    assert lokr["type"] == "lokr" and "dropout" not in lokr
    settings = ("base_model.training_adapter=/a.safetensors", "base_model.training_adapter_strength=0.5")
    flux = renderings.main("flux-dev", *settings)["adapter"]
    assert flux["fuse_adapters"] == [{"path": "/a.safetensors", "weight": 0.5}]


def test_what_is_done_otherwise_than_the_recipe_says_is_noted(renderings: Renderings) -> None:
    def notes(name: str, *settings: str, own: dict[str, Any] | None = None) -> str:
        return "\n".join(renderings.rendering(name, *settings, own=own).notes)

    plain = notes("z-image", "saving.checkpoint_every=0", "datasets.0.validation_share=0")
    assert "no previews" in plain and "Checkpoints" not in plain and "float8" not in plain and "held" not in plain
    assert "every 30 minutes" in notes("z-image") and "no items out" in notes("z-image")
    assert "A step takes 8 items" in notes("z-image", "training.batch_size=2", "training.accumulation=4")
    assert "float8" in notes("flux-dev") and "up to 34" in notes("flux-dev")
    assert "float8" not in notes("flux-dev", own={"model": {"transformer_dtype": "bfloat16"}})
    assert "kohya" in notes("sdxl") and "text encoders" in notes("sdxl")


def test_layers_that_the_recipe_does_not_train_are_excluded(renderings: Renderings) -> None:
    import re

    def trained(name: str, targets: str, layers: str) -> str:
        excluded = renderings.main(name, f"adapter.targets={targets}")["adapter"].get("exclude_modules", "")
        return " ".join(layer for layer in layers.split() if not re.fullmatch(excluded, layer))

    wan = "blocks.0.self_attn.q blocks.0.cross_attn.o blocks.0.ffn.0"
    assert trained("wan2.1-t2v-14b", "attention+feed-forward", wan) == wan
    assert trained("wan2.1-t2v-14b", "attention", wan) == "blocks.0.self_attn.q blocks.0.cross_attn.o"
    z_image = "layers.0.attention.qkv layers.0.feed_forward.w1 layers.0.adaLN_modulation.0"
    assert trained("z-image", "all", z_image) == z_image
    assert trained("z-image", "attention+feed-forward", z_image) == "layers.0.attention.qkv layers.0.feed_forward.w1"
    assert trained("z-image", "attention", z_image) == "layers.0.attention.qkv"
    qwen = "transformer_blocks.0.attn.to_q transformer_blocks.0.img_mlp.net.2 transformer_blocks.0.txt_mod.1"
    assert trained("qwen-image", "attention", qwen) == "transformer_blocks.0.attn.to_q"
    flux = "transformer_blocks.0.attn.to_q transformer_blocks.0.ff.net.2 single_transformer_blocks.0.proj_mlp "
    flux += "single_transformer_blocks.0.norm.linear transformer_blocks.0.norm1_context.linear"
    assert trained("flux-dev", "attention", flux) == "transformer_blocks.0.attn.to_q"
    assert "norm" not in trained("flux-dev", "attention+feed-forward", flux)


def test_folders_have_their_own_settings_and_clips_lengths_of_4n_plus_1(renderings: Renderings) -> None:
    settings = ("datasets.0.repeats=3", "datasets.0.frames=[16, 81]", "datasets.0.clip_windows=middle")
    files = renderings.files("wan2.1-t2v-1.3b", *settings)
    (directory,) = files["dataset.toml"]["directory"]
    assert directory["num_repeats"] == 3 and directory["frame_buckets"] == [1, 13, 81]
    assert directory["path"].endswith("cat/data/0")
    assert files["train.toml"]["video_clip_mode"] == "single_middle"
    masked = ("datasets.0.masks=/m", "datasets.0.unmasked_weight=0", "datasets.0.shuffle_tags=true")
    dataset = renderings.files("sdxl", *masked, "datasets.0.keep_tags=0")["dataset.toml"]
    assert dataset["directory"][0]["mask_path"] == "/m" and dataset["directory"][0]["cache_shuffle_num"] == 4


def test_stages_start_the_launcher_of_the_trainers_own_python(renderings: Renderings) -> None:
    cache, train = renderings.rendering("flux-dev").stages
    assert cache.argv[:5] == [train.argv[0], "-m", "deepspeed.launcher.runner", "--num_gpus=1", "train.py"]
    assert "--deepspeed" in train.argv and "--cache_only" not in train.argv
    assert cache.argv == [*train.argv, "--cache_only"]
    assert train.cwd == renderings.workspace.root / "trainers/diffusion-pipe/repository"
    assert train.env["NCCL_P2P_DISABLE"] == "1" and "expandable_segments" in train.env["PYTORCH_CUDA_ALLOC_CONF"]
    four = renderings.rendering("flux-dev", gpus=4).stages[1]
    assert "--num_gpus=4" in four.argv and "NCCL_P2P_DISABLE" not in four.env


def test_runs_beside_each_other_meet_at_different_ports(renderings: Renderings) -> None:
    recipe = renderings.recipe("sdxl")
    context = renderings.context(recipe)
    ports = set()
    for number in range(5):
        moved = replace(context, output=Path(f"/runs/{number}"))
        argv = diffusion_pipe.render(recipe, catalogue()["sdxl"], moved).stages[0].argv
        ports.add(argv[argv.index("--master_port") + 1])
    assert len(ports) == 5 and all(20_000 <= int(port) < 30_000 for port in ports)


REFUSED = [
    ("z-image", ["adapter.alpha=1"], "alpha"),
    ("z-image", ["adapter.kind=dora"], "dora"),
    ("flux-dev", ["adapter.kind=lokr"], "lokr"),
    ("sdxl", ["adapter.targets=attention"], "layers"),
    ("z-image", ["adapter.continue_from=/a.safetensors"], "LoRA file"),
    ("z-image-turbo", ["base_model.training_adapter_strength=0.5"], "strength"),
    ("wan2.1-t2v-14b", ["base_model.training_adapter=/a.safetensors"], "training adapter"),
    ("wan2.2-t2v-a14b-high", ["base_model.expert=low"], "low-noise"),
    ("z-image", ["base_model.training_adapter=catalogue"], "no training adapter"),
    ("z-image", ["optimizer.kind=schedule-free"], "schedule-free"),
    ("z-image", ["optimizer.kind=prodigy"], "Prodigy"),
    ("z-image", ["optimizer.schedule=linear"], "linear"),
    ("sdxl", ["optimizer.kind=prodigy", "optimizer.learning_rate=1.0"], "text encoders"),
    ("sdxl", ["optimizer.schedule=cosine", "training.epochs=3"], "text encoders"),
    ("z-image", ["optimizer.kind=adafactor"], "adafactor"),
    ("z-image", ["adapter.kind=lokr", "adapter.dropout=0.1"], "LoKr"),
    ("sdxl", ["base_model.training_adapter=/a.safetensors"], "training adapter"),
    ("z-image", ["training.precision=fp32"], "fp32"),
    ("wan2.2-ti2v-5b", ["training.first_frame_share=0.5"], "first frame"),
    ("z-image", ["training.min_snr_gamma=5"], "Min-SNR"),
    ("sdxl", ["training.timestep_shift=3"], "timesteps"),
    ("z-image", ["training.resolution_shift=true"], "size"),
    ("qwen-image", ["datasets.0.resolutions=[512, 1024]"], "several resolutions"),
    ("z-image", ["datasets.0.resolutions=[512, 768, 1024, 1280]"], "3 resolutions"),
    ("z-image", ['saving.formats=["kohya"]'], "kohya"),
    ("wan2.1-t2v-14b", ["datasets.0.clip_windows=every"], "every"),
    ("z-image", ["datasets.0.shuffle_tags=true"], "tags"),
    ("z-image", ["datasets.0.masks=/m"], "black"),
    ("z-image", ["datasets.0.alpha_masks=true"], "alpha"),
    ("z-image", ["datasets.0.control=/c"], "control"),
]


@pytest.mark.parametrize(("name", "settings", "word"), REFUSED)
def test_what_it_cannot_do_is_refused_with_what_can_be_done(
    renderings: Renderings, name: str, settings: list[str], word: str
) -> None:
    with pytest.raises(RequestError) as refused:
        renderings.rendering(name, *settings)
    assert word in refused.value.what and refused.value.remedy


def test_a_base_model_of_first_frames_refuses_pictures(renderings: Renderings, tmp_path: Path) -> None:
    recipe = renderings.recipe("wan2.1-i2v-14b-480p")
    context = renderings.context(recipe)
    entry = catalogue()["wan2.1-i2v-14b-480p"]
    clips = View(0, "clip", tmp_path / "clips", 16.0)
    made = diffusion_pipe.render(recipe, entry, replace(context, views=[clips]))
    assert tomllib.loads(made.files[0].text)["directory"][0]["path"] == str(tmp_path / "clips")
    with pytest.raises(RequestError, match="clips only"):
        diffusion_pipe.render(recipe, entry, replace(context, views=[clips, View(0, "picture", tmp_path)]))


def test_own_keys_are_written_where_they_belong(renderings: Renderings) -> None:
    own = {
        "blocks_to_swap": 32,
        "activation_checkpointing": "unsloth",
        "checkpoint_every_n_epochs": 1,
        "eval_datasets": [{"name": "held", "config": "/e.toml"}],
        "eval_every_n_steps": 10,
        "model": {"transformer_dtype": "bfloat16"},
        "optimizer": {"eps": 1e-6},
        "dataset": {"num_ar_buckets": 3},
    }
    files = renderings.files("wan2.1-t2v-14b", own=own)
    main = files["train.toml"]
    assert (main["blocks_to_swap"], main["activation_checkpointing"]) == (32, "unsloth")
    assert main["checkpoint_every_n_epochs"] == 1 and "checkpoint_every_n_minutes" not in main
    assert main["eval_datasets"] == [{"name": "held", "config": "/e.toml"}] and main["eval_every_n_steps"] == 10
    assert main["model"]["transformer_dtype"] == "bfloat16" and main["optimizer"]["eps"] == 1e-6
    assert files["dataset.toml"]["num_ar_buckets"] == 3


@pytest.mark.parametrize(
    ("name", "own", "what", "hint"),
    [
        ("wan2.1-t2v-14b", {"block_to_swap": 3}, "block_to_swap", "`blocks_to_swap`"),
        (
            "wan2.1-t2v-14b",
            {"model": {"transformer_dtyp": "float8"}},
            "model.transformer_dtyp",
            "`model.transformer_dtype`",
        ),
        ("z-image", {"transformer_dtype": "float8"}, "transformer_dtype", "reads"),
        ("sdxl", {"unet_lr": 1e-5}, "unet_lr", "`model.unet_lr`"),
        ("z-image", {"optimizer": {"stabilise": True}}, "optimizer.stabilise", "reads"),
        ("z-image", {"blocks_to_swap": "many"}, "takes a whole number", ""),
        ("z-image", {"map_num_proc": True}, "takes a whole number", ""),
        ("z-image", {"activation_checkpointing": "on"}, "true or false or one of unsloth", ""),
        ("z-image", {"model": {"diffusion_model_dtype": "nf4"}}, "diffusion_model_dtype", ""),
        ("z-image", {"model": 3}, "is a table", ""),
        ("z-image", {"epochs": 3}, "set by lorapod", "training.epochs"),
        ("z-image", {"output_dir": "/x"}, "set by lorapod", "depends"),
        ("z-image", {"adapter": {"alpha": 1}}, "set by lorapod", "adapter.alpha"),
        ("z-image", {"dataset": {"resolutions": [1]}}, "set by lorapod", "datasets.resolutions"),
        ("wan2.1-t2v-1.3b", {"blocks_to_swap": 29}, "is 29", "0 to 28"),
        ("sdxl", {"blocks_to_swap": 1}, "is 1", "cannot be swapped"),
        ("z-image", {"pipeline_stages": 2}, "1 GPUs", "multiple"),
        ("sdxl", {"huber_delta": 0.1}, "huber_delta", "loss"),
    ],
)
def test_own_keys_that_would_be_lost_or_contradict_the_recipe_are_refused(
    renderings: Renderings, name: str, own: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(RequestError) as refused:
        renderings.rendering(name, own=own)
    assert what in refused.value.what and hint in refused.value.why, str(refused.value)


def test_no_secret_reaches_a_file_or_a_command(renderings: Renderings, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "CIVITAI_TOKEN"):
        monkeypatch.setenv(variable, "s3cret")
    with pytest.raises(RequestError, match="monitoring"):
        renderings.rendering("flux-dev", own={"monitoring": {"enable_wandb": True, "wandb_api_key": "s3cret"}})
    for name in ALL:
        assert "s3cret" not in "".join(renderers.texts(renderings.rendering(name)).values())


def test_texts_with_quotes_and_signs_come_back_as_they_were(renderings: Renderings) -> None:
    recipe = renderings.recipe("z-image")
    context = replace(renderings.context(recipe), data=[Path("/a \"b\" #c 'd' \\e/名")])
    made = diffusion_pipe.render(recipe, catalogue()["z-image"], context)
    assert tomllib.loads(made.files[0].text)["directory"][0]["path"] == "/a \"b\" #c 'd' \\e/名"


def test_other_base_models_and_the_built_in_trainer_are_refused(renderings: Renderings, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to render"):
        renderers.get_renderer(recipes.TrainerName.BUILTIN)
    folder = tmp_path / "mine"
    folder.mkdir()
    recipe = renderings.recipe("z-image", f"base_model.name={folder}", "training.steps=3")
    with pytest.raises(BaseModelError, match="catalogue"):
        renderers.find_entry(recipe, renderings.workspace)
    demo = renderings.recipe("demo", "training.steps=3")
    with pytest.raises(BaseModelError, match="diffusion-pipe cannot train demo"):
        diffusion_pipe.check(demo, catalogue()["demo"])


class TestCommand:
    """`lorapod recipe render`."""

    @pytest.fixture(autouse=True)
    def _recipe(self, renderings: Renderings, tmp_path: Path) -> None:
        renderings.recipe("wan2.2-t2v-a14b")
        self.folder = tmp_path

    def run(self, *arguments: str) -> tuple[int, str]:
        workspace = ["--workspace", str(self.folder / "workspace")]
        words = [*workspace, "recipe", "render", str(self.folder / "recipe.toml"), "--out", str(self.folder / "out")]
        result = CliRunner().invoke(app, [*words, *arguments])
        return result.exit_code, result.output + str(result.exception or "")

    def test_files_and_commands_are_written(self) -> None:
        code, said = self.run(
            "--assume-files", "--set", "trainer_options.diffusion-pipe.model.transformer_dtype=bfloat16", "--gpus", "2"
        )
        assert code == 0, said
        out = self.folder / "out"
        assert sorted(path.name for path in out.iterdir()) == [
            "01-cache.command.json", "02-train-high.command.json", "03-train-low.command.json",
            "dataset.toml", "train-high.toml", "train-low.toml",
        ]  # fmt: skip
        command = json.loads((out / "02-train-high.command.json").read_text())
        assert set(command) == {"argv", "env", "cwd"} and "--num_gpus=2" in command["argv"]
        assert str(out / "train-high.toml") in command["argv"]
        assert tomllib.loads((out / "train-high.toml").read_text())["model"]["transformer_dtype"] == "bfloat16"
        assert "Note: " in said

    def test_files_that_differ_are_kept_unless_forced(self) -> None:
        assert self.run("--assume-files")[0] == 0
        assert self.run("--assume-files")[0] == 0
        mine = self.folder / "out" / "dataset.toml"
        mine.write_text("mine")
        assert self.run("--assume-files")[0] != 0 and mine.read_text() == "mine"
        assert self.run("--assume-files", "--force")[0] == 0 and mine.read_text() != "mine"

    def test_without_assume_files_they_have_to_be_there(self) -> None:
        (self.folder / "data").mkdir()
        code, said = self.run()
        assert code != 0 and "lorapod trainers install diffusion-pipe" in said and not (self.folder / "out").exists()

    def test_another_trainer_renders_the_same_recipe(self) -> None:
        code, said = self.run("--assume-files", "--trainer", "musubi")
        assert code == 0, said
        assert (self.folder / "out" / "03-train-high.command.json").is_file()

    def test_an_option_that_is_no_key_is_refused(self) -> None:
        wrong = self.run("--assume-files", "--set", "trainer_options.diffusion-pipe.blocks_to_swaps=3")
        assert wrong[0] != 0 and "blocks_to_swap" in wrong[1]
