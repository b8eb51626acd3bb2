"""Work on many files from several threads, in order, with no more begun than is needed to keep them busy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 8
"""Each may hold a decoded picture, which takes hundreds of megabytes at the largest."""


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def in_order(
    work: Callable[[T], R], things: Iterable[T], *, threads: int | None = None, ahead: int | None = None
) -> Iterator[R]:
    """`work` of each thing, in their order, from several threads. What it raises is raised in its thing's place.

    Args:
        threads: Default: one a core, at most MAX_THREADS.
        ahead: How many things are begun before their turn. Default: twice the threads.
    """
    count = threads or min(MAX_THREADS, cores())
    begun: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="media")
    try:
        for thing in things:
            begun.append(pool.submit(work, thing))
            if len(begun) >= (ahead or 2 * count):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
