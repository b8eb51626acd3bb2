"""What diffusion-pipe cannot do of what a recipe can ask for, said before anything is started.

Facts: `train.py`, `utils/dataset.py`, `models/*.py` of the commit in `interface.toml`.
"""

from __future__ import annotations

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe, TrainerName
from lorapod.recipe.choices import AdapterKind, ClipWindows, LoraFormat, OptimizerKind, Targets, TimestepSampling
from lorapod.recipe.schema import DatasetSection
from lorapod.trainers.controls import check_control, who_else
from lorapod.trainers.diffusion_pipe.interface import check_own
from lorapod.trainers.diffusion_pipe.models import OPTIMIZERS, denoisers, model_type
from lorapod.trainers.rendering import beyond_external

MOST_RESOLUTIONS = 3
"""With more, train.py prints a warning and ends with status 0."""

MOST_SWAPPED = {
    "wan2.1-t2v-1.3b": 28, "wan2.2-ti2v-5b": 28, "wan2.1-t2v-14b": 38, "wan2.1-i2v-14b-480p": 38, "flux-dev": 34,
    "flux-kontext-dev": 34, "qwen-image": 58, "z-image-turbo": 28, "z-image": 28, "sdxl": 0,
}  # fmt: skip
"""Most blocks that can be swapped; 38 for both experts of Wan 2.2 A14B."""


def own_options(recipe: Recipe) -> dict[str, object]:
    """The person's own options for diffusion-pipe."""
    return recipe.trainer_options.get(TrainerName.DIFFUSION_PIPE, {})


def check(recipe: Recipe, entry: Entry) -> None:
    """Refuses what diffusion-pipe cannot do with a recipe.

    Raises:
        RequestError: What it is, and which trainers can.
        BaseModelError: It does not train this base model.
    """
    entry.files_for(TrainerName.DIFFUSION_PIPE)
    kind = model_type(entry)
    denoisers(entry, recipe.base_model.expert)
    own = own_options(recipe)
    check_own(own, kind, OPTIMIZERS.get(recipe.optimizer.kind, ""))
    _check_adapter(recipe, kind)
    _check_training(recipe, entry, kind)
    if recipe.optimizer.kind not in OPTIMIZERS and "optimizer" not in own:
        raise _cannot(
            f"use the optimizer {recipe.optimizer.kind.value}",
            "optimizer.kind",
            "builtin" if recipe.optimizer.kind is OptimizerKind.SCHEDULE_FREE else "builtin and musubi",
        )
    if recipe.saving.formats != [LoraFormat.COMFYUI]:
        raise RequestError(
            "diffusion-pipe writes no other layout than ComfyUI's",
            "The recipe asks for others in `saving.formats`.",
            'Set `formats = ["comfyui"]`, and make the others with `lorapod lora convert` afterwards.',
        )
    swapped, most = own.get("blocks_to_swap", recipe.training.swap_blocks), MOST_SWAPPED.get(entry.name, 38)
    if isinstance(swapped, int) and swapped > most:
        raise RequestError(
            f"diffusion-pipe cannot swap {swapped} blocks of {entry.title}",
            f"It can swap {most} at most." if most else "It swaps none of this base model.",
            f"Set `blocks_to_swap = {most}`." if most else "Leave `blocks_to_swap` out.",
        )
    for index, dataset in enumerate(recipe.datasets):
        _check_dataset(dataset, index, entry)
    _check_control(recipe, entry)
    for key in ("clip_windows", "caption_dropout"):
        if len({getattr(dataset, key) for dataset in recipe.datasets}) > 1:
            raise RequestError(
                f"diffusion-pipe knows one `{key}` for all datasets",
                "The recipe's datasets differ in it.",
                "Give them the same, or train with builtin.",
            )


def _check_adapter(recipe: Recipe, kind: str) -> None:
    adapter = recipe.adapter
    if adapter.kind not in (AdapterKind.LORA, AdapterKind.LOKR):
        who = "builtin and musubi" if adapter.kind is AdapterKind.LOHA else "builtin"
        raise _cannot(f"train adapters of kind {adapter.kind.value}", "adapter.kind", who)
    if beyond := beyond_external(recipe):
        raise _cannot(*beyond, "builtin")
    if adapter.kind is AdapterKind.LOKR and kind in ("flux", "sdxl"):
        raise _cannot(f"train a LoKr of {kind}", "adapter.kind", "no trainer that lorapod knows")
    if recipe.alpha != adapter.rank:
        raise RequestError(
            "diffusion-pipe trains with alpha equal to the rank, nothing else",
            f"The recipe asks for `adapter.alpha = {recipe.alpha:g}` at rank {adapter.rank}; builtin and musubi can.",
            "Leave `alpha` out (and multiply the learning rate by alpha / rank for much the same), or change `trainer`.",
        )
    if adapter.kind is AdapterKind.LOKR and adapter.dropout:
        raise _cannot("train a LoKr with `dropout`", "adapter.dropout", "musubi")
    if adapter.continue_from:
        raise _cannot(
            "start from any LoRA file; it takes a folder with one file of its own, in its option "
            "`adapter.init_from_existing`",
            "adapter.continue_from",
            "builtin",
        )
    if kind == "sdxl" and adapter.targets is Targets.ATTENTION:
        raise _cannot("leave out the feed-forward layers of SDXL", "adapter.targets", "builtin")


