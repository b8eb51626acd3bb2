"""What is said of how pictures and clips look: blurred, black, blown, in bars, standing still, cut.

Thresholds are set so that a good picture is not called bad; docs/datasets.md names them. Of a clip, what lies outside of
the stretches that are trained on is only noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorapod.data.look import Look
from lorapod.data.moving import overlapping
from lorapod.data.plan import MUCH_ENLARGED, DatasetPlan, TrainItem
from lorapod.data.walk import Problem, Severity

ENLARGED = 1.2
"""Factor from which on it is said that an item is enlarged. The plan says so itself from MUCH_ENLARGED on."""

BLURRED = 5.0
"""Width of the sharpest edges in pixels at the training size; a sharp picture has less than 3."""

FROZEN_SECONDS = 1.0

SLOW = 0.7
"""Frame rate as a share of the base model's below which frames are noticeably seen twice."""

_LISTED = 8

Span = tuple[float, float]


def about_looks(plan: DatasetPlan, looks: Mapping[Path, Look], fps: float | None) -> list[Problem]:
    """Problems with the looks of what is trained on, each item once, at the largest of its sizes."""
    largest: dict[Path, TrainItem] = {}
    windows: dict[Path, list[Span]] = {}
    for each in [*plan.train, *plan.validation]:
        path = each.item.path
        if path not in largest or each.placement.upscale > largest[path].placement.upscale:
            largest[path] = each
        if each.window:
            end = each.window.start + each.window.frames / each.window.fps
            windows.setdefault(path, []).append((each.window.start, end))
    problems: list[Problem] = []
    for path, each in largest.items():
        look = looks.get(path)
        problems += _size(each)
        if look:
            problems += _picture(each, look)
        if look and each.item.is_clip:
            problems += _clip(each, look, windows.get(path, []), fps)
    return problems


def _size(each: TrainItem) -> list[Problem]:
    factor = each.placement.upscale
    if not ENLARGED <= factor < MUCH_ENLARGED:
        return []
    what = f"It is {each.item.width}x{each.item.height} and enlarged {factor:.1f} times to {each.placement.bucket}"
    return [_warning(each, what, "Use a larger original, or a lower resolution for this dataset.")]


def _picture(each: TrainItem, look: Look) -> list[Problem]:
    kind = "clip" if each.item.is_clip else "picture"
    if look.high < 40 and look.brightness < 16:
        what = f"It is as good as black: 99 % of it is darker than {look.high:.0f} of 255"
        return [_warning(each, what, "Brighten it, or take it out.")]
    if look.low > 235:
        what = f"It is blown out: 99 % of it is brighter than {look.low:.0f} of 255"
        return [_warning(each, what, "Use a darker original, or take it out.")]
    if look.is_flat:
        what = f"There is nothing on it but one colour (contrast {look.contrast:.1f} of 255)"
        return [_warning(each, what, "Take it out.")]
    problems = []
    width = look.edge_width * max(each.placement.resize_to) / max(1.0, each.placement.upscale)
    if width >= BLURRED:
        what = f"It is blurred: its sharpest edges are {width:.0f} pixels wide at {each.placement.bucket}"
        problems.append(_warning(each, what, f"Use a sharper {kind}; what is trained on blur draws blur."))
    if any(look.bars):
        sides = zip(("left", "top", "right", "bottom"), look.bars, strict=True)
        where = ", ".join(f"{share:.0%} {side}" for side, share in sides if share)
        what = f"It has black bars: {where}"
        problems.append(_warning(each, what, "Let `lorapod dataset check --fix OUT` trim them, or crop it."))
    return problems


def _clip(each: TrainItem, look: Look, windows: Sequence[Span], fps: float | None) -> list[Problem]:
    problems = []
    cuts = [cut for cut in look.cuts if any(start < cut < end for start, end in windows)]
    if cuts:
        what = f"The scene changes within what is trained on, at {_times(cuts)}"
        problems.append(_warning(each, what, "Split it with `lorapod dataset split`, or cut it yourself."))
    elif look.cuts:
        what = f"The scene changes at {_times(look.cuts)}, outside of what is trained on"
        problems.append(_info(each, what, "Split it with `lorapod dataset split` to use all of its scenes."))
    long = [span for span in look.frozen if span[1] - span[0] >= min(FROZEN_SECONDS, 0.9 * look.seconds)]
    if long and sum(end - start for start, end in long) >= 0.9 * look.seconds:
        problems.append(_warning(each, "Nothing moves in it: it is a still picture", "Use a frame of it as a picture."))
    else:
        problems += _stretches(each, "The picture stands still", long, windows, "Cut that out of it.")
    remedy = "Cut that out of it, or choose other `clip_windows`."
    problems += _stretches(each, "It is black", look.dark, windows, remedy)
    if look.variable_rate:
        what = f"Its frame rate varies around {each.item.fps:.4g} a second; here frames are taken by their times"
        remedy = "Let `lorapod dataset check --fix OUT` make it constant for trainers that count frames."
        problems.append(_info(each, what, remedy))
    if fps and each.item.fps < SLOW * fps:
        what = f"It has {each.item.fps:.3g} frames a second and the base model {fps:g}, so frames are seen twice"
        problems.append(_warning(each, what, "Use a clip with more frames a second; its movement is jerky."))
    return problems


def _stretches(
    each: TrainItem, what: str, stretches: Sequence[Span], windows: Sequence[Span], remedy: str
) -> list[Problem]:
    if not stretches:
        return []
    inside = [span for span in stretches if overlapping(span, windows)]
    text = ", ".join(f"{start:.1f}–{end:.1f} s" for start, end in (inside or stretches)[:_LISTED])
    if inside:
        return [_warning(each, f"{what} at {text}", remedy)]
    return [_info(each, f"{what} at {text}, outside of what is trained on", "")]


def _times(times: Sequence[float]) -> str:
    text = ", ".join(f"{time:.2f} s" for time in times[:_LISTED])
    return text if len(times) <= _LISTED else f"{text} and {len(times) - _LISTED} more"


def _warning(each: TrainItem, what: str, remedy: str) -> Problem:
    return Problem(Severity.WARNING, each.item.path, what, remedy)


def _info(each: TrainItem, what: str, remedy: str) -> Problem:
    return Problem(Severity.INFO, each.item.path, what, remedy)
