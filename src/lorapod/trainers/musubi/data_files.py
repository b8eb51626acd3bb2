"""The files that musubi-tuner reads of a run's data: its dataset TOML, and the list of what previews draw.

Caches are named by what they are made from, so that a changed resolution, VAE or window never meets a stale one. Items with
several control pictures, or whose names do not tell them apart, come as a list in place of a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from lorapod.errors import RequestError
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.choices import ClipWindows
from lorapod.trainers.musubi.architectures import Architecture, makes_clips_of_pictures
from lorapod.trainers.musubi.interface import interface
from lorapod.trainers.musubi.limits import WINDOWS
from lorapod.trainers.rendering import RenderContext, View


def dataset_of(
    recipe: Recipe, entry: Entry, context: RenderContext, views: list[View], own: Mapping[str, Any]
) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    # Clips are always cached into buckets with up-scaling; other settings here would group them differently in training.
    general = {"caption_extension": ".txt", "batch_size": recipe.training.batch_size, "enable_bucket": True}
    # Its parser takes these of a dataset alone. An empty size stands for none: they are cut as their items then.
    of_controls = {"control_resolution": entry.trainers["musubi"].options.get("control_resolution"), **own}
    of_controls = {key: of_controls[key] for key in interface()["control"] if of_controls.get(key)}
    own = {key: value for key, value in own.items() if key not in interface()["control"]}
    document["general"] = {**general, "bucket_no_upscale": False, **own}
    made_from = [str(path) for part, path in sorted(context.model_files.items()) if "transformer" not in part]
    tables = tomlkit.aot()
    for view in views:
        section = recipe.datasets[view.dataset]
        for side in section.resolutions:
            table = tomlkit.table()
            table["resolution"] = [side, side]
            table["num_repeats"] = view.repeats if view.repeats and not view.held_out else section.repeats
            clip: dict[str, Any] = {}
            if view.kind == "clip":
                clip["target_frames"] = sorted({frames - (frames - 1) % 4 for frames in section.frames})
                clip["frame_extraction"] = WINDOWS[section.clip_windows]
                if section.clip_windows is ClipWindows.UNIFORM:
                    clip["frame_sample"] = section.windows_per_clip
                if view.fps is not None:
                    clip["source_fps"] = float(view.fps)
            key: list[Any] = [entry.name, str(view.path), side, clip, made_from]
            if view.listed:
                table["image_jsonl_file"] = str(view.listed)
            else:
                table["video_directory" if view.kind == "clip" else "image_directory"] = str(view.path)
                if view.controls:
                    table["control_directory"] = str(view.controls)
            if view.controls:
                table.update(of_controls)
                key += [str(view.controls), of_controls]
            name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
            table["cache_directory"] = str(cache_folder(context) / f"{view.dataset}-{side}-{name}")
            table.update(clip)
            tables.append(table)
    document["datasets"] = tables
    return document


def cache_folder(context: RenderContext) -> Path:
    """Where the caches are: beside the trainer's output, outside of the folders of the data."""
    return context.output.parent / "cache"


def wants_previews(recipe: Recipe) -> bool:
    previews = recipe.previews
    return bool(previews.prompts) and bool(previews.every or previews.at_start or previews.at_end)


def prompts_of(recipe: Recipe, entry: Entry, context: RenderContext, architecture: Architecture) -> str:
    """The prompt file, a line a preview; empty where there is nothing to draw.

    Raises:
        RequestError: The path of a picture would be read as an option.
    """
    previews = recipe.previews
    # Classifier-free guidance is off at 1, and at 0 would draw what the prompt is not.
    guidance = previews.guidance if architecture.guidance_is_told else max(1.0, previews.guidance)
    negative = " ".join(previews.negative_prompt.split())
    if not wants_previews(recipe) or (makes_clips_of_pictures(entry) and not previews.first_frames):
        return ""
    lines = []
    for number, prompt in enumerate(previews.prompts):
        for seed in previews.seeds:
            words = [" ".join(prompt.split()), f"--w {previews.width} --h {previews.height} --f {previews.frames}"]
            words.append(f"--d {seed} --s {previews.steps} --{architecture.guidance} {guidance:g}")
            words += [architecture.preview_words] if architecture.preview_words else []
            if makes_clips_of_pictures(entry):
                words.append(f"--i {_path(previews.first_frames[number % len(previews.first_frames)])}")
            words += [f"--ci {_path(path)}" for path in _started_from(recipe, context, number)]
            words += [f"--n {negative}"] if negative else []
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _started_from(recipe: Recipe, context: RenderContext, number: int) -> tuple[Path, ...]:
    """Control pictures of a prompt: as they were cut to the preview's size, or as the recipe gives them."""
    given = recipe.previews.control
    return context.preview_controls.get(number, (given[number % len(given)],) if given else ())


def _path(path: Path) -> str:
    if " --" in str(path):
        raise RequestError(
            f"musubi-tuner would read a part of this path as an option: {path}",
            "It takes what follows two dashes in its list of prompts for one.",
            "Rename the folder or the run without ` --`.",
        )
    return str(path)
