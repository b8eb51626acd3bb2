"""What a captioner is: one request for one picture or clip in, one text out. The runner decides everything else.

A captioner knows how to ask one model once. What to ask for is `wording`'s, what to accept is `cleaning`'s, how often and
how fast to ask is the runner's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lorapod.errors import LorapodError

Kind = Literal["picture", "clip"]

Unit = Literal["prose", "tags"]
"""What a base model's captions are made of: sentences, or tags with commas between."""


@dataclass(frozen=True)
class Ask:
    """One request about one item.

    Attributes:
        path: The picture or clip.
        kind: Which of the two it is.
        system: What the model is told about its task in general; may be empty.
        prompt: What is asked about this item.
        max_tokens: Most tokens of an answer that are wanted (thinking not counted).
        temperature: 0 for the likeliest answer.
        seconds: The clip's length in seconds; None of a picture.
        width: In pixels, as displayed; 0 where it is not known.
        height: Likewise.
        facts: What the scan knows about the item, for captioners without a model.
    """

    path: Path
    kind: Kind
    prompt: str
    system: str = ""
    max_tokens: int = 400
    temperature: float = 0.6
    seconds: float | None = None
    width: int = 0
    height: int = 0
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: As it came, stripped of space at both ends.
        complete: False where it was cut at the token limit.
        input_tokens: As counted by the service; 0 where it does not tell.
        output_tokens: Likewise, thinking included.
        dollars: What it cost, as far as the price is known; None where it is not.
    """

    text: str
    complete: bool = True
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = None


@dataclass(frozen=True)
class Cost:
    """An estimate of what one `Ask` takes. `dollars` is None where no price is known, 0 where it costs nothing."""

    input_tokens: int
    output_tokens: int
    dollars: float | None


class Captioner(Protocol):
    """One model that writes captions. Packages add theirs as entry points of the group `lorapod.captioners`.

    Attributes:
        name: What `--captioner` calls it.
        model: The model's own name, as shown and recorded.
        kinds: What it can look at.
        at_once: Most requests that it makes use of at a time: of a service, what it is likely to stand; of a local
            model, two batches, so that the next is read while the first is thought about.
    """

    name: str
    model: str
    kinds: frozenset[Kind]
    at_once: int

    def estimate(self, ask: Ask) -> Cost:
        """What `ask` is likely to take, without asking."""
        ...

    async def caption(self, ask: Ask) -> Answer:
        """Ask once; no retry.

        Raises:
            BusyError: Asking again later may help.
            DeclinedError: The model or its service will not answer about this item.
            ItemError: This item cannot be captioned by this captioner; others can.
            LorapodError: Nothing can be captioned (a wrong key, an unknown model, no money): the runner stops.
        """
        ...

    async def close(self) -> None:
        """Give back connections, processes, memory and files left with a service."""
        ...


class BusyError(LorapodError):
    """The service cannot answer now: too many requests, overloaded, no connection, a cut answer.

    Args:
        seconds: How long the service asks to be left alone, if it said so.
        slow_down: True where fewer requests at a time are asked for (429, 503), False for a fault of this one.
    """

    def __init__(
        self, what: str, why: str = "", remedy: str = "", *, seconds: float | None = None, slow_down: bool = False
    ) -> None:
        super().__init__(what, why, remedy)
        self.seconds, self.slow_down = seconds, slow_down


class DeclinedError(LorapodError):
    """The model or its service will not answer about this item; `why` is its reason."""


class ItemError(LorapodError):
    """This item cannot be captioned (unreadable, too long, of a kind that the captioner does not take)."""
