"""A plan's buckets as one picture: which items go where, and what cropping costs the worst of them.

Drawn from the plan alone, no media are opened. Buckets with most items come first; of very many the smallest are only
counted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lorapod.data.buckets import Bucket
from lorapod.data.epochs import by_bucket
from lorapod.data.names import shown
from lorapod.data.plan import DataPlan, TrainItem

_PAPER, _INK, _FAINT, _RULE = (252, 252, 250), (30, 30, 34), (110, 110, 118), (222, 222, 218)
_KEPT, _KEPT_EDGE, _LOST, _LOST_EDGE = (140, 178, 214), (46, 98, 146), (244, 196, 186), (196, 84, 66)

_WIDTH, _MARGIN, _HEAD, _ROW = 1240, 28, 104, 176
_BOX, _TEXT, _WORST, _SMALL_BOX = 128, 190, 790, 76
_MOST_ROWS = 40
_WORST_SHOWN = 3
_NAMES_WIDTH, _NAMES_LINES = 84, 5
"""Characters a line of names, in small print, and lines."""

_NOTABLE = 0.001
"""Share cut off from which an item is among the cropped: less is the rounding of sides."""


def draw_buckets(plan: DataPlan) -> Image.Image:
    """A row a bucket: its shape to scale with the number of its items, their names, and those cropped most."""
    rows = sorted(by_bucket(plan.train + plan.validation).items(), key=lambda row: (-len(row[1]), row[0]))
    drawn, rest = rows[:_MOST_ROWS], rows[_MOST_ROWS:]
    sheet = Image.new("RGB", (_WIDTH, _HEAD + len(drawn) * _ROW + (44 if rest else 12)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_head(pen, plan, len(rows))
    largest = max((max(bucket.width, bucket.height) for bucket, _ in drawn), default=1)
    held_out = {id(each) for each in plan.validation}
    for i, (bucket, members) in enumerate(drawn):
        top = _HEAD + i * _ROW
        pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], _RULE)
        _draw_bucket(pen, top, bucket, len(members), largest)
        _draw_text(pen, top, bucket, members, sum(id(each) in held_out for each in members))
        _draw_worst(pen, top, members)
    if rest:
        items = sum(len(members) for _, members in rest)
        text = f"and {len(rest)} more buckets with {items} items, {len(rest[0][1])} or fewer in each"
        pen.text((_MARGIN, sheet.height - 22), text, _FAINT, _font(16), anchor="lm")
    return sheet


def _draw_head(pen: ImageDraw.ImageDraw, plan: DataPlan, buckets: int) -> None:
    items = len({each.item.path for each in plan.train + plan.validation})
    title = f"{_count(items, 'item')} in {_count(buckets, 'bucket')}"
    pen.text((_MARGIN, 34), title, _INK, _font(26), anchor="lm")
    held_out = len({each.item.path for each in plan.validation})
    line = f"{items - held_out} trained on, {held_out} held out for the evaluation loss"
    if plan.unused:
        line += f", {_count(len({each.path for each in plan.unused}), 'file')} not used"
    pen.text((_MARGIN, 70), line, _FAINT, _font(16), anchor="lm")
    for x, fill, edge, text in ((_WORST, _KEPT, _KEPT_EDGE, "kept"), (_WORST + 90, _LOST, _LOST_EDGE, "cut off")):
        pen.rectangle([x, 60, x + 18, 78], fill, edge)
        pen.text((x + 26, 70), text, _FAINT, _font(15), anchor="lm")
    pen.text((_WORST, 34), "Cropped most", _INK, _font(18), anchor="lm")


def _draw_bucket(pen: ImageDraw.ImageDraw, top: int, bucket: Bucket, items: int, largest: int) -> None:
    """The bucket's shape, to scale with the others; a clip's as a stack of sheets."""
    width, height = (max(8, round(side * _BOX / largest)) for side in (bucket.width, bucket.height))
    left, upper = _MARGIN + (_BOX - width) // 2, top + (_ROW - height) // 2
    for sheet in (8, 4) if bucket.frames > 1 else ():
        pen.rectangle([left + sheet, upper - sheet, left + width + sheet, upper + height - sheet], _PAPER, _KEPT_EDGE)
    pen.rectangle([left, upper, left + width, upper + height], _KEPT, _KEPT_EDGE, 2)
    size = 26 if min(width, height) >= 40 else 16
    pen.text((left + width / 2, upper + height / 2), str(items), _INK, _font(size), anchor="mm")


def _draw_text(pen: ImageDraw.ImageDraw, top: int, bucket: Bucket, members: Sequence[TrainItem], held_out: int) -> None:
    title = f"{bucket.width} x {bucket.height}" + (f", {bucket.frames} frames" if bucket.frames > 1 else "")
    pen.text((_TEXT, top + 28), title, _INK, _font(20), anchor="lm")
    lost = sum(each.placement.lost_share for each in members) / len(members)
    facts = [_count(len(members), "item"), f"{lost:.1%} cropped on average"]
    facts += [f"{held_out} held out"] if held_out else []
    enlarged = [each.placement.upscale for each in members if each.placement.upscale > 1.0]
    facts += [f"{len(enlarged)} enlarged, up to {max(enlarged):.1f} times"] if enlarged else []
    pen.text((_TEXT, top + 56), ", ".join(facts), _INK, _font(15), anchor="lm")
    names = list(dict.fromkeys(shown(each.item.path.name) for each in members))
    pen.multiline_text((_TEXT, top + 74), _listed(names), _FAINT, _font(13), spacing=4)


def _listed(names: Sequence[str]) -> str:
    """As many names as there is room for, and how many more there are."""
    for some in range(min(len(names), 40), 0, -1):
        more = f" and {len(names) - some} more" if some < len(names) else ""
        lines = textwrap.wrap(", ".join(names[:some]) + more, _NAMES_WIDTH)
        if len(lines) <= _NAMES_LINES:
            return "\n".join(lines)
    return textwrap.shorten(names[0], _NAMES_WIDTH) if names else ""


def _draw_worst(pen: ImageDraw.ImageDraw, top: int, members: Sequence[TrainItem]) -> None:
    cropped = {each.item.path: each for each in members if each.placement.lost_share > _NOTABLE}
    worst = sorted(cropped.values(), key=lambda each: -each.placement.lost_share)[:_WORST_SHOWN]
    if not worst:
        pen.text((_WORST, top + _ROW / 2), "nothing is cut off", _FAINT, _font(15), anchor="lm")
    for i, each in enumerate(worst):
        place = each.placement
        scale = _SMALL_BOX / max(place.resize_to)
        width, height = (max(3, round(side * scale)) for side in place.resize_to)
        middle, left = top + 66, _WORST + i * 145
        upper = middle - height // 2
        pen.rectangle([left, upper, left + width, upper + height], _LOST, _LOST_EDGE)
        kept = [round(side * scale) for side in place.crop]
        pen.rectangle([left + kept[0], upper + kept[1], left + kept[2], upper + kept[3]], _KEPT, _KEPT_EDGE)
        pen.text((left, top + 126), f"-{place.lost_share:.1%}", _INK, _font(15), anchor="lm")
        pen.text((left, top + 148), _cut(shown(each.item.path.name)), _FAINT, _font(13), anchor="lm")


def _cut(name: str, longest: int = 18) -> str:
    """A name short enough to stand below its picture; its end tells files of a series apart."""
    return name if len(name) <= longest else f"{name[: longest - 11]}...{name[-8:]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
