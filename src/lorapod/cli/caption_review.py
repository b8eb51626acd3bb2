"""`lorapod caption review`: captions one by one beside their pictures; the suspicious ones first.

What is changed here is the person's own from then on and is never overwritten. Each change is on disk at once and can be
taken back as long as the review lasts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lorapod.errors import CaptionError, LorapodError, RequestError

if TYPE_CHECKING:
    from PIL import Image

    from lorapod.captioning.check import Looked
    from lorapod.data.scan import Item

Recaption = Callable[["Item", str], str]
"""Asks a captioner about an item once more, with a note; gives the new caption. Raises LorapodError."""

KEYS = (
    ("enter", "keep"), ("e", "edit"), ("v", "$EDITOR"), ("r", "redo with a note"), ("b", "back"), ("u", "undo"),
    ("/", "search and replace"), ("o", "open"), ("q", "quit"),
)  # fmt: skip


_STILL_SIDE = 640
"""Pixels of the longer side of a clip's frame as it is drawn."""


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
    from lorapod.captioning.items import NEW_CAPTION_EXTENSION
    from lorapod.data.captions import CAPTION_EXTENSIONS

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

    def back(self) -> None:
        """To the one before."""
        self.at = max(0, self.at - 1)

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.items)

    def write(self, changes: list[tuple[Item, str]]) -> int:
        """Writes captions, each whole; gives how many are others than before.

        Raises:
            DiskError: One cannot be written; those before it are.
        """
        together: list[Done] = []
        for item, text in changes:
            target, after = caption_file(item), (" ".join(text.split()) + "\n").encode()
            before = _bytes(target)
            if before == after:
                continue
            _write(target, after)
            same = tuple(each for each in self.items if each.path == item.path or caption_file(each) == target)
            said = {each.path: self.said.pop(each.path) for each in same if each.path in self.said}
            together.append(Done(target, before, after, same, said))
            if len(together) == 1:
                self.done.append(together)  # what was written can be undone also where the next cannot be written
            self._put([replace(each, caption=after.decode().strip(), caption_path=target) for each in same])
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
    from lorapod.files import written_whole

    with written_whole(path) as temporary:
        temporary.write_bytes(content)


