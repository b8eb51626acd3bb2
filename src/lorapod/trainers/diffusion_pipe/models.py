"""The base models of the catalogue in diffusion-pipe's words: their [model] tables, experts and layers.

Facts: `models/*.py` and `docs/supported_models.md` of the commit in `interface.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.models.catalogue import catalogue
from lorapod.recipe import Recipe
from lorapod.recipe.choices import ExpertChoice, OptimizerKind, Quantization, Targets, TimestepSampling

OPTIMIZERS = {
    OptimizerKind.ADAMW: "adamw_optimi",  # Kahan summation, without which bf16 weights lose small updates
    OptimizerKind.ADAMW_8BIT: "AdamW8bitKahan",
    OptimizerKind.PRODIGY: "Prodigy",
}

LARGE = 10_000_000_000
"""Weights of a denoiser from which on they are kept in fp8 while a LoRA is trained, as its docs and examples do."""

_LEFT_OUT = {
    "flux": {
        Targets.ATTENTION_FEED_FORWARD: r".*\.norm\w*\.linear",
        Targets.ATTENTION: r".*\.(norm\w*\.linear|ff\w*\..*|proj_mlp)",
    },
    "wan": {Targets.ATTENTION: r".*\.ffn\..*"},
    "qwen_image": {
        Targets.ATTENTION_FEED_FORWARD: r".*\.\w+_mod\..*",
        Targets.ATTENTION: r".*\.(\w+_mod|\w+_mlp)\..*",
    },
    "z_image": {
        Targets.ATTENTION_FEED_FORWARD: r".*\.adaLN_modulation\..*",
        Targets.ATTENTION: r".*\.(adaLN_modulation|feed_forward)\..*",
    },
}  # fmt: skip
"""Names of layers that get no adapter, as a pattern for peft's `exclude_modules`, where it would adapt more than asked for:
it adapts every linear layer of a block."""


@dataclass(frozen=True)
class Denoiser:
    """One denoiser to train, in a run of diffusion-pipe of its own.

    Attributes:
        suffix: What its stage and LoRA are told apart by; empty where there is one.
        part: Part of the catalogue that holds its weights.
        range: Noise levels that it is trained at, as (min_t, max_t); None: all.
    """

    suffix: str
    part: str
    range: tuple[float, float] | None = None


def model_type(entry: Entry) -> str:
    """What diffusion-pipe calls the family."""
    return str(entry.trainers["diffusion-pipe"].options["type"])


def denoisers(entry: Entry, expert: ExpertChoice) -> list[Denoiser]:
    """The denoisers of a base model that are trained, in the order of training.

    Raises:
        RequestError: The base model has no such expert.
    """
    parts = {spec.part for spec in entry.files if spec.part.startswith("transformer")}
    if {"transformer_high", "transformer_low"} <= parts:
        chosen = [ExpertChoice.HIGH, ExpertChoice.LOW] if expert is ExpertChoice.BOTH else [expert]
        return [Denoiser(each.value, f"transformer_{each.value}", _range(entry, each)) for each in chosen]
    for each in (ExpertChoice.HIGH, ExpertChoice.LOW):
        if f"transformer_{each.value}" in parts:
            if expert not in (ExpertChoice.BOTH, each):
                raise RequestError(
                    f"{entry.title} has no {expert.value}-noise expert", "", "Leave `base_model.expert` out."
                )
            return [Denoiser("", f"transformer_{each.value}", entry.timesteps)]
    if expert is not ExpertChoice.BOTH:
        raise RequestError(f"{entry.title} has one denoiser, not two experts", "", "Leave `base_model.expert` out.")
    return [Denoiser("", "transformer")]


def _range(pair: Entry, expert: ExpertChoice) -> tuple[float, float] | None:
    name = f"{pair.based_on or pair.name}-{expert.value}"
    return catalogue()[name].timesteps if name in catalogue() else None


def keeps_fp8(entry: Entry, recipe: Recipe) -> bool:
    """Whether the denoiser's weights are kept in fp8: where the recipe says so, or leaves it open and they are large."""
    if recipe.base_model.quantize is not Quantization.AUTO:
        return recipe.base_model.quantize is Quantization.FP8
    return (entry.parameters or 0) >= LARGE and model_type(entry) not in ("sdxl", "z_image")


def model_table(
    recipe: Recipe, entry: Entry, files: dict[str, Path], denoiser: Denoiser, training_adapter: Path | None
) -> dict[str, Any]:
    """The [model] table."""
    kind = model_type(entry)
    training = recipe.training
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[training.precision.value]
    table: dict[str, Any] = {"type": kind, **_files(kind, entry, files, denoiser), "dtype": dtype}
    if keeps_fp8(entry, recipe):
        table["transformer_dtype"] = "float8"
    if training_adapter is not None:
        table["merge_adapters"] = [str(training_adapter)]
    if kind == "sdxl":
        rate = recipe.optimizer.learning_rate
        table |= {"unet_lr": rate, "text_encoder_1_lr": 0.0, "text_encoder_2_lr": 0.0}
        if training.min_snr_gamma:
            table["min_snr_gamma"] = training.min_snr_gamma
        return table
    uniform = training.timestep_sampling is TimestepSampling.UNIFORM
    table["timestep_sample_method"] = "uniform" if uniform else "logit_normal"
    if training.timestep_shift != 1:
        table["shift"] = training.timestep_shift
    elif training.resolution_shift:
        table["flux_shift"] = True
    if denoiser.range:
        table |= {"min_t": denoiser.range[0], "max_t": denoiser.range[1]}
    return table


def _files(kind: str, entry: Entry, files: dict[str, Path], denoiser: Denoiser) -> dict[str, Any]:
    single = {need.partition("/")[2]: str(path) for need, path in files.items() if need.startswith("single-files/")}
    if kind == "flux":
        return {"diffusers_path": str(files["diffusers/all"])}
    if kind == "sdxl":
        return {"checkpoint_path": single["checkpoint"]}
    if kind == "wan":
        return {
            "ckpt_path": str(files["original/vae"].parent),
            "transformer_path": single[denoiser.part],
            "llm_path": single["text_encoder"],
        }
    if kind == "qwen_image":
        return {
            "transformer_path": single["transformer"],
            "text_encoder_path": single["text_encoder"],
            "vae_path": single["vae"],
        }
    te_type = entry.trainers["diffusion-pipe"].options.get("text_encoder_type", "lumina2")
    return {
        "diffusion_model": single["transformer"],
        "vae": single["vae"],
        "text_encoders": [{"path": single["text_encoder"], "type": te_type}],
    }


def left_out(recipe: Recipe, entry: Entry) -> str | None:
    """Pattern of the layers that get no adapter."""
    targets = recipe.adapter.targets
    return _LEFT_OUT.get(model_type(entry), {}).get(targets) if isinstance(targets, Targets) else None
