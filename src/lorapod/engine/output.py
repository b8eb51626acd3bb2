"""What the engine tells the world: events on standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

from lorapod.errors import LorapodError
from lorapod.events import PREFIX, EventType, event, to_line


def emit(type: EventType, /, **fields: Any) -> None:
    """Prints one event; of several ranks the first does, and each says why it fails."""
    if type != "error" and os.environ.get("RANK", "0") != "0":
        return
    sys.stdout.write(PREFIX + to_line(event(type, **fields)) + "\n")
    sys.stdout.flush()


def emit_error(error: LorapodError) -> None:
    """Prints what went wrong and what to do as an `error` event."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    whose = f" (process {int(os.environ['RANK']) + 1} of {count})" if count > 1 else ""
    emit("error", message=error.what + whose, hint=error.to_hint())
