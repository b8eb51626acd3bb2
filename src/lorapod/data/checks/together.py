"""What is said of datasets as a whole: copies within and across them, how many items, how often each is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapod.data.duplicates import near_duplicates
from lorapod.data.look import Look
from lorapod.data.names import shown
from lorapod.data.plan import DatasetPlan
from lorapod.data.scan import Item, Scan
from lorapod.data.walk import Problem, Severity
from lorapod.recipe.goals import Goal
from lorapod.recipe.schema import DatasetSection

FEW_ITEMS = 5
"""A LoRA from fewer mostly learns these pictures."""

SEEN_TOO_OFTEN = 400
"""Sightings of one item in a training from which on it is learnt by heart, with the usual learning rates."""


@dataclass(frozen=True)
class Amounts:
    """How many items a goal wants: rules of thumb, from guides of several trainers that agree within a factor of two.

    Attributes:
        fewest, most: Below and above it is said.
        why_more, why_fewer: What to do about it.
    """

    fewest: int
    most: int
    why_more: str
    why_fewer: str


AMOUNTS = {
    Goal.CHARACTER: Amounts(
        10,
        100,
        "Add more, 15 to 30 in all, from other sides, in other clothes, light and places; what is alike in all of them "
        "is learnt as part of the character.",
        "Keep the best 15 to 50: a likeness is learnt from few good pictures, and each doubtful one blurs it.",
    ),
    Goal.STYLE: Amounts(
        20,
        1000,
        "Add more, 30 to 100 in all, of different subjects; with few, the subjects are learnt instead of the style.",
        "Keep those that show the style best, or train for more steps: each is seen seldom.",
    ),
    Goal.CONCEPT: Amounts(
        10,
        300,
        "Add more, 20 to 50 in all, with different people, places and views, so that the concept is all they share.",
        "Keep the clearest ones, or train for more steps: each is seen seldom.",
    ),
    Goal.MOTION: Amounts(
        8,
        200,
        "Add more, 10 to 40 clips in all, of the same motion by different subjects.",
        "Keep the clips in which the motion is whole and clear; decoding and training of each is dear.",
    ),
}

IMBALANCE = 5.0
"""How many times as often as another a dataset has to be seen for it to be said."""


def about_copies(scans: Sequence[Scan], plans: Sequence[DatasetPlan], looks: Mapping[Path, Look]) -> list[Problem]:
    """Items that are the same file in several datasets, or the same to the eye anywhere, each with its original."""
    items: dict[Path, Item] = {item.path: item for found in scans for item in found.items}
    home = {item.path: found.folder for found in reversed(scans) for item in found.items}
    held_out = {each.item.path for plan in plans for each in plan.validation}
    problems: list[Problem] = []
    first: dict[str, Item] = {}
    distinct: list[Item] = []
    for item in items.values():
        original = first.setdefault(item.sha256, item)
        if original is item:
            distinct.append(item)
        elif home[original.path] != home[item.path]:
            what = f"It is the same file as {_named(original, item, home)}, in another dataset"
            problems.append(Problem(Severity.WARNING, item.path, what, _REMEDY))
    compared = [item for item in distinct if item.path in looks]
    for group in near_duplicates([looks[item.path] for item in compared]):
        most_are_mirrored = 2 * len(group.mirrored) > len(group.members)
        odd = {i for i in group.members if (i in group.mirrored) != most_are_mirrored}
        best = min(group.members, key=lambda i: _rank(compared[i], i in odd))
        original = compared[best]
        for i in group.members:
            if i == best:
                continue
            item, mirrored = compared[i], (i in group.mirrored) != (best in group.mirrored)
            what = f"It looks the same as {_named(original, item, home)}{_difference(original, item, mirrored)}"
            if (item.path in held_out) != (original.path in held_out):
                what += "; one of the two is held out, so the evaluation loss looks better than it is"
            problems.append(Problem(Severity.WARNING, item.path, what, _REMEDY))
    return problems


_REMEDY = "Keep the better one; twins are learnt twice as strongly."


def about_amounts(
    sections: Sequence[DatasetSection], plans: Sequence[DatasetPlan], sightings: int | None, goal: Goal | None = None
) -> list[Problem]:
    """Too few or too many items, and datasets that drown others.

    Args:
        goal: What the training is for; None where it is not known, and only very few items are said.
        sightings: Items that the training takes in all, which is steps times items a step; None where it is not known.
    """
    problems: list[Problem] = []
    items = {each.item.path: each.item for plan in plans for each in [*plan.train, *plan.validation]}
    paths = items.keys()
    folder = sections[0].path
    if goal and items:
        problems += _for_goal(folder, goal, list(items.values()))
    elif 0 < len(paths) < FEW_ITEMS:
        what = f"There {'is' if len(paths) == 1 else 'are'} only {_items(len(paths))} to learn from"
        remedy = "Add more that differ, 15 to 30 for a character; from so few, these very pictures are learnt."
        problems.append(Problem(Severity.WARNING, folder, what, remedy))
    seen = [sum(each.repeats for each in plan.train) for plan in plans]
    total = sum(seen)
    if sightings and total:
        problems += _sightings(folder, sightings / total, total)
    by_folder: dict[Path, int] = {}
    for section, count in zip(sections, seen, strict=True):
        by_folder[section.path] = by_folder.get(section.path, 0) + count
    most = max(by_folder, key=lambda path: by_folder[path])
    for path, count in by_folder.items():
        if count and by_folder[most] >= IMBALANCE * count:
            what = f"It is seen {count} times in an epoch, {shown(most.name)} {by_folder[most]} times"
            times = round(by_folder[most] / count)
            remedy = f"Multiply its `repeats` by {times} if both matter alike, or leave it if it is an addition."
            problems.append(Problem(Severity.WARNING, path, what, remedy))
    return problems


def _for_goal(folder: Path, goal: Goal, items: Sequence[Item]) -> list[Problem]:
    """Too few or too many items for a goal; a motion is learnt from clips alone."""
    kind, count = "item", len(items)
    if goal is Goal.MOTION:
        kind, count = "clip", sum(item.is_clip for item in items)
    amounts = AMOUNTS[goal]
    many = f"{count} {kind}" if count == 1 else f"{count} {kind}s"
    if count < amounts.fewest:
        what = f"{many if count else f'No {kind}s'}: few for a {goal.value}, which wants {amounts.fewest} at least"
        return [Problem(Severity.WARNING, folder, what, amounts.why_more)]
    if count > amounts.most:
        what = f"{many}: many for a {goal.value}, which seldom gains from more than {amounts.most}"
        return [Problem(Severity.WARNING, folder, what, amounts.why_fewer)]
    return []


def _sightings(folder: Path, each: float, total: int) -> list[Problem]:
    if each < 1:
        what = f"The training ends before every item was seen: it takes {each:.0%} of an epoch of {total}"
        return [Problem(Severity.WARNING, folder, what, "Set more `steps`, or use fewer items.")]
    if each > SEEN_TOO_OFTEN:
        what = f"Each item is seen {each:.0f} times, repeats not counted, so it is likely learnt by heart"
        return [Problem(Severity.WARNING, folder, what, "Set fewer `steps`, or add items.")]
    return []


def _rank(item: Item, odd: bool) -> tuple[int, bool, bool]:
    """The best of copies, which the others are told to be copies of, comes first: the largest, not one that is turned
    otherwise than most, and not a JPEG."""
    return -item.width * item.height, odd, item.path.suffix.lower() in (".jpg", ".jpeg", ".webp")


def _difference(original: Item, item: Item, mirrored: bool) -> str:
    parts = ["mirrored"] if mirrored else []
    scale = max(original.width, original.height) / max(item.width, item.height)
    if scale > 1.1:
        parts.append(f"{scale:.1f} times smaller")
    elif scale < 0.9:
        parts.append(f"{1 / scale:.1f} times larger")
    elif not mirrored and (original.width, original.height) != (item.width, item.height):
        parts.append("cropped")
    return f" ({', '.join(parts or ['saved again'])})"


def _named(original: Item, item: Item, home: Mapping[Path, Path]) -> str:
    folder = home[original.path]
    name = shown(original.path.relative_to(folder) if original.path.is_relative_to(folder) else original.path)
    return name if home[item.path] == folder else f"{shown(folder.name)}/{name}"


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
