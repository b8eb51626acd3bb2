"""The curves of a run's report, from its events to paths of an SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorapod.events import Event

_MOST_POINTS = 600  # points of a drawn curve

_CHART_WIDTH, _CHART_HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 28.0

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve of a chart: `path` is SVG path data, `last` the newest value."""

    label: str
    path: str
    faint: bool
    colour: int
    last: float


@dataclass(frozen=True)
class Chart:
    """A chart with everything placed in the SVG's coordinates."""

    title: str
    note: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: float = _CHART_WIDTH
    height: float = _CHART_HEIGHT
    left: float = _LEFT
    right: float = _CHART_WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _CHART_HEIGHT - _BOTTOM


def charts(of_type: Mapping[str, list[Event]], losses: Points) -> list[Chart]:
    """What can be drawn of a run's events by their types: the training loss, that of held-out items, and likeness."""
    found = []
    if len(losses) > 1:
        found.append(_chart("Training loss", [("each step", losses, True), ("smoothed", smoothed(losses), False)]))
    evaluations = evaluations_of(of_type.get("eval", []))
    if any(len(points) > 1 for points in evaluations.values()):
        note = "Held-out items at fixed noise: a rise while training loss falls means that it learns them by heart."
        found.append(_chart("Loss on held-out items", [(n, p, False) for n, p in evaluations.items()], note))
    likeness: dict[float, list[float]] = {}
    for event in of_type.get("preview", []):
        step, value = number_of(event, "step"), number_of(event, "likeness")
        if step is not None and value is not None:
            likeness.setdefault(step, []).append(value)
    if len(likeness) > 1:
        points = [(step, sum(values) / len(values)) for step, values in sorted(likeness.items())]
        note = "How much previews with the trigger word resemble the nearest training picture: 1 is a copy."
        found.append(_chart("Likeness of previews", [("mean", points, False)], note))
    return found


def _chart(title: str, lines: Sequence[tuple[str, Points, bool]], note: str = "") -> Chart:
    """Places curves in an SVG. A few far outliers are cut off at the top rather than flattening all the rest."""
    values = sorted(y for _, points, _ in lines for _, y in points)
    xs = [x for _, points, _ in lines for x, _ in points]
    low, high = values[0], values[-1]
    usual = values[min(len(values) - 1, int(len(values) * 0.99))]
    if high - low > 2 * (usual - low) > 0:
        cut = sum(y > usual for y in values)
        high = usual
        note = f"{note} {cut} outlying values lie above the chart.".strip()
    margin = (high - low or abs(high) or 1.0) * 0.06
    low, high = low - margin, high + margin
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - first) / (last - first) * (_CHART_WIDTH - _LEFT - _RIGHT)
        down = _CHART_HEIGHT - _BOTTOM - (min(y, high) - low) / (high - low) * (_CHART_HEIGHT - _TOP - _BOTTOM)
        return across, down

    drawn = []
    for number, (label, points, faint) in enumerate(lines):
        placed = [place(x, y) for x, y in _thinned(points, _MOST_POINTS)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        drawn.append(Line(label, path, faint, 0 if any(line[2] for line in lines) else number % 6, points[-1][1]))
    x_ticks = [(place(x, low)[0], f"{x:,.0f}") for x in _ticks(first, last, 5) if x == int(x)]
    y_ticks = [(place(first, y)[1], f"{y:.4g}") for y in _ticks(low, high, 5)]
    return Chart(title, note, drawn, x_ticks, y_ticks)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two values."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _thinned(points: Points, most: int) -> Points:
    """At most about `most` points, keeping the lowest and highest of each stretch so that spikes stay visible."""
    if len(points) <= most:
        return points
    stretch = math.ceil(len(points) / (most / 2))
    kept: Points = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def smoothed(points: Points) -> Points:
    """Exponential moving average over about a twentieth of the run, corrected for its start (Adam, arXiv 1412.6980)."""
    decay = 1 - 1 / max(2.0, len(points) / 20)
    average, found = 0.0, []
    for count, (x, y) in enumerate(points, 1):
        average = decay * average + (1 - decay) * y
        found.append((x, average / (1 - decay**count)))
    return found


def by_step(events: Iterable[Event], field: str) -> Points:
    """(step, value) ascending; what was done again after an interruption replaces what was there before."""
    found: dict[float, float] = {}
    for event in events:
        step, value = number_of(event, "step"), number_of(event, field)
        if step is not None and value is not None:
            found[step] = value
    return sorted(found.items())


def evaluations_of(events: Iterable[Event]) -> dict[str, Points]:
    by_dataset: dict[str, list[Event]] = {}
    for event in events:
        by_dataset.setdefault(str(event.get("dataset", "all")), []).append(event)
    curves = {name: by_step(own, "loss") for name, own in by_dataset.items()}
    return {name: points for name, points in curves.items() if points}


def number_of(event: Mapping[str, Any], field: str) -> float | None:
    """A finite number of an event, or None."""
    value = event.get(field)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and value is not None else None
