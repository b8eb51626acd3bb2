"""Which base models this machine's GPU holds, how, and why not.

What training takes is estimated by `lorapod.models.memory` for the preset's size of pictures or clips and its rank, one item
at a time: the same estimate by which the engine decides how to make a training fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorapod.machine import Gpus
from lorapod.models.catalogue import Entry
from lorapod.models.memory import (
    GIB,
    Measures,
    Wishes,
    choose,
    gpu_for,
    load_of_preset,
    means_in_order,
    measures_of_entry,
    peak_of,
    usable,
)
from lorapod.recipe.choices import Checkpointing, Quantization


@dataclass(frozen=True)
class Fit:
    """Whether a base model can be trained here.

    Attributes:
        need: Bytes that a GPU must have to train it without rounding its weights, estimated; None where it is not known.
        why_not: Empty where it fits.
        means: What is done to make it fit, where that changes what is learnt or costs much time.
        price: Of `means`, to be compared; 0 where there are none.
    """

    need: int | None
    why_not: str = ""
    means: str = ""
    price: int = 0


def need_of(entry: Entry) -> int | None:
    """Bytes of a GPU that trains with the preset's values and the weights as they are; None where the size is not known."""
    if (measures := measures_of_entry(entry)) is None:
        return None
    return gpu_for(peak_of(measures, load_of_preset(entry, measures), Quantization.NONE, Checkpointing.FULL))


def _least(entry: Entry, measures: Measures) -> int:
    return gpu_for(list(means_in_order(measures, load_of_preset(entry, measures), Wishes()))[-1].peak)


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
    measures = measures_of_entry(entry)
    assert measures is not None
    means = choose(measures, load_of_preset(entry, measures), usable(largest.memory_total))
    if means is None:
        least = -(-_least(entry, measures) // GIB)
        return Fit(need, f"needs at least {least} GB of GPU memory, this one has {largest.memory_total / GIB:.0f}")
    return Fit(need, means=means.briefly, price=means.price)
