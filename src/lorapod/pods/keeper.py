"""Keeps services running: starts them, waits until they answer, starts those that end again, and ends them.

Every child that ends is waited for, also those that were left to this process as process 1, so that none stays as a zombie.
Services die with this process even if it is killed.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from lorapod.pods.runtime import Running
from lorapod.pods.services import Service
from lorapod.processes import ending_with_parent

READY_SECONDS = 30.0
END_SECONDS = 5.0
_PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before a service that ended is started again, the first time, the second, ..."""
_STEADY_SECONDS = 120.0
"""A service that ran this long is taken to be sound: its count of ends begins anew."""

Say = Callable[[str], None]


@dataclass
class _Kept:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    ends: int = 0
    again_at: float = 0.0
    barred: bool = False
    """Whether it must not be started again: ended on purpose, or its port is taken."""
    proved: bool = False
    """Whether this process of it was seen to answer, and to refuse strangers."""


class Keeper:
    """Keeps some services running.

    Args:
        logs: Folder of what they print.
        say: Tells the person.
        changed: Called with what runs whenever that changes.
    """

    def __init__(
        self, services: Sequence[Service], logs: Path, say: Say, changed: Callable[[list[Running]], None]
    ) -> None:
        self._kept = [_Kept(service) for service in services]
        self._logs, self._say, self._changed = logs, say, changed

    def start(self) -> None:
        """Starts every service that nobody else's program stands in the way of."""
        for kept in self._kept:
            if _listens(kept.service.port):
                kept.barred = True
                self._say(
                    f"{kept.service.title}: the port {kept.service.port} is taken by another program, so it was not "
                    "started. End that program, then boot again."
                )
                continue
            self._start(kept)
        self._tell()

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> list[Service]:
        """Waits until all answer; returns those that do. One that lets strangers in is ended at once."""
        deadline, ready = time.monotonic() + seconds, []
        waiting = [kept for kept in self._kept if kept.process is not None]
        while waiting and time.monotonic() < deadline:
            self.reap()
            for kept in list(waiting):
                if kept.process is None:
                    waiting.remove(kept)
                elif self._proves(kept):
                    waiting.remove(kept)
                    ready.append(kept.service)
            time.sleep(0.05)
        return ready

    def _proves(self, kept: _Kept) -> bool:
        if not kept.proved and not kept.barred and _answers(kept.service):
            kept.proved = self._is_closed(kept)
        return kept.proved

    def tend(self) -> None:
        """Waits for children that ended, and starts services again whose time has come."""
        self.reap()
        for kept in self._kept:
            if kept.process is None and not kept.barred and time.monotonic() >= kept.again_at:
                self._start(kept)
                self._say(f"{kept.service.title} was started again")
                self._tell()
            elif kept.process is not None and not kept.proved:
                self._proves(kept)

    def reap(self) -> None:
        """Takes the exit status of every child that ended, ours or left to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for kept in self._kept:
                if kept.process is not None and kept.process.pid == pid:
                    kept.process.returncode = os.waitstatus_to_exitcode(
                        status
                    )  # so that Popen does not wait for it again
                    self._ended(kept, kept.process.returncode)

    def stop(self) -> None:
        """Ends all services; those that do not heed SIGTERM are killed."""
        going = [kept for kept in self._kept if kept.process is not None]
        for kept in going:
            kept.barred = True
            _signal(kept.process, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while any(kept.process is not None for kept in going) and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.02)
        for kept in going:
            _signal(kept.process, signal.SIGKILL)
            if kept.process is not None:
                with suppress(ChildProcessError):
                    kept.process.wait()
                kept.process = None
        self._tell()

    def _start(self, kept: _Kept) -> None:
        path = self._logs / f"{kept.service.name}.log"
        try:
            log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:  # no room even for a log
            log = os.open(os.devnull, os.O_WRONLY)
        try:
            kept.process = subprocess.Popen(
                kept.service.argv, env=dict(kept.service.environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=ending_with_parent(signal.SIGTERM),
            )  # fmt: skip
            kept.began, kept.proved = time.monotonic(), False
        except OSError as error:
            self._say(f"{kept.service.title} cannot be started: {error}")
            kept.barred = True
        finally:
            os.close(log)

    def _ended(self, kept: _Kept, code: int) -> None:
        steady = time.monotonic() - kept.began > _STEADY_SECONDS
        kept.process, kept.ends = None, 0 if steady else kept.ends + 1
        if kept.barred:
            return
        pause = _PAUSES[min(kept.ends, len(_PAUSES)) - 1] if kept.ends else 0.0
        kept.again_at = time.monotonic() + pause
        what = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        self._say(
            f"{kept.service.title} ended ({what}); it is started again in {pause:.0f} s. {self._last_words(kept)}"
        )
        self._tell()

    def _last_words(self, kept: _Kept) -> str:
        try:
            lines = (self._logs / f"{kept.service.name}.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f"Its last words: {lines[-1][:200]}" if lines else "It printed nothing."

    def _is_closed(self, kept: _Kept) -> bool:
        """Whether it refuses a caller without a token; one that does not, as by somebody's own settings, is ended."""
        service = kept.service
        if not service.closed_path or _status(service.port, service.closed_path) in (401, 403):
            return True
        kept.barred = True
        _signal(kept.process, signal.SIGKILL)
        self._say(
            f"{service.title} was ended: it let in a caller without {service.asks_for}. Settings of your own seem to turn "
            "its protection off; remove them, then boot again."
        )
        return False

    def _tell(self) -> None:
        self._changed(
            [
                Running(s.name, s.title, s.port, s.link, s.asks_for, kept.process.pid, _created(kept.process.pid))
                for kept in self._kept
                if kept.process is not None and (s := kept.service)
            ]
        )


def _created(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _signal(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    """To all of the service's process group: sshd and Jupyter have children of their own."""
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(service: Service) -> bool:
    return _status(service.port, service.alive_path) == 200 if service.alive_path else _listens(service.port)


def _status(port: int, path: str) -> int:
    """Status of an HTTP answer on this machine; 0 without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
