"""Training steps of base models on a GPU that is not there: what waits for it, what memory they take, and what goes wrong.

    python tools/gpu_check.py                                 every model at tiny size, in every way
    python tools/gpu_check.py --full flux-dev sdxl            at full size, with the peaks of memory beside the estimates
    python tools/gpu_check.py --full --write benchmarks/results/memory.md

It runs the engine's own family, adapter, loss, optimizer and ways of saving memory on tensors that have a device and no
numbers (`pretend_gpu`), two steps of each; the second is what is looked at. A step is right where no tensor is on the wrong
device, the CPU waits for nothing, and streams wait for each other. At tiny size each model draws a preview too, which may
wait. Needs a CPU build of torch and g++. Exit code 1 where something is not right, or an estimate is off by more than
`--tolerance`. Not covered: VAEs, text encoders, and reading weights from files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks"), str(ROOT / "src")]

import pretend_gpu  # noqa: E402

if __name__ == "__main__":
    pretend_gpu.begin()  # before anything imports torch

import torch  # noqa: E402
from gpu_parts.measure import Cell, MadeJob, made_job, ready_batches, text_tokens  # noqa: E402
from gpu_parts.models import MODELS, Shape, latents_shape, random_denoiser, random_item, random_text  # noqa: E402
from pretend_gpu.watch import GPU, Watch, pretending  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException  # noqa: E402

from lorapod.engine import adapters  # noqa: E402
from lorapod.engine.batches import Batch  # noqa: E402
from lorapod.engine.blocks import Keeping, blocks_of  # noqa: E402
from lorapod.engine.checkpointing import enable_checkpointing  # noqa: E402
from lorapod.engine.families import PreviewRequest  # noqa: E402
from lorapod.engine.optimizers import build_optimizer  # noqa: E402
from lorapod.engine.quantised import Codes, QuantisedLinear, may_be_quantised  # noqa: E402
from lorapod.engine.step import optimizer_step  # noqa: E402
from lorapod.engine.streaming import stream  # noqa: E402
from lorapod.models.memory import Load, measures_of, peak_of, tokens_of  # noqa: E402
from lorapod.recipe.choices import Checkpointing, Quantization  # noqa: E402

FULL_SHAPES = {"wan": "832x480x33"}
TINY_SHAPES = {"wan": "64x64x5"}


@dataclass(frozen=True)
class Way:
    """How a base model is trained.

    Attributes:
        swapped: Blocks that wait on the host.
    """

    checkpointing: Checkpointing = Checkpointing.OFF
    quantize: Quantization = Quantization.NONE
    swapped: int = 0

    def __str__(self) -> str:
        said = [self.checkpointing.value, self.quantize.value, f"{self.swapped} swapped"]
        return ", ".join(
            word for word, is_so in zip(said, [True, self.quantize.value != "none", self.swapped], strict=True) if is_so
        )


WAYS = (
    Way(), Way(Checkpointing.SELECTIVE), Way(Checkpointing.FULL), Way(Checkpointing.FULL, Quantization.INT8),
    Way(Checkpointing.FULL, Quantization.FP8), Way(Checkpointing.FULL, Quantization.NF4),
    Way(Checkpointing.FULL, Quantization.NONE, 8), Way(Checkpointing.SELECTIVE, Quantization.NF4, 8),
)  # fmt: skip


class OnGpu(MadeJob):
    """A job on the GPU that is not there."""

    @property
    def device(self) -> torch.device:
        return GPU


@dataclass(frozen=True)
class Found:
    """What a step was seen to do.

    Attributes:
        peak: Bytes on the GPU at the most.
        estimate: What the memory policy thinks of it; None where it does not know the family.
        wrong: What is not right.
    """

    model: str
    shape: str
    way: Way
    peak: int
    estimate: int | None
    wrong: tuple[str, ...] = ()

    @property
    def off(self) -> float:
        """How far the estimate is above the peak, as a share of it."""
        return self.estimate / self.peak - 1 if self.estimate else 0.0


def check(cell: Cell, way: Way, folder: Path) -> Found:
    """Two steps of a cell of the benchmark in one way."""
    made = made_job(cell, folder)
    job = OnGpu(made.folder, made.workspace, made.made)
    ready = ready_batches(cell, job)[:2]
    with pretending() as watch:
        batches = [batch.pinned() for batch in ready]
        wrong = attempt(lambda: steps(job, way, batches, watch))
        wrong += tuple(f"{count} x {what}" for what, count in [*watch.waits.items(), *watch.faults.items()])
    names = [name for item in ready[0].items for name in item]
    pictures = 1 + any(name.startswith("control") for name in names)
    return Found(cell.model, cell.shape, way, watch.peak, estimate(cell, job, way, pictures), wrong)


def steps(job: MadeJob, way: Way, batches: Sequence[Batch], watch: Watch) -> None:
    """As the training loop makes them, of which the last is watched from its beginning."""
    denoiser = random_denoiser(job.base, GPU, job.dtype)
    keeping = Keeping(way.quantize, way.swapped)
    if way.quantize is not Quantization.NONE:
        quantise_blocks(denoiser, way.quantize, job.dtype)
    enable_checkpointing(denoiser, way.checkpointing)
    recipe = job.recipe
    adapters.add_adapter(denoiser, job.family, recipe.adapter, recipe.alpha, recipe.training.seed, GPU)
    streamed = stream(denoiser, keeping, GPU)
    parameters = adapters.adapter_parameters(denoiser)
    optimizer = build_optimizer(recipe.optimizer, parameters)
    denoiser.train()
    for number, batch in enumerate(batches):
        watch.begin_step()
        optimizer_step(job, denoiser, optimizer, parameters, iter([batch]), 1e-4, number)
        if streamed:
            streamed.rest()


def draw(cell: Cell, folder: Path) -> tuple[str, ...]:
    """What goes wrong where a preview is drawn."""
    made = made_job(cell, folder)
    job, shape = OnGpu(made.folder, made.workspace, made.made), Shape.of(cell.shape)
    scheduler_for(job.family.name).save_pretrained(job.base.folder / "scheduler")
    generator = torch.Generator().manual_seed(0)
    text, negative = (random_text(job.base, text_tokens(cell), job.dtype, generator) for _ in range(2))
    item = random_item(job.base, latents_shape(job.base, job.family, shape), generator)
    request = PreviewRequest(text, negative, shape.width, shape.height, shape.frames, 3, 3.0, 1, item)
    with pretending() as watch:
        denoiser = random_denoiser(job.base, GPU, job.dtype)
        adapters.add_adapter(denoiser, job.family, job.recipe.adapter, job.recipe.alpha, 1, GPU)
        wrong = attempt(lambda: job.family.sample(denoiser.eval(), job.base, request))
        return wrong + tuple(f"{count} x {what}" for what, count in watch.faults.items())


def scheduler_for(family: str) -> Any:
    """One that its previews are drawn with."""
    import diffusers

    if family == "wan":
        return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    if family == "sdxl":
        return diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=family != "z_image")


def attempt(work: Callable[[], Any]) -> tuple[str, ...]:
    """What `work` fails with, if it does."""
    try:
        work()
    except (
        RuntimeError,
        AssertionError,
        TypeError,
        DataDependentOutputException,
        DynamicOutputShapeException,
    ) as error:
        notes = " ".join(getattr(error, "__notes__", [])[:1])
        return (f"{type(error).__name__}: {str(error).splitlines()[0]} {notes}",)
    return ()


def quantise_blocks(denoiser: nn.Module, kind: Quantization, dtype: torch.dtype) -> None:
    """Holds what may be in few bits so, as loading does; without numbers there is nothing to round."""
    for block in blocks_of(denoiser).values():
        for name, layer in list(block.named_modules()):
            if may_be_quantised(layer):
                owner = block.get_submodule(name.rpartition(".")[0])
                setattr(
                    owner, name.rpartition(".")[2], QuantisedLinear(codes_for(layer, kind), layer.bias, kind, dtype)
                )


def codes_for(layer: nn.Linear, kind: Quantization) -> Codes:
    """Codes of the shapes that those of a layer have."""
    out, into = layer.weight.shape
    if kind is Quantization.NF4:
        count = out * into
        values = torch.empty(count // 2, dtype=torch.uint8, device=GPU)
        return Codes(values, torch.empty(count // 64, 1, device=GPU), (out, into))
    dtype = torch.int8 if kind is Quantization.INT8 else torch.float8_e4m3fn
    return Codes(torch.empty(out, into, dtype=dtype, device=GPU), torch.empty(out, 1, device=GPU), (out, into))


def estimate(cell: Cell, job: MadeJob, way: Way, pictures: int) -> int | None:
    """Bytes that the memory policy expects."""
    family = job.family
    denoiser = family.empty_denoiser(job.base, family.experts[0])
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    measures = measures_of(job.base.family, denoiser.config, parameters, job.base.pipeline)
    if measures is None:
        return None
    shape = Shape.of(cell.shape)
    tokens = tokens_of(measures, shape.width, shape.height, shape.frames, cell.batch, pictures)
    return peak_of(measures, Load(tokens, cell.rank), way.quantize, way.checkpointing, way.swapped)


def table(rows: Sequence[Found]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Memory of a training step, tensor by tensor",
        "",
        "`python tools/gpu_check.py --full --write FILE`: steps of full-size models without numbers, on a GPU that is not there,",
        f"with torch {torch.__version__.partition('+')[0]}; batch 1, a LoRA of rank 16, bf16, eager. The peak is that of all tensors on the GPU; what",
        "CUDA, fragmentation and workspaces of kernels take comes on top. The estimate is what `auto` plans with.",
        "",
        "| base model | shape | checkpointing, bits, swapping | peak, GB | estimate, GB | off |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        said = f"{row.estimate / 1e9:.1f} | {row.off:+.0%}" if row.estimate else " | "
        lines.append(f"| {row.model} | {row.shape} | {row.way} | {row.peak / 1e9:.1f} | {said} |")
    return "\n".join(lines)


def line_of(row: Found, full: bool) -> str:
    """Where it was trained; of a full-size model with its peak."""
    known = f", {row.estimate / 1e9:8.2f} estimated ({row.off:+.0%})" if row.estimate else ""
    said = f"{row.peak / 1e9:8.2f} GB{known}" if full else ""
    return f"{row.model:18} {row.shape:12} {row.way!s:28} {said}".rstrip() + "".join(
        f"\n    {what}" for what in row.wrong
    )


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="all of them where none is named")
    parser.add_argument(
        "--full", action="store_true", help="at full size, which takes about half a minute a model and way"
    )
    parser.add_argument("--way", nargs="+", choices=[str(way) for way in WAYS], help="default: all of them")
    parser.add_argument("--shape", help="1024x1024, 832x480x81")
    parser.add_argument("--tolerance", type=float, default=0.1, help="share by which an estimate may be off")
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the table")
    args = parser.parse_args(given)
    # in fp8 weights take as much memory as in int8
    args.way = args.way or [str(way) for way in WAYS if not (args.full and way.quantize is Quantization.FP8)]
    rows: list[Found] = []
    count = bad = 0
    for model in args.models or MODELS:
        family = MODELS[model].family
        shape = args.shape or (FULL_SHAPES if args.full else TINY_SHAPES).get(
            family, "1024x1024" if args.full else "64x64"
        )
        cell = Cell(model, str(Shape.of(shape)), compiled=False, checkpointing=False, tiny=not args.full)
        for way in (way for way in WAYS if str(way) in args.way):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(check(cell, way, Path(folder)))
            print(line_of(rows[-1], args.full), flush=True)
        if not args.full:
            with tempfile.TemporaryDirectory() as folder:
                wrong = draw(cell, Path(folder))
            print(f"{model:18} {cell.shape:12} a preview" + "".join(f"\n    {what}" for what in wrong), flush=True)
            count, bad = count + 1, bad + bool(wrong)
    if args.write:
        args.write.write_text(f"{table(rows)}\n", encoding="utf-8")
    count += len(rows)
    bad += sum(bool(row.wrong) or (args.full and abs(row.off) > args.tolerance) for row in rows)
    print(f"{count} looked at, {bad} not right")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
