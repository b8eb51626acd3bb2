"""A review of captions: items one after the other, what was found about each, and changes that are on disk at once.

What is changed here is the person's own from then on and is never overwritten. It can be taken back, to the byte, as long as
the review lasts. How it looks is not covered: that is `cli.caption_review`'s, or a browser's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorapod.captioning.check import Looked
from lorapod.captioning.items import NEW_CAPTION_EXTENSION
from lorapod.data.captions import CAPTION_EXTENSIONS
from lorapod.data.scan import Item
from lorapod.errors import CaptionError
from lorapod.files import written_whole


@dataclass(frozen=True)
class Done:
    """One change of a caption file, for undo: its bytes, so that it comes back as it was.

    Attributes:
        items: Those whose caption it is, as they were.
        said: What was found about them.
    """

    path: Path
    before: bytes | None
    after: bytes
    items: tuple[Item, ...]
    said: dict[Path, list[str]]


def caption_file(item: Item) -> Path:
    """The file that an item's own caption stands in, or will. A metadata file, which says the captions of many, is never it:
    what stands beside an item counts over what metadata say of it."""
    if item.caption_path and item.caption_path.suffix.lower() in CAPTION_EXTENSIONS:
        return item.caption_path
    return item.path.with_suffix(NEW_CAPTION_EXTENSION)


@dataclass
class Review:
    """The items in the order in which they are shown, and what was done to them.

    Attributes:
        items: The suspicious first, then by name.
        said: What was found about each.
        unseen: Files that could not be made an item, and why.
        at: Number of the item that is shown.
    """

    items: list[Item]
    said: dict[Path, list[str]]
    unseen: list[str] = field(default_factory=list)
    at: int = 0
    kept: set[Path] = field(default_factory=set)
    done: list[list[Done]] = field(default_factory=list)

    @classmethod
    def of(cls, items: list[Item], looked: Looked) -> Review:
        said: dict[Path, list[str]] = {}
        for finding in looked.findings:
            said.setdefault(finding.path, []).append(finding.what)
        shown = {item.path for item in items}
        unseen = [f"{each.path.name}: {each.what}" for each in looked.findings if each.path not in shown]
        weights = {item.path: -looked.weight(item.path) for item in items}
        order = sorted(range(len(items)), key=lambda i: (weights[items[i].path], i))
        return cls([items[i] for i in order], {path: said[path] for path in said if path in shown}, unseen)

    @property
    def item(self) -> Item:
        return self.items[self.at]

    def keep(self) -> None:
        """The caption is fine; on to the next."""
        self.kept.add(self.item.path)
        self.at = min(self.at + 1, len(self.items))

    def skip(self) -> None:
        """On to the next, without a word on this one."""
        self.at = min(self.at + 1, len(self.items))

    def back(self) -> None:
        """To the one before."""
        self.at = max(0, self.at - 1)

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.items)

    def write(self, changes: list[tuple[Item, str]]) -> int:
        """Writes captions, each whole and with the lines that it has; gives how many are others than before.

        Raises:
            DiskError: One cannot be written; those before it are.
        """
        together: list[Done] = []
        for item, text in changes:
            lines = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
            target, after = caption_file(item), ("\n".join(lines) + "\n").encode()
            before = _bytes(target)
            if before == after:
                continue
            _write(target, after)
            same = tuple(each for each in self.items if each.path == item.path or caption_file(each) == target)
            said = {each.path: self.said.pop(each.path) for each in same if each.path in self.said}
            together.append(Done(target, before, after, same, said))
            if len(together) == 1:
                self.done.append(together)  # what was written can be undone also where the next cannot be written
            self._put(
                [replace(each, caption=" ".join(lines), caption_lines=lines, caption_path=target) for each in same]
            )
        return len(together)

    def _put(self, items: Sequence[Item]) -> None:
        """Items in place of those with the same path."""
        where = {item.path: index for index, item in enumerate(self.items)}
        for item in items:
            self.items[where[item.path]] = item

    def undo(self) -> str:
        """Takes the newest change back; says what was done."""
        if not self.done:
            return "There is nothing to undo."
        together, changed = self.done.pop(), []
        for each in reversed(together):
            if _bytes(each.path) != each.after:
                changed.append(each.path.name)
                continue
            if each.before is None:
                each.path.unlink()
            else:
                _write(each.path, each.before)
            self._put(each.items)
            self.said |= each.said
            self.at = self.items.index(each.items[0])
        if changed:
            return f"Changed meanwhile, so left as it is: {', '.join(changed)}"
        return "Undone."


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaptionError(
            f"{path.name} cannot be read", f"{error.strerror}.", "Check that you may read it."
        ) from error


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
