"""What was found to be off, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    FAULT = "fault"
    """Training cannot work, or work may be lost."""
    WARNING = "warning"
    """It works, but not as well as the person may expect."""
    NOTE = "note"
    """Good to know; nothing is wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing that is off.

    Attributes:
        about: What it belongs to: `gpu`, `torch`, `memory`, `disk`, `workspace`, `network`, `keys`, `trainer`, `run`,
            `service`.
        what: One sentence without a full stop.
        why: The cause, as far as it is known.
        remedy: What to do now.
    """

    severity: Severity
    about: str
    what: str
    why: str = ""
    remedy: str = ""
