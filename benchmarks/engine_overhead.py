"""Seconds per step of the engine's loop over those of a bare PyTorch loop, measured interleaved in one process.

    python benchmarks/engine_overhead.py [--model demo] [--rounds 12] [--steps 10] [--batch 4]

Both train the same adapter on the same model with the same batches: the bare loop does forward, backward and optimizer
on tensors that are ready in memory; the engine's reads them from its cache, draws noise, clips and reports.
Limit: 1.05. The result is a line of JSON and a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lorapod import recipe as recipes
from lorapod.engine.evaluate import loss_of
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.train import Training
from lorapod.start.demo_data import unpack
from lorapod.workspace import Workspace

LIMIT = 1.05


def build(folder: Path, model: str, batch: int, steps: int) -> Training:
    """A training of the demo's pictures, cached and ready at step 0."""
    unpack(folder)
    overrides = [
        f"base_model.name={model}", f"training.batch_size={batch}", f"training.steps={steps}", "evaluation.every=0",
        "previews.at_start=false", "previews.every=0", "saving.checkpoint_every=0",
    ]  # fmt: skip
    recipe = recipes.load(folder / "recipe.toml", overrides)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
    job = Job(run, Workspace(folder))
    prepare(job, lambda: False)
    training = Training(job)
    training.begin(job.experts[0])
    return training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ratios, ours, bare = measure(Path(folder), args)
    result = {
        "benchmark": "engine_overhead", "model": args.model, "batch": args.batch, "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "engine_s_per_step": round(ours, 4), "bare_s_per_step": round(bare, 4),
        "ratio_median": round(statistics.median(ratios), 4), "limit": LIMIT,
    }  # fmt: skip
    print(json.dumps(result))
    verdict = "within" if result["ratio_median"] <= LIMIT else "over"
    print(
        f"The engine's step takes {result['ratio_median']:.3f} times the bare loop's: {verdict} the limit of {LIMIT}."
    )


def measure(folder: Path, args: argparse.Namespace) -> tuple[list[float], float, float]:
    """Ratio of each round, and the median seconds a step of the engine and of the bare loop."""
    total = args.rounds * args.steps
    engine, plain = (
        build(folder / "engine", args.model, args.batch, total),
        build(folder / "bare", args.model, args.batch, total),
    )
    ready = [plain.batches.read(n).to(plain.job.device) for n in range(args.steps)]
    plain.denoiser.train()

    def bare_steps() -> float:
        began = time.perf_counter()
        for batch in ready:
            loss_of(plain.job, plain.denoiser, batch).mean().backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    ours: list[float] = []
    theirs: list[float] = []
    marks: list[float] = []

    def between() -> None:
        """Called by the engine where something is due; lets the bare loop run after every `--steps` of them."""
        if engine.step % args.steps == 0:
            ours.append(time.perf_counter() - marks[-1])
            theirs.append(bare_steps())
            marks.append(time.perf_counter())

    engine.is_due = lambda: engine.step % args.steps == 0  # type: ignore[method-assign]
    engine.between_steps = between  # type: ignore[method-assign]
    engine.finish = lambda: None  # type: ignore[method-assign]
    engine.evaluate = lambda: None  # type: ignore[method-assign]
    bare_steps()
    marks.append(time.perf_counter())
    engine.run(resume=False, stopped=lambda: False)
    pairs = list(zip(ours, theirs, strict=True))[1:]  # the first round warms up
    return (
        [a / b for a, b in pairs],
        statistics.median(a for a, _ in pairs) / args.steps,
        statistics.median(b for _, b in pairs) / args.steps,
    )


if __name__ == "__main__":
    main()
