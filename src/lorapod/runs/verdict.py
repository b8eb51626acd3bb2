"""Which LoRA file of a run is likely the best, by the loss on held-out items, and why, in words.

The held-out loss falls while what is learnt holds for pictures that were not seen, and rises again when a training learns
its own pictures by heart. Losses of several datasets are added up, so that what the base model knew already (whose loss is
small and rises a little) counts little beside what it is taught. It is a hint: how a LoRA looks is judged by its previews.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

LITTLE = 0.03
"""Share of the loss before training below which two evaluations count as the same."""


@dataclass(frozen=True)
class Verdict:
    """What is to be taken.

    Attributes:
        path: Of the LoRA file, below the run's folder.
        step: Of the file.
        why: Sentences.
    """

    path: str
    step: int
    why: str


def verdict_of(evaluations: Mapping[str, Points], loras: Sequence[tuple[int, str]]) -> Verdict | None:
    """The verdict on a run.

    Args:
        evaluations: Dataset to (step, loss), in the order of steps.
        loras: (step, path) of the files that are there.

    Returns:
        None where there is no file, or nothing was held out.
    """
    curve = _together(evaluations)
    if not loras or len(curve) < 2:
        return None
    files = sorted(loras)
    best_step, best = min(curve, key=lambda point: (point[1], point[0]))
    last_step, last = curve[-1]
    step, path = min(files, key=lambda file: (abs(_at(curve, file[0]) - best), -file[0]))
    what = (
        "the held-out loss" if len(evaluations) == 1 else f"the held-out loss of {len(evaluations)} datasets together"
    )
    if best_step == 0:
        why = f"{what.capitalize()} never fell below that of the base model: it rose to {_percent(last)} of it. "
        return Verdict(
            path, step, why + "The learning rate is likely too high, or the captions say what is to be learnt."
        )
    fell = f"{what.capitalize()} fell to {_percent(best)} of the base model's"
    if last - best <= LITTLE:
        fell += f" by step {best_step:,.0f}"
        still = _fall_at_end(curve) > LITTLE
        why = f"{fell}; it was still falling at the end, so that more steps may teach more." if still else f"{fell}."
        return Verdict(files[-1][1], files[-1][0], why)
    rise = f"{fell} at step {best_step:,.0f} and rose to {_percent(last)} by step {last_step:,.0f}, "
    rise += "as it does when pictures are learnt by heart."
    if _at(curve, step) - best > LITTLE or len(files) == 1:
        rise += " No file of that time was kept; `saving.lora_every` keeps some, or train fewer steps."
    return Verdict(path, step, rise)


def _together(evaluations: Mapping[str, Points]) -> list[tuple[float, float]]:
    """The sum over datasets of their loss as a share of that before training, at the steps that all of them have."""
    curves = [dict(points) for points in evaluations.values() if points]
    if not curves:
        return []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    before = sum(curve[steps[0]] for curve in curves) if steps else 0.0
    return [(step, sum(curve[step] for curve in curves) / before) for step in steps] if before > 0 else []


def _at(curve: Points, step: float) -> float:
    """The loss at the evaluation that is nearest to a step."""
    return min(curve, key=lambda point: (abs(point[0] - step), -point[0]))[1]


def _fall_at_end(curve: Points) -> float:
    """How much the loss fell over the last quarter of the evaluations."""
    return curve[-1 - max(1, len(curve) // 4)][1] - curve[-1][1]


def _percent(share: float) -> str:
    return f"{share:.0%}"
