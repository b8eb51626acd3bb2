"""The estimate of GPU memory: near what was published for other trainers, and means in the order of their price."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lorapod.cli.main import app
from lorapod.models.catalogue import catalogue
from lorapod.models.memory import (
    Load,
    Measures,
    Wishes,
    choose,
    gpu_for,
    means_in_order,
    measures_of,
    measures_of_entry,
    peak_of,
    tokens_of,
    usable,
)
from lorapod.recipe.choices import Checkpointing, Quantization

FIRST = "QwenImageEditPipeline"
OFF, SELECTIVE, FULL = Checkpointing.OFF, Checkpointing.SELECTIVE, Checkpointing.FULL


def measures(name: str) -> Measures:
    found = measures_of_entry(catalogue()[name])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "side", "rank", "grade", "published"),
    [
        ("flux-dev", 512, 16, FULL, 24.7),  # unsloth PR 6839
        ("z-image", 768, 16, FULL, 13.6),  # likewise
        ("z-image", 512, 64, OFF, 22.8),  # SimpleTuner's table of segmented checkpointing, 21.25 GiB
        ("qwen-image", 1024, 8, FULL, 44.1),  # likewise, 41.04 GiB
    ],
)
def test_published_peaks_are_met_within_a_tenth(
    name: str, side: int, rank: int, grade: Checkpointing, published: float
) -> None:
    of = measures(name)
    peak = peak_of(of, Load(tokens_of(of, side, side), rank), Quantization.NONE, grade) / 1e9
    assert 0.98 * published < peak < 1.1 * published


def test_every_base_model_of_the_catalogue_is_known() -> None:
    for name, entry in catalogue().items():
        assert entry.packaged or measures_of_entry(entry), name


def test_means_take_less_and_less_of_each_kind_and_the_first_that_fits_is_chosen() -> None:
    of = measures("flux-dev")
    load = Load(tokens_of(of, 1024, 1024), 16)
    ladder = list(means_in_order(of, load, Wishes()))
    assert [(m.quantize.value, m.checkpointing.value) for m in ladder[:4]] == [
        ("none", "off"), ("none", "selective"), ("none", "full"), ("int8", "off"),
    ]  # fmt: skip
    swapping = [means.peak for means in ladder if means.swapped]
    assert swapping == sorted(swapping, reverse=True) and len(swapping) == of.blocks - 2
    for means in ladder:
        chosen = choose(of, load, means.peak)
        assert chosen is not None and chosen.peak <= means.peak and ladder.index(chosen) <= ladder.index(means)
    assert choose(of, load, ladder[-1].peak - 1) is None


def test_a_base_model_is_split_over_gpus_before_it_is_held_in_4_bits() -> None:
    of = measures("qwen-image")
    load = Load(tokens_of(of, 1024, 1024), 16)
    ladder = [
        (m.quantize.value, m.shards, m.checkpointing.value) for m in means_in_order(of, load, Wishes(shards=(1, 2)))
    ]
    split = [means for means in ladder if means[1] > 1]
    assert split[:2] == [("int8", 2, "selective"), ("int8", 2, "full")]
    assert ladder.index(("int8", 1, "full")) + 1 == ladder.index(split[0]) == ladder.index(("nf4", 1, "off")) - 2
    asked = list(means_in_order(of, load, Wishes(shards=(2,))))  # by the recipe: exact weights first, and no swapping
    assert (asked[0].quantize.value, asked[0].shards) == ("none", 2) and {m.shards for m in asked} == {2}

    # 20 GB of weights in 8 bits on two GPUs of 24 GB: half of them, and two of the 60 blocks
    one, two = (peak_of(of, load, Quantization.INT8, FULL, shards=count) for count in (1, 2))
    assert one - two == pytest.approx(of.parameters * (1 / 2 - 2 / 60), rel=0.001)
    chosen = choose(of, load, 20e9, Wishes(shards=(1, 2)))
    assert chosen is not None and "the base model split over 2 GPUs" in chosen.words


def test_control_pictures_count_as_pictures_and_in_the_text_of_models_that_are_shown_them() -> None:
    edit = measures("qwen-image-edit-2509")
    assert tokens_of(edit, 1024, 1024, pictures=3) == 3 * 64 * 64 + 128 + 2 * 196
    first = measures_of(
        "qwen_image", {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 60}, 1, FIRST
    )
    assert first is not None and tokens_of(first, 512, 512, pictures=2) == 2 * 32 * 32 + 128 + 1369
    kontext = measures("flux-kontext-dev")
    assert tokens_of(kontext, 1024, 1024, pictures=2) == 2 * 64 * 64 + 512


def test_wide_weights_and_larger_batches_take_more() -> None:
    of = measures("z-image")
    plain = peak_of(of, Load(4224, 16), Quantization.NONE, OFF)
    assert peak_of(of, Load(4224, 16, wide=True), Quantization.NONE, OFF) > 1.9 * plain
    assert peak_of(of, Load(2 * 4224, 16), Quantization.NONE, OFF) > 1.5 * plain


def test_text_encoders_in_memory_are_counted_and_more_where_they_are_trained() -> None:
    of = measures("sdxl")
    tokens = tokens_of(of, 1024, 1024)

    def peak(encoders: bool, captions: int = 0) -> float:
        return peak_of(of, Load(tokens, 16, encoders=encoders, captions=captions), Quantization.NONE, OFF) / 1e9

    held, trained = peak(True) - peak(False), peak(True, 4) - peak(True)
    assert held == pytest.approx(2 * 0.81772, abs=1e-4)  # both in 16 bits
    assert trained == pytest.approx(4 * 0.1823 + 16 * 16 * 903_168 / 1e9, abs=1e-4)


def test_a_gpu_for_a_peak_can_be_used_for_it() -> None:
    assert usable(gpu_for(20e9)) == pytest.approx(20e9)


def test_models_show_says_from_which_gpu_on_it_can_be_trained_and_how() -> None:
    output = CliRunner().invoke(app, ["models", "show", "flux-dev"], env={"COLUMNS": "200"}).output
    lines = [line.split(None, 1)[1] for line in output.splitlines() if line.startswith("Estimate")]
    assert any("from 24 GB: weights rounded to 8 bits, selective checkpointing (17 GB)" in line for line in lines)
    assert any("from 80 GB: as it is (56 GB)" in line for line in lines) and "Estimate" in output
    assert "Estimate" not in CliRunner().invoke(app, ["models", "show", "demo"]).output
