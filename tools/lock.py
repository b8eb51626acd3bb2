"""Writes docker/requirements.lock and docker/build.lock: every package of the container, and what builds lorapod's wheel,
by version and hash, for Python 3.12 on Linux x86-64.

    python tools/lock.py              keeps what is pinned and still fits
    python tools/lock.py --upgrade    takes the newest that fit

Asks whatever package index uv is set up for; the locks name none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("engine", "captions", "tagger", "optimizers", "pod")
HEADER = "# Written by tools/lock.py (`make lock`) from pyproject.toml and docker/requirements.in.\n"


def main() -> int:
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if uv is None:
        print("This needs uv: pip install uv", file=sys.stderr)
        return 2
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    image = _compile(uv, "docker/requirements.lock", [*extras, "pyproject.toml", "docker/requirements.in"])
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return image or _compile(uv, "docker/build.lock", ["-"], "\n".join(backend))


def _compile(uv: str, target: str, sources: list[str], given: str = "") -> int:
    """Pins what the sources ask for; `given` is what `-` among them reads."""
    lock = ROOT / target
    argv = [
        uv, "pip", "compile", "--quiet", "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28",
        "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", *sys.argv[1:], *sources,
        "--output-file", str(lock),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, check=False, input=given, text=True)
    if done.returncode == 0:
        lock.write_text(HEADER + lock.read_text(encoding="utf-8").removeprefix(HEADER), encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
