"""Other trainers in the same cells: their own programs from a checkout, started with what lorapod renders for them.

musubi-tuner is given a random base model in the file layout that it reads, and latents and captions in the form of its own
caches, so that its caching stages and their encoders are not needed; then its training runs until it is timed, and is ended.
diffusion-pipe's caches only its own encoders make: it is given a base model that was pulled for it, and pictures or clips of
noise, and caches them first. Seconds a step are the wall clock between two progress lines; memory is what the whole device
has in use. Not covered: SDXL and FLUX.1-dev with musubi-tuner, which does not train them.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gpu_parts.gpu_state import GpuState
from gpu_parts.measure import Cell, device_name, text_tokens
from gpu_parts.models import Shape, latents_shape, random_denoiser, random_text, write_base
from lorapod import recipe as recipes
from lorapod.engine.clips import write_clip
from lorapod.engine.families import family_of
from lorapod.errors import LorapodError
from lorapod.models import BaseModel, Entry, catalogue
from lorapod.recipe import Recipe
from lorapod.trainers.diffusion_pipe.parse import Reader as DiffusionPipeReader
from lorapod.trainers.diffusion_pipe.render import render as render_diffusion_pipe
from lorapod.trainers.locations import present_files
from lorapod.trainers.musubi.parse import Reader as MusubiReader
from lorapod.trainers.musubi.render import render as render_musubi
from lorapod.trainers.rendering import RenderContext, RenderedStage, Rendering, View
from lorapod.workspace import Workspace

ITEMS = 4
FPS = 16.0
Reader = MusubiReader | DiffusionPipeReader

ARCHITECTURES = {"wan": ("wan", "t5"), "z_image": ("zi", "llm_embed"), "qwen_image": ("qi", "vl_embed")}
"""By family: what musubi-tuner calls it in names of cache files, and its caption's tensor in them."""


@dataclass(frozen=True)
class Peer:
    """Another trainer.

    Attributes:
        trainer: `musubi` or `diffusion-pipe`.
        home: Its checkout.
        python: What has its packages.
        files: Of musubi-tuner a folder that keeps random weights for it; of diffusion-pipe the workspace with base models.
    """

    trainer: str
    home: Path
    python: Path
    files: Path


def measure_peer(cell: Cell, peer: Peer) -> dict[str, Any]:
    """The row of a cell, as `measure.measure` gives it."""
    row: dict[str, Any] = {"trainer": peer.trainer, **asdict(cell)}
    row = {key: value for key, value in row.items() if key not in ("cache", "peak")}
    row["text_tokens"] = text_tokens(cell)
    try:
        with tempfile.TemporaryDirectory(prefix="lorapod-peer-") as folder:
            timed = _musubi if peer.trainer == "musubi" else _diffusion_pipe
            return row | timed(cell, peer, Path(folder))
    except ValueError as error:
        return row | {"state": "not possible", "why": str(error)}
    except LorapodError as error:
        return row | {"state": "not possible", "why": f"{error.what}. {error.to_hint()}"}


def _musubi(cell: Cell, peer: Peer, folder: Path) -> dict[str, Any]:
    entry = catalogue().get(cell.model)
    if entry is None or entry.family not in ARCHITECTURES:
        raise ValueError(f"musubi-tuner does not train {cell.model}")
    base = write_base(cell.model, cell.tiny, folder / "base")
    weights = peer.files / f"{cell.model}-{cell.precision}{'-tiny' if cell.tiny else ''}.safetensors"
    if not weights.is_file():
        _write_weights(base, weights, cell.precision)
    recipe = _recipe(cell, folder, peer.trainer)
    parts = {f"{spec.layout}/{spec.part}": folder / "not-needed.safetensors" for spec in entry.files_for("musubi")}
    parts |= {name: weights for name in parts if "transformer" in name}
    kind = "clip" if Shape.of(cell.shape).frames > 1 else "picture"
    (folder / "data").mkdir()
    for number in range(max(ITEMS, cell.batch)):  # what the caches are of; nothing looks into them
        (folder / "data" / f"item{number}.{'mp4' if kind == 'clip' else 'png'}").touch()
        (folder / "data" / f"item{number}.txt").write_text("a caption", encoding="utf-8")
    context = RenderContext(
        folder / "rendered", peer.home, peer.python, parts, [folder / "data"], folder / "run" / "output",
        views=[View(0, kind, folder / "data", 16)],
    )  # fmt: skip
    rendering = render_musubi(recipe, entry, context)
    _write_files(rendering, context.folder)
    _write_caches(base, entry, cell, tomllib.loads(rendering.files[0].text)["datasets"][0]["cache_directory"])
    stage = rendering.stages[-1]
    return _watched(cell, stage, MusubiReader(stage.name))


