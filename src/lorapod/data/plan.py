"""What a training sees of its datasets: which items, in which bucket, with which captions, and in which order.

A plan is a pure function of the files on disk and its arguments, and so is the order of an epoch: a run that is resumed
computes both again and finds its place. Pixels are not loaded here, and what is cached of them is the engine's.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorapod.data.buckets import Bucket, Geometry, Placement, place
from lorapod.data.captions import compose, shuffled_tags
from lorapod.data.names import shown
from lorapod.data.scan import Item, Progress, scan
from lorapod.data.walk import Problem, Severity
from lorapod.errors import DatasetError
from lorapod.recipe.schema import DatasetSection

FEWEST_TO_HOLD_OUT_FROM = 4
"""A dataset of fewer items is trained on whole: each of them is worth more than a noisy evaluation loss."""

MUCH_LOST = 0.25
"""Share cut off by cropping from which on the person is told."""

MUCH_ENLARGED = 2.0

_LISTED = 20


@dataclass(frozen=True)
class TrainItem:
    """One item at one resolution.

    Attributes:
        dataset: Index of its dataset in the recipe.
        captions: As given to the text encoder; several where tags are shuffled, each to be used as often.
        repeats: How many times it is seen in an epoch.
        caption_dropout: Share of the times that it is seen with an empty caption.
    """

    dataset: int
    item: Item
    placement: Placement
    captions: tuple[str, ...]
    repeats: int
    caption_dropout: float


@dataclass(frozen=True)
class Unused:
    """A file that is not trained on, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class DataPlan:
    """What is trained on, what is held out for the evaluation loss, and what is not used.

    `train` and `validation` never share a picture. Held-out items have one caption, no repeats and no caption dropout.
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


@dataclass(frozen=True)
class BucketSummary:
    """One bucket of a plan.

    Attributes:
        items: How many items of train and validation are in it.
        mean_lost_share: Mean share of a picture that cropping cuts off, 0..1.
        worst: The item that loses most.
        upscaled: How many items are enlarged.
    """

    bucket: Bucket
    items: int
    mean_lost_share: float
    worst: TrainItem
    upscaled: int


def plan_datasets(
    sections: Sequence[DatasetSection],
    geometry: Geometry,
    seed: int,
    *,
    skip_unusable: bool = False,
    progress: Progress | None = None,
) -> DataPlan:
    """The plan of all datasets of a recipe.

    A picture that one dataset holds out is not trained on by another either, as where two datasets are one folder.

    Args:
        seed: Decides which items are held out.
        skip_unusable: Go on without items that cannot be used; they stay in `problems` and `unused`.

    Raises:
        DatasetError: A folder cannot be used, items cannot be used and aren't skipped, or nothing is left to train on.
    """
    plans = [plan_dataset(section, geometry, seed, dataset=i, progress=progress) for i, section in enumerate(sections)]
    unusable = [problem for plan in plans for problem in plan.unusable]
    if unusable and not skip_unusable:
        raise _unusable(unusable)
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
            raise _nothing_left(section.path, unusable)
    return whole


def plan_dataset(
    section: DatasetSection,
    geometry: Geometry,
    seed: int = 0,
    *,
    dataset: int = 0,
    progress: Progress | None = None,
) -> DatasetPlan:
    """The plan of one dataset, without the items that cannot be used: those are in `problems` with severity error.

    Raises:
        DatasetError: The folder cannot be used, or no bucket fits a resolution.
    """
    found = scan(section.path, section.recursive, progress)
    buckets = [geometry.buckets(resolution) for resolution in dict.fromkeys(section.resolutions)]
    problems = list(found.problems)
    usable: list[Item] = []
    for item in found.items:
        about_caption = _about_caption(item, section)
        problems += about_caption
        if not any(problem.severity is Severity.ERROR for problem in about_caption):
            usable.append(item)
    held_out = _held_out(usable, section.validation_share, seed)
    train: list[TrainItem] = []
    validation: list[TrainItem] = []
    for of_resolution in buckets:
        for item in usable:
            placement = place(item.width, item.height, of_resolution)
            problems += _about_placement(item, placement)
            each = TrainItem(
                dataset, item, placement, captions_of(item, section), section.repeats, section.caption_dropout
            )
            if item.sha256 in held_out:
                plain = _composed(item.caption or "", section)
                validation.append(replace(each, captions=(plain,), repeats=1, caption_dropout=0.0))
            else:
                train.append(each)
    unused = {problem.path: problem.what for problem in problems if problem.severity is not Severity.WARNING}
    unused |= dict.fromkeys(found.others, "neither media nor a caption")
    used = {item.path for item in usable}
    unused |= {p.path: p.what for p in problems if p.severity is Severity.WARNING and p.path not in used | set(unused)}
    return DatasetPlan(train, validation, problems, [Unused(path, why) for path, why in unused.items()])


def captions_of(item: Item, section: DatasetSection) -> tuple[str, ...]:
    """The captions that an item is trained with.

    With `shuffle_tags`, each variant's order hangs on the caption and the variant's number alone, so that what is
    cached of it stays valid when other items or the seed change. Variants that come out alike are kept once.
    """
    caption = item.caption or ""
    if not section.shuffle_tags:
        return (_composed(caption, section),)
    variants = (
        shuffled_tags(caption, section.keep_tags, random.Random(f"{caption}\0{i}"))
        for i in range(section.caption_variants)
    )
    return tuple(dict.fromkeys(_composed(variant, section) for variant in variants))


def batches(train: Sequence[TrainItem], batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """The batches of one epoch, as indices into `train`; the same for the same arguments on every machine.

    Each item is in as many batches as it has repeats. All items of a batch share a bucket; where a bucket's items do
    not fill its last batch, that batch is short: nothing is dropped and nothing is seen twice to fill it.
    """
    rng = random.Random(f"{seed} {epoch}")
    by_bucket: dict[Bucket, list[int]] = {}
    for i, each in enumerate(train):
        by_bucket.setdefault(each.placement.bucket, []).extend([i] * each.repeats)
    portions: list[list[int]] = []
    for bucket in sorted(by_bucket):
        indices = by_bucket[bucket]
        rng.shuffle(indices)
        portions += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rng.shuffle(portions)
    return portions


def summary(plan: DataPlan) -> list[BucketSummary]:
    """What each bucket of a plan holds and what it costs, train and validation together, smallest bucket first."""
    by_bucket: dict[Bucket, list[TrainItem]] = {}
    for each in plan.train + plan.validation:
        by_bucket.setdefault(each.placement.bucket, []).append(each)
    return [
        BucketSummary(
            bucket=bucket,
            items=len(members),
            mean_lost_share=sum(each.placement.lost_share for each in members) / len(members),
            worst=max(members, key=lambda each: each.placement.lost_share),
            upscaled=sum(each.placement.upscale > 1 for each in members),
        )
        for bucket, members in sorted(by_bucket.items())
    ]


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
    if item.caption_path is None and not section.allow_missing_captions:
        remedy = "Write a .txt file of the same name beside it, or set `allow_missing_captions = true`."
        return [Problem(Severity.ERROR, item.path, "It has no caption file", remedy)]
    if item.caption_path is None and not _composed("", section):
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
        " ".join(remedies) + " Or let what cannot be used be skipped.",
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
