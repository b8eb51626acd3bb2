"""Which base models this machine's GPU holds, and why not.

What training takes is estimated: the denoiser's weights in 16 bits (text encoder and VAE are out of memory by then) and room
for the LoRA, its optimizer and the activations of one item at the preset's size. The room was chosen so that the figures
quoted in the catalogue for training without fewer bits lie below it; it is no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorapod.machine import Gpus
from lorapod.models.catalogue import Entry
from lorapod.recipe import presets

GIB = 1 << 30
"""GPU memory is sold by this, and called GB."""

_ROOM, _ROOM_CLIPS, _ROOM_UNCHECKPOINTED = 4 * GIB, 6 * GIB, 10 * GIB
_FREE_OF_ITS_OWN = 0.03
"""Share of a GPU's memory that the driver and torch keep for themselves."""


@dataclass(frozen=True)
class Fit:
    """Whether a base model can be trained here.

    Attributes:
        need: Bytes of GPU memory, estimated; None where it is not known.
        why_not: Empty where it fits.
    """

    need: int | None
    why_not: str = ""


def need_of(entry: Entry) -> int | None:
    """Bytes of GPU memory that training with the preset's values takes; None where the size is not known."""
    if entry.parameters is None:
        return None
    checkpointed = presets.preset_for(entry.based_on or entry.name).get("training", {}).get("gradient_checkpointing")
    room = _ROOM_CLIPS if entry.modality == "clip" else _ROOM
    return 2 * entry.parameters + (room if checkpointed else _ROOM_UNCHECKPOINTED)


def fit_of(entry: Entry, gpus: Gpus) -> Fit:
    """Whether this machine can train a base model in reasonable time."""
    need = need_of(entry)
    if entry.packaged:
        return Fit(need)
    largest = gpus.largest
    if largest is None or gpus.hidden:
        return Fit(need, "there is no GPU" if largest is None else "the GPU is hidden by CUDA_VISIBLE_DEVICES")
    if need is None or largest.memory_total is None:
        return Fit(need)
    if largest.memory_total * (1 - _FREE_OF_ITS_OWN) < need:
        return Fit(
            need, f"needs about {-(-need // GIB)} GB of GPU memory, this one has {largest.memory_total / GIB:.0f}"
        )
    return Fit(need)
