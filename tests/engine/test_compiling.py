"""Compiled blocks: the same losses as plain ones, and plain ones with one warning where the compiler fails."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lorapod.engine.compiling import CompiledBlocks, wants_compiling
from lorapod.events import PREFIX

HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++", "c++"))


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from gpu_parts import measure

    return measure


@pytest.fixture
def plainly() -> Iterator[None]:
    """Workers and vector code only make compiling longer."""
    from torch._inductor import config

    with config.patch({"compile_threads": 1, "cpp.simdlen": 1}):
        yield


class Trained:
    """A tiny model of random weights that takes steps as a run does, without a dataset."""

    def __init__(self, parts: ModuleType, folder: Path, checkpointing: bool = False, model: str = "z-image") -> None:
        from gpu_parts.models import random_denoiser

        from lorapod.engine import adapters
        from lorapod.engine.optimizers import build_optimizer

        folder.mkdir()
        cell = parts.Cell(model, "64x64", compiled=False, checkpointing=checkpointing, tiny=True, precision="fp32")
        self.job = parts.made_job(cell, folder)
        self.denoiser = random_denoiser(self.job.base, self.job.device, self.job.dtype)
        adapters.add_adapter(self.denoiser, self.job.family, self.job.recipe.adapter, 16.0, 0)
        if checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.parameters = adapters.adapter_parameters(self.denoiser)
        self.optimizer = build_optimizer(self.job.recipe.optimizer, self.parameters)
        self.batches = parts.ready_batches(cell, self.job)
        self.denoiser.train()

    def losses(self, steps: int, compiled: CompiledBlocks | None = None) -> list[float]:
        from lorapod.engine.step import optimizer_step

        found: list[float] = []
        for number in range(steps):
            batches = iter(self.batches[number % len(self.batches) :])
            losses = optimizer_step(
                self.job, self.denoiser, self.optimizer, self.parameters, batches, 1e-2, number, compiled
            )
            found += [loss.item() for loss in losses]
        return found


def warnings(text: str) -> list[dict[str, Any]]:
    events = [json.loads(line.removeprefix(PREFIX)) for line in text.split("\n") if line.startswith(PREFIX)]
    return [event for event in events if event["type"] == "warning"]


@pytest.mark.usefixtures("plainly")
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_learn_the_same(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torch itself sets it when it is imported
    plain = Trained(parts, tmp_path / "plain", model="wan2.1-t2v-1.3b").losses(3)
    other = Trained(parts, tmp_path / "compiled", model="wan2.1-t2v-1.3b")
    blocks = CompiledBlocks(other.denoiser, tmp_path / "inductor")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert other.losses(3, blocks) == pytest.approx(plain, abs=1e-5)
    assert blocks.active and torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert any((tmp_path / "inductor").rglob("*.py")), "the compiled code is not where it was asked for"
    assert not warnings(capsys.readouterr().out)


def test_a_failing_compiler_is_told_once_and_changes_nothing(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Trained(parts, tmp_path / "plain").losses(3)
    calls = 0

    def no_compiler(function: Any, **options: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            raise torch._dynamo.exc.TorchDynamoException("no compiler here\nlong story")

        assert options == {"dynamic": False}
        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    other = Trained(parts, tmp_path / "other")
    blocks = CompiledBlocks(other.denoiser, tmp_path / "unused")
    assert other.losses(3, blocks) == plain
    assert calls == 1 and not blocks.active
    (warning,) = warnings(capsys.readouterr().out)
    assert "no compiler here" in warning["message"] and "long story" not in warning["message"]


def test_a_backward_pass_that_cannot_be_compiled_is_taken_again(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Trained(parts, tmp_path / "plain").losses(3)

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no backward here")

    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *given, **named: Failing.apply(function(*given, **named))
    )
    other = Trained(parts, tmp_path / "other")
    blocks = CompiledBlocks(other.denoiser, tmp_path / "unused")
    assert other.losses(3, blocks) == plain
    assert "no backward here" in warnings(capsys.readouterr().out)[0]["message"]


def test_only_training_runs_compiled_code(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []

    def watched(function: Any, **_: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            seen.append(torch.is_grad_enabled())
            return function(*given, **named)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    trained = Trained(parts, tmp_path / "it", checkpointing=True)
    CompiledBlocks(trained.denoiser, tmp_path / "unused")
    from lorapod.engine.evaluate import loss_of

    with torch.no_grad():
        loss_of(trained.job, trained.denoiser, trained.batches[0])
    assert not seen
    loss_of(trained.job, trained.denoiser, trained.batches[0])
    assert seen and all(seen)


def test_who_compiles() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not wants_compiling("auto", cpu) and wants_compiling("auto", cuda)
    assert wants_compiling(True, cpu) and not wants_compiling(False, cuda)


@pytest.mark.usefixtures("plainly")
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")
def test_rounded_swapped_and_checkpointed_blocks_are_compiled_once_and_learn_the_same(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that saves memory at once: no graph more than without, none broken, and the losses of eager blocks."""
    from torch._dynamo.utils import counters

    from lorapod.engine.blocks import Keeping, blocks_of
    from lorapod.engine.checkpointing import enable_checkpointing
    from lorapod.engine.quantised import QuantisedLinear, may_be_quantised, quantise
    from lorapod.engine.streaming import stream
    from lorapod.recipe.choices import Checkpointing, Quantization

    torch._dynamo.reset()

    def saving(name: str) -> Trained:
        trained = Trained(parts, tmp_path / name)
        for block in blocks_of(trained.denoiser).values():
            for adapted in list(block.modules()):
                layer = getattr(adapted, "base_layer", None)
                if may_be_quantised(layer):
                    codes = quantise(layer.weight, Quantization.INT8)
                    adapted.base_layer = QuantisedLinear(codes, layer.bias, Quantization.INT8, torch.float32)
        enable_checkpointing(trained.denoiser, Checkpointing.SELECTIVE)
        return trained

    eager, compiled = saving("eager"), saving("compiled")
    counters.clear()
    blocks = CompiledBlocks(compiled.denoiser, tmp_path / "compiled")
    streamed = stream(compiled.denoiser, Keeping(swapped=3), torch.device("cpu"))
    assert streamed and len(streamed.blocks) == 3
    assert compiled.losses(4, blocks) == pytest.approx(eager.losses(4), rel=1e-5)
    assert blocks.active and not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= len(blocks.blocks)
