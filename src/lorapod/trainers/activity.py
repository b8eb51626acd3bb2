"""Whether a tree of processes does anything: what a silent trainer is asked before it is held to be dead.

Caching a long clip or loading forty gigabytes prints nothing for minutes, yet uses the processor or the disk. Not covered:
work that a GPU does while no process waits for it busily, which does not last long enough to matter here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil

_CPU_SECONDS = 0.5
_IO_BYTES = 1 << 20


@dataclass
class Activity:
    """Follows a process and its descendants.

    Attributes:
        family: All descendants seen so far, by process number; what a trainer leaves behind is among them.
    """

    pid: int
    family: dict[int, psutil.Process] = field(default_factory=dict)
    _used: tuple[float, float] = (0.0, 0.0)
    _at: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Takes in who is there now."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return
        for process in found:
            self.family.setdefault(process.pid, process)

    def idle_seconds(self) -> float:
        """Seconds since the tree was last seen to use the processor or the disk. To be asked again and again."""
        used = self._use()
        if used[0] - self._used[0] > _CPU_SECONDS or used[1] - self._used[1] > _IO_BYTES or used[0] < self._used[0]:
            self._used, self._at = used, time.monotonic()
        return time.monotonic() - self._at

    def _use(self) -> tuple[float, float]:
        """Seconds of processor and bytes read and written, of all that are alive."""
        seconds = moved = 0.0
        for pid in [self.pid, *self.family]:
            try:
                process = self.family.get(pid) or psutil.Process(pid)
                times = process.cpu_times()
                seconds += times.user + times.system
                counters = process.io_counters() if hasattr(process, "io_counters") else None
                moved += counters.read_bytes + counters.write_bytes if counters else 0
            except (psutil.Error, OSError):
                continue
        return seconds, moved

    def left_over(self) -> list[psutil.Process]:
        """Descendants that are still alive; a process that merely got the number of one of them is not."""
        found = []
        for process in self.family.values():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found