class Screen:
    """The review on a terminal.

    Args:
        key: Waits for one key.
        line: Asks for a line of text, with a text to begin from; None where it was given up.
        recaption: None where no captioner was named.
    """

    def __init__(
        self,
        review: Review,
        *,
        key: Callable[[], str],
        line: Callable[[str, str], str | None],
        recaption: Recaption | None = None,
        size: Callable[[], tuple[int, int]] = lambda: tuple(shutil.get_terminal_size()),  # type: ignore[assignment,return-value]
    ) -> None:
        self.review, self.key, self.line, self.recaption, self.size = review, key, line, recaption, size
        self.message = ""

    def run(self) -> None:
        """Shows items until all were seen or the person quits."""
        from lorapod.data.names import shown

        while not self.review.is_over:
            self.show()
            try:
                if not self.heed(self.key()):
                    break
            except (KeyboardInterrupt, EOFError):
                break
            except LorapodError as error:
                self.message = f"{error.what}. {error.to_hint()}"
        for each in self.review.unseen:
            typer.echo(f"Not shown: {shown(each)}", err=True)
        changed = sum(len(each) for each in self.review.done)
        seen = len(self.review.kept)
        typer.echo(f"\n{seen} of {len(self.review.items)} kept, {changed} captions changed. They are on disk.")

    def show(self) -> None:
        """Draws the screen."""
        from rich.console import Console
        from rich.markup import escape

        from lorapod.cli.pictures import draw
        from lorapod.data.names import shown

        review, item = self.review, self.review.item
        columns, lines = self.size()
        console = Console(highlight=False, width=columns)
        if console.is_terminal:
            console.clear()
        facts = f"{item.width} x {item.height}" + (f", {item.seconds:.1f} s" if item.is_clip else "")
        console.print(f"[bold]{review.at + 1} of {len(review.items)}  {escape(shown(item.path.name))}[/]  {facts}")
        for what in review.said.get(item.path, [])[:3]:
            console.print(f"[yellow]! {escape(what)}[/]")
        rows = max(4, lines - 10 - len(item.caption or "") // max(20, columns))
        picture = draw(_still(item), min(columns, 76), rows)
        if picture:
            console.file.write(picture)
        console.print()
        console.print(escape(item.caption or "(no caption)"), style="" if item.caption else "red")
        console.print()
        if self.message:
            console.print(f"[cyan]{escape(self.message)}[/]")
            self.message = ""
        console.print("  ".join(f"[bold]{key}[/] {what}" for key, what in KEYS if key != "r" or self.recaption))

    def heed(self, key: str) -> bool:
        """Does what a key asks for; False to quit."""
        review = self.review
        match key:
            case "\r" | "\n" | " " | "s" | "k":
                review.keep()
            case "e":
                self._edited(self.line("Caption", review.item.caption or ""))
            case "v":
                self._edited(edited(review.item.caption or ""))
            case "r" if self.recaption:
                note = self.line("Note for the captioner", "")
                if note is not None:
                    self._edited(self.recaption(review.item, note))
            case "b":
                review.back()
            case "u":
                self.message = review.undo()
            case "/":
                self._replace()
            case "o":
                typer.launch(str(review.item.path))
            case "q" | "\x03" | "\x04" | "":
                return False
            case _:
                self.message = "That key does nothing here."
        return True

    def _edited(self, text: str | None) -> None:
        if text is None or not text.strip():
            self.message = "Nothing was changed."
            return
        self.message = "Changed." if self.review.write([(self.review.item, text)]) else "Nothing was changed."

    def _replace(self) -> None:
        from lorapod.captioning.replace import plan_replacement

        search = self.line("Search for the word or words", "")
        if not search:
            return
        replacement = self.line(f"In place of “{search}” (empty to take it out)", "")
        if replacement is None:
            return
        changes = plan_replacement(self.review.items, search, replacement)
        if not changes:
            self.message = f"No caption holds “{search}”."
            return
        for change in changes[:5]:
            typer.echo(f"- {change.before}\n+ {change.after}")
        more = f" (5 of {len(changes)} are shown)" if len(changes) > 5 else ""
        typer.echo(f"Change {len(changes)} captions{more}? y or n")
        if self.key().casefold() == "y":
            count = self.review.write([(change.item, change.after) for change in changes])
            self.message = f"{count} captions changed; u takes all of it back."
        else:
            self.message = "Nothing was changed."


def edited(text: str) -> str | None:
    """A text as the person's own editor leaves it ($VISUAL, else $EDITOR, else nano or vi); None where it was not saved.

    Raises:
        RequestError: There is no editor.
    """
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or shutil.which("nano") or shutil.which("vi")
    if not named:
        raise RequestError("There is no editor", "Neither VISUAL nor EDITOR is set.", "Edit here with e.")
    with tempfile.TemporaryDirectory(prefix="lorapod-caption-") as folder:
        file = Path(folder) / "caption.txt"
        file.write_text(text + "\n", encoding="utf-8")
        before = file.stat().st_mtime_ns
        try:
            subprocess.run([*shlex.split(named), str(file)], check=False)
        except OSError as error:
            raise RequestError(f"The editor {named} cannot be started", f"{error.strerror}.", "Set EDITOR.") from error
        return file.read_text(encoding="utf-8") if file.stat().st_mtime_ns != before else None


def _still(item: Item) -> Path | Image.Image:
    """A picture of an item: itself, or the first frame of a clip."""
    if not item.is_clip:
        return item.path
    from PIL import Image

    from lorapod.data.clips import clip_frames, probe_clip

    try:
        _, frame = next(clip_frames(item.path, probe_clip(item.path), _STILL_SIDE))
    except (LorapodError, StopIteration):
        return item.path
    return Image.fromarray(frame)


def pressed() -> str:
    """Waits for a key. What was typed ahead counts, which `typer.getchar` would drop."""
    try:
        import termios
        import tty
    except ImportError:
        return typer.getchar()
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        return os.read(terminal, 1).decode("utf-8", "replace")
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def review_in_terminal(items: list[Item], looked: Looked, recaption: Recaption | None) -> None:
    """The review with the keyboard."""
    from prompt_toolkit import prompt

    def line(title: str, text: str) -> str | None:
        try:
            return prompt(f"{title}: ", default=text)
        except (KeyboardInterrupt, EOFError):
            return None

    Screen(Review.of(items, looked), key=pressed, line=line, recaption=recaption).run()


__all__ = ["Review", "Screen", "review_in_terminal"]
