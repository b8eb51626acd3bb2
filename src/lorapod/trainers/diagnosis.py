"""What really happened to a trainer that failed: its exit status and its last traceback, never the word "error" in a line.

A traceback of Python is recognised by its first line and its indented frames; what follows them is the exception. The
first traceback of a chain that a launcher prints after it counts less than the one that came before.
"""

from __future__ import annotations

import re
import signal

from lorapod.errors import LorapodError, OutOfMemoryError, StageFailedError

_START = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?(?P<type>[A-Za-z_][\w.]*)(?:: (?P<text>.*))?$")
_OF_LAUNCHERS = ("subprocess.CalledProcessError", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError")
_LONGEST = 2000


class Diagnosis:
    """Is told every line, and at the end the exit status."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self.exception: tuple[str, str] | None = None
        self._in_traceback = False

    def feed(self, line: str) -> None:
        """One line of output, in the order in which it came."""
        if line.rstrip().endswith(_START):
            self._in_traceback = True
            return
        if not self._in_traceback or line.startswith((" ", "\t")) or not line.strip():
            return
        found = _EXCEPTION.match(line[:_LONGEST].strip())
        if found is None:  # something else that was printed in between
            return
        self._in_traceback = False
        if found["type"] not in _OF_LAUNCHERS or self.exception is None:
            self.exception = found["type"], found["text"] or ""

    def verdict(self, stage: str, code: int) -> LorapodError:
        """What happened, and what to do."""
        kind, text = self.exception or ("", "")
        short = kind.rsplit(".", 1)[-1]
        if short == "OutOfMemoryError" or (short == "RuntimeError" and text.startswith("CUDA error: out of memory")):
            return OutOfMemoryError(
                f"{self.trainer} ran out of GPU memory in the stage {stage}",
                text[:300],
                "Use smaller `resolutions` or `frames`, `training.batch_size = 1`, "
                "`training.gradient_checkpointing = true`, or more `blocks_to_swap` in the trainer's own options.",
            )
        if short in ("OSError", "SafetensorError") and ("No space left" in text or "os error 28" in text):
            return StageFailedError("The disk is full", text[:300], "Free space in the workspace, then resume.")
        if short in ("GatedRepoError", "RepositoryNotFoundError"):
            return StageFailedError(
                f"{self.trainer} may not read a repository of the hub",
                text[:300],
                "Accept its licence on its page and set HF_TOKEN.",
            )
        if short in ("DistBackendError", "NCCLError"):
            return StageFailedError(
                "The GPUs could not talk to each other (NCCL)",
                text[:300],
                "Train on one GPU, or set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1.",
            )
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL, 247):
            return StageFailedError(
                f"The system ended the stage {stage} of {self.trainer}",
                "Most likely the machine ran out of main memory (RAM).",
                "Use a machine with more memory, fewer workers or a smaller base model, then resume.",
            )
        if kind:
            return StageFailedError(
                f"The stage {stage} of {self.trainer} failed: {short}{': ' if text else ''}{text[:300]}",
                f"Exit status {code}.",
                "The whole output is in log.txt.",
            )
        return StageFailedError(
            f"The stage {stage} of {self.trainer} failed with exit status {code}",
            "It printed no traceback.",
            "The whole output is in log.txt.",
        )
