"""`lorapod recipe timesteps`: how often each noise level is trained at, in the terminal and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorapod.recipe.choices import ExpertChoice
from lorapod.recipe.timesteps import NoiseLevels

if TYPE_CHECKING:
    from PIL import Image

    from lorapod.recipe import Recipe
    from lorapod.workspace import Workspace

_BARS = 20
_WIDTH = 46
_INKS = (
    (46, 98, 146), (196, 84, 66), (74, 140, 92), (140, 98, 168), (206, 148, 40), (36, 150, 160), (120, 84, 60), (90, 90, 98),
)  # fmt: skip


def curves_of(recipe: Recipe, workspace: Workspace) -> dict[str, NoiseLevels]:
    """What is drawn from, by what it is for: each resolution where they differ, each expert of those that are trained.

    Raises:
        RecipeError: One of them has no noise level left.
    """
    from lorapod.models import entries, find_base_model
    from lorapod.models.noise_shift import SIDE, resolution_shift

    training, name = recipe.training, recipe.base_model.name
    known = entries(workspace)
    entry = known.get(name)
    family = entry.family if entry else find_base_model(name, workspace).family
    sides = sorted({side for dataset in recipe.datasets for side in dataset.resolutions})
    found = {}
    for side in sides:
        shift = resolution_shift(family, (side // SIDE) ** 2) if training.resolution_shift else 1.0
        found[f"{side} x {side}"] = NoiseLevels.of(training, shift)
    if len(set(found.values())) == 1:
        found = {"": next(iter(found.values()))}
    chosen = recipe.base_model.expert
    ranges = {
        suffix: each.timesteps
        for suffix in ("", "-high", "-low")
        if (each := known.get(f"{name}{suffix}"))
        and each.timesteps
        and (not suffix or chosen in (ExpertChoice.BOTH, suffix.removeprefix("-")))
    }
    if ranges:
        found = _of_experts(found, ranges)
    for what, levels in found.items():
        expert = what.partition(" ")[0] if ranges else ""
        levels.refuse_empty(f"the {expert}-noise expert" if expert else "this base model")
    return found


def _of_experts(sizes: dict[str, NoiseLevels], ranges: dict[str, tuple[float, float]]) -> dict[str, NoiseLevels]:
    return {
        " ".join(filter(None, [suffix.removeprefix("-"), size])): levels.within(*ends)
        for suffix, ends in ranges.items()
        for size, levels in sizes.items()
    }


def histogram(name: str, levels: NoiseLevels) -> str:
    """A histogram with a line a twentieth of the levels."""
    shares = [levels.share_below((i + 1) / _BARS) - levels.share_below(i / _BARS) for i in range(_BARS)]
    most = max(shares)
    lines = [f"{name or 'All sizes'}: {_kind(levels)}", ""]
    for i, share in enumerate(shares):
        if (i + 1) / _BARS <= levels.lowest or i / _BARS >= levels.highest:
            continue
        bar = "#" * round(_WIDTH * share / most)
        lines.append(f"  {i / _BARS:4.2f} to {(i + 1) / _BARS:4.2f}  {share:6.1%}  {bar}".rstrip())
    middle = levels.level(0.5)
    lines += ["", f"Half of all steps are at noise levels above {middle:.2f} (timestep {1000 * middle:.0f}).", ""]
    return "\n".join(lines)


def _kind(levels: NoiseLevels) -> str:
    from lorapod.recipe.choices import TimestepSampling

    told = {
        TimestepSampling.LOGIT_NORMAL: f"logit-normal, mean {levels.mean:g}, deviation {levels.std:g}",
        TimestepSampling.MODE: f"mode, scale {levels.scale:g}",
    }.get(levels.kind, "uniform")
    told += f", shift {levels.shift:.3g}" if levels.shift != 1 else ""
    cut = (levels.lowest, levels.highest) != (0, 1)
    return told + (f", from {levels.lowest:g} to {levels.highest:g}" if cut else "")


def draw(curves: dict[str, NoiseLevels]) -> Image.Image:
    """The densities as curves over the noise level, 900 wide and, with up to two curves, 460 high."""
    from PIL import Image, ImageDraw, ImageFont

    top = 24 + 18 * max(len(curves), 2)  # the curves' names stand one below the other
    width, height, left, right, bottom = 900, top + 400, 60, 24, 64
    sheet = Image.new("RGB", (width, height), (252, 252, 250))
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(18), ImageFont.load_default(14)
    points = 200
    densities = {
        name: [points * (levels.share_below((i + 1) / points) - levels.share_below(i / points)) for i in range(points)]
        for name, levels in curves.items()
    }
    most = max(max(values) for values in densities.values()) * 1.05

    def at(level: float, value: float) -> tuple[float, float]:
        return (
            left + level * (width - left - right),
            height - bottom - value / most * (height - top - bottom),
        )

    pen.text((left, 16), "How often each noise level is trained at", (30, 30, 34), font)
    for tenth in range(11):
        x, y = at(tenth / 10, 0)
        pen.line([(x, top), (x, y)], (232, 232, 228))
        pen.text((x, y + 8), f"{tenth / 10:g}", (110, 110, 118), small, anchor="ma")
    pen.line([at(0, 0), at(1, 0)], (110, 110, 118))
    pen.text((left, height - 26), "clean: details", (110, 110, 118), small, anchor="lm")
    pen.text((width - right, height - 26), "pure noise: composition", (110, 110, 118), small, anchor="rm")
    for number, (name, values) in enumerate(densities.items()):
        ink = _INKS[number % len(_INKS)]
        pen.line([at((i + 0.5) / points, value) for i, value in enumerate(values)], ink, 3)
        label = f"{name}: {_kind(curves[name])}" if name else _kind(curves[name])
        pen.text((width - right, 22 + 18 * number), label, ink, small, anchor="rm")
    return sheet
