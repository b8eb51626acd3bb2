"""What a training sees of its datasets: which items, in which bucket, with which captions.

A plan is a pure function of the files on disk and its arguments: a run that is resumed computes it again and finds its
place. Pixels are not loaded here, and what is cached of them is the engine's; `lorapod.data.epochs` puts the items into
batches.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorapod.data.buckets import Bucket, Geometry, Placement, place
from lorapod.data.captions import compose, shuffled_tags
from lorapod.data.media_cache import MediaCache
from lorapod.data.names import shown
from lorapod.data.scan import Item, Progress, Scan, scan
from lorapod.data.walk import Problem, Severity
from lorapod.errors import DatasetError
from lorapod.recipe.choices import Regularisation
from lorapod.recipe.schema import DatasetSection

if TYPE_CHECKING:
    from lorapod.data.windows import Window

FEWEST_TO_HOLD_OUT_FROM = 4
"""A dataset of fewer items is trained on whole: each of them is worth more than a noisy evaluation loss."""

MUCH_LOST = 0.25
"""Share cut off by cropping from which on the person is told."""

MUCH_ENLARGED = 2.0

_LISTED = 20

_ROUNDING = 1e-4
"""Frames by which a clip's length may be off from a whole number of them."""


@dataclass(frozen=True)
class TrainItem:
    """One item at one resolution.

    Attributes:
        dataset: Index of its dataset in the recipe.
        captions: As given to the text encoder; several where tags are shuffled or each line of a file is one, each to
            be used as often.
        repeats: How many times it is seen in an epoch.
        caption_dropout: Share of the times that it is seen with an empty caption.
        window: Which stretch of a clip it is; None for a picture.
        regularises: Whether it is of a regularisation dataset, of which an epoch takes a set share.
    """

    dataset: int
    item: Item
    placement: Placement
    captions: tuple[str, ...]
    repeats: int
    caption_dropout: float
    window: Window | None = None
    regularises: bool = False


@dataclass(frozen=True)
class Unused:
    """A file that is not trained on, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class DataPlan:
    """What is trained on, what is held out for the evaluation loss, and what is not used.

    `train` and `validation` never share a picture or a clip. Held-out items have one caption, no repeats and no caption
    dropout.
    """

    train: list[TrainItem]
    validation: list[TrainItem]
    problems: list[Problem]
    unused: list[Unused]

    @property
    def unusable(self) -> list[Problem]:
        """The problems because of which an item cannot be used."""
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]


class DatasetPlan(DataPlan):
    """The plan of one dataset."""


def plan_datasets(
    sections: Sequence[DatasetSection],
    geometry: Geometry,
    seed: int,
    *,
    cache: MediaCache | None = None,
    progress: Progress | None = None,
) -> DataPlan:
    """The plan of all datasets of a recipe.

    A picture that one dataset holds out is not trained on by another either, as where two datasets are one folder.

    Args:
        seed: Decides which items are held out.
        cache: What is known of the files from the last time, and where to keep what is found out now.

    Raises:
        DatasetError: A folder cannot be used, items cannot be used in a dataset without `skip_unusable`, or nothing is
            left to train on.
    """
    plans = [
        plan_dataset(section, geometry, seed, dataset=i, cache=cache, progress=progress)
        for i, section in enumerate(sections)
    ]
    in_the_way = [
        problem
        for section, plan in zip(sections, plans, strict=True)
        for problem in plan.unusable
        if not section.skip_unusable
    ]
    if in_the_way:
        raise _unusable(in_the_way)
    held_out = {each.item.sha256 for plan in plans for each in plan.validation}
    train = [each for plan in plans for each in plan.train]
    taken_back = {each.item.path for each in train if each.item.sha256 in held_out}
    whole = DataPlan(
        train=[each for each in train if each.item.sha256 not in held_out],
        validation=[each for plan in plans for each in plan.validation],
        problems=[problem for plan in plans for problem in plan.problems],
        unused=[each for plan in plans for each in plan.unused]
        + [Unused(path, "another dataset holds the same picture out of training") for path in sorted(taken_back)],
    )
    for i, section in enumerate(sections):
        if not any(each.dataset == i for each in whole.train):
            raise _nothing_left(section.path, plans[i].unusable)
    return whole


def plan_dataset(
    section: DatasetSection,
    geometry: Geometry,
    seed: int = 0,
    *,
    dataset: int = 0,
    cache: MediaCache | None = None,
    progress: Progress | None = None,
    found: Scan | None = None,
) -> DatasetPlan:
    """The plan of one dataset, without the items that cannot be used: those are in `problems` with severity error.

    Args:
        found: What `scan_section` gave for this section, where it is known; the folder is looked at otherwise.

    Raises:
        DatasetError: The folder cannot be used, or no bucket fits a resolution or a number of frames.
    """
    found = found or scan_section(section, cache, progress)
    places = [_Places(geometry.buckets(resolution)) for resolution in dict.fromkeys(section.resolutions)]
    problems = list(found.problems)
    usable: dict[Path, tuple[Item, list[Window | None]]] = {}
    for item in found.items:
        windows, about = _windows(item, section, geometry)
        about += _about_caption(item, section)
        problems += about
        if not any(problem.severity is Severity.ERROR for problem in about):
            usable[item.path] = item, windows
    held_out = _held_out([item for item, _ in usable.values()], section.validation_share, seed)
    train: list[TrainItem] = []
    validation: list[TrainItem] = []
    for of_resolution in places:
        for item, windows in usable.values():
            captions = captions_of(item, section)
            placements = [of_resolution.place(item, window.frames if window else 1) for window in windows]
            problems += _about_placement(item, placements[0])
            for window, placement in zip(windows, placements, strict=True):
                each = TrainItem(
                    dataset,
                    item,
                    placement,
                    captions,
                    section.repeats * item.repeats,
                    section.caption_dropout,
                    window,
                    section.regularisation is not Regularisation.NONE,
                )
                if item.sha256 in held_out:
                    plain = _composed(_written(item, section)[0], section)
                    validation.append(replace(each, captions=(plain,), repeats=1, caption_dropout=0.0))
                else:
                    train.append(each)
    unused = _unused(found, problems, usable)
    return DatasetPlan(train, validation, problems, [Unused(path, why) for path, why in unused.items()])


def scan_section(section: DatasetSection, cache: MediaCache | None = None, progress: Progress | None = None) -> Scan:
    """Looks at the folder of a recipe's dataset. Raises DatasetError as `scan`."""
    return scan(
        section.path,
        section.recursive,
        progress,
        cache=cache,
        masks=section.masks,
        alpha_masks=section.alpha_masks,
        control=section.control,
        caption_per_line=section.caption_per_line,
    )


