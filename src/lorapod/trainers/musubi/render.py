"""From a recipe to musubi-tuner's dataset TOML, its prompt file and the command lines of its stages.

The stages are: cache latents, cache captions, and a training for each network (two for both experts of Wan 2.2 A14B, one
after the other). Alpha is always given, since its default there is 1. Caches are named by what they are made from, so
that a changed resolution, VAE or window never meets a stale one. Not covered: full fine-tuning, one LoRA for both experts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import (
    AdapterKind,
    Checkpointing,
    ClipWindows,
    LoraFormat,
    OptimizerKind,
    Precision,
    Quantization,
    ScheduleKind,
    Targets,
    TimestepSampling,
    TrainerName,
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
from lorapod.trainers.musubi.interface import check_own
from lorapod.trainers.rendering import (
    RenderContext,
    RenderedFile,
    RenderedStage,
    Rendering,
    ResumePoint,
    View,
    beyond_external,
)

Options = dict[str, Any]
"""Command-line options by name: True is a flag, False and None leave the option out, a list gives several values."""

_OPTIMIZERS = {
    OptimizerKind.ADAMW: "adamw",
    OptimizerKind.ADAMW_8BIT: "adamw8bit",
    OptimizerKind.PRODIGY: "prodigyopt.Prodigy",
    OptimizerKind.ADAFACTOR: "adafactor",
}
_NETWORKS = {AdapterKind.LOKR: "networks.lokr", AdapterKind.LOHA: "networks.loha"}
_WINDOWS = {
    ClipWindows.HEAD: "head",
    ClipWindows.UNIFORM: "uniform",
    ClipWindows.EVERY: "chunk",
}
_FALLING = {
    ScheduleKind.COSINE: ("CosineAnnealingLR", "T_max"),
    ScheduleKind.LINEAR: ("PolynomialLR", "total_iters"),
}
"""Schedules of torch.optim.lr_scheduler that go on as the recipe's, with the argument that is their length."""

_DATASET, _PROMPTS = PurePosixPath("dataset.toml"), PurePosixPath("prompts.txt")


def own_options(recipe: Recipe) -> dict[str, Any]:
    """The person's own options for musubi-tuner."""
    return recipe.trainer_options.get(TrainerName.MUSUBI, {})


def check(recipe: Recipe, entry: Entry) -> None:
    """Refuses what musubi-tuner cannot do.

    Raises:
        RequestError: What it is, and which trainers can.
        BaseModelError: It does not train this base model.
    """
    entry.files_for("musubi")
    check_own(own_options(recipe), entry.family)
    training, adapter = recipe.training, recipe.adapter
    if adapter.kind not in (AdapterKind.LORA, *_NETWORKS):
        raise _cannot(f"train adapters of kind {adapter.kind.value}", "adapter.kind", "builtin can")
    if beyond := beyond_external(recipe):
        raise _cannot(*beyond, "builtin can")
    if adapter.continue_from:
        raise _cannot("start from a LoRA file in the key layouts of lorapod", "adapter.continue_from", "builtin can")
    if recipe.optimizer.kind not in _OPTIMIZERS:
        raise _cannot(f"use the optimizer {recipe.optimizer.kind.value}", "optimizer.kind", "builtin can")
    if training.timestep_sampling is TimestepSampling.UNIFORM and training.timestep_shift != 1:
        raise _cannot("shift uniform timesteps", "training.timestep_shift", "builtin can")
    if training.min_snr_gamma or training.first_frame_share:
        key = "min_snr_gamma" if training.min_snr_gamma else "first_frame_share"
        raise _cannot(f"train with `{key}`", f"training.{key}", "builtin can")
    if training.resolution_shift and not ARCHITECTURES[entry.family].shift_by_size:
        raise _cannot("shift by the size of the picture here", "training.resolution_shift", "builtin can")
    if recipe.saving.formats != [LoraFormat.COMFYUI]:
        raise _cannot("write other layouts than ComfyUI's", "saving.formats", "`lorapod lora convert` makes them")
    for index, dataset in enumerate(recipe.datasets):
        for key, who in (
            ("masks", "diffusion-pipe can"), ("alpha_masks", "no other trainer can yet"), ("shuffle_tags", "builtin can"),
            ("caption_per_line", "builtin and diffusion-pipe can"),
            ("control", "no base model of the catalogue for musubi takes them"),
        ):  # fmt: skip
            if getattr(dataset, key):
                raise _cannot(f"train with `{key}`", f"datasets.{index}.{key}", who)
        if dataset.clip_windows not in _WINDOWS:
            raise _cannot(
                "take the middle of clips", f"datasets.{index}.clip_windows", "builtin and diffusion-pipe can"
            )
    for prompt in [*recipe.previews.prompts, recipe.previews.negative_prompt]:
        if " --" in prompt:
            raise RequestError(
                f"musubi-tuner would read a part of this prompt as an option: {prompt}",
                "It takes what follows two dashes for one.",
                "Write the prompt without ` --`.",
            )


