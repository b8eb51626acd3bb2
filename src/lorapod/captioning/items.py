"""What of a dataset is to be captioned: each picture and clip by whose its caption is, before any is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lorapod.captioning.base import Kind
from lorapod.captioning.ledger import Ledgers, State
from lorapod.data.facts import Failure, facts_about
from lorapod.data.layouts import numbered_folders, read_metadata
from lorapod.data.media_cache import FileId, MediaCache
from lorapod.data.names import natural_key, shown
from lorapod.data.scan import list_folders
from lorapod.data.sidecars import match_captions, take_mask_labels
from lorapod.data.walk import Folder
from lorapod.data.walk import Kind as FileKind
from lorapod.errors import DatasetError, RequestError

NEW_CAPTION_EXTENSION = ".txt"
"""What every trainer reads without being told."""

_NO_READER = "Pictures of this format cannot be read; export it as PNG, JPEG or WebP"

Redo = Literal["missing", "failed", "all"] | Collection[str]
"""Which items are captioned: those without a caption; as well those that failed, or whose caption of ours is no good;
all but those of a hand; or the named ones."""

Unsound = Callable[["Subject", str], str | None]
"""Why a caption of ours is no good; None where it is."""


@dataclass(frozen=True)
class Subject:
    """One item that is captioned.

    Attributes:
        path: Absolute.
        caption: The file that its caption stands in, or will.
        width, height: In pixels, as displayed; 0 until it was looked at, as are `seconds` and `fps`.
        seconds: A clip's length; 0 of a picture.
    """

    path: Path
    kind: Kind
    caption: Path
    file: FileId
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    fps: float = 0.0

    def facts(self) -> dict[str, str]:
        """What is known about it, as words."""
        ratio = self.width / self.height if self.height else 1.0
        facts = {
            "name": self.path.stem,
            "folder": self.path.parent.name,
            "kind": self.kind,
            "width": str(self.width),
            "height": str(self.height),
            "shape": "wide" if ratio > 1.1 else "upright" if ratio < 0.91 else "square",
        }
        return facts | ({"seconds": f"{self.seconds:.1f}", "fps": f"{self.fps:.0f}"} if self.kind == "clip" else {})


@dataclass(frozen=True)
class Left:
    """An item that ends without a caption, and why (a sentence without a full stop)."""

    path: Path
    reason: str


@dataclass
class Plan:
    """A dataset by what becomes of its items, each list in natural order of paths.

    Attributes:
        ask: Are captioned.
        by_hand: Have captions that lorapod did not write, or that were changed since; they stay.
        ours: Have captions of ours, and were not asked for again.
        left: Cannot be captioned.
        skipped: Have no caption, and were not among those that were named.
        again: Of `ask`: failed in an earlier run, by their reasons.
        folders: In which media lie.
        damaged: Lines of ledgers that could not be read.
    """

    ask: list[Subject] = field(default_factory=list)
    by_hand: list[Path] = field(default_factory=list)
    ours: list[Path] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    again: list[Left] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    damaged: int = 0

    @property
    def total(self) -> int:
        """All items of the dataset."""
        return len(self.ask) + len(self.by_hand) + len(self.ours) + len(self.left) + len(self.skipped)


def media_folders(folder: Path, recursive: bool) -> list[Folder]:
    """The folders of a dataset, as a scan looks into them.

    Raises:
        DatasetError: The folder is missing, is a file, or cannot be read.
    """
    root = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - links in the path are the person's own names
    return list_folders(root, recursive, numbered_folders(root), [])[0]


def plan_captions(
    folder: Path,
    *,
    recursive: bool = False,
    redo: Redo = "missing",
    kinds: frozenset[Kind] = frozenset({"picture", "clip"}),
    captioner: str = "This captioner",
    unsound: Unsound | None = None,
) -> Plan:
    """What is to be captioned in a folder.

    Args:
        kinds: What the captioner can look at.
        captioner: Its name.
        unsound: With `redo` of `failed`: finds captions of ours that are no good.

    Raises:
        DatasetError: The folder is missing, cannot be read, or holds no picture and no clip.
        RequestError: A name in `redo` fits no item.
    """
    plan, ledgers = Plan(), Ledgers()
    names = None if isinstance(redo, str) else frozenset(redo)
    found: set[str] = set()
    for each in media_folders(folder, recursive):
        take_mask_labels(each)
        captions, _ = match_captions(each)
        described = read_metadata(each).captions
        users: dict[Path, Path] = {}
        for kind, file in _media(each):
            path = file.path
            caption = captions[path].path if path in captions else path.with_suffix(NEW_CAPTION_EXTENSION)
            subject, known = Subject(path, kind, caption, file), ledgers.of(path)
            state = known.state(caption)
            named = (names or frozenset()) & {path.name, path.stem, str(path)}
            found |= named
            if users.setdefault(caption, path) != path:
                plan.left.append(_shared(path, users[caption], caption))
            elif state is State.BY_HAND or (state is State.MISSING and path in described):
                plan.by_hand.append(path)
            elif state is State.OURS and not named and not _is_redone(redo, subject, unsound):
                plan.ours.append(path)
            elif names is not None and not named:
                plan.skipped.append(path)
            elif kind not in kinds:
                plan.left.append(Left(path, f"{captioner} does not look at {kind}s"))
            else:
                plan.ask.append(subject)
                if fault := known.fault(path):
                    plan.again.append(Left(path, fault.reason))
        if users:
            plan.folders.append(each.path)
        plan.left += [Left(path, _NO_READER) for path in each.paths(FileKind.UNREADABLE)]
    if names and names - found:
        raise RequestError(
            f"There is no item {', '.join(sorted(map(repr, names - found)))} in {shown(folder)}",
            "",
            "Give the names of pictures or clips, with or without their extension.",
        )
    if not plan.total:
        raise DatasetError(
            f"{shown(folder)} holds nothing to caption",
            "No file in it is a picture or a clip.",
            "Give another folder, or --recursive to look into its sub-folders too.",
        )
    plan.damaged = ledgers.damaged
    return plan


def look_at(subjects: Sequence[Subject], cache: MediaCache | None) -> list[Subject | Left]:
    """The subjects with their sizes and lengths, in order; those that cannot be opened, with the reason."""
    pictures = [each.file for each in subjects if each.kind == "picture"]
    clips = [each.file for each in subjects if each.kind == "clip"]
    facts = facts_about({"picture": pictures, "clip": clips}, cache, None)
    looked: list[Subject | Left] = []
    for each in subjects:
        fact = facts[each.kind][each.path]
        if isinstance(fact, Failure):
            looked.append(Left(each.path, fact.what))
            continue
        sizes = {"width": fact["width"], "height": fact["height"]}
        looked.append(replace(each, **sizes, seconds=fact.get("seconds", 0.0), fps=fact.get("fps", 0.0)))
    return looked


def _media(folder: Folder) -> list[tuple[Kind, FileId]]:
    found: Iterable[tuple[Kind, FileId]] = [
        *(("picture", file) for file in folder.files[FileKind.PICTURE]),
        *(("clip", file) for file in folder.files[FileKind.CLIP]),
    ]
    return sorted(found, key=lambda each: natural_key(each[1].path))


def _is_redone(redo: Redo, subject: Subject, unsound: Unsound | None) -> bool:
    if redo == "all":
        return True
    if redo != "failed" or unsound is None:
        return False
    return unsound(subject, subject.caption.read_text(encoding="utf-8").strip()) is not None


def _shared(path: Path, other: Path, caption: Path) -> Left:
    return Left(path, f"It would share its caption file {shown(caption.name)} with {shown(other.name)}; rename one")
