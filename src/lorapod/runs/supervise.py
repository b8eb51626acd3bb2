"""The supervisor: a process of its own that runs a run's stages and outlives the terminal.

    python -m lorapod.runs.supervise RUN --workspace DIR [--resume]

Each stage is a process group of its own. The first SIGINT or SIGTERM asks the stage to stop cleanly, in its trainer's
way; the second ends it (SIGTERM, then SIGKILL). On Linux a stage dies with its supervisor even if that is killed with
SIGKILL; elsewhere it finishes its stage alone. Not covered: processes that a stage moves into a session of their own,
but for those of external trainers, which are looked for among a stage's descendants.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from lorapod.errors import DiskError, LorapodError, RequestError, RunError
from lorapod.events import PREFIX, EndStatus, Event, event
from lorapod.files import disk_error, write_text_whole
from lorapod.processes import ending_with_parent
from lorapod.runs.folder import RunFolder
from lorapod.runs.journal import Journal, write_all
from lorapod.runs.store import record
from lorapod.settings import mask_secrets, secret_values
from lorapod.trainers import Stage, StageWatch, Trainer, get_trainer
from lorapod.trainers.lines import Line, LineSplitter
from lorapod.workspace import Workspace

STOPPED_EXIT = 130
PATIENCE_SECONDS = 600.0
FORCE_SECONDS = 10.0
_HINT_LINES = 6
_HINT_LENGTH = 2000
_TICK_SECONDS = 0.2
_LINGER_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_CLOSED_SETS = ("type", "status", "format")
"""Fields of events that hold one of a few words, so never a secret, whatever a secret may look like."""


class Supervisor:
    """Runs the stages of one run.

    Args:
        run: The run folder.
        trainer: Follows the stages: reads what they print, knows how they are asked to stop and why they failed.
        patience_seconds: How long a stage may take to stop cleanly.
    """

    def __init__(
        self, run: RunFolder, workspace: Workspace, trainer: Trainer, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.run_folder, self.workspace, self.trainer, self.patience = run, workspace, trainer, patience_seconds
        self.secrets = secret_values()
        self.process: subprocess.Popen[bytes] | None = None
        self.stops_asked = 0
        self.asked_at = 0.0
        self.forced = False
        self.broken: LorapodError | None = None
        self.had_error = False
        self.tail: list[str] = []
        self.watch: StageWatch | None = None
        self.doomed_at = 0.0
        self.looked_at = 0.0

    def run(self, stages: Sequence[Stage]) -> EndStatus:
        """Runs the stages to the end, a failure, or a stop.

        Raises:
            RunError: Another supervisor has this run.
        """
        for number in (signal.SIGINT, signal.SIGTERM):  # before the lock, by which others know whom to send them to
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with self._locked():
            self.journal = Journal(self.run_folder)
            self._sweep()
            self._record()
            began, status = time.time(), "failed"
            try:
                status = self._run_stages(stages)
            except (LorapodError, OSError) as error:
                shown = error if isinstance(error, LorapodError) else disk_error(error, self.run_folder.path)
                with contextlib.suppress(DiskError):
                    self._note(event("error", message=shown.what, hint=shown.to_hint()))
            finally:
                with contextlib.suppress(DiskError):  # a run whose end cannot be noted is seen as interrupted
                    self._note(event("end", status=status, seconds=round(time.time() - began, 1)))
            self._write_report()
            self.journal.close()
            self._record()
        return status  # type: ignore[return-value]

    def _run_stages(self, stages: Sequence[Stage]) -> str:
        for stage in stages:
            status = self._run_stage(stage)
            if status != "done":
                return status
        return "done"

    def _record(self) -> None:
        """Tells the store; a store that cannot be written is no reason to end a run, since it can be made anew."""
        try:
            record(self.run_folder, self.workspace)
        except LorapodError as error:
            sys.stderr.write(f"{error}\n")  # which is the run's log

    def _write_report(self) -> None:
        from lorapod.runs.report import write_report  # its libraries need not be in memory while a run goes on

        try:
            write_report(self.run_folder.path)
        except LorapodError as error:
            with contextlib.suppress(DiskError):
                self._note(event("warning", message=f"The report is missing: {error.what}", hint=error.to_hint()))

    def _sweep(self) -> None:
        """Removes half-written files that a killed stage left in the run folder."""
        for part in self.run_folder.path.glob("*/.*.part"):
            part.unlink(missing_ok=True)

    def _run_stage(self, stage: Stage) -> str:
        if self.stops_asked:
            return "stopped"
        self.tail, self.had_error, self.forced, self.doomed_at = [], False, False, 0.0
        watch = self.watch = self.trainer.watch(stage)
        with self._opened_log() as log:
            self._log(log, f"--- {stage.name} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
            try:
                self.process = subprocess.Popen(
                    stage.argv,
                    env=stage.env,
                    cwd=stage.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=ending_with_parent(),
                )
            except OSError as error:
                self._note(event("error", message=f"The stage {stage.name} could not be started", hint=str(error)))
                return "failed"
            if self.stops_asked:
                self._end_group(watch.stop_signal)  # asked between the check above and the start
            try:
                self._note_all(watch.begin(self.process.pid))
                assert self.process.stdout is not None
                with self.process.stdout as output:
                    self._read(self.process, output.fileno(), log)
                    while self.process.poll() is None:  # it closed its output, yet goes on
                        self._hurry()
                        time.sleep(_TICK_SECONDS)
                code = self.process.returncode
            finally:
                self._end_group(signal.SIGKILL)  # whatever the stage left behind in its group
                self.process = None
                watch.close()
        if self.broken:
            raise self.broken
        return self._status_of(stage, code)

    def _read(self, process: subprocess.Popen[bytes], source: int, log: int) -> None:
        """Reads the stage's output until it is closed, without ever waiting longer than a tick."""
        splitter, over_since = LineSplitter(), 0.0
        while True:
            ready, _, _ = select.select([source], [], [], _TICK_SECONDS)
            self._hurry()
            self._look()
            if process.poll() is not None:  # a grandchild may hold the pipe open, silently or not
                over_since = over_since or time.monotonic()
                if not ready or time.monotonic() - over_since > _LINGER_SECONDS:
                    break
            if not ready:
                continue
            data = os.read(source, 1 << 16)
            if not data:
                break
            for line in splitter.feed(data):
                self._take(line, log)
        for line in splitter.rest():
            self._take(line, log)

    def _look(self) -> None:
        """Lets the watch look at the stage, and ends a stage that it has given up."""
        watch, now = self.watch, time.monotonic()
        if watch is None or self.broken or now - self.looked_at < _LOOK_SECONDS:
            return
        self.looked_at = now
        try:
            self._note_all(watch.tick())
        except LorapodError as error:
            self.broken, self.asked_at = error, now
            self._end_group(watch.stop_signal)
        if watch.doom and not self.doomed_at:
            self.doomed_at = now
            self._end_group(signal.SIGTERM)

    def _note_all(self, items: Sequence[Event]) -> None:
        for item in items:
            self._note(item)

    def _take(self, line: Line, log: int) -> None:
        """Keeps one line. When the disk takes no more, the stage is asked to stop and the rest is only read."""
        if self.broken:
            return
        try:
            self._keep(line, log)
        except LorapodError as error:
            self.broken, self.asked_at = error, time.monotonic()
            self._end_group(self.watch.stop_signal if self.watch else signal.SIGINT)

    def _keep(self, line: Line, log: int) -> None:
        assert self.watch is not None
        before, mark, rest = line.text.rpartition(PREFIX)  # a bar without a line end may stand before an event
        found = self.watch.read(mark + rest)
        self._note_all(found)
        if found and mark and not before:
            return
        text = mask_secrets(before if found and mark else line.text, self.secrets)
        if not line.stays:  # a state of a bar that the next one overwrites
            return
        self._log(log, text)
        if text.strip():
            self.tail = [*self.tail, text.strip()[-_HINT_LENGTH:]][-_HINT_LINES:]

    def _note(self, item: Event) -> None:
        self.had_error = self.had_error or item["type"] == "error"
        masked = {name: value if name in _CLOSED_SETS else self._masked(value) for name, value in item.items()}
        self.journal.add(masked)

    def _masked(self, value: Any) -> Any:
        """`value` with secrets masked in its texts; numbers stay numbers, whatever digits a secret is made of."""
        if isinstance(value, str):
            return mask_secrets(value, self.secrets)
        if isinstance(value, list):
            return [self._masked(part) for part in value]
        if isinstance(value, dict):
            return {name: self._masked(part) for name, part in value.items()}
        return value

    def _status_of(self, stage: Stage, code: int) -> str:
        ending = self.watch.end(code, stopped=self.stops_asked > 0, forced=self.forced) if self.watch else None
        if ending is not None:
            self._note_all(ending.events)
            if ending.error and not self.had_error:
                self._note(event("error", message=ending.error.what, hint=ending.error.to_hint()))
            return ending.status
        if self.forced and self.stops_asked == 1:
            message = f"The stage {stage.name} did not stop within {self.patience:.0f} s and was ended"
            self._note(event("warning", message=message, hint="It wrote no new checkpoint; the last one is kept."))
        if self.forced or (self.stops_asked and code in (STOPPED_EXIT, -signal.SIGTERM, -signal.SIGINT)):
            return "stopped"
        if code == 0:
            return "stopped" if self.stops_asked and not stage.name.startswith("train") else "done"
        if code == STOPPED_EXIT:
            return "stopped"
        if not self.had_error:
            self._note(event("error", message=_what_happened(stage, code), hint=self._hint(code)))
        return "failed"

    def _hint(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return (
                "The machine most likely ran out of memory and the system ended it. Use a smaller batch or resolution, "
                "then resume."
            )
        last = " | ".join(self.tail)
        return f"Its last words: {last}. The whole output is in log.txt." if last else "It printed nothing."

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stops_asked += 1
        self.asked_at = time.monotonic()
        if self.stops_asked > 1:
            self._end_group(signal.SIGTERM)
        elif self.watch is None or not self.watch.ask_to_stop():
            self._end_group(self.watch.stop_signal if self.watch else signal.SIGINT)
        with contextlib.suppress(DiskError):
            self._introduce()

    def _hurry(self) -> None:
        """Ends a stage that was asked to stop and does not, or that was given up."""
        if self.doomed_at and not self.forced and time.monotonic() - self.doomed_at > FORCE_SECONDS:
            self.forced = True
            self._end_group(signal.SIGKILL)
        if not (self.stops_asked or self.broken) or self.forced:
            return
        waited = time.monotonic() - self.asked_at
        if waited > (self.patience if self.stops_asked <= 1 else FORCE_SECONDS):
            self.forced = True
            self._end_group(signal.SIGKILL)

    def _end_group(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.run_folder.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"The run {self.run_folder.id} is already going on",
                    "Another process supervises it.",
                    f"Watch it with `lorapod runs attach {self.run_folder.id}`.",
                ) from error
            self._introduce()
            yield

    def _introduce(self) -> None:
        """Notes who supervises the run, and whether a stop was asked for already."""
        me = psutil.Process()
        noted = {"pid": me.pid, "created": me.create_time(), "stopping": self.stops_asked > 0}
        write_text_whole(self.run_folder.lock, json.dumps(noted))

    @contextlib.contextmanager
    def _opened_log(self) -> Iterator[int]:
        try:
            log = os.open(self.run_folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(error, self.run_folder.log) from error
        try:
            yield log
        finally:
            os.close(log)

    def _log(self, log: int, text: str) -> None:
        try:
            write_all(log, text.encode() + b"\n")
        except OSError as error:
            raise disk_error(error, self.run_folder.log) from error


def _what_happened(stage: Stage, code: int) -> str:
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"The stage {stage.name} was ended by {known.get(-code, f'signal {-code}')}"
    return f"The stage {stage.name} failed with exit status {code}"


def main() -> int:
    """The supervisor's command line; its own failures end up in the run's log."""
    parser = argparse.ArgumentParser(prog="python -m lorapod.runs.supervise", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    run, workspace = RunFolder(arguments.run), Workspace(arguments.workspace)
    recipe = run.recipe()
    trainer = get_trainer(recipe.trainer)
    try:
        stages = trainer.plan(recipe, run.path, workspace, arguments.resume)
        status = Supervisor(run, workspace, trainer).run(stages)
    except RequestError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return {"done": 0, "stopped": STOPPED_EXIT}.get(status, 1)


if __name__ == "__main__":
    sys.exit(main())
