"""From a recipe to diffusion-pipe's TOML files and the command lines of its stages.

The stages are `cache`, a process of its own since the memory of text encoders is not all given back, and `train`; with
both experts of Wan 2.2 A14B `train-high` and `train-low`, which share the dataset's file and so the cache. Every key that
has a say in the result is written out, whatever its default there. Not covered: full fine-tuning, held-out items, GPUs
chosen by number (the launcher is told how many, and then takes the first ones).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import tomlkit

from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import AdapterKind, LoraFormat, OptimizerKind, Precision
from lorapod.trainers.diffusion_pipe.interface import check_own
from lorapod.trainers.diffusion_pipe.limits import (
    OPTIMIZERS,
    WINDOWS,
    check,
    check_memory_keys,
    check_views,
)
from lorapod.trainers.diffusion_pipe.networks import (
    NETWORKS,
    TRAINER,
    Denoiser,
    denoisers,
    in_float8,
    left_out,
    model_table,
    most_swapped,
    training_adapter,
)
from lorapod.trainers.rendering import RenderContext, RenderedFile, RenderedStage, Rendering

_DATASET = PurePosixPath("dataset.toml")
_CHECKPOINT_MINUTES = 30
_RATIOS = {"enable_ar_bucket": True, "min_ar": 0.5, "max_ar": 2.0, "num_ar_buckets": 7}
"""Those of its example; without them every picture is cropped to a square."""

_PORTS = range(20_000, 30_000)
"""Below what Linux hands out itself."""

_SAVING = ("save_every_n_epochs", "save_every_n_steps", "save_every_n_examples")
_CHECKPOINTS = ("checkpoint_every_n_epochs", "checkpoint_every_n_minutes")


def render(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any] | None = None) -> Rendering:
    """Everything for one run.

    Args:
        own: A person's own keys: those of the main TOML with its tables `model`, `adapter` and `optimizer`, and the table
            `dataset` for those of the dataset TOML.

    Raises:
        RequestError: The trainer cannot do what the recipe asks for, or does not read one of the person's own keys.
        BaseModelError: It does not train this base model.
    """
    check(recipe, entry)
    check_views(entry, context)
    own = own or {}
    check_own(own, entry.trainers[TRAINER].options["type"], OPTIMIZERS[recipe.optimizer.kind])
    check_memory_keys(own, entry, context.gpus)
    files = [RenderedFile(_DATASET, tomlkit.dumps(_dataset(recipe, entry, context, own.get("dataset", {}))))]
    networks = denoisers(entry, recipe.base_model.expert.value)
    stages: list[RenderedStage] = []
    for denoiser in networks:
        name = PurePosixPath(f"train-{denoiser.name}.toml" if denoiser.name else "train.toml")
        files.append(RenderedFile(name, tomlkit.dumps(_main(recipe, entry, context, denoiser, own))))
        if not stages:
            stages.append(_stage("cache", name, context, ["--cache_only"]))
        stages.append(_stage(name.stem, name, context, []))
    return Rendering(files, stages, _notes(recipe, entry, context, own))


def _main(
    recipe: Recipe, entry: Entry, context: RenderContext, denoiser: Denoiser, own: Mapping[str, Any]
) -> dict[str, Any]:
    training, saving = recipe.training, recipe.saving
    # It stops at the first of the two; an epoch has a step at least.
    epochs = training.epochs if training.epochs is not None else training.steps
    main: dict[str, Any] = {
        "output_dir": str(context.output / denoiser.name),
        "dataset": str(context.folder / _DATASET),
        "epochs": epochs,
    }
    if training.steps is not None:
        main["max_steps"] = training.steps
    main |= {
        "micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": float(recipe.optimizer.clip_norm),
        "pipeline_stages": 1,
        "activation_checkpointing": training.gradient_checkpointing,
        "lr_scheduler": recipe.optimizer.schedule.value,
        "warmup_steps": recipe.optimizer.warmup_steps,
        "uncond_fraction": float(recipe.datasets[0].caption_dropout),
    }
    if entry.modality == "clip":
        main["video_clip_mode"] = WINDOWS[recipe.datasets[0].clip_windows]
    if not any(key in own for key in _SAVING):
        # One of them must be there. The last LoRA is written in any case.
        main |= {"save_every_n_steps": saving.lora_every} if saving.lora_every else {"save_every_n_epochs": epochs}
    if saving.checkpoint_every and not any(key in own for key in _CHECKPOINTS):
        main["checkpoint_every_n_minutes"] = _CHECKPOINT_MINUTES
    main |= {"save_dtype": _dtype(saving.precision), "caching_batch_size": 1, "steps_per_print": 1}
    tables = {
        "model": model_table(recipe, entry, context.model_files, denoiser),
        "adapter": _adapter(recipe, entry, context),
        "optimizer": _optimizer(recipe),
    }
    main |= {key: value for key, value in own.items() if key not in tables and key != "dataset"}
    return main | {name: table | dict(own.get(name, {})) for name, table in tables.items()}


def _dtype(precision: Precision) -> str:
    return "bfloat16" if precision is Precision.BF16 else "float32"


def _adapter(recipe: Recipe, entry: Entry, context: RenderContext) -> dict[str, Any]:
    table: dict[str, Any] = {"type": recipe.adapter.kind.value, "rank": recipe.adapter.rank, "dtype": "bfloat16"}
    if recipe.adapter.kind is AdapterKind.LORA:
        table["dropout"] = float(recipe.adapter.dropout)
    if excluded := left_out(entry, recipe.adapter.targets):
        table["exclude_modules"] = excluded
    if entry.family == "flux" and (merged := training_adapter(recipe, context.model_files)):
        table["fuse_adapters"] = [{"path": str(merged), "weight": float(recipe.base_model.training_adapter_strength)}]
    return table


def _optimizer(recipe: Recipe) -> dict[str, Any]:
    optimizer = recipe.optimizer
    table: dict[str, Any] = {
        "type": OPTIMIZERS[optimizer.kind],
        "lr": float(optimizer.learning_rate),
        "betas": [float(beta) for beta in optimizer.betas],
        "weight_decay": float(optimizer.weight_decay),
    }
    if optimizer.kind is OptimizerKind.ADAMW:
        table["eps"] = 1e-8
    if optimizer.kind is OptimizerKind.ADAMW_8BIT:
        table["stabilize"] = False
    return table


def _dataset(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any]) -> dict[str, Any]:
    first = recipe.datasets[0]
    # It looks up `resolutions` and the ratios here even where every folder has its own.
    document: dict[str, Any] = {"resolutions": list(first.resolutions), **_RATIOS}
    if entry.modality == "clip":
        document["frame_buckets"] = _frames(first.frames)
    # Each item of the folders has a caption, as the recipe means it: none is to be dropped without a word.
    document |= {"skip_empty_caption": False, **own}
    folders = [(view.dataset, view.path) for view in context.views] or list(enumerate(context.data))
    document["directory"] = [_directory(recipe, entry, index, str(path)) for index, path in folders]
    return document


def _directory(recipe: Recipe, entry: Entry, index: int, path: str) -> dict[str, Any]:
    dataset = recipe.datasets[index]
    table: dict[str, Any] = {"path": path, "num_repeats": dataset.repeats, "resolutions": list(dataset.resolutions)}
    if entry.modality == "clip":
        table["frame_buckets"] = _frames(dataset.frames)
    if dataset.shuffle_tags:
        table["cache_shuffle_num"] = dataset.caption_variants
    if dataset.masks is not None:
        table["mask_path"] = str(dataset.masks)
    return table


def _frames(lengths: list[int]) -> list[int]:
    """Lengths of clips as the VAE takes them, 4n + 1, and 1 for pictures, which is always there."""
    return sorted({1, *(frames - (frames - 1) % 4 for frames in lengths)})


def _stage(name: str, file: PurePosixPath, context: RenderContext, more: list[str]) -> RenderedStage:
    # The launcher's own --master_port has no effect; two runs on one machine need different ones.
    port = _PORTS[zlib.crc32(str(context.output).encode()) % len(_PORTS)]
    argv = [str(context.python), "-m", "deepspeed.launcher.runner", f"--num_gpus={context.gpus}", "train.py"]
    argv += ["--deepspeed", "--config", str(context.folder / file), "--master_port", str(port), *more]
    env = {"PYTHONUNBUFFERED": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if context.gpus == 1:
        # RTX 40 cards need both; between several GPUs they would cost bandwidth.
        env |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    return RenderedStage(name, argv, context.home, env)


def _notes(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any]) -> list[str]:
    network, training, saving = NETWORKS[entry.family], recipe.training, recipe.saving
    notes = ["diffusion-pipe draws no previews, and its seed is fixed: `previews` and `training.seed` are not used."]
    if any(dataset.validation_share for dataset in recipe.datasets) and "eval_datasets" not in own:
        notes.append("diffusion-pipe holds no items out: all are trained on, and `evaluation` is not used.")
    together = training.batch_size * training.accumulation * context.gpus
    if together > 1:
        notes.append(
            f"A step takes {together} items of one size: of each size, what is left over after whole steps is never "
            "trained on, and sizes with fewer items are dropped."
        )
    if in_float8(entry) and own.get("model", {}).get(network.weights, "float8").startswith("float8"):
        notes.append(
            f"The frozen weights are held in float8, for memory; `model.{network.weights}` sets another type. On a GPU "
            f"of 24 GB also set `blocks_to_swap` (up to {most_swapped(entry)}) and `activation_checkpointing = "
            '"unsloth"`.'
        )
    if saving.checkpoint_every and not any(key in own for key in _CHECKPOINTS):
        notes.append(
            f"Checkpoints are written every {_CHECKPOINT_MINUTES} minutes, not by steps, and all of them are kept."
        )
    if any(dataset.shuffle_tags for dataset in recipe.datasets):
        notes.append("Each shuffled caption counts as an item: an epoch is `caption_variants` times as long.")
    if network.layout is not LoraFormat.COMFYUI:
        notes.append(f"The LoRA is written with the key names of {network.layout.value}, which ComfyUI reads too.")
    if recipe.adapter.kind is AdapterKind.LOKR:
        notes.append("The LoKr is written with PEFT's key names under `diffusion_model.`.")
    if entry.family == "sdxl":
        notes += [
            "diffusion-pipe adapts every linear layer of SDXL's blocks, whatever `adapter.targets` says. The text "
            "encoders have adapters too, whose learning rate is 0 unless you set `model.text_encoder_1_lr` and `_2_lr`.",
            "SDXL's configuration and tokenizers are not in its one file: diffusers fetches them from the hub once.",
        ]
    if note := entry.trainers[TRAINER].note:
        notes.append(note)
    return notes
