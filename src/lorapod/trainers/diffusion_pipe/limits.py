"""What diffusion-pipe cannot do, refused before anything is started, and what it does otherwise than the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import (
    AdapterKind,
    ClipWindows,
    LoraFormat,
    OptimizerKind,
    Precision,
    ScheduleKind,
    Targets,
    TimestepSampling,
)
from lorapod.trainers.diffusion_pipe.networks import NETWORKS, TRAINER, most_swapped, needs_one_size, takes_clips_only
from lorapod.trainers.rendering import RenderContext, beyond_external

OPTIMIZERS = {
    OptimizerKind.ADAMW: "adamw_optimi",
    OptimizerKind.ADAMW_8BIT: "AdamW8bitKahan",
    OptimizerKind.PRODIGY: "Prodigy",
}
"""`type` of [optimizer]. The first two sum bf16 weights with Kahan's correction, without which small updates are lost."""

WINDOWS = {ClipWindows.HEAD: "single_beginning", ClipWindows.MIDDLE: "single_middle"}
MOST_RESOLUTIONS = 3
"""With more, it prints a warning and leaves with success, without having trained."""


def check(recipe: Recipe, entry: Entry) -> None:
    """Refuses what diffusion-pipe cannot do.

    Raises:
        RequestError: What it is, and what can.
        BaseModelError: It does not train this base model.
    """
    entry.files_for(TRAINER)
    _check_adapter(recipe, entry)
    _check_training(recipe, entry)
    for index, _ in enumerate(recipe.datasets):
        _check_dataset(recipe, entry, index)


def _check_adapter(recipe: Recipe, entry: Entry) -> None:
    adapter, base, network = recipe.adapter, recipe.base_model, NETWORKS[entry.family]
    if adapter.kind is not AdapterKind.LORA and not (adapter.kind is AdapterKind.LOKR and network.lokr):
        can = "lora and lokr" if network.lokr else "lora"
        raise _cannot(f"train adapters of kind {adapter.kind.value} here", "adapter.kind", f"It can train {can}.")
    if beyond := beyond_external(adapter):
        raise _cannot(*beyond, "builtin can.")
    if recipe.alpha != adapter.rank:
        raise _cannot(
            "take an alpha other than the rank",
            "adapter.alpha",
            f"Leave it out, or set it to {adapter.rank} and scale the learning rate; builtin and musubi take any.",
        )
    if adapter.kind is AdapterKind.LOKR and adapter.dropout:
        raise _cannot("drop out inputs of a LoKr", "adapter.dropout", "It can for lora.")
    if adapter.targets is Targets.ATTENTION and not network.chosen_layers:
        raise _cannot("leave out layers of this base model", "adapter.targets", "builtin can.")
    if adapter.continue_from:
        raise _cannot(
            "start from a LoRA file in the key layouts of lorapod",
            "adapter.continue_from",
            "builtin can; a folder that diffusion-pipe saved itself is given to it as its key `adapter.init_from_existing`.",
        )
    if base.training_adapter != "none":
        if entry.family not in ("z_image", "flux"):
            raise _cannot(
                "merge a training adapter into this base model", "base_model.training_adapter", "builtin can."
            )
        if base.training_adapter_strength != 1 and entry.family != "flux":
            raise _cannot(
                "merge it at a strength other than 1", "base_model.training_adapter_strength", "builtin and musubi can."
            )
    only = entry.name.rpartition("-")[2]
    if only in ("high", "low") and base.expert.value not in ("both", only):
        raise RequestError(
            f"{entry.name} has no {base.expert.value}-noise expert",
            "It is one expert by itself.",
            "Leave `base_model.expert` out, or name the other base model.",
        )


