"""Seconds a step of full-size models with random weights, through the engine's own families, loss and optimizer step.

    python benchmarks/gpu.py z-image flux-dev 512x512 1024x1024        models, then shapes; each with each that takes it
    python benchmarks/gpu.py wan2.1-t2v-1.3b 832x480x33 --compile on --checkpointing off
    python benchmarks/gpu.py flux-dev 1024x1024 --attention torch cudnn   which kernels are fastest
    python benchmarks/gpu.py --tiny z-image wan2.1-t2v-1.3b            the same code on the CPU, in seconds
    python benchmarks/gpu.py z-image --musubi CHECKOUT --musubi-python VENV/bin/python
    python benchmarks/gpu.py flux-dev --diffusion-pipe CHECKOUT --diffusion-pipe-python VENV/bin/python
    python benchmarks/gpu.py                                           every model; tiny where there is no GPU

One command, unattended: every model is timed at every shape eager and compiled, with and without activation checkpointing,
each in a process of its own, and what is out of memory or fails is noted and the rest goes on. Results go to
results/gpu-DEVICE.json and .md as they come; a cell that is measured again replaces its old row. The goals beside them
are for one H100 in bf16, batch 1, rank 16. Given a checkout of musubi-tuner, its own training is timed in the same cells,
each after ours, on random weights in its own file layout; given one of diffusion-pipe, likewise, on base models that were
pulled for it (`lorapod models pull NAME --for diffusion-pipe`).
Not measured: VAE and text encoders, reading the cache, several GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gpu_parts.models import MODELS, Shape
from gpu_parts.report import line_of, write_results

from lorapod.recipe.choices import Attention

RESULTS = Path(__file__).parent / "results"
SHAPES = {"wan": ["832x480x33", "832x480x81"]}
TINY_SHAPES = {"wan": ["64x64x5"]}
WAYS = {"off": [False], "on": [True], "both": [False, True]}
SECONDS_A_CELL = 1800
TAIL = 2000


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"models ({', '.join(MODELS)}) and shapes (1024x1024, 832x480x81)")
    parser.add_argument("--compile", choices=WAYS, nargs="?", const="on", help="default: both; off with --tiny")
    parser.add_argument("--checkpointing", choices=WAYS, default="both")
    parser.add_argument(
        "--attention", nargs="+", choices=list(Attention), default=["auto"], help="kernels, each a cell"
    )
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, help="that are timed, in all windows (default 60; 6 with --tiny)")
    parser.add_argument("--windows", type=int, default=3, help="the median of which counts")
    parser.add_argument("--warmup-steps", type=int, help="at least so many (default 20; 2 with --tiny)")
    parser.add_argument("--warmup-seconds", type=float, help="and at least so long (default 30; 0 with --tiny)")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name is not known")
    parser.add_argument("--limit", type=float, default=SECONDS_A_CELL, help="most seconds that one cell may take")
    parser.add_argument("--results", type=Path, help="folder for them (default: results; with --tiny one of its own)")
    parser.add_argument("--compile-cache", type=Path, help="folder that keeps compiled code from run to run")
    parser.add_argument("--tiny", action="store_true", help="tiny models, also on the CPU; measures nothing")
    parser.add_argument("--musubi", type=Path, metavar="CHECKOUT", help="times musubi-tuner too")
    parser.add_argument("--musubi-python", type=Path, default=Path(sys.executable), help="that has its packages")
    parser.add_argument("--diffusion-pipe", type=Path, metavar="CHECKOUT", help="times diffusion-pipe too")
    parser.add_argument("--diffusion-pipe-python", type=Path, default=Path(sys.executable), help="likewise")
    parser.add_argument(
        "--workspace", type=Path, default=Path.home() / "lorapod", help="with base models that were pulled for it"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.cell:
        return args
    args.models = [word for word in args.what if word in MODELS]
    args.shapes = [word for word in args.what if word not in MODELS]
    for word in args.shapes:
        try:
            Shape.of(word)
        except ValueError:
            parser.error(f"{word} is neither a model ({', '.join(MODELS)}) nor a shape like 1024x1024 or 832x480x81")
    if not torch.cuda.is_available() and not args.tiny:
        if args.what:
            parser.error("there is no GPU that torch can use; --tiny runs the same code on the CPU")
        args.tiny = True  # as `make bench` does
    args.models = args.models or list(MODELS)
    if args.results is None:
        args.results = Path(tempfile.mkdtemp(prefix="lorapod-gpu-")) if args.tiny else RESULTS
    args.compile = args.compile or ("off" if args.tiny else "both")
    for name, full, tiny in (("steps", 60, 6), ("warmup_steps", 20, 2), ("warmup_seconds", 30.0, 0.0)):
        if getattr(args, name) is None:
            setattr(args, name, tiny if args.tiny else full)
    return args


def cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured, in order: each model at each shape that its family takes, in each way."""
    found = []
    for model in args.models:
        family = MODELS[model].family
        usual = TINY_SHAPES.get(family, ["64x64"]) if args.tiny else SHAPES.get(family, ["512x512", "1024x1024"])
        own = [s for s in args.shapes if (Shape.of(s).frames > 1) <= (family == "wan")] or usual
        for shape in own:
            for compiled in WAYS[args.compile]:
                for checkpointing, attention in product(WAYS[args.checkpointing], args.attention):
                    found.append(
                        {
                            "model": model, "shape": str(Shape.of(shape)), "compiled": compiled,
                            "checkpointing": checkpointing, "batch": args.batch, "rank": args.rank,
                            "tiny": args.tiny, "precision": args.precision, "steps": args.steps,
                            "windows": args.windows, "warmup_steps": args.warmup_steps,
                            "warmup_seconds": args.warmup_seconds, "peak": args.peak_tflops,
                            "cache": str(args.compile_cache or ""), "attention": str(attention),
                        }
                    )  # fmt: skip
    return found


