"""How much GPU memory a training takes, estimated without torch, and the cheapest means that make it fit.

    peak = weights + adapter + activations, and where SDXL's text encoders are in memory too: the same of theirs

    weights      parameters x 2 bytes; 1 in 8 bits and 0.5625 in 4 (4.5 bits with their scales); swapped blocks wait on
                 the host, but for the two that are computed with and fetched; with the base model split over n GPUs
                 each holds one nth, and the same two
    adapter      16 bytes a weight: itself, its gradient and AdamW's two moments in float32
    activations  tokens x what the blocks keep of a token for the backward pass: all of it; or the blocks' inputs and, for
                 `selective`, the outputs of attention, beside what the largest block keeps

What a block keeps of a token was counted with saved-tensor hooks over full-size models of diffusers in eager mode, and is
linear in tokens within 0.5 %. Whole steps of the engine at full size, tensor by tensor without their numbers, peak within
a few per cent of this (tools/gpu_check.py, benchmarks/results/memory.md). Compiled blocks keep less, which is not counted
on. Not covered: the VAE, which is out of memory by then, and drawing previews.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorapod.models.catalogue import Entry
from lorapod.models.families import WholeMemory, family_facts
from lorapod.recipe import presets
from lorapod.recipe.choices import Checkpointing, Quantization

BYTES = {Quantization.NONE: 2.0, Quantization.FP8: 1.0, Quantization.INT8: 1.0, Quantization.NF4: 0.5625}
"""Of a weight, as it is held."""

RESERVE = 2_000_000_000
"""Bytes of a GPU for CUDA's context, workspaces and fragmentation."""

GIB = 1 << 30
"""GPU memory is sold by this, and called GB."""

USUAL_GPUS = (8, 12, 16, 24, 32, 48, 80)
"""Memory of GPUs that are rented and owned, in GiB, which is what they are sold by."""

_FREE_OF_ITS_OWN = 0.03
"""Share of a GPU's memory that the driver and torch keep for themselves."""

_TRAINED = 16

_ENCODERS = 817_720_320
"""Weights of SDXL's two text encoders."""
_ENCODERS_SAVED = 182.3e6
"""Bytes that both keep of a caption for the backward pass, in 16 bits with an adapter; counted as for the denoisers."""
_ENCODERS_TRAINED = 903_168
"""Weights of an adapter of rank 1 on both."""

_CHEAPEST_FIRST = (Checkpointing.OFF, Checkpointing.SELECTIVE, Checkpointing.FULL)
_CLOSEST_FIRST = (Quantization.NONE, Quantization.INT8, Quantization.NF4)
"""What `auto` chooses among; whole numbers with a scale a row are nearer to the original than fp8 with one."""


@dataclass(frozen=True)
class Measures:
    """A denoiser as far as its memory goes.

    Attributes:
        parameters: Of the frozen weights.
        blocks: Repeated blocks, alike enough to count as equal.
        saved: Bytes kept of a token without checkpointing, in 16 bits, by all blocks together.
        kept: Likewise with checkpointing: the blocks' inputs.
        attention: Bytes of the outputs of attention, likewise.
        largest: Bytes that are kept of a token by what is computed again at a time.
        trained: Weights of an adapter of rank 1 on attention and feed-forward layers.
        text_tokens: That go through the blocks beside those of the picture.
        control_tokens: Those that the text has for each control picture.
        cell: Side in pixels of what is one token.
    """

    parameters: int
    blocks: int
    saved: float
    kept: float
    attention: float
    largest: float
    trained: float
    text_tokens: int = 0
    control_tokens: int = 0
    cell: int = 16