def _cannot(what: str, key: str, who: str) -> RequestError:
    return RequestError(
        f"musubi-tuner cannot {what}", f"The recipe asks for it in `{key}`; {who}.", "Change one of them."
    )


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
    views = context.views or [
        View(index, "clip" if entry.modality == "clip" else "picture", path) for index, path in enumerate(context.data)
    ]
    notes = _notes(recipe, entry, views)
    dataset = _dataset(recipe, entry, context, views, own.get("dataset", {}))
    files = [RenderedFile(_DATASET, tomlkit.dumps(dataset))]
    previews = _prompts(recipe, entry)
    if previews:
        files.append(RenderedFile(_PROMPTS, previews))
    stages = [
        _stage("cache latents", "cache_latents", _latents(entry, context), own, architecture, context),
        _stage("cache text", "cache_text", _captions(entry, context, architecture), own, architecture, context),
    ]
    for network in networks:
        options = _training(recipe, entry, context, network, architecture, previews=bool(previews))
        goes_on = context.resume.get(train_stage(network))
        options |= _start(recipe, context, goes_on, own.get("train", {}))
        stages.append(_stage(train_stage(network), "train", options, own, architecture, context))
    return Rendering(files, stages, notes)


def train_stage(network: Denoiser) -> str:
    """Name of the stage that trains it."""
    return f"train{network.name}"


def start_folder(output: Path, step: int) -> Path:
    """Where a training that goes on from `step` writes: it counts from 0 again and would overwrite what is there."""
    return output / f"from-{step:06d}"


def _start(recipe: Recipe, context: RenderContext, goes_on: ResumePoint | None, own: Mapping[str, Any]) -> Options:
    """Where a training begins.

    Its `--resume` restores weights, optimizer and how far the schedule is, yet neither counts on nor knows how long the
    schedule was: it is told what is left to train, and a falling schedule is given as one of torch's that says its own
    length. That one falls as the former one where there is no warm-up, and to the same end where there is.
    """
    if goes_on is None:
        return {"output_dir": start_folder(context.output, 0)}
    options: Options = {"output_dir": start_folder(context.output, goes_on.step), "resume": goes_on.name}
    if goes_on.total is not None:
        options |= {"max_train_steps": max(1, goes_on.total - goes_on.step), "max_train_epochs": None}
        schedule = _FALLING.get(recipe.optimizer.schedule)
        if schedule and "lr_scheduler" not in own:
            options |= {"lr_scheduler": "constant", "lr_warmup_steps": None}
            options |= {"lr_scheduler_type": schedule[0], "lr_scheduler_args": [f"{schedule[1]}={goes_on.total}"]}
    return options


