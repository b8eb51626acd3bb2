"""What differs between the model types of diffusion-pipe: their [model] tables, layers, and what each can do.

From its models/*.py and docs/supported_models.md at the commit that `interface.toml` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import LoraFormat, Targets

TRAINER = "diffusion-pipe"

FLOAT8_FROM_PARAMETERS = 10_000_000_000
"""Weights from which on the frozen denoiser is held in float8, as in every example of diffusion-pipe from FLUX.1 up."""


@dataclass(frozen=True)
class Network:
    """One model type.

    Attributes:
        most_swapped: Largest `blocks_to_swap`; 0 where blocks cannot be swapped.
        modulation: Regular expression of the linear layers of a block that are neither attention nor feed-forward;
            empty where there are none.
        feed_forward: Regular expression of its feed-forward layers.
        weights: The key that holds the type of the frozen weights.
        layout: Key layout of the LoRA files that it writes.
        chosen_layers: Whether layers can be left out.
        lokr: Whether it trains and saves LoKr.
        mu: Tokens and mu at the ends of the line that the base model's own sampler shifts by; None where there is none.
    """

    most_swapped: int
    modulation: str
    feed_forward: str
    weights: str = "transformer_dtype"
    layout: LoraFormat = LoraFormat.COMFYUI
    chosen_layers: bool = True
    lokr: bool = True
    mu: tuple[tuple[int, float], tuple[int, float]] | None = None


NETWORKS: dict[str, Network] = {
    "flux": Network(
        34, r".*\.norm(1|1_context)?\.linear", r".*(\.ff(_context)?\..*|\.proj_mlp|\.proj_out)",
        layout=LoraFormat.DIFFUSERS, lokr=False, mu=((256, 0.5), (4096, 1.15)),
    ),
    "sdxl": Network(0, "", "", weights="", layout=LoraFormat.KOHYA, chosen_layers=False, lokr=False),
    "wan": Network(38, "", r".*\.ffn\..*"),
    "qwen_image": Network(58, r".*_mod\.1", r".*_mlp\..*", mu=((256, 0.5), (8192, 0.9))),
    "z_image": Network(28, r".*\.adaLN_modulation\..*", r".*\.feed_forward\..*", weights="diffusion_model_dtype"),
}  # fmt: skip
"""By `type` of [model], which is the catalogue's family."""

_SMALL_WAN_BLOCKS, _SMALL_WAN_PARAMETERS = 28, 6_000_000_000
"""Wan 2.1 1.3B and Wan 2.2 5B have 30 blocks, of which two stay."""


def most_swapped(entry: Entry) -> int:
    """Largest `blocks_to_swap` for a base model."""
    if entry.family == "wan" and (entry.parameters or 0) < _SMALL_WAN_PARAMETERS:
        return _SMALL_WAN_BLOCKS
    return NETWORKS[entry.family].most_swapped


def in_float8(entry: Entry) -> bool:
    """Whether the frozen denoiser is held in float8."""
    return bool(NETWORKS[entry.family].weights) and (entry.parameters or 0) >= FLOAT8_FROM_PARAMETERS


def takes_clips_only(entry: Entry) -> bool:
    """Whether the base model makes a clip out of its first frame, so that a picture alone teaches it nothing."""
    return entry.family == "wan" and "-i2v-" in (entry.based_on or entry.name)


@dataclass(frozen=True)
class Denoiser:
    """One network to train: an expert of Wan 2.2 A14B, or the whole base model.

    Attributes:
        name: `high` or `low` where the base model has both; empty for the only one.
        part: Part of the catalogue that holds its weights; empty where it is not a file of its own.
        timesteps: Range of s that it is trained on, s = 1 being pure noise; None for all.
    """

    name: str
    part: str
    timesteps: tuple[float, float] | None


def denoisers(entry: Entry, expert: str) -> list[Denoiser]:
    """The networks that a recipe for `entry` trains, the high-noise expert first; `expert` is both, high or low."""
    options = entry.trainers[TRAINER].options
    parts = [spec.part for spec in entry.files_for(TRAINER) if spec.part.startswith("transformer")]
    given = (options["min_t"], options["max_t"]) if "min_t" in options else None
    if len(parts) < 2:
        return [Denoiser("", f"single-files/{parts[0]}" if parts else "", given)]
    boundary = float(options["boundary"])
    both = [
        Denoiser("high", "single-files/transformer_high", (boundary, 1.0)),
        Denoiser("low", "single-files/transformer_low", (0.0, boundary)),
    ]
    return [one for one in both if expert in ("both", one.name)]


