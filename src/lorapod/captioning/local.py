"""What models on this machine share: asks gathered into batches, decoding beside the GPU's work, memory that runs out.

Asks queue up; decoded ones go to the model together, in one thread, as many as a batch takes, while the next are decoded in
others. A batch that is not full goes as soon as nothing more is being decoded. When the GPU's memory runs out, batches are
halved for good and the same asks are tried again. torch is imported here only when a model is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorapod.captioning.base import Answer, Ask, Cost, ItemError, Kind
from lorapod.data.threads import cores
from lorapod.errors import FetchError, LorapodError, OutOfMemoryError, RequestError
from lorapod.files import write_text_whole

_REVISION = "revision.json"

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


def _heard_by(heard: Callable[[float, float], None]) -> type[Any]:
    """A bar that draws nothing and tells how many bytes there are. The client makes several: of files, of bytes from the
    network, of bytes written; the one that is furthest counts."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    bars: list[Any] = []

    class Heard(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]
            self.bytes = kwargs.get("initial") or 0.0
            if kwargs.get("unit") == "B":
                with lock:
                    bars.append(self)

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.bytes += n or 0.0
                done = max((bar.bytes for bar in bars), default=0.0)
                total = max((bar.total or 0.0 for bar in bars), default=0.0)
            heard(done, total)

    return Heard


def fetched_folder(name: str, models: Path) -> Path | None:
    """Where a model of the Hub lies that was fetched whole; None where it was not."""
    folder = models / "captioners" / name.replace("/", "--")
    return folder if (folder / _REVISION).is_file() else None


def find_model(
    name: str,
    models: Path | None,
    environment: Mapping[str, str],
    only: list[str] | None = None,
    heard: Callable[[float, float], None] | None = None,
) -> Path:
    """The folder of a model: one on disk, or one that is fetched from the Hub into `models`, at the revision that was
    fetched first; nothing is upgraded unasked.

    Args:
        only: Files that are needed of it; None for all but old formats of weights.
        heard: Told, from any thread, bytes that are there and bytes in all as they are known so far, in place of bars on
            the terminal; what it raises ends the download, which goes on from there the next time.

    Raises:
        RequestError: There is no place to fetch it to.
        FetchError: It cannot be fetched.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local.absolute()
    if models is None:
        raise RequestError(f"There is no folder {name}", "", "Name the folder of the model.")
    here = fetched_folder(name, models)
    if here is not None:
        return here
    folder = models / "captioners" / name.replace("/", "--")
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from lorapod.models.hub import endpoint

    token = environment.get("HF_TOKEN") or None
    try:
        found = HfApi(endpoint=endpoint(), token=token).model_info(name).sha
        snapshot_download(
            name,
            revision=found,
            local_dir=folder,
            endpoint=endpoint(),
            token=token,
            allow_patterns=only,
            ignore_patterns=["*.bin", "*.pth"],
            tqdm_class=_heard_by(heard) if heard else None,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise FetchError(
            f"{name} could not be fetched",
            " ".join(str(error).split())[:300],
            "Check the connection and HF_TOKEN; what has arrived is kept, and the same command goes on.",
        ) from error
    write_text_whole(folder / _REVISION, json.dumps({"repository": name, "revision": found}) + "\n")
    return folder
