"""The cache stage: text first, then latents, one model in memory at a time.

Entries are computed one by one, so that an entry never depends on what was computed beside it: a cache that was killed
half-way and finished later holds the same bytes as one that was made in one go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lorapod.data import DataPlan, Severity, load_items, shown, summary
from lorapod.engine.controls import Control, Controls
from lorapod.engine.experts import file_for, free_memory
from lorapod.engine.families import Conditions, TellsGuidance, TextSeesControl
from lorapod.engine.first_frames import FirstFrame
from lorapod.engine.job import Job, as_pixels
from lorapod.engine.masks import SHARE, read_mask
from lorapod.engine.output import emit, emit_from_here
from lorapod.engine.ranks import Ranks
from lorapod.engine.text_encoders import changes_encoders
from lorapod.errors import RequestError, TrainingError
from lorapod.events import EventType
from lorapod.files import write_text_whole

_SECONDS_BETWEEN_EVENTS = 0.5


def prepare(job: Job, stopped: Callable[[], bool], ranks: Ranks | None = None) -> bool:
    """Fills the cache with what the run needs and does not have yet; several ranks share the work.

    Returns:
        Whether all of it is there; False where `stopped` said so to any rank.

    Raises:
        DatasetError: Items that cannot be used, all named.
        DiskError: No space; what is cached already is kept.
    """
    ranks = ranks or Ranks()
    with ranks.in_turn():  # the first looks at the files, the others read what it found
        _refuse_what_cannot_be(job)
        _ = job.data
    for problem in job.data.problems:
        kind: EventType = "info" if problem.severity is Severity.INFO else "warning"
        emit(kind, message=f"{shown(problem.path)}: {problem.what}", hint=problem.remedy)
    family, negative = job.family, job.recipe.previews.negative_prompt
    if negative and isinstance(family, TellsGuidance) and family.ignores_negative_prompt(job.base):
        message = "The negative prompt of the previews has no effect: this base model is told its guidance as a number"
        emit("warning", message=message, hint="Leave `previews.negative_prompt` out.")
    if ranks.speaks:
        write_text_whole(job.folder / "data.json", json.dumps(data_sheet(job), indent=2))
    _prepare_text(job, stopped, ranks)
    free_memory()
    if not stopped():
        _prepare_latents(job, stopped, ranks)
        free_memory()
    if ranks.any(stopped()):  # all go on or none does: one that was told late would wait for those that are gone
        return False
    if ranks.speaks:
        _prepare_masks(job)
    return not ranks.any(stopped())


def _refuse_what_cannot_be(job: Job) -> None:
    """Raises now what would come up only after hours of caching, or of training the first of two experts."""
    _ = job.first_frames, job.preview_controls
    for merged in job.merged_adapters:
        if not merged.in_previews and changes_encoders(job, merged.path):
            raise RequestError(
                f"The training adapter {merged.path.name} changes the text encoders",
                "Previews are drawn without it, and only a denoiser's layers can be taken back from what is on disk.",
                "Write it without them: lorapod lora convert … --without-text-encoders, or list it in `adapter.merged`.",
            )
    for expert in job.experts:
        if job.recipe.adapter.continue_from:
            file_for(expert, job.experts, job.recipe.adapter.continue_from)


def data_sheet(job: Job) -> dict[str, Any]:
    """What is trained on, held out and left out, for the report."""
    sheets = []
    for index, section in enumerate(job.recipe.datasets):
        train = [item for item in job.data.train if item.dataset == index]
        held_out = [item for item in job.data.validation if item.dataset == index]
        plan = DataPlan(train, held_out, [], [])
        buckets = [
            {"bucket": str(row.bucket), "items": row.items, "lost": round(row.mean_lost_share, 4)}
            for row in summary(plan)
        ]
        counts = {"items": len(train), "validation": len(held_out)}
        sheets.append({"path": str(section.path), **counts, "buckets": buckets})
    return {"datasets": sheets, "unused": [{"path": str(u.path), "why": u.why} for u in job.data.unused]}


def _prepare_text(job: Job, stopped: Callable[[], bool], ranks: Ranks) -> None:
    captions = job.captions()
    missing = [key for key in ranks.mine(list(captions)) if not job.text_cache.has(key)]
    emit("stage", name="cache text", index=1, count=3, total=len(captions))
    if not missing:
        return
    encoder = job.family.load_text_encoder(job.base, job.device, job.dtype)
    progress = _Progress("cache text", len(captions), len(missing), "captions", ranks)
    for key in missing:
        if stopped():
            return
        entry = encode(job, encoder, *captions[key])
        if _is_cut(entry, job.family.token_limit()):
            emit_from_here(
                "warning",
                message=f"A caption is longer than {job.family.token_limit()} tokens: {captions[key][0][:60]}…",
                hint="The base model does not see what comes after; shorten the caption.",
            )
        job.text_cache.put(key, entry)
        progress.one_more()


def encode(job: Job, encoder: Any, caption: str, controls: Controls) -> Conditions:
    """What is cached of a text: with its control pictures where the encoder is shown them."""
    if controls and isinstance(job.family, TextSeesControl):
        return job.family.encode_seen_text(encoder, caption, [control.load() for control in controls])
    return job.family.encode_text(encoder, [caption])[0]


def _is_cut(entry: Conditions, limit: int) -> bool:
    """Whether a caption was longer than what the encoder reads."""
    return int(entry["length"]) > limit if "length" in entry else len(entry["tokens"]) >= limit


def _prepare_latents(job: Job, stopped: Callable[[], bool], ranks: Ranks) -> None:
    items = {job.latents_key(item): item for item in job.items()}
    beginnings = {job.first_frame_key(picture): picture for picture in job.first_frames}
    controls = {job.control_key(c): c for each in job.items() for c in job.controls(each)}
    controls |= {job.control_key(c): c for each in job.preview_controls.values() for c in each}
    total = len(items) + len(beginnings) + len(controls)
    missing = [key for key in ranks.mine(list(items)) if not job.latents_cache.has(key)]
    missing_beginnings = [key for key in ranks.mine(list(beginnings)) if not job.latents_cache.has(key)]
    missing_controls = [key for key in ranks.mine(list(controls)) if not job.latents_cache.has(key)]
    emit("stage", name="cache latents", index=2, count=3, total=total)
    to_do = len(missing) + len(missing_beginnings) + len(missing_controls)
    if not to_do:
        return
    vae = job.family.load_vae(job.base, job.device, job.dtype)
    progress = _Progress("cache latents", total, to_do, "items", ranks)
    pixels = load_items([items[key] for key in missing])
    for key, frames in zip(missing, pixels, strict=True):
        if stopped():
            return
        _keep(job, key, job.family.encode_pixels(vae, as_pixels(frames))[0], items[key].item.path)
        progress.one_more()
    for key in missing_beginnings:
        if stopped():
            return
        _prepare_first_frame(job, vae, key, beginnings[key])
        progress.one_more()
    for key in missing_controls:
        if stopped():
            return
        _prepare_control(job, vae, key, controls[key])
        progress.one_more()


def _prepare_masks(job: Job) -> None:
    """Caches masks at the size of their items' latents. They take no model, and no time beside it."""
    masked = {key: item for item in job.items() if (key := job.mask_key(item)) is not None}
    empty = []
    for key, item in masked.items():
        latents = job.latents_cache.get(job.latents_key(item))
        if latents is None:
            continue
        mask = job.latents_cache.get(key) if job.latents_cache.has(key) else None
        if mask is None:
            mask = read_mask(item, latents["mean"])
            job.latents_cache.put(key, mask)
        if not mask[SHARE].any():
            empty.append(shown(item.item.path))
    if empty:
        emit(
            "warning",
            message=f"The masks of {len(empty)} items are black all over: {', '.join(map(str, empty[:8]))}",
            hint="Nothing in them is marked as to be learnt; their places count alike.",
        )


