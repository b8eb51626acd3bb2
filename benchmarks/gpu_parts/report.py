"""Results as a file of JSON that grows and as a table beside the goals."""

from __future__ import annotations

import json
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorapod.files import write_text_whole

Row = dict[str, Any]

_KEY = ("trainer", "model", "shape", "batch", "rank", "compiled", "checkpointing", "precision", "tiny", "attention")
_HEAD = (
    "trainer", "model", "shape", "batch", "precision", "blocks",
    "checkpointing", "s/step", "slowest", "samples/s", "MFU", "peak GB",
    "first step s", "goal s", "times the goal",
)  # fmt: skip


def write_results(folder: Path, rows: list[Row], tiny: bool) -> tuple[Path, Path]:
    """Adds rows to the results of their device, in the place of older ones of the same cell; gives the two files."""
    device = next((row["device"] for row in rows if "device" in row), None) or _device()
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ("-tiny" if tiny else "")
    data, table = folder / f"{name}.json", folder / f"{name}.md"
    kept: dict[tuple[Any, ...], Row] = {}
    if data.is_file():
        kept = {_key(row): row for row in json.loads(data.read_text(encoding="utf-8"))["rows"]}
    kept |= {_key(row): row for row in rows}
    everything = {"device": device, "written": datetime.now(UTC).isoformat(timespec="seconds"), "software": _software()}
    folder.mkdir(parents=True, exist_ok=True)
    write_text_whole(data, json.dumps({**everything, "rows": list(kept.values())}, indent=1) + "\n")
    write_text_whole(table, _page(everything, list(kept.values()), tiny))
    return data, table


def line_of(row: Row) -> str:
    """A row as one line for the terminal."""
    what = f"{row.get('trainer', 'lorapod')} {row['model']} {row['shape']} {_blocks(row)}, {_kept(row)}"
    if row["state"] != "measured":
        return f"{what}: {row['state']} ({row['why'].strip().splitlines()[-1]})"
    text = f"{what}: {row['seconds_a_step']:.4g} s/step, {row['peak_gb']:.1f} GB"
    if row.get("utilisation"):
        text += f", {row['utilisation']:.1%} MFU"
    if row.get("ours_is_faster_by"):
        text += f", lorapod is {row['ours_is_faster_by']:.2f} times as fast"
    return text + (f", {row['times_the_goal']:.2f} times the goal" if row.get("times_the_goal") else "")


def _page(head: dict[str, Any], rows: list[Row], tiny: bool) -> str:
    software = ", ".join(f"{name} {number}" for name, number in head["software"].items())
    lines = [f"# A training step on {head['device']} ({head['written'][:10]})", ""]
    lines += ["`python benchmarks/gpu.py`: random weights, AdamW, attention and feed-forward layers."]
    lines += [f"{software}. MFU counts model FLOPs without recomputation.", ""]
    if tiny:
        lines += ["**Tiny models: this shows that the benchmark runs, and says nothing of speed.**", ""]
    lines += [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    failed = [row for row in rows if row["state"] not in ("measured", "out of memory")]
    lines += ["", *(f"- {line_of(row)}" for row in failed)] if failed else []
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    first = [row.get("trainer", "lorapod"), row["model"], row["shape"], str(row["batch"])]
    first += [row["precision"], _blocks(row), _kept(row)]
    if row["state"] != "measured":
        return [*first, row["state"], *[""] * (len(_HEAD) - len(first) - 1)]
    goal, ratio, used = row.get("goal"), row.get("times_the_goal"), row.get("utilisation")
    until_first = row.get("seconds_to_first_step")
    return [
        *first,
        f"{row['seconds_a_step']:.4f}",
        f"{row['slowest_window']:.4f}",
        f"{row['samples_a_second']:.3g}",
        f"{used:.1%}" if used else "",
        f"{row['peak_gb']:.1f}",
        f"{until_first:.1f}" if until_first else "",
        f"{goal:g}" if goal else "",
        f"{ratio:.2f}" if ratio else "",
    ]


def _blocks(row: Row) -> str:
    if row.get("still_compiled") is False:
        return "fell back to eager"
    kind = row.get("attention", "auto")
    return ("compiled" if row["compiled"] else "eager") + ("" if kind == "auto" else f", {kind}")


def _kept(row: Row) -> str:
    return "checkpointing" if row["checkpointing"] else "no checkpointing"


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "diffusers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
