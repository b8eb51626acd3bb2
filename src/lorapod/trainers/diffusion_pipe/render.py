"""From a recipe to diffusion-pipe's main TOML, its dataset TOML and the command lines of its stages.

The stages are: cache (`--cache_only`), so that the text encoder is out of memory before training begins, and a training
for each denoiser (two for both experts of Wan 2.2 A14B, which share one cache). Every key is one that diffusion-pipe reads
(`interface.toml`). Not covered: full fine-tuning, several machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import AdapterKind, Checkpointing, ClipWindows, OptimizerKind, Precision
from lorapod.trainers.diffusion_pipe.limits import check, own_options
from lorapod.trainers.diffusion_pipe.models import (
    OPTIMIZERS,
    Denoiser,
    denoisers,
    keeps_fp8,
    left_out,
    model_table,
    model_type,
)
from lorapod.trainers.rendering import (
    RenderContext,
    RenderedFile,
    RenderedStage,
    Rendering,
    View,
    assumed_views,
)

SMALL_GPU = 30.0
"""Gigabytes of GPU memory below which the settings of its examples for 24 GB are taken."""

CHECKPOINT_MINUTES = 30
"""Between checkpoints by time, beside those by epochs: what is lost at most when a machine goes away."""

CACHE = "cache"
DATASET, EVALUATION = PurePosixPath("dataset.toml"), PurePosixPath("evaluation.toml")
EVALUATION_NAME = "held_out"

_BUCKETS = {"enable_ar_bucket": True, "min_ar": 0.4, "max_ar": 2.5, "num_ar_buckets": 9}
"""As wide as lorapod's own buckets. At the top as well as in no directory: a directory's alone is a KeyError there."""


def main_file(denoiser: Denoiser) -> PurePosixPath:
    """Name of the main TOML of a denoiser."""
    return PurePosixPath(f"main-{denoiser.suffix}.toml" if denoiser.suffix else "main.toml")


def train_stage(denoiser: Denoiser) -> str:
    """Name of the stage that trains it."""
    return f"train-{denoiser.suffix}" if denoiser.suffix else "train"


def output_of(denoiser: Denoiser, output: Path) -> Path:
    """Folder that diffusion-pipe makes its run folders in."""
    return output / denoiser.suffix if denoiser.suffix else output


def render(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any] | None = None) -> Rendering:
    """Everything for one run.

    Args:
        own: A person's own options in place of the recipe's: keys of the main TOML, its tables, and `dataset`.

    Raises:
        RequestError: diffusion-pipe cannot do what the recipe asks for, or does not read one of the person's own options.
        BaseModelError: It does not train this base model.
    """
    check(recipe, entry)
    own = own_options(recipe) if own is None else own
    views = context.views or assumed_views(recipe, entry, context)
    held_out = [view for view in views if view.held_out]
    chosen = denoisers(entry, recipe.base_model.expert)
    files = [RenderedFile(DATASET, _dataset_text(recipe, entry, [v for v in views if not v.held_out], own))]
    if held_out:
        files.append(RenderedFile(EVALUATION, _dataset_text(recipe, entry, held_out, own)))
    for denoiser in chosen:
        config = _main(recipe, entry, context, denoiser, own, evaluated=bool(held_out))
        files.append(RenderedFile(main_file(denoiser), _text(config)))
    stages = [_stage(CACHE, context, main_file(chosen[0]), ["--cache_only"])]
    for denoiser in chosen:
        name = train_stage(denoiser)
        goes_on = context.resume.get(name)
        arguments = ["--resume_from_checkpoint", goes_on.name] if goes_on else []
        stages.append(_stage(name, context, main_file(denoiser), arguments))
    return Rendering(files, stages, _notes(recipe, entry, context, own))


def _main(
    recipe: Recipe, entry: Entry, context: RenderContext, denoiser: Denoiser, own: Mapping[str, Any], evaluated: bool
) -> dict[str, Any]:
    """The main TOML as plain data, keys before tables."""
    training, saving = recipe.training, recipe.saving
    every = saving.lora_every or saving.checkpoint_every
    config: dict[str, Any] = {
        "output_dir": str(output_of(denoiser, context.output)),
        "dataset": str(context.folder / DATASET),
        **_length(recipe, context),
        "micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": recipe.optimizer.clip_norm,
        "lr_scheduler": recipe.optimizer.schedule.value,
        "warmup_steps": recipe.optimizer.warmup_steps,
        "uncond_fraction": recipe.datasets[0].caption_dropout,
        "activation_checkpointing": training.gradient_checkpointing is not Checkpointing.OFF,
        "pipeline_stages": 1,
        "caching_batch_size": 1,
        "save_dtype": "bfloat16" if saving.precision is Precision.BF16 else "float32",
        **({"save_every_n_steps": every} if every else {"save_every_n_epochs": _length(recipe, context)["epochs"]}),
        "checkpoint_every_n_epochs": _checkpoint_epochs(recipe, context),
        "checkpoint_every_n_minutes": CHECKPOINT_MINUTES,
        "steps_per_print": 1,
        "logging_steps": 1,
    }
    if entry.modality == "clip":
        middle = recipe.datasets[0].clip_windows is ClipWindows.MIDDLE
        config["video_clip_mode"] = "single_middle" if middle else "single_beginning"
    if evaluated:
        config |= {
            "eval_datasets": [{"name": EVALUATION_NAME, "config": str(context.folder / EVALUATION)}],
            "eval_before_first_step": True,
            "eval_micro_batch_size_per_gpu": 1,
            "eval_gradient_accumulation_steps": 1,
        }
        # The last step is evaluated as well.
        at_steps = recipe.evaluation.every or training.steps
        config |= {"eval_every_n_steps": at_steps} if at_steps else {"eval_every_n_epochs": config["epochs"]}
    config |= _memory(recipe, entry, context)
    adapter: dict[str, Any] = {
        "type": recipe.adapter.kind.value,
        "rank": recipe.adapter.rank,
        "dtype": "bfloat16" if training.precision is Precision.BF16 else "float32",
    }
    if recipe.adapter.kind is AdapterKind.LORA:
        adapter["dropout"] = recipe.adapter.dropout
    pattern = left_out(recipe, entry)
    if pattern:
        adapter["exclude_modules"] = pattern
    config["model"] = model_table(recipe, entry, context.model_files, denoiser, _training_adapter(recipe, context))
    config["adapter"] = adapter
    config["optimizer"] = _optimizer(recipe, own)
    return _with_own(config, own)


def _length(recipe: Recipe, context: RenderContext) -> dict[str, int]:
    """`epochs`, which diffusion-pipe cannot do without, and `max_steps` where the recipe counts steps."""
    training = recipe.training
    if training.steps is None:
        return {"epochs": training.epochs or 1}
    steps = training.steps
    # Decaying schedules end with the last epoch, so that it matters that there are not more of them than are run.
    epochs = math.ceil(steps / context.steps_per_epoch) if context.steps_per_epoch else steps
    return {"epochs": epochs, "max_steps": steps}


def _checkpoint_epochs(recipe: Recipe, context: RenderContext) -> int:
    every, of_epoch = recipe.saving.checkpoint_every, context.steps_per_epoch
    if not every:
        return int(_length(recipe, context)["epochs"])
    return max(1, round(every / of_epoch)) if of_epoch else 1


def _memory(recipe: Recipe, entry: Entry, context: RenderContext) -> dict[str, Any]:
    """What the recipe says; where it leaves it open, what its examples for 24 GB set, on a GPU of that size."""
    if isinstance(recipe.training.swap_blocks, int):
        return {"blocks_to_swap": recipe.training.swap_blocks} if recipe.training.swap_blocks else {}
    if context.gpu_gigabytes is None or context.gpu_gigabytes >= SMALL_GPU or (entry.parameters or 0) < 12e9:
        return {}
    if model_type(entry) == "wan":
        return {"blocks_to_swap": 32, "activation_checkpointing": "unsloth"}
    return {"blocks_to_swap": 8}


def _training_adapter(recipe: Recipe, context: RenderContext) -> Path | None:
    chosen = recipe.base_model.training_adapter
    if chosen == "none":
        return None
    return context.model_files["single-files/training_adapter"] if chosen == "catalogue" else Path(chosen)


def _optimizer(recipe: Recipe, own: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = recipe.optimizer
    if "type" in own.get("optimizer", {}):
        return {"lr": optimizer.learning_rate}  # the rest is the other optimizer's own matter
    table = {
        "type": OPTIMIZERS[optimizer.kind],
        "lr": optimizer.learning_rate,
        "betas": list(optimizer.betas),
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.kind is not OptimizerKind.PRODIGY:
        table["eps"] = 1e-8
    if optimizer.kind is OptimizerKind.ADAMW_8BIT:
        table["stabilize"] = False
    return table


def _with_own(config: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    tables = ("model", "adapter", "optimizer", "monitoring")
    merged = config | {key: value for key, value in own.items() if key not in (*tables, "dataset")}
    for name in tables:
        if name in merged or name in own:
            merged[name] = {**merged.pop(name, {}), **own.get(name, {})}  # tables come last
    return merged


def _dataset_text(recipe: Recipe, entry: Entry, views: list[View], own: Mapping[str, Any]) -> str:
    """The dataset TOML. Captions in the views are whole, so nothing is put before them here and none may be missing."""
    top: dict[str, Any] = {
        "resolutions": sorted({side for view in views for side in recipe.datasets[view.dataset].resolutions})[:1],
        **_BUCKETS,
        "frame_buckets": [1],
        "skip_empty_caption": False,
        **own.get("dataset", {}),
    }
    top["directory"] = [_directory(recipe, entry, view) for view in views]
    return _text(top)


def _directory(recipe: Recipe, entry: Entry, view: View) -> dict[str, Any]:
    section = recipe.datasets[view.dataset]
    repeats = 1 if view.held_out else view.repeats or section.repeats
    directory: dict[str, Any] = {
        "path": str(view.path),
        "resolutions": sorted(set(section.resolutions)),
        "num_repeats": repeats,
    }
    if entry.modality == "clip" and view.kind == "clip":
        directory["frame_buckets"] = sorted(set(section.frames))
    if view.masks:
        directory["mask_path"] = str(view.masks)
    if view.controls:
        directory["control_path"] = str(view.controls)
    return directory


def _text(config: Mapping[str, Any]) -> str:
    document = tomlkit.document()
    for key, value in config.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and key == "directory":
            tables = tomlkit.aot()
            for each in value:
                table = tomlkit.table()
                table.update(each)
                tables.append(table)
            document.add(key, tables)
        elif isinstance(value, dict):
            table = tomlkit.table()
            for inner, held in value.items():
                table.add(inner, _plain(held))
            document.add(key, table)
        else:
            document.add(key, _plain(value))
    return tomlkit.dumps(document)


def _plain(value: Any) -> Any:
    """Lists of tables as inline tables on one line each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        array = tomlkit.array()
        for each in value:
            inline = tomlkit.inline_table()
            inline.update(each)
            array.append(inline)
        return array
    return value


