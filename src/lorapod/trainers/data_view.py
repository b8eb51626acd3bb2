"""Datasets as an external trainer reads them: folders in the run, media linked, captions beside them as trained on.

What lorapod.data makes of a dataset (its layout, sub-folders, trigger words, what is held out) is resolved here, so that a
trainer that lists one flat folder sees all of it, and its caches land in the run. The person's folders are only read; how
files are put at their places is `lorapod.trainers.placing`. Masks and control pictures get folders beside the view's. Not
covered: stretches of clips, which the trainers cut themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapod.data import DataPlan, Item, TrainItem, load_mask
from lorapod.data.remake import placed
from lorapod.files import write_text_whole, written_whole
from lorapod.recipe.schema import DatasetSection
from lorapod.trainers.controls import names_tell, place_controls, write_list
from lorapod.trainers.placing import place_media
from lorapod.trainers.rendering import View, control_folder

Progress = Callable[[int, int], None]

LIST_FILE = "items.json"
"""In the folder of all views: which of their files is which of the person's."""


@dataclass(frozen=True)
class ViewedItem:
    """One item of a view.

    Attributes:
        path: Its place in the view.
        captions: Several where tags are shuffled.
        controls: Places of its control pictures, in order.
    """

    path: Path
    item: Item
    captions: tuple[str, ...]
    controls: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DataViews:
    """All views of a run.

    Attributes:
        items: By view, in the order of `views`.
        fingerprint: Changes with anything that is trained on: files, captions, repeats, what is held out.
    """

    views: list[View]
    items: list[list[ViewedItem]]
    fingerprint: str


def build_views(
    plan: DataPlan,
    sections: list[DatasetSection],
    folder: Path,
    progress: Progress | None = None,
    *,
    one_rate: bool = False,
) -> DataViews:
    """Makes the views of a plan in `folder`, or brings those that are there up to date; caches in them stay.

    Args:
        one_rate: Put clips of different frame rates into different views.

    Raises:
        DatasetError: A file cannot be read any more.
        DiskError: A view cannot be written.
    """
    groups = _groups(plan, one_rate)
    total, done = sum(len(items) for items in groups.values()), 0
    views: list[View] = []
    contents: list[list[ViewedItem]] = []
    marks: list[object] = []
    for (dataset, kind, repeats, held_out, fps), items in groups.items():
        section = sections[dataset]
        path = folder / _name(dataset, section, kind, repeats, held_out, fps)
        masks = path.with_name(f"{path.name}-masks") if any(each.item.mask_path for each in items) else None
        names = list(_names(items))
        controls, listed, beside = _controls(items, names, path)
        viewed = []
        for each, name, own in zip(items, names, beside, strict=True):
            viewed.append(ViewedItem(place_media(each.item, path / name), each.item, each.captions, own))
            if masks and each.item.mask_path:
                _write_mask(each.item, section, masks / f"{Path(name).stem}.png")
            done += 1
            if progress:
                progress(done, total)
        _write_captions(path, viewed)
        captions = [each.path.with_suffix(".txt").name for each in viewed]
        _remove_others(path, {*captions, "captions.json", *(each.path.name for each in viewed)})
        if listed:
            write_list(listed, viewed)
        views.append(View(dataset, kind, path, fps or None, repeats, masks, held_out, len(viewed), controls, listed))
        contents.append(viewed)
        marks.append([dataset, kind, repeats, held_out, section.unmasked_weight if masks else None])
        marks.append([[v.path.name, v.item.sha256, v.captions, _hash_of(v.item.mask_path)] for v in viewed])
        if controls:
            marks.append([[control.sha256 for control in v.item.controls] for v in viewed])
    origins = [{"view": str(v.path), "of": str(v.item.path)} for items in contents for v in items]
    write_text_whole(folder / LIST_FILE, json.dumps(origins, ensure_ascii=False, indent=1) + "\n")
    text = json.dumps(marks, ensure_ascii=False)
    return DataViews(views, contents, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def _controls(
    items: list[TrainItem], names: list[str], view: Path
) -> tuple[Path | None, Path | None, list[tuple[Path, ...]]]:
    """Puts the control pictures of a view's items beside it; gives their folder, their list where one is needed, and those
    of each item."""
    named = [(Path(name).stem, each.item) for each, name in zip(items, names, strict=True)]
    if not any(item.controls for _, item in named):
        return None, None, [()] * len(items)
    folder = control_folder(view)
    listed = folder.with_name(f"{folder.name}.jsonl")
    beside = place_controls(named, folder)
    _remove_others(folder, {path.name for paths in beside for path in paths})
    return folder, None if names_tell(named) else listed, beside


_Group = tuple[int, Literal["picture", "clip"], int, bool, float]


def _groups(plan: DataPlan, one_rate: bool) -> dict[_Group, list[TrainItem]]:
    """Items by dataset, kind, repeats, whether they are held out, and frames a second where clips of one view have the
    same (else 0); an item that has several resolutions once."""
    groups: dict[_Group, dict[Path, TrainItem]] = {}
    for held_out, items in ((False, plan.train), (True, plan.validation)):
        for each in items:
            kind: Literal["picture", "clip"] = "clip" if each.item.is_clip else "picture"
            fps = round(each.item.fps, 3) if one_rate and each.item.is_clip else 0.0
            key: _Group = (each.dataset, kind, each.repeats, held_out, fps)
            groups.setdefault(key, {}).setdefault(each.item.path, each)
    return {key: list(groups[key].values()) for key in sorted(groups)}


def _name(dataset: int, section: DatasetSection, kind: str, repeats: int, held_out: bool, fps: float) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in section.path.name)[:60] or "dataset"
    more = f"-x{repeats}" if repeats != section.repeats and not held_out else ""
    rate = f"-{fps:g}fps" if fps else ""
    return f"{dataset}-{safe}-{kind}s{rate}{more}{'-held-out' if held_out else ''}"


