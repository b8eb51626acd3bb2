"""What models on this machine share: asks gathered into batches, decoding beside the GPU's work, memory that runs out.

Asks queue up; decoded ones go to the model together, in one thread, as many as a batch takes, while the next are decoded in
others. A batch that is not full goes as soon as nothing more is being decoded. When the GPU's memory runs out, batches are
halved for good and the same asks are tried again. torch is imported here only when a model is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from lorapod.captioning.base import Answer, Ask, Cost, ItemError, Kind
from lorapod.data.threads import cores
from lorapod.errors import LorapodError, OutOfMemoryError

_PATIENCE_SECONDS = 0.02
"""How long a batch that is not full waits for an ask that is being decoded."""


@dataclass(frozen=True)
class Decoded:
    """An ask with what its model looks at, in the model's own form."""

    ask: Ask
    media: Any


class Model(Protocol):
    """A model that is loaded, or will be when it is first used."""

    name: str
    kinds: frozenset[Kind]

    def decode(self, ask: Ask) -> Any:
        """What is looked at; called in threads. Raises ItemError."""

    def write(self, batch: Sequence[Decoded]) -> list[Answer]:
        """Answers in the order of the asks; called in one thread. May raise torch's OutOfMemoryError."""

    def free(self) -> None:
        """Gives the memory back."""


class LocalCaptioner:
    """A captioner of a model on this machine.

    Attributes:
        batch: Asks a batch; halved where the memory runs out.
        warnings: What a person should be told at the end.
    """

    def __init__(self, name: str, model: Model, batch: int) -> None:
        self.name, self.model, self.kinds = name, model.name, model.kinds
        self.batch, self.at_once = batch, 2 * batch
        self.warnings: list[str] = []
        self._model = model
        self._decoding = ThreadPoolExecutor(max(2, cores()), thread_name_prefix="decode")
        self._thinking = ThreadPoolExecutor(1, thread_name_prefix="caption")
        self._ready: asyncio.Queue[tuple[Decoded, asyncio.Future[Answer]]] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._decoding_now = 0

    def estimate(self, ask: Ask) -> Cost:
        return Cost(0, 0, 0.0)

    async def caption(self, ask: Ask) -> Answer:
        if ask.kind not in self.kinds:
            raise ItemError(f"{self.name} does not look at {ask.kind}s")
        loop = asyncio.get_running_loop()
        if self._ready is None or self._pump is None:
            self._ready, self._pump = asyncio.Queue(), loop.create_task(self._work())
        self._decoding_now += 1
        try:
            media = await loop.run_in_executor(self._decoding, self._model.decode, ask)
        finally:
            self._decoding_now -= 1
        answer: asyncio.Future[Answer] = loop.create_future()
        self._ready.put_nowait((Decoded(ask, media), answer))
        return await answer

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._thinking.shutdown(wait=True, cancel_futures=True)
        self._model.free()

    async def _work(self) -> None:
        assert self._ready is not None
        while True:
            waiting = [await self._ready.get()]
            while len(waiting) < self.batch:
                try:
                    patience = _PATIENCE_SECONDS if self._decoding_now else 0.0
                    waiting.append(
                        self._ready.get_nowait()
                        if not self._ready.empty()
                        else await asyncio.wait_for(self._ready.get(), patience)
                    )
                except (TimeoutError, asyncio.QueueEmpty):
                    if not self._decoding_now:
                        break
            await self._answer([each for each in waiting if not each[1].done()])

    async def _answer(self, waiting: list[tuple[Decoded, asyncio.Future[Answer]]]) -> None:
        loop = asyncio.get_running_loop()
        while waiting:
            part = waiting[: self.batch]
            try:
                answers = await loop.run_in_executor(self._thinking, self._model.write, [each for each, _ in part])
            except LorapodError as error:
                _fail(part, error)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    _fail(part, error)
                    raise
                if self.batch > 1:
                    self.batch //= 2
                    self.warnings = [f"The GPU's memory ran out; {self.batch} at a time are captioned from there on."]
                    continue
                failure = OutOfMemoryError(
                    f"The GPU has no room for {self.model}",
                    str(error)[:200],
                    "Take a smaller model, or another captioner.",
                )
                _fail(part, failure)
            else:
                for (_, future), answer in zip(part, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
            waiting = waiting[len(part) :]


def _fail(part: Sequence[tuple[Decoded, asyncio.Future[Answer]]], error: Exception) -> None:
    for _, future in part:
        if not future.done():
            future.set_exception(error)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory; told by its class, since torch need not be imported here."""
    return type(error).__name__ == "OutOfMemoryError"
