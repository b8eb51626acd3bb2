"""What has to be done before training, side by side: fetching the base model, installing the trainer, captioning.

Each job has a thread of its own and says how far it is; asked to stop, it ends at the next opportunity and keeps what it
has. One that fails leaves the others to end. What training a model takes of a GPU is not counted against a captioner that
runs on the same GPU: training begins when all jobs are done.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorapod.errors import LorapodError
from lorapod.models.fetch import Progress as PullProgress
from lorapod.models.fetch import pull
from lorapod.models.plan import size_text
from lorapod.recipe import TrainerName
from lorapod.start.answers import KEEP, TRIGGER_ALONE
from lorapod.start.session import Session
from lorapod.start.steps import trainer_of

if TYPE_CHECKING:
    from lorapod.captioning.items import Left
    from lorapod.captioning.runner import Runner
    from lorapod.captioning.tally import Tally
    from lorapod.models.hub import RemoteFile
    from lorapod.models.plan import Plan


class StoppedError(LorapodError):
    """The person asked the job to stop."""


@dataclass
class Job:
    """One thing that is done in a thread of its own.

    Attributes:
        title: What it is, for its bar.
        done, total: How far it is, in its own unit; total None where it is not known.
        said: How far it is, in words.
        notes: What it has to tell besides.
    """

    title: str
    begin: Callable[[Job], None]
    done: float = 0.0
    total: float | None = None
    said: str = "waiting"
    is_stopping: bool = False
    notes: list[str] = field(default_factory=list)
    on_stop: Callable[[], None] | None = None
    future: Future[None] | None = None

    def start(self) -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix=f"lorapod-{self.title}")
        self.future = pool.submit(self.begin, self)
        pool.shutdown(wait=False)

    @property
    def is_over(self) -> bool:
        return self.future is not None and self.future.done()

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None while it goes on."""
        return self.future.exception() if self.future is not None and self.future.done() else None

    def stop(self) -> None:
        """Asks it to end; what it has done is kept."""
        self.is_stopping = True
        if self.on_stop is not None:
            self.on_stop()

    def heed(self) -> None:
        """Raises where it is to stop."""
        if self.is_stopping:
            raise StoppedError("Stopped")


class _Pulling(PullProgress):
    """Tells a job how a download goes, and ends it where the job is to stop."""

    def __init__(self, job: Job) -> None:
        self.job, self.lock = job, threading.Lock()
        self.fresh = 0

    def begin(self, plan: Plan) -> None:
        self.job.total, self.job.done = float(plan.total), float(plan.total - plan.missing)
        self.began = time.monotonic()
        self._say()

    def advance(self, file: RemoteFile, count: int) -> None:
        self.job.heed()
        with self.lock:
            self.job.done += count
            self.fresh += count
            self._say()

    def _say(self) -> None:
        total = self.job.total or 0.0
        seconds = time.monotonic() - self.began
        rate = self.fresh / seconds if seconds > 1 else 0.0
        speed = f", {size_text(rate)}/s" if rate > 0 else ""
        self.job.said = f"{size_text(self.job.done)} of {size_text(total)}{speed}"

    def note(self, text: str) -> None:
        self.job.notes.append(text)


def jobs_of(session: Session) -> list[Job]:
    """What has to be done before this session can train; captioning, if any, comes first."""
    return [job for job in (captioning(session), fetching(session), installing(session)) if job is not None]


def fetching(session: Session) -> Job | None:
    """Fetching what the trainer needs of the base model; None where it is here."""
    facts, name, trainer = session.facts, session.model, trainer_of(session)
    entry = facts.entries[name]
    if entry.packaged or trainer in facts.here.get(name, []):
        return None

    def begin(job: Job) -> None:
        job.said = "asking what there is"
        pull(entry, trainer if entry.trainers else None, facts.workspace, _Pulling(job))

    return Job(f"{entry.title}", begin)


