"""One cell of the benchmark: a model at a shape in one way of running, from nothing to its numbers.

It is run in a process of its own (`python benchmarks/gpu.py --cell JSON`), so that memory, compiled code and a failure of
one cell are none of the next's. What runs is the engine: its family's loss, its adapter, its optimizer step.
Time is taken by the wall clock around windows of steps with the device synchronised at both ends, never around single
steps. Not in it: reading cached latents from disk and drawing noise, which the engine does on a thread beside the step.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from gpu_parts.cost import peak_tflops, step_cost
from gpu_parts.gpu_state import GpuState
from gpu_parts.models import MODELS, Shape, latents_shape, random_denoiser, random_item, random_text, write_base
from lorapod import recipe as recipes
from lorapod.engine import adapters
from lorapod.engine.attention import attention_of
from lorapod.engine.batches import Batch, levels_of
from lorapod.engine.compiling import CompiledBlocks
from lorapod.engine.job import Job
from lorapod.engine.noise import draw_levels, generator_for
from lorapod.engine.optimizers import build_optimizer
from lorapod.engine.step import optimizer_step
from lorapod.engine.train import memory_gb
from lorapod.errors import RequestError
from lorapod.models import BaseModel
from lorapod.recipe import Recipe
from lorapod.workspace import Workspace

READY_BATCHES = 4
"""Batches that are made beforehand and taken in turn."""


@dataclass(frozen=True)
class Cell:
    """What is measured, and for how long."""

    model: str
    shape: str
    compiled: bool
    checkpointing: bool
    batch: int = 1
    rank: int = 16
    tiny: bool = False
    precision: str = "bf16"
    steps: int = 60
    windows: int = 3
    warmup_steps: int = 20
    warmup_seconds: float = 30.0
    peak: float | None = None
    cache: str = ""
    attention: str = "auto"


@dataclass(frozen=True)
class MadeJob(Job):
    """A job of a base model that has no files of weights, and of no data."""

    made: BaseModel | None = None

    @property
    def base(self) -> BaseModel:  # type: ignore[override]
        assert self.made is not None
        return self.made


def measure(cell: Cell, began: float) -> dict[str, Any]:
    """The row of a cell.

    Args:
        began: `time.time()` when the process was asked for; the time to the first step starts there.
    """
    imported = time.time()
    row: dict[str, Any] = {key: value for key, value in asdict(cell).items() if key not in ("cache", "peak")}
    row["text_tokens"] = text_tokens(cell)
    try:
        with tempfile.TemporaryDirectory() as folder:
            row |= _measured(cell, Path(folder), began, imported)
    except torch.OutOfMemoryError as error:
        row |= {"state": "out of memory", "why": str(error).splitlines()[0][:200], **_peaks("")}
    except ValueError as error:
        row |= {"state": "not possible", "why": str(error)}
    return row


def _measured(cell: Cell, folder: Path, began: float, imported: float) -> dict[str, Any]:
    job = made_job(cell, folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(attention_of(job))
        except RequestError as error:
            raise ValueError(f"{error.what}. {error.to_hint()}") from error
        return _trained(cell, job, folder, began, imported)


def _trained(cell: Cell, job: MadeJob, folder: Path, began: float, imported: float) -> dict[str, Any]:
    denoiser = random_denoiser(job.base, job.device, job.dtype)
    adapters.add_adapter(denoiser, job.family, job.recipe.adapter, job.recipe.alpha, job.recipe.training.seed)
    _stir(denoiser)
    if cell.checkpointing:
        denoiser.enable_gradient_checkpointing()
    blocks = CompiledBlocks(denoiser, Path(cell.cache or folder / "compiled")) if cell.compiled else None
    parameters = adapters.adapter_parameters(denoiser)
    optimizer = build_optimizer(job.recipe.optimizer, parameters)
    batches = cycle(ready_batches(cell, job))
    denoiser.train()
    _synchronise(job.device)
    loaded, load_peaks = time.time(), _peaks("load_")
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = [parameter.detach().clone() for parameter in parameters[:1]]
    losses: list[torch.Tensor] = []
    numbers = iter(range(10**9))

    def step() -> None:
        rate, number = job.recipe.optimizer.learning_rate, next(numbers)
        losses[:] = optimizer_step(job, denoiser, optimizer, parameters, batches, rate, number, blocks)

    step()
    _synchronise(job.device)
    first = time.time()
    first_loss = losses[0].item()
    done = 1
    while done < cell.warmup_steps or time.time() - first < cell.warmup_seconds:
        step()
        done += 1
        if done % 5 == 0:
            _synchronise(job.device)
    state = GpuState(job.device)
    spans = [_window(step, max(1, cell.steps // cell.windows), job.device) for _ in range(cell.windows)]
    last_loss = losses[0].item()
    if not (math.isfinite(first_loss) and math.isfinite(last_loss)):
        return {
            "state": "failed",
            "why": f"the loss went from {first_loss} to {last_loss}, so the numbers mean nothing",
        }
    if torch.equal(before[0], parameters[0]):
        return {"state": "failed", "why": "the adapter did not change, so nothing was trained"}
    seconds = statistics.median(spans)
    cost = step_cost(job.base, job.family, denoiser, Shape.of(cell.shape), text_tokens(cell), cell.batch)
    name = device_name(job.device)
    peak = cell.peak or peak_tflops(name)
    as_the_goal = (cell.tiny, cell.batch, cell.rank, cell.precision) == (False, 1, 16, "bf16")
    goal = None if not as_the_goal else MODELS[cell.model].goals.get(cell.shape)
    return {
        "state": "measured",
        "device": name,
        "seconds_a_step": seconds,
        "fastest_window": min(spans),
        "slowest_window": max(spans),
        "steps_timed": cell.windows * max(1, cell.steps // cell.windows),
        "warmup_steps_done": done,
        "samples_a_second": cell.batch / seconds,
        "model_tflop": cost.model / 1e12,
        "peak_tflops": peak,
        "utilisation": cost.model / seconds / (peak * 1e12) if peak else None,
        "goal": goal,
        "times_the_goal": seconds / goal if goal else None,
        "still_compiled": blocks.active if blocks else None,
        "seconds_to_first_step": first - began,
        "of_which_imports": imported - began,
        "of_which_weights": loaded - imported,
        "of_which_first_step": first - loaded,
        "first_loss": first_loss,
        "last_loss": last_loss,
        "parameters": sum(p.numel() for p in denoiser.parameters()) - sum(p.numel() for p in parameters),
        "adapter_parameters": sum(p.numel() for p in parameters),
        "adapter_tensors": len(parameters),
        **load_peaks,
        **_peaks(""),
        **state.since(cell.batch * cell.windows * max(1, cell.steps // cell.windows)),
    }


def device_name(device: torch.device) -> str:
    """The device as results are filed under it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def text_tokens(cell: Cell) -> int:
    """Tokens of each caption."""
    return 16 if cell.tiny and cell.model != "sdxl" else MODELS[cell.model].text_tokens


