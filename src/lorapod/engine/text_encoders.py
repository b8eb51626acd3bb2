"""Text encoders that are trained, or changed by a LoRA file, beside the denoiser.

They are attached to the denoiser as modules of it, `text_encoder` and `text_encoder_2`, so that everything that is done with
its adapter (optimizer, average, checkpoint, file) is done with theirs. Captions are then encoded anew in each step in place
of being read from the cache, by `live_text`, which is attached as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from lorapod.engine.adapter_files import ENCODERS, read_adapter
from lorapod.engine.families import Conditions, TrainsTextEncoders
from lorapod.engine.job import Job

LiveText = Callable[[Sequence[str]], list[Conditions]]


def trains_with_encoders(job: Job) -> bool:
    """Whether a job's captions are encoded in each step: its encoders are trained, or changed by what is merged."""
    return job.recipe.adapter.text_encoders or any(changes_encoders(job, each.path) for each in job.merged_adapters)


def changes_encoders(job: Job, lora: Path) -> bool:
    """Whether a LoRA file changes text encoders that the base model's family can attach.

    Raises:
        AdapterError: It cannot be read.
    """
    if not isinstance(job.family, TrainsTextEncoders):
        return False
    return any(name.startswith(ENCODERS) for name in read_adapter(lora, job.family).layers)


def attach(denoiser: nn.Module, job: Job) -> None:
    """Loads the base model's text encoders and attaches them, frozen; nothing where they are attached already."""
    family = job.family
    assert isinstance(family, TrainsTextEncoders)
    if live_text(denoiser) is not None:
        return
    encoder = family.load_text_encoder(job.base, job.device, job.dtype)
    for name, module in family.encoders_of(encoder).items():
        setattr(denoiser, name, nn.ModuleDict({"text_model": module}))
    denoiser.live_text = lambda captions: family.encode(encoder, list(captions))


def live_text(denoiser: nn.Module) -> LiveText | None:
    """What encodes captions for a denoiser with encoders of its own; None where captions come from the cache."""
    found: LiveText | None = getattr(denoiser, "live_text", None)
    return found
