"""What all families do alike: load a denoiser that is a class of diffusers, and name the layers that get an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorapod.engine.blocks import FULLY, Keeping
from lorapod.engine.families.base import Conditions, Expert
from lorapod.engine.losses import Answer, squared_error
from lorapod.engine.weights import Naming, empty, load_diffusers
from lorapod.errors import RequestError
from lorapod.models import BaseModel
from lorapod.recipe.choices import Targets


def rows_of(values: Tensor, places: Sequence[int]) -> Tensor:
    """Some rows of (b, …) by number, without bringing the numbers to a GPU, which waits for it."""
    return values if list(places) == list(range(len(values))) else torch.stack([values[place] for place in places])


class Answers:
    """The part of a family that is about its loss, from what its denoiser answers."""

    def answer(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Answer:
        """See `Family.answer`."""
        raise NotImplementedError

    def loss(
        self,
        denoiser: nn.Module,
        latents: Tensor,
        noise: Tensor,
        noise_level: Tensor,
        items: list[Conditions],
        texts: list[Conditions],
    ) -> Tensor:
        """Mean squared error of each item, (b,)."""
        return squared_error(self.answer(denoiser, latents, noise, noise_level, items, texts))


class OfDiffusers:
    """The part of a family that is about its denoiser's class.

    Attributes:
        denoiser_class: Name of the class in diffusers.
        target_layers: Regular expressions of the layers that each preset adapts.
    """

    denoiser_class: ClassVar[str]
    target_layers: ClassVar[Mapping[Targets, str]]

    def denoiser_naming(self, config: Mapping[str, Any]) -> Naming:
        """Where single files have each weight of a denoiser of that configuration."""
        return Naming(prefixes=("model.diffusion_model.", "diffusion_model."))

    def load_denoiser(
        self,
        base: BaseModel,
        expert: Expert,
        device: torch.device,
        dtype: torch.dtype,
        keeping: Keeping = FULLY,
    ) -> nn.Module:
        """The denoiser, frozen, its large layers held as `keeping` says."""
        import diffusers

        kind = getattr(diffusers, self.denoiser_class)
        return load_diffusers(kind, base, expert.component, device, dtype, self.denoiser_naming, keeping)

    def empty_denoiser(self, base: BaseModel, expert: Expert) -> nn.Module:
        """The denoiser without weights, for its layers' names and shapes."""
        import diffusers

        kind = getattr(diffusers, self.denoiser_class)
        with empty():
            return kind.from_config(kind.load_config(base.folder / expert.component, local_files_only=True))

    def targets(self, targets: Targets) -> str:
        """Regular expression that fully matches the names of the modules which get an adapter.

        Raises:
            RequestError: The family has no such preset.
        """
        if targets not in self.target_layers:
            can = ", ".join(f"`{each.value}`" for each in self.target_layers)
            raise RequestError(
                f"It is not known which layers of this base model learn {targets.value} alone",
                f'`adapter.targets = "{targets.value}"` is for base models where that was found out.',
                f"Choose among {can}, or list patterns of layers.",
            )
        return self.target_layers[targets]
