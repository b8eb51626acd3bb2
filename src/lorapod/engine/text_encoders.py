"""Text encoders that are trained, or changed by a LoRA, beside the denoiser.

They are attached to the denoiser as modules of it, `text_encoder` and `text_encoder_2`, so that everything that is done with
its adapter (optimizer, average, checkpoint, file) is done with theirs. Captions are then encoded anew in each step in place
of being read from the cache, by `live_text`, which is attached as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lorapod.engine.families import Conditions, TrainsTextEncoders
from lorapod.engine.job import Job

LiveText = Callable[[Sequence[str]], list[Conditions]]


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
