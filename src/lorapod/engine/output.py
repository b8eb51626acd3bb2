"""What the engine tells the world: events on standard output."""

from __future__ import annotations

import sys
from typing import Any

from lorapod.engine.status import rank_and_count
from lorapod.errors import LorapodError
from lorapod.events import PREFIX, EventType, event, to_line


def emit(type: EventType, /, **fields: Any) -> None:
    """Prints one event; of several ranks the first does, and each says why it fails."""
    if type == "error" or rank_and_count()[0] == 0:
        emit_from_here(type, **fields)


def emit_from_here(type: EventType, /, **fields: Any) -> None:
    """Prints one event of which this rank alone knows, as of its part of the items."""
    sys.stdout.write(PREFIX + to_line(event(type, **fields)) + "\n")
    sys.stdout.flush()


def emit_error(error: LorapodError) -> None:
    """Prints what went wrong and what to do as an `error` event."""
    emit("error", message=error.what + whose_process(), hint=error.to_hint())


def whose_process() -> str:
    """What names this rank at the end of a message; nothing where it is the only one."""
    rank, count = rank_and_count()
    return f" (process {rank + 1} of {count})" if count > 1 else ""
