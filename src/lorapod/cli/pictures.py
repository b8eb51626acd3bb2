"""Pictures in a terminal: kitty's graphics where the terminal has them, sixels where it says so, else coloured half blocks.

A terminal that is none gets nothing. Not covered: iTerm2's own protocol (recent versions have sixels).
"""

from __future__ import annotations

import base64
import io
import os
import select
import sys
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

Way = Literal["kitty", "sixel", "blocks", "none"]

_CELL = (9, 18)
"""Pixels of a character's cell; only how large a picture is drawn hangs on it."""


@cache
def best_way() -> Way:
    """How pictures can be drawn here."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return "none"
    if os.environ.get("KITTY_WINDOW_ID") or os.environ.get("TERM_PROGRAM") in ("WezTerm", "ghostty"):
        return "kitty"
    if not os.environ.get("TMUX") and _says_sixel():
        return "sixel"
    return "none" if os.environ.get("NO_COLOR") else "blocks"


def draw(picture: Path | Image.Image, columns: int, rows: int, way: Way | None = None) -> str:
    """A picture as what is to be written to the terminal; empty where it cannot be read or drawn."""
    chosen = way or best_way()
    if chosen == "none":
        return ""
    try:
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        with opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    under = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(under, image).convert("RGB")
    if chosen == "blocks":
        return _blocks(image, columns, rows)
    image.thumbnail((columns * _CELL[0], rows * _CELL[1]))
    return _kitty(image) if chosen == "kitty" else _sixel(image)


def _blocks(image: Image.Image, columns: int, rows: int) -> str:
    """Two pixels a cell, above each other: the upper one is the letter's colour, the lower one the ground's."""
    scale = min(columns / image.width, rows * 2 / image.height)
    width, height = max(1, round(image.width * scale)), max(2, round(image.height * scale) // 2 * 2)
    small = image.resize((width, height), Image.Resampling.BOX)
    pixels = small.tobytes()

    def colour(x: int, y: int) -> str:
        at = (y * width + x) * 3
        return f"{pixels[at]};{pixels[at + 1]};{pixels[at + 2]}"

    lines = []
    for y in range(0, height, 2):
        cells = "".join(f"\x1b[38;2;{colour(x, y)}m\x1b[48;2;{colour(x, y + 1)}m▀" for x in range(width))
        lines.append(cells + "\x1b[0m")
    return "\n".join(lines) + "\n"


def _kitty(image: Image.Image) -> str:
    """kitty's graphics protocol: PNG in pieces of 4096 characters of base64."""
    out = io.BytesIO()
    image.save(out, "PNG")
    data = base64.standard_b64encode(out.getvalue()).decode("ascii")
    pieces = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    written = []
    for number, piece in enumerate(pieces):
        head = "a=T,f=100," if number == 0 else ""
        written.append(f"\x1b_G{head}m={int(number + 1 < len(pieces))};{piece}\x1b\\")
    return "".join(written) + "\n"


def _sixel(image: Image.Image) -> str:
    """Sixels of 128 colours: bands of six rows, each colour of a band in runs of equal columns."""
    small = image.quantize(128)
    palette, width, height = small.getpalette() or [], small.width, small.height
    pixels = small.tobytes()
    used = sorted(set(pixels))
    parts = [f'\x1bPq"1;1;{width};{height}']
    for index in used:
        red, green, blue = (round(value * 100 / 255) for value in palette[index * 3 : index * 3 + 3])
        parts.append(f"#{index};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        rows = [pixels[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        for index in sorted(set(b"".join(rows))):
            bits = [sum((row[x] == index) << bit for bit, row in enumerate(rows)) for x in range(width)]
            parts.append(f"#{index}{_runs(bits)}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def _runs(bits: list[int]) -> str:
    out, at = [], 0
    while at < len(bits):
        end = at
        while end < len(bits) and bits[end] == bits[at]:
            end += 1
        letter = chr(63 + bits[at])
        out.append(f"!{end - at}{letter}" if end - at > 3 else letter * (end - at))
        at = end
    return "".join(out)


def _says_sixel() -> bool:
    """Asks the terminal what it is (primary device attributes); 4 among the answer's numbers means sixels."""
    try:
        import termios
        import tty
    except ImportError:
        return False
    if not sys.stdin.isatty():
        return False
    before = termios.tcgetattr(sys.stdin)
    answer = b""
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[c")
        sys.stdout.flush()
        while select.select([sys.stdin], [], [], 0.15)[0] and not answer.endswith(b"c"):
            answer += os.read(sys.stdin.fileno(), 64)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return b"4" in answer.removeprefix(b"\x1b[?").removesuffix(b"c").split(b";")