def installing(session: Session) -> Job | None:
    """Installing an external trainer; None where it can be started."""
    name = trainer_of(session)
    if name == "builtin" or session.facts.trainers.get(name):
        return None

    def begin(job: Job) -> None:
        from lorapod.trainers.installs import install

        def say(text: str) -> None:
            job.heed()
            lines = text.strip().splitlines()
            job.said = lines[-1][:60] if lines else job.said

        install(TrainerName(name), session.facts.workspace, say)

    return Job(name, begin, said="beginning")


def captioning(session: Session) -> Job | None:
    """Writing the captions that are missing; None where there are none, or none are wanted."""
    name = session.answers.captioner
    if not session.contents.bare or name in (None, KEEP, TRIGGER_ALONE):
        return None

    def begin(job: Job) -> None:
        job.said = "beginning"
        for folder in session.contents.folders:
            job.heed()
            _caption(session, folder, job)

    return Job("Captions", begin)


def _caption(session: Session, folder: Path, job: Job) -> None:
    from lorapod.captioning.cleaning import Judge
    from lorapod.captioning.items import plan_captions
    from lorapod.captioning.registry import Options, create
    from lorapod.captioning.runner import Runner
    from lorapod.captioning.wishes import suited, wish_of
    from lorapod.data import MediaCache

    answers, workspace = session.answers, session.facts.workspace
    name = answers.captioner or "template"
    wish = wish_of(
        workspace,
        trigger=answers.trigger or "",
        class_word=answers.class_word or "",
        goal=answers.goal or "",
        base=session.model,
    )
    options = Options(
        trigger=answers.trigger or "",
        class_word=answers.class_word or "",
        models=workspace.models,
        heard=_Fetched(job),
        environment=session.facts.environment,
    )

    async def run() -> None:
        captioner = create(name, options)
        judge = Judge(suited(wish, name))
        try:
            plan = plan_captions(folder, kinds=captioner.kinds, captioner=name)
            if not plan.ask:
                job.notes += [f"{left.path.name}: {left.reason}" for left in plan.left]
                return
            runner = Runner(plan, captioner, [judge], watch=_Watch(job), cache=MediaCache.of(workspace))
            loop = asyncio.get_running_loop()
            job.on_stop = lambda: _stop_in(loop, runner)
            if job.is_stopping:
                runner.stop()
            outcome = await runner.run()
        finally:
            job.on_stop = None
            await captioner.close()
        job.notes += [f"{left.path.name}: {left.reason}" for left in [*plan.left, *outcome.failed, *outcome.declined]]
        if outcome.error is not None:
            raise outcome.error
        job.heed()

    asyncio.run(run())


def _stop_in(loop: asyncio.AbstractEventLoop, runner: Runner) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(runner.stop)


class _Fetched:
    """Tells a job how the download of a captioner's model goes, and ends it where the job is to stop."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, done: float, total: float) -> None:
        self.job.heed()
        self.job.said = f"fetching the captioner: {size_text(done)}" + (f" of {size_text(total)}" if total else "")
        if total:
            self.job.done, self.job.total = done, total


class _Watch:
    """Tells a job how captioning goes (`lorapod.captioning.runner.Watch`)."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def changed(self, tally: Tally) -> None:
        self.job.done, self.job.total = float(tally.done), float(tally.total)
        spent = f", ${tally.dollars:.2f}" if tally.dollars >= 0.005 else ""
        failed = f", {tally.failed} failed" if tally.failed else ""
        self.job.said = f"{tally.done} of {tally.total}{spent}{failed}"

    def wrote(self, path: Path, text: str) -> None:
        """Captions are on disk; the bar says how many."""

    def failed(self, left: Left) -> None:
        """It is said at the end."""


def stop_all(jobs: list[Job], seconds: float = 15.0) -> None:
    """Asks every job to stop and waits for them, no longer than so many seconds."""
    for job in jobs:
        if not job.is_over:
            job.stop()
    wait([job.future for job in jobs if job.future is not None], timeout=seconds)
