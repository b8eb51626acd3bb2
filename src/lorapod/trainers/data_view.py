"""Datasets as an external trainer reads them: folders in the run, media linked, captions beside them as trained on.

What lorapod.data makes of a dataset (its layout, sub-folders, trigger words, what is held out) is resolved here, so that a
trainer that lists one flat folder sees all of it, and its caches land in the run. The person's folders are only read. What
such trainers drop or turn in silence is made anew instead of linked: pictures and clips stored sideways, formats that they
do not list, pictures with several frames. Not covered: stretches of clips, which the trainers cut themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapod.data import DataPlan, Item, TrainItem, load_mask
from lorapod.data.fix import SANE_CLIPS, SANE_PICTURES, is_turned
from lorapod.data.names import shown
from lorapod.data.remake import placed, remake_clip, remake_picture
from lorapod.errors import DatasetError
from lorapod.files import disk_error, write_text_whole, written_whole
from lorapod.recipe.schema import DatasetSection
from lorapod.trainers.rendering import View

Progress = Callable[[int, int], None]

LIST_FILE = "items.json"
"""In the folder of all views: which of their files is which of the person's."""


@dataclass(frozen=True)
class ViewedItem:
    """One item of a view.

    Attributes:
        path: Its place in the view.
        captions: Several where tags are shuffled.
    """

    path: Path
    item: Item
    captions: tuple[str, ...]


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
        viewed = []
        for each, name in zip(items, _names(items), strict=True):
            viewed.append(ViewedItem(_place(each.item, path / name), each.item, each.captions))
            if masks and each.item.mask_path:
                _write_mask(each.item, section, masks / f"{Path(name).stem}.png")
            done += 1
            if progress:
                progress(done, total)
        _write_captions(path, viewed)
        _remove_others(path, viewed)
        views.append(View(dataset, kind, path, fps or None, repeats, masks, held_out, len(viewed)))
        contents.append(viewed)
        marks.append([dataset, kind, repeats, held_out, section.unmasked_weight if masks else None])
        marks.append([[v.path.name, v.item.sha256, v.captions, _hash_of(v.item.mask_path)] for v in viewed])
    listed = [{"view": str(v.path), "of": str(v.item.path)} for items in contents for v in items]
    write_text_whole(folder / LIST_FILE, json.dumps(listed, ensure_ascii=False, indent=1) + "\n")
    text = json.dumps(marks, ensure_ascii=False)
    return DataViews(views, contents, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


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


def _place(item: Item, target: Path) -> Path:
    """Puts an item at its place, linked where trainers read it as it is; gives the place."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.is_clip:
            if target.suffix in SANE_CLIPS and not _is_clip_turned(item):
                _link(item.path, target)
            else:
                target = target.with_suffix(".mp4")
                if not _is_made(item, target):
                    remake_clip(item, target, placed(item), (0.0, item.seconds), item.fps)
        elif target.suffix in SANE_PICTURES and not is_turned(item.path) and not _has_frames(item.path):
            _link(item.path, target)
        else:
            target = target.with_suffix(".png")
            if not _is_made(item, target):
                remake_picture(item, target, placed(item))
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _link(source: Path, target: Path) -> None:
    """A symbolic link, else a hard link, else a copy, as the file system allows."""
    if target.is_symlink():
        if str(target.readlink()) == str(source):
            return
        target.unlink()
    elif target.exists():
        if target.samefile(source):
            return
        target.unlink()
    try:
        target.symlink_to(source)
        return
    except (OSError, NotImplementedError):
        pass
    try:
        os.link(source.resolve(), target)
    except OSError:
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)


def _is_made(item: Item, target: Path) -> bool:
    """Whether the file was made of this item already."""
    return target.is_file() and not target.is_symlink() and target.stat().st_mtime >= item.path.stat().st_mtime


def _has_frames(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return bool(getattr(image, "n_frames", 1) > 1)


def _is_clip_turned(item: Item) -> bool:
    """Whether a clip's frames are stored otherwise than they are looked at: turned, or of pixels that are no squares."""
    import av

    try:
        with av.open(str(item.path)) as container:
            context = container.streams.video[0].codec_context
            return (context.width, context.height) != (item.width, item.height)
    except av.error.FFmpegError as error:
        raise DatasetError(
            f"The clip {shown(item.path)} cannot be opened any more", str(error), "Put it back, or take it out."
        ) from error


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


def _remove_others(folder: Path, items: list[ViewedItem]) -> None:
    """Removes what an earlier plan of this run left in a view: links and files that lorapod itself put there."""
    kept = {each.path.name for each in items} | {each.path.with_suffix(".txt").name for each in items}
    for path in folder.iterdir():
        if path.name not in kept and path.name != "captions.json" and (path.is_symlink() or path.is_file()):
            path.unlink()


def _hash_of(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
