"""Writes docker/requirements.lock: every package of the container, by version and hash, for Python 3.12 on Linux x86-64.

    python tools/lock.py              keeps what is pinned and still fits
    python tools/lock.py --upgrade    takes the newest that fit

Asks whatever package index uv is set up for; the lock names none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("engine", "captions", "optimizers", "pod")
HEADER = "# Written by tools/lock.py (`make lock`) from pyproject.toml and docker/requirements.in.\n"


def main() -> int:
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if uv is None:
        print("This needs uv: pip install uv", file=sys.stderr)
        return 2
    lock = ROOT / "docker/requirements.lock"
    argv = [
        uv, "pip", "compile", "--quiet", "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28",
        "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url",
        *(word for extra in EXTRAS for word in ("--extra", extra)), *sys.argv[1:],
        "pyproject.toml", "docker/requirements.in", "--output-file", str(lock),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, check=False)
    if done.returncode == 0:
        lock.write_text(HEADER + lock.read_text(encoding="utf-8").removeprefix(HEADER), encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
