"""Which LoRA file of a run is said to be the best, and why."""

from __future__ import annotations

from lorapod.runs.verdict import verdict_of

FILES = [(100, "lora/x-step000100.safetensors"), (200, "lora/x-step000200.safetensors"), (400, "lora/x.safetensors")]


def test_a_loss_that_still_falls_asks_for_more_steps() -> None:
    found = verdict_of({"a": [(0, 1.0), (100, 0.8), (200, 0.6), (300, 0.5), (400, 0.4)]}, FILES)
    assert found and found.path == "lora/x.safetensors" and "40%" in found.why and "still falling" in found.why


def test_a_loss_that_settled_is_said_plainly() -> None:
    found = verdict_of({"a": [(0, 1.0), (100, 0.5), (200, 0.4), (300, 0.4), (400, 0.402)]}, FILES)
    assert found and found.step == 400 and "still falling" not in found.why and "heart" not in found.why


def test_a_loss_that_rises_again_points_to_the_earlier_file() -> None:
    found = verdict_of({"a": [(0, 1.0), (100, 0.7), (200, 0.5), (300, 0.6), (400, 0.8)]}, FILES)
    assert found and (found.step, found.path) == (200, "lora/x-step000200.safetensors")
    assert "step 200" in found.why and "80%" in found.why and "by heart" in found.why and "lora_every" not in found.why


def test_where_no_file_of_that_time_was_kept_it_says_how_to() -> None:
    found = verdict_of({"a": [(0, 1.0), (200, 0.5), (400, 0.8)]}, FILES[-1:])
    assert found and found.step == 400 and "saving.lora_every" in found.why


def test_a_training_that_only_hurts_is_told_what_to_change() -> None:
    found = verdict_of({"a": [(0, 1.0), (200, 1.2), (400, 1.5)]}, FILES)
    assert found and "never fell" in found.why and "150%" in found.why and "learning rate" in found.why


def test_what_was_known_before_counts_little_beside_what_is_taught() -> None:
    found = verdict_of({"momo": [(0, 0.83), (100, 0.13)], "things": [(0, 0.022), (100, 0.043)]}, [(100, "one")])
    assert found and "2 datasets" in found.why and "20%" in found.why


def test_without_files_or_evaluations_nothing_is_said() -> None:
    assert verdict_of({}, FILES) is None and verdict_of({"a": [(0, 1.0), (100, 0.5)]}, []) is None
    assert verdict_of({"a": [(0, 1.0)]}, FILES) is None
