"""A dataset written in the layout of another trainer, with the file that tells the trainer of it.

What these trainers drop, refuse or misread in silence is put right on the way (pictures stored sideways, formats they do
not list, names that differ in their extension alone). Facts by source: diffusion-pipe `utils/dataset.py`, musubi-tuner
`dataset/config_utils.py` and `image_video_dataset.py`, sd-scripts `library/config_util.py` and `library/train_util.py`,
ai-toolkit `toolkit/config_modules.py`. What a trainer has no place for is left out and named: clips and control pictures
with sd-scripts, masks and control pictures of clips with musubi-tuner, all but the first control picture with
diffusion-pipe. Work that was stopped goes on when it is asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from PIL import Image

from lorapod.data.captions import compose
from lorapod.data.carry import control_targets, write_control, write_mask
from lorapod.data.checks import Checked
from lorapod.data.facts import Progress
from lorapod.data.fix import SANE_CLIPS, SANE_PICTURES, is_turned
from lorapod.data.making import NewFolder, copy_whole, free_name, renamed
from lorapod.data.plan import DatasetPlan, TrainItem
from lorapod.data.remake import Made, placed, remake_clip, remake_picture
from lorapod.data.scan import Item
from lorapod.errors import DatasetError
from lorapod.files import write_text_whole, written_whole
from lorapod.recipe.choices import ClipWindows
from lorapod.recipe.schema import DatasetSection


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


CAPTION_EXTENSIONS = (".txt", ".caption")


@dataclass(frozen=True)
class _Part:
    """Items of one dataset and kind, in a folder of their own.

    Attributes:
        masks: Folder of their masks; None where they have none that this trainer takes.
        controls: Folders of their control pictures, in the order in which the trainer takes them; likewise.
    """

    folder: Path
    section: DatasetSection
    items: list[Item]
    repeats: int
    clips: bool
    fps: float = 0.0
    masks: Path | None = None
    controls: tuple[Path, ...] = ()
    extension: str = ".txt"
    dataset: int = 0


def export(
    checked: Checked,
    layout: Layout,
    out: Path,
    progress: Progress | None = None,
    *,
    caption_extension: str = CAPTION_EXTENSIONS[0],
) -> tuple[list[Made], Path]:
    """Writes what can be trained on into a new folder; gives what became of each file, and the trainer's file.

    Captions are written as lorapod would train with them: with trigger word and prefix. Paths in the trainer's file are
    absolute.

    Args:
        caption_extension: Of the caption files, which the trainer's file names; diffusion-pipe reads `.txt` alone.

    Raises:
        DatasetError: The folder holds anything but the same work unfinished, the trainer reads no caption files of that
            extension, or it can train on none of the items.
        DiskError: A file cannot be written.
    """
    if layout is Layout.DIFFUSION_PIPE and caption_extension != ".txt":
        raise DatasetError(
            f"{layout.value} reads no {caption_extension} files", "It looks for .txt alone.", "Leave the extension out."
        )
    wanted = [section.model_dump(mode="json") for section in checked.sections]
    root = out.expanduser().absolute()
    parts = [
        replace(part, extension=caption_extension) for part in _parts(checked.sections, checked.plans, layout, root)
    ]
    left_out = _left_out(checked) if layout is Layout.KOHYA else []
    if not parts:
        why = left_out[0].what[0] if left_out else "No item can be used."
        raise DatasetError(f"There is nothing that {layout.value} could train on", why, "Choose another trainer.")
    work = {"export": layout.value, "captions": caption_extension, "datasets": wanted}
    folder = NewFolder(out, work, [found.folder for found in checked.scans])
    jobs = {target: (part, item) for part in parts for item, target in _named(part)}
    made = folder.make(
        [(item, target) for target, (_, item) in jobs.items()],
        lambda item, target: _write(layout, jobs[target][0], item, target),
        progress,
    )
    made += left_out
    writer = {
        Layout.DIFFUSION_PIPE: _diffusion_pipe,
        Layout.MUSUBI: _musubi,
        Layout.KOHYA: _kohya,
        Layout.AI_TOOLKIT: _ai_toolkit,
    }[layout]
    name, text = writer(parts)
    write_text_whole(root / name, text)
    folder.finish()
    return made, root / name


def _left_out(checked: Checked) -> list[Made]:
    """The clips, for a trainer that takes none."""
    clips = {each.item.path for plan in checked.plans for each in [*plan.validation, *plan.train] if each.item.is_clip}
    return [Made(path, (), ("left out: sd-scripts trains on pictures only",)) for path in sorted(clips)]


def _parts(sections: Sequence[DatasetSection], plans: Sequence[DatasetPlan], layout: Layout, root: Path) -> list[_Part]:
    parts: list[_Part] = []
    taken: set[str] = set()
    for dataset, (section, plan) in enumerate(zip(sections, plans, strict=True)):
        used: dict[Path, TrainItem] = {each.item.path: each for each in [*plan.validation, *plan.train]}
        groups: dict[tuple[bool, int, float], list[Item]] = {}
        for each in used.values():
            # musubi-tuner is told one frame rate for a folder.
            fps = round(each.item.fps, 2) if layout is Layout.MUSUBI else 0.0
            key = (each.item.is_clip, section.repeats * each.item.repeats, fps)
            if layout is Layout.KOHYA and each.item.is_clip:
                continue
            groups.setdefault(key, []).append(each.item)
        for (clips, repeats, fps), items in sorted(groups.items(), key=lambda group: group[0]):
            name = section.path.name or "dataset"
            name = f"{name} clips" if clips and len(groups) > 1 else name
            name = f"{repeats}_{name}" if layout is Layout.KOHYA else name
            unique, number = name, 2
            while unique.casefold() in taken:
                unique, number = f"{name} {number}", number + 1
            taken.add(unique.casefold())
            folder = root / unique
            masks, controls = _beside(layout, folder, items, clips)
            parts.append(_Part(folder, section, items, repeats, clips, fps, masks, controls, dataset=dataset))
    if layout is Layout.KOHYA and any(part.masks for part in parts):
        # sd-scripts wants a mask of every picture of every folder as soon as one has some.
        parts = [replace(part, masks=_next_to(part.folder, "masks")) for part in parts]
    return parts


def _beside(layout: Layout, folder: Path, items: list[Item], clips: bool) -> tuple[Path | None, tuple[Path, ...]]:
    """Folders for the masks and control pictures of some items, as far as the trainer has a place for them."""
    masked = layout is not Layout.MUSUBI and any(item.mask_path for item in items)
    most = max((len(item.control_paths) for item in items), default=0)
    if layout is Layout.KOHYA or (layout is Layout.MUSUBI and clips):
        most = 0
    elif layout is not Layout.AI_TOOLKIT:
        most = min(most, 1)  # musubi-tuner takes several, by number, from one folder.
    controls = tuple(_next_to(folder, f"control {i}" if most > 1 else "control") for i in range(1, most + 1))
    return _next_to(folder, "masks") if masked else None, controls


def _next_to(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name} {what}")


def _named(part: _Part) -> list[tuple[Item, Path]]:
    """Targets of the items, flat, since none of these trainers looks into sub-folders; stems differ."""
    taken: set[str] = set()
    named = []
    for item in part.items:
        wanted = part.folder / f"{item.path.stem}{item.path.suffix.lower()}"
        named.append((item, free_name(wanted, taken)))
    return named


def _write(layout: Layout, part: _Part, item: Item, target: Path) -> Made:
    said: list[str] = []
    if item.is_clip and target.suffix not in SANE_CLIPS:
        target, said = target.with_suffix(".mp4"), ["written as MP4"]
        remake_clip(item, target, placed(item), (0.0, item.seconds), item.fps)
    elif not item.is_clip and (target.suffix not in SANE_PICTURES or is_turned(item.path)):
        said = ["turned upright"] if is_turned(item.path) else ["written as PNG"]
        target = target.with_suffix(".png")
        remake_picture(item, target, placed(item))
    else:
        copy_whole(item.path, target)
    section = part.section
    captions = item.caption_lines if section.caption_per_line else ()
    composed = [
        compose(caption, trigger_word=section.trigger_word, prefix=section.caption_prefix)
        for caption in captions or [item.caption or ""]
    ]
    write_text_whole(target.with_suffix(part.extension), "\n".join(composed) + "\n")
    said += [*renamed(item, target), *_write_beside(layout, part, item, target)]
    return Made(item.path, (target,), tuple(said))


def _write_beside(layout: Layout, part: _Part, item: Item, target: Path) -> list[str]:
    """Writes an item's mask and control pictures; says what of them the trainer has no place for."""
    said = []
    if part.masks:
        mask = part.masks / f"{target.stem}.png"
        if item.mask_path:
            write_mask(item, mask, None)
        elif layout is Layout.KOHYA:
            with written_whole(mask) as temporary:
                Image.new("L", (item.width, item.height), 255).save(temporary, "PNG")
    elif item.mask_path:
        said.append(f"its mask is left out: {layout.value} trains without")
    if layout is Layout.MUSUBI and part.controls:
        wanted = control_targets(item, part.controls[0] / target.name)
    else:
        wanted = [folder / f"{target.stem}{path.suffix}" for folder, path in _paired(part.controls, item)]
    for control, beside in zip(item.control_paths, wanted, strict=False):
        write_control(control, beside, placed(item) if is_turned(control) else None)
    missing = len(item.control_paths) - len(wanted)
    if missing:
        said.append(
            f"{missing} of its {len(item.control_paths)} control pictures left out: {layout.value} takes no more"
        )
    return said