def made_job(cell: Cell, folder: Path) -> MadeJob:
    base = write_base(cell.model, cell.tiny, folder / "base")
    overrides = [
        f"base_model.name={folder / 'base'}", f"adapter.rank={cell.rank}", f"training.batch_size={cell.batch}",
        "training.steps=1000", f"training.precision={cell.precision}", f"training.compile={str(cell.compiled).lower()}",
        f"training.gradient_checkpointing={str(cell.checkpointing).lower()}", f"training.attention={cell.attention}",
    ]  # fmt: skip
    text = f'name = "benchmark"\n[base_model]\nname = "{base.folder}"\n[[datasets]]\npath = "none"\n'
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    recipe: Recipe = recipes.load(folder / "recipe.toml", overrides, check_paths=False)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
    return MadeJob(run, Workspace(folder), base)


@torch.no_grad()
def _stir(denoiser: torch.nn.Module) -> None:
    """Gives B of each LoRA small numbers: zeros would make the gradient of A zero, and products cheap."""
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapters.layers_of(denoiser):
        b = adapters.parts_of(layer)["B"]
        b.copy_(1e-3 * torch.randn(b.shape, generator=generator))


def ready_batches(cell: Cell, job: MadeJob) -> list[Batch]:
    """Batches as the engine reads them from its cache: on the CPU, latents in float32, texts in the base model's type."""
    shape = (cell.batch, *latents_shape(job.base, job.family, Shape.of(cell.shape)))
    made = []
    for number in range(READY_BATCHES):
        generator = generator_for("benchmark", number)
        latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        levels = draw_levels(cell.batch, levels_of(job, latents, job.experts[0]), generator)
        texts = [random_text(job.base, text_tokens(cell), job.dtype, generator) for _ in range(cell.batch)]
        items = [random_item(job.base, shape[1:], generator) for _ in range(cell.batch)]
        made.append(Batch(latents, noise, levels, items, texts))
    return made


def _window(step: Any, count: int, device: torch.device) -> float:
    """Mean seconds a step of `count` steps in a row."""
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    _synchronise(device)
    return (time.perf_counter() - began) / count


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peaks(prefix: str) -> dict[str, float]:
    """Peaks of memory in 1e9 bytes so far: what tensors took, what the allocator held, what the device has in use now."""
    if not torch.cuda.is_available():
        return {f"{prefix}peak_gb": memory_gb(torch.device("cpu"))}
    free, total = torch.cuda.mem_get_info()
    return {
        f"{prefix}peak_gb": memory_gb(torch.device("cuda")),
        f"{prefix}peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        f"{prefix}device_gb": round((total - free) / 1e9, 2),
    }


@contextlib.contextmanager
def events_aside() -> Iterator[io.StringIO]:
    """Inside the block what the engine prints goes into the text that is given, and no row gets between."""
    text, plain = io.StringIO(), sys.stdout
    sys.stdout = text
    try:
        yield text
    finally:
        sys.stdout = plain
