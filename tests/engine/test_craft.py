"""Regularisation datasets, kinds of loss and weights of noise levels, against formulae written anew."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lorapod import recipe as recipes
from lorapod.engine.adapters import adapter_tensors, switched_off
from lorapod.engine.batches import Batch
from lorapod.engine.evaluate import answer_to, loss_of
from lorapod.engine.job import Job
from lorapod.engine.losses import Answer, loss_of_kind, weight_of_level
from lorapod.engine.prepare import prepare
from lorapod.engine.step import preserved_target, weighted_loss
from lorapod.engine.train import Training
from lorapod.errors import LorapodError
from lorapod.events import PREFIX, from_line
from lorapod.recipe.choices import LossWeighting
from lorapod.recipe.schema import TrainingSection
from lorapod.workspace import Workspace


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LEVELS = torch.tensor([0.1, 0.5, 0.9])


@pytest.mark.parametrize("kind", ["huber", "smooth-l1"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_robust_losses_are_their_formulae_place_by_place(kind: str, schedule: str) -> None:
    """As sd-scripts computes them, with flow matching's ratio of noise to signal."""
    training = TrainingSection(loss=kind, huber_c=0.2, huber_schedule=schedule, steps=1)  # type: ignore[arg-type]
    predicted, target, sigma = drawn(3, 2, 1, 4, 4), 2 * drawn(3, 2, 1, 4, 5)[..., :4], LEVELS / (1 - LEVELS)
    ours = loss_of_kind(Answer(predicted, target), training, sigma, LEVELS)
    for i, s in enumerate(LEVELS.tolist()):
        c = {
            "constant": 0.2,
            "exponential": math.exp(-(-math.log(0.2) / 1000) * (1000 * s)),
            "snr": (1 - 0.2) / (1 + s / (1 - s)) ** 2 + 0.2,
        }[schedule]
        errors = [
            2 * (math.sqrt((p - t) ** 2 + c * c) - c) * (c if kind == "huber" else 1)
            for p, t in zip(predicted[i].flatten().tolist(), target[i].flatten().tolist(), strict=True)
        ]
        assert ours[i].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_masks_weigh_robust_losses_too() -> None:
    training = TrainingSection(loss="huber", steps=1)  # type: ignore[arg-type]
    weight = torch.zeros(3, 1, 1, 4, 4)
    weight[..., 1, 2] = 1
    predicted, target = drawn(3, 2, 1, 4, 4), torch.zeros(3, 2, 1, 4, 4)
    whole = loss_of_kind(Answer(predicted, target, weight), training, LEVELS, LEVELS)
    spot = loss_of_kind(Answer(predicted[..., 1:2, 2:3], target[..., 1:2, 2:3]), training, LEVELS, LEVELS)
    torch.testing.assert_close(whole, spot)


def test_weights_of_levels_are_their_formulae() -> None:
    sigma = LEVELS / (1 - LEVELS)
    found = {kind: weight_of_level(kind, sigma, LEVELS).tolist() for kind in LossWeighting}
    assert found[LossWeighting.NONE] == [1, 1, 1]
    assert found[LossWeighting.SIGMA_SQRT] == pytest.approx([100, 4, 1 / 0.81])
    assert found[LossWeighting.COSMAP] == pytest.approx(
        [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in LEVELS.tolist()]
    )
    assert found[LossWeighting.DEBIASED] == pytest.approx(sigma.tolist())  # 1 / sqrt(snr), snr = 1 / sigma^2


@pytest.fixture(scope="module")
def bench(tiny_z_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Training, list[dict]]]:
    """Trains the tiny Z-Image on a subject beside known pictures; what is cached serves all runs."""
    folder = tmp_path_factory.mktemp("craft")
    for name, shade in (("subject", 0), ("known", 120)):
        (folder / name).mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, shade, 200 - 40 * i)).save(folder / name / f"{i}.png")
            (folder / name / f"{i}.txt").write_text(f"{name} number {i}", encoding="utf-8")
    numbers = iter(range(1000))

    def train(known: str | None, *overrides: str) -> tuple[Training, list[dict]]:
        table = "[[datasets]]\npath = '{}'\nresolutions = [64]\nvalidation_share = 0.5\ncaption_dropout = 0.0\n"
        tables = table.format("subject") + "trigger_word = 'zorb'\n"
        if known:
            tables += table.format("known") + f"regularisation = '{known}'\n"
        number = next(numbers)
        file, at = folder / f"{number}.toml", folder / f"run-{number}"
        file.write_text(
            f"name = 'zorb'\n[base_model]\nname = '{tiny_z_image}'\n{tables}[training]\nsteps = 40\nprecision = 'fp32'\n"
            "[optimizer]\nlearning_rate = 0.02\n[adapter]\nrank = 4\n[previews]\nprompts = ['zorb']\nwidth = 64\n"
            "height = 64\nsteps = 1\nat_start = false\nat_end = false\n",
            encoding="utf-8",
        )
        at.mkdir()
        (at / "recipe.toml").write_text(recipes.dumps(recipes.load(file, list(overrides))), encoding="utf-8")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            job = Job(at, Workspace(folder))
            prepare(job, lambda: False)
            training = Training(job)
            assert training.run(False, lambda: False)
        lines = [line.removeprefix(PREFIX) for line in said.getvalue().split("\n") if line.startswith(PREFIX)]
        return training, [event for event in map(from_line, lines) if event]

    return train