def _paired(folders: Sequence[Path], item: Item) -> list[tuple[Path, Path]]:
    return list(zip(folders, item.control_paths, strict=False))


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
        if part.masks:
            lines.append(f"mask_path = {_quoted(part.masks)}")
        lines += [f"control_path = {_quoted(folder)}" for folder in part.controls]
    return "dataset.toml", "\n".join(lines) + "\n"


def _frame_buckets(parts: Sequence[_Part]) -> list[int]:
    return sorted({1, *(length for part in parts if part.clips for length in part.section.frames)})


def _musubi(parts: Sequence[_Part]) -> tuple[str, str]:
    lines = [
        "[general]",
        f'caption_extension = "{parts[0].extension}"',
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
            lines += [f"control_directory = {_quoted(folder)}" for folder in part.controls]
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
    lines = ["[general]", f'caption_extension = "{parts[0].extension}"', "enable_bucket = true"]
    if any(part.masks for part in parts):
        lines.insert(0, "# Train with --masked_loss, or the masks are not used.")
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
            if part.masks:
                lines.append(f"conditioning_data_dir = {_quoted(part.masks)}")
    return "dataset.toml", "\n".join(lines) + "\n"


def _ai_toolkit(parts: Sequence[_Part]) -> tuple[str, str]:
    lines = ["# Put this under `process:` of a job's configuration.", "datasets:"]
    for part in parts:
        lines += [
            f"  - folder_path: {json.dumps(str(part.folder))}",
            f'    caption_ext: "{part.extension.removeprefix(".")}"',
            f"    caption_dropout_rate: {part.section.caption_dropout:g}",
            f"    num_repeats: {part.repeats}",
            f"    resolution: {sorted(set(part.section.resolutions))}",
        ]
        if part.masks:
            lines.append(f"    mask_path: {json.dumps(str(part.masks))}")
        if part.controls:
            lines.append(f"    control_path: {json.dumps([str(folder) for folder in part.controls])}")
        if part.clips:
            lines.append(f"    num_frames: {max(part.section.frames)}")
    return "datasets.yaml", "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """A TOML text; JSON's escapes are among TOML's."""
    return json.dumps(str(path), ensure_ascii=False)
