"""Wan through the engine's process: pictures and clips together, first frames, experts."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wan_made
from PIL import Image
from safetensors.torch import load_file

from data.clips_made import make_clip
from lorapod import recipe as recipes
from lorapod.engine.families.wan import Wan
from lorapod.engine.job import Job
from lorapod.engine.prepare import prepare
from lorapod.engine.sample import sample
from lorapod.engine.train import Training
from lorapod.errors import LorapodError
from lorapod.events import PREFIX, from_line
from lorapod.models import find_base_model
from lorapod.workspace import Workspace

Event = dict[str, Any]


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny base model of a kind, each built once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = wan_made.build(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are several times slower on two threads that share two busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bench:
    """A dataset, recipes on it, and runs of the real engine process."""

    def __init__(self, folder: Path, wan: Callable[[str], Path]) -> None:
        self.folder, self.wan, self.workspace = folder, wan, folder / "workspace"

    def clips(self, name: str = "clips", count: int = 3, fps: int = 16) -> Path:
        at = self.folder / name
        at.mkdir()
        for i in range(count):
            make_clip(at / f"clip-{i}.mp4", 12 + i, fps=fps, size=(64, 64))
            (at / f"clip-{i}.txt").write_text(f"zorb jumps number {i}", encoding="utf-8")
        return at

    def pictures(self, name: str = "pictures", count: int = 3) -> Path:
        at = self.folder / name
        at.mkdir()
        for i in range(count):
            Image.new("RGB", (64, 64), (80 * i, 120, 200 - 60 * i)).save(at / f"picture-{i}.png")
            (at / f"picture-{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")
        return at

    def run(self, kind: str, name: str, *datasets: Path, changes: tuple[str, ...] = ()) -> Path:
        tables = "\n".join(
            f"[[datasets]]\npath = '{path}'\nresolutions = [64]\nframes = [5, 9]\nvalidation_share = 0\n"
            for path in datasets
        )
        file = self.folder / f"{name}.toml"
        file.write_text(
            f"name = 'zorb'\n[base_model]\nname = '{self.wan(kind)}'\n{tables}\n"
            "[training]\nsteps = 3\nbatch_size = 2\nprecision = 'fp32'\ngradient_checkpointing = false\nseed = 1\n"
            "[adapter]\nrank = 4\n[optimizer]\nlearning_rate = 0.05\nwarmup_steps = 1\n"
            "[previews]\nprompts = ['zorb jumps']\nwidth = 64\nheight = 64\nframes = 9\nsteps = 3\nevery = 0\n"
            "guidance = 2.0\n[saving]\ncheckpoint_every = 2\nprecision = 'fp32'\nformats = ['comfyui', 'diffusers']\n",
            encoding="utf-8",
        )
        run = self.workspace / name
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text(recipes.dumps(recipes.load(file, list(changes))), encoding="utf-8")
        return run

    def train(self, run: Path, *, resume: bool = False) -> list[Event]:
        """Trains in this process, which is quicker than the engine's own and runs the same code."""
        job, said = Job(run, Workspace(self.workspace)), io.StringIO()
        with contextlib.redirect_stdout(said):
            prepare(job, lambda: False)
            assert Training(job).run(resume, lambda: False)
        return events_in(said.getvalue())

    def refusal(self, run: Path) -> LorapodError:
        with pytest.raises(LorapodError) as caught, contextlib.redirect_stdout(io.StringIO()):
            prepare(Job(run, Workspace(self.workspace)), lambda: False)
        return caught.value

    def train_in_process(self, run: Path, *more: str) -> list[Event]:
        argv = [sys.executable, "-m", "lorapod.engine", "train", str(run), "--workspace", str(self.workspace), *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
        return events_in(ended.stdout)


def events_in(output: str) -> list[Event]:
    lines = [line.removeprefix(PREFIX) for line in output.split("\n") if line.startswith(PREFIX)]
    return [event for event in map(from_line, lines) if event]


@pytest.fixture
def bench(tmp_path: Path, wan: Callable[[str], Path]) -> Bench:
    return Bench(tmp_path, wan)


def of(events: list[Event], type: str) -> list[Event]:
    return [event for event in events if event["type"] == type]


def frames_in(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 16
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def pipeline_of(folder: Path) -> Any:
    import diffusers
    from diffusers.pipelines.wan import pipeline_wan_i2v

    if not hasattr(pipeline_wan_i2v, "ftfy"):  # which diffusers 0.42.1 uses here whether or not it is installed
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pictures_and_clips_train_together_and_resume_bit_for_bit(bench: Bench) -> None:
    data = bench.pictures(), bench.clips()
    whole = bench.run("t2v", "whole", *data)
    events = bench.train_in_process(whole)
    sheet = json.loads((whole / "data.json").read_text())
    buckets = [bucket["bucket"] for dataset in sheet["datasets"] for bucket in dataset["buckets"]]
    assert buckets == ["64x64", "64x64x9"]
    assert of(events, "step")[-1]["step"] == 3
    resumed = bench.run("t2v", "resumed", *data)
    (resumed / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints/step-0000002.safetensors", resumed / "checkpoints")
    bench.train_in_process(resumed, "--resume")
    for name in ("zorb.safetensors", "zorb-diffusers.safetensors"):
        assert (whole / "lora" / name).read_bytes() == (resumed / "lora" / name).read_bytes()
    assert not list((bench.workspace / "cache/latents").glob("*/*.part"))


def test_clip_previews_are_an_mp4_and_a_strip_and_show_what_the_lora_does_in_the_pipeline(bench: Bench) -> None:
    run = bench.run("t2v", "run", bench.pictures(), bench.clips())
    previews = of(bench.train(run), "preview")
    assert [p["step"] for p in previews] == [0, 3]
    pipe = pipeline_of(bench.wan("t2v"))

    def draw() -> np.ndarray:
        out = pipe("zorb jumps", negative_prompt="", width=64, height=64, num_frames=9, num_inference_steps=3,
                   guidance_scale=2.0, generator=torch.Generator().manual_seed(1), output_type="np").frames[0]  # fmt: skip
        return (out * 255).round().astype(int)

    strips = [np.asarray(Image.open(run / p["path"]), dtype=int) for p in previews]
    assert all(strip.shape == (64, 5 * 64 + 4 * 4, 3) for strip in strips)
    assert Image.open(run / previews[0]["path"]).text["prompt"] == "zorb jumps"
    clips = [frames_in(run / p["clip"]).astype(int) for p in previews]
    drawn = [draw()]
    before = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    pipe.load_lora_weights(run / "lora", weight_name="zorb.safetensors")
    drawn.append(draw())
    for ours, strip, theirs in zip(clips, strips, drawn, strict=True):
        assert ours.shape == theirs.shape == (9, 64, 64, 3)
        assert np.abs(ours - theirs).mean() < 12  # H.264 halves the resolution of colour
        for place, frame in enumerate((0, 2, 4, 6, 8)):
            assert np.abs(strip[:, place * 68 : place * 68 + 64] - theirs[frame]).max() <= 2
    assert np.abs(drawn[0] - drawn[1]).max() > 2
    # The loaded adapter is the file's: B A of each layer, no more and no less.
    tensors = load_file(run / "lora/zorb.safetensors")
    wanted = (
        tensors["diffusion_model.blocks.1.cross_attn.k.lora_B.weight"]
        @ tensors["diffusion_model.blocks.1.cross_attn.k.lora_A.weight"]
    )
    assert wanted.abs().max() > 1e-3
    pipe.fuse_lora()
    after = dict(pipe.transformer.named_parameters())["blocks.1.attn2.to_k.base_layer.weight"]
    torch.testing.assert_close(after - before["blocks.1.attn2.to_k.weight"], wanted, atol=1e-5, rtol=1e-4)
    pipe = pipeline_of(bench.wan("t2v"))
    pipe.load_lora_weights(run / "lora", weight_name="zorb-diffusers.safetensors")
    assert np.abs(draw() - drawn[1]).max() <= 1


@pytest.mark.parametrize(("frames", "words"), [(8, "5 or 9"), (2, "1 or 5")])
def test_previews_of_a_length_that_the_model_cannot_draw_are_refused_at_once(
    bench: Bench, frames: int, words: str
) -> None:
    run = bench.run("t2v", "run", bench.pictures(), changes=(f"previews.frames={frames}",))
    assert words in bench.refusal(run).remedy


def test_continuing_from_a_lora_in_comfyui_names_starts_where_it_ended(bench: Bench) -> None:
    data = bench.pictures(), bench.clips()
    first = bench.run("t2v", "first", *data)
    last = of(bench.train(first), "preview")[-1]
    lora = first / "lora/zorb.safetensors"
    other = bench.run("t2v", "other", *data, changes=(f"adapter.continue_from='{lora}'",))
    begun = of(bench.train(other), "preview")[0]
    assert (other / begun["path"]).exists()
    ours, theirs = (np.asarray(Image.open(r / p["path"]), dtype=int) for r, p in ((other, begun), (first, last)))
    assert np.abs(ours - theirs).max() <= 1


def test_both_experts_train_in_one_run_with_a_file_each(bench: Bench) -> None:
    data = bench.pictures(), bench.clips()
    run = bench.run("t2v-a14b", "run", *data, changes=("previews.frames=5", "previews.steps=6"))
    events = bench.train(run)
    steps = of(events, "step")
    assert steps[-1]["step"] == steps[-1]["total"] == 6
    loras = [event["path"] for event in of(events, "lora")]
    assert loras[::2] == ["lora/zorb-high.safetensors", "lora/zorb-low.safetensors"]
    files = [load_file(run / path) for path in loras[::2]]
    assert set(files[0]) == set(files[1])
    assert all((files[0][key] - files[1][key]).abs().max() > 0 for key in files[0])
    # Each preview is what the pipeline draws with both experts, at the end with both adapters.
    pipe = pipeline_of(bench.wan("t2v-a14b"))

    def draw() -> np.ndarray:
        out = pipe("zorb jumps", negative_prompt="", width=64, height=64, num_frames=5, num_inference_steps=6,
                   guidance_scale=2.0, generator=torch.Generator().manual_seed(1), output_type="np").frames[0]  # fmt: skip
        return (out * 255).round().astype(int)

    def shown(event: Event) -> np.ndarray:
        strip = np.asarray(Image.open(run / event["path"]), dtype=int)
        return np.stack([strip[:, place * 68 : place * 68 + 64] for place in range(5)])

    first, last = of(events, "preview")
    plain = draw()
    assert np.abs(shown(first) - plain).max() <= 2
    pipe.load_lora_weights(run / "lora", weight_name="zorb-high.safetensors", adapter_name="high")
    high_alone = draw()
    pipe.load_lora_weights(
        run / "lora", weight_name="zorb-low.safetensors", adapter_name="low", load_into_transformer_2=True
    )
    assert np.abs(shown(last) - draw()).max() <= 2
    assert np.abs(high_alone - plain).max() > 2 and np.abs(high_alone - draw()).max() > 2


@pytest.mark.parametrize("at", [2, 3, 4])
def test_two_experts_resume_bit_for_bit_within_either(bench: Bench, at: int) -> None:
    data = (bench.pictures(),)
    changes = ("saving.checkpoint_every=1", "saving.keep_checkpoints=9", "previews.frames=1")
    whole = bench.run("t2v-a14b", "whole", *data, changes=changes)
    bench.train(whole)
    resumed = bench.run("t2v-a14b", "resumed", *data, changes=changes)
    (resumed / "checkpoints").mkdir()
    shutil.copy(whole / f"checkpoints/step-{at:07d}.safetensors", resumed / "checkpoints")
    previews = of(bench.train(resumed, resume=True), "preview")
    written = ["zorb-low.safetensors"] + (["zorb-high.safetensors"] if at <= 3 else [])
    for name in written:
        assert (whole / "lora" / name).read_bytes() == (resumed / "lora" / name).read_bytes()
    assert (whole / previews[-1]["path"]).read_bytes() == (resumed / previews[-1]["path"]).read_bytes()


def test_one_expert_alone_learns_what_it_learns_in_a_run_of_both(bench: Bench) -> None:
    data = (bench.pictures(),)
    both = bench.run("t2v-a14b", "both", *data, changes=("previews.frames=1",))
    bench.train(both)
    high = bench.run("t2v-a14b", "high", *data, changes=("previews.frames=1", "base_model.expert='high'"))
    events = bench.train(high)
    assert of(events, "step")[-1]["total"] == 3
    assert [event["path"] for event in of(events, "lora")][::2] == ["lora/zorb-high.safetensors"]
    ours, theirs = (load_file(run / "lora/zorb-high.safetensors") for run in (high, both))
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_an_expert_that_a_base_model_lacks_is_refused(bench: Bench) -> None:
    run = bench.run("t2v", "run", bench.pictures(), changes=("base_model.expert='low'",))
    assert "low-noise" in bench.refusal(run).what


def test_an_expert_without_noise_levels_is_refused_before_either_trains(bench: Bench) -> None:
    run = bench.run("t2v-a14b", "run", bench.pictures(), changes=("training.lowest_noise=0.95",))
    assert "low-noise" in bench.refusal(run).what


@pytest.mark.parametrize("kind", ["i2v", "i2v-a14b"])
def test_clips_out_of_pictures_train_and_preview_from_given_first_frames(bench: Bench, kind: str) -> None:
    picture = bench.folder / "begin.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture)
    run = bench.run(kind, "run", bench.clips(), changes=(f"previews.first_frames=['{picture}']",))
    previews = of(bench.train(run), "preview")
    pipe = pipeline_of(bench.wan(kind))
    out = pipe(Image.open(picture), "zorb jumps", negative_prompt="", width=64, height=64, num_frames=9,
               num_inference_steps=3, guidance_scale=2.0, generator=torch.Generator().manual_seed(1),
               output_type="np").frames[0]  # fmt: skip
    strip = np.asarray(Image.open(run / previews[0]["path"]), dtype=int)
    for place, frame in enumerate((0, 2, 4, 6, 8)):
        assert np.abs(strip[:, place * 68 : place * 68 + 64] - (out[frame] * 255).round()).max() <= 2
    assert not (np.asarray(Image.open(run / previews[1]["path"])) == strip).all()
    keys = load_file(next((run / "lora").glob("zorb*.safetensors")))
    assert ("diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight" in keys) == (kind == "i2v")


def test_previews_begin_with_clips_of_the_dataset_where_no_picture_is_given(bench: Bench) -> None:
    run = bench.run("i2v", "run", bench.clips())
    events = bench.train(run)
    assert len(of(events, "preview")) == 2
    progress = of(events, "progress")[-1]
    assert (progress["done"], progress["total"]) == (4, 4)  # three clips and a first frame


def test_pictures_are_refused_by_a_model_that_makes_clips_out_of_them(bench: Bench) -> None:
    run = bench.run("i2v", "run", bench.clips(), bench.pictures())
    error = bench.refusal(run)
    assert "clips only" in error.what and "3 pictures" in error.what and "picture-0.png" in error.why


def test_a_first_frame_is_refused_by_a_model_that_takes_none(bench: Bench) -> None:
    picture = bench.pictures("begin") / "picture-0.png"
    run = bench.run("t2v", "run", bench.pictures(), changes=(f"previews.first_frames=['{picture}']",))
    assert "given picture" in bench.refusal(run).what


def test_the_5b_trains_from_text_and_from_first_frames(bench: Bench) -> None:
    changes = ("training.first_frame_share=0.5", "datasets.0.resolutions=[64]", "datasets.0.frames=[5]")
    run = bench.run("ti2v-5b", "run", bench.clips(fps=24), bench.pictures(), changes=changes)
    events = bench.train(run)
    assert of(events, "step")[-1]["step"] == 3
    plain = bench.run("ti2v-5b", "plain", bench.folder / "clips", bench.folder / "pictures", changes=changes[1:])
    losses = [of(bench.train(each), "step")[-1]["loss"] for each in (plain,)]
    assert losses != [of(events, "step")[-1]["loss"]]


def test_a_grid_of_strengths_draws_both_experts_with_their_files_and_clips_as_strips(bench: Bench) -> None:
    run = bench.run("t2v-a14b", "run", bench.clips(), changes=("previews.frames=5", "previews.steps=6"))
    previews = of(bench.train(run), "preview")
    out = bench.folder / "grid.png"
    request = {"recipe": str(run / "recipe.toml"), "lora": str(run / "lora/zorb-low.safetensors"),
               "prompts": ["zorb jumps"], "seeds": [1], "strengths": [0.0, 1.0], "out": str(out)}  # fmt: skip
    (bench.folder / "request.json").write_text(json.dumps(request))
    with contextlib.redirect_stdout(io.StringIO()):
        sample(bench.folder / "request.json", Workspace(bench.workspace))
    grid = np.asarray(Image.open(out), dtype=int)
    strips = [np.asarray(Image.open(run / event["path"]), dtype=int) for event in previews]
    for column, strip in enumerate(strips):
        left = 190 + column * (strip.shape[1] + 8)
        assert np.abs(grid[30 : 30 + strip.shape[0], left : left + strip.shape[1]] - strip).max() <= 2


def test_a_grid_of_clips_out_of_pictures_asks_for_a_picture(bench: Bench) -> None:
    run = bench.run("i2v", "run", bench.clips(), changes=("previews.at_start=false", "previews.at_end=false"))
    bench.train(run)
    request = {"recipe": str(run / "recipe.toml"), "lora": str(run / "lora/zorb.safetensors"),
               "prompts": ["zorb jumps"], "seeds": [1], "strengths": [1], "out": str(bench.folder / "grid.png")}  # fmt: skip
    file = bench.folder / "request.json"
    file.write_text(json.dumps(request))
    with contextlib.redirect_stdout(io.StringIO()):
        with pytest.raises(LorapodError) as caught:
            sample(file, Workspace(bench.workspace))
        assert "--first-frame" in caught.value.remedy
        file.write_text(json.dumps(request | {"first_frames": [str(bench.pictures() / "picture-1.png")]}))
        sample(file, Workspace(bench.workspace))
    assert (bench.folder / "grid.png").is_file()


@pytest.mark.parametrize(("name", "trained"), [
    ("wan2.2-t2v-a14b", ("-high", "-low")), ("wan2.2-t2v-a14b-high", ("-high",)), ("wan2.2-t2v-a14b-low", ("-low",)),
])  # fmt: skip
def test_an_experts_name_in_the_catalogue_finds_the_folder_that_holds_both(
    bench: Bench, name: str, trained: tuple[str, ...]
) -> None:
    workspace = Workspace(bench.workspace)
    workspace.models.mkdir(parents=True)
    shutil.copytree(bench.wan("t2v-a14b"), workspace.models / "wan2.2-t2v-a14b")
    run = bench.run("t2v-a14b", "run", bench.pictures(), changes=(f"base_model.name={name}",))
    job = Job(run, workspace)
    assert (job.base.name, job.base.folder) == (name, workspace.models / "wan2.2-t2v-a14b")
    assert tuple(expert.suffix for expert in job.experts) == trained


def test_an_expert_that_is_not_there_says_what_to_pull(bench: Bench) -> None:
    with pytest.raises(LorapodError) as caught:
        find_base_model("wan2.2-t2v-a14b-low", Workspace(bench.workspace))
    assert "lorapod models pull wan2.2-t2v-a14b" in caught.value.remedy


def test_both_experts_continue_from_the_files_of_both(bench: Bench) -> None:
    data = (bench.pictures(),)
    first = bench.run("t2v-a14b", "first", *data, changes=("previews.frames=1",))
    last = of(bench.train(first), "preview")[-1]
    changes = ("previews.frames=1", f"adapter.continue_from='{first / 'lora/zorb-high.safetensors'}'")
    other = bench.run("t2v-a14b", "other", *data, changes=changes)
    events = bench.train(other)
    assert of(events, "step")[-1]["step"] == 6
    ours = load_file(other / "lora/zorb-low.safetensors")
    theirs = load_file(first / "lora/zorb-low.safetensors")
    key = "diffusion_model.blocks.0.ffn.0.lora_B.weight"
    assert 0 < (ours[key] - theirs[key]).norm() < ours[key].norm()
    assert last["step"] == 6
    (first / "lora/zorb-low.safetensors").rename(first / "lora/elsewhere.safetensors")
    refused = bench.refusal(bench.run("t2v-a14b", "third", *data, changes=changes))  # before the first expert trains
    assert "zorb-low.safetensors" in refused.what


@pytest.mark.parametrize("kind", ["t2v", "i2v", "ti2v-5b"])
def test_bf16_with_gradient_checkpointing_trains_nearly_as_fp32_does(bench: Bench, kind: str) -> None:
    changes = ("previews.frames=5", "datasets.0.frames=[5]", "evaluation.quantiles=2")
    if kind == "ti2v-5b":
        changes += ("training.first_frame_share=0.5",)
    data = (bench.clips(fps=24),)
    exact = of(bench.train(bench.run(kind, "exact", *data, changes=changes)), "step")
    changes += ("training.precision='bf16'", "training.gradient_checkpointing=true")
    rough = of(bench.train(bench.run(kind, "rough", *data, changes=changes)), "step")
    for ours, theirs in zip(rough, exact, strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)


def test_never_more_than_one_expert_is_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    plain = Wan.load_denoiser

    def watched(*given: Any) -> torch.nn.Module:
        gc.collect()
        alive = [module for module in (each() for each in loaded) if module is not None]
        assert not any(p.numel() for module in alive for p in module.parameters() if not p.requires_grad)
        made = plain(*given)
        loaded.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Wan, "load_denoiser", watched)
    bench.train(bench.run("t2v-a14b", "run", bench.pictures(), changes=("previews.frames=1", "previews.every=2")))
    # Two for training, and for each of the previews at steps 0, 2, 4 and 6 the other and then the own one again.
    assert len(loaded) == 2 + 4 * 2


def test_both_experts_swap_blocks_of_quantised_weights_and_draw_and_learn_the_same(bench: Bench) -> None:
    data = bench.pictures()
    changes = (
        "previews.frames=5", "previews.every=2", "base_model.quantize='int8'", "training.gradient_checkpointing='full'",
    )  # fmt: skip
    plain = bench.run("t2v-a14b", "plain", data, changes=changes)
    swapped = bench.run("t2v-a14b", "swapped", data, changes=(*changes, "training.swap_blocks=2"))
    for run in (plain, swapped):
        bench.train(run)
    for file in (plain / "lora").iterdir():
        ours, theirs = load_file(swapped / "lora" / file.name), load_file(file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())
    drawn = sorted((plain / "previews").glob("*.png"))
    assert len(drawn) >= 3
    assert all((swapped / "previews" / each.name).read_bytes() == each.read_bytes() for each in drawn)
