"""The demo at a third of its steps, over several seeds: it learns the character and keeps what it knew.

Measured over the three seeds: 76 to 86 % of the gap closed, likeness up by 0.23 to 0.27, known things 0.01 to 0.02 worse.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from lorapod.start.demo_data import unpack

STEPS = 300


def events_of_a_run(folder: Path, seed: int) -> list[dict[str, Any]]:
    unpack(folder / "demo")
    changes = [f"training.steps={STEPS}", f"training.seed={seed}", "evaluation.every=0", "saving.checkpoint_every=0"]
    argv = [
        sys.executable,
        "-m",
        "lorapod.cli.main",
        "--workspace",
        str(folder),
        "train",
        str(folder / "demo/recipe.toml"),
    ]
    argv += [word for change in changes for word in ("--set", change)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=900)
    assert ended.returncode == 0, ended.stderr
    (path,) = folder.glob("training_outputs/momo/*/events.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_demo_learns_the_character_and_keeps_what_it_knew(tmp_path: Path, seed: int) -> None:
    events = events_of_a_run(tmp_path, seed)
    loss = {(e["dataset"], e["step"]): e["loss"] for e in events if e["type"] == "eval"}
    new_before, new_after = loss["momo", 0], loss["momo", STEPS]
    known_before, known_after = loss["things", 0], loss["things", STEPS]
    gap = new_before - known_before
    print(f"seed {seed}: momo {new_before:.3f} to {new_after:.3f}, things {known_before:.3f} to {known_after:.3f}")
    assert gap > 0.5
    assert new_after - known_before < gap / 2, "at least half of the gap is closed"
    assert known_after - known_before < gap / 10, "what the base knew is not lost"

    likeness = {step: mean(e["likeness"] for e in events if e["type"] == "preview" and e["step"] == step
                           and e.get("likeness") is not None) for step in (0, STEPS)}  # fmt: skip
    print(f"likeness {likeness[0]:.2f} to {likeness[STEPS]:.2f}")
    assert likeness[STEPS] > likeness[0] + 0.1
