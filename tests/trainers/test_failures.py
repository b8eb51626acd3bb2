"""What an external trainer raised or how it ended, as one error with what to change."""

from __future__ import annotations

import pytest

from lorapod.errors import DatasetError, DiskError, LorapodError, OutOfMemoryError, StageFailedError
from lorapod.trainers.diffusion_pipe.watch import DiffusionPipeWatch
from lorapod.trainers.failures import explain
from lorapod.trainers.tracebacks import Raised, Tracebacks


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", OutOfMemoryError, "GPU"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", OutOfMemoryError, "GPU"),
        ("RuntimeError: CUDA error: out of memory", OutOfMemoryError, "GPU"),
        ("MemoryError", OutOfMemoryError, "machine"),
        ("OSError: [Errno 28] No space left on device: '/x'", DiskError, "disk"),
        ("sqlite3.OperationalError: database or disk is full", DiskError, "disk"),
        ("torch.distributed.DistBackendError: NCCL error in: x.cpp:1", StageFailedError, "GPUs"),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", StageFailedError, "refused"),
        ("ModuleNotFoundError: No module named 'hyvideo'", StageFailedError, "package"),
        ("torch.distributed.DistNetworkError: port: 29500, EADDRINUSE", StageFailedError, "port"),
        ("RuntimeError: Processed dataset was empty. Probably", DatasetError, "nothing to train on"),
        ("AssertionError: i2v/flf2v must train on videos, but got an image", DatasetError, "clips alone"),
        ("ValueError: fp8_scaled weights are not supported.", StageFailedError, "weights"),
        ("ValueError: something that nobody has seen before", StageFailedError, "nobody has seen"),
    ],
)
def test_an_exception_says_what_to_change(line: str, kind: type[LorapodError], says: str) -> None:
    found = Tracebacks()
    for each in ("[rank0]: Traceback (most recent call last):", '[rank0]:   File "x.py", line 1', f"[rank0]: {line}"):
        found.read(each)
    error = explain("train", found.last, 1, False, [line], DiffusionPipeWatch.rules)
    assert type(error) is kind and says in error.what and error.remedy


@pytest.mark.parametrize(
    ("code", "kernel", "says"),
    [
        (-9, False, "killed"),
        (247, False, "killed"),
        (1, True, "ran out of memory"),
        (-11, False, "SIGSEGV"),
        (7, False, "7"),
    ],
)
def test_an_end_without_words_is_told_from_how_it_ended(code: int, kernel: bool, says: str) -> None:
    assert says in explain("train", None, code, kernel, ["the last line"]).what


def test_words_like_error_in_the_log_mean_nothing() -> None:
    found = Tracebacks()
    for line in ("error: 0 failed", "OutOfMemoryError: would be thrown if", "404M downloaded"):
        found.read(line)
    assert not found.seen and found.last is None


def test_of_a_chain_of_exceptions_the_one_that_was_raised_counts() -> None:
    found = Tracebacks()
    for line in (
        "Traceback (most recent call last):",
        "KeyError: 'x'",
        "",
        "During handling of the above exception, another exception occurred:",
        "Traceback (most recent call last):",
        "RuntimeError: the second",
    ):
        found.read(line)
    assert found.last == Raised("RuntimeError", "the second")
