"""Pictures in a labelled grid, one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _FAINT = (252, 252, 250), (30, 30, 34), (120, 120, 126)
_GAP, _HEAD, _LABEL = 8, 30, 190


def draw_grid(cells: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A grid of pictures of one size, small ones doubled, with a label a row (left) and a column (above)."""
    scale = 2 if max(cells[0][0].size) <= 160 else 1
    width, height = (side * scale for side in cells[0][0].size)
    sheet = Image.new(
        "RGB",
        (_LABEL + len(columns) * (width + _GAP) + _GAP, _HEAD + len(rows) * (height + _GAP) + _GAP),
        _PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(15), ImageFont.load_default(16)
    for i, title in enumerate(columns):
        pen.text((_LABEL + i * (width + _GAP) + width / 2, _HEAD / 2 + 2), title, _FAINT, large, anchor="mm")
    for row, label in enumerate(rows):
        top = _HEAD + row * (height + _GAP)
        lines = "\n".join(textwrap.wrap(label, 22)[:8])
        pen.multiline_text((_GAP * 2, top + height / 2), lines, _INK, small, anchor="lm", spacing=5)
        for column, picture in enumerate(cells[row]):
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (_LABEL + column * (width + _GAP), top))
    return sheet
