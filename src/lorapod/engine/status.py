"""What processes of the engine tell each other: which of them they are, where they meet, and how they ended."""

from __future__ import annotations

import os

RANKS_STORE = "LORAPOD_RANKS"
"""Environment variable with the file by which the ranks of `engine.launch` find each other."""

STOPPED = 130
"""It was asked to stop, and did after the present step."""

LOST = 75
"""It could not go on because another rank is gone."""

_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun sets, and nothing else."""


def by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return _TORCHRUN in os.environ


def rank_and_count() -> tuple[int, int]:
    """Which process of a training this is, from 0, and of how many.

    `RANK` and `WORLD_SIZE` count only where `engine.launch` or torchrun set them: rented clusters set them as well, for
    programs of their own.
    """
    if RANKS_STORE not in os.environ and not by_torchrun():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
