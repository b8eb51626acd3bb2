"""The folders of a session: what is in them, which trigger word their captions begin with, what is most worth fixing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorapod.captioning.items import Plan, plan_captions
from lorapod.data import MediaCache, shown
from lorapod.data.captions import CAPTION_EXTENSIONS, read_caption
from lorapod.errors import CaptionError, DatasetError
from lorapod.workspace import DATASET_FOLDERS, Workspace

if TYPE_CHECKING:
    from lorapod.data.facts import Progress

_WORST = 3
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


@dataclass(frozen=True)
class Contents:
    """What a folder, or several, hold.

    Attributes:
        captioned, bare: Media with and without captions.
    """

    folders: tuple[Path, ...] = ()
    pictures: int = 0
    clips: int = 0
    captioned: tuple[Path, ...] = ()
    bare: tuple[Path, ...] = ()

    @property
    def total(self) -> int:
        return len(self.captioned) + len(self.bare)

    def __str__(self) -> str:
        parts = [
            f"{count} {name}{'s' * (count != 1)}" for count, name in ((self.pictures, "picture"), (self.clips, "clip"))
        ]
        return " and ".join(part for part in parts if not part.startswith("0 ")) or "nothing to train on"


def contents_of(folders: Sequence[Path]) -> Contents:
    """What is in the folders; nothing where one holds no media.

    Raises:
        DatasetError: A folder is missing or cannot be read.
    """
    pictures = clips = 0
    captioned: list[Path] = []
    bare: list[Path] = []
    for folder in folders:
        plan = _plan(folder)
        with_caption = [*plan.by_hand, *plan.ours]
        without = [each.path for each in plan.ask]
        count = sum(each.suffix.lower() in _clip_extensions() for each in [*with_caption, *without])
        clips += count
        pictures += len(with_caption) + len(without) - count
        captioned += with_caption
        bare += without
    return Contents(tuple(folders), pictures, clips, tuple(captioned), tuple(bare))


def _clip_extensions() -> frozenset[str]:
    from lorapod.data.walk import CLIP_EXTENSIONS

    return CLIP_EXTENSIONS


def _plan(folder: Path) -> Plan:
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {shown(folder)}", "", "Give another one.")
    try:
        return plan_captions(folder)
    except DatasetError:
        if os.access(folder, os.R_OK | os.X_OK):
            return Plan()
        raise


def found_in(workspace: Workspace) -> list[Contents]:
    """The workspace's dataset folders that hold media, pictures' first."""
    found = []
    for name in DATASET_FOLDERS:
        folder = workspace.root / name
        if folder.is_dir():
            inside = contents_of([folder])
            found += [inside] if inside.total else []
    return found


def captions_of(contents: Contents, count: int = 3) -> list[tuple[str, str]]:
    """File name and caption of the first items that have one."""
    said = []
    for path in contents.captioned:
        text = _caption(path)
        if text:
            said.append((shown(path.name), text))
        if len(said) == count:
            break
    return said


def _caption(path: Path) -> str:
    for extension in CAPTION_EXTENSIONS:
        file = path.with_suffix(extension)
        if file.is_file():
            try:
                return read_caption(file)
            except CaptionError:
                return ""
    return ""


def shared_word(contents: Contents) -> str:
    """The word that nearly all captions hold and that begins most of them, if it is no word of every day; else empty."""
    begins: Counter[str] = Counter()
    holds: Counter[str] = Counter()
    read = 0
    for path in contents.captioned[:100]:
        words = [word.strip(".,;:!?()\"'") for word in _caption(path).split()]
        if words:
            read += 1
            begins[words[0]] += 1
            holds.update(set(words))
    word, _ = begins.most_common(1)[0] if begins else ("", 0)
    common = [each for each in holds if holds[each] >= 0.9 * read and each.lower() not in _EVERYDAY and len(each) > 2]
    if word in common:
        return word
    return common[0] if read >= 5 and len(common) == 1 else ""


_EVERYDAY = frozenset({
    "a", "an", "the", "this", "that", "photo", "image", "picture", "of", "in", "on", "at", "with", "and", "or", "is", "are",
    "to", "by", "from", "left", "right", "big", "small", "his", "her", "its", "man", "woman", "boy", "girl", "person",
    "people", "video", "clip", "standing", "sitting", "background", "white", "black",
})  # fmt: skip


def worst_of(
    contents: Contents,
    model: str,
    goal: str,
    trigger: str,
    workspace: Workspace,
    progress: Progress | None = None,
    size: int | None = None,
) -> tuple[frozenset[Path], list[str]]:
    """The items that cannot be trained on, and the three things most worth fixing, each a sentence with its remedy.

    Args:
        size: Side in pixels at which is trained; None for the base model's.
    """
    from lorapod.captioning.wishes import rules_of
    from lorapod.data.checks import Goal, check
    from lorapod.recipe import presets
    from lorapod.recipe.schema import DatasetSection

    geometry, text = rules_of(model, workspace)
    preset = presets.preset_for(model, workspace).get("dataset", {})
    preset = preset | ({"resolutions": [size]} if size else {})
    sections = [
        DatasetSection.model_validate(
            preset | {"path": folder, "trigger_word": trigger, "allow_missing_captions": True, "validation_share": 0}
        )
        for folder in contents.folders
    ]
    checked = check(
        sections,
        geometry,
        text=text,
        goal=Goal(goal) if goal else None,
        cache=MediaCache.of(workspace),
        progress=progress,
    )
    bare = set(contents.bare)
    kinds: dict[tuple[str, str], list[Path]] = {}
    whats: dict[tuple[str, str], str] = {}
    for problem in checked.problems:
        if problem.severity.value == "info" or (problem.path in bare and "caption" in problem.what):
            continue  # captions that are missing have a question of their own
        kind = (problem.severity.value, problem.remedy or problem.what)
        kinds.setdefault(kind, []).append(problem.path)
        whats.setdefault(kind, problem.what)
    said = []
    for (severity, remedy), paths in list(kinds.items())[:_WORST]:
        where = shown(paths[0].name) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        what = whats[severity, remedy].rstrip(".")
        said.append(f"{where}: {what}." + (f" {remedy}" if remedy != what else ""))
    return frozenset(problem.path for problem in checked.unusable), said
