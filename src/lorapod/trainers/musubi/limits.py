"""What musubi-tuner cannot do of what a recipe can ask for, said before anything is started.

Facts: its documentation and sources at the commit in `interface.toml`.
"""

from __future__ import annotations

from typing import Any

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import (
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
        raise _cannot(f"train adapters of kind {adapter.kind.value}", "adapter.kind", "builtin can")
    if beyond := beyond_external(recipe):
        raise _cannot(*beyond, "builtin can")
    if adapter.continue_from:
        raise _cannot("start from a LoRA file in the key layouts of lorapod", "adapter.continue_from", "builtin can")
    if recipe.optimizer.kind not in OPTIMIZERS:
        raise _cannot(f"use the optimizer {recipe.optimizer.kind.value}", "optimizer.kind", "builtin can")
    if training.timestep_sampling is TimestepSampling.UNIFORM and training.timestep_shift != 1:
        raise _cannot("shift uniform timesteps", "training.timestep_shift", "builtin can")
    if training.min_snr_gamma or training.first_frame_share:
        key = "min_snr_gamma" if training.min_snr_gamma else "first_frame_share"
        raise _cannot(f"train with `{key}`", f"training.{key}", "builtin can")
    if training.resolution_shift:
        if not ARCHITECTURES[entry.family].shift_by_size:
            raise _cannot("shift by the size of the picture here", "training.resolution_shift", "builtin can")
        if training.timestep_shift != 1:
            raise _cannot("shift by the size of the picture and by a number", "training.timestep_shift", "builtin can")
        if training.timestep_sampling is TimestepSampling.UNIFORM:
            raise _cannot("shift uniform timesteps", "training.resolution_shift", "builtin can")
    if adapter.targets is Targets.ATTENTION and ARCHITECTURES[entry.family].feed_forward is None:
        raise _cannot(
            f"adapt the attention of {entry.title} alone, whose layers it has fused with others",
            "adapter.targets",
            f"{_others(entry)} can",
        )
    if recipe.saving.formats != [LoraFormat.COMFYUI]:
        raise _cannot("write other layouts than ComfyUI's", "saving.formats", "`lorapod lora convert` makes them")
    for index, dataset in enumerate(recipe.datasets):
        for key, who in (
            ("masks", "diffusion-pipe can"), ("alpha_masks", "no other trainer can yet"), ("shuffle_tags", "builtin can"),
            ("caption_per_line", "builtin and diffusion-pipe can"),
        ):  # fmt: skip
            if getattr(dataset, key):
                raise _cannot(f"train with `{key}`", f"datasets.{index}.{key}", who)
        if dataset.clip_windows not in WINDOWS:
            raise _cannot(
                "take the middle of clips", f"datasets.{index}.clip_windows", "builtin and diffusion-pipe can"
            )
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


def _others(entry: Entry) -> str:
    return " and ".join(name for name in entry.trainers if name != TrainerName.MUSUBI)


def _cannot(what: str, key: str, who: str) -> RequestError:
    return RequestError(
        f"musubi-tuner cannot {what}", f"The recipe asks for it in `{key}`; {who}.", "Change one of them."
    )
