"""A run as one page that can be sent to somebody: `report.html`, which asks nothing of a network or another file.

Everything is taken from the run folder: `events.jsonl`, `recipe.toml`, the previews, and `data.json` where there is
one. A run that was stopped, failed or still goes on has a report too. Clips are shown as strips of their frames, and
embedded as far as a budget goes.
"""

from __future__ import annotations

import base64
import io
import json
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
from lorapod.runs.curves import Points, by_step, charts, evaluations_of, number_of, smoothed
from lorapod.runs.verdict import Verdict, verdict_of

_LARGEST_SIDE = 512  # pixels of an embedded preview
_MOST_STEPS = 16  # steps whose previews are embedded, first and last among them
_MOST_CLIP_BYTES = 24 << 20  # of all embedded clips together
_STRIP_RATIO = 2.5  # from which ratio of its sides on a picture is a strip of frames
_LARGEST_STRIP = 1280  # pixels
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


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
    losses = by_step(of_type.get("step", []), "loss")
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
        "charts": charts(of_type, losses),
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
    first = next((t for event in events if (t := number_of(event, "t")) is not None), None)
    return datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d %H:%M UTC") if first is not None else ""


def _facts(of_type: Mapping[str, list[Event]], losses: Points) -> list[tuple[str, str]]:
    """The few numbers at the top of the page."""
    facts: list[tuple[str, str]] = []
    steps = [event for event in of_type.get("step", []) if number_of(event, "step") is not None]
    if steps:
        done, total = number_of(steps[-1], "step"), number_of(steps[-1], "total")
        facts.append(("Steps", f"{done:,.0f}" + (f" of {total:,.0f}" if total and total != done else "")))
    ends = [seconds for event in of_type.get("end", []) if (seconds := number_of(event, "seconds")) is not None]
    if ends:
        facts.append(("Run time", _duration(sum(ends))))
    if losses:
        facts.append(("Loss, smoothed", f"{smoothed(losses)[-1][1]:.4g}"))
    for dataset, points in evaluations_of(of_type.get("eval", [])).items():
        facts.append((f"Held-out loss, {dataset}", f"{points[0][1]:.3g} → {points[-1][1]:.3g}"))
    times = sorted(time for event in steps if (time := number_of(event, "seconds")) is not None)
    if times:
        facts.append(("Time a step", _short_seconds(times[len(times) // 2])))
    memory = [m for event in steps if (m := number_of(event, "memory_gb")) is not None]
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
        if (step := number_of(event, "step")) is not None
        and isinstance(event.get("path"), str)
        and event.get("format") == "comfyui"
        and (run_dir / event["path"]).is_file()
    ]
    evaluations = evaluations_of(event for event in of_type.get("eval", []) if not event.get("regularisation"))
    suffixes = [suffix for suffix in ("-high", "-low") if any(name.endswith(suffix) for name in evaluations)]
    found = []
    for suffix in suffixes or [""]:
        own = {name: points for name, points in evaluations.items() if name.endswith(suffix)}
        verdict = verdict_of(own, [file for file in files if suffix in Path(file[1]).stem])
        found += [verdict] if verdict else []
    return found


def _previews(run_dir: Path, events: Iterable[Event]) -> tuple[list[_Series], int, int]:
    """Previews by prompt and seed, how many files are not there any more, and how many steps were left out."""
    by_pair: dict[tuple[str, int], dict[int, Event]] = {}
    for event in events:
        step, seed = number_of(event, "step"), number_of(event, "seed")
        if step is not None and isinstance(event.get("path"), str):
            by_pair.setdefault((str(event.get("prompt", "")), int(seed or 0)), {})[int(step)] = event
    steps = sorted({step for own in by_pair.values() for step in own})
    shown = set(steps)
    if len(steps) > _MOST_STEPS:
        shown = {steps[round(i * (len(steps) - 1) / (_MOST_STEPS - 1))] for i in range(_MOST_STEPS)}
    ends = sorted(shown, key=lambda step: (step not in (steps[0], steps[-1]), step))  # these are compared first
    clips = _embedded_clips(run_dir, [own[step] for step in ends for own in by_pair.values() if step in own])
    series, missing = [], 0
    for (prompt, seed), own in by_pair.items():
        pictures = []
        for step in sorted(own.keys() & shown):
            source = _embedded(run_dir / own[step]["path"])
            missing += source is None
            if source:
                clip = clips.get(str(own[step].get("clip")))
                pictures.append(_Picture(step, source, number_of(own[step], "likeness"), clip))
        if pictures:
            series.append(_Series(prompt, seed, pictures, any("clip" in event for event in own.values())))
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
        most = max((number_of(b, "items") or 0 for b in buckets), default=0) or 1
        shown.append({
            "name": Path(str(dataset.get("path", ""))).name,
            "items": dataset.get("items", "?"),
            "validation": dataset.get("validation", 0),
            "buckets": [
                {"name": str(b.get("bucket", "")), "items": b.get("items", "?"), "lost": number_of(b, "lost") or 0.0,
                 "share": (number_of(b, "items") or 0) / most} for b in buckets
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