def _check_training(recipe: Recipe, entry: Entry) -> None:
    training, optimizer, saving = recipe.training, recipe.optimizer, recipe.saving
    if optimizer.kind not in OPTIMIZERS:
        can = ", ".join(kind.value for kind in OPTIMIZERS)
        raise _cannot(
            f"use the optimizer {optimizer.kind.value}", "optimizer.kind", f"It can use {can}; builtin can this."
        )
    if optimizer.kind is OptimizerKind.PRODIGY and optimizer.learning_rate < 0.1:
        raise RequestError(
            f"Prodigy hardly trains at a learning rate of {optimizer.learning_rate:g}",
            "It finds the rate itself and multiplies it by this one.",
            "Set `optimizer.learning_rate = 1.0`.",
        )
    if optimizer.schedule is not ScheduleKind.CONSTANT and training.epochs is None:
        raise _cannot(
            f"end a {optimizer.schedule.value} schedule at a number of steps",
            "optimizer.schedule",
            "Give `training.epochs` in place of `training.steps`, or a constant schedule; builtin and musubi can.",
        )
    if entry.family == "sdxl":
        # Its text encoders are kept as they are by a rate of 0, which neither of these leaves at 0.
        if optimizer.kind is OptimizerKind.PRODIGY:
            raise _cannot(
                "leave SDXL's text encoders as they are with Prodigy",
                "optimizer.kind",
                "It uses one rate for all; take adamw or adamw-8bit; builtin can.",
            )
        if optimizer.schedule is ScheduleKind.COSINE:
            raise _cannot(
                "leave SDXL's text encoders as they are with a cosine schedule",
                "optimizer.schedule",
                "That ends at a rate of 1e-6 wherever it began; take linear or constant; builtin can.",
            )
    if training.precision is not Precision.BF16:
        raise _cannot("train in fp32 as lorapod runs it", "training.precision", 'builtin can; set "bf16".')
    if training.first_frame_share:
        raise _cannot("train with a given first frame", "training.first_frame_share", "builtin can; set it to 0.")
    if training.min_snr_gamma and entry.family != "sdxl":
        raise _cannot("weigh the loss by Min-SNR here", "training.min_snr_gamma", "It can for SDXL; set it to 0.")
    if entry.family == "sdxl":
        for key, asked in (
            ("timestep_sampling", training.timestep_sampling is not TimestepSampling.UNIFORM),
            ("timestep_shift", training.timestep_shift != 1),
            ("resolution_shift", training.resolution_shift),
        ):
            if asked:
                raise _cannot("draw timesteps of SDXL other than uniformly", f"training.{key}", "Leave it out.")
    elif training.resolution_shift and NETWORKS[entry.family].mu is None:
        raise _cannot(
            "shift by the size of the picture here",
            "training.resolution_shift",
            "Set `training.timestep_shift`; it can for FLUX.1 and Qwen-Image.",
        )
    sizes = {size for dataset in recipe.datasets for size in dataset.resolutions}
    if needs_one_size(recipe, entry) and len(sizes) > 1:
        raise _cannot(
            "shift by the size of the picture as this base model's sampler does with several resolutions",
            "training.resolution_shift",
            "Give one resolution, or false and a `training.timestep_shift`; builtin can.",
        )
    native = NETWORKS[entry.family].layout
    unknown = [f.value for f in saving.formats if f not in (native, LoraFormat.COMFYUI)]
    if unknown:
        raise _cannot(
            f"write LoRA files as {unknown[0]}",
            "saving.formats",
            f"It writes {native.value} here; `lorapod lora convert` makes the others of it.",
        )
    for key, values in (
        ("clip_windows", {dataset.clip_windows for dataset in recipe.datasets}),
        ("caption_dropout", {dataset.caption_dropout for dataset in recipe.datasets}),
    ):
        if len(values) > 1 and (key != "clip_windows" or entry.modality == "clip"):
            raise _cannot(f"use another `{key}` for each dataset", f"datasets.{key}", "Give all the same; builtin can.")


def _check_dataset(recipe: Recipe, entry: Entry, index: int) -> None:
    dataset, place = recipe.datasets[index], f"datasets.{index}"
    if len(dataset.resolutions) > MOST_RESOLUTIONS:
        raise _cannot(
            f"train at more than {MOST_RESOLUTIONS} resolutions",
            f"{place}.resolutions",
            "It would leave without training; builtin and musubi can.",
        )
    if entry.modality == "clip" and dataset.clip_windows not in WINDOWS:
        raise _cannot(
            f"take {dataset.clip_windows.value} stretches of clips",
            f"{place}.clip_windows",
            "It can take `head` and `middle`; builtin and musubi can this.",
        )
    if dataset.shuffle_tags and dataset.keep_tags:
        raise _cannot(
            "keep leading tags in their place", f"{place}.keep_tags", "Set it to 0 to shuffle all; builtin can."
        )
    if dataset.masks and dataset.unmasked_weight:
        raise _cannot("learn a little where masks are black", f"{place}.unmasked_weight", "Set it to 0; builtin can.")
    if dataset.alpha_masks:
        raise _cannot("take masks out of alpha channels", f"{place}.alpha_masks", "It can take `masks`; builtin can.")
    if dataset.control:
        raise _cannot("train this base model with control pictures", f"{place}.control", "No trainer can.")


def check_views(entry: Entry, context: RenderContext) -> None:
    """Refuses pictures for a base model that takes clips alone, where what the folders hold is known.

    Raises:
        RequestError: There are pictures; diffusion-pipe would fail while caching, and then hang.
    """
    pictures = [view for view in context.views if view.kind == "picture"]
    if pictures and takes_clips_only(entry):
        raise RequestError(
            f"{entry.title} trains on clips only, and dataset {pictures[0].dataset} holds pictures",
            "It makes a clip out of its first frame; a picture alone gives it nothing to learn.",
            "Take the pictures out, or train them on a T2V base model.",
        )


def check_memory_keys(own: Mapping[str, Any], entry: Entry, gpus: int) -> None:
    """Refuses a person's own keys that contradict each other, which diffusion-pipe finds only after caching.

    Raises:
        RequestError: Which key, and what it may be.
    """
    swapped, stages, most = own.get("blocks_to_swap", 0), own.get("pipeline_stages", 1), most_swapped(entry)
    if swapped > most or swapped < 0:
        allowed = f"0 to {most}" if most else "0 only: blocks of this base model cannot be swapped"
        raise RequestError(f"`blocks_to_swap` is {swapped}", f"It may be {allowed}.", "Change or leave it out.")
    if swapped and stages != 1:
        raise RequestError(
            "`blocks_to_swap` and `pipeline_stages` exclude each other",
            "Blocks are swapped on one GPU.",
            "Leave one of them out.",
        )
    if stages < 1 or gpus % stages:
        raise RequestError(
            f"`pipeline_stages` is {stages}, and there are {gpus} GPUs",
            "The number of GPUs has to be a multiple of it.",
            "Change or leave it out.",
        )
    loss = next((key for key in ("huber_delta", "smooth_l1_beta") if key in own), None)
    if loss and entry.family == "sdxl":
        raise RequestError(
            f"`{loss}` is not used for SDXL", "diffusion-pipe has a loss of its own there.", "Leave it out."
        )


def _cannot(what: str, key: str, remedy: str) -> RequestError:
    return RequestError(f"diffusion-pipe cannot {what}", f"The recipe asks for it in `{key}`.", remedy)
