"""How processes that lorapod starts end with the one that started them.

Only on Linux; elsewhere a process whose parent was killed goes on alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def ending_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """A `preexec_fn` for `subprocess.Popen`: Linux sends signal `number` to the process when this one dies.

    It is the thread that starts the process whose end counts (prctl(2), PR_SET_PDEATHSIG), and processes that the process
    itself starts are not meant: each has to ask anew.
    """
    if sys.platform != "linux":
        return None
    return functools.partial(_end_with, os.getpid(), number)


def _end_with(parent: int, number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before this was asked
        os._exit(1)