def run_cell(cell: dict[str, Any], limit: float) -> dict[str, Any]:
    """The row of a cell from a process of its own; what becomes of that process is noted, whatever it is."""
    command = [sys.executable, str(Path(__file__).resolve()), "--cell", json.dumps({"began": time.time(), **cell})]
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    known = {key: value for key, value in cell.items() if key not in ("cache", "peak", "peer")}
    known |= {"trainer": cell["peer"][0]} if "peer" in cell else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {**known, "state": "too slow", "why": f"it took more than {limit:g} seconds"}
    row = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None)
    if done.returncode or row is None:
        why = done.stderr.strip()[-TAIL:] or f"the process ended with {done.returncode} and said nothing"
        return {**known, "state": "failed", "why": why}
    return dict(json.loads(row))


def peers(args: argparse.Namespace, files: str) -> list[list[str]]:
    """Each other trainer's name, checkout, Python and files; a virtual environment's python is a link and stays one."""
    given = [
        ("musubi", args.musubi, args.musubi_python, Path(files)),
        ("diffusion-pipe", args.diffusion_pipe, args.diffusion_pipe_python, args.workspace),
    ]
    return [
        [name, str(home.resolve()), str(python.absolute()), str(rest.absolute())]
        for name, home, python, rest in given
        if home
    ]


def beside(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """A peer's row with its share of the device's peak, and how many times its speed ours is."""
    if ours["state"] != "measured" or theirs["state"] != "measured":
        return theirs
    faster, flops, peak = theirs["seconds_a_step"] / ours["seconds_a_step"], ours["model_tflop"], ours["peak_tflops"]
    used = flops / theirs["seconds_a_step"] / peak if peak else None
    return {**theirs, "utilisation": used, "ours_is_faster_by": faster}


def one_cell(text: str) -> None:
    """Measures in this process, and prints the row as the last line."""
    from gpu_parts.measure import Cell, events_aside, measure

    from lorapod.events import PREFIX

    given = json.loads(text)
    began, peer = given.pop("began"), given.pop("peer", None)
    with events_aside() as events:
        if peer:
            from gpu_parts.peers import Peer, measure_peer

            row = measure_peer(Cell(**given), Peer(peer[0], *map(Path, peer[1:])))
        else:
            row = measure(Cell(**given), began)
    lines = [line.removeprefix(PREFIX) for line in events.getvalue().split("\n") if line.startswith(PREFIX)]
    warnings = [event["message"] for event in map(json.loads, lines) if event["type"] == "warning"]
    print(json.dumps({**row, "warnings": warnings} if warnings else row))


def main() -> int:
    args = arguments()
    if args.cell:
        one_cell(args.cell)
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lorapod-peers-") as files:
        for cell in cells(args):
            found = [run_cell(cell, args.limit)]
            found += [beside(found[0], run_cell({**cell, "peer": peer}, args.limit)) for peer in peers(args, files)]
            for row in found:
                rows.append(row)
                print(line_of(row), flush=True)
            write_results(args.results, rows, tiny=args.tiny)
    paths = write_results(args.results, rows, tiny=args.tiny)
    print(f"\n{paths[1].read_text(encoding='utf-8')}\nWrote {paths[0]} and {paths[1]}.")
    return 0 if any(row["state"] == "measured" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
