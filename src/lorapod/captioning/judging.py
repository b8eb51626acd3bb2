"""What becomes of an answer: it is the caption, it is asked for again in other words, or the item goes without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lorapod.captioning.base import Answer, Ask
from lorapod.captioning.items import Subject


@dataclass(frozen=True)
class Accepted:
    """The answer is good; `text` is the caption."""

    text: str


@dataclass(frozen=True)
class AskAgain:
    """The answer is no good; `ask` is a request that may do better."""

    ask: Ask
    reason: str


@dataclass(frozen=True)
class Refused:
    """The answer is no good, and asking again won't help."""

    reason: str


Verdict = Accepted | AskAgain | Refused


class Judging(Protocol):
    """Builds the request for a caption, and judges its answers."""

    def ask(self, subject: Subject) -> Ask:
        """The request about an item, which was looked at."""
        ...

    def __call__(self, ask: Ask, answer: Answer, repeats: int) -> Verdict:
        """What of an answer. `repeats` counts the answers to this request that were no good before. Reasons are sentences
        without a full stop."""
        ...
