"""Samples prompts by strengths of a LoRA into one grid: `python -m lorapod.engine sample REQUEST.json`.

The request holds `recipe` (path of a recipe.toml, whose base model and preview settings count), `lora`, `prompts`,
`seeds`, `strengths`, `first_frames` (for base models that make a clip out of a picture), `controls` (for those that edit;
both are taken in turn by the prompts), and `out`. A clip is drawn as a strip of its frames. With a base model of two
experts each LoRA file that is named after one goes onto that one.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from lorapod.data.grid import draw_grid
from lorapod.engine import adapter_files
from lorapod.engine.attention import attention_of
from lorapod.engine.blocks import Keeping
from lorapod.engine.clips import strip_of
from lorapod.engine.controls import Controls, given_controls
from lorapod.engine.experts import free_memory, renamed_for
from lorapod.engine.families import Expert, SamplesByExperts, TakesFirstFrame
from lorapod.engine.job import Job
from lorapod.engine.memory import MemoryPlanner
from lorapod.engine.output import emit
from lorapod.engine.prepare import encode, prepare_controls, prepare_first_frames
from lorapod.engine.previews import Previews, decode_all
from lorapod.engine.streaming import stream
from lorapod.engine.text_encoders import attach, changes_encoders
from lorapod.engine.train import load_denoiser
from lorapod.errors import AdapterError, RequestError
from lorapod.files import written_whole
from lorapod.workspace import Workspace


def sample(request_file: Path, workspace: Workspace) -> None:
    """Draws the grid: a row a prompt and seed, a column a strength; the noise of a row is the same in every column.

    Raises:
        AdapterError: The LoRA does not fit the base model.
        BaseModelError: The base model is not there.
        RequestError: The base model needs a first frame or a control picture and none is given, or takes none.
    """
    request = json.loads(request_file.read_text(encoding="utf-8"))
    job = Job(Path(request["recipe"]).parent, workspace)
    job.recipe.previews.first_frames = [Path(path) for path in request.get("first_frames", [])]
    job.recipe.previews.control = [Path(path) for path in request.get("controls", [])]
    controls = given_controls(job, request["prompts"])
    lora, strengths = Path(request["lora"]), [float(s) for s in request["strengths"]]
    rows = [(prompt, int(seed)) for prompt in request["prompts"] for seed in request["seeds"]]
    emit("stage", name="sample", index=1, count=1, total=len(strengths))
    files = lora_files(lora, job.family.experts)
    _prepare(job, request["prompts"], controls)
    previews = Previews(job, rows, controls)
    with attention_of(job):
        latents = _by_strength(job, previews, files, strengths)
    vae = job.family.load_vae(job.base, job.device, job.dtype)
    columns = [[strip_of(frames) for frames in decode_all(job.family, vae, column)] for column in latents]
    cells = [[column[row] for column in columns] for row in range(len(rows))]
    labels = [prompt if len(request["seeds"]) == 1 else f"{prompt} (seed {seed})" for prompt, seed in rows]
    out = Path(request["out"])
    with written_whole(out) as temporary:
        draw_grid(cells, labels, [f"strength {s:g}" for s in strengths]).save(temporary, format="PNG")
    emit("preview", step=0, path=str(out), prompt="; ".join(request["prompts"]), seed=rows[0][1])


def lora_files(lora: Path, experts: tuple[Expert, ...]) -> dict[Expert, Path]:
    """The LoRA file of each expert: of several, the one that the name says, and the other's where it lies beside it.

    Raises:
        AdapterError: It is not clear which expert the file is of.
    """
    if len(experts) == 1:
        return {experts[0]: lora}
    named = {each: file for each in experts if (file := renamed_for(each, lora))}
    if not named:
        raise AdapterError(
            f"It is not clear which expert {lora.name} is of",
            "The base model has two, and their LoRA files differ in their names alone.",
            "Put `-high` or `-low` at the end of the file's name.",
        )
    return {each: file for each, file in named.items() if file.is_file()}


def _prepare(job: Job, prompts: list[str], controls: dict[str, Controls]) -> None:
    """Caches the texts, first frames and control pictures that are not cached yet."""
    negative = job.recipe.previews.negative_prompt
    texts = [(text, controls.get(prompt, ())) for prompt in prompts for text in (prompt, negative)]
    missing = {key: text for text in texts if not job.text_cache.has(key := job.text_key(*text))}
    if missing:
        encoder = job.family.load_text_encoder(job.base, job.device, job.dtype)
        for key, text in missing.items():
            job.text_cache.put(key, encode(job, encoder, *text))
        del encoder
        free_memory()
    needed = isinstance(job.family, TakesFirstFrame) and job.family.first_frame == "needed"
    if needed and not job.recipe.previews.first_frames:
        raise RequestError(
            "This base model makes clips out of a picture, and none is given",
            "",
            "Name one to begin with: lorapod sample … --first-frame PICTURE",
        )
    prepare_first_frames(job)
    prepare_controls(job, [control for each in controls.values() for control in each])
    free_memory()


def _denoiser(job: Job, expert: Expert, keeping: Keeping) -> nn.Module:
    denoiser = load_denoiser(job, expert, keeping)
    stream(denoiser, keeping, job.device)
    return denoiser


def _by_strength(job: Job, previews: Previews, files: dict[Expert, Path], strengths: list[float]) -> list[list[Tensor]]:
    """Latents of every row at each strength; of several experts one is in memory at a time."""
    family, keeping = job.family, MemoryPlanner(job).plan_drawing()
    if not isinstance(family, SamplesByExperts) or len(job.family.experts) == 1:
        denoiser = _denoiser(job, job.family.experts[0], keeping)
        lora = files[job.family.experts[0]]
        if changes_encoders(job, lora):
            attach(denoiser, job)
        adapter_files.add_lora_file(denoiser, job.family, lora, job.device)
        latents = []
        for done, strength in enumerate(strengths, 1):
            with adapter_files.scaled(denoiser, strength):
                latents.append(previews.latents(denoiser, previews.pairs))
            emit("progress", stage="sample", done=done, total=len(strengths), unit="strengths")
        return latents
    samplings = [
        [family.begin(job.base, previews.request(*row), job.device) for row in previews.pairs] for _ in strengths
    ]
    for number, expert in enumerate(job.family.experts, 1):
        denoiser = _denoiser(job, expert, keeping)
        if expert in files:
            adapter_files.add_lora_file(denoiser, job.family, files[expert], job.device)
        for strength, column in zip(strengths, samplings, strict=True):
            with adapter_files.scaled(denoiser, strength), previews.drawing(denoiser):
                for sampling in column:
                    family.advance(denoiser, sampling, expert)
        del denoiser
        free_memory()
        emit("progress", stage="sample", done=number, total=len(job.family.experts), unit="experts")
    return [[family.finish(sampling) for sampling in column] for column in samplings]
