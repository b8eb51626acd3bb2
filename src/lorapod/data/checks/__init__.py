"""What a careful friend would say of datasets before anything is trained on them.

scan and plan say what cannot be used at all; here it is said what will disappoint: copies, blur, bars, cuts, captions
that are cut off, a trigger word here and there, one dataset that drowns another. Every check runs over the items once and
none opens a file that the cache knows the look of. Not checked: burnt-in text and watermarks, for which nothing
dependable and light is at hand; whether captions are true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapod.data.buckets import Geometry
from lorapod.data.checks.appearance import about_looks
from lorapod.data.checks.captions import about_captions
from lorapod.data.checks.together import about_amounts, about_copies
from lorapod.data.checks.tokens import TextLimit, limit_of
from lorapod.data.facts import Progress
from lorapod.data.look import Look, looks
from lorapod.data.media_cache import MediaCache
from lorapod.data.plan import DatasetPlan, plan_dataset, scan_section
from lorapod.data.scan import Item, Scan
from lorapod.data.walk import Problem, Severity
from lorapod.recipe.goals import Goal
from lorapod.recipe.schema import DatasetSection

__all__ = ["Checked", "Goal", "TextLimit", "check", "limit_of"]


@dataclass(frozen=True)
class Checked:
    """Datasets that were checked.

    Attributes:
        problems: Worst first; each is said once, also where several datasets share a folder.
        looks: Of all items that could be decoded.
    """

    sections: list[DatasetSection]
    scans: list[Scan]
    plans: list[DatasetPlan]
    looks: dict[Path, Look]
    problems: list[Problem]

    @property
    def items(self) -> list[Item]:
        """Every item once, whether it can be trained on or not."""
        return list({item.path: item for found in self.scans for item in found.items}.values())

    @property
    def trained_on(self) -> set[Path]:
        """Items that a training uses, those held out among them."""
        return {each.item.path for plan in self.plans for each in [*plan.train, *plan.validation]}

    @property
    def unusable(self) -> list[Problem]:
        """The problems because of which an item cannot be used."""
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]


def check(
    sections: Sequence[DatasetSection],
    geometry: Geometry,
    *,
    seed: int = 0,
    text: TextLimit | None = None,
    sightings: int | None = None,
    goal: Goal | None = None,
    cache: MediaCache | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Checks datasets, each alone and all together.

    Args:
        seed: The recipe's, which decides what is held out.
        text: What the base model reads of a caption; None where it is not known.
        sightings: Items that the training takes in all, None where it is not known.
        goal: What the training is for, which says how many items are few or many; None where it is not known.

    Raises:
        DatasetError: A folder cannot be used, or a resolution or a number of frames fits nothing.
    """
    scans = [scan_section(section, cache, progress) for section in sections]
    plans = [
        plan_dataset(section, geometry, seed, dataset=i, found=found)
        for i, (section, found) in enumerate(zip(sections, scans, strict=True))
    ]
    items = {item.path: item for found in scans for item in found.items}
    seen = looks(list(items.values()), cache, progress)
    problems = [problem for plan in plans for problem in plan.problems]
    problems += about_copies(scans, plans, seen)
    for section, found, plan in zip(sections, scans, plans, strict=True):
        problems += about_looks(plan, seen, geometry.fps)
        problems += about_captions(section, found, text)
    problems += about_amounts(sections, plans, sightings, goal)
    once = sorted(dict.fromkeys(problems), key=lambda problem: problem.rank)
    return Checked(list(sections), scans, plans, seen, once)
