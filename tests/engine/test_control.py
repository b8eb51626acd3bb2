"""Control pictures through a whole training: cached, trained and evaluated with, previewed from, refused with reasons."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import picture_models
import pytest
import torch
from PIL import Image, ImageDraw

from lorapod import recipe as recipes
from lorapod.engine.batches import Batches
from lorapod.engine.evaluate import loss_of
from lorapod.engine.families.control import controls_of
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.sample import sample
from lorapod.engine.train import Training
from lorapod.errors import LorapodError
from lorapod.events import PREFIX, from_line
from lorapod.workspace import Workspace

MODELS: dict[str, Callable[[Path], Path]] = {"kontext": picture_models.build_kontext}


@dataclass
class Bench:
    """A folder of recipes, runs and data."""

    root: Path
    models: Callable[[str], Path]

    def data(self, name: str = "pictures", count: int = 4, controls: int = 1) -> Path:
        """Pictures with captions, and `NAME-control` with what they were made from."""
        folder, beside = self.root / name, self.root / f"{name}-control"
        folder.mkdir()
        beside.mkdir()
        for i in range(count):
            picture = Image.new("RGB", (80, 48), (40 * i, 90, 200 - 20 * i))
            for n in range(controls):
                numbered = f"{i}_{n}" if controls > 1 else str(i)
                picture.rotate(90 * n, expand=True).save(beside / f"{numbered}.png")
            ImageDraw.Draw(picture).ellipse([10, 10, 30 + 3 * i, 40], fill=(250, 200 - 15 * i, 60 * i))
            picture.save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"make a zorb {i}\n", encoding="utf-8")
        return folder

    def job(self, model: str, name: str, *changes: str, data: Path | None = None, control: bool = True) -> Job:
        data = data or self.root / "pictures"
        run = self.root / "workspace" / "runs" / name
        run.mkdir(parents=True)
        text = (
            f"name = 'zorb'\n[base_model]\nname = '{self.models(model)}'\n[[datasets]]\npath = '{data}'\n"
            + (f"control = '{data}-control'\n" if control else "")
            + "resolutions = [64]\nvalidation_share = 0.25\ncaption_dropout = 0.5\n"
            "[training]\nsteps = 2\nbatch_size = 2\nprecision = 'fp32'\nseed = 1\n[adapter]\nrank = 4\n"
            "[optimizer]\nlearning_rate = 0.02\nwarmup_steps = 1\n[evaluation]\nevery = 0\nquantiles = 2\n"
            "[previews]\nwidth = 96\nheight = 64\nsteps = 2\nevery = 0\nguidance = 2.0\n"
            "[saving]\ncheckpoint_every = 1\nprecision = 'fp32'\nformats = ['comfyui']\n"
        )
        (run / "given.toml").write_text(text, encoding="utf-8")
        (run / "recipe.toml").write_text(recipes.dumps(recipes.load(run / "given.toml", list(changes))))
        return Job(run, Workspace(self.root / "workspace"))

    def train(self, job: Job, resume: bool = False) -> tuple[Training, list[dict[str, Any]]]:
        """The finished training, and its events."""
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            prepare(job, lambda: False)
            training = Training(job)
            assert training.run(resume, lambda: False)
        lines = [line.removeprefix(PREFIX) for line in told.getvalue().split("\n") if line.startswith(PREFIX)]
        return training, [event for event in map(from_line, lines) if event]


@pytest.fixture
def bench(tmp_path: Path, models: Callable[[str], Path]) -> Bench:
    return Bench(tmp_path, models)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")
    return lambda name: folder / name if (folder / name).exists() else MODELS[name](folder / name)


def refused(job: Job) -> LorapodError:
    with pytest.raises(LorapodError) as caught, contextlib.redirect_stdout(io.StringIO()):
        prepare(job, lambda: False)
    return caught.value


@pytest.mark.parametrize("model", list(MODELS))
def test_trains_evaluates_previews_and_resumes_with_control_pictures(bench: Bench, model: str) -> None:
    bench.data()
    job = bench.job(model, "whole")
    training, told = bench.train(job)
    assert [event["dataset"] for event in told if event["type"] == "eval"] == ["pictures"] * 2
    previews = [event for event in told if event["type"] == "preview"]
    assert [event["step"] for event in previews] == [0, 0, 2, 2]
    before, after = (
        [(job.folder / each["path"]).read_bytes() for each in half] for half in (previews[:2], previews[2:])
    )
    assert all(a != b for a, b in zip(before, after, strict=True))
    again = bench.job(model, "again")
    (again.folder / "checkpoints").mkdir()
    kept = "checkpoints/step-0000001.safetensors"
    (again.folder / kept).write_bytes((job.folder / kept).read_bytes())
    bench.train(again, resume=True)
    lora = "lora/zorb.safetensors"
    assert (again.folder / lora).read_bytes() == (job.folder / lora).read_bytes()
    (held_out,) = training.evaluation.sets["pictures"]
    assert all(len(controls_of(item)) == 1 for item in held_out.items)
    with_control = loss_of(job, training.denoiser, held_out)
    for item in held_out.items:
        item["control_0"] = torch.zeros_like(item["control_0"])
    assert (loss_of(job, training.denoiser, held_out) - with_control).abs().max() > 1e-4  # it is looked at


def test_another_control_picture_is_cached_anew_and_alone(bench: Bench) -> None:
    data = bench.data()
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(bench.job("kontext", "first"), lambda: False)
        before = set((bench.root / "workspace" / "cache").rglob("*.safetensors"))
        second = bench.job("kontext", "second")
        first, digest = Batches(second).read(0), Training(second).digest
        Image.new("RGB", (80, 48), "white").save(f"{data}-control/2.png")
        changed = bench.job("kontext", "third", "previews.prompts=['zorb']", f"previews.control=['{data}/0.png']")
        prepare(changed, lambda: False)
    new = set((bench.root / "workspace" / "cache").rglob("*.safetensors")) - before
    # The new control picture, what the preview starts from, and the prompt with its place among the texts.
    assert sorted(path.parent.parent.name for path in new) == ["latents", "latents", "text"]
    assert all(controls_of(item)[0].shape == (16, 1, 6, 10) for item in first.items)
    assert Training(bench.job("kontext", "fourth")).digest != digest  # a checkpoint from before does not fit


def test_a_control_picture_is_cut_as_its_item(bench: Bench) -> None:
    """Twice as large and of the same shape: the same places. Of another shape: cut to the bucket, not squeezed."""
    data = bench.data(count=2)
    rows, columns = np.mgrid[0:96, 0:160]
    ramp = np.stack([columns * 1.5, rows * 2, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    Image.fromarray(ramp).save(f"{data}-control/0.png")
    Image.fromarray(ramp).crop((0, 0, 96, 96)).save(f"{data}-control/1.png")
    Image.fromarray(ramp[::2, ::2]).save(data / "0.png")
    job = bench.job("kontext", "run", "datasets.0.validation_share=0")
    of = {item.item.path.stem: job.controls(item)[0].load() for item in job.data.train}
    assert all(pixels.shape == (48, 80, 3) for pixels in of.values())
    assert np.abs(of["0"].astype(int) - ramp[::2, ::2].astype(int)).max() <= 6
    square = of["1"].astype(int)
    assert square[24, 2, 0] <= 12 and square[24, -3, 0] >= 132  # all of its width
    assert 25 <= square[0, 40, 1] <= 55 and 137 <= square[-1, 40, 1] <= 167  # three fifths of its height


def test_previews_start_from_the_recipes_pictures_in_turn(bench: Bench) -> None:
    data = bench.data()
    pictures = [f"{data}/0.png", f"{data}/3.png"]
    job = bench.job("kontext", "run", "previews.prompts=['a','b','c']", f"previews.control={pictures}")
    found = {prompt: [control.path.name for control in given] for prompt, given in job.preview_controls.items()}
    assert found == {"a": ["0.png"], "b": ["3.png"], "c": ["0.png"]}
    of_data = bench.job("kontext", "other", "previews.prompts=['a','make a zorb 2']", "datasets.0.validation_share=0")
    found = {prompt: [control.path.name for control in given] for prompt, given in of_data.preview_controls.items()}
    assert found == {"a": ["0.png"], "make a zorb 2": ["2.png"]}


def test_a_grid_is_drawn_from_a_given_picture(bench: Bench) -> None:
    data = bench.data()
    job = bench.job("kontext", "run", "previews.at_start=false", "previews.at_end=false", "training.steps=1")
    bench.train(job)
    grids = []
    for number, control in enumerate([[], [f"{data}-control/0.png"], [f"{data}-control/3.png"]]):
        request = {"recipe": str(job.folder / "recipe.toml"), "lora": str(job.folder / "lora/zorb.safetensors"),
                   "prompts": ["zorb"], "seeds": [1], "strengths": [1.0], "controls": control,
                   "out": str(bench.root / f"grid-{number}.png")}  # fmt: skip
        file = bench.root / "request.json"
        file.write_text(json.dumps(request))
        with contextlib.redirect_stdout(io.StringIO()):
            sample(file, job.workspace)
        grids.append(np.asarray(Image.open(request["out"])))
    assert not np.array_equal(grids[0], grids[1]) and not np.array_equal(grids[1], grids[2])


def test_kontext_trains_without_control_pictures_too(bench: Bench) -> None:
    bench.data()
    job = bench.job("kontext", "run", "training.steps=1", "previews.at_start=false", control=False)
    training, _ = bench.train(job)
    assert not controls_of(training.batches.read(0).items[0])


def test_too_many_control_pictures_are_named(bench: Bench) -> None:
    bench.data(controls=2)
    error = refused(bench.job("kontext", "run"))
    assert "takes one control picture an item, and 4 of the items have more" in str(error)
    assert "3.png: 3_0.png, 3_1.png" in str(error)


def test_an_item_without_its_control_picture_is_named(bench: Bench) -> None:
    data = bench.data()
    Path(f"{data}-control/2.png").unlink()
    error = refused(bench.job("kontext", "run"))
    assert "2.png" in str(error) and "no control picture" in str(error)
    assert not (bench.root / "workspace/cache/latents").exists()  # before anything was computed


def test_a_base_model_that_does_not_edit_says_so(bench: Bench, tiny_z_image: Path) -> None:
    data = bench.data()
    bench.models = lambda name: tiny_z_image
    assert "takes no control pictures" in str(refused(bench.job("z", "run")))
    error = refused(bench.job("z", "other", f"previews.control=['{data}/0.png']", control=False))
    assert "takes no control pictures" in str(error)
