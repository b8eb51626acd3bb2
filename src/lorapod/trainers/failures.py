"""Why an external trainer failed: from what it raised and how it ended, one error with what to change.

Only the class of an exception and what that class says are looked at, never the log for words. Rules that one trainer alone
needs are its own matter and are asked first.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapod.errors import DiskError, LorapodError, OutOfMemoryError, StageFailedError
from lorapod.trainers.tracebacks import Raised


@dataclass(frozen=True)
class Rule:
    """What an exception means.

    Attributes:
        kind: Pattern of its class.
        said: Pattern in what it says.
        make: The error, from the stage's name and the exception.
    """

    kind: str
    said: str
    make: Callable[[str, Raised], LorapodError]

    def fits(self, raised: Raised) -> bool:
        return bool(re.fullmatch(self.kind, raised.kind) and re.search(self.said, raised.said, re.IGNORECASE))


def _gpu_memory(stage: str, raised: Raised) -> LorapodError:
    return OutOfMemoryError(
        f"The GPU ran out of memory in {stage}",
        raised.said[:300],
        "Swap more blocks, train at a lower resolution or with fewer frames, or with a smaller batch; then resume.",
    )


def _machine_memory(stage: str, raised: Raised) -> LorapodError:
    return OutOfMemoryError(
        f"The machine ran out of memory in {stage}", str(raised)[:300], "Use a machine with more memory, then resume."
    )


def _disk(stage: str, raised: Raised) -> LorapodError:
    return DiskError(
        f"No space left on the disk in {stage}",
        raised.said[:300],
        "Free some space (old runs and their checkpoints are the largest), then resume.",
    )


def _nccl(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        f"The GPUs could not talk to each other in {stage}",
        str(raised)[:300],
        "Train on one GPU, or set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1 in the environment (GeForce cards), then resume.",
    )


def _gated(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        f"A file from the Hub was refused in {stage}",
        str(raised)[:300],
        "Ask for access on the model's page, set HF_TOKEN to a token of that account, then resume.",
    )


def _port(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        f"A port that {stage} needs is taken", str(raised)[:300], "Another training took it just now: resume."
    )


def _module(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        f"A package is missing in the trainer's environment ({stage})",
        str(raised)[:300],
        "Mend it with `lorapod trainers install`, which goes on where it was, then resume.",
    )


RULES: Sequence[Rule] = (
    Rule(r"OutOfMemoryError|RuntimeError", r"CUDA (error: )?out of memory|HIP out of memory", _gpu_memory),
    Rule(r"OutOfMemoryError", r"", _gpu_memory),
    Rule(r"MemoryError", r"", _machine_memory),
    Rule(r"RuntimeError", r"DefaultCPUAllocator: can't allocate memory", _machine_memory),
    Rule(r"OSError|\w*SafetensorError|RuntimeError|OperationalError", r"No space left on device|disk is full", _disk),
    Rule(r"DistBackendError|RuntimeError", r"NCCL", _nccl),
    Rule(r"GatedRepoError", r"", _gated),
    Rule(r"HfHubHTTPError|HTTPError|RepositoryNotFoundError", r"\b(401|403)\b|gated", _gated),
    Rule(r"DistNetworkError|RuntimeError|OSError", r"EADDRINUSE|Address already in use|Errno 98", _port),
    Rule(r"ModuleNotFoundError|ImportError", r"", _module),
)  # fmt: skip


def explain(
    stage: str, raised: Raised | None, code: int, killed_by_kernel: bool, tail: Sequence[str], own: Sequence[Rule] = ()
) -> LorapodError:
    """The error for a stage that failed.

    Args:
        code: How it ended: an exit status, or a signal's number, negative.
        killed_by_kernel: The kernel ended processes for memory while it ran.
        tail: Its last lines.
        own: Rules of the trainer.
    """
    if raised:
        for rule in (*own, *RULES):
            if rule.fits(raised):
                return rule.make(stage, raised)
    if killed_by_kernel or code in (-signal.SIGKILL, 128 + signal.SIGKILL, 247):
        sure = "The kernel ended a process of it for memory." if killed_by_kernel else "A process of it was killed."
        return OutOfMemoryError(
            f"The machine ran out of memory in {stage}" if killed_by_kernel else f"The stage {stage} was killed",
            sure + (" That is most often the machine's memory running out." if not killed_by_kernel else ""),
            "Use a machine with more memory, or fewer processes while caching; then resume.",
        )
    if code in (-signal.SIGSEGV, 128 + signal.SIGSEGV, 245):
        return StageFailedError(
            f"The stage {stage} crashed (SIGSEGV)",
            "That happens when memory runs out while weights are loaded, or where packages do not fit each other.",
            "Look at the machine's memory, and run `lorapod trainers check`; then resume.",
        )
    last = " | ".join(line[-300:] for line in tail[-3:])
    if raised:
        return StageFailedError(
            f"The stage {stage} failed: {str(raised)[:300]}",
            f"Its exit status is {code}." if code >= 0 else f"It was ended by signal {-code}.",
            "The whole output is in log.txt.",
        )
    return StageFailedError(
        f"The stage {stage} failed with exit status {code}"
        if code >= 0
        else f"The stage {stage} was ended by signal {-code}",
        f"Its last words: {last}" if last else "It printed nothing.",
        "The whole output is in log.txt.",
    )


def kernel_kills() -> int:
    """How many processes of this machine, or of this container, the kernel has ended for memory so far."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return 0