def _diffusion_pipe(cell: Cell, peer: Peer, folder: Path) -> dict[str, Any]:
    entry = catalogue().get(cell.model)
    if entry is None or "diffusion-pipe" not in entry.trainers:
        raise ValueError(f"diffusion-pipe does not train {cell.model}")
    recipe, shape = _recipe(cell, folder, peer.trainer), Shape.of(cell.shape)
    fps = entry.geometry.fps if entry.geometry else None
    kind, items = _write_noise(cell, folder / "data", fps or FPS), max(ITEMS, cell.batch)
    context = RenderContext(
        folder / "rendered", peer.home, peer.python, present_files(recipe, entry, Workspace(peer.files)),
        [folder / "data"], folder / "run" / "output", views=[View(0, kind, folder / "data", fps or FPS)],
        steps_per_epoch=items // cell.batch,
    )  # fmt: skip
    rendering = render_diffusion_pipe(recipe, entry, context)
    _write_files(rendering, context.folder)
    caching, training = rendering.stages[0], rendering.stages[-1]
    done = subprocess.run(
        caching.argv, cwd=caching.cwd, env={**os.environ, **caching.env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-6:]
        return {"state": "failed", "why": f"it did not cache items of {shape}: " + " | ".join(tail)[-1500:]}
    return _watched(cell, training, DiffusionPipeReader(training.name))


def _write_files(rendering: Rendering, folder: Path) -> None:
    for file in rendering.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")


def _write_noise(cell: Cell, folder: Path, fps: float) -> Literal["picture", "clip"]:
    """Items of noise, of the cell's shape and with captions of its length; says what they are."""
    shape, generator = Shape.of(cell.shape), np.random.default_rng(3)
    folder.mkdir()
    for number in range(max(ITEMS, cell.batch)):
        frames = generator.integers(0, 256, (shape.frames, shape.height, shape.width, 3), dtype=np.uint8)
        if shape.frames > 1:
            write_clip(folder / f"item{number}.mp4", frames, fps, {})
        else:
            Image.fromarray(frames[0]).save(folder / f"item{number}.png")
        (folder / f"item{number}.txt").write_text("word " * text_tokens(cell), encoding="utf-8")
    return "clip" if shape.frames > 1 else "picture"


def _recipe(cell: Cell, folder: Path, trainer: str) -> Recipe:
    shape = Shape.of(cell.shape)
    dataset = f'path = "data"\nresolutions = [{round((shape.width * shape.height) ** 0.5)}]\n'
    if shape.frames > 1:
        dataset += f"frames = [{shape.frames}]\n"
    text = f'name = "peer"\ntrainer = "{trainer}"\n[base_model]\nname = "{cell.model}"\n[[datasets]]\n{dataset}'
    (folder / "recipe.toml").write_text(text + "[previews]\nprompts = []\n", encoding="utf-8")
    overrides = [
        f"adapter.rank={cell.rank}", f"training.batch_size={cell.batch}", "training.steps=100000",
        f"training.precision={cell.precision}", f"training.compile={str(cell.compiled).lower()}",
        f"training.gradient_checkpointing={str(cell.checkpointing).lower()}", "saving.checkpoint_every=0",
        "saving.lora_every=0",
    ]  # fmt: skip
    return recipes.load(folder / "recipe.toml", overrides, check_paths=False)


def _write_weights(base: BaseModel, path: Path, precision: str) -> None:
    """The denoiser as its publishers' own file has it: tensors that are runs of rows of one tensor there are joined."""
    family = family_of(base)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    denoiser = random_denoiser(base, _device(), dtype)
    naming = family.denoiser_naming(denoiser.config)
    runs: dict[str, dict[int, Tensor]] = {}
    whole: dict[str, int] = {}
    for name, value in denoiser.state_dict().items():
        rows = naming.of(name)
        stored = value.t() if rows.transposed else value
        for run, part in zip(rows.runs, stored.cpu().chunk(len(rows.runs)), strict=True):
            runs.setdefault(rows.name, {})[run] = part
        whole[rows.name] = rows.parts
    for name, parts in whole.items():
        if len(runs[name]) != parts:
            raise ValueError(f"{base.name} has {len(runs[name])} of the {parts} parts of {name}")
    tensors = {name: torch.cat([value for _, value in sorted(parts.items())]) for name, parts in runs.items()}
    written = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, written)
    written.replace(path)
    del denoiser
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the peer wants the room


