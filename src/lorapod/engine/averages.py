"""The exponential moving average of the adapter's weights.

After each optimizer step the average moves towards the weights by 1 - decay; in the first steps by more, so that it does not
hang on where training began: decay_t = min(decay, (1 + t) / (10 + t)) (`EMAModel` of diffusers has the same warm-up).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The average of `parameters`; with a decay of 0 there is none, and everything here does nothing.

    Args:
        parameters: By name, as `adapters.adapter_tensors` has them; live.
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step`, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if self.values:
            live = [self.parameters[name] for name in self.values]
            torch._foreach_lerp_(list(self.values.values()), live, share)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the block the parameters are their average; afterwards exactly what they were."""
        trained = {name: self.parameters[name].detach().clone() for name in self.values}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(trained)

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Goes on from an average that was saved."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
