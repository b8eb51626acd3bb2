"""Fake GPUs of eight generations, as the driver's library (compiled from `nvml.c`, loaded by NVIDIA's own Python client)
and as `nvidia-smi` on the path. Names and capabilities are those of NVIDIA's list; memory is as the cards report it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    name: str
    mebibytes: int
    capability: tuple[int, int]
    used: int = 500
    mig: int = -1
    virtual: int = 0
    slices: int = 0
    slice_mebibytes: int = 0

    def but(self, **changes: int) -> Card:
        return replace(self, **changes)


V100 = Card("Tesla V100-SXM2-16GB", 16384, (7, 0))
T4 = Card("Tesla T4", 15360, (7, 5))
A100 = Card("NVIDIA A100-SXM4-80GB", 81920, (8, 0), mig=0)
RTX3090 = Card("NVIDIA GeForce RTX 3090", 24576, (8, 6))
RTX4090 = Card("NVIDIA GeForce RTX 4090", 24564, (8, 9))
H100 = Card("NVIDIA H100 80GB HBM3", 81559, (9, 0), mig=0)
B200 = Card("NVIDIA B200", 183359, (10, 0), mig=0)
RTX5090 = Card("NVIDIA GeForce RTX 5090", 32607, (12, 0))
GENERATIONS = (V100, T4, A100, RTX3090, RTX4090, H100, B200, RTX5090)


@dataclass(frozen=True)
class Driver:
    version: str = "570.86.15"
    cuda: tuple[int, int] = (12, 8)
    status: int = 0


def library(folder: Path) -> Path | None:
    """Compiles the library into a folder; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "libnvidia-ml.so.1"
    if not made.exists():
        source = Path(__file__).parent / "nvml.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", made, source], check=True)
    return made


def nvml_environment(folder: Path, cards: tuple[Card, ...], driver: Driver = Driver()) -> dict[str, str]:
    """The environment in which NVIDIA's client finds these cards; `folder` holds the compiled library."""
    lines = [f"{driver.status} {driver.version} {driver.cuda[0] * 1000 + driver.cuda[1] * 10}"]
    for i, card in enumerate(cards):
        total = card.mebibytes * MIB
        lines.append(
            f"{card.name}|GPU-{i:08d}|{total}|{total - min(total, card.used * MIB)}"
            f"|{card.capability[0]}|{card.capability[1]}|{card.mig}|{card.virtual}"
            f"|{card.slices}|{card.slice_mebibytes * MIB}"
        )
    state = folder / "cards.txt"
    state.write_text("\n".join(lines) + "\n")
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(state)}


_SMI = """#!{python}
import json, sys
state = json.loads({state!r})
if state["status"]:
    print(state["words"])
    sys.exit(state["status"])
query = next((word.split("=", 1)[1].split(",") for word in sys.argv if word.startswith("--query-gpu=")), None)
if query is None:
    print("| NVIDIA-SMI {version}    Driver Version: {version}    CUDA Version: {cuda}    |")
    sys.exit(0)
for field in query:
    if field not in state["fields"]:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit(2)
for row in state["rows"]:
    print(", ".join(row[field] for field in query))
"""


def smi(
    folder: Path,
    cards: tuple[Card, ...],
    driver: Driver = Driver(),
    *,
    words: str = "",
    lacks: tuple[str, ...] = (),
) -> Path:
    """Writes an `nvidia-smi` that knows these cards. `words`: what it says before it fails; `lacks`: fields that it does
    not know yet."""
    rows = [
        {
            "name": card.name,
            "uuid": f"GPU-{i:08d}",
            "memory.total": str(card.mebibytes) if card.mebibytes else "[N/A]",
            "memory.free": str(card.mebibytes - card.used) if card.mebibytes else "[N/A]",
            "driver_version": driver.version,
            "mig.mode.current": {-1: "[N/A]", 0: "Disabled", 1: "Enabled"}[card.mig],
            "compute_cap": f"{card.capability[0]}.{card.capability[1]}",
        }
        for i, card in enumerate(cards)
    ]
    known = ("name", "uuid", "memory.total", "memory.free", "driver_version", "mig.mode.current", "compute_cap")
    state = {"rows": rows, "status": 9 if words else 0, "words": words, "fields": [f for f in known if f not in lacks]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvidia-smi"
    cuda = ".".join(map(str, driver.cuda))
    path.write_text(_SMI.format(python=sys.executable, state=json.dumps(state), version=driver.version, cuda=cuda))
    path.chmod(0o755)
    return path


def on_path(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
