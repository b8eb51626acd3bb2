"""Configurations of other trainers become recipes, and rendered back they say the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from typer.testing import CliRunner

from lorapod import recipe as recipes
from lorapod.cli.main import app
from lorapod.errors import LorapodError, RequestError
from lorapod.recipe import Recipe
from lorapod.trainers.imports import Fate, Imported, import_files
from lorapod.trainers.imports.musubi import options_in

ADAMW = {"type": "adamw_optimi", "lr": 2e-4, "betas": [0.9, 0.99], "weight_decay": 0.01, "eps": 1e-8}
TAIL = {
    "pipeline_stages": 1, "gradient_accumulation_steps": 4, "gradient_clipping": 1.0, "warmup_steps": 100,
    "save_every_n_epochs": 10, "checkpoint_every_n_minutes": 120, "activation_checkpointing": True,
    "partition_method": "parameters", "save_dtype": "bfloat16", "caching_batch_size": 1, "steps_per_print": 1,
    "video_clip_mode": "single_middle", "eval_every_n_epochs": 1, "eval_before_first_step": True,
}  # fmt: skip
LORA = {"type": "lora", "rank": 32, "dtype": "bfloat16"}
MAINS: dict[str, dict[str, Any]] = {
    "flux-dev": {"epochs": 80, "micro_batch_size_per_gpu": 1, **TAIL, "optimizer": ADAMW, "adapter": LORA, "model": {
        "type": "flux", "diffusers_path": "/m/flux", "dtype": "bfloat16", "transformer_dtype": "float8",
        "flux_shift": True}},
    "qwen-image": {"epochs": 80, "micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "pipeline_stages": 1,
        "save_every_n_epochs": 20, "activation_checkpointing": True, "optimizer": ADAMW, "adapter": LORA, "model": {
        "type": "qwen_image", "diffusers_path": "/m/q", "dtype": "bfloat16", "transformer_dtype": "float8",
        "timestep_sample_method": "logit_normal"}},
    "sdxl": {"epochs": 100, "micro_batch_size_per_gpu": 2, "save_every_n_epochs": 10, "activation_checkpointing": True,
        "adapter": LORA, "optimizer": {"type": "adamw8bit", "lr": 2e-4}, "model": {"type": "sdxl",
        "checkpoint_path": "/m/x.safetensors", "dtype": "bfloat16", "unet_lr": 1e-4, "text_encoder_1_lr": 1e-4,
        "text_encoder_2_lr": 1e-4}},
    "wan2.1-t2v-1.3b": {"epochs": 200, "micro_batch_size_per_gpu": 1, **TAIL, "optimizer": ADAMW, "adapter": LORA,
        "model": {"type": "wan", "ckpt_path": "/Wan/Wan2.1-T2V-1.3B", "dtype": "bfloat16"}},
    "wan2.1-t2v-14b": {"epochs": 200, "micro_batch_size_per_gpu": 1, **TAIL, "optimizer": ADAMW, "adapter": LORA,
        "model": {"type": "wan", "ckpt_path": "/Wan/Wan2.1-T2V-14B", "dtype": "bfloat16",
        "timestep_sample_method": "logit_normal"}},
    "wan2.1-i2v-14b-480p": {"epochs": 200, "micro_batch_size_per_gpu": 1, **TAIL, "optimizer": ADAMW, "adapter": LORA,
        "model": {"type": "wan", "ckpt_path": "/Wan/Wan2.1-I2V-14B-480P", "dtype": "bfloat16"}},
    "wan2.2-t2v-a14b-low": {"epochs": 20, "micro_batch_size_per_gpu": 1, "max_steps": 900, "save_every_n_steps": 300,
        "lr_scheduler": "cosine", "optimizer": {"type": "Prodigy", "lr": 1.0, "d_coef": 0.5}, "adapter": LORA, "model": {
        "type": "wan", "ckpt_path": "/Wan2.2-T2V-A14B", "transformer_path": "/Wan2.2-T2V-A14B/low_noise_model",
        "dtype": "bfloat16", "transformer_dtype": "float8", "min_t": 0.0, "max_t": 0.9, "shift": 3}},
    "z-image-turbo": {"epochs": 80, "micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "pipeline_stages": 1,
        "save_every_n_epochs": 10, "activation_checkpointing": True, "blocks_to_swap": 8, "optimizer": ADAMW,
        "adapter": LORA, "model": {"type": "z_image", "diffusion_model": "/m/z_image_turbo_bf16.safetensors",
        "vae": "/m/ae", "text_encoders": [{"path": "/m/q", "type": "lumina2"}], "merge_adapters": ["/m/adapter_v2"],
        "dtype": "bfloat16"}},
}  # fmt: skip
"""By base model; keys and values as configurations of diffusion-pipe in use hold them."""

DATASET = {
    "resolutions": [1024], "enable_ar_bucket": True, "min_ar": 0.5, "max_ar": 2.0, "num_ar_buckets": 7,
    "frame_buckets": [1, 33], "directory": [{"path": "/data/pictures", "num_repeats": 1}],
}  # fmt: skip
NOT_COMPARED = {"output_dir", "dataset", "eval_datasets", "eval_every_n_epochs", "eval_before_first_step"}
PLACES = {"ckpt_path", "diffusers_path", "checkpoint_path", "transformer_path", "llm_path", "diffusion_model", "vae",
          "text_encoders", "merge_adapters", "vae_path", "text_encoder_path"}  # fmt: skip


def put(path: Path, table: Mapping[str, Any]) -> Path:
    path.write_text(tomlkit.dumps(dict(table)), encoding="utf-8")
    return path


def loaded(imported: Imported, path: Path) -> Recipe:
    path.write_text(tomlkit.dumps(imported.recipe), encoding="utf-8")
    return recipes.load(path, check_paths=False)


def run(tmp_path: Path, *words: str | Path) -> str:
    result = CliRunner().invoke(app, ["--workspace", str(tmp_path / "ws"), *map(str, words)], env={"COLUMNS": "200"})
    if isinstance(result.exception, LorapodError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("base", MAINS)
def test_diffusion_pipe_there_and_back_is_the_same_training(base: str, tmp_path: Path) -> None:
    main = put(
        tmp_path / "main.toml", {"output_dir": "/out/my lora", "dataset": "/elsewhere/dataset.toml", **MAINS[base]}
    )
    dataset = put(tmp_path / "dataset.toml", DATASET)
    output = run(tmp_path, "recipe", "import", main, "--out", tmp_path / "recipe.toml")
    assert "The data is not here: /data/pictures" in output and "keys carried over" in output
    recipe = recipes.load(tmp_path / "recipe.toml", check_paths=False)
    assert (recipe.name, recipe.base_model.name, recipe.trainer.value) == ("my lora", base, "diffusion-pipe")
    assert recipe.training.swap_blocks == MAINS[base].get("blocks_to_swap", 0)  # with any other trainer too
    assert recipe.base_model.quantize.value == ("fp8" if "transformer_dtype" in MAINS[base]["model"] else "none")
    run(tmp_path, "recipe", "render", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--assume-files")
    rendered = next(path for path in (tmp_path / "out").glob("main*.toml"))
    ours = tomllib.loads(rendered.read_text())
    for key, value in MAINS[base].items():
        if isinstance(value, dict):
            theirs = {k: v for k, v in value.items() if k not in PLACES}
            assert {k: ours[key].get(k) for k in theirs} == theirs, key
        elif key not in NOT_COMPARED:
            assert ours[key] == value, key
    assert ours["uncond_fraction"] == 0 and ours["gradient_clipping"] == 1
    if "warmup_steps" not in MAINS[base]:
        assert ours["warmup_steps"] == 0, "a key that is left out is the trainer's default, not lorapod's"
    back = tomllib.loads((tmp_path / "out/dataset.toml").read_text())
    for key, value in tomllib.loads(dataset.read_text()).items():
        if key != "directory":
            assert back[key] == value, key
    assert (back["directory"][0]["num_repeats"], back["directory"][0]["resolutions"]) == (1, [1024])


def test_no_key_of_diffusion_pipe_is_dropped_in_silence(tmp_path: Path) -> None:
    odd = {**MAINS["flux-dev"], "save_every_n_exmples": 3, "monitoring": {"enable_wandb": True, "wandb_api_key": "x"}}
    main = put(tmp_path / "main.toml", {**odd, "dataset": "dataset.toml"})
    folders = [{"path": "/d", "control_path": "/c", "ar_buckets": [1.0], "num_repeats": 1.5}]
    put(tmp_path / "dataset.toml", {**DATASET, "directory": folders})
    notes = {note.key: note for note in import_files([main]).notes}
    said = {key for key, value in odd.items() if not isinstance(value, dict)}
    said |= {f"{table}.{key}" for table in ("model", "adapter", "optimizer", "monitoring") for key in odd[table]}
    said |= {f"directory.0.{key}" for key in folders[0]} | {f"dataset.{k}" for k in DATASET if k != "directory"}
    assert said <= notes.keys(), said - notes.keys()
    assert notes["save_every_n_exmples"].fate is Fate.LEFT and notes["directory.0.num_repeats"].fate is Fate.CHANGED
    assert notes["monitoring.wandb_api_key"].fate is Fate.LEFT and notes["monitoring.wandb_api_key"].value == "***"
    assert all(note.why for note in notes.values() if note.fate is not Fate.CARRIED)


COMMAND = """#!/bin/bash
# the high-noise expert
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision fp16 \\
  src/musubi_tuner/wan_train_network.py --task t2v-A14B --dit /m/wan2.2_t2v_high_noise_14B_fp16.safetensors \\
  --dataset_config /d/dataset.toml --sdpa --mixed_precision fp16 --fp8_base --optimizer_type adamw8bit \\
  --optimizer_args weight_decay=0.1 "betas=(0.9,0.95)" --learning_rate 3e-4 --gradient_checkpointing \\
  --network_module networks.lora_wan --network_dim 16 --network_alpha 8 --timestep_sampling shift \\
  --discrete_flow_shift 5 --min_timestep 875 --max_timestep 1000 --preserve_distribution_shape \\
  --max_train_epochs 40 --save_every_n_epochs 5 --seed 7 --lr_scheduler polynomial --lr_scheduler_power 8 \\
  --blocks_to_swap 20 --output_dir /o --output_name zorb-high &
