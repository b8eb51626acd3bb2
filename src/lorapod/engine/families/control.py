"""Control pictures as families see them: latents in the items of a batch, in the order in which they are given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorapod.engine.families.base import Conditions

_NAME = "control_{}"


def with_controls(entry: Conditions, controls: Sequence[Tensor]) -> Conditions:
    """A cached entry with the latents (c, 1, h, w) of its control pictures."""
    return entry | {_NAME.format(number): latents for number, latents in enumerate(controls)}


def controls_of(entry: Conditions) -> list[Tensor]:
    """The latents of an item's control pictures."""
    found: list[Tensor] = []
    while (name := _NAME.format(len(found))) in entry:
        found.append(entry[name])
    return found


def alike(items: Sequence[Conditions]) -> list[list[int]]:
    """Places of items that have control pictures of the same number and sizes, so that they fit into one tensor."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(tuple(tuple(each.shape) for each in controls_of(item)), []).append(place)
    return list(groups.values())
