"""From a recipe to the files that musubi-tuner is given and the command lines of its stages.

The stages are: cache latents, cache captions, and a training for each network (two for both experts of Wan 2.2 A14B, one
after the other). Alpha is always given, since its default there is 1. Not covered: full fine-tuning, one LoRA for both
experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import (
    Checkpointing,
    OptimizerKind,
    Precision,
    Quantization,
    ScheduleKind,
    Targets,
    TimestepSampling,
)
from lorapod.trainers.musubi.architectures import (
    ARCHITECTURES,
    FP8_FROM_PARAMETERS,
    Architecture,
    Denoiser,
    denoisers,
    image_encoder,
    makes_clips_of_pictures,
)
from lorapod.trainers.musubi.data_files import dataset_of, prompts_of, wants_previews
from lorapod.trainers.musubi.interface import check_own
from lorapod.trainers.musubi.limits import NETWORKS, OPTIMIZERS, check, own_options
from lorapod.trainers.rendering import (
    RenderContext,
    RenderedFile,
    RenderedStage,
    Rendering,
    ResumePoint,
    View,
    assumed_views,
)

Options = dict[str, Any]
"""Command-line options by name: True is a flag, False and None leave the option out, a list gives several values."""

_FALLING = {
    ScheduleKind.COSINE: ("CosineAnnealingLR", "T_max"),
    ScheduleKind.LINEAR: ("PolynomialLR", "total_iters"),
}
"""Schedules of torch.optim.lr_scheduler that go on as the recipe's, with the argument that is their length."""

_DATASET, _PROMPTS = PurePosixPath("dataset.toml"), PurePosixPath("prompts.txt")


def render(recipe: Recipe, entry: Entry, context: RenderContext, own: Mapping[str, Any] | None = None) -> Rendering:
    """Everything for one run.

    Args:
        own: A person's own options in place of the recipe's: `dataset` for the [general] table, and `cache_latents`,
            `cache_text` and `train` for the command lines, by option name without dashes.

    Raises:
        RequestError: The trainer cannot do what the recipe asks for, or does not know one of the person's own options.
        BaseModelError: It does not train this base model.
    """
    check(recipe, entry)
    own = own_options(recipe) if own is None else own
    check_own(own, entry.family)
    architecture, networks = ARCHITECTURES[entry.family], denoisers(entry, recipe.base_model.expert.value)
    views = context.views or assumed_views(recipe, entry, context)
    notes = _notes(recipe, entry, context, views)
    dataset = dataset_of(recipe, entry, context, views, own.get("dataset", {}))
    files = [RenderedFile(_DATASET, tomlkit.dumps(dataset))]
    previews = prompts_of(recipe, entry, context, architecture)
    if previews:
        files.append(RenderedFile(_PROMPTS, previews))
    stages = [
        _stage("cache latents", "cache_latents", _latents(entry, context), own, architecture, context),
        _stage("cache text", "cache_text", _captions(entry, context, architecture), own, architecture, context),
    ]
    for network in networks:
        options = _training(recipe, entry, context, network, architecture, previews=bool(previews))
        goes_on = context.resume.get(train_stage(network))
        options |= _start(recipe, context, goes_on, own.get("train", {}), draws=bool(previews))
        stages.append(_stage(train_stage(network), "train", options, own, architecture, context))
    return Rendering(files, stages, notes)


def train_stage(network: Denoiser) -> str:
    """Name of the stage that trains it."""
    return f"train{network.name}"


def start_folder(output: Path, step: int) -> Path:
    """Where a training that goes on from `step` writes: it counts from 0 again and would overwrite what is there."""
    return output / f"from-{step:06d}"


def _start(
    recipe: Recipe, context: RenderContext, goes_on: ResumePoint | None, own: Mapping[str, Any], *, draws: bool
) -> Options:
    """Where a training begins.

    Its `--resume` restores weights, optimizer and how far the schedule is, yet neither counts on nor knows how long the
    schedule was: it is told what is left to train, and a falling schedule is given as one of torch's that says its own
    length. That one falls as the former one where there is no warm-up, and to the same end where there is.
    """
    if goes_on is None:
        return {"output_dir": start_folder(context.output, 0)}
    options: Options = {"output_dir": start_folder(context.output, goes_on.step), "resume": goes_on.name}
    options["sample_at_first"] = False  # what it drew when it was saved
    if goes_on.total is not None:
        left = max(1, goes_on.total - goes_on.step)
        options |= {"max_train_steps": left, "max_train_epochs": None}
        if draws and recipe.previews.at_end and not recipe.previews.every:
            options |= {"sample_every_n_steps": left, "sample_every_n_epochs": None}
        schedule = _FALLING.get(recipe.optimizer.schedule)
        if schedule and "lr_scheduler" not in own:
            options |= {"lr_scheduler": "constant", "lr_warmup_steps": None}
            options |= {"lr_scheduler_type": schedule[0], "lr_scheduler_args": [f"{schedule[1]}={goes_on.total}"]}
    return options


