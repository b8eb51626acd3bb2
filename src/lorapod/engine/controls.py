"""Control pictures of a job: what base models that edit are given beside each item, and beside each preview.

A dataset's are paired with its items by name, and cut as they are (`lorapod.data.placed_beside`). Previews are given the
recipe's `previews.control`, taken in turn by its prompts; where it names none, those of the items that are trained on: of
the item with that caption, else in turn. Their latents are cached by the file's bytes and its place. Not covered: clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorapod.data import (
    Bucket,
    ControlPicture,
    DataPlan,
    Placement,
    TrainItem,
    load_picture,
    place,
    placed_beside,
    probe,
    shown,
)
from lorapod.engine.families import TakesControl
from lorapod.errors import DatasetError, RequestError
from lorapod.files import sha256_of

if TYPE_CHECKING:
    from lorapod.engine.job import Job

_MOST_NAMED = 20


@dataclass(frozen=True)
class Control:
    """A control picture at the size at which it is given."""

    path: Path
    sha256: str
    placement: Placement

    def load(self) -> NDArray[np.uint8]:
        """Its pixels (h, w, 3).

        Raises:
            DatasetError: It cannot be read.
        """
        return load_picture(self.path, self.placement)


Controls = tuple[Control, ...]


def controls_of_item(item: TrainItem) -> Controls:
    """An item's control pictures, in order; none where it has none."""
    return tuple(
        Control(each.path, each.sha256, placed_beside(each.width, each.height, item.placement))
        for each in item.item.controls
    )


def refuse_controls(job: Job) -> None:
    """Looks at what the recipe says of control pictures.

    Raises:
        RequestError: The base model takes none and previews ask for one, or it needs them and a dataset names none.
        DatasetError: The base model takes none and a dataset names some.
    """
    family, datasets = job.family, job.recipe.datasets
    if not isinstance(family, TakesControl):
        for section in datasets:
            if section.control:
                raise DatasetError(
                    "This base model takes no control pictures",
                    f"The dataset {section.path} asks for `control`; the base model makes pictures of text alone.",
                    "Leave `control` out, or choose a base model that edits.",
                )
        _refuse_for_previews(job.recipe.previews.control)
        return
    for section in datasets:
        if family.control == "needed" and not section.control:
            raise RequestError(
                "This base model edits pictures, and a dataset has none to start from",
                f"The dataset {section.path} names no `control`.",
                "Put what each item was made from into a folder of its own, under the item's name, and set `control` to it.",
            )


def refuse_too_many(plan: DataPlan, family: TakesControl) -> None:
    """Raises DatasetError where items have more control pictures than the base model takes, and names them."""
    over = {item.item.path: item.item for item in [*plan.train, *plan.validation]}
    found = [item for item in over.values() if len(item.controls) > family.most_controls]
    if not found:
        return
    named = [f"{shown(item.path)}: {', '.join(shown(path.name) for path in item.control_paths)}" for item in found]
    more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    most = "one control picture" if family.most_controls == 1 else f"{family.most_controls} control pictures"
    raise DatasetError(
        f"This base model takes {most} an item, and {len(found)} of the items have more",
        "\n".join([*named[:_MOST_NAMED], *more]),
        "Take away those that are not meant, or choose a base model that takes several.",
    )


def given_controls(job: Job, prompts: Sequence[str]) -> dict[str, Controls]:
    """The control pictures of `previews.control` alone, by prompt; the recipe's datasets are not looked at.

    Raises:
        RequestError: The base model needs one and none is named, or one is named and it takes none.
        DatasetError: A picture cannot be read.
    """
    family, pictures = job.family, job.recipe.previews.control
    if not isinstance(family, TakesControl):
        _refuse_for_previews(pictures)
        return {}
    if not pictures:
        if family.control == "needed":
            raise RequestError(
                "This base model edits pictures, and none is given",
                "",
                "Name one to start from: lorapod sample … --control PICTURE",
            )
        return {}
    width, height, _ = job.preview_size
    chosen = [_given(path, [Bucket(width, height)]) for path in pictures]
    return {prompt: (chosen[number % len(chosen)],) for number, prompt in enumerate(prompts)}


def preview_controls(job: Job, prompts: Sequence[str]) -> dict[str, Controls]:
    """What each preview is given; nothing where the base model takes none, or may do without and the data have none.

    Raises:
        DatasetError: A picture of the recipe cannot be read.
    """
    if not isinstance(job.family, TakesControl) or job.recipe.previews.control:
        return given_controls(job, prompts)
    width, height, _ = job.preview_size
    bucket = [Bucket(width, height)]
    items = list({item.item.path: item for item in job.data.train if item.item.controls}.values())
    if not items:
        return {}
    of_caption = {caption: item for item in reversed(items) for caption in item.captions}
    return {
        prompt: tuple(
            _placed(control, bucket) for control in of_caption.get(prompt, items[number % len(items)]).item.controls
        )
        for number, prompt in enumerate(prompts)
    }


def _refuse_for_previews(pictures: Sequence[Path]) -> None:
    if pictures:
        raise RequestError(
            "This base model takes no control pictures",
            f"The previews are to start from {pictures[0]}.",
            "Leave `previews.control` (or `--control`) out, or choose a base model that edits.",
        )


def _given(path: Path, bucket: Sequence[Bucket]) -> Control:
    info = probe(path)
    return Control(path, sha256_of(path), place(info.width, info.height, bucket))


def _placed(control: ControlPicture, bucket: Sequence[Bucket]) -> Control:
    return Control(control.path, control.sha256, place(control.width, control.height, bucket))