def _check_training(recipe: Recipe, entry: Entry, kind: str) -> None:
    training = recipe.training
    if training.compile is True:
        raise _cannot("compile the base model's blocks", "training.compile", "builtin")
    if training.first_frame_share:
        raise _cannot("give first frames at a share of steps", "training.first_frame_share", "builtin")
    if training.min_snr_gamma and kind != "sdxl":
        raise _cannot("weigh the loss by Min-SNR here", "training.min_snr_gamma", "builtin")
    if kind == "sdxl":
        if training.timestep_sampling is not TimestepSampling.UNIFORM or training.timestep_shift != 1:
            raise _cannot("sample SDXL's noise levels otherwise than evenly", "training.timestep_sampling", "builtin")
        if training.resolution_shift:
            raise _cannot("shift SDXL's noise levels", "training.resolution_shift", "no trainer that lorapod knows")
    if training.resolution_shift and training.timestep_shift != 1:
        raise RequestError(
            "diffusion-pipe shifts by the size of the picture or by a number, not by both",
            "The recipe asks for `resolution_shift` and a `timestep_shift`; builtin can do both.",
            "Set one of `training.resolution_shift = false` and `training.timestep_shift = 1.0`.",
        )
    adapter = recipe.base_model.training_adapter
    if adapter != "none":
        if kind != "z_image":
            raise _cannot(f"merge a training adapter into {entry.title}", "base_model.training_adapter", "builtin")
        if recipe.base_model.training_adapter_strength != 1:
            raise _cannot(
                "merge a training adapter at another strength than 1",
                "base_model.training_adapter_strength",
                "builtin and musubi",
            )


def _check_dataset(dataset: DatasetSection, index: int, entry: Entry) -> None:
    where = f"datasets.{index}"
    if len(set(dataset.resolutions)) > MOST_RESOLUTIONS:
        raise _cannot(
            f"train at more than {MOST_RESOLUTIONS} resolutions of a dataset (it would end at once)",
            f"{where}.resolutions",
            "builtin and musubi",
        )
    if entry.modality == "clip":
        if dataset.clip_windows not in (ClipWindows.HEAD, ClipWindows.MIDDLE):
            raise _cannot("take several stretches of a clip", f"{where}.clip_windows", "builtin and musubi")
        step = entry.geometry.frame_step if entry.geometry and entry.geometry.frame_step else 1
        for frames in dataset.frames:
            over = (frames - 1) % step
            if over:
                raise RequestError(
                    f"Clips cannot be cut to {frames} frames",
                    f"{entry.title} takes one frame and then {step} at a time; diffusion-pipe would round it down.",
                    f"Write {frames - over} or {frames - over + step} into `{where}.frames`.",
                )


def _check_control(recipe: Recipe, entry: Entry) -> None:
    """Its batches are of one kind: an item without control pictures takes them away from all others of its batch, and one
    that has some first asks them of all (`_collate` of `utils/dataset.py`)."""
    check_control(recipe, entry, TrainerName.DIFFUSION_PIPE)
    kinds = {dataset.control is None for dataset in recipe.datasets}
    if len(kinds) > 1 and recipe.training.batch_size * recipe.training.accumulation > 1:
        raise RequestError(
            "diffusion-pipe cannot train with and without control pictures in one batch",
            "Some datasets of the recipe name `control` and some do not; "
            f"{who_else(entry, TrainerName.DIFFUSION_PIPE, given=True, left_out=True)} can.",
            "Set `training.batch_size` and `training.accumulation` to 1, or change `trainer`.",
        )


def _cannot(what: str, key: str, who: str) -> RequestError:
    return RequestError(
        f"diffusion-pipe cannot {what}",
        f"The recipe asks for it in `{key}`; {who} can."
        if not who.startswith("no ")
        else f"The recipe asks for it in `{key}`; {who} takes that.",
        "Change it, or change `trainer`.",
    )