def known_batch(training: Training) -> Batch:
    item = next(item for item in training.job.data.train if item.regularises)
    place = training.job.data.train.index(item)
    number = next(n for n in range(100) if place in training.batches._of_epoch(0)[n])
    return training.batches.read(number)


def drift(training: Training, batch: Batch) -> float:
    """How far the prediction on known pictures moved from the base model's."""
    with torch.no_grad():
        here = answer_to(training.job, training.denoiser.eval(), batch).predicted
        with switched_off(training.denoiser):
            base = answer_to(training.job, training.denoiser, batch).predicted
    return float((here - base).norm() / base.norm())


def test_preserved_pictures_ask_nothing_of_an_untouched_adapter(
    bench: Callable[..., tuple[Training, list[dict]]],
) -> None:
    training, _ = bench("preserve", "training.steps=1", "optimizer.learning_rate=1e-9")
    batch = known_batch(training)
    assert batch.preserved == (0,)
    with torch.no_grad():
        for name, tensor in adapter_tensors(training.denoiser).items():
            if name.endswith(".B"):
                tensor.zero_()
        assert weighted_loss(training.job, training.denoiser, batch).item() < 1e-10
        assert (
            loss_of(training.job, training.denoiser, batch).item() > 0.1
        )  # evaluation compares with the picture itself
    training.denoiser.train()
    target = preserved_target(training.job, training.denoiser, batch, torch.zeros_like(batch.latents))
    assert not target.requires_grad and all(p.requires_grad for p in training.parameters)


def test_known_pictures_keep_what_the_base_model_says_of_them(
    bench: Callable[..., tuple[Training, list[dict]]],
) -> None:
    preserved, _ = bench("preserve")
    learnt, _ = bench("learn", "training.regularisation_share=0.0")  # there, but never trained on
    batch = known_batch(preserved)
    assert drift(preserved, batch) < 0.7 * drift(learnt, batch)


def test_learnt_pictures_are_trained_as_they_are_and_have_a_line_of_their_own(
    bench: Callable[..., tuple[Training, list[dict]]],
) -> None:
    training, events = bench("learn")
    batch = known_batch(training)
    assert batch.preserved == ()
    with torch.no_grad():
        plain = loss_of(training.job, training.denoiser, batch).mean()
        assert weighted_loss(training.job, training.denoiser, batch).item() == pytest.approx(plain.item())
    told = {event["dataset"]: event.get("regularisation", False) for event in events if event["type"] == "eval"}
    assert told == {"subject": False, "known": True}


def test_known_pictures_never_get_the_trigger_word(bench: Callable[..., tuple[Training, list[dict]]]) -> None:
    training, _ = bench("learn", "training.steps=1")
    captions = {item.regularises: item.captions[0] for item in training.job.data.train}
    assert captions[False].startswith("zorb, subject") and captions[True].startswith("known")
    with pytest.raises(LorapodError, match="trigger_word"):
        bench("learn", "datasets.1.trigger_word=zorb")


def test_weights_of_datasets_and_levels_scale_what_is_learnt(bench: Callable[..., tuple[Training, list[dict]]]) -> None:
    plain, _ = bench("learn", "training.steps=1", "optimizer.learning_rate=1e-9")
    heavy, _ = bench(
        "learn", "training.steps=1", "optimizer.learning_rate=1e-9", "datasets.1.loss_weight=3.0",
        "training.loss_weighting=cosmap",
    )  # fmt: skip
    batch, same = known_batch(heavy), known_batch(plain)
    assert torch.equal(batch.noise, same.noise) and batch.weights == (3.0,)
    s = batch.noise_level.item()
    factor = 3 * 2 / (math.pi * (1 - 2 * s + 2 * s * s))
    with torch.no_grad():
        assert weighted_loss(heavy.job, heavy.denoiser, batch).item() == pytest.approx(
            factor * weighted_loss(plain.job, plain.denoiser, same).item(), rel=1e-4
        )


def test_evaluation_is_the_plain_mean_square_whatever_is_trained_with(
    bench: Callable[..., tuple[Training, list[dict]]],
) -> None:
    def first(*changes: str) -> list[float]:
        _, events = bench("learn", "training.steps=1", *changes)
        return [event["loss"] for event in events if event["type"] == "eval" and event["step"] == 0]

    robust = first("training.loss=smooth-l1", "training.loss_weighting=sigma-sqrt", "datasets.0.loss_weight=5.0")
    assert robust == first()


@pytest.mark.parametrize("kind", ["huber", "smooth-l1"])
def test_it_learns_with_a_robust_loss(bench: Callable[..., tuple[Training, list[dict]]], kind: str) -> None:
    _, events = bench(None, f"training.loss={kind}")
    losses = [event["loss"] for event in events if event["type"] == "eval"]
    assert losses[-1] < losses[0]


def test_a_weighting_of_another_kind_of_model_is_refused(bench: Callable[..., tuple[Training, list[dict]]]) -> None:
    with pytest.raises(LorapodError, match="debiased"):
        bench(None, "training.loss_weighting=debiased")
