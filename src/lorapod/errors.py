"""Every error that a person can see. Each says what went wrong, why, and what to do.

The command line prints the three parts and exits with `exit_code`: 1 the job failed, 2 the request was wrong,
130 stopped by the person. Anything else that escapes is a bug and gets a traceback with `--debug`.
"""

from __future__ import annotations


class LorapodError(Exception):
    """Base of all errors shown to a person.

    Args:
        what: What went wrong, one sentence without a full stop.
        why: The cause, as far as it is known.
        remedy: What to do now.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.remedy = what, why, remedy

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.remedy) if part)

    def to_hint(self) -> str:
        """Why and remedy in one line of whole sentences, for an event's `hint`."""
        return sentences(self.why, self.remedy)


def sentences(*parts: str) -> str:
    """Parts that are not empty, one behind the other, each closed by a full stop where it ends in no mark; what follows a
    part of several lines begins a line of its own."""
    text = ""
    for part in filter(None, map(str.strip, parts)):
        if "\n" in text:
            text += "\n"
        elif text:
            text += " " if text.endswith((".", "!", "?", ":")) else ". "
        text += part
    return text


class RequestError(LorapodError):
    """The request was wrong; nothing was started."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe that cannot be read or is not valid."""


class DatasetError(RequestError):
    """A dataset that cannot be trained on as it is."""


class CaptionError(DatasetError):
    """A caption file that cannot be read."""


class BaseModelError(RequestError):
    """A base model that is unknown, incomplete or of another family."""


class AdapterError(RequestError):
    """A LoRA file that cannot be used: damaged, of another base model, or of another rank."""


class RunError(RequestError):
    """A run that does not exist or is not in the state that the request needs."""


class CheckpointError(RequestError):
    """A checkpoint that is damaged or belongs to another recipe."""


class MissingPackageError(RequestError):
    """A package that an option needs is not installed."""


class TrainingError(LorapodError):
    """Training had to stop; what was saved stays usable."""


class LostRankError(TrainingError):
    """Another process of the same training is gone; what ended that one is the cause."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class OutOfMemoryError(TrainingError):
    """The GPU or the machine ran out of memory."""


class DiskError(LorapodError):
    """A file could not be written: no space, no permission, or the disk failed."""


class FetchError(LorapodError):
    """A file could not be fetched; what has arrived is kept."""


class StageFailedError(LorapodError):
    """A process of a run ended with a failure."""