@dataclass(frozen=True)
class Means:
    """How a training is made to fit.

    Attributes:
        swapped: Blocks whose weights wait on the host.
        peak: Bytes of GPU memory, estimated; of each GPU.
        shards: GPUs that the base model is split over.
    """

    quantize: Quantization
    checkpointing: Checkpointing
    swapped: int
    peak: int
    shards: int = 1

    @property
    def words(self) -> str:
        """What is done to make it fit, for a person; empty where nothing is."""
        recomputed = {Checkpointing.SELECTIVE: "selective checkpointing", Checkpointing.FULL: "checkpointing"}
        return ", ".join(filter(None, [self.costly, recomputed.get(self.checkpointing, "")]))

    @property
    def price(self) -> int:
        """0 where nothing changes but time, then 8 bits, 4 bits, and blocks that wait on the host."""
        return 3 if self.swapped else {Quantization.NONE: 0, Quantization.NF4: 2}.get(self.quantize, 1)

    @property
    def briefly(self) -> str:
        """The part of it that changes what is learnt a little, or takes much time, in two or three words."""
        bits = {Quantization.NONE: "", Quantization.NF4: "in 4 bits"}.get(self.quantize, "in 8 bits")
        return " and ".join(filter(None, [bits, "swapping" if self.swapped else ""]))

    @property
    def costly(self) -> str:
        """The same in full."""
        bits = {Quantization.NONE: "", Quantization.NF4: "weights rounded to 4 bits"}
        where = f"{self.swapped} of the model's blocks waiting in the machine's memory" if self.swapped else ""
        if self.shards > 1:
            where = f"the base model split over {self.shards} GPUs"
        return " and ".join(filter(None, [bits.get(self.quantize, "weights rounded to 8 bits"), where]))


@dataclass(frozen=True)
class Load:
    """What is trained on at once.

    Attributes:
        tokens: Of the largest batch, text tokens included.
        rank: Of the adapter.
        wide: Whether weights and arithmetic are in 32 bits.
        encoders: Whether SDXL's text encoders are in memory as well.
        captions: That they are trained on at once; 0 where they only encode.
    """

    tokens: int
    rank: int
    wide: bool = False
    encoders: bool = False
    captions: int = 0


@dataclass(frozen=True)
class Wishes:
    """What a person has decided; None: what fits.

    Attributes:
        shards: Numbers of GPUs that the base model may be split over.
    """

    quantize: Quantization | None = None
    checkpointing: Checkpointing | None = None
    swapped: int | None = None
    shards: tuple[int, ...] = (1,)


def measures_of(family: str, config: Mapping[str, Any], parameters: int, pipeline: str = "") -> Measures | None:
    """Of a denoiser's configuration; None for a family that was not measured.

    Args:
        pipeline: Class of the base model's pipeline, where it is known.
    """
    facts = family_facts().get(family)
    memory = facts.memory if facts else None
    if memory is None:
        return None
    if isinstance(memory, WholeMemory):
        return Measures(
            parameters, memory.blocks, memory.saved, memory.kept, memory.attention, memory.largest, memory.trained
        )
    width, inner = math.prod(config[key] for key in memory.width), config[memory.inner] if memory.inner else 0
    layers = sum(config[key] * times for key, times in memory.layers.items())
    sees = bool(config.get("image_dim"))
    saved, trained = (
        a * width + b * inner for a, b in ((memory.saved, memory.saved_inner), (memory.trained, memory.trained_inner))
    )
    saved += memory.saved_image * width * sees
    row = 2 * width * layers
    return Measures(
        parameters, layers, saved * layers, 1.05 * row, (memory.attention + sees) * row, memory.largest * saved,
        trained * layers, memory.text_tokens,
        memory.control_tokens.get(pipeline, min(memory.control_tokens.values(), default=0)),
        memory.cells.get(config.get("in_channels", 0), 16),
    )  # fmt: skip


def measures_of_entry(entry: Entry) -> Measures | None:
    """Of a base model of the catalogue; None where its size or its family's is not known."""
    if entry.parameters is None:
        return None
    for size in family_facts()[entry.family].sizes:
        if entry.parameters < size.most:
            return measures_of(entry.family, size.config, entry.parameters)
    return None


def usable(gpu: float) -> float:
    """Bytes that a training can take of a GPU that has so many."""
    return gpu * (1 - _FREE_OF_ITS_OWN) - RESERVE


def gpu_for(peak: float) -> int:
    """Bytes that a GPU must have for a training of that peak."""
    return round((peak + RESERVE) / (1 - _FREE_OF_ITS_OWN))


def gpu_sizes(entry: Entry) -> list[tuple[int, Means]]:
    """What is done to train a base model, with its preset's values, by the size in GB of the GPU: usual sizes, the smallest
    first, of which each does less. Empty where the base model's size is not known, or no usual GPU holds it."""
    found: list[tuple[int, Means]] = []
    if entry.packaged or (measures := measures_of_entry(entry)) is None:
        return found
    load = load_of_preset(entry, measures)
    for gigabytes in USUAL_GPUS:
        means = choose(measures, load, usable(gigabytes * GIB))
        if means is not None and (not found or means.words != found[-1][1].words):
            found.append((gigabytes, means))
    return found