def _stage(name: str, context: RenderContext, main: PurePosixPath, arguments: list[str]) -> RenderedStage:
    """One command. `python -m` in place of the script `deepspeed`, whose first line breaks when an environment moves."""
    chosen = ["--include", f"localhost:{context.devices}"] if context.devices else [f"--num_gpus={context.gpus}"]
    argv = [
        str(context.python),
        "-m",
        "deepspeed.launcher.runner",
        *chosen,  # without one of these the launcher takes every GPU of the machine
        "train.py",
        "--deepspeed",
        "--config",
        str(context.folder / main),
        "--master_port",
        str(context.port),
        *arguments,
    ]
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    if context.gpus == 1:
        env |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}  # its README: GeForce 40 cards hang without
    return RenderedStage(name, argv, context.home, env)


def _notes(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any]) -> list[str]:
    notes = []
    if recipe.previews.at_start or recipe.previews.every or recipe.previews.at_end:
        notes.append("diffusion-pipe draws no previews; look at a LoRA with `lorapod sample` or in ComfyUI.")
    notes.append("diffusion-pipe has no seed of its own: two runs of this recipe differ a little.")
    if keeps_fp8(entry, recipe) and "transformer_dtype" not in own.get("model", {}):
        notes.append(
            f"The weights of {entry.title} are kept in fp8, as is usual for a LoRA of it; for bf16 set "
            '`transformer_dtype = "bfloat16"` in [trainer_options.diffusion-pipe.model].'
        )
    if not recipe.saving.lora_every and recipe.saving.checkpoint_every:
        notes.append(
            f"A LoRA file is kept every {recipe.saving.checkpoint_every} steps, since none can be made of a checkpoint of "
            "diffusion-pipe."
        )
    if model_type(entry) == "sdxl" and not {"text_encoder_1_lr", "text_encoder_2_lr"} & own.get("model", {}).keys():
        notes.append("The text encoders of SDXL are left as they are (learning rate 0).")
    if recipe.training.steps and recipe.optimizer.schedule.value != "constant" and not context.steps_per_epoch:
        notes.append(
            f"The schedule {recipe.optimizer.schedule.value} runs over `epochs` of main.toml; where the data is not at hand "
            "that is one a step, so that it hardly falls. `lorapod train` counts them."
        )
    return notes