def _names(items: list[TrainItem]) -> Iterable[str]:
    """File names in one flat folder, of which no two differ in their extension or case alone."""
    taken: set[str] = set()
    for each in items:
        base = each.item.path.stem
        stem, number = base, 2
        while stem.casefold() in taken:
            stem, number = f"{base} {number}", number + 1
        taken.add(stem.casefold())
        yield f"{stem}{each.item.path.suffix.lower()}"


def _write_mask(item: Item, section: DatasetSection, target: Path) -> None:
    """The mask at the item's size; what is black in it weighs `unmasked_weight`, which trainers that have no such option
    read out of its grey."""
    from PIL import Image

    assert item.mask_path is not None
    pixels = load_mask(item.mask_path, placed(item), from_alpha=item.mask_path == item.path)
    least = section.unmasked_weight
    grey = (least * 255 + pixels * (1 - least)).round().clip(0, 255).astype("uint8")
    with written_whole(target) as temporary:
        Image.fromarray(grey).save(temporary, "PNG", compress_level=4)


def _write_captions(folder: Path, items: list[ViewedItem]) -> None:
    """A text file an item; where tags are shuffled also `captions.json`, which gives several captions of one item."""
    for each in items:
        _write_if_new(each.path.with_suffix(".txt"), each.captions[0] + "\n")
    several = folder / "captions.json"
    if any(len(each.captions) > 1 for each in items):
        held = {each.path.name: list(each.captions) for each in items}
        _write_if_new(several, json.dumps(held, ensure_ascii=False, indent=1) + "\n")
    else:
        several.unlink(missing_ok=True)


def _write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text_whole(path, text)


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Removes what an earlier plan of this run left in a view: links and files that lorapod itself put there."""
    for path in folder.iterdir():
        if path.name not in kept and (path.is_symlink() or path.is_file()):
            path.unlink()


def _hash_of(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
