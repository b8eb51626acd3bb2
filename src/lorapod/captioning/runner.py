"""The runner: asks a captioner about every item of a plan, and puts each caption on disk, whole, the moment it is there.

Many requests are out at a time, as many as the service stands (`throttle`). What a service fails at is asked again, later
and later; what a model answers badly is asked again in other words. Every item ends with a caption or with a reason, which
the folder's ledger keeps. Stopping loses nothing but what is out at that moment; a kill likewise.

What to ask for and what to accept is a `Judging`'s matter; with several, an item gets several captions, a line each, which
are written together or not at all. Not covered: more than one captioner at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from lorapod.captioning.base import Answer, Ask, BusyError, Captioner, DeclinedError, ItemError
from lorapod.captioning.items import Left, Plan, Subject, look_at
from lorapod.captioning.judging import Accepted, Judging, Refused
from lorapod.captioning.ledger import Fault, Ledgers, Write, alone_in, read_exactly
from lorapod.captioning.tally import Outcome, Tally, Watch
from lorapod.captioning.throttle import Budget, Throttle, back_off
from lorapod.data.media_cache import MediaCache
from lorapod.data.names import natural_key
from lorapod.errors import LorapodError

MOST_ATTEMPTS = 8
"""Of one request that the service fails at."""

MOST_REPEATS = 3
"""Of one item whose answers are no good."""

_LONGEST_PAUSE = 900.0
"""Seconds. Who asks for a longer one has a daily quota: the run ends, and the next goes on."""

_MOST_IN_VAIN = 10
"""Items in a row that the service fails at to the last, or that fail at the run's start in the very same way."""

_OPEN_FOR_EACH = 8
"""Items begun for each request that may be out: others wait for their next attempt, or for the disk."""

_LOOKED_AT_ONCE = 32
_RATE_OVER = 200


