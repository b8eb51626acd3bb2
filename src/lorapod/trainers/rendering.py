"""What an external trainer is given: files that it reads, and the commands of its stages.

A rendering is made from a recipe alone plus paths, so that `lorapod recipe render --assume-files` works with neither the
base model nor the trainer on disk. Nothing is written here; `lorapod.trainers.stages` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import Checkpointing, Quantization, Regularisation, Targets, TimestepSampling
from lorapod.recipe.schema import TrainingSection


@dataclass(frozen=True)
class View:
    """A folder of one kind of media of a dataset, as an external trainer reads it: media linked, captions beside them.

    Attributes:
        dataset: Number of the recipe's dataset.
        kind: `picture` or `clip`.
        fps: Frames a second that all of its clips have; None where that is not known.
        repeats: How often each of its items is seen in an epoch; None: as the recipe's dataset says.
        masks: Folder of the masks of its items, by the same names.
        controls: Folder of the control pictures of its items, by the same names, numbered where an item has several.
        listed: JSON lines file that says which control pictures are whose, where their names alone do not.
        held_out: Its items are kept out of training, for the evaluation loss.
        items: How many it holds; 0 where that is not known.
    """

    dataset: int
    kind: Literal["picture", "clip"]
    path: Path
    fps: float | None = None
    repeats: int | None = None
    masks: Path | None = None
    held_out: bool = False
    items: int = 0
    controls: Path | None = None
    listed: Path | None = None


@dataclass(frozen=True)
class ResumePoint:
    """What a stage left behind to go on with.

    Attributes:
        name: What the trainer is told.
        step: Optimizer steps behind it.
        total: Steps of the whole stage; None where that is not known.
    """

    name: str
    step: int = 0
    total: int | None = None


@dataclass(frozen=True)
class RenderContext:
    """Where everything is, or will be."""

    folder: Path
    """Folder that the rendered files go to: `config/` of a run, or `--out`."""

    home: Path
    """Checkout of the trainer, the working folder of its programs."""

    python: Path
    """Interpreter of the trainer's own virtual environment."""

    model_files: dict[str, Path]
    """The base model's files by `layout/part` of the catalogue; a part of several files is given as its folder."""

    data: list[Path]
    """One folder a dataset of the recipe: a view of the person's folder, media linked and captions as trained on."""

    output: Path
    """Folder for what the trainer itself writes."""

    gpus: int = 1

    views: list[View] = field(default_factory=list)
    """`data` cut up by kind of media and frame rate, where the data is at hand."""

    steps_per_epoch: int | None = None
    """Optimizer steps an epoch has as the trainer counts, where the data is at hand."""

    gpu_gigabytes: float | None = None
    """Memory of the smallest GPU, where it is known."""

    devices: str = ""
    """Numbers of the GPUs to use, as `0,2`; empty: the first ones."""

    port: int = 29500
    """A free port of this machine, by which processes of one training find each other."""

    preview_controls: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    """Control pictures that previews start from, by the number of the prompt, where the data is at hand."""

    resume: dict[str, ResumePoint] = field(default_factory=dict)
    """By stage: what the trainer goes on with."""


@dataclass(frozen=True)
class RenderedFile:
    """One text file, by its path below `RenderContext.folder`."""

    path: PurePosixPath
    text: str


@dataclass(frozen=True)
class RenderedStage:
    """One command. `env` holds what is added to the environment, never a secret."""

    name: str
    argv: list[str]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendering:
    """Everything for one run of a trainer. `notes` are sentences that the person should read before the start."""

    files: list[RenderedFile]
    stages: list[RenderedStage]
    notes: list[str] = field(default_factory=list)


def assumed_views(recipe: Recipe, entry: Entry, context: RenderContext) -> list[View]:
    """Views of datasets that were not looked at."""
    return [
        View(
            number,
            "clip" if entry.modality == "clip" else "picture",
            path,
            controls=control_folder(path) if recipe.datasets[number].control else None,
        )
        for number, path in enumerate(context.data)
    ]


def control_folder(view: Path) -> Path:
    """Where the control pictures of a view's items lie."""
    return view.with_name(f"{view.name}-control")


_OWN_TRAINING = (
    "timestep_mean", "timestep_std", "timestep_scale", "lowest_noise", "highest_noise", "loss", "loss_weighting",
    "attention",
)  # fmt: skip
"""Keys of the recipe's training that only the built-in engine follows."""


def beyond_external(recipe: Recipe) -> tuple[str, str] | None:
    """What no external trainer does, and the key that asks for it; None where there is nothing."""
    adapter, quantize, training = recipe.adapter, recipe.base_model.quantize, recipe.training
    if quantize in (Quantization.INT8, Quantization.NF4):
        return f"hold the base model in {quantize.value}", "base_model.quantize"
    if training.gpus not in ("auto", 1):
        return "split a step over GPUs so that the result stays the same", "training.gpus"
    if training.shard_base is True:
        return "split the base model over GPUs", "training.shard_base"
    if training.timestep_sampling is TimestepSampling.MODE:
        return "draw noise levels by mode", "training.timestep_sampling"
    if training.gradient_checkpointing is Checkpointing.SELECTIVE:
        return "keep the outputs of attention alone", "training.gradient_checkpointing"
    for key in _OWN_TRAINING:
        if getattr(training, key) != TrainingSection.model_fields[key].default:
            return f"train with `{key}`", f"training.{key}"
    for index, dataset in enumerate(recipe.datasets):
        if dataset.regularisation is not Regularisation.NONE or dataset.loss_weight != 1:
            key = "loss_weight" if dataset.loss_weight != 1 else "regularisation"
            return f"train with `{key}`", f"datasets.{index}.{key}"
    if training.memory_gb is not None:
        return "plan with a given amount of memory", "training.memory_gb"
    if not isinstance(adapter.targets, Targets) or adapter.targets in (Targets.STYLE, Targets.CHARACTER):
        return "adapt layers by pattern", "adapter.targets"
    if adapter.merged:
        return "merge adapters into the base model", "adapter.merged"
    if adapter.text_encoders:
        return "adapt text encoders here", "adapter.text_encoders"
    if adapter.ema_decay:
        return "average the weights", "adapter.ema_decay"
    return ("choose the size of a LoKr's factors", "adapter.factor") if adapter.factor else None
