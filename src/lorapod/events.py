"""Events: one JSON object a line, the only record of what a run did.

The engine prints them, trainers parse an external trainer's output into them, runs keep them in `events.jsonl`.
A reader ignores fields and types that it does not know, so that an older lorapod reads a newer run.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal

EventType = Literal[
    "stage", "step", "eval", "preview", "checkpoint", "lora", "progress", "warning", "error", "info", "end"
]
EVENT_TYPES: frozenset[str] = frozenset(EventType.__args__)  # type: ignore[attr-defined]

EndStatus = Literal["done", "failed", "stopped", "interrupted"]

Event = dict[str, Any]
"""`t` (Unix seconds), `type` (an `EventType`) and the fields of that type:

    stage       name, index, count, total?        one of the run's phases begins
    step        step, total, epoch, loss, lr, seconds, memory_gb?
    eval        step, loss, dataset, regularisation?, when?   loss on held-out items at fixed noise; `before` or `after`
    preview     step, path, prompt, seed, likeness?, clip?   paths relative to the run folder; of a clip (MP4), `path` is
                                                  a strip of its frames
    checkpoint  step, path                        likewise
    lora        step, path, format, base_model, expert?   likewise; `high` or `low` where the base model has two
    progress    stage, done, total, unit
    warning     message, hint
    error       message, hint
    info        message
    end         status: done | failed | stopped | interrupted, seconds
"""

PREFIX = "\x1e"
"""What an event line on a process's standard output starts with (ASCII record separator, as in RFC 7464), so that
nothing else that is printed can be taken for an event. Split output at line feeds: `str.splitlines` splits here too."""


def event(type: EventType, /, **fields: Any) -> Event:
    """A new event of now."""
    return {"t": round(time.time(), 3), "type": type, **fields}


def to_line(item: Event) -> str:
    """The event as one line of JSON, without a line end."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"))


def from_line(line: str) -> Event | None:
    """The event on a line of `events.jsonl`, or None for a line that is not one (as after a crash in mid-write)."""
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) and item.get("type") in EVENT_TYPES else None