class Runner:
    """One run over a plan.

    Args:
        judges: One for each caption that an item gets, in the order of their lines.
        limit: Most items that are captioned.
        budget: Dollars that must not be passed.
        again_declined: Ask again for what the same model refused before.
        base_seconds: Of the back-off's first bound.
    """

    def __init__(
        self,
        plan: Plan,
        captioner: Captioner,
        judges: Sequence[Judging],
        *,
        limit: int | None = None,
        budget: float | None = None,
        again_declined: bool = False,
        watch: Watch | None = None,
        cache: MediaCache | None = None,
        base_seconds: float = 0.5,
    ) -> None:
        self.plan, self.captioner, self.judges = plan, captioner, judges
        self.subjects = plan.ask[:limit] if limit is not None else plan.ask
        self.run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(2)
        self.again_declined, self.watch, self.cache, self.base_seconds = again_declined, watch, cache, base_seconds
        self.throttle, self.budget = Throttle(captioner.at_once), Budget(budget)
        self.outcome = Outcome(self.run_id, Tally(len(self.subjects)))
        self.tally = self.outcome.tally
        self.ledgers = Ledgers()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_OPEN_FOR_EACH * self.throttle.at_once)
        self._to_write: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._ended: deque[float] = deque([time.monotonic()], _RATE_OVER)
        self._in_vain: list[str] = []
        self._rng = random.Random()

    def stop(self) -> None:
        """Asks for nothing more; what is out is waited for. A second call doesn't wait."""
        if self._stopping.is_set():
            for task in self._tasks:
                task.cancel()
        self._end("stop")

    async def run(self) -> Outcome:
        """Captions until all items ended, or the run did.

        Raises:
            DiskError: A folder cannot be written.
            RequestError: Another process writes captions there.
        """
        with alone_in(self.plan.folders):
            for folder in self.plan.folders:
                self.ledgers.of(folder / "_").sweep()  # read now: from here on they belong to the writer's thread
            for left in self.plan.left:
                self._note_left(left)
            writer = asyncio.create_task(self._write())
            try:
                await self._ask_all()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._to_write.put_nowait(None)
                await writer
        for paths in (self.outcome.written, self.outcome.kept):
            paths.sort(key=natural_key)
        for named in (self.outcome.failed, self.outcome.declined):
            named.sort(key=lambda left: natural_key(left.path))
        self.outcome.unfinished = self.tally.total - self.tally.done - len(self.outcome.declined)
        if not self.outcome.unfinished and self.outcome.stopped != "error":
            self.outcome.stopped = ""
        return self.outcome

    async def _ask_all(self) -> None:
        async with aclosing(self._looked_at()) as subjects:
            async for subject in subjects:
                await self._room.acquire()
                if self._stopping.is_set():
                    break
                task = asyncio.create_task(self._caption(subject))
                self._tasks.add(task)
                task.add_done_callback(self._over)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _looked_at(self) -> AsyncGenerator[Subject, None]:
        """The subjects with their sizes, a stretch ahead of those that are asked about."""
        stretches = [self.subjects[i : i + _LOOKED_AT_ONCE] for i in range(0, len(self.subjects), _LOOKED_AT_ONCE)]
        ahead = None
        try:
            for i in range(len(stretches)):
                now = ahead or asyncio.create_task(asyncio.to_thread(look_at, stretches[i], self.cache))
                ahead = now  # so that it is ended where waiting for it is
                looked = await now
                ahead = None
                if i + 1 < len(stretches):
                    ahead = asyncio.create_task(asyncio.to_thread(look_at, stretches[i + 1], self.cache))
                for each in looked:
                    if isinstance(each, Left):
                        self._fail(each, "", final=False)
                    elif self._stopping.is_set():
                        return
                    else:
                        yield each
        finally:
            if ahead:
                await asyncio.gather(ahead, return_exceptions=True)

    async def _caption(self, subject: Subject) -> None:
        asks = [judge.ask(subject) for judge in self.judges]
        request = _digest(self.captioner, asks)
        known = self.ledgers.of(subject.path).fault(subject.path)
        if known and known.final and known.request == request and not self.again_declined:
            self.outcome.declined.append(Left(subject.path, known.reason))
            return
        lines = []
        for ask, judge in zip(asks, self.judges, strict=True):
            try:
                text = await self._answered(ask, judge)
            except _NoCaption as error:
                self._fail(Left(subject.path, error.reason), request, final=error.final, error=error.cause)
                return
            if text is None:
                return
            lines.append(text)
        await self._accept(subject, lines, request)

    async def _answered(self, ask: Ask, judge: Judging) -> str | None:
        """An answer that is a caption; None where the run ends before there is one. Raises `_NoCaption`."""
        attempts = repeats = 0
        while True:
            try:
                answer = await self._ask(ask)
            except BusyError as busy:
                attempts += 1
                if attempts >= MOST_ATTEMPTS:
                    why = busy.what if not busy.why else f"{busy.what} ({busy.why.rstrip('.')})"
                    raise _NoCaption(f"{why}, {attempts} times", final=False, cause=busy) from busy
                if not await self._pause(max(back_off(attempts, self._rng, self.base_seconds), busy.seconds or 0.0)):
                    return None
                continue
            except DeclinedError as error:
                raise _NoCaption(_reason(error), final=True, cause=error) from error
            except ItemError as error:
                raise _NoCaption(_reason(error), final=False, cause=error) from error
            if answer is None:
                return None
            verdict = judge(ask, answer, repeats)
            if isinstance(verdict, Accepted):
                return verdict.text
            repeats += 1
            if isinstance(verdict, Refused) or repeats > MOST_REPEATS:
                raise _NoCaption(verdict.reason, final=isinstance(verdict, Refused))
            ask = verdict.ask

    async def _ask(self, ask: Ask) -> Answer | None:
        """One answer; None where the run ends before there is one."""
        if not await self.throttle.enter():
            return None
        begun = asyncio.get_running_loop().time()
        try:
            if not await self.budget.reserve(self.captioner.estimate(ask).dollars):
                self._end("budget")
                return None
            answer = None
            try:
                answer = await self.captioner.caption(ask)
            finally:
                self.budget.settle(answer.dollars if answer else None, answered=answer is not None)
            self.throttle.worked()
            self._count(answer)
            return answer
        except BusyError as busy:
            self.tally.busy += 1
            self._slow_down(busy, begun)
            raise
        finally:
            self.throttle.leave()

    def _slow_down(self, busy: BusyError, begun: float) -> None:
        if busy.slow_down:
            self.throttle.slow_down(begun)
        if busy.seconds is None:
            return
        if busy.seconds > _LONGEST_PAUSE:
            raise LorapodError(
                f"{busy.what}, for {busy.seconds / 3600:.1f} hours",
                f"{busy.why} A quota of the day is used up, most likely.".strip(),
                "Run the same command again then: it goes on with what is missing. Or choose another --model.",
            ) from busy
        self.throttle.hold(busy.seconds)
        self._tell()

    def _count(self, answer: Answer) -> None:
        self.tally.requests += 1
        self.tally.input_tokens += answer.input_tokens
        self.tally.output_tokens += answer.output_tokens
        self.tally.dollars, self.tally.is_priced = self.budget.spent, self.budget.answers > 0
        if self.budget.dollars is not None and answer.dollars is None:
            raise LorapodError(
                "The budget cannot be kept",
                f"What {self.captioner.model} costs is not known, and its service does not tell.",
                "Give --price IN,OUT (dollars a million tokens), or leave --budget out.",
            )

    async def _accept(self, subject: Subject, texts: Sequence[str], request: str) -> None:
        lines = [" ".join(text.encode("utf-8", "replace").decode().split()) for text in texts]
        if not all(lines):
            self._fail(Left(subject.path, "The answer was empty"), request, final=False)
            return
        by = f"{self.captioner.name}:{self.captioner.model}"
        write = Write(self.run_id, subject.caption.name, "\n".join(lines) + "\n", None, by, time.time())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_write.put_nowait(_Job(subject.path, write, done))
        await done

    def _fail(self, left: Left, request: str, *, final: bool, error: LorapodError | None = None) -> None:
        self.outcome.failed.append(left)
        self.tally.failed += 1
        fault = Fault(self.run_id, left.path.name, left.reason, request, final, time.time())
        self._to_write.put_nowait(_Job(left.path, fault))
        if self.watch:
            self.watch.failed(left)
        self._item_ended()
        self._give_up_if_vain(left, error)

    def _give_up_if_vain(self, left: Left, error: LorapodError | None) -> None:
        """Raises where all items meet with the same fault, which is then not the items'."""
        if isinstance(error, BusyError):
            self._in_vain.append("")
        elif isinstance(error, ItemError) and not self.tally.written:
            self._in_vain.append(left.reason)
        if error and len(self._in_vain) >= _MOST_IN_VAIN and len(set(self._in_vain)) == 1:
            raise LorapodError(
                f"{len(self._in_vain)} items in a row failed in the same way",
                f"The last: {left.reason}.",
                error.remedy or "Put that right, then run the same command again: it goes on with what is missing.",
            ) from error

    async def _write(self) -> None:
        """Writes what comes in its order, what waits together in one go; ends at a None."""
        while job := await self._to_write.get():
            jobs = [job]
            while not self._to_write.empty() and (job := self._to_write.get_nowait()):
                jobs.append(job)
            try:
                kept = await asyncio.to_thread(self._write_now, jobs)
            except LorapodError as error:
                self._broke(error)
                for each in jobs:
                    if each.done and not each.done.done():
                        each.done.set_result(None)
            else:
                for each in jobs:
                    if isinstance(each.entry, Write):
                        self._wrote(each, is_kept=each.path.parent / each.entry.name in kept)
            if job is None:
                return

    def _write_now(self, jobs: Sequence[_Job]) -> set[Path]:
        """Puts captions and faults on disk; gives the caption files that became the person's meanwhile."""
        kept: set[Path] = set()
        by_folder: dict[Path, list[_Job]] = {}
        for job in jobs:
            by_folder.setdefault(job.path.parent, []).append(job)
        for folder, of_folder in by_folder.items():
            ledger = self.ledgers.of(folder / "_")
            writes, media = [], []
            for each in of_folder:
                if isinstance(each.entry, Write):
                    writes.append(replace(each.entry, before=read_exactly(folder / each.entry.name)))
                    media.append(each.path.name)
            kept |= set(ledger.write(writes))
            ledger.settle(media, self.run_id)
            ledger.note_faults([each.entry for each in of_folder if isinstance(each.entry, Fault)])
        return kept

    def _wrote(self, job: _Job, *, is_kept: bool) -> None:
        assert isinstance(job.entry, Write)
        self._in_vain.clear()
        if is_kept:
            self.outcome.kept.append(job.path)
            self.tally.kept += 1
        else:
            self.outcome.written.append(job.path)
            self.tally.written += 1
            if self.watch:
                self.watch.wrote(job.path, job.entry.text.rstrip("\n"))
        self._item_ended()
        if job.done and not job.done.done():
            job.done.set_result(None)

    def _note_left(self, left: Left) -> None:
        """Names in the ledger what cannot be captioned at all, once."""
        ledger = self.ledgers.of(left.path)
        known = ledger.fault(left.path)
        if known is None or known.reason != left.reason:
            ledger.note_faults([Fault(self.run_id, left.path.name, left.reason, "", False, time.time())])

    def _item_ended(self) -> None:
        now = time.monotonic()
        self.tally.rate = len(self._ended) / max(now - self._ended[0], 1e-6)
        self._ended.append(now)
        self._tell()

    def _tell(self) -> None:
        self.tally.at_once, self.tally.pause = int(self.throttle.limit), self.throttle.pause
        if self.watch:
            self.watch.changed(self.tally)

    async def _pause(self, seconds: float) -> bool:
        """False where the run ends meanwhile."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def _end(self, why: str) -> None:
        self.outcome.stopped = self.outcome.stopped or why
        self._stopping.set()
        self.throttle.close()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        self._broke(error if isinstance(error, LorapodError) else _Bug(error))

    def _broke(self, error: LorapodError) -> None:
        self.outcome.error = self.outcome.error or error
        self.outcome.stopped = "error"
        self._end("error")


@dataclass(frozen=True)
class _Job:
    """What is to be put on disk about an item; `done` is told when it is."""

    path: Path
    entry: Write | Fault
    done: asyncio.Future[None] | None = None


class _NoCaption(Exception):
    """An item gets no caption: `reason` says why, `final` whether asking again is in vain, `cause` what failed."""

    def __init__(self, reason: str, *, final: bool, cause: LorapodError | None = None) -> None:
        super().__init__(reason)
        self.reason, self.final, self.cause = reason, final, cause


class _Bug(LorapodError):
    """Anything that is no LorapodError: a bug of ours or of a captioner, which must not be taken for a fault of an item."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            "Captioning ended in a bug",
            f"{type(error).__name__}: {error}",
            "What was captioned is kept. Run the same command with --debug, and report it.",
        )
        self.__cause__ = error


def _reason(error: LorapodError) -> str:
    return f"{error.what}: {error.why}".rstrip(".: ") if error.why else error.what


def _digest(captioner: Captioner, asks: Sequence[Ask]) -> str:
    """Hash of what is asked of whom."""
    parts = [captioner.name, captioner.model, *(part for ask in asks for part in (ask.system, ask.prompt))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
