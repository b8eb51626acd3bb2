"""Starts the ranks of a training on this machine and sees to their end: without torch, as one process that waits.

Signals reach every rank, since all are of one process group; this process stays until they are done. Where one ends badly
the others are ended within seconds, and the cause is what the first of them said, or how it was ended. torchrun is not
used: it ends its processes 30 seconds after they were asked to stop, whatever they are writing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from lorapod.engine.output import emit
from lorapod.engine.status import LOST, RANKS_STORE, STOPPED
from lorapod.errors import RequestError
from lorapod.machine import visible_gpus
from lorapod.processes import ending_with_parent
from lorapod.recipe import Recipe

_GRACE_SECONDS = 5.0
"""How long the others may take to end by themselves when one ended badly."""

_LOOK_SECONDS = 0.05


def count_for(recipe: Recipe, gpus: Sequence[str]) -> int:
    """Ranks of a training.

    Raises:
        RequestError: The recipe asks for more GPUs than there are, or than a step has parts.
    """
    training = recipe.training
    size, batches = training.batch_size, training.accumulation
    if training.gpus == "auto":
        return max(n for n in range(1, max(1, len(gpus)) + 1) if n == 1 or _even(n, size, batches))
    wanted = training.gpus
    if gpus and wanted > len(gpus):
        raise RequestError(
            f"The recipe asks for {wanted} GPUs, and this machine has {len(gpus)} that can be used",
            "`CUDA_VISIBLE_DEVICES` may hide others.",
            f"Set `training.gpus = {len(gpus)}`, or leave it out.",
        )
    if wanted > max(size, batches):
        raise RequestError(
            f"A step of this recipe cannot be split over {wanted} GPUs",
            f"It has {batches} batches of {size}: each GPU needs a whole batch of them, or an item of each.",
            f"Set `training.batch_size` or `training.accumulation` to {wanted} or more, or fewer `training.gpus`.",
        )
    return wanted


def _even(count: int, size: int, batches: int) -> bool:
    """Whether every rank gets as much of a step."""
    return size % count == 0 or (size < count and batches % count == 0)


def take_own_gpu(gpus: Sequence[str]) -> None:
    """Leaves a rank that torchrun started, before torch looks for GPUs, the one that is its own.

    Raises:
        RequestError: torchrun started more ranks than there are GPUs.
    """
    place = int(os.environ["LOCAL_RANK"])
    if not gpus:
        return
    if place >= len(gpus):
        raise RequestError(
            f"torchrun started process {place + 1} of this machine, which has {len(gpus)} GPUs that can be used",
            "Each process needs a GPU of its own.",
            f"Set `--nproc-per-node={len(gpus)}`.",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place]


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs `python -m lorapod.engine` with `arguments` as `count` ranks; returns the exit code of the whole."""
    gpus = visible_gpus()
    asked = _Asked()
    with tempfile.TemporaryDirectory(prefix="lorapod-ranks-") as folder:
        ranks = [_start(rank, count, gpus, Path(folder) / "store", arguments) for rank in range(count)]
        return _see_to(ranks, asked)


def _start(
    rank: int, count: int, gpus: Sequence[str], store: Path, arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(count), RANKS_STORE: str(store),
        "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[rank]
    else:  # threads of several processes on the same cores wait for each other
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lorapod.engine", *arguments], env=environment, preexec_fn=ending_with_parent()
    )


class _Asked:
    """How often this process was asked to stop. The ranks are asked as well, and this one goes last."""

    def __init__(self) -> None:
        self.times = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.times += 1


def _see_to(ranks: list[subprocess.Popen[bytes]], asked: _Asked) -> int:
    """Waits for all, or ends them where one ended badly.

    One that stopped as it was asked is no reason to hurry the others: rank 0 may still write the checkpoint.
    """
    while True:
        ended = [rank.poll() for rank in ranks]
        if all(code == 0 for code in ended):
            return 0
        if None not in ended or any(code not in (None, 0, STOPPED) for code in ended):
            break
        if asked.times > 1 and STOPPED in ended:
            break
        time.sleep(_LOOK_SECONDS)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(_LOOK_SECONDS)
    codes = [rank.poll() for rank in ranks]
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    bad = {number: code for number, code in enumerate(codes) if code and code != LOST}
    stops = {STOPPED, -signal.SIGINT, -signal.SIGTERM} if asked.times else {STOPPED}
    if bad and set(bad.values()) <= stops:
        return STOPPED
    killed = [number for number, code in bad.items() if code < 0]
    said = [number for number, code in bad.items() if code > 0 and code != STOPPED]
    if killed and not said:
        number = killed[0]
        name = signal.Signals(-bad[number]).name
        emit(
            "error",
            message=f"Process {number + 1} of {len(ranks)} of this training was ended from outside ({name})",
            hint="The others were ended too. If the machine ran out of memory, set fewer `training.gpus`; else go on with "
            "--resume.",
        )
    return 1
