"""Captions: reading them from their files, putting trigger word and prefix before them, shuffling their tags.

Writing captions is not covered here; a caption is its file on disk and nothing in this module changes one.
"""

from __future__ import annotations

import codecs
import random
import re
from dataclasses import dataclass
from pathlib import Path

from lorapod.data.names import shown
from lorapod.errors import CaptionError

CAPTION_EXTENSIONS = (".txt", ".caption")
"""In order of preference where a picture has both."""

MAX_CAPTION_BYTES = 1 << 20
"""No text encoder takes a hundredth of this; a larger file is something else under a caption's name."""

_UTF8_REMEDY = "Open it in an editor and save it as UTF-8."


@dataclass(frozen=True)
class CaptionFile:
    """What a caption file says.

    Attributes:
        lines: Those that hold text.
    """

    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its lines, joined by a space."""
        return " ".join(self.lines)


def read_caption(path: Path) -> str:
    """The caption in a UTF-8 file, with or without a byte order mark; several lines are joined by a space.

    Raises:
        CaptionError: As `read_caption_file`.
    """
    return read_caption_file(path).text


def read_caption_file(path: Path) -> CaptionFile:
    """As `read_caption`, line by line. Line ends of every system count as such.

    Raises:
        CaptionError: The file cannot be opened, is far too large, or is not UTF-8 text.
    """
    name = shown(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        raise CaptionError(
            f"The caption file {name} cannot be opened",
            f"{error.strerror or error}.",
            "Check that it is there and that you may read it.",
        ) from error
    if len(raw) > MAX_CAPTION_BYTES:
        raise CaptionError(
            f"The caption file {name} is too large",
            f"It has more than {MAX_CAPTION_BYTES} bytes, so it is hardly a caption.",
            "Move it out of the dataset, or put the caption alone into it.",
        )
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CaptionError(
            f"The caption file {name} is not UTF-8", "Bytes 0 and 1 say that it is UTF-16.", _UTF8_REMEDY
        )
    mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        position = mark + error.start
        raise CaptionError(
            f"The caption file {name} is not UTF-8",
            f"Byte {position} (0x{raw[position]:02x}) does not belong to UTF-8 text.",
            _UTF8_REMEDY,
        ) from error
    if "\0" in text:
        raise CaptionError(
            f"The caption file {name} is not UTF-8 text",
            f"Byte {raw.index(0)} is zero, as in UTF-16 or in a file that is no text.",
            _UTF8_REMEDY,
        )
    return CaptionFile(tuple(line.strip() for line in text.splitlines() if line.strip()))


def compose(caption: str, *, trigger_word: str, prefix: str) -> str:
    """Trigger word, prefix and caption as one text: `trigger, prefix caption`.

    The trigger word is left out where the prefix or the caption holds it already as a whole word. Upper and lower case
    count: the trigger word `Will` is not taken for said by "he will". Runs of spaces or commas become one.
    """
    trigger = _tidied(trigger_word)
    body = " ".join(part for part in (_spaced(prefix), _tidied(caption)) if part)
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", body):
        return _tidied(body)
    return _tidied(f"{trigger}, {body}")


def shuffled_tags(caption: str, keep: int, rng: random.Random) -> str:
    """The caption with its comma-separated tags shuffled; the first `keep` stay where they are."""
    tags = [tag for tag in (_spaced(tag) for tag in caption.split(",")) if tag]
    tail = tags[keep:]
    rng.shuffle(tail)
    return ", ".join(tags[:keep] + tail)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _tidied(text: str) -> str:
    """One space at most between words, one comma at most between tags, neither at the ends."""
    one_comma = re.sub(r"\s*,(?:\s*,)*", ",", _spaced(text))
    return one_comma.strip(", ")