def _notes(recipe: Recipe, entry: Entry, views: list[View]) -> list[str]:
    notes = []
    if any(dataset.caption_dropout for dataset in recipe.datasets):
        notes.append("musubi-tuner has no caption dropout: `caption_dropout` is not used.")
    if any(dataset.validation_share for dataset in recipe.datasets):
        notes.append("musubi-tuner does not evaluate on held-out items: all items are trained on.")
    if any(view.kind == "clip" and view.fps is None for view in views):
        notes.append("The clips' frame rate is not known here: they are used frame by frame, whatever their rate.")
    if makes_clips_of_pictures(entry) and _wanted_previews(recipe) and not recipe.previews.first_frames:
        notes.append(
            "No previews: this base model needs `previews.first_frames`, and musubi-tuner takes none of its own."
        )
    if recipe.adapter.targets is Targets.ALL:
        notes.append("musubi-tuner leaves the modulation layers of a block out, whatever `adapter.targets` says.")
    if note := entry.trainers["musubi"].note:
        notes.append(note)
    return notes


def _dataset(
    recipe: Recipe, entry: Entry, context: RenderContext, views: list[View], own: Mapping[str, Any]
) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    # Clips are always cached into buckets with up-scaling; other settings here would group them differently in training.
    general = {"caption_extension": ".txt", "batch_size": recipe.training.batch_size, "enable_bucket": True}
    document["general"] = {**general, "bucket_no_upscale": False, **own}
    made_from = [str(path) for part, path in sorted(context.model_files.items()) if "transformer" not in part]
    tables = tomlkit.aot()
    for view in views:
        section = recipe.datasets[view.dataset]
        for side in section.resolutions:
            table = tomlkit.table()
            table["resolution"] = [side, side]
            table["num_repeats"] = view.repeats if view.repeats and not view.held_out else section.repeats
            clip: dict[str, Any] = {}
            if view.kind == "clip":
                clip["target_frames"] = sorted({frames - (frames - 1) % 4 for frames in section.frames})
                clip["frame_extraction"] = _WINDOWS[section.clip_windows]
                if section.clip_windows is ClipWindows.UNIFORM:
                    clip["frame_sample"] = section.windows_per_clip
                if view.fps is not None:
                    clip["source_fps"] = float(view.fps)
            key = [entry.name, str(view.path), side, clip, made_from]
            name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
            table["video_directory" if view.kind == "clip" else "image_directory"] = str(view.path)
            table["cache_directory"] = str(cache_folder(context) / f"{view.dataset}-{side}-{name}")
            table.update(clip)
            tables.append(table)
    document["datasets"] = tables
    return document


def cache_folder(context: RenderContext) -> Path:
    """Where the caches are: beside the trainer's output, outside of the folders of the data."""
    return context.output.parent / "cache"


def _wanted_previews(recipe: Recipe) -> bool:
    previews = recipe.previews
    return bool(previews.prompts) and bool(previews.every or previews.at_start or previews.at_end)


def _prompts(recipe: Recipe, entry: Entry) -> str:
    """The prompt file, a line a preview; empty where there is nothing to draw."""
    previews = recipe.previews
    if not _wanted_previews(recipe) or (makes_clips_of_pictures(entry) and not previews.first_frames):
        return ""
    lines = []
    for number, prompt in enumerate(previews.prompts):
        for seed in previews.seeds:
            words = [" ".join(prompt.split()), f"--w {previews.width} --h {previews.height} --f {previews.frames}"]
            words.append(f"--d {seed} --s {previews.steps} --l {previews.guidance:g}")
            if makes_clips_of_pictures(entry):
                words.append(f"--i {previews.first_frames[number % len(previews.first_frames)]}")
            if previews.negative_prompt:
                words.append(f"--n {' '.join(previews.negative_prompt.split())}")
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


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
        "network_module": _NETWORKS.get(adapter.kind, architecture.network),
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
        "optimizer_type": _OPTIMIZERS[optimizer.kind],
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
