"""Arithmetic on LoRA files, without torch: another rank, several in one, how alike two are.

All of it works on the factors; the full product B @ A is never made. With B = Q_b R_b and A^T = Q_a R_a the singular values
of B A are those of R_b R_a^T, which is only rank by rank large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapod.errors import AdapterError
from lorapod.lora_convert import Layer, Lora

_Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Likeness:
    """How alike what two LoRAs add to one layer is.

    Attributes:
        module: Its name in diffusers, with that of its text encoder before it where it is in one.
        cosine: Of the two as vectors, -1..1; 0 where one of them adds nothing.
        norms: Frobenius norms of what each adds.
    """

    module: str
    cosine: float
    norms: tuple[float, float]


def resize(lora: Lora, rank: int) -> tuple[Lora, float]:
    """The nearest LoRA of at most that rank, by the singular values of each layer (Eckart-Young).

    Returns:
        It, with scale 1, and the share of the squared norm that is kept, 0..1. Layers of a lower rank keep theirs.
    """
    kept = whole = 0.0
    layers = []
    for layer in lora.layers:
        left, values, right = _singular(layer)
        whole += float(np.square(values).sum())
        kept += float(np.square(values[:rank]).sum())
        root = np.sqrt(values[:rank])
        up, down = left[:, :rank] * root, root[:, None] * right[:rank]
        layers.append(
            replace(
                layer,
                down=down.astype(np.float32).reshape(len(root), *layer.down.shape[1:]),
                up=up.astype(np.float32).reshape(layer.up.shape[0], len(root), *layer.up.shape[2:]),
                scale=1.0,
            )
        )
    return replace(lora, layers=tuple(layers), metadata=_plain(lora)), kept / whole if whole else 1.0


def merge(loras: Sequence[Lora], strengths: Sequence[float]) -> Lora:
    """One LoRA that adds what all of them add at their strengths: exact, at the sum of their ranks.

    Raises:
        AdapterError: They are of different families or shapes.
    """
    _refuse_different(loras, "merged")
    found: dict[tuple[str, str], list[Layer]] = {}
    for lora, strength in zip(loras, strengths, strict=True):
        for layer in lora.layers:
            scaled = replace(layer, up=layer.up * np.float32(layer.scale * strength), scale=1.0)
            found.setdefault((layer.component, layer.module), []).append(scaled)
    return Lora(loras[0].family, tuple(_together(layers) for layers in found.values()), _plain(loras[0]))


def compare(one: Lora, other: Lora) -> list[Likeness]:
    """How alike two LoRAs are, layer by layer, for the layers that both have.

    Raises:
        AdapterError: They are of different families, or have no layer in common.
    """
    _refuse_different([one, other], "compared")
    others = {(layer.component, layer.module): layer for layer in other.layers}
    rows = []
    for layer in one.layers:
        match = others.get((layer.component, layer.module))
        if match is None or not _fit(layer, match):
            continue
        norms = _norm(layer), _norm(match)
        product = _inner(layer, match)
        cosine = product / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
        name = layer.module if layer.component == "denoiser" else f"{layer.component}.{layer.module}"
        rows.append(Likeness(name, max(-1.0, min(1.0, cosine)), norms))
    if not rows:
        raise AdapterError(
            "The LoRAs have no layer in common",
            f"They change {len(one.layers)} and {len(other.layers)} others, or layers of other sizes.",
            "`lorapod lora inspect --keys` lists the layers of a file.",
        )
    return rows


def overall(rows: Sequence[Likeness]) -> float:
    """Cosine of two LoRAs as a whole, over the layers of `rows`."""
    product = sum(row.cosine * row.norms[0] * row.norms[1] for row in rows)
    squares = [sum(row.norms[side] ** 2 for row in rows) for side in (0, 1)]
    return product / math.sqrt(squares[0] * squares[1]) if all(squares) else 0.0


def _refuse_different(loras: Sequence[Lora], what: str) -> None:
    families = {lora.family for lora in loras}
    if len(families) > 1:
        raise AdapterError(
            f"LoRAs of different base models cannot be {what}", f"They are of {', '.join(sorted(families))}.", ""
        )


def _together(layers: Sequence[Layer]) -> Layer:
    first = layers[0]
    for layer in layers[1:]:
        if not _fit(first, layer):
            raise AdapterError(
                f"The LoRAs have layers {first.module} of different shapes",
                f"{first.up.shape[0]} x {first.down.shape[1:]} and {layer.up.shape[0]} x {layer.down.shape[1:]}.",
                "They are for different base models.",
            )
    down = np.concatenate([layer.down for layer in layers])
    return replace(first, down=down, up=np.concatenate([layer.up for layer in layers], axis=1))


def _fit(one: Layer, other: Layer) -> bool:
    return one.down.shape[1:] == other.down.shape[1:] and one.up.shape[0] == other.up.shape[0]


def _factors(layer: Layer) -> tuple[_Matrix, _Matrix]:
    """B (o, r) with the scale in it, and A (r, i), in float64; convolutions flattened."""
    up = layer.up.reshape(-1, layer.rank).astype(np.float64) * layer.scale
    return up, layer.down.reshape(layer.rank, -1).astype(np.float64)


def _singular(layer: Layer) -> tuple[_Matrix, _Matrix, _Matrix]:
    up, down = _factors(layer)
    q_up, r_up = np.linalg.qr(up)
    q_down, r_down = np.linalg.qr(down.T)
    left, values, right = np.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ left, values, right @ q_down.T


def _inner(one: Layer, other: Layer) -> float:
    """<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T))."""
    (up, down), (other_up, other_down) = _factors(one), _factors(other)
    return float(np.sum((up.T @ other_up) * (down @ other_down.T)))


def _norm(layer: Layer) -> float:
    return math.sqrt(max(0.0, _inner(layer, layer)))


def _plain(lora: Lora) -> dict[str, str]:
    """Metadata without what is no longer true."""
    changed = ("ss_network_dim", "ss_network_alpha", "modelspec.hash_sha256")
    return {key: value for key, value in lora.metadata.items() if key not in changed}