def _write_caches(base: BaseModel, entry: Entry, cell: Cell, folder: str) -> None:
    """Random latents and captions as musubi-tuner's own caching stages write them."""
    where, shape = Path(folder), Shape.of(cell.shape)
    where.mkdir(parents=True)
    architecture, caption = ARCHITECTURES[entry.family]
    generator = torch.Generator().manual_seed(2)
    _, frames, height, width = latents = latents_shape(base, family_of(base), shape)
    for number in range(max(ITEMS, cell.batch)):
        window = f"_00000-{shape.frames:03d}" if shape.frames > 1 else ""
        stem = f"item{number}{window}_{shape.width:04d}x{shape.height:04d}_{architecture}.safetensors"
        value = torch.randn(latents, generator=generator).to(torch.bfloat16)
        value = value[:, 0] if entry.family == "z_image" else value
        about = {"architecture": entry.family, "width": str(shape.width), "height": str(shape.height)}
        about |= {"format_version": "1.0.1"}
        save_file({f"latents_{frames}x{height}x{width}_bfloat16": value.contiguous()}, where / stem, about)
        text = random_text(base, text_tokens(cell), torch.bfloat16, generator)["tokens"]
        about = {"architecture": entry.family, "caption1": "a caption", "format_version": "1.0.1"}
        save_file({f"varlen_{caption}_bfloat16": text}, where / f"item{number}_{architecture}_te.safetensors", about)


def _watched(cell: Cell, stage: RenderedStage, reader: Reader) -> dict[str, Any]:
    """Runs the training until its windows are timed."""
    device, before = _device(), _device_gb()
    count = max(1, cell.steps // cell.windows)
    began = time.monotonic()
    process = subprocess.Popen(
        stage.argv, cwd=stage.cwd, env={**os.environ, **stage.env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    first: float | None = None
    marks: list[tuple[int, float]] = []
    losses: list[float] = []
    used = 0.0
    state = GpuState(device)
    tail: list[str] = []
    try:
        for now, line, step, loss in _steps(process, reader):
            tail = [*tail[-20:], line]
            if step is None:
                continue
            first = first or now
            losses.append(loss)
            used = max(used, _device_gb() - before)
            if not marks:
                if step >= cell.warmup_steps and now - first >= cell.warmup_seconds:
                    marks.append((step, now))
                    state = GpuState(device)
            elif step >= marks[-1][0] + count:
                marks.append((step, now))
                if len(marks) > cell.windows:
                    break
    finally:
        _end(process)
    if len(marks) <= cell.windows:
        return {"state": "failed", "why": "it ended before it was timed: " + " | ".join(tail[-6:])[-1500:]}
    spans = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    timed, seconds = marks[-1][0] - marks[0][0], statistics.median(spans)
    assert first is not None
    return {
        "state": "measured", "device": device_name(device), "seconds_a_step": seconds, "fastest_window": min(spans),
        "slowest_window": max(spans), "steps_timed": timed, "warmup_steps_done": marks[0][0],
        "samples_a_second": cell.batch / seconds, "seconds_to_first_step": first - began,
        "first_loss": losses[0], "last_loss": losses[-1], "peak_gb": round(used, 2),
        **state.since(cell.batch * timed),
    }  # fmt: skip


def _steps(process: subprocess.Popen[bytes], reader: Reader) -> Iterator[tuple[float, str, int | None, float]]:
    """Each line of its output as it comes: when, what, and the step and loss that it tells."""
    assert process.stdout is not None
    while data := os.read(process.stdout.fileno(), 1 << 16):
        now = time.monotonic()
        for line in re.split(
            r"[\r\n]+", data.decode("utf-8", "replace")
        ):  # a bar's state has its end before it, not after
            events = [event for event in reader.read(line) if event["type"] == "step"]
            if events:  # one that was held back tells nothing of when it was
                yield now, line, events[-1]["step"], events[-1]["loss"]
            elif line.strip():
                yield now, line, None, 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_gb() -> float:
    """What all processes have in use on the device, in 1e9 bytes."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9
