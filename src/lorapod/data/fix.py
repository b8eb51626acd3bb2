"""A dataset copied into a new folder, with what can be put right safely; and the other ways to make one from another.

The originals are never touched. What is said of each file is what was done to it; captions, masks and control pictures
are taken along. Work that was stopped goes on when it is asked for again. Not put right: what needs a judgement, such as
which of two twins is kept or a blurred picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorapod.data.buckets import Placement
from lorapod.data.carry import carry
from lorapod.data.checks import Checked
from lorapod.data.facts import Progress
from lorapod.data.look import Look
from lorapod.data.making import NewFolder, copy_whole, free_name, renamed
from lorapod.data.plan import TrainItem
from lorapod.data.remake import Box, Made, placed, remake_clip, remake_picture
from lorapod.data.scan import Item
from lorapod.data.walk import CONTROL_FOLDER

SANE_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SANE_CLIPS = frozenset({".mp4", ".mkv", ".mov", ".webm"})

SHORTEST_SCENE = 0.5
"""Seconds; what is left between two cuts that is shorter is no scene to train on."""

_CUT_MARGIN = 0.02


def fix_datasets(checked: Checked, out: Path, progress: Progress | None = None) -> list[Made]:
    """Copies what can be trained on into a new folder, put right: upright, in formats that all read, without black bars,
    clips split at cuts and at a constant frame rate. Several datasets become a sub-folder each.

    Raises:
        DatasetError: The folder holds anything but the same work unfinished, or an item changed meanwhile.
        DiskError: A file cannot be written.
    """
    return _copies(checked, out, "fix", lambda item, to: _fixed(item, to, checked.looks.get(item.path)), progress)


def split_clips(checked: Checked, out: Path, progress: Progress | None = None) -> list[Made]:
    """Copies a dataset into a new folder, with every clip split where its scene changes. Raises as `fix_datasets`."""

    def split(item: Item, target: Path) -> _Made:
        look = checked.looks.get(item.path)
        scenes = _scenes(item, look)
        if len(scenes) < 2:
            return _copied(item, target)
        return _clip(item, target, scenes, None, item.fps, [_scenes_said(scenes)])

    return _copies(checked, out, "split", split, progress)


def resize(
    checked: Checked, out: Path, longest_side: int | None = None, progress: Progress | None = None
) -> list[Made]:
    """Copies a dataset into a new folder, each item as large as it is trained at, or with its longest side reduced.

    Args:
        longest_side: Pixels; None for the size of the item's bucket, cropped as training would. Nothing is enlarged to a
            longest side.

    Raises:
        As `fix_datasets`.
    """
    places: dict[Path, TrainItem] = {}
    for plan in checked.plans:
        for each in [*plan.train, *plan.validation]:
            known = places.get(each.item.path)
            if known is None or each.placement.bucket.width > known.placement.bucket.width:
                places[each.item.path] = each

    def resized(item: Item, target: Path) -> _Made:
        if longest_side is None:
            if item.path not in places:
                return _copied(item, target)
            placement = places[item.path].placement
        else:
            factor = longest_side / max(item.width, item.height)
            if factor >= 1:
                return _copied(item, target)
            placement = placed(item, size=(max(1, round(item.width * factor)), max(1, round(item.height * factor))))
        said = f"resized from {item.width}x{item.height} to {placement.bucket.width}x{placement.bucket.height}"
        if item.is_clip:
            target = target.with_suffix(".mp4")
            remake_clip(item, target, placement, (0.0, item.seconds), item.fps)
        else:
            target = target.with_suffix(target.suffix if target.suffix.lower() in (".jpg", ".jpeg") else ".png")
            remake_picture(item, target, placement)
        return Made(item.path, (target,), (said,)), placement

    sizes = (
        longest_side or sha256(repr([(path, places[path].placement) for path in sorted(places)]).encode()).hexdigest()
    )
    return _copies(checked, out, {"resize": sizes}, resized, progress)


_Made = tuple[Made, Placement | None]
"""What became of an item, and how it was cropped and scaled; None where it was copied."""


def _copies(
    checked: Checked, out: Path, work: Any, make: Callable[[Item, Path], _Made], progress: Progress | None
) -> list[Made]:
    """Every item made into the new folder, with what lies beside it."""
    sources = [found.folder for found in checked.scans]
    folder = NewFolder(out, {"work": work, "folders": [str(each) for each in sources]}, sources)
    jobs = list(_targets(checked, folder.root))
    taken = {target.relative_to(folder.root).parts[0] for _, target in jobs}
    controls = folder.root / next(name for name in (CONTROL_FOLDER, f"{CONTROL_FOLDER} pictures") if name not in taken)

    def make_whole(item: Item, target: Path) -> Made:
        made, placement = make(item, target)
        said = carry(item, made.targets, controls, folder.root, placement)
        return replace(made, what=(*made.what, *renamed(item, target), *said))

    made = folder.make(jobs, make_whole, progress)
    folder.finish()
    return made


def _targets(checked: Checked, root: Path) -> Iterable[tuple[Item, Path]]:
    """Items with their paths in the new folder; two that would be one get a number, since captions go by stems."""
    several = len({found.folder for found in checked.scans}) > 1
    taken: set[str] = set()
    seen: set[Path] = set()
    for found in checked.scans:
        for item in found.items:
            if item.path in seen:
                continue
            seen.add(item.path)
            inner = item.path.relative_to(found.folder)
            base = root / found.folder.name / inner if several else root / inner
            yield item, free_name(base, taken)


def _fixed(item: Item, target: Path, look: Look | None) -> _Made:
    box = _without_bars(item, look)
    said = [f"bars trimmed to {box[2] - box[0]}x{box[3] - box[1]}"] if box else []
    if item.is_clip:
        scenes = _scenes(item, look)
        if len(scenes) > 1:
            said.append(_scenes_said(scenes))
        if look and look.variable_rate:
            said.append(f"made {item.fps:.4g} frames a second throughout")
        if item.path.suffix.lower() not in SANE_CLIPS:
            said.append("written as MP4")
        return _clip(item, target, scenes, box, item.fps, said) if said else _copied(item, target)
    if item.path.suffix.lower() not in SANE_PICTURES:
        said.append("written as PNG")
    if is_turned(item.path):
        said.append("turned upright")
    if not said:
        return _copied(item, target)
    # A picture that is written anew loses nothing in PNG; a JPEG would lose a little each time.
    target = target.with_suffix(".png")
    placement = placed(item, box)
    remake_picture(item, target, placement)
    return Made(item.path, (target,), tuple(said)), placement


def _clip(
    item: Item, target: Path, scenes: Sequence[tuple[float, float]], box: Box | None, fps: float, said: Sequence[str]
) -> _Made:
    targets = []
    placement = placed(item, box)
    for number, scene in enumerate(scenes, start=1):
        name = f"{target.stem}-{number:02d}" if len(scenes) > 1 else target.stem
        path = target.with_name(f"{name}.mp4")
        remake_clip(item, path, placement, scene, fps)
        targets.append(path)
    return Made(item.path, tuple(targets), tuple(said)), placement


def _scenes(item: Item, look: Look | None) -> list[tuple[float, float]]:
    """Stretches of a clip between its cuts that are long enough to train on; all of it where there are no cuts."""
    if not look or not look.cuts:
        return [(0.0, item.seconds)]
    edges = [0.0, *look.cuts, item.seconds]
    scenes = [(start, end - _CUT_MARGIN if end != item.seconds else end) for start, end in pairwise(edges)]
    return [scene for scene in scenes if scene[1] - scene[0] >= SHORTEST_SCENE] or [(0.0, item.seconds)]


def _scenes_said(scenes: Sequence[tuple[float, float]]) -> str:
    return f"split into {len(scenes)} scenes: " + ", ".join(f"{start:.2f}–{end:.2f} s" for start, end in scenes)


def _without_bars(item: Item, look: Look | None) -> Box | None:
    """What is left of an item without its bars, a pixel or two within; None where it has none."""
    if not look or not any(look.bars):
        return None
    left, top, right, bottom = look.bars
    margin = 0.004
    return (
        round(item.width * (left + margin * bool(left))),
        round(item.height * (top + margin * bool(top))),
        round(item.width * (1 - right - margin * bool(right))),
        round(item.height * (1 - bottom - margin * bool(bottom))),
    )


def is_turned(path: Path) -> bool:
    """Whether a picture is stored otherwise than it is looked at."""
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except (OSError, SyntaxError, ValueError):
        return False  # It was decoded before; what is wrong with its EXIF data does not turn it.


def _copied(item: Item, target: Path) -> _Made:
    copy_whole(item.path, target)
    return Made(item.path, (target,), ()), None