"""
VIDEOS = {
    "general": {"resolution": [832, 480], "caption_extension": ".txt", "batch_size": 1, "enable_bucket": True},
    "datasets": [{"video_directory": "/d/clips", "target_frames": [1, 33], "frame_extraction": "head",
                  "num_repeats": 2, "cache_directory": "/d/cache", "source_fps": 30.0}],
}  # fmt: skip


def test_musubi_there_and_back_is_the_same_training(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(COMMAND)
    dataset = put(tmp_path / "dataset.toml", VIDEOS)
    run(tmp_path, "recipe", "import", script, dataset, "--out", tmp_path / "recipe.toml")
    recipe = recipes.load(tmp_path / "recipe.toml", check_paths=False)
    assert (recipe.name, recipe.base_model.name) == ("zorb-high", "wan2.2-t2v-a14b-high")
    assert (recipe.adapter.rank, recipe.alpha, recipe.training.epochs, recipe.training.seed) == (16, 8, 40, 7)
    assert (
        recipe.training.swap_blocks == 20 and recipe.base_model.quantize.value == "auto"
    )  # fp8 without scales stays a word of its own
    assert recipe.datasets[0].frames == [1, 33] and recipe.datasets[0].resolutions == [632]
    run(tmp_path, "recipe", "render", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--assume-files")
    argv = json.loads((tmp_path / "out/03-train.command.json").read_text())["argv"]
    _, ours = options_in(argv)
    _, theirs = options_in(COMMAND.replace("\\\n", " ").splitlines()[2].replace('"', "").split())
    for key, value in theirs.items():
        if key in ("dit", "dataset_config", "output_dir"):
            continue
        assert ours[key] == value or sorted(map(str, ours[key])) == sorted(map(str, value)), key
    assert "fp8_scaled" not in ours and "save_state" not in ours
    back = tomllib.loads((tmp_path / "out/dataset.toml").read_text())["datasets"][0]
    assert (back["target_frames"], back["frame_extraction"], back["num_repeats"]) == ([1, 33], "head", 2)


def test_two_command_lines_are_one_recipe_for_both_experts(tmp_path: Path) -> None:
    script = tmp_path / "both.sh"
    low = COMMAND.replace("high_noise", "low_noise").replace("875 --max_timestep 1000", "0 --max_timestep 875")
    script.write_text(COMMAND + low.replace("zorb-high", "zorb-low"))
    files = [script, put(tmp_path / "dataset.toml", VIDEOS)]
    recipe = loaded(import_files(files), tmp_path / "r.toml")
    assert (recipe.base_model.name, recipe.base_model.expert.value) == ("wan2.2-t2v-a14b", "both")
    script.write_text(COMMAND + low.replace("--network_dim 16", "--network_dim 32"))
    with pytest.raises(RequestError, match="more than the expert") as caught:
        import_files(files)
    assert "network_dim" in caught.value.why


TEMPLATES = {
    "wan2.2-t2v-a14b": 'LORA_RANK=16\nMAX_EPOCHS=100\nSAVE_EVERY=20\nSEED_HIGH=41\nSEED_LOW=42\nLEARNING_RATE=3e-4\n'
    'DATASET_TYPE=video\nRESOLUTION_LIST="1024, 1024"\nDATASET_DIR="$NETWORK_VOLUME/video_dataset_here"\n'
    'TITLE_HIGH="my high"\nTITLE_LOW="my low"\nTARGET_FRAMES="1, 57, 117"\nFRAME_EXTRACTION="head"  # which\n'
    'NUM_REPEATS=3\nCAPTION_EXT=".txt"\n',
    "qwen-image": 'LORA_RANK=16\nMAX_EPOCHS=16\nSAVE_EVERY=1\nSEED=42\nLEARNING_RATE=5e-5\nDATASET_TYPE=image\n'
    'RESOLUTION_LIST="1024, 1024"\nDATASET_DIR="$NETWORK_VOLUME/image_dataset_here"\nTITLE="my qwen"\nBATCH_SIZE=1\n'
    "NUM_REPEATS=1\n",
    "z-image-turbo": 'DATASET_DIR="$NETWORK_VOLUME/image_dataset_here"\nNUM_REPEATS=10\nBATCH_SIZE=1\n'
    'RESOLUTION_LIST="1024, 1024"\nOUTPUT_DIR="./outputs"\nOUTPUT_NAME="my_z"\nSAVE_EVERY_N_EPOCHS=5\n'
    'MAX_TRAIN_EPOCHS=40\nNETWORK_DIM=32\nNETWORK_ALPHA=32\nLEARNING_RATE=1.0\n'
    'OPTIMIZER_ARGS=(\n  "decouple=True"\n  "weight_decay=0.01"\n)\nSKIP_CACHE=0\nWHEN=$(date)\n',
}  # fmt: skip


@pytest.mark.parametrize("base", TEMPLATES)
def test_the_old_templates_shell_configurations(base: str, tmp_path: Path) -> None:
    file = tmp_path / "config.sh"
    file.write_text(TEMPLATES[base])
    run(tmp_path, "recipe", "import", file, "--out", tmp_path / "recipe.toml")
    recipe = recipes.load(tmp_path / "recipe.toml", check_paths=False)
    assert (recipe.base_model.name, recipe.trainer.value) == (base, "musubi")
    assert recipe.datasets[0].path.parent == tmp_path / "ws" and recipe.alpha == recipe.adapter.rank
    run(tmp_path, "recipe", "render", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--assume-files")
    stages = sorted((tmp_path / "out").glob("*-train*.command.json"))
    assert len(stages) == (2 if base.startswith("wan") else 1)
    ours = options_in(json.loads(stages[-1].read_text())["argv"])[1]
    expected: dict[str, dict[str, Any]] = {
        "wan2.2-t2v-a14b": {"learning_rate": 3e-4, "max_train_epochs": 100, "save_every_n_epochs": 20, "xformers": True,
            "lr_scheduler": "polynomial", "lr_scheduler_power": 8.0, "max_grad_norm": 0.0, "seed": 42, "min_timestep": 0},
        "qwen-image": {"learning_rate": 5e-5, "gradient_accumulation_steps": 4, "lr_scheduler": "cosine",
            "discrete_flow_shift": 3.0, "optimizer_type": "adamw8bit", "save_every_n_epochs": 1},
        "z-image-turbo": {"learning_rate": 1.0, "optimizer_type": "prodigyopt.Prodigy", "network_alpha": 32.0,
            "max_train_epochs": 40, "base_weights_multiplier": [1.0],
            "optimizer_args": ["decouple=True", "weight_decay=0.01"]},
    }  # fmt: skip
    assert {key: ours.get(key) for key in expected[base]} == expected[base]
    notes = {note.key: note for note in import_files([file]).notes}
    names = {
        line.partition("=")[0] for line in TEMPLATES[base].splitlines() if "=" in line and not line.startswith(" ")
    }
    assert names <= notes.keys()
    if base == "z-image-turbo":
        assert "nothing is run here" in notes["WHEN"].why


AI_TOOLKIT = """
job: extension
config:
  name: my_flux
  process:
    - type: sd_trainer
      training_folder: out
      trigger_word: p3r5on
      network: {type: lora, linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: /data/people
          caption_ext: txt
          caption_dropout_rate: 0.05
          resolution: [512, 768, 1024]
      train:
        batch_size: 1
        steps: 2000
        gradient_checkpointing: true
        optimizer: adamw8bit
        lr: 1e-4
        dtype: bf16
        ema_config: {use_ema: true, ema_decay: 0.99}
        timestep_type: sigmoid
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample: {sample_every: 250, width: 1024, height: 1024, seed: 42, guidance_scale: 4, sample_steps: 20,
               prompts: ["[trigger] at the sea"]}
"""

KOHYA = {
    "pretrained_model_name_or_path": "/m/sd_xl_base_1.0.safetensors", "network_module": "networks.lora",
    "network_dim": 32, "network_alpha": 16, "learning_rate": 1e-4, "optimizer_type": "AdamW8bit", "seed": 1,
    "lr_scheduler": "cosine", "lr_warmup_steps": 100, "max_train_steps": 3000, "mixed_precision": "bf16",
    "min_snr_gamma": 5, "gradient_checkpointing": True, "output_name": "style", "output_dir": "/o", "noise_offset": 0.05,
    "optimizer_args": ["weight_decay=0.1"],
}  # fmt: skip
SUBSETS = {
    "general": {"shuffle_caption": True, "keep_tokens": 1, "caption_extension": ".txt"},
    "datasets": [{"resolution": 1024, "batch_size": 4,
                  "subsets": [{"image_dir": "/data/a", "num_repeats": 10, "class_tokens": "ohwx man"}]}],
}  # fmt: skip


def test_ai_toolkit_becomes_a_recipe_of_the_built_in_trainer(tmp_path: Path) -> None:
    file = tmp_path / "flux.yaml"
    file.write_text(AI_TOOLKIT)
    imported = import_files([file])
    recipe = loaded(imported, tmp_path / "r.toml")
    assert (recipe.name, recipe.base_model.name, recipe.trainer.value) == ("my_flux", "flux-dev", "builtin")
    assert (recipe.adapter.rank, recipe.alpha, recipe.training.steps) == (16, 8, 2000)
    assert recipe.datasets[0].resolutions == [512, 768, 1024] and recipe.datasets[0].trigger_word == "p3r5on"
    assert recipe.optimizer.kind.value == "adamw-8bit" and recipe.optimizer.learning_rate == 1e-4
    assert recipe.previews.prompts == ["p3r5on at the sea"] and recipe.previews.seeds == [42]
    fates = {note.key: note.fate for note in imported.notes}
    assert fates["model.quantize"] is Fate.LEFT and fates["save.dtype"] is Fate.CHANGED
    assert recipe.adapter.ema_decay == 0.99 and fates["train.ema_config.use_ema"] is Fate.CARRIED


def test_ai_toolkits_flags_in_prompts_are_not_painted_and_other_jobs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "flux.yaml"
    file.write_text(AI_TOOLKIT.replace("[trigger] at the sea", "a -- [trigger] at the sea --w 512 --n blurry, bad"))
    imported = import_files([file])
    assert loaded(imported, tmp_path / "r.toml").previews.prompts == ["a -- p3r5on at the sea"]
    assert {note.key: note.fate for note in imported.notes}["sample.prompts"] is Fate.CHANGED
    file.write_text(AI_TOOLKIT.replace("sd_trainer", "slider"))
    with pytest.raises(RequestError, match="slider"):
        import_files([file])


def test_kohya_becomes_a_recipe_of_the_built_in_trainer(tmp_path: Path) -> None:
    memory = {"fp8_base": True, "blocks_to_swap": 12}
    files = [put(tmp_path / "config.toml", {"model": {**KOHYA, **memory}}), put(tmp_path / "dataset.toml", SUBSETS)]
    imported = import_files(files, "kohya")
    recipe = loaded(imported, tmp_path / "r.toml")
    assert (recipe.name, recipe.base_model.name, recipe.training.steps) == ("style", "sdxl", 3000)
    assert (recipe.adapter.rank, recipe.alpha, recipe.training.min_snr_gamma) == (32, 16, 5)
    assert (recipe.optimizer.schedule.value, recipe.optimizer.warmup_steps, recipe.optimizer.weight_decay) == (
        "cosine",
        100,
        0.1,
    )
    folder = recipe.datasets[0]
    assert (folder.repeats, folder.shuffle_tags, folder.caption_prefix) == (10, True, "")
    assert (
        recipe.adapter.text_encoders and recipe.optimizer.text_encoder_rate == 1
    )  # as sd-scripts does unless told not to
    assert recipe.training.batch_size == 4
    assert {note.key: note.fate for note in imported.notes}["noise_offset"] is Fate.LEFT
    assert (recipe.base_model.quantize.value, recipe.training.swap_blocks) == ("fp8", 12)


@pytest.mark.parametrize(("captioned", "prefix"), [(0, "ohwx man"), (1, ""), (2, "")])
def test_kohyas_class_words_caption_only_what_has_no_caption(captioned: int, prefix: str, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").touch()
        if number < captioned:
            (tmp_path / f"{number}.txt").write_text("a man in the rain")
    subsets = {"datasets": [{"subsets": [{"image_dir": str(tmp_path), "class_tokens": "ohwx man"}]}]}
    imported = import_files([put(tmp_path / "config.toml", KOHYA), put(tmp_path / "dataset.toml", subsets)])
    (folder,) = loaded(imported, tmp_path / "r.toml").datasets
    assert (folder.caption_prefix, folder.allow_missing_captions) == (prefix, prefix != "")
    fates = {note.key.rpartition(".")[2]: note.fate for note in imported.notes}
    assert fates["class_tokens"] is (Fate.CARRIED if prefix else Fate.LEFT)


def test_kohyas_numbered_folders_need_no_dataset_file(tmp_path: Path) -> None:
    folders = {"train_data_dir": "/data/img", "reg_data_dir": "/data/reg", "prior_loss_weight": 0.5}
    more = {"lr_scheduler": "cosine_with_restarts", "text_encoder_lr": 5e-5, "resolution": "1024,1024"}
    imported = import_files([put(tmp_path / "config.toml", {**KOHYA, **folders, **more})])
    recipe = loaded(imported, tmp_path / "r.toml")
    trained, known = recipe.datasets
    assert (str(trained.path), trained.repeats, trained.resolutions) == ("/data/img", 1, [1024])
    assert (str(known.path), known.regularisation.value, known.loss_weight) == ("/data/reg", "learn", 0.5)
    assert recipe.optimizer.text_encoder_rate == 0.5 and recipe.optimizer.schedule.value == "cosine"
    assert {note.key: note.fate for note in imported.notes}["lr_scheduler"] is Fate.CHANGED


def test_kohyas_prodigy_leaves_the_text_encoders_alone(tmp_path: Path) -> None:
    prodigy = {"optimizer_type": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 1.0, "train_data_dir": "/data/img"}
    imported = import_files([put(tmp_path / "config.toml", {**KOHYA, **prodigy})])
    recipe = loaded(imported, tmp_path / "r.toml")
    assert (
        recipe.optimizer.kind.value == "prodigy" and not recipe.adapter.text_encoders
    )  # the builtin trainer refuses both
    assert {note.key: note.fate for note in imported.notes}["text_encoder_lr"] is Fate.LEFT


def test_kohyas_gui_says_the_same_in_other_words(tmp_path: Path) -> None:
    gui = {
        "LoRA_type": "Standard", "pretrained_model_name_or_path": "/m/sd_xl_base_1.0.safetensors", "epoch": 36, "sdxl": True,
        "max_resolution": "1024,1024", "optimizer": "AdamW8bit", "optimizer_args": "", "network_dim": 32,
        "network_alpha": 16, "max_train_epochs": 0, "max_train_steps": 0, "train_data_dir": "/data/img",
        "reg_data_dir": "", "output_name": "x",
        "learning_rate": 0.0002, "unet_lr": 0.0001, "text_encoder_lr": 0, "min_snr_gamma": 0, "lr_scheduler": "constant",
        "mixed_precision": "fp16", "keep_tokens": 5, "shuffle_caption": True,
        "wandb_api_key": "",
    }  # fmt: skip
    (tmp_path / "gui.json").write_text(json.dumps(gui))
    recipe = loaded(import_files([tmp_path / "gui.json"]), tmp_path / "r.toml")
    assert (recipe.base_model.name, recipe.training.epochs, recipe.adapter.rank) == ("sdxl", 36, 32)
    assert (recipe.optimizer.kind.value, recipe.optimizer.learning_rate) == ("adamw-8bit", 1e-4)
    (folder,) = recipe.datasets
    assert (str(folder.path), folder.resolutions, folder.keep_tags) == ("/data/img", [1024], 5)
    assert not recipe.adapter.text_encoders


def test_files_of_two_trainers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flux.yaml").write_text(AI_TOOLKIT)
    other = put(tmp_path / "kohya.toml", KOHYA)
    with pytest.raises(RequestError, match=r"flux\.yaml of ai-toolkit, kohya\.toml of kohya"):
        import_files([tmp_path / "flux.yaml", other])


def test_a_scripts_own_plain_variables_are_filled_in_and_others_named(tmp_path: Path) -> None:
    script, dataset = tmp_path / "my train.sh", put(tmp_path / "dataset.toml", VIDEOS)
    settings = "RATE=3e-4 # peak\nexport DIM='16'\n"
    command = COMMAND.replace("3e-4", "$RATE").replace("network_dim 16", "network_dim ${DIM}")
    script.write_text(command.replace("\n", f"\n{settings}", 1))
    recipe = loaded(import_files([script, dataset]), tmp_path / "r.toml")
    assert (recipe.optimizer.learning_rate, recipe.adapter.rank) == (3e-4, 16)
    for wrong in (
        "RATE=$(cat rate)\nDIM=16\n",
        "DIM=16\nRATE=1e-4\nRATE=2e-4\n",
        "DIM=16\nif true; then\n  RATE=1e-4\nfi\n",
    ):
        script.write_text(command.replace("\n", f"\n{wrong}", 1))
        with pytest.raises(RequestError) as refused:
            import_files([script, dataset])
        assert "$RATE" in refused.value.why and "DIM" not in refused.value.why


def test_each_key_is_told_with_its_reason_on_lines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "flux.yaml").write_text(AI_TOOLKIT)
    said = run(tmp_path, "recipe", "import", tmp_path / "flux.yaml", "--out", tmp_path / "my recipe.toml").splitlines()
    assert (
        said.index("  model.quantize = True")
        == said.index("Left behind: it saves memory in that trainer's own way") + 1
    )
    assert "  network.linear = 16" in said
    assert f"Next: lorapod recipe check '{tmp_path}/my recipe.toml'" in said[-1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.toml", b"a = [1,\nb", "not valid TOML"),
        ("x.toml", b"a = 1\n", "cannot be told whose"),
        ("x.bin", b"\xff\xfe\x00", "is no text"),
        ("x.yaml", b"config: [\nprocess: x", "not valid YAML"),
        ("x.sh", b"accelerate launch wan_train_network.py --dit $MODEL", "shell variables"),
        ("x.toml", b"[model]\ntype = 'wan'\n[optimizer]\n", "datasets of x.toml"),
        ("x.txt", b"x" * 2_000_000, "too large"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_error(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=says):
        import_files([tmp_path / name])


def test_a_recipe_is_not_overwritten_and_a_base_model_can_be_named(tmp_path: Path) -> None:
    table = {**MAINS["wan2.1-t2v-14b"], "dataset": "dataset.toml"}
    table["model"] = {**table["model"], "ckpt_path": "/somewhere"}
    main = put(tmp_path / "main.toml", table)
    put(tmp_path / "dataset.toml", DATASET)
    with pytest.raises(RequestError, match="which base model") as caught:
        import_files([main])
    assert "--base" in caught.value.remedy and "wan2.1-t2v-14b" in caught.value.remedy
    words = ["recipe", "import", main, "--base", "wan2.1-t2v-14b", "--out", tmp_path / "r.toml"]
    assert json.loads(run(tmp_path, *words, "--json"))["keys"]
    (tmp_path / "r.toml").write_text("mine")
    with pytest.raises(RequestError, match="is there already"):
        run(tmp_path, *words)


@pytest.mark.parametrize("wrong", ["many", [1, 2], {"a": 1}, True, -1])
@pytest.mark.parametrize("where", ["epochs", "adapter.rank", "optimizer.lr", "micro_batch_size_per_gpu", "model.shift"])
def test_a_value_of_another_kind_is_one_clear_error_or_is_told(where: str, wrong: object, tmp_path: Path) -> None:
    table = json.loads(json.dumps({**MAINS["wan2.1-t2v-14b"], "dataset": "dataset.toml"}))
    *inside, last = where.split(".")
    (table[inside[0]] if inside else table)[last] = wrong
    main = put(tmp_path / "main.toml", table)
    put(tmp_path / "dataset.toml", DATASET)
    try:
        notes = import_files([main]).notes
    except LorapodError as error:
        assert error.what
    else:
        assert any(note.key == where for note in notes)


EDITS = {
    "flux-kontext-dev": (
        "flux_kontext", "--text_encoder1 /m/t5.safetensors --text_encoder2 /m/clip.safetensors --vae /m/ae.safetensors",
        "flux_shift", "networks.lora_flux"),
    "flux2-klein-base-4b": (
        "flux_2", "--model_version klein-base-4b --text_encoder /m/q.safetensors --vae /m/ae.safetensors",
        "flux2_shift", "networks.lora_flux_2"),
    "qwen-image-edit-2509": (
        "qwen_image", "--model_version edit-2509 --text_encoder /m/q.safetensors --vae /m/v.safetensors",
        "qwen_shift", "networks.lora_qwen_image"),
}  # fmt: skip
"""By base model: scripts, what is told of files, shift and network module, as musubi-tuner's documentation writes them."""


@pytest.mark.parametrize("size", [None, [768, 768]])
@pytest.mark.parametrize("base", EDITS)
def test_musubis_editing_models_there_and_back_are_the_same_training(
    base: str, size: list[int] | None, tmp_path: Path
) -> None:
    scripts, files, shift, network = EDITS[base]
    words = (
        f"accelerate launch --mixed_precision bf16 src/musubi_tuner/{scripts}_train_network.py --dit /m/dit.safetensors "
        f"{files} --dataset_config /d/dataset.toml --sdpa --mixed_precision bf16 --timestep_sampling {shift} "
        "--weighting_scheme none --optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing "
        f"--network_module {network} --network_dim 32 --network_alpha 16 --max_train_epochs 16 --save_every_n_epochs 1 "
        "--seed 42 --output_dir /o --output_name zorb"
    )
    (tmp_path / "train.sh").write_text(words + "\n")
    sized = {"control_resolution": size, "no_resize_control": True} if size else {}
    table = {"image_directory": "/d/after", "control_directory": "/d/before", "resolution": [1024, 1024], **sized}
    dataset = put(tmp_path / "dataset.toml", {"general": {"enable_bucket": True}, "datasets": [table]})
    imported = import_files([tmp_path / "train.sh", dataset])
    recipe = loaded(imported, tmp_path / "recipe.toml")
    assert recipe.base_model.name == base and str(recipe.datasets[0].control) == "/d/before"
    assert {note.key: note.fate for note in imported.notes}["datasets.0.control_directory"] is Fate.CARRIED
    run(tmp_path, "recipe", "render", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--assume-files")
    _, ours = options_in(json.loads((tmp_path / "out/03-train.command.json").read_text())["argv"])
    _, theirs = options_in(words.split())
    places = {"dit", "vae", "text_encoder", "text_encoder1", "text_encoder2", "dataset_config", "output_dir"}
    assert {key: ours.get(key) for key in theirs.keys() - places} == {
        key: theirs[key] for key in theirs.keys() - places
    }
    back = tomllib.loads((tmp_path / "out/dataset.toml").read_text())["datasets"][0]
    assert "control_directory" in back
    assert (back.get("control_resolution"), back.get("no_resize_control")) == (size, True if size else None)


def test_a_control_folder_says_which_flux_it_is_and_comes_back(tmp_path: Path) -> None:
    main = put(tmp_path / "main.toml", {"output_dir": "/out/zorb", "dataset": "dataset.toml", **MAINS["flux-dev"]})
    put(tmp_path / "dataset.toml", {**DATASET, "directory": [{"path": "/d/after", "control_path": "/d/before"}]})
    recipe = loaded(import_files([main]), tmp_path / "recipe.toml")
    assert recipe.base_model.name == "flux-kontext-dev" and str(recipe.datasets[0].control) == "/d/before"
    run(tmp_path, "recipe", "render", tmp_path / "recipe.toml", "--out", tmp_path / "out", "--assume-files")
    back = tomllib.loads((tmp_path / "out/dataset.toml").read_text())["directory"][0]
    assert back["control_path"] == f"{back['path']}-control"
    ours = tomllib.loads((tmp_path / "out/main.toml").read_text())["model"]
    assert ours["type"] == "flux" and ours["flux_shift"] is True and ours["transformer_dtype"] == "float8"


@pytest.mark.parametrize(
    ("family", "version", "says"),
    [("flux_2", "dev", "flux2-klein-base-4b"), ("qwen_image", "edit-2511", "qwen-image-edit-2509")],
)
def test_an_editing_model_that_is_not_in_the_catalogue_is_named(
    family: str, version: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "train.sh").write_text(f"python {family}_train_network.py --model_version {version} --dit /m/x\n")
    dataset = put(tmp_path / "dataset.toml", {"general": {}, "datasets": [{"image_directory": "/d"}]})
    with pytest.raises(RequestError, match=version) as caught:
        import_files([tmp_path / "train.sh", dataset])
    assert says in caught.value.why


def test_the_first_qwen_image_edit_of_diffusion_pipe_is_refused_with_what_is_trained(tmp_path: Path) -> None:
    main = put(tmp_path / "main.toml", {"output_dir": "/out/zorb", "dataset": "dataset.toml", **MAINS["qwen-image"]})
    put(tmp_path / "dataset.toml", {**DATASET, "directory": [{"path": "/d/after", "control_path": "/d/before"}]})
    with pytest.raises(RequestError, match="Qwen-Image-Edit") as caught:
        import_files([main])
    assert "qwen-image-edit-2509" in caught.value.remedy