def load_of_preset(entry: Entry, measures: Measures) -> Load:
    """One item of the size, and an adapter of the rank, that the base model's preset has; with a control picture where each
    item must have one."""
    preset = presets.preset_for(entry.based_on or entry.name)
    dataset = preset.get("dataset", {})
    side, frames = max(dataset.get("resolutions", [1024])), 1
    if entry.modality == "clip":
        frames = max(dataset.get("frames", [33]))
    pictures = 2 if entry.control == "needed" else 1
    return Load(tokens_of(measures, side, side, frames, 1, pictures), preset.get("adapter", {}).get("rank", 16))


def tokens_of(measures: Measures, width: int, height: int, frames: int = 1, batch: int = 1, pictures: int = 1) -> int:
    """Tokens of a batch of items of that many pixels and frames; after the first, four frames are one.

    Args:
        pictures: That go through the blocks together: what is drawn, and its control pictures.
    """
    image = math.ceil(width / measures.cell) * math.ceil(height / measures.cell) * ((frames - 1) // 4 + 1)
    return (image * pictures + measures.text_tokens + measures.control_tokens * (pictures - 1)) * batch


def peak_of(
    measures: Measures,
    load: Load,
    quantize: Quantization,
    checkpointing: Checkpointing,
    swapped: int = 0,
    shards: int = 1,
) -> int:
    """Bytes of GPU memory that training takes at the most."""
    size = 2 if load.wide else 1
    weights = measures.parameters * BYTES[quantize] * (size if quantize is Quantization.NONE else 1)
    if swapped:
        weights *= min(1.0, 1 - (swapped - 2) / measures.blocks)
    if shards > 1 and checkpointing is not Checkpointing.OFF:
        weights *= min(1.0, 1 / shards + 2 / measures.blocks)
    kept = {
        Checkpointing.OFF: measures.saved,
        Checkpointing.SELECTIVE: measures.kept + measures.attention + measures.largest,
        Checkpointing.FULL: measures.kept + measures.largest,
    }[checkpointing]
    trained = measures.trained + (_ENCODERS_TRAINED if load.captions else 0)
    activations = kept * load.tokens + _ENCODERS_SAVED * load.captions
    if load.encoders:
        weights += _ENCODERS * BYTES[Quantization.NONE] * size
    return round(weights + trained * load.rank * _TRAINED + activations * size)


def choose(measures: Measures, load: Load, budget: float, wishes: Wishes | None = None) -> Means | None:
    """The first means, in order of their price, with which a training fits into `budget` bytes; None where none does.

    Recomputing costs time alone and comes first; 8 bits cost a little closeness to the base model, 4 bits more. Between them
    comes splitting over GPUs, which send each other the whole base model twice a step; swapping costs the most.
    """
    for means in means_in_order(measures, load, wishes or Wishes()):
        if means.peak <= budget:
            return means
    return None


def means_in_order(measures: Measures, load: Load, wishes: Wishes) -> Iterator[Means]:
    """Everything that may be done, as far as it is left open, the cheapest first; the last takes the least memory."""
    kinds = _CLOSEST_FIRST if wishes.quantize is None else (wishes.quantize,)
    grades = _CHEAPEST_FIRST if wishes.checkpointing is None else (wishes.checkpointing,)
    swapped = wishes.swapped or 0
    for quantize in kinds:
        for shards in wishes.shards:
            if shards > 1 and 1 in wishes.shards and quantize is kinds[0] and len(kinds) > 1:
                continue  # fewer bits are tried first
            for grade in grades:
                if shards > 1 and grade is Checkpointing.OFF and grade is not grades[-1]:
                    continue  # what was put together would be kept for the backward pass
                peak = peak_of(measures, load, quantize, grade, swapped, shards)
                yield Means(quantize, grade, swapped, peak, shards)
    if wishes.swapped is None and 1 in wishes.shards:
        for swapped in range(3, measures.blocks + 1):
            peak = peak_of(measures, load, kinds[-1], grades[-1], swapped)
            yield Means(kinds[-1], grades[-1], swapped, peak)