def _notes(recipe: Recipe, entry: Entry, context: RenderContext, views: list[View]) -> list[str]:
    notes = []
    if any(dataset.caption_dropout for dataset in recipe.datasets):
        notes.append("musubi-tuner has no caption dropout: `caption_dropout` is not used.")
    if any(dataset.validation_share for dataset in recipe.datasets):
        notes.append("musubi-tuner does not evaluate on held-out items: all items are trained on.")
    if any(view.kind == "clip" and view.fps is None for view in views):
        notes.append("The clips' frame rate is not known here: they are used frame by frame, whatever their rate.")
    if makes_clips_of_pictures(entry) and wants_previews(recipe) and not recipe.previews.first_frames:
        notes.append(
            "No previews: this base model needs `previews.first_frames`, and musubi-tuner takes none of its own."
        )
    if entry.control and wants_previews(recipe) and not (context.views or recipe.previews.control):
        notes.append("Previews start from control pictures of the data, which `prompts.txt` names once it is at hand.")
    if recipe.adapter.targets is Targets.ALL:
        notes.append("musubi-tuner leaves the modulation layers of a block out, whatever `adapter.targets` says.")
    if note := entry.trainers["musubi"].note:
        notes.append(note)
    return notes


def _version(entry: Entry) -> Options:
    return {"model_version": entry.trainers["musubi"].options.get("model_version")}


def _latents(entry: Entry, context: RenderContext) -> Options:
    options: Options = {"vae": context.model_files["single-files/vae"], "skip_existing": True, **_version(entry)}
    if clip := image_encoder(entry, context.model_files):
        options["clip"] = clip  # which implies --i2v
    elif makes_clips_of_pictures(entry):
        options["i2v"] = True
    return options


def _captions(entry: Entry, context: RenderContext, architecture: Architecture) -> Options:
    encoders = {option: context.model_files[part] for option, part in architecture.text.items()}
    # Encoded anew each time: the cache of a caption is named by its media file alone, so that a change would be missed.
    return {**encoders, "batch_size": architecture.text_batch, **_version(entry)}


def _training(
    recipe: Recipe,
    entry: Entry,
    context: RenderContext,
    network: Denoiser,
    architecture: Architecture,
    *,
    previews: bool,
) -> Options:
    training, saving = recipe.training, recipe.saving
    options: Options = {"task": entry.trainers["musubi"].options.get("task"), **_version(entry)}
    options |= {"dit": context.model_files[network.part], "sdpa": True}
    options["mixed_precision"] = "no" if training.precision is Precision.FP32 else network.dtype
    large = (entry.parameters or 0) >= FP8_FROM_PARAMETERS and training.precision is not Precision.FP32
    if (quantize := recipe.base_model.quantize) is Quantization.FP8 or (quantize is Quantization.AUTO and large):
        options |= {"fp8_base": True, "fp8_scaled": True}
    options["gradient_checkpointing"] = training.gradient_checkpointing is not Checkpointing.OFF
    if isinstance(training.swap_blocks, int) and training.swap_blocks:
        options["blocks_to_swap"] = training.swap_blocks
    options["compile"] = training.compile is True  # its own default, which `auto` leaves it at, is not to
    options |= _adapter(recipe, context, architecture) | _optimizer(recipe) | _noise(recipe, network, architecture)
    if training.epochs is not None:
        options["max_train_epochs"] = training.epochs
    else:
        options["max_train_steps"] = training.steps
    options |= {"gradient_accumulation_steps": training.accumulation, "seed": training.seed}
    options |= {"max_data_loader_n_workers": 2, "persistent_data_loader_workers": True}
    every = saving.lora_every or saving.checkpoint_every
    if every:
        options["save_every_n_steps"] = every
    if saving.checkpoint_every:
        options |= {"save_state": True, "save_last_n_steps_state": saving.keep_checkpoints * every}
    options["save_state_on_train_end"] = True
    options["save_precision"] = "bf16" if saving.precision is Precision.BF16 else "float"
    options["output_name"] = recipe.name + network.name
    options |= {"logging_dir": context.output.parent / "tensorboard", "log_with": "tensorboard"}
    options["metadata_title"] = recipe.name + network.name
    if previews:
        options |= _sampling(recipe, entry, context, architecture)
    return options


