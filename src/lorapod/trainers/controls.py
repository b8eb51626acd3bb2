"""Control pictures with external trainers: what they take of them, and where these lie in a run.

Beside a view's items they lie in a folder of their own, by the items' names, and where an item has several numbered. Some
names tell two items apart no longer then (`a` with several, and `a_1`), and trainers that take several look for what a name
begins with: for such views a list says which are whose. Previews are given theirs cut to their size, as the recipe says.
Not covered: control clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lorapod.data import Bucket, ControlPicture, Item, load_picture, place, probe, shown
from lorapod.errors import DatasetError, RequestError
from lorapod.files import write_text_whole, written_whole
from lorapod.models import Entry
from lorapod.recipe import Recipe, TrainerName
from lorapod.trainers.placing import place_media

if TYPE_CHECKING:
    from lorapod.trainers.data_view import ViewedItem

_MOST_NAMED = 20


def check_control(recipe: Recipe, entry: Entry, trainer: TrainerName) -> None:
    """Refuses a recipe that names control pictures which are not taken, or none where some are needed.

    Raises:
        RequestError: What it is, and which trainers can.
    """
    takes = entry.trainers[trainer].control
    keys = [f"datasets.{number}.control" for number, dataset in enumerate(recipe.datasets) if dataset.control]
    keys += ["previews.control"] if recipe.previews.control else []
    if keys and entry.control is None:
        raise RequestError(
            f"{entry.title} takes no control pictures",
            f"The recipe names some in `{keys[0]}`; the base model makes pictures of text alone.",
            "Leave it out, or choose a base model that edits.",
        )
    if keys and takes is None:
        raise RequestError(
            f"{trainer} does not train {entry.title} with control pictures",
            f"The recipe names some in `{keys[0]}`; {who_else(entry, trainer, given=True, left_out=False)} can.",
            "Leave it out, or change `trainer`.",
        )
    without = [dataset.path for dataset in recipe.datasets if not dataset.control]
    if not without or (entry.control != "needed" and (takes is None or not takes.least)):
        return
    remedy = "Put what each item was made from into a folder of its own, under the item's name, and set `control` to it"
    if entry.control == "needed":
        raise RequestError(
            f"{entry.title} edits pictures, and a dataset has none to start from",
            f"The dataset {without[0]} names no `control`.",
            f"{remedy}.",
        )
    who = who_else(entry, trainer, given=False, left_out=True)
    raise RequestError(
        f"{trainer} trains {entry.title} with control pictures alone",
        f"The dataset {without[0]} names no `control`; {who} can train it without.",
        f"{remedy}, or change `trainer`.",
    )


def who_else(entry: Entry, trainer: TrainerName, *, given: bool, left_out: bool) -> str:
    """Other trainers of a base model that train items with control pictures (`given`), without, or both at once."""
    named = []
    for name, support in entry.trainers.items():
        takes, needs = support.control is not None, bool(support.control and support.control.least)
        if name == TrainerName.BUILTIN:
            takes, needs = entry.control is not None, entry.control == "needed"
        if name != trainer and (takes or not given) and not (needs and left_out):
            named.append(name)
    return " and ".join(named) or "no trainer that lorapod knows"


def refuse_too_many(entry: Entry, trainer: TrainerName, items: Iterable[Item]) -> None:
    """Raises DatasetError where items have more control pictures than are taken, and names them."""
    takes = entry.trainers[trainer].control
    most = takes.most if takes else None
    found = [item for item in items if most is not None and len(item.controls) > most]
    if not found:
        return
    named = [f"{shown(item.path)}: {', '.join(shown(path.name) for path in item.control_paths)}" for item in found]
    more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    taken = "one control picture" if most == 1 else f"{most} control pictures"
    raise DatasetError(
        f"{trainer} takes {taken} an item of {entry.title}, and {len(found)} of the items have more",
        "\n".join([*named[:_MOST_NAMED], *more]),
        "Take away those that are not meant, or choose a base model that takes several.",
    )


def place_controls(items: Sequence[tuple[str, Item]], folder: Path) -> list[tuple[Path, ...]]:
    """Puts control pictures at their places; gives those of each item, in order.

    Args:
        items: With the name that each has in the view, without its extension; no two differ in their case alone.
    """
    taken = {stem.casefold() for stem, item in items if len(item.controls) == 1}
    found = []
    for stem, item in items:
        places = []
        for number, control in enumerate(item.controls):
            name = stem if len(item.controls) == 1 else _free(f"{stem}_{number}", taken)
            places.append(place_media(control, folder / f"{name}{control.path.suffix.lower()}"))
        found.append(tuple(places))
    return found


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 2
    while found.casefold() in taken:
        found, number = f"{name} {number}", number + 1
    taken.add(found.casefold())
    return found


def names_tell(items: Sequence[tuple[str, Item]]) -> bool:
    """Whether each item's control picture is found by its name, where it is looked for by what it begins with."""
    if any(len(item.controls) != 1 for _, item in items):
        return False
    stems = sorted(stem for stem, _ in items)
    held = set(stems)
    return not any(stem[:end] in held for stem in stems for end, mark in enumerate(stem) if mark in "._")


def write_list(path: Path, items: Sequence[ViewedItem]) -> None:
    """A JSON lines file as musubi-tuner reads it: picture, caption and control pictures of each item."""
    lines = []
    for each in items:
        controls = {f"control_path_{number}": str(control) for number, control in enumerate(each.controls)}
        line = {"image_path": str(each.path), "caption": each.captions[0], **controls}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_text_whole(path, "".join(f"{line}\n" for line in lines))


def preview_controls(recipe: Recipe, items: Sequence[ViewedItem], folder: Path) -> dict[int, tuple[Path, ...]]:
    """What previews start from, cut to their size and written to `folder`; by the number of the prompt.

    Those of `previews.control`, taken in turn; where there are none those of the item with that caption, else of the items
    in turn.

    Raises:
        DatasetError: A picture cannot be read.
        DiskError: One cannot be written.
    """
    chosen: dict[int, tuple[ControlPicture, ...]] = {}
    given = [_looked_at(path) for path in recipe.previews.control]
    having = [each for each in items if each.item.controls]
    of_caption = {caption: each.item for each in reversed(having) for caption in each.captions}
    for number, prompt in enumerate(recipe.previews.prompts):
        if given:
            chosen[number] = (given[number % len(given)],)
        elif having:
            chosen[number] = of_caption.get(prompt, having[number % len(having)].item).controls
    size = [Bucket(recipe.previews.width, recipe.previews.height)]
    found = {}
    for number, controls in chosen.items():
        paths = []
        for place_in_row, control in enumerate(controls):
            path = folder / f"{number:02d}-{place_in_row}.png"
            pixels = load_picture(control.path, place(control.width, control.height, size))
            with written_whole(path) as temporary:
                Image.fromarray(pixels).save(temporary, "PNG", compress_level=4)
            paths.append(path)
        found[number] = tuple(paths)
    return found


def _looked_at(path: Path) -> ControlPicture:
    info = probe(path)
    return ControlPicture(path, info.width, info.height, "")
