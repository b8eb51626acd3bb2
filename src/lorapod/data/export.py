"""A dataset written in the layout of another trainer, with the file that tells the trainer of it.

What these trainers drop, refuse or misread in silence is put right on the way (pictures stored sideways, formats they do
not list, names that differ in their extension alone). Facts by source: diffusion-pipe `utils/dataset.py`, musubi-tuner
`dataset/config_utils.py` and `image_video_dataset.py`, sd-scripts `library/config_util.py`, ai-toolkit
`toolkit/config_modules.py`. Not carried over: masks for musubi-tuner, which trains without; control pictures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorapod.data.captions import compose
from lorapod.data.checks import Checked
from lorapod.data.facts import Progress
from lorapod.data.fix import SANE_CLIPS, SANE_PICTURES, is_turned, new_folder
from lorapod.data.plan import TrainItem
from lorapod.data.remake import Made, placed, remake_clip, remake_picture
from lorapod.data.scan import Item
from lorapod.data.threads import in_order
from lorapod.files import disk_error, write_text_whole
from lorapod.recipe.schema import ClipWindows, DatasetSection


class Layout(StrEnum):
    """Trainers whose layout can be written."""

    DIFFUSION_PIPE = "diffusion-pipe"
    MUSUBI = "musubi"
    KOHYA = "kohya"
    AI_TOOLKIT = "ai-toolkit"


_EXTRACTION = {
    ClipWindows.HEAD: "head",
    ClipWindows.MIDDLE: "uniform",
    ClipWindows.UNIFORM: "uniform",
    ClipWindows.EVERY: "chunk",
}
"""Of musubi-tuner. It knows no middle; one uniform sample is its head, so the nearest is said in the file."""


@dataclass(frozen=True)
class _Part:
    """Items of one dataset and kind, in a folder of their own."""

    folder: Path
    section: DatasetSection
    items: list[Item]
    repeats: int
    clips: bool
    fps: float = 0.0


def export(checked: Checked, layout: Layout, out: Path, progress: Progress | None = None) -> tuple[list[Made], Path]:
    """Writes what can be trained on into a new folder; gives what became of each file, and the trainer's file.

    Captions are written as lorapod would train with them: with trigger word and prefix. Paths in the trainer's file are
    absolute.

    Raises:
        DatasetError: The folder is not empty.
        DiskError: A file cannot be written.
    """
    root = new_folder(out)
    parts = _parts(checked, layout, root)
    work = [(part, item, target) for part in parts for item, target in _named(part)]
    made = []
    for done, each in enumerate(in_order(lambda job: _write(*job), work), start=1):
        made.append(each)
        if progress:
            progress(done, len(work))
    writer = {
        Layout.DIFFUSION_PIPE: _diffusion_pipe,
        Layout.MUSUBI: _musubi,
        Layout.KOHYA: _kohya,
        Layout.AI_TOOLKIT: _ai_toolkit,
    }[layout]
    name, text = writer(parts)
    write_text_whole(root / name, text)
    return made, root / name


def _parts(checked: Checked, layout: Layout, root: Path) -> list[_Part]:
    parts: list[_Part] = []
    taken: set[str] = set()
    for section, plan in zip(checked.sections, checked.plans, strict=True):
        used: dict[Path, TrainItem] = {each.item.path: each for each in [*plan.validation, *plan.train]}
        groups: dict[tuple[bool, int, float], list[Item]] = {}
        for each in used.values():
            # musubi-tuner is told one frame rate for a folder.
            fps = round(each.item.fps, 2) if layout is Layout.MUSUBI else 0.0
            key = (each.item.is_clip, section.repeats * each.item.repeats, fps)
            groups.setdefault(key, []).append(each.item)
        for (clips, repeats, fps), items in sorted(groups.items(), key=lambda group: group[0]):
            name = section.path.name or "dataset"
            name = f"{name} clips" if clips and len(groups) > 1 else name
            name = f"{repeats}_{name}" if layout is Layout.KOHYA else name
            unique, number = name, 2
            while unique.casefold() in taken:
                unique, number = f"{name} {number}", number + 1
            taken.add(unique.casefold())
            parts.append(_Part(root / unique, section, items, repeats, clips, fps))
    return parts


def _named(part: _Part) -> list[tuple[Item, Path]]:
    """Targets of the items, flat, since none of these trainers looks into sub-folders; stems differ."""
    taken: set[str] = set()
    named = []
    for item in part.items:
        stem, number = item.path.stem, 2
        while stem.casefold() in taken:
            stem, number = f"{item.path.stem} {number}", number + 1
        taken.add(stem.casefold())
        named.append((item, part.folder / f"{stem}{item.path.suffix.lower()}"))
    return named


def _write(part: _Part, item: Item, target: Path) -> Made:
    said: list[str] = []
    if item.is_clip and target.suffix not in SANE_CLIPS:
        target, said = target.with_suffix(".mp4"), ["written as MP4"]
        remake_clip(item, target, placed(item), (0.0, item.seconds), item.fps)
    elif not item.is_clip and (target.suffix not in SANE_PICTURES or is_turned(item.path)):
        said = ["turned upright"] if is_turned(item.path) else ["written as PNG"]
        target = target.with_suffix(".png")
        remake_picture(item, target, placed(item))
    else:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(item.path, target)
        except OSError as error:
            raise disk_error(error, target) from error
    caption = compose(item.caption or "", trigger_word=part.section.trigger_word, prefix=part.section.caption_prefix)
    write_text_whole(target.with_suffix(".txt"), caption + "\n")
    return Made(item.path, (target,), tuple(said))


def _diffusion_pipe(parts: Sequence[_Part]) -> tuple[str, str]:
    # A resolution that stands in a directory alone is a KeyError there, so it stands at the top too.
    first = parts[0].section
    lines = [
        f"resolutions = {sorted(set(first.resolutions))}",
        "enable_ar_bucket = true",
        "min_ar = 0.4",
        "max_ar = 2.5",
        "num_ar_buckets = 9",
        f"frame_buckets = {_frame_buckets(parts)}",
    ]
    for part in parts:
        lines += [
            "",
            "[[directory]]",
            f"path = {_quoted(part.folder)}",
            f"resolutions = {sorted(set(part.section.resolutions))}",
            f"num_repeats = {part.repeats}",
        ]
    return "dataset.toml", "\n".join(lines) + "\n"


def _frame_buckets(parts: Sequence[_Part]) -> list[int]:
    return sorted({1, *(length for part in parts if part.clips for length in part.section.frames)})


def _musubi(parts: Sequence[_Part]) -> tuple[str, str]:
    lines = [
        "[general]",
        'caption_extension = ".txt"',
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = false",
    ]
    for part in parts:
        for resolution in dict.fromkeys(part.section.resolutions):
            kind = "video" if part.clips else "image"
            cache = part.folder.with_name(f"{part.folder.name} cache {resolution}")
            lines += [
                "",
                "[[datasets]]",
                f"{kind}_directory = {_quoted(part.folder)}",
                f"cache_directory = {_quoted(cache)}",
                f"resolution = [{resolution}, {resolution}]",
                f"num_repeats = {part.repeats}",
            ]
            if part.clips:
                lines += [
                    f"target_frames = {sorted(set(part.section.frames))}",
                    f'frame_extraction = "{_EXTRACTION[part.section.clip_windows]}"',
                    f"source_fps = {part.fps:.2f}",
                ]
                if part.section.clip_windows is ClipWindows.UNIFORM:
                    lines.append(f"frame_sample = {part.section.windows_per_clip}")
                if part.section.clip_windows is ClipWindows.MIDDLE:
                    lines.append("frame_sample = 3  # musubi-tuner cannot take the middle alone")
    return "dataset.toml", "\n".join(lines) + "\n"


def _kohya(parts: Sequence[_Part]) -> tuple[str, str]:
    lines = ["[general]", 'caption_extension = ".txt"', "enable_bucket = true"]
    by_resolution: dict[int, list[_Part]] = {}
    for part in parts:
        for resolution in dict.fromkeys(part.section.resolutions):
            by_resolution.setdefault(resolution, []).append(part)
    for resolution, members in by_resolution.items():
        lines += ["", "[[datasets]]", f"resolution = {resolution}"]
        for part in members:
            lines += [
                "",
                "[[datasets.subsets]]",
                f"image_dir = {_quoted(part.folder)}",
                f"num_repeats = {part.repeats}",
            ]
    return "dataset.toml", "\n".join(lines) + "\n"


def _ai_toolkit(parts: Sequence[_Part]) -> tuple[str, str]:
    lines = ["# Put this under `process:` of a job's configuration.", "datasets:"]
    for part in parts:
        lines += [
            f"  - folder_path: {json.dumps(str(part.folder))}",
            '    caption_ext: "txt"',
            f"    caption_dropout_rate: {part.section.caption_dropout:g}",
            f"    num_repeats: {part.repeats}",
            f"    resolution: {sorted(set(part.section.resolutions))}",
        ]
        if part.clips:
            lines.append(f"    num_frames: {max(part.section.frames)}")
    return "datasets.yaml", "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """A TOML text; JSON's escapes are among TOML's."""
    return json.dumps(str(path), ensure_ascii=False)
