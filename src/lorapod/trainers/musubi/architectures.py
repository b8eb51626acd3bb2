"""What differs between the architectures of musubi-tuner: scripts, network module, and which option takes which file.

From its documentation and argument parsers at the commit that `interface.toml` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapod.models import Entry


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        scripts: What the names of its scripts start with.
        network: Module of its LoRA networks.
        text: Option to the catalogue's part of each text encoder, for caching captions and for previews.
        text_batch: Captions encoded at once.
        feed_forward: Regular expression of the linear layers of a block that are not attention; None where some are both.
        shift_by_size: `--timestep_sampling` for a shift that depends on the picture's size, where there is one.
        clips: Whether it trains on clips.
        guidance: Option that a preview's guidance is given in.
        guidance_is_told: Whether that is a number that the model is told, in place of classifier-free guidance.
        preview_words: What else a preview is given.
    """

    scripts: str
    network: str
    text: dict[str, str]
    text_batch: int
    feed_forward: str | None
    shift_by_size: str | None = None
    clips: bool = False
    guidance: str = "l"
    guidance_is_told: bool = False
    preview_words: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "wan": Architecture(
        "wan", "networks.lora_wan", {"t5": "original/text_encoder"}, 16, r".*ffn.*", clips=True
    ),
    "qwen_image": Architecture(
        "qwen_image", "networks.lora_qwen_image", {"text_encoder": "single-files/text_encoder"}, 1, r".*_mlp.*",
        shift_by_size="qwen_shift",
    ),
    "z_image": Architecture(
        "zimage", "networks.lora_zimage", {"text_encoder": "single-files/text_encoder"}, 16, r".*feed_forward.*"
    ),
    "flux": Architecture(  # Kontext alone
        "flux_kontext", "networks.lora_flux",
        {"text_encoder1": "single-files/text_encoder", "text_encoder2": "single-files/text_encoder_clip"}, 16, None,
        shift_by_size="flux_shift", guidance="g", guidance_is_told=True,
        preview_words="--fs 0",  # shifts by the size as the model's own sampler does; left out it is a shift of 14.5
    ),
    "flux2": Architecture(
        "flux_2", "networks.lora_flux_2", {"text_encoder": "single-files/text_encoder"}, 16, None,
        shift_by_size="flux2_shift", guidance="g",
    ),
}  # fmt: skip
"""By the catalogue's family."""

FP8_FROM_PARAMETERS = 10_000_000_000
"""Weights from which on the base model is held in scaled fp8: what its documentation does on 24 to 48 GB cards."""


@dataclass(frozen=True)
class Denoiser:
    """One network to train: a Wan 2.2 expert, or the whole base model.

    Attributes:
        name: What the stage and the LoRA are told apart by, `-high` or `-low`; empty for the only one.
        part: Part of the catalogue that holds its weights.
        timesteps: Lowest and highest training timestep, 0 to 1000; None for all.
        dtype: Type of the weights in the file, as in `fp16`.
    """

    name: str
    part: str
    timesteps: tuple[int, int] | None
    dtype: str


def denoisers(entry: Entry, expert: str) -> list[Denoiser]:
    """The networks that a recipe for `entry` trains, the low-noise expert last; `expert` is both, high or low."""
    support = entry.trainers["musubi"]
    parts = [spec for spec in entry.files_for("musubi") if spec.part.startswith("transformer")]
    boundary = support.options.get("timestep_boundary")
    found = []
    for spec in sorted(parts, key=lambda spec: spec.part):
        which = spec.part.removeprefix("transformer").removeprefix("_")
        if len(parts) > 1 and expert not in ("both", which):
            continue
        timesteps = None
        if boundary is not None:
            timesteps = (boundary, 1000) if which == "high" else (0, boundary)
        elif "min_timestep" in support.options:
            timesteps = (support.options["min_timestep"], support.options["max_timestep"])
        suffix = f"-{which}" if len(parts) > 1 else ""
        found.append(Denoiser(suffix, f"{spec.layout}/{spec.part}", timesteps, spec.dtype or "bf16"))
    return found


def image_encoder(entry: Entry, files: dict[str, Path]) -> Path | None:
    """The CLIP model that Wan 2.1 I2V sees the first frame with; None where the base model has none."""
    wanted = [f"{s.layout}/{s.part}" for s in entry.files_for("musubi") if s.part == "image_encoder"]
    return files[wanted[0]] if wanted else None


def makes_clips_of_pictures(entry: Entry) -> bool:
    """Whether the base model starts from a given first frame (I2V)."""
    return str(entry.trainers["musubi"].options.get("task", "")).startswith("i2v")
