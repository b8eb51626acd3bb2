"""How far the engine's losses are from independent computations, a row a base model.

    python tools/loss_parity.py [--write FILE]

Runs the tests that compare them (tiny random models, float32; diffusers' own models and the training scripts' formulae) and
tabulates what they found. Exit code 1 where a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table_of(lines: list[str]) -> str:
    """Markdown of what was noted, a line of JSON a comparison."""
    found: dict[str, list[tuple[float, float]]] = {}
    for each in map(json.loads, lines):
        found.setdefault(each["name"], []).append((each["ours"], each["theirs"]))
    rows = [
        f"| {name} | {len(pairs)} | {max(theirs for _, theirs in pairs):.4f} | {max(abs(a - b) for a, b in pairs):.1e} |"
        for name, pairs in sorted(found.items())
    ]
    head = [
        "# Losses against independent computations",
        "",
        f"`python tools/loss_parity.py`: tiny random models in float32, torch {version('torch').split('+')[0]}, diffusers "
        f"{version('diffusers')}. The limit is 1e-5.",
        "",
        "| base model | comparisons | largest loss | largest difference |",
        "|---|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file for the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "noted.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/engine",
            "-k",
            "independent_computation",
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"LORAPOD_PARITY": str(noted)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout[-4000:], file=sys.stderr)
            return 1
        text = table_of(noted.read_text(encoding="utf-8").splitlines())
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
