"""Training in less memory: the same numbers where nothing is rounded, near ones where it is, and means chosen by price."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorapod import recipe as recipes
from lorapod.engine.blocks import Keeping, swapped_of
from lorapod.engine.job import Job
from lorapod.engine.memory import MemoryPlan, MemoryPlanner, off_the_estimate
from lorapod.engine.prepare import prepare
from lorapod.engine.quantised import QuantisedLinear
from lorapod.engine.ranks import Ranks
from lorapod.engine.train import Training
from lorapod.errors import OutOfMemoryError, RecipeError
from lorapod.events import PREFIX, from_line
from lorapod.recipe.choices import Quantization
from lorapod.workspace import Workspace


@dataclass
class Trained:
    """A finished run."""

    run: Path
    training: Training
    events: list[dict]

    @property
    def lora(self) -> dict[str, bytes]:
        """Each tensor's bytes; what the file says of the recipe differs."""
        return {name: t.numpy().tobytes() for name, t in load_file(self.run / "lora" / "zorb.safetensors").items()}

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events if event["type"] == "eval"]


@pytest.fixture(scope="module")
def bench(tiny_z_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains the tiny Z-Image on one folder; what is cached serves all runs."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("memory")
    (folder / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 120, 200 - 40 * i)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")
    (folder / "recipe.toml").write_text(
        f"name = 'zorb'\n[base_model]\nname = '{tiny_z_image}'\n[[datasets]]\npath = 'pictures'\nresolutions = [64]\n"
        "validation_share = 0.5\n[training]\nsteps = 6\nprecision = 'fp32'\n[optimizer]\nlearning_rate = 0.02\n"
        "[adapter]\nrank = 4\n[previews]\nprompts = ['zorb']\nwidth = 64\nheight = 64\nsteps = 2\nat_start = false\n"
        "[saving]\nprecision = 'fp32'\n",
        encoding="utf-8",
    )
    numbers = iter(range(1000))

    def train(*overrides: str, run: Path | None = None, stop_at: int | None = None) -> Trained:
        resume, at = run is not None, run or folder / f"run-{next(numbers)}"
        if not resume:
            at.mkdir()
            (at / "recipe.toml").write_text(
                recipes.dumps(recipes.load(folder / "recipe.toml", list(overrides))), encoding="utf-8"
            )
        job, said = Job(at, Workspace(folder)), io.StringIO()
        with contextlib.redirect_stdout(said):
            prepare(job, lambda: False)
            training = Training(job)
            finished = training.run(resume, lambda: stop_at is not None and training.step >= stop_at)
        assert finished == (stop_at is None)
        lines = [line.removeprefix(PREFIX) for line in said.getvalue().split("\n") if line.startswith(PREFIX)]
        return Trained(at, training, [event for event in map(from_line, lines) if event])

    return train


@pytest.fixture(scope="module")
def plain(bench: Callable[..., Trained]) -> Trained:
    return bench()


@pytest.mark.parametrize(
    "means",
    [
        ["training.gradient_checkpointing=full"],
        ["training.gradient_checkpointing=selective"],
        ["training.swap_blocks=2", "training.gradient_checkpointing=full"],
        ["training.swap_blocks=4", "training.gradient_checkpointing=selective"],
        ["training.swap_blocks=3"],
    ],
)
def test_the_lora_is_the_same_to_the_last_bit(bench: Callable[..., Trained], plain: Trained, means: list[str]) -> None:
    """And so are the pictures that are drawn with it."""
    trained = bench(*means)
    assert trained.lora == plain.lora
    pictures = [sorted((each.run / "previews").rglob("*.png")) for each in (trained, plain)]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]] and pictures[0]


