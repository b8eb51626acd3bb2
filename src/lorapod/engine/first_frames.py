"""First frames that previews begin with, for base models that make a clip out of a picture.

They are the recipe's `previews.first_frames`, taken in turn by its prompts; where it names none and the base model needs
one, the first frames of the clips that are trained on. What the model is told of them is cached like an item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorapod.data import Bucket, Placement, TrainItem, load_item, load_picture, place, probe
from lorapod.engine.families import TakesFirstFrame
from lorapod.errors import RequestError
from lorapod.files import sha256_of

if TYPE_CHECKING:
    from lorapod.engine.job import Job


@dataclass(frozen=True)
class FirstFrame:
    """A picture, or the first frame of a clip's window, at the previews' size."""

    path: Path
    sha256: str
    placement: Placement
    clip: TrainItem | None = None

    def load(self) -> NDArray[np.uint8]:
        """Its pixels (h, w, 3).

        Raises:
            DatasetError: It cannot be read.
        """
        if self.clip is None:
            return load_picture(self.path, self.placement)
        assert self.clip.window is not None
        window = replace(self.clip.window, frames=1)
        frames = load_item(replace(self.clip, placement=self.placement, window=window))
        first: NDArray[np.uint8] = frames[0]
        return first


def first_frames(job: Job, width: int, height: int) -> list[FirstFrame]:
    """The first frames of a job's previews; none for a base model that takes none.

    Raises:
        RequestError: The recipe names some, and the base model cannot take them.
        DatasetError: A picture cannot be read.
    """
    family, pictures = job.family, job.recipe.previews.first_frames
    use = family.first_frame if isinstance(family, TakesFirstFrame) else "unknown"
    if use == "unknown":
        if pictures:
            raise RequestError(
                "This base model cannot begin a clip with a given picture",
                f"`previews.first_frames` names {pictures[0]}.",
                "Leave `previews.first_frames` out, or train an image-to-clip base model.",
            )
        return []
    bucket = [Bucket(width, height)]
    found = []
    for path in pictures:
        info = probe(path)
        found.append(FirstFrame(path, sha256_of(path), place(info.width, info.height, bucket)))
    if found or use == "taken":
        return found
    clips = list({each.item.path: each for each in job.data.train}.values())[: max(1, len(job.preview_prompts()))]
    return [
        FirstFrame(each.item.path, each.item.sha256, place(each.item.width, each.item.height, bucket), each)
        for each in clips
    ]
