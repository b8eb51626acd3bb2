"""The check of datasets as one page: what was found, and a contact sheet with what is wrong marked on the thumbnails.

The page asks nothing of a network or another file, so that it can be sent to somebody. Of very many items those with
problems are drawn and as many of the others as keep the page light; how many were left out is said on it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from lorapod.data.checks import Checked
from lorapod.data.facts import Progress
from lorapod.data.look import Look, whole
from lorapod.data.names import natural_key, shown
from lorapod.data.pictures import load_picture
from lorapod.data.scan import Item
from lorapod.data.threads import in_order
from lorapod.data.walk import Problem
from lorapod.errors import DatasetError
from lorapod.files import write_text_whole

_SIDE = 320  # pixels of a thumbnail's longest side
_MOST_DRAWN = 400
_CLIP_FRAMES = 4

_SHORT = (
    (r"enlarged ([\d.]+)", "enlarged {}×"),
    (r"looks the same as .*\((.*)\)", "copy, {}"),
    (r"same file as", "copy"),
    (r"blurred", "blurred"),
    (r"black bars", "bars"),
    (r"as good as black|^It is black", "black"),
    (r"blown out", "blown out"),
    (r"nothing on it", "empty"),
    (r"scene changes", "cuts"),
    (r"stands still|Nothing moves", "still"),
    (r"frame rate varies", "varying rate"),
    (r"frames a second", "few frames"),
    (r"too short", "too short"),
    (r"cuts off (\d+ ?%)", "crop −{}"),
    (r"no caption|empty caption|caption file .* is empty", "no caption"),
    (r"caption has|caption is an excuse|same caption|caption says|caption", "caption"),
    (r"mask", "mask"),
)
"""What is said of an item, as a word or two on its thumbnail."""


@dataclass(frozen=True)
class _Tile:
    name: str
    dataset: str
    size: str
    caption: str
    severity: str
    marks: list[tuple[str, str]]
    said: list[str]
    pictures: list[str]
    bars: list[str]


def write_sheet(checked: Checked, path: Path, progress: Progress | None = None) -> None:
    """Writes the page.

    Raises:
        DiskError: It cannot be written.
    """
    template = resources.files("lorapod.data").joinpath("sheet.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    write_text_whole(path, environment.from_string(template).render(_page(checked, progress)))


def _page(checked: Checked, progress: Progress | None) -> dict[str, Any]:
    about: dict[Path, list[Problem]] = {}
    for problem in checked.problems:
        about.setdefault(problem.path, []).append(problem)
    items = sorted(
        checked.items,
        key=lambda item: (min((p.rank for p in about.get(item.path, [])), default=9), natural_key(item.path)),
    )
    drawn = items[:_MOST_DRAWN]
    home = {item.path: found.folder for found in reversed(checked.scans) for item in found.items}
    tiles = []
    for done, (item, pictures) in enumerate(zip(drawn, in_order(_thumbnails, drawn), strict=True), start=1):
        tiles.append(_tile(item, home[item.path], about.get(item.path, []), pictures, checked.looks.get(item.path)))
        if progress:
            progress(done, len(drawn))
    counts = {name: sum(p.severity.value == name for p in checked.problems) for name in ("error", "warning", "info")}
    return {
        "title": ", ".join(dict.fromkeys(shown(found.folder.name) for found in checked.scans)),
        "items": len(checked.items),
        "trained_on": len(checked.trained_on),
        "clips": sum(item.is_clip for item in checked.items),
        "counts": counts,
        "kinds": list(_kinds(checked)),
        "tiles": tiles,
        "left_out": len(items) - len(drawn),
        "several": len(checked.scans) > 1,
    }


def _kinds(checked: Checked) -> Iterator[dict[str, Any]]:
    """Problems with one remedy together, worst first."""
    folders = [found.folder for found in checked.scans]
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in checked.problems:
        alike.setdefault((problem.severity.value, problem.remedy or problem.what), []).append(problem)
    for (severity, _), problems in alike.items():
        same = len({problem.what for problem in problems}) == 1
        yield {
            "severity": severity,
            "what": problems[0].what if same else "",
            "remedy": problems[0].remedy,
            "files": [(_from(problem.path, folders), "" if same else problem.what) for problem in problems],
        }


def _tile(item: Item, folder: Path, problems: Sequence[Problem], pictures: list[str], look: Look | None) -> _Tile:
    size = f"{item.width}×{item.height}"
    if item.is_clip:
        size += f" · {item.seconds:.1f} s · {item.fps:.4g} fps"
    bars = look.bars if look else (0.0, 0.0, 0.0, 0.0)
    return _Tile(
        name=_from(item.path, [folder]),
        dataset=shown(folder.name),
        size=size,
        caption=item.caption or "",
        severity=problems[0].severity.value if problems else "",
        marks=list(dict.fromkeys((problem.severity.value, _short(problem.what)) for problem in problems)),
        said=[f"{problem.what}. {problem.remedy}".strip() for problem in problems],
        pictures=pictures,
        bars=[f"{share:.2%}" for share in bars] if any(bars) else [],
    )


def _short(what: str) -> str:
    for pattern, text in _SHORT:
        match = re.search(pattern, what)
        if match:
            return text.format(*match.groups())
    return "see below"


def _thumbnails(item: Item) -> list[str]:
    """Of a picture one, of a clip some; none where it cannot be decoded any more."""
    try:
        if not item.is_clip:
            pixels = load_picture(item.path, whole((item.width, item.height), _SIDE))
            return [_encoded(Image.fromarray(pixels))]
        from lorapod.data.clips import clip_frames, probe_clip

        info = probe_clip(item.path)
        frames = clip_frames(item.path, info, _SIDE, max(info.seconds / _CLIP_FRAMES, 1e-3))
        return [_encoded(Image.fromarray(frame)) for _, frame in list(frames)[:_CLIP_FRAMES]]
    except DatasetError:
        return []


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _from(path: Path, folders: Sequence[Path]) -> str:
    for folder in folders:
        if path.is_relative_to(folder):
            return shown(path.relative_to(folder) if path != folder else folder.name)
    return shown(path)
