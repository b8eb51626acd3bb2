"""The engine's process, before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import os, sys
from lorapod.engine.__main__ import main
assert "torch" not in sys.modules
assert main() == 1
print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), os.environ.get("PYTORCH_ALLOC_CONF"))
"""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 None"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "None max_split_size_mb:64"),
    ],
)
def test_memory_of_a_gpu_grows_in_place_unless_the_person_says_otherwise(
    tmp_path: Path, given: dict[str, str], told: str
) -> None:
    """Seen in a process that ends at once, since the run that it is asked for is not there."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    command = [sys.executable, "-c", MAIN, "train", str(tmp_path / "run"), "--workspace", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | given, check=False)
    assert done.stdout.splitlines()[-1] == told, done.stdout + done.stderr