def prepare_first_frames(job: Job) -> None:
    """Caches what previews begin with, where it is not yet."""
    beginnings = {job.first_frame_key(picture): picture for picture in job.first_frames}
    missing = [key for key in beginnings if not job.latents_cache.has(key)]
    if missing:
        vae = job.family.load_vae(job.base, job.device, job.dtype)
        for key in missing:
            _prepare_first_frame(job, vae, key, beginnings[key])


def prepare_controls(job: Job, controls: Iterable[Control]) -> None:
    """Caches the latents of control pictures, where they are not yet."""
    missing = {key: each for each in controls if not job.latents_cache.has(key := job.control_key(each))}
    if missing:
        vae = job.family.load_vae(job.base, job.device, job.dtype)
        for key, control in missing.items():
            _prepare_control(job, vae, key, control)


def _prepare_control(job: Job, vae: Any, key: str, control: Control) -> None:
    """Keeps the most likely latents: what is drawn starts from the very picture, not from one like it."""
    encoded = job.family.encode_pixels(vae, as_pixels(control.load()[None]))[0]
    _keep(job, key, {"mean": encoded["mean"]}, control.path)


def _prepare_first_frame(job: Job, vae: Any, key: str, picture: FirstFrame) -> None:
    _keep(job, key, job.family.encode_pixels(vae, _beginning(job, picture))[0], picture.path)


def _beginning(job: Job, picture: FirstFrame) -> torch.Tensor:
    """Pixels (1, 3, f, h, w) of a clip that is the picture and then grey."""
    width, height, frames = job.preview_size
    clip = torch.zeros(1, 3, frames, height, width)
    clip[:, :, :1] = as_pixels(picture.load()[None])
    return clip


def _keep(job: Job, key: str, entry: Conditions, source: Path) -> None:
    """Puts an entry into the cache of latents. Raises TrainingError where it holds what is no number."""
    if not all(value.isfinite().all() for value in entry.values()):
        raise TrainingError(
            f"The VAE gave no usable latents for {source}",
            "They hold infinite or undefined numbers, which happens with some VAEs in bf16.",
            'Set `training.precision = "fp32"`.',
        )
    job.latents_cache.put(key, entry)


class _Progress:
    """`progress` events, at most two a second, and always the last. What other ranks do is taken to be as far.

    Args:
        missing: What this rank has to do.
    """

    def __init__(self, stage: str, total: int, missing: int, unit: str, ranks: Ranks) -> None:
        self.stage, self.total, self.missing, self.unit = stage, total, missing, unit
        self.count = ranks.count
        self._shown = 0.0

    def one_more(self) -> None:
        self.missing -= 1
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_EVENTS or not self.missing:
            self._shown = now
            done = max(0, self.total - self.missing * self.count)
            emit("progress", stage=self.stage, done=done, total=self.total, unit=self.unit)
