"""`lorapod caption review`: captions one by one beside their pictures; the suspicious ones first.

What is changed here is the person's own from then on and is never overwritten. Each change is on disk at once and can be
taken back as long as the review lasts.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lorapod.captioning.review import Review
from lorapod.errors import LorapodError, RequestError

if TYPE_CHECKING:
    from PIL import Image

    from lorapod.captioning.check import Looked
    from lorapod.data.scan import Item

Recaption = Callable[["Item", str], str]
"""Asks a captioner about an item once more, with a note; gives the new caption. Raises LorapodError."""

KEYS = (
    ("enter", "keep"), ("s", "skip"), ("b", "back"), ("e", "edit"), ("v", "$EDITOR"), ("r", "redo with a note"),
    ("u", "undo"), ("/", "replace"), ("o", "open"), ("q", "quit"),
)  # fmt: skip

_KEY_SECONDS = 0.05
_STILL_SIDE = 640
"""Pixels of the longer side of a clip's frame as it is drawn."""


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
        typer.echo(
            f"\n{seen} of {len(self.review.items)} kept, {changed} captions changed"
            + (", and on disk." if changed else ".")
        )

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
        console.print(escape("\n".join(item.caption_lines) or "(no caption)"), style="" if item.caption else "red")
        console.print()
        if self.message:
            console.print(f"[cyan]{escape(self.message)}[/]")
            self.message = ""
        keys = (f"[bold]{key}[/] {what}" for key, what in KEYS if key != "r" or self.recaption)
        console.print("  ".join(each.replace(" ", "\u00a0") for each in keys))

    def heed(self, key: str) -> bool:
        """Does what a key asks for; False to quit."""
        review = self.review
        match key:
            case "\r" | "\n" | " " | "k":
                review.keep()
            case "s" | "\x1b[C" | "\x1b[B":  # right, down
                review.skip()
            case "e":
                self._edited(self._typed(review.item.caption_lines or ("",)))
            case "v":
                self._edited(edited("\n".join(review.item.caption_lines)))
            case "r" if self.recaption and len(review.item.caption_lines) > 1:
                name = review.item.path.name
                self.message = f"It has several captions. Redo them with: lorapod caption … --variants … --redo {name}"
            case "r" if self.recaption:
                note = self.line("Note for the captioner", "")
                if note is not None:
                    self._edited(self.recaption(review.item, note))
            case "b" | "\x1b[D" | "\x1b[A":  # left, up
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

    def _typed(self, lines: Sequence[str]) -> str | None:
        """The lines of a caption as they are after typing, one after the other; None where one was given up."""
        typed = []
        for number, line in enumerate(lines, start=1):
            text = self.line("Caption" if len(lines) == 1 else f"Caption {number} of {len(lines)}", line)
            if text is None:
                return None
            typed.append(text)
        return "\n".join(typed)

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
        before = text + "\n"
        file.write_text(before, encoding="utf-8")
        try:
            ended = subprocess.run([*shlex.split(named), str(file)], check=False)
        except OSError as error:
            raise RequestError(f"The editor {named} cannot be started", f"{error.strerror}.", "Set EDITOR.") from error
        after = file.read_text(encoding="utf-8", errors="replace")
        return after if ended.returncode == 0 and after != before else None


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
    """Waits for a key: a letter, or what an arrow key sends. What was typed ahead counts; `typer.getchar` would drop it."""
    try:
        import termios
        import tty
    except ImportError:
        return typer.getchar()
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        key = os.read(terminal, 1)
        if key == b"\x1b":
            while not re.fullmatch(rb"\x1b(?:[\[O][0-9;?]*[A-Za-z~]|[^\[O])", key) and _more(terminal):
                key += os.read(terminal, 1)
        for _ in range((key[0] >= 0xC0) + (key[0] >= 0xE0) + (key[0] >= 0xF0) if key else 0):
            key += os.read(terminal, 1)
        return key.decode("utf-8", "replace").replace("\x1bO", "\x1b[")
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _more(terminal: int) -> bool:
    """Whether more bytes of a key come at once."""
    return bool(select.select([terminal], [], [], _KEY_SECONDS)[0])


def typed(title: str, text: str) -> str | None:
    """Asks for a line, with a text to begin from; None where it was given up. On a terminal that cannot move its cursor
    an empty line leaves the text as it is."""
    is_plain = os.environ.get("TERM", "dumb") == "dumb"
    try:
        if is_plain:
            shown = f"{title} (empty leaves it as it is): " if text else f"{title}: "
            return input(shown) or text
        from prompt_toolkit import prompt

        return prompt(f"{title}: ", default=text)
    except (KeyboardInterrupt, EOFError):
        return None


def review_in_terminal(items: list[Item], looked: Looked, recaption: Recaption | None) -> None:
    """The review with the keyboard."""
    Screen(Review.of(items, looked), key=pressed, line=typed, recaption=recaption).run()


__all__ = ["Review", "Screen", "review_in_terminal"]
