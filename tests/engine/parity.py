"""Losses held against an independent computation, and noted where somebody asks for the numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

NOTED_IN = "LORAPOD_PARITY"
"""Environment variable with a file that gets a line of JSON for each comparison; `tools/loss_parity.py` reads it."""

WITHIN = 1e-5


def same_loss(name: str, ours: float, theirs: float) -> None:
    """Fails where two losses differ by more than 1e-5.

    Args:
        name: The base model, and what of it is compared.
    """
    if path := os.environ.get(NOTED_IN):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "ours": ours, "theirs": theirs}) + "\n")
    assert abs(ours - theirs) < WITHIN, f"{name}: {ours} against {theirs}"
