"""A file from an address into a part: several connections, resumed, hashed while it is written.

The parts of a file that are missing are asked for in ranges by up to `connections` threads, from the front on; another
thread hashes behind them, so that the hash is ready with the last byte. After a broken connection the next request starts
at the first byte that is not there. A file that arrives with another hash than it should have is fetched once more.
"""

from __future__ import annotations

import errno
import http.client
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from lorapod.errors import FetchError
from lorapod.files import disk_error
from lorapod.models.parts import SEGMENT_BYTES, Part
from lorapod.models.web import Address, Answer, Client, RefusedError, WebError, get_range

_READ_BYTES = 1 << 18
_BYTES_A_CONNECTION = 24 << 20
_RANGES_IGNORED = 4
_STOP_SECONDS = 0.25
"""How soon a stop is noticed while connections wait for bytes."""
_WORTH_TELLING_SECONDS = 5.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


class ChangedError(Exception):
    """The file at the address is not the one that was planned, or not the one that was begun with."""


@dataclass(frozen=True)
class Patience:
    """How often and how long to ask again.

    Attributes:
        tries: Failures in a row, without a new byte in between, after which it is given up.
        first: Seconds before the first new try; each further one waits twice as long.
        longest: Seconds that a wait is never longer than, whatever a server asks for.
    """

    tries: int = 7
    first: float = 0.5
    longest: float = 120.0

    def wait(self, failures: int, asked: float | None) -> float:
        backoff = min(30.0, self.first * 2.0 ** (failures - 1)) * random.uniform(0.75, 1.25)
        return min(self.longest, max(backoff, asked or 0.0))


@dataclass
class Watcher:
    """Hears of what a transfer does; all methods may be called from any thread."""

    on_bytes: Callable[[int], None] = lambda count: None
    """New bytes have arrived; a negative count takes back what was thrown away."""
    on_note: Callable[[str], None] = lambda text: None
    """Something that a waiting person should know, as a pause that a server asked for."""


