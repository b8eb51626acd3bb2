"""What the engine tells the world: events on standard output."""

from __future__ import annotations

import sys
from typing import Any

from lorapod.errors import LorapodError
from lorapod.events import PREFIX, EventType, event, to_line


def emit(type: EventType, /, **fields: Any) -> None:
    """Prints one event."""
    sys.stdout.write(PREFIX + to_line(event(type, **fields)) + "\n")
    sys.stdout.flush()


def emit_error(error: LorapodError) -> None:
    """Prints what went wrong and what to do as an `error` event."""
    emit("error", message=error.what, hint=error.to_hint())