def _adapter(recipe: Recipe, context: RenderContext, architecture: Architecture) -> Options:
    adapter = recipe.adapter
    arguments = []
    if adapter.targets is Targets.ATTENTION:
        arguments.append(f"exclude_patterns=[r'{architecture.feed_forward}']")
    options: Options = {
        "network_module": NETWORKS.get(adapter.kind, architecture.network),
        "network_dim": adapter.rank,
        "network_alpha": f"{recipe.alpha:g}",
        "network_dropout": adapter.dropout or None,
        "network_args": arguments or None,
    }
    base = recipe.base_model
    if base.training_adapter != "none":
        catalogued = context.model_files.get("single-files/training_adapter")
        options["base_weights"] = [catalogued if base.training_adapter == "catalogue" else base.training_adapter]
        options["base_weights_multiplier"] = [f"{base.training_adapter_strength:g}"]
    return options


def _optimizer(recipe: Recipe) -> Options:
    optimizer = recipe.optimizer
    arguments = [f"weight_decay={optimizer.weight_decay:g}"]
    if optimizer.kind is OptimizerKind.ADAFACTOR:
        arguments += ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    else:
        arguments.append(f"betas=({optimizer.betas[0]:g},{optimizer.betas[1]:g})")
    schedule: str = optimizer.schedule.value
    if optimizer.schedule is ScheduleKind.CONSTANT and optimizer.warmup_steps:
        schedule = "constant_with_warmup"  # `constant` with a warm-up is an error there
    return {
        "optimizer_type": OPTIMIZERS[optimizer.kind],
        "optimizer_args": arguments,
        "learning_rate": f"{optimizer.learning_rate:g}",
        "lr_scheduler": schedule,
        "lr_warmup_steps": optimizer.warmup_steps or None,
        "max_grad_norm": f"{optimizer.clip_norm:g}",
    }


def _noise(recipe: Recipe, network: Denoiser, architecture: Architecture) -> Options:
    training = recipe.training
    options: Options = {"weighting_scheme": "none"}
    if training.resolution_shift:
        options["timestep_sampling"] = architecture.shift_by_size
    elif training.timestep_sampling is TimestepSampling.UNIFORM:
        options["timestep_sampling"] = "uniform"
    else:  # the sigmoid of a normal, shifted: what the recipe calls logit-normal
        options |= {"timestep_sampling": "shift", "discrete_flow_shift": f"{training.timestep_shift:g}"}
    if network.timesteps is not None:
        lowest, highest = network.timesteps
        options |= {"min_timestep": lowest, "max_timestep": highest, "preserve_distribution_shape": True}
    return options


def _sampling(recipe: Recipe, entry: Entry, context: RenderContext, architecture: Architecture) -> Options:
    options: Options = {"sample_prompts": context.folder / _PROMPTS, "vae": context.model_files["single-files/vae"]}
    options |= {option: context.model_files[part] for option, part in architecture.text.items()}
    if clip := image_encoder(entry, context.model_files):
        options["clip"] = clip
    options["sample_at_first"] = recipe.previews.at_start
    if recipe.previews.every:
        options["sample_every_n_steps"] = recipe.previews.every
    elif recipe.previews.at_end and recipe.training.epochs is not None:
        options["sample_every_n_epochs"] = recipe.training.epochs
    elif recipe.previews.at_end:
        options["sample_every_n_steps"] = recipe.training.steps
    return options


def _stage(
    name: str, kind: str, options: Options, own: Mapping[str, Any], architecture: Architecture, context: RenderContext
) -> RenderedStage:
    suffix = {"cache_latents": "cache_latents", "cache_text": "cache_text_encoder_outputs", "train": "train_network"}[
        kind
    ]
    script = context.home / "src" / "musubi_tuner" / f"{architecture.scripts}_{suffix}.py"
    options = {"dataset_config": context.folder / _DATASET, **options, **own.get(kind, {})}
    argv = [str(context.python)]
    if kind == "train":
        argv += ["-m", "accelerate.commands.launch", "--num_processes", str(context.gpus), "--num_machines", "1"]
        argv += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
        argv += ["--mixed_precision", str(options["mixed_precision"])]
    environment = {"PYTHONUNBUFFERED": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return RenderedStage(name, [*argv, str(script), *_words(options)], context.home, environment)


def _words(options: Options) -> list[str]:
    words: list[str] = []
    for option, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{option}")
        if value is not True:
            words += [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    return words
