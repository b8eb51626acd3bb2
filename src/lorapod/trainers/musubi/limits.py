"""What musubi-tuner cannot do of what a recipe can ask for, said before anything is started.

Facts: its documentation and sources at the commit in `interface.toml`.
"""

from __future__ import annotations

from typing import Any

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import (
    AdapterKind,
    ClipWindows,
    LoraFormat,
    OptimizerKind,
    Targets,
    TimestepSampling,
    TrainerName,
)
from lorapod.trainers.controls import check_control
from lorapod.trainers.musubi.architectures import ARCHITECTURES
from lorapod.trainers.musubi.interface import check_own, interface
from lorapod.trainers.rendering import beyond_external

OPTIMIZERS = {
    OptimizerKind.ADAMW: "adamw",
    OptimizerKind.ADAMW_8BIT: "adamw8bit",
    OptimizerKind.PRODIGY: "prodigyopt.Prodigy",
    OptimizerKind.ADAFACTOR: "adafactor",
}
NETWORKS = {AdapterKind.LOKR: "networks.lokr", AdapterKind.LOHA: "networks.loha"}
WINDOWS = {
    ClipWindows.HEAD: "head",
    ClipWindows.UNIFORM: "uniform",
    ClipWindows.EVERY: "chunk",
}


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
    if adapter.kind not in (AdapterKind.LORA, *NETWORKS):
        raise _cannot(f"train adapters of kind {adapter.kind.value}", "adapter.kind", entry, "builtin")
    if beyond := beyond_external(recipe):
        raise _cannot(*beyond, entry, "builtin")
    if adapter.continue_from:
        raise _cannot("start from a LoRA file in the key layouts of lorapod", "adapter.continue_from", entry, "builtin")
    if recipe.optimizer.kind not in OPTIMIZERS:
        raise _cannot(f"use the optimizer {recipe.optimizer.kind.value}", "optimizer.kind", entry, "builtin")
    for key in ("min_snr_gamma", "first_frame_share"):  # for SDXL and Wan 2.2 TI2V, which it does not train
        if getattr(training, key):
            raise _cannot(f"train with `{key}`", f"training.{key}", entry)
    _check_noise(recipe, entry)
    if adapter.targets is Targets.ATTENTION and ARCHITECTURES[entry.family].feed_forward is None:
        what = f"adapt the attention of {entry.title} alone, whose layers it has fused with others"
        raise _cannot(what, "adapter.targets", entry, "builtin", "diffusion-pipe")
    if recipe.saving.formats != [LoraFormat.COMFYUI]:
        raise RequestError(
            "musubi-tuner writes no other layout than ComfyUI's",
            "The recipe asks for others in `saving.formats`.",
            'Set `formats = ["comfyui"]`, and make the others with `lorapod lora convert` afterwards.',
        )
    for index, dataset in enumerate(recipe.datasets):
        for key in ("masks", "alpha_masks", "shuffle_tags", "caption_per_line"):
            if getattr(dataset, key):
                raise _cannot(f"train with `{key}`", f"datasets.{index}.{key}", entry, "builtin", "diffusion-pipe")
        if dataset.clip_windows not in WINDOWS:
            key = f"datasets.{index}.clip_windows"
            raise _cannot("take the middle of clips", key, entry, "builtin", "diffusion-pipe")
    check_control(recipe, entry, TrainerName.MUSUBI)
    about_control = own_options(recipe).get("dataset", {}).keys() & interface()["control"].keys()
    if about_control and not any(dataset.control for dataset in recipe.datasets):
        raise RequestError(
            f"`dataset.{min(about_control)}` is for control pictures, and no dataset has any",
            "It would do nothing.",
            "Leave it out of [trainer_options.musubi.dataset], or name `control` in a dataset.",
        )
    for prompt in [*recipe.previews.prompts, recipe.previews.negative_prompt]:
        if " --" in prompt:
            raise RequestError(
                f"musubi-tuner would read a part of this prompt as an option: {prompt}",
                "It takes what follows two dashes for one.",
                "Write the prompt without ` --`.",
            )


def _check_noise(recipe: Recipe, entry: Entry) -> None:
    training = recipe.training
    is_uniform = training.timestep_sampling is TimestepSampling.UNIFORM
    if is_uniform and (training.timestep_shift != 1 or training.resolution_shift):
        key = "resolution_shift" if training.resolution_shift else "timestep_shift"
        raise _cannot("shift uniform timesteps", f"training.{key}", entry, "builtin")
    if not training.resolution_shift:
        return
    if not ARCHITECTURES[entry.family].shift_by_size:
        what = f"shift by the size of the picture with {entry.title}"
        raise _cannot(what, "training.resolution_shift", entry, "diffusion-pipe")
    if training.timestep_shift != 1:
        what = "shift by the size of the picture and by a number"
        raise _cannot(what, "training.timestep_shift", entry, "builtin")


def _cannot(what: str, key: str, entry: Entry, *can: str) -> RequestError:
    """The error; `can`: trainers that do so, of which those are named that train the base model."""
    named = [name for name in can if name in entry.trainers]
    who = f"{' and '.join(named)} can" if named else f"no other trainer does so with {entry.title}"
    return RequestError(
        f"musubi-tuner cannot {what}", f"The recipe asks for it in `{key}`; {who}.", "Change one of them."
    )
