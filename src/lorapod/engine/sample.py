"""Samples prompts by strengths of a LoRA into one grid: `python -m lorapod.engine sample REQUEST.json`.

The request holds `recipe` (path of a recipe.toml, whose base model and preview settings count), `lora`, `prompts`,
`seeds`, `strengths`, and `out`.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lorapod.data.grid import draw_grid
from lorapod.engine import adapters
from lorapod.engine.clips import strip_of
from lorapod.engine.job import Job
from lorapod.engine.output import emit
from lorapod.engine.previews import Previews, decode_all
from lorapod.engine.train import load_denoiser
from lorapod.files import written_whole
from lorapod.workspace import Workspace


def sample(request_file: Path, workspace: Workspace) -> None:
    """Draws the grid: a row a prompt and seed, a column a strength; the noise of a row is the same in every column.

    Raises:
        AdapterError: The LoRA does not fit the base model.
        BaseModelError: The base model is not there.
    """
    request = json.loads(request_file.read_text(encoding="utf-8"))
    job = Job(Path(request["recipe"]).parent, workspace)
    lora, strengths = Path(request["lora"]), [float(s) for s in request["strengths"]]
    rows = [(prompt, int(seed)) for prompt in request["prompts"] for seed in request["seeds"]]
    emit("stage", name="sample", index=1, count=1, total=len(strengths))
    texts = list(dict.fromkeys([*request["prompts"], job.recipe.previews.negative_prompt]))
    missing = [text for text in texts if not job.text_cache.has(job.text_key(text))]
    if missing:
        encoder = job.family.load_text_encoder(job.base, job.device, job.dtype)
        for text in missing:
            job.text_cache.put(job.text_key(text), job.family.encode_text(encoder, [text])[0])
        del encoder
    denoiser = load_denoiser(job, job.experts[0])
    adapters.add_lora_file(denoiser, job.family, lora)
    previews = Previews(job, rows)
    columns: list[list[Image.Image]] = []
    latents = []
    for done, strength in enumerate(strengths, 1):
        with adapters.scaled(denoiser, strength):
            latents.append(previews.latents(denoiser, rows))
        emit("progress", stage="sample", done=done, total=len(strengths), unit="strengths")
    del denoiser
    vae = job.family.load_vae(job.base, job.device, job.dtype)
    columns = [[strip_of(frames) for frames in decode_all(job.family, vae, column)] for column in latents]
    cells = [[column[row] for column in columns] for row in range(len(rows))]
    labels = [prompt if len(request["seeds"]) == 1 else f"{prompt} (seed {seed})" for prompt, seed in rows]
    out = Path(request["out"])
    with written_whole(out) as temporary:
        draw_grid(cells, labels, [f"strength {s:g}" for s in strengths]).save(temporary, format="PNG")
    emit("preview", step=0, path=str(out), prompt="; ".join(request["prompts"]), seed=rows[0][1])