def transfer(
    address: Address,
    part: Part,
    algorithm: str = "sha256",
    connections: int = 4,
    watcher: Watcher | None = None,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
) -> str | None:
    """Fetches what is missing of `part`, which is open. Returns the file's hash as hex, None when `stop` was set.

    Raises:
        FetchError: The server cannot be reached or keeps failing.
        RefusedError: The server refuses the file.
        ChangedError: The file has another size, or another ETag, than it should have.
        DiskError: The disk is full.
    """
    job = _Transfer(address, part, watcher or Watcher(), patience or Patience(), stop or threading.Event())
    count = max(1, min(connections, -(-part.size // _BYTES_A_CONNECTION)))
    with ThreadPoolExecutor(count + 1, thread_name_prefix="lorapod-fetch") as pool:
        hashed = pool.submit(part.digest, algorithm, job.is_over)
        workers = [pool.submit(job.work, count) for _ in range(count)]
        try:
            waiting = set(workers)
            while waiting:
                done, waiting = wait(waiting, _STOP_SECONDS, FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                if job.is_over():
                    job.abort()
        except BaseException:
            job.over.set()
            job.abort()
            raise
        if job.stop.is_set():
            job.over.set()
        return hashed.result()


class _Transfer:
    """What the connections of one file share."""

    def __init__(
        self, address: Address, part: Part, watcher: Watcher, patience: Patience, stop: threading.Event
    ) -> None:
        self.address, self.part, self.watcher, self.patience, self.stop = address, part, watcher, patience, stop
        self.over = threading.Event()
        self.located: str | None = None
        self.not_before = 0.0
        self.ignored_ranges = 0
        self.one_reads_all = threading.Lock()
        self.clients: list[Client] = []

    def is_over(self) -> bool:
        return self.over.is_set() or self.stop.is_set()

    def abort(self) -> None:
        """Ends what connections wait for, however long a server is silent."""
        for client in list(self.clients):
            client.abort()

    def work(self, connections: int) -> None:
        """One of so many connections: takes stretches until none is left."""
        client = Client()
        self.clients.append(client)
        share = self.part.size if connections == 1 else self.part.size // (4 * connections)
        segment = max(self.part.block, min(SEGMENT_BYTES, share))
        try:
            while not self.is_over() and (taken := self.part.take(segment)) is not None:
                stretch = _Stretch(*taken)
                try:
                    self._fetch(client, stretch)
                finally:
                    self.part.give_back(taken[0], stretch.end)
        except BaseException:
            self.over.set()  # the other connections need not go on
            raise
        finally:
            client.close()

    def _fetch(self, client: Client, stretch: _Stretch) -> None:
        """Fetches one stretch, asking again from where it broke off."""
        while stretch.at < stretch.end and not self.is_over():
            self._pause()
            before = stretch.at
            try:
                if self.ignored_ranges >= _RANGES_IGNORED:
                    self._read_all(client)
                    stretch.at = stretch.end
                else:
                    self._read(client, self._ask(client, stretch), stretch)
            except (WebError, OSError, http.client.HTTPException) as error:
                client.close()
                if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                    raise disk_error(error, self.part.data_path) from error
                stretch.failures = 1 if stretch.at > before else stretch.failures + 1
                self._failed(error, stretch.failures)

    def _ask(self, client: Client, stretch: _Stretch) -> Answer:
        identified_by_etag = self.part.identity.startswith("http")
        answer = self._locate(client, stretch.at, stretch.end, self.part.etag if identified_by_etag else None)
        if answer.total is not None and answer.total != self.part.size:
            client.close()
            raise ChangedError(f"{self.address.shown} has {answer.total} bytes in place of {self.part.size}")
        if identified_by_etag and answer.etag:
            if self.part.etag and self.part.etag != answer.etag:
                client.close()
                raise ChangedError(f"{self.address.shown} is another file than when the download began")
            self.part.remember_etag(answer.etag)
        if answer.start != stretch.at:
            self.ignored_ranges += 1
            raise WebError(f"{self.address.shown} ignored the range that was asked for")
        if answer.ranges:
            self.ignored_ranges = 0
        return answer

    def _locate(self, client: Client, start: int, end: int | None, if_range: str | None) -> Answer:
        """Asks where the last redirect led, or at the source when there was none or that failed."""
        located = self.located
        if located is not None:
            try:
                return get_range(client, self.address, start, end, located, if_range)
            except (WebError, RefusedError):
                self.located = None
                raise
        answer = get_range(client, self.address, start, end, None, if_range)
        self.located = answer.url
        return answer

    def _read(self, client: Client, answer: Answer, stretch: _Stretch) -> None:
        while stretch.at < stretch.end and not self.is_over():
            content = answer.response.read1(min(_READ_BYTES, stretch.end - stretch.at))
            if not content:
                raise WebError("the answer ended early")
            self.part.write(stretch.at, content)
            stretch.at += len(content)
            self.watcher.on_bytes(len(content))
            if stretch.at == stretch.end and not answer.ranges:
                stretch.end = self.part.take_on(stretch.end)  # the rest comes anyway
        if answer.ranges and stretch.at == stretch.end:
            answer.response.read()  # its end, so that the connection can be used again
        else:
            client.close()

    def _read_all(self, client: Client) -> None:
        """Reads the whole file in one answer, from a server that ignores ranges."""
        if not self.one_reads_all.acquire(blocking=False):
            self.over.wait(0.2)
            return
        try:
            answer = get_range(client, self.address, 0, None)
            at = 0
            while at < self.part.size and not self.is_over():
                content = answer.response.read1(min(_READ_BYTES, self.part.size - at))
                if not content:
                    raise WebError("the answer ended early")
                new = not self.part.has(at)
                self.part.write(at, content)
                at += len(content)
                self.watcher.on_bytes(len(content) if new else 0)
        finally:
            client.close()
            self.one_reads_all.release()

    def _pause(self) -> None:
        wait = self.not_before - time.monotonic()
        if wait > 0:
            self.stop.wait(wait)

    def _failed(self, error: Exception, failures: int) -> None:
        """Decides how long to wait after a failure.

        Raises:
            FetchError: It has failed too often.
        """
        if failures > self.patience.tries:
            raise FetchError(
                f"{self.address.shown} cannot be fetched",
                f"It was asked {failures} times in a row and not one byte came: {_said(error)}.",
                "Check the network and run the same command again; it goes on where this one stopped.",
            ) from error
        asked = error.wait if isinstance(error, WebError) else None
        seconds = self.patience.wait(failures, asked)
        if asked is not None:
            self.not_before = max(self.not_before, time.monotonic() + seconds)
        if seconds >= _WORTH_TELLING_SECONDS:
            self.watcher.on_note(f"{_said(error)}; asking again in {seconds:.0f} s")
        self.stop.wait(seconds)


@dataclass
class _Stretch:
    """A run of missing bytes: how far it got, where it ends, and how often in a row nothing came."""

    at: int
    end: int
    failures: int = 0


def _said(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return f"the connection failed ({text})" if isinstance(error, OSError) else text