class _Places:
    """Placements in the buckets of one resolution; pictures of one size have the same."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = buckets
        self._known: dict[tuple[int, int, int], Placement] = {}

    def place(self, item: Item, frames: int) -> Placement:
        size = (item.width, item.height, frames)
        if size not in self._known:
            placed = place(item.width, item.height, self._buckets)
            self._known[size] = replace(placed, bucket=replace(placed.bucket, frames=frames))
        return self._known[size]


def _windows(item: Item, section: DatasetSection, geometry: Geometry) -> tuple[list[Window | None], list[Problem]]:
    """The stretches of an item that are trained on, and why there are none."""
    if not item.is_clip:
        return [None], []
    if geometry.fps is None:
        what = "It is a clip, and this base model trains on pictures only"
        remedy = "Move it out of the dataset, or set `skip_unusable = true`."
        return [], [Problem(Severity.ERROR, item.path, what, remedy)]
    from lorapod.data.windows import windows_for

    lengths = frame_buckets(section, geometry)
    mode, count = section.clip_windows, section.windows_per_clip
    windows = windows_for(item.seconds, lengths, geometry.fps, mode, count)
    if windows:
        return [*windows], []
    shortest = lengths[0]
    what = (
        f"Its {item.seconds:.2f} seconds are too short for {shortest} frames at {geometry.fps:g} a second, the least in "
        f"`frames`, which take more than {(shortest - 1) / geometry.fps:.2f}"
    )
    fitting = math.ceil(item.seconds * geometry.fps - _ROUNDING)
    fitting -= (fitting - 1) % geometry.frame_step
    remedy = f"Add {fitting} to `frames`, or take the clip out." if fitting > 0 else "Take the clip out."
    return [], [Problem(Severity.ERROR, item.path, what, remedy)]


def frame_buckets(section: DatasetSection, geometry: Geometry) -> list[int]:
    """Lengths in frames that clips of a dataset are cut to, shortest first.

    Raises:
        DatasetError: The base model does not take clips of such a length.
    """
    lengths = sorted(set(section.frames))
    for length in lengths:
        over = (length - 1) % geometry.frame_step
        if over:
            step = geometry.frame_step
            raise DatasetError(
                f"Clips cannot be cut to {length} frames",
                f"This base model takes one frame and then {step} at a time.",
                f"Write {length - over} or {length - over + step} into `frames`.",
            )
    return lengths


def _unused(found: Scan, problems: Sequence[Problem], usable: Mapping[Path, tuple[Item, object]]) -> dict[Path, str]:
    """Paths of which nothing is trained on, and why: the worst that is said of each."""
    used: set[Path | None] = {found.folder}
    for item, _ in usable.values():
        used |= {item.path, item.path.parent, item.caption_path, item.mask_path, *item.control_paths}
    unused: dict[Path, str] = {}
    for problem in sorted(problems, key=lambda problem: problem.rank):
        if problem.path not in used:
            unused.setdefault(problem.path, problem.what)
    return unused | dict.fromkeys(found.others, "neither media nor a caption")


def captions_of(item: Item, section: DatasetSection) -> tuple[str, ...]:
    """The captions that an item is trained with.

    With `caption_per_line` each line of its file is one. With `shuffle_tags`, each variant's order hangs on the caption and
    the variant's number alone, so that what is cached of it stays valid when other items or the seed change. Variants that
    come out alike are kept once.
    """
    written = _written(item, section)
    if section.shuffle_tags:
        written = [
            shuffled_tags(caption, section.keep_tags, random.Random(f"{caption}\0{i}"))
            for caption in written
            for i in range(section.caption_variants)
        ]
    return tuple(dict.fromkeys(_composed(caption, section) for caption in written))


def _written(item: Item, section: DatasetSection) -> list[str]:
    """The captions as they are written for an item, one at least; the first is what it is evaluated with."""
    return [*item.caption_lines] if section.caption_per_line and item.caption_lines else [item.caption or ""]


def _composed(caption: str, section: DatasetSection) -> str:
    return compose(caption, trigger_word=section.trigger_word, prefix=section.caption_prefix)


def _held_out(items: Sequence[Item], share: float, seed: int) -> set[str]:
    """SHA-256 of the pictures that are held out: those that rank first by a hash of their content.

    A picture's rank hangs on nothing but itself and the seed, so that adding others moves few across the line. Equal
    pictures go the same way.
    """
    if share == 0 or len(items) < FEWEST_TO_HOLD_OUT_FROM:
        return set()
    wanted = max(1, int(share * len(items) + 0.5))
    copies = Counter(item.sha256 for item in items)
    chosen: set[str] = set()
    count = 0
    for content in sorted(copies, key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest()):
        if count >= wanted or len(chosen) == len(copies) - 1:
            break
        chosen.add(content)
        count += copies[content]
    return chosen


def _about_caption(item: Item, section: DatasetSection) -> list[Problem]:
    if item.caption is None and not section.allow_missing_captions:
        remedy = "Write a .txt file of the same name beside it, or set `allow_missing_captions = true`."
        return [Problem(Severity.ERROR, item.path, "It has no caption file", remedy)]
    if item.caption is None and not _composed("", section):
        remedy = "Write a caption, or set a `trigger_word`."
        return [Problem(Severity.WARNING, item.path, "It is trained with an empty caption", remedy)]
    return []


def _about_placement(item: Item, placement: Placement) -> list[Problem]:
    problems = []
    if placement.lost_share >= MUCH_LOST:
        what = f"Cropping to {placement.bucket} cuts off {placement.lost_share:.0%} of it"
        problems.append(Problem(Severity.WARNING, item.path, what, "Crop it yourself to what matters in it."))
    if placement.upscale >= MUCH_ENLARGED:
        what = f"It is enlarged {placement.upscale:.1f} times to {placement.bucket}, which blurs it"
        remedy = "Use a larger original, or a lower resolution for this dataset."
        problems.append(Problem(Severity.WARNING, item.path, what, remedy))
    return problems


def _unusable(problems: Sequence[Problem]) -> DatasetError:
    lines = [f"{shown(problem.path)}: {problem.what}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"and {len(problems) - _LISTED} more")
    # What helps most comes first, as when all captions are missing and one picture is damaged.
    remedies = [remedy for remedy, _ in Counter(problem.remedy for problem in problems).most_common(3)]
    return DatasetError(
        f"{len(problems)} {'file' if len(problems) == 1 else 'files'} of the datasets cannot be used",
        "\n".join(lines),
        " ".join(remedies) + " Or set `skip_unusable = true` in the dataset to train without them.",
    )


def _nothing_left(folder: Path, unusable: Sequence[Problem]) -> DatasetError:
    if unusable:
        why = f"{len(unusable)} files cannot be used, beginning with {shown(unusable[0].path)}: {unusable[0].what}."
        return DatasetError(f"Nothing is left to train on in {shown(folder)}", why, unusable[0].remedy)
    return DatasetError(
        f"Nothing is left to train on in {shown(folder)}",
        "All of its pictures are held out of training by another dataset.",
        "Set `validation_share = 0` in the datasets that share these pictures, or remove one of them.",
    )
