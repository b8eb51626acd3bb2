"""The distribution that noise levels are drawn from, as the engine draws and `lorapod recipe timesteps` shows it.

A noise level s is 0 for a clean picture and 1 for pure noise (timestep 1000 s). From a quantile u in 0..1:

    uniform       s = u
    logit-normal  s = sigmoid(mean + std * Phi^-1(u))                            arXiv 2403.03206, 3.1
    mode          s = 1 - v - scale * (cos(pi v / 2)^2 - 1 + v), v = 1 - u       arXiv 2403.03206, eq. 20
    shifted       s' = k s / (1 + (k - 1) s)                                     arXiv 2403.03206, eq. 23

A range of levels cuts the distribution after the shift, and keeps its shape inside. Plain numbers, without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from lorapod.errors import RecipeError
from lorapod.recipe.choices import TimestepSampling
from lorapod.recipe.schema import TrainingSection

_NORMAL = NormalDist()
_NEAREST = 1e-9
"""How near quantiles come to 0 and 1, where a logit-normal has no ends."""

_RAREST = 1e-6
"""Share of a whole distribution that a range must hold: with less, every draw would be much the same level."""


@dataclass(frozen=True)
class NoiseLevels:
    """One distribution.

    Attributes:
        mean, std: Of the normal under `logit-normal`.
        scale: Of `mode`: above 0 favours the middle, below 0 the ends.
        shift: k; above 1 favours noise.
        lowest, highest: Range of the levels, 0..1.
    """

    kind: TimestepSampling
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    shift: float = 1.0
    lowest: float = 0.0
    highest: float = 1.0

    @classmethod
    def of(cls, training: TrainingSection, shift: float = 1.0) -> NoiseLevels:
        """What a recipe says.

        Args:
            shift: By which the base model shifts a picture of a size, if the recipe follows it; 1 does not.
        """
        return cls(
            training.timestep_sampling,
            training.timestep_mean,
            training.timestep_std,
            training.timestep_scale,
            training.timestep_shift * shift,
            training.lowest_noise,
            training.highest_noise,
        )

    def within(self, lowest: float, highest: float) -> NoiseLevels:
        """Of this distribution what lies in another range too."""
        return replace(self, lowest=max(lowest, self.lowest), highest=min(highest, self.highest))

    def refuse_empty(self, of: str) -> None:
        """Checks that there is something to draw.

        Args:
            of: Whose levels they are, for the message.

        Raises:
            RecipeError: No level, or next to none, lies in the range.
        """
        if self.lowest >= self.highest:
            raise RecipeError(
                f"No noise level is left to train {of} at",
                "The levels that it works at lie outside of `training.lowest_noise` and `highest_noise`.",
                "Widen these, or choose with `base_model.expert` the expert that works there.",
            )
        if self._below(self.highest) - self._below(self.lowest) < _RAREST:
            raise RecipeError(
                f"Noise levels from {self.lowest:g} to {self.highest:g} are never drawn to train {of} at",
                "`training.timestep_sampling`, with its mean, deviation and shift, lies outside of "
                "`training.lowest_noise` and `highest_noise`.",
                "Change the one or the other; `lorapod recipe timesteps` shows what is drawn.",
            )

    def level(self, u: float) -> float:
        """The level at quantile `u`, 0..1, of the distribution inside its range."""
        low, high = self._below(self.lowest), self._below(self.highest)
        within = min(max(low + u * (high - low), _NEAREST), 1 - _NEAREST)
        return min(max(self._shifted(self._plain(within)), self.lowest), self.highest)

    def share_below(self, level: float) -> float:
        """Share of the draws, 0..1, that lie below a level."""
        low, high = self._below(self.lowest), self._below(self.highest)
        return min(max((self._below(level) - low) / (high - low), 0.0), 1.0)

    def _plain(self, u: float) -> float:
        """The level at a quantile before the shift."""
        if self.kind is TimestepSampling.LOGIT_NORMAL:
            return 1 / (1 + math.exp(-(self.mean + self.std * _NORMAL.inv_cdf(u))))
        if self.kind is TimestepSampling.MODE:
            v = 1 - u
            return 1 - v - self.scale * (math.cos(math.pi * v / 2) ** 2 - 1 + v)
        return u

    def _shifted(self, level: float) -> float:
        return self.shift * level / (1 + (self.shift - 1) * level)

    def _below(self, level: float) -> float:
        """Quantile of a level of the whole distribution, after the shift."""
        if level <= 0 or level >= 1:
            return 0.0 if level <= 0 else 1.0
        plain = level / (self.shift - (self.shift - 1) * level)
        if self.kind is TimestepSampling.LOGIT_NORMAL:
            return _NORMAL.cdf((math.log(plain / (1 - plain)) - self.mean) / self.std)
        return self._quantile_of_mode(plain) if self.kind is TimestepSampling.MODE else plain

    def _quantile_of_mode(self, level: float) -> float:
        """It has no inverse in closed form, and rises all the way for the scales that a recipe may have."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._plain(middle) < level else (low, middle)
        return (low + high) / 2
