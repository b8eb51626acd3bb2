"""The distribution of noise levels: its formulae against numerical integration, and the command that shows it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lorapod.cli.main import app
from lorapod.cli.recipe_timesteps import draw
from lorapod.errors import RecipeError
from lorapod.recipe.choices import TimestepSampling
from lorapod.recipe.timesteps import NoiseLevels

CASES = [
    NoiseLevels(TimestepSampling.UNIFORM),
    NoiseLevels(TimestepSampling.UNIFORM, shift=3.0),
    NoiseLevels(TimestepSampling.LOGIT_NORMAL),
    NoiseLevels(TimestepSampling.LOGIT_NORMAL, mean=-0.5, std=0.6, shift=2.5),
    NoiseLevels(TimestepSampling.MODE),
    NoiseLevels(TimestepSampling.MODE, scale=-0.8, shift=1.7),
    NoiseLevels(TimestepSampling.LOGIT_NORMAL, shift=5.0, lowest=0.875),
    NoiseLevels(TimestepSampling.MODE, lowest=0.1, highest=0.6),
]


@pytest.mark.parametrize("levels", CASES)
def test_quantiles_and_shares_are_inverse_and_rise(levels: NoiseLevels) -> None:
    drawn = [levels.level((i + 0.5) / 500) for i in range(500)]
    assert drawn == sorted(drawn)
    assert levels.lowest <= drawn[0] and drawn[-1] <= levels.highest
    for i in range(0, 500, 7):
        assert levels.share_below(drawn[i]) == pytest.approx((i + 0.5) / 500, abs=1e-6)


def test_a_logit_normal_has_the_density_of_the_paper() -> None:
    """arXiv 2403.03206, eq. 19: 1 / (s sqrt(2 pi)) 1 / (t (1 - t)) exp(-(logit(t) - m)^2 / (2 s^2))."""
    m, s = 0.4, 0.8
    levels = NoiseLevels(TimestepSampling.LOGIT_NORMAL, mean=m, std=s)
    for t in (0.1, 0.35, 0.5, 0.8, 0.95):
        density = (levels.share_below(t + 1e-5) - levels.share_below(t - 1e-5)) / 2e-5
        z = (math.log(t / (1 - t)) - m) / s
        assert density == pytest.approx(math.exp(-z * z / 2) / (s * math.sqrt(2 * math.pi) * t * (1 - t)), rel=1e-3)


def test_a_shift_moves_the_middle_as_the_formula_says() -> None:
    assert NoiseLevels(TimestepSampling.UNIFORM, shift=3.0).level(0.5) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


def test_mode_is_the_formula_that_training_scripts_have() -> None:
    """diffusers draws u and takes 1 - u - scale (cos(pi u / 2)^2 - 1 + u): the same distribution."""
    levels, scale = NoiseLevels(TimestepSampling.MODE, scale=1.29), 1.29
    theirs = sorted(
        1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u) for u in ((i + 0.5) / 200 for i in range(200))
    )
    assert [levels.level((i + 0.5) / 200) for i in range(200)] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(
    "levels",
    [
        NoiseLevels(TimestepSampling.LOGIT_NORMAL, lowest=0.9).within(0, 0.875),
        NoiseLevels(TimestepSampling.LOGIT_NORMAL, mean=-10, std=0.1, lowest=0.9),
    ],
)
def test_a_range_without_draws_is_refused(levels: NoiseLevels) -> None:
    with pytest.raises(RecipeError, match="the low-noise expert"):
        levels.refuse_empty("the low-noise expert")


@pytest.mark.parametrize("levels", CASES)
def test_a_range_with_draws_is_not(levels: NoiseLevels) -> None:
    levels.refuse_empty("it")


def asked(tmp_path: Path, model: str, resolutions: str, *words: str) -> Result:
    (tmp_path / "pictures").mkdir(exist_ok=True)
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'name = "zorb"\n[base_model]\nname = "{model}"\n[[datasets]]\npath = "pictures"\nresolutions = {resolutions}\n',
        encoding="utf-8",
    )
    return CliRunner().invoke(app, ["--workspace", str(tmp_path / "w"), "recipe", "timesteps", str(file), *words])


def shown(tmp_path: Path, model: str, resolutions: str, *words: str) -> str:
    result = asked(tmp_path, model, resolutions, *words)
    assert result.exit_code == 0, result.output
    return result.output


def test_each_size_is_shown_where_the_shift_depends_on_it(tmp_path: Path) -> None:
    output = shown(tmp_path, "flux-dev", "[512, 1024]", "--out", str(tmp_path / "levels.png"))
    assert "512 x 512: logit-normal, mean 0, deviation 1, shift 1.88" in output and "1024 x 1024" in output
    with Image.open(tmp_path / "levels.png") as picture:
        assert picture.size == (900, 460) and len(picture.getcolors(1 << 20) or []) > 10
    assert shown(tmp_path, "z-image", "[512, 1024]").startswith(
        "All sizes: logit-normal, mean 0, deviation 1, shift 2\n"
    )


def test_names_of_many_sizes_stand_clear_of_the_curves() -> None:
    two, five = (draw({str(n): NoiseLevels(TimestepSampling.UNIFORM, shift=n) for n in range(1, k)}) for k in (3, 6))
    assert five.height - two.height == 3 * 18  # a line a name, and the curves keep their height


def test_experts_have_their_ranges_and_a_recipe_cuts_its_own(tmp_path: Path) -> None:
    output = shown(tmp_path, "wan2.2-t2v-a14b", "[480]")
    assert "from 0.875 to 1" in output and "from 0 to 0.875" in output
    cut = shown(
        tmp_path,
        "z-image",
        "[512]",
        "--set",
        "training.highest_noise=0.5",
        "--set",
        "training.timestep_sampling=uniform",
    )
    assert "uniform, shift 2, from 0 to 0.5" in cut and "0.50 to 0.55" not in cut


def test_only_the_expert_that_is_trained_is_shown_and_one_without_levels_is_refused(tmp_path: Path) -> None:
    high = ("--set", "training.lowest_noise=0.9", "--set", "base_model.expert=high")
    output = shown(tmp_path, "wan2.2-t2v-a14b", "[480]", *high)
    assert "high:" in output and "from 0.9 to 1" in output and "low:" not in output
    both = asked(tmp_path, "wan2.2-t2v-a14b", "[480]", *high[:2])
    assert isinstance(both.exception, RecipeError) and "the low-noise expert" in both.exception.what
