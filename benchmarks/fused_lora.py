"""How much faster a training step is with the fused LoRA layer than with peft's own, interleaved in one process.

    python benchmarks/fused_lora.py [--model demo] [--batch 1] [--rounds 16] [--layer 1024 3072]

Two measurements: the whole step of a tiny model, and forward and backward of one layer (tokens, width) in bfloat16, under
the autocast that peft's own needs. The fused layer is kept while both are above 1. The result is a line of JSON and a
sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from engine_overhead import build
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from lorapod.engine.evaluate import loss_of
from lorapod.engine.fused_lora import FusedLinear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--layer", type=int, nargs=2, default=(1024, 3072), metavar=("TOKENS", "WIDTH"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        step = ratio(whole_step(Path(folder), args.model, args.batch), args.rounds)
    layer = ratio(one_layer(*args.layer), args.rounds)
    result = {
        "benchmark": "fused_lora", "model": args.model, "batch": args.batch, "layer": list(args.layer),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "step_ratio": round(step, 3), "layer_ratio": round(layer, 3), "limit": 1.0,
    }  # fmt: skip
    print(json.dumps(result))
    print(f"The fused layer makes a step {step:.3f} and a layer {layer:.3f} times as fast as peft's.")


def ratio(work: Callable[[], None], rounds: int) -> float:
    """Median of peft's time over the fused layer's, each of a pair of runs; the first two pairs warm up."""
    fused = FusedLinear.forward
    pairs = []
    for _ in range(rounds + 2):
        FusedLinear.forward = lora.Linear.forward
        plain = timed(work)
        FusedLinear.forward = fused
        pairs.append(plain / timed(work))
    return statistics.median(pairs[2:])


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def whole_step(folder: Path, model: str, batch: int) -> Callable[[], None]:
    training = build(folder, model, batch, 100)
    ready = [training.batches.read(n).to(training.job.device) for n in range(5)]
    training.denoiser.train()

    def work() -> None:
        for each in ready:
            loss_of(training.job, training.denoiser, each).mean().backward()
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)

    return work


def one_layer(tokens: int, width: int) -> Callable[[], None]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["0"], init_lora_weights=False)
    config._register_custom_module({nn.Linear: FusedLinear})
    model = inject_adapter_in_model(config, nn.Sequential(nn.Linear(width, width)).to(device, torch.bfloat16))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    x = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16):  # which peft's own layer needs
            y = model(x)
        y.backward(torch.ones_like(y))

    return work


if __name__ == "__main__":
    main()