def model_table(recipe: Recipe, entry: Entry, files: dict[str, Path], denoiser: Denoiser) -> dict[str, Any]:
    """The [model] table. `files` is `RenderContext.model_files`."""
    network, training = NETWORKS[entry.family], recipe.training
    table: dict[str, Any] = {"type": entry.trainers[TRAINER].options["type"], **_paths(recipe, entry, files, denoiser)}
    table["dtype"] = "bfloat16"
    if in_float8(entry):
        table[network.weights] = "float8"
    if entry.family == "sdxl":
        if training.min_snr_gamma:
            table["min_snr_gamma"] = float(training.min_snr_gamma)
        # It has no switch for the text encoders: without a rate their adapters stay at zero, as the recipe means it.
        table |= {"text_encoder_1_lr": 0.0, "text_encoder_2_lr": 0.0}
        return table
    table["timestep_sample_method"] = training.timestep_sampling.value.replace("-", "_")
    if training.resolution_shift and network.mu and not _is_flux_line(recipe, network):
        table["shift"] = float(training.timestep_shift * shift_of(network, recipe.datasets[0].resolutions[0]))
    elif training.resolution_shift:
        table["flux_shift"] = True
    elif training.timestep_shift != 1:
        table["shift"] = float(training.timestep_shift)
    if denoiser.timesteps is not None:
        table["min_t"], table["max_t"] = (float(t) for t in denoiser.timesteps)
    return table


def _is_flux_line(recipe: Recipe, network: Network) -> bool:
    """Whether `flux_shift`, which knows FLUX.1's line alone and no factor, says what the recipe does."""
    return network.mu == NETWORKS["flux"].mu and recipe.training.timestep_shift == 1


def shift_of(network: Network, side: int) -> float:
    """exp(mu) for pictures of the area side * side, a token being 16 pixels square; buckets keep that area."""
    assert network.mu is not None
    (low_tokens, low), (high_tokens, high) = network.mu
    tokens = (side / 16) ** 2
    return round(math.exp(low + (high - low) * (tokens - low_tokens) / (high_tokens - low_tokens)), 4)


def needs_one_size(recipe: Recipe, entry: Entry) -> bool:
    """Whether the shift by size is rendered as a number, which holds for one resolution."""
    network = NETWORKS[entry.family]
    return recipe.training.resolution_shift and network.mu is not None and not _is_flux_line(recipe, network)


def _paths(recipe: Recipe, entry: Entry, files: dict[str, Path], denoiser: Denoiser) -> dict[str, Any]:
    if entry.family == "flux":
        return {"diffusers_path": str(files["diffusers/all"])}
    if entry.family == "sdxl":
        return {"checkpoint_path": str(files["single-files/checkpoint"])}
    transformer, encoder = str(files[denoiser.part]), str(files["single-files/text_encoder"])
    if entry.family == "wan":
        # The configuration, the tokenizer and the VAE are looked for in ckpt_path, under the names that they came with.
        folder = files["original/vae"].parent
        return {"ckpt_path": str(folder), "transformer_path": transformer, "llm_path": encoder}
    vae = str(files["single-files/vae"])
    if entry.family == "qwen_image":
        return {"transformer_path": transformer, "text_encoder_path": encoder, "vae_path": vae}
    paths: dict[str, Any] = {"diffusion_model": transformer, "vae": vae}
    paths["text_encoders"] = [{"path": encoder, "type": entry.trainers[TRAINER].options["text_encoder_type"]}]
    adapter = training_adapter(recipe, files)
    if adapter is not None:
        paths["merge_adapters"] = [str(adapter)]
    return paths


def training_adapter(recipe: Recipe, files: dict[str, Path]) -> Path | None:
    """The LoRA to merge before training, or None.

    Raises:
        RequestError: The one of the catalogue is asked for, and the base model has none.
    """
    asked = recipe.base_model.training_adapter
    if isinstance(asked, Path):
        return asked
    if asked == "none":
        return None
    if "single-files/training_adapter" not in files:
        raise RequestError(
            f"The catalogue has no training adapter for {recipe.base_model.name}",
            'The recipe says `base_model.training_adapter = "catalogue"`.',
            'Give the path of a LoRA file, or "none".',
        )
    return files["single-files/training_adapter"]


def left_out(entry: Entry, targets: Targets | list[str]) -> str:
    """Regular expression of the layers that get no adapter, for `exclude_modules`; empty for none."""
    network = NETWORKS[entry.family]
    assert isinstance(targets, Targets)  # `limits` refuses patterns
    wanted = {
        Targets.ALL: [],
        Targets.ATTENTION_FEED_FORWARD: [network.modulation],
        Targets.ATTENTION: [network.modulation, network.feed_forward],
    }[targets]
    return "|".join(pattern for pattern in wanted if pattern)
