"""A run as one page that can be sent to somebody: `report.html`, which asks nothing of a network or another file.

Everything is taken from the run folder: `events.jsonl`, `recipe.toml`, the previews, and `data.json` where there is
one. A run that was stopped, failed or still goes on has a report too. Clips are shown as strips of their frames, and
embedded as far as a budget goes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import platform
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, UnidentifiedImageError

from lorapod import __version__
from lorapod.errors import RunError
from lorapod.events import Event, from_line
from lorapod.files import write_text_whole
from lorapod.runs.verdict import Verdict, verdict_of

_LARGEST_SIDE = 512  # pixels of an embedded preview
_MOST_STEPS = 16  # steps whose previews are embedded, first and last among them
_MOST_CLIP_BYTES = 24 << 20  # of all embedded clips together
_STRIP_RATIO = 2.5  # from which ratio of its sides on a picture is a strip of frames
_LARGEST_STRIP = 1280  # pixels
_MOST_POINTS = 600  # points of a drawn curve
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")

_CHART_WIDTH, _CHART_HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 28.0

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Line:
    """One curve of a chart: `path` is SVG path data, `last` the newest value."""

    label: str
    path: str
    faint: bool
    colour: int
    last: float


@dataclass(frozen=True)
class _Chart:
    """A chart with everything placed in the SVG's coordinates."""

    title: str
    note: str
    lines: list[_Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: float = _CHART_WIDTH
    height: float = _CHART_HEIGHT
    left: float = _LEFT
    right: float = _CHART_WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _CHART_HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Picture:
    step: int
    source: str
    likeness: float | None
    clip: str | None = None


@dataclass(frozen=True)
class _Series:
    """The previews of one prompt and seed, by step."""

    prompt: str
    seed: int
    pictures: list[_Picture]
    clips: bool = False


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's folder.

    Returns:
        The report's path.

    Raises:
        RunError: The folder holds no run.
        DiskError: The report cannot be written.
    """
    events = _events(run_dir)
    recipe_text, recipe = _recipe(run_dir)
    template = resources.files("lorapod.runs").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(_page(run_dir, events, recipe, recipe_text))
    target = run_dir / "report.html"
    write_text_whole(target, page)
    return target


def _page(run_dir: Path, events: Sequence[Event], recipe: Mapping[str, Any], recipe_text: str) -> dict[str, Any]:
    """Everything that the template shows."""
    of_type: dict[str, list[Event]] = {}
    for event in events:
        of_type.setdefault(event["type"], []).append(event)
    losses = _by_step(of_type.get("step", []), "loss")
    series, missing, left_out = _previews(run_dir, of_type.get("preview", []))
    base_model = str(_table(recipe, "base_model").get("name", "")).rstrip("/").rpartition("/")[2]
    sheet, datasets = _data_sheet(run_dir), recipe.get("datasets", [])
    triggers = [d["trigger_word"] for d in datasets if isinstance(d, dict) and d.get("trigger_word")]
    status, hint = _status(events)
    return {
        "title": str(recipe.get("name") or run_dir.name),
        "notes": str(recipe.get("notes", "")),
        "run": run_dir.name,
        "started": _moment(events),
        "status": status,
        "status_hint": hint,
        "base_model": base_model,
        "triggers": list(dict.fromkeys(triggers)),
        "facts": _facts(of_type, losses),
        "loras": _loras(run_dir, of_type.get("lora", [])),
        "verdicts": _verdicts(run_dir, of_type),
        "charts": _charts(of_type, losses),
        "series": series,
        "preview_steps": sorted({picture.step for one in series for picture in one.pictures}),
        "missing_previews": missing,
        "left_out_steps": left_out,
        "datasets": _datasets(sheet),
        "unused": _unused(sheet),
        "messages": _messages(events),
        "recipe": recipe_text,
        "versions": {"lorapod": __version__, "Python": platform.python_version(), **_versions()},
    }


def _events(run_dir: Path) -> list[Event]:
    path = run_dir / "events.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(
            f"There is no run in {run_dir}",
            "It has no events.jsonl.",
            "Give the folder of a run; `lorapod runs` lists them.",
        ) from error
    return [event for line in text.split("\n") if (event := from_line(line)) is not None]


def _recipe(run_dir: Path) -> tuple[str, dict[str, Any]]:
    """The recipe's text and values; a recipe that cannot be read any more is shown but not interpreted."""
    try:
        text = (run_dir / "recipe.toml").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "", {}
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text, {}


def _status(events: Sequence[Event]) -> tuple[str, str]:
    """Status and what it means. Events after the last `end` belong to a run that was taken up again."""
    if not events or events[-1]["type"] != "end":
        return (
            "unfinished",
            "It still goes on or was cut off; this page shows it as it was when written.",
        )
    return {
        "done": ("done", ""),
        "stopped": ("stopped", "It was stopped and can go on from its last checkpoint."),
        "interrupted": ("interrupted", "It was cut off and can go on from its last checkpoint."),
        "failed": ("failed", "See the messages below for the reason."),
    }.get(str(events[-1].get("status")), ("unfinished", ""))


def _moment(events: Sequence[Event]) -> str:
    first = next((t for event in events if (t := _number(event, "t")) is not None), None)
    return datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d %H:%M UTC") if first is not None else ""


def _facts(of_type: Mapping[str, list[Event]], losses: Points) -> list[tuple[str, str]]:
    """The few numbers at the top of the page."""
    facts: list[tuple[str, str]] = []
    steps = [event for event in of_type.get("step", []) if _number(event, "step") is not None]
    if steps:
        done, total = _number(steps[-1], "step"), _number(steps[-1], "total")
        facts.append(("Steps", f"{done:,.0f}" + (f" of {total:,.0f}" if total and total != done else "")))
    ends = [seconds for event in of_type.get("end", []) if (seconds := _number(event, "seconds")) is not None]
    if ends:
        facts.append(("Run time", _duration(sum(ends))))
    if losses:
        facts.append(("Loss, smoothed", f"{_smooth(losses)[-1][1]:.4g}"))
    for dataset, points in _evaluations(of_type.get("eval", [])).items():
        facts.append((f"Held-out loss, {dataset}", f"{points[0][1]:.3g} → {points[-1][1]:.3g}"))
    times = sorted(time for event in steps if (time := _number(event, "seconds")) is not None)
    if times:
        facts.append(("Time a step", _short_seconds(times[len(times) // 2])))
    memory = [m for event in steps if (m := _number(event, "memory_gb")) is not None]
    if memory:
        facts.append(("Peak memory", f"{max(memory):.1f} GB"))
    return facts


def _loras(run_dir: Path, events: Iterable[Event]) -> list[dict[str, Any]]:
    """The LoRA files of the newest step, of two experts those of each, and whether they are still there."""
    written = [event for event in events if isinstance(event.get("path"), str)]
    last_step = {event.get("expert"): event.get("step") for event in written}
    newest = [event for event in written if event.get("step") == last_step[event.get("expert")]]
    found = []
    for path, event in {event["path"]: event for event in newest}.items():
        file = run_dir / path
        size = file.stat().st_size if file.is_file() else None
        found.append(
            {
                "path": path,
                "name": file.name,
                "format": str(event.get("format", "")),
                "expert": str(event.get("expert", "")),
                "step": event.get("step"),
                "size": f"{size / 1e6:.1f} MB" if size else None,
            }
        )
    return found


def _verdicts(run_dir: Path, of_type: Mapping[str, list[Event]]) -> list[Verdict]:
    """Which file is likely the best, one for each expert where two were trained."""
    files = [
        (int(step), str(event["path"]))
        for event in of_type.get("lora", [])
        if (step := _number(event, "step")) is not None
        and isinstance(event.get("path"), str)
        and event.get("format") == "comfyui"
        and (run_dir / event["path"]).is_file()
    ]
    evaluations = _evaluations(event for event in of_type.get("eval", []) if not event.get("regularisation"))
    suffixes = [suffix for suffix in ("-high", "-low") if any(name.endswith(suffix) for name in evaluations)]
    found = []
    for suffix in suffixes or [""]:
        own = {name: points for name, points in evaluations.items() if name.endswith(suffix)}
        verdict = verdict_of(own, [file for file in files if suffix in Path(file[1]).stem])
        found += [verdict] if verdict else []
    return found


def _charts(of_type: Mapping[str, list[Event]], losses: Points) -> list[_Chart]:
    charts = []
    if len(losses) > 1:
        charts.append(_chart("Training loss", [("each step", losses, True), ("smoothed", _smooth(losses), False)]))
    evaluations = _evaluations(of_type.get("eval", []))
    if any(len(points) > 1 for points in evaluations.values()):
        note = "Held-out items at fixed noise: a rise while training loss falls means that it learns them by heart."
        charts.append(_chart("Loss on held-out items", [(n, p, False) for n, p in evaluations.items()], note))
    likeness: dict[float, list[float]] = {}
    for event in of_type.get("preview", []):
        step, value = _number(event, "step"), _number(event, "likeness")
        if step is not None and value is not None:
            likeness.setdefault(step, []).append(value)
    if len(likeness) > 1:
        points = [(step, sum(values) / len(values)) for step, values in sorted(likeness.items())]
        note = "How much previews with the trigger word resemble the nearest training picture: 1 is a copy."
        charts.append(_chart("Likeness of previews", [("mean", points, False)], note))
    return charts


def _chart(title: str, lines: Sequence[tuple[str, Points, bool]], note: str = "") -> _Chart:
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
        drawn.append(_Line(label, path, faint, 0 if any(line[2] for line in lines) else number % 6, points[-1][1]))
    x_ticks = [(place(x, low)[0], f"{x:,.0f}") for x in _ticks(first, last, 5) if x == int(x)]
    y_ticks = [(place(first, y)[1], f"{y:.4g}") for y in _ticks(low, high, 5)]
    return _Chart(title, note, drawn, x_ticks, y_ticks)


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


def _smooth(points: Points) -> Points:
    """Exponential moving average over about a twentieth of the run, corrected for its start (Adam, arXiv 1412.6980)."""
    decay = 1 - 1 / max(2.0, len(points) / 20)
    average, smoothed = 0.0, []
    for count, (x, y) in enumerate(points, 1):
        average = decay * average + (1 - decay) * y
        smoothed.append((x, average / (1 - decay**count)))
    return smoothed


def _by_step(events: Iterable[Event], field: str) -> Points:
    """(step, value) ascending; what was done again after an interruption replaces what was there before."""
    found: dict[float, float] = {}
    for event in events:
        step, value = _number(event, "step"), _number(event, field)
        if step is not None and value is not None:
            found[step] = value
    return sorted(found.items())


def _evaluations(events: Iterable[Event]) -> dict[str, Points]:
    by_dataset: dict[str, list[Event]] = {}
    for event in events:
        by_dataset.setdefault(str(event.get("dataset", "all")), []).append(event)
    curves = {name: _by_step(own, "loss") for name, own in by_dataset.items()}
    return {name: points for name, points in curves.items() if points}


def _previews(run_dir: Path, events: Iterable[Event]) -> tuple[list[_Series], int, int]:
    """Previews by prompt and seed, how many files are not there any more, and how many steps were left out."""
    by_pair: dict[tuple[str, int], dict[int, Event]] = {}
    for event in events:
        step, seed = _number(event, "step"), _number(event, "seed")
        if step is not None and isinstance(event.get("path"), str):
            by_pair.setdefault((str(event.get("prompt", "")), int(seed or 0)), {})[int(step)] = event
    steps = sorted({step for by_step in by_pair.values() for step in by_step})
    shown = set(steps)
    if len(steps) > _MOST_STEPS:
        shown = {steps[round(i * (len(steps) - 1) / (_MOST_STEPS - 1))] for i in range(_MOST_STEPS)}
    ends = sorted(shown, key=lambda step: (step not in (steps[0], steps[-1]), step))  # these are compared first
    clips = _embedded_clips(
        run_dir, [by_step[step] for step in ends for by_step in by_pair.values() if step in by_step]
    )
    series, missing = [], 0
    for (prompt, seed), by_step in by_pair.items():
        pictures = []
        for step in sorted(by_step.keys() & shown):
            source = _embedded(run_dir / by_step[step]["path"])
            missing += source is None
            if source:
                clip = clips.get(str(by_step[step].get("clip")))
                pictures.append(_Picture(step, source, _number(by_step[step], "likeness"), clip))
        if pictures:
            series.append(_Series(prompt, seed, pictures, any("clip" in event for event in by_step.values())))
    return series, missing, len(steps) - len(shown)


def _embedded_clips(run_dir: Path, events: Iterable[Event]) -> dict[str, str]:
    """Clips as data URIs by their path in the run folder, in that order while the budget lasts."""
    found: dict[str, str] = {}
    room = _MOST_CLIP_BYTES
    for path in (event.get("clip") for event in events):
        file = run_dir / path if isinstance(path, str) else None
        if file is None or not file.is_file() or file.stat().st_size > room:
            continue
        data = file.read_bytes()
        room -= len(data)
        found[str(path)] = f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"
    return found


def _embedded(path: Path) -> str | None:
    """The picture as a data URI; None where it cannot be read."""
    try:
        with Image.open(path) as picture:
            largest = _LARGEST_STRIP if picture.width > _STRIP_RATIO * picture.height else _LARGEST_SIDE
            if max(picture.size) <= largest and picture.format == "PNG":
                kind, data = "png", path.read_bytes()
            else:
                small = picture.convert("RGB")
                small.thumbnail((largest, largest), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=90)
                kind, data = "jpeg", buffer.getvalue()
    except (OSError, UnidentifiedImageError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _data_sheet(run_dir: Path) -> dict[str, Any]:
    """What the engine wrote about the data; {} where it is not there or cannot be read."""
    try:
        found = json.loads((run_dir / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unused(sheet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """File name and reason of what was not trained on."""
    listed = sheet.get("unused", [])
    return [
        (Path(str(each.get("path", ""))).name, str(each.get("why", "")).rstrip("."))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]


def _datasets(sheet: Mapping[str, Any]) -> list[dict[str, Any]]:
    datasets = sheet.get("datasets", [])
    shown = []
    for dataset in (d for d in datasets if isinstance(d, dict)):
        buckets = [b for b in dataset.get("buckets", []) if isinstance(b, dict)]
        most = max((_number(b, "items") or 0 for b in buckets), default=0) or 1
        shown.append({
            "name": Path(str(dataset.get("path", ""))).name,
            "items": dataset.get("items", "?"),
            "validation": dataset.get("validation", 0),
            "buckets": [
                {"name": str(b.get("bucket", "")), "items": b.get("items", "?"), "lost": _number(b, "lost") or 0.0,
                 "share": (_number(b, "items") or 0) / most} for b in buckets
            ],
        })  # fmt: skip
    return shown


def _messages(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Errors first, then warnings; the same message is shown once with its count."""
    counts = Counter(
        (event["type"], str(event.get("message", "")), str(event.get("hint") or ""))
        for event in events
        if event["type"] in ("warning", "error")
    )
    ordered = sorted(counts.items(), key=lambda item: item[0][0] != "error")
    return [{"type": kind, "message": message, "hint": hint, "count": n} for (kind, message, hint), n in ordered]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _number(event: Mapping[str, Any], field: str) -> float | None:
    """A finite number of an event, or None."""
    value = event.get(field)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and value is not None else None


def _table(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = recipe.get(name)
    return table if isinstance(table, dict) else {}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _short_seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