def test_checkpointing_keeps_less_and_selective_keeps_attention(bench: Callable[..., Trained]) -> None:
    """Bytes that autograd keeps of one step, and attentions that are computed in it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Attentions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = str(func)
            self.count += "scaled_dot_product" in name and "backward" not in name
            return func(*args, **(kwargs or {}))

    found = {}
    for grade in ("off", "selective", "full"):
        training = bench(f"training.gradient_checkpointing={grade}").training
        training.denoiser.train()
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        from lorapod.engine.evaluate import loss_of

        batch = training.batches.read(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = loss_of(training.job, training.denoiser, batch).mean()
        with Attentions() as attentions:
            loss.backward()
        found[grade] = sum(kept.values()), attentions.count
    assert found["full"][0] < found["off"][0] / 2 and found["selective"][0] < found["off"][0] / 2
    assert found["off"][1] == found["selective"][1] == 0 < found["full"][1]


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_a_quantised_base_learns_nearly_the_same(bench: Callable[..., Trained], plain: Trained, kind: str) -> None:
    trained = bench(f"base_model.quantize={kind}")
    layers = [m for m in trained.training.denoiser.modules() if isinstance(m, QuantisedLinear)]
    assert layers and all(layer.kind.value == kind for layer in layers)
    before, after = plain.losses[0], plain.losses[-1]
    assert after < before and trained.losses[-1] < trained.losses[0]
    assert trained.losses[-1] == pytest.approx(after, rel=0.1 if kind == "nf4" else 0.03)
    ours, theirs = (load_file(each.run / "lora" / "zorb.safetensors") for each in (trained, plain))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert list((trained.run / "previews").rglob("*.png"))


@pytest.mark.parametrize(
    "changes",
    [
        ["base_model.quantize=int8", "training.swap_blocks=2", "training.gradient_checkpointing=selective"],
        ["base_model.quantize=nf4"],
    ],
)
def test_it_goes_on_to_the_same_bytes(bench: Callable[..., Trained], changes: list[str]) -> None:
    whole = bench(*changes)
    begun = bench(*changes, stop_at=3)
    assert bench(run=begun.run).lora == whole.lora


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha", "oft"])
def test_every_adapter_trains_on_a_quantised_and_swapped_base(bench: Callable[..., Trained], kind: str) -> None:
    trained = bench(f"adapter.kind={kind}", "base_model.quantize=int8", "training.swap_blocks=3")
    plain = bench(f"adapter.kind={kind}")
    assert trained.losses[-1] == pytest.approx(plain.losses[-1], rel=0.05)


def test_what_is_merged_is_merged_before_it_is_quantised(bench: Callable[..., Trained], plain: Trained) -> None:
    """From the weights on disk, so that nothing is rounded twice; also when previews took it out and put it back."""
    from lorapod.engine.adapter_files import Merged, merge
    from lorapod.engine.quantised import quantise, widened

    file = plain.run / "lora" / "zorb.safetensors"
    trained = bench(f"base_model.training_adapter={file}", "base_model.quantize=nf4", "previews.every=2").training
    job = trained.job
    exact = job.family.load_denoiser(job.base, job.experts[0], job.device, job.dtype)
    merge(exact, job.family, [Merged(file, 1.0, in_previews=False)])
    weights = {name: layer for name, layer in trained.denoiser.named_modules() if isinstance(layer, QuantisedLinear)}
    assert weights
    for name, layer in weights.items():
        wanted = quantise(exact.get_submodule(name.removesuffix(".base_layer")).weight, Quantization.NF4)
        assert torch.equal(layer.weight, widened(wanted.values, wanted.scales, wanted.shape, torch.float32)), name


def said(trained: Trained) -> str:
    return " ".join(event["message"] for event in trained.events if event["type"] == "info")


def test_a_budget_is_kept_with_the_cheapest_means(bench: Callable[..., Trained]) -> None:
    """Less and less memory: first activations are computed again, then weights take fewer bits, then blocks are swapped."""
    plans: list[MemoryPlan] = []
    for budget in (1e-2, 2.7e-3, 2.6e-3, 1.6e-3, 1.45e-3, 1.3e-3):
        trained = bench(f"training.memory_gb={budget}")
        plan = trained.training.memory
        assert plan.predicted is not None and plan.predicted <= budget * 1e9
        assert "Memory: about" in said(trained)
        plans.append(plan)
    order = [(plan.keeping.quantize.value, plan.checkpointing.value, plan.keeping.swapped) for plan in plans]
    assert order[0] == ("none", "off", 0)
    prices = [
        (["none", "int8", "nf4"].index(q), ["off", "selective", "full"].index(c) if q == "none" else 0, s)
        for q, c, s in order
    ]
    assert prices == sorted(prices) and len(set(order)) == len(order), order
    assert {q for q, _, _ in order} == {"none", "int8", "nf4"} and order[-1][2] > 0


def test_several_gpus_hold_a_part_each_where_8_bits_are_too_many(plain: Trained) -> None:
    job = plain.training.job

    def keeping(*changes: str) -> Keeping:
        run = Path(tempfile.mkdtemp(dir=plain.run.parent))
        recipe = recipes.load(plain.run / "recipe.toml", list(changes), check_paths=False)
        (run / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            return MemoryPlanner(Job(run, job.workspace), job.data.train, Ranks(0, 8)).plan().keeping

    assert keeping("training.memory_gb=0.01") == Keeping()
    assert keeping("training.memory_gb=0.00145") == Keeping(Quantization.INT8, shards=8)
    assert keeping("training.memory_gb=0.00145", "training.shard_base=false").shards == 1
    assert keeping("training.memory_gb=0.01", "training.shard_base=true") == Keeping(shards=8)
    assert keeping("training.shard_base=true") == Keeping(shards=8)
    assert keeping("training.memory_gb=0.00145", "training.swap_blocks=3").shards == 1


def test_splitting_and_swapping_together_are_refused(plain: Trained) -> None:
    with pytest.raises(RecipeError, match="cannot wait in the machine's memory"):
        recipes.load(plain.run / "recipe.toml", ["training.shard_base=true", "training.swap_blocks=2"])


def test_what_does_not_fit_at_all_is_one_clear_error(bench: Callable[..., Trained]) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        bench("training.memory_gb=0.00001", "training.batch_size=4")
    text = str(caught.value)
    assert "does not fit" in text
    assert "weights rounded to 4 bits" in (caught.value.why or "") and "training.batch_size = 2" in (
        caught.value.remedy or ""
    )


def test_what_the_recipe_decides_is_kept_to(bench: Callable[..., Trained]) -> None:
    with pytest.raises(OutOfMemoryError):
        bench("training.memory_gb=0.0025", "base_model.quantize=none", "training.swap_blocks=0")
    plan = bench("training.memory_gb=0.002", "base_model.quantize=fp8").training.memory
    assert plan.keeping.quantize is Quantization.FP8


def test_a_run_goes_on_with_the_weights_that_it_began_with(bench: Callable[..., Trained]) -> None:
    """On a larger GPU too: the result does not depend on where a run is continued."""
    begun = bench("training.memory_gb=0.002", stop_at=3)
    kind = begun.training.memory.keeping.quantize
    assert kind is not Quantization.NONE
    recipe = (begun.run / "recipe.toml").read_text(encoding="utf-8")
    (begun.run / "recipe.toml").write_text(recipe.replace("memory_gb = 0.002", "memory_gb = 10.0"), encoding="utf-8")
    assert bench(run=begun.run).training.memory.keeping.quantize is kind


def test_nothing_is_done_on_a_processor_unless_it_is_asked_for(plain: Trained) -> None:
    assert plain.training.memory == MemoryPlan() and "Memory" not in said(plain)


def test_yes_and_no_still_mean_what_they_meant(bench: Callable[..., Trained]) -> None:
    assert bench("training.gradient_checkpointing=true").training.memory.checkpointing.value == "full"
    assert bench("training.gradient_checkpointing=false").training.memory.checkpointing.value == "off"


def test_a_peak_far_from_the_estimate_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = MemoryPlan(predicted=10_000_000_000)
    assert off_the_estimate(plan, 11_000_000_000) == off_the_estimate(MemoryPlan(), 11) == ""
    assert "took 12.0 GB at the most, more than the 10.0 GB" in off_the_estimate(plan, 12_000_000_000)


def test_blocks_are_spread_evenly() -> None:
    names = [str(i) for i in range(10)]
    assert swapped_of(names, 0) == [] and swapped_of(names, 20) == names
    assert swapped_of(names, 3) == ["0", "3", "6"] and swapped_of(names, 5) == ["0", "2", "4", "6", "8"]


def test_drawing_alone_fits_the_weights(plain: Trained) -> None:
    """Nothing is kept for a backward pass then: the weights and room for the VAE are all that counts."""

    def keeping(gigabytes: float) -> Quantization:
        run = plain.run.parent / f"drawing-{gigabytes}"
        run.mkdir()
        text = (plain.run / "recipe.toml").read_text(encoding="utf-8")
        (run / "recipe.toml").write_text(text.replace("[training]", f"[training]\nmemory_gb = {gigabytes}"), "utf-8")
        return MemoryPlanner(Job(run, Workspace(plain.run.parent))).plan_drawing().quantize

    assert keeping(2.01) is Quantization.NONE and keeping(2.0005) is Quantization.INT8
    with pytest.raises(OutOfMemoryError):
        keeping(1.0)
