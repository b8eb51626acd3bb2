"""Which kernels compute attention, by recipe and by GPU, and what happens where they do not work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from lorapod import recipe as recipes
from lorapod.engine import attention
from lorapod.engine.attention import attention_of, chosen, unusable
from lorapod.engine.job import Job
from lorapod.errors import RequestError
from lorapod.events import PREFIX, from_line
from lorapod.recipe.choices import Attention
from lorapod.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def job(tmp_path: Path, tiny_z_image: Path):
    def made(wish: str) -> Job:
        (tmp_path / "given.toml").write_text(
            f"name = 'zorb'\n[base_model]\nname = '{tiny_z_image}'\n[[datasets]]\npath = '.'\n"
            f"[training]\nsteps = 1\nattention = '{wish}'\n",
            encoding="utf-8",
        )
        (tmp_path / "recipe.toml").write_text(recipes.dumps(recipes.load(tmp_path / "given.toml")), encoding="utf-8")
        return Job(tmp_path, Workspace(tmp_path))

    return made


class Kernels(TorchDispatchMode):
    """Names of the attention kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "scaled_dot_product" in str(func):
            self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def kernels() -> set[str]:
    given = torch.randn(1, 2, 64, 32)
    with Kernels() as found:
        torch.nn.functional.scaled_dot_product_attention(given, given, given)
    return found.seen


def said(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    lines = [line.removeprefix(PREFIX) for line in capsys.readouterr().out.split("\n") if line.startswith(PREFIX)]
    return [event for event in map(from_line, lines) if event]


@pytest.mark.parametrize(
    ("capability", "dtype", "first"),
    [
        ((8, 9), torch.bfloat16, "torch"), ((9, 0), torch.bfloat16, "cudnn"), ((12, 0), torch.bfloat16, "cudnn"),
        ((9, 0), torch.float32, "torch"),  # neither has kernels for it
    ],
)  # fmt: skip
def test_the_gpu_chooses(
    capability: tuple[int, int], dtype: torch.dtype, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert chosen(Attention.AUTO, CUDA, dtype).value == first
    assert (
        chosen(Attention.FLASH, CUDA, dtype) is Attention.FLASH and chosen(Attention.AUTO, CPU, dtype).value == "torch"
    )


def test_the_recipe_chooses_and_leaves_nothing_behind(job, capsys: pytest.CaptureFixture[str]) -> None:
    plain = kernels()
    assert any("flash" in name for name in plain)
    with attention_of(job("math")):
        assert not any("flash" in name for name in kernels())
    with attention_of(job("flash")), attention_of(job("auto")):
        assert kernels() == plain
    assert kernels() == plain and said(capsys) == []


def test_training_and_drawing_are_inside(job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of a training, its previews too; `math` is made of plain products."""
    from PIL import Image

    from lorapod.engine.prepare import prepare
    from lorapod.engine.train import Training

    seen = {}
    for wish in ("torch", "math"):
        made = job(wish)
        folder = made.folder
        Image.new("RGB", (64, 64), (9, 90, 200)).save(folder / "a.png")
        (folder / "a.txt").write_text("zorb", encoding="utf-8")
        small = ["datasets.0.resolutions=[64]", "datasets.0.validation_share=0", "previews.steps=1"]
        small += ["previews.width=64", "previews.height=64", "training.precision=fp32"]
        recipe = recipes.load(folder / "recipe.toml", small)
        (folder / "recipe.toml").write_text(recipes.dumps(recipe), encoding="utf-8")
        prepare(Job(folder, made.workspace), lambda: False)
        with Kernels() as found:
            assert Training(Job(folder, made.workspace)).run(False, lambda: False)
        seen[wish] = found.seen
    assert any("flash" in name for name in seen["torch"]) and not seen["math"]


def test_what_the_recipe_names_and_the_machine_lacks_is_refused(job) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="cannot be computed with `cudnn`"), attention_of(job("cudnn")):
        raise AssertionError


@pytest.mark.parametrize("fault", ["raises", "wrong", "nan"])
def test_what_was_chosen_and_does_not_work_is_left_alone_and_said(
    job, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computed = attention._computed

    def broken(given: list[torch.Tensor], backend: SDPBackend) -> list[torch.Tensor]:
        if backend is not SDPBackend.CUDNN_ATTENTION:
            return computed(given, backend)
        if fault == "raises":
            raise RuntimeError("cuDNN Frontend error: no valid execution plan\nand more")
        output, *gradients = computed(given, SDPBackend.MATH)
        return [output, gradients[0] * (1.2 if fault == "wrong" else float("nan")), *gradients[1:]]

    made = job("auto")
    monkeypatch.setattr(attention, "_computed", broken)
    assert unusable(Attention.CUDNN, CPU, torch.float32) and not unusable(Attention.MATH, CPU, torch.float32)
    monkeypatch.setattr(attention, "chosen", lambda *given: Attention.CUDNN)
    with attention_of(made):
        assert any("flash" in name for name in kernels())
    (warning,) = said(capsys)
    assert (
        warning["type"] == "warning" and "cudnn failed" in warning["message"] and "and more" not in warning["message"]
    )
