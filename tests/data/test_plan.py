from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapod.data import Geometry, Severity, batches, plan_dataset, plan_datasets, summary
from lorapod.errors import DatasetError
from lorapod.recipe.schema import DatasetSection

GEOMETRY = Geometry(8)
Make = Callable[..., DatasetSection]


@pytest.fixture
def section(tmp_path: Path) -> Make:
    """Makes a dataset of small pictures: `section(count, size=..., captions=..., **fields of the recipe)`."""

    def make(
        count: int = 10, folder: str = "set", size: tuple[int, int] = (64, 64), captions: bool = True, **fields: Any
    ) -> DatasetSection:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (i % 256, i // 256, len(folder))).save(path / f"{i}.png")
            if captions:
                (path / f"{i}.txt").write_text(f"head, one {i}, two, three, four")
        return DatasetSection(**{"path": path, "resolutions": [64], **fields})

    return make


def files(items: list[Any]) -> set[str]:
    return {each.item.path.name for each in items}


def test_validation_is_held_out_at_every_resolution_and_never_trained(section: Make) -> None:
    plan = plan_datasets([section(20, resolutions=[64, 96], validation_share=0.2)], GEOMETRY, 1)
    assert len(plan.train) == 32
    assert len(plan.validation) == 8
    assert len(files(plan.validation)) == 4
    assert not files(plan.train) & files(plan.validation)
    assert {each.placement.bucket.width for each in plan.validation} == {64, 96}


@pytest.mark.parametrize(("count", "share", "held_out"), [(4, 0.01, 1), (3, 0.5, 0), (4, 0.99, 3), (10, 0.0, 0)])
def test_how_many_are_held_out(section: Make, count: int, share: float, held_out: int) -> None:
    plan = plan_datasets([section(count, validation_share=share)], GEOMETRY, 1)
    assert (len(plan.validation), len(plan.train)) == (held_out, count - held_out)


def test_the_split_hangs_on_content_and_seed_and_moves_little_when_items_are_added(section: Make) -> None:
    before = files(plan_datasets([section(40)], GEOMETRY, 1).validation)
    assert before == files(plan_datasets([section(40)], GEOMETRY, 1).validation)
    assert before != files(plan_datasets([section(40)], GEOMETRY, 2).validation)
    after = files(plan_datasets([section(44)], GEOMETRY, 1).validation)
    assert len(before - after) <= len(after - before) + 1
    assert len(before & after) >= 2


def test_copies_of_a_held_out_picture_are_not_trained_on_even_in_another_dataset(section: Make, tmp_path: Path) -> None:
    first = section(8, folder="first", validation_share=0.25)
    for i in range(8):
        (tmp_path / "first" / f"copy {i}.png").write_bytes((tmp_path / "first" / f"{i}.png").read_bytes())
        (tmp_path / "first" / f"copy {i}.txt").write_text("copy")
    second = first.model_copy(update={"validation_share": 0.0})
    plan = plan_datasets([first, second], GEOMETRY, 1)
    held_out = {each.item.sha256 for each in plan.validation}
    assert held_out
    assert not held_out & {each.item.sha256 for each in plan.train}
    named = {each.path for each in plan.unused}
    assert {each.item.path for each in plan.validation} <= named


def test_a_dataset_that_others_hold_out_whole_is_refused(section: Make, tmp_path: Path) -> None:
    first = section(8, folder="first", validation_share=0.25)
    held_out = plan_datasets([first], GEOMETRY, 1).validation[0].item.path
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "a.png").write_bytes(held_out.read_bytes())
    second = DatasetSection(path=tmp_path / "second", allow_missing_captions=True, trigger_word="x")
    with pytest.raises(DatasetError, match="held out of training by another dataset"):
        plan_datasets([first, second], GEOMETRY, 1)


def test_captions_are_composed_and_validation_has_one_without_dropout(section: Make) -> None:
    plan = plan_datasets(
        [section(6, trigger_word="momo", caption_prefix="photo of", repeats=3, caption_dropout=0.5)], GEOMETRY, 1
    )
    for each in plan.train:
        assert each.captions == (f"momo, photo of head, one {each.item.path.stem}, two, three, four",)
        assert (each.repeats, each.caption_dropout, each.dataset) == (3, 0.5, 0)
    for each in plan.validation:
        assert len(each.captions) == 1
        assert (each.repeats, each.caption_dropout) == (1, 0.0)


def test_shuffled_captions_are_variants_that_stay_the_same_and_keep_their_head(section: Make) -> None:
    fields = {"shuffle_tags": True, "keep_tags": 1, "caption_variants": 5, "trigger_word": "momo"}
    plan = plan_datasets([section(6, **fields)], GEOMETRY, 1)
    for each in plan.train:
        assert 3 <= len(each.captions) <= 5
        assert all(caption.startswith("momo, head, ") for caption in each.captions)
    again = plan_datasets([section(7, **fields)], GEOMETRY, 9)
    captions = {each.item.path: each.captions for each in again.train}
    assert all(captions[each.item.path] == each.captions for each in plan.train if each.item.path in captions)
    assert all(len(each.captions) == 1 for each in plan.validation)


def test_missing_captions_stop_unless_allowed(section: Make) -> None:
    missing = section(25, captions=False)
    with pytest.raises(DatasetError) as caught:
        plan_datasets([missing], GEOMETRY, 1)
    assert "25 files" in caught.value.what
    assert caught.value.why.count("It has no caption file") == 20
    assert "and 5 more" in caught.value.why
    assert "allow_missing_captions" in caught.value.remedy

    allowed = missing.model_copy(update={"allow_missing_captions": True, "trigger_word": "momo"})
    plan = plan_datasets([allowed], GEOMETRY, 1)
    assert {each.captions for each in plan.train} == {("momo",)}
    assert plan.problems == []

    bare = missing.model_copy(update={"allow_missing_captions": True})
    plan = plan_datasets([bare], GEOMETRY, 1)
    assert {each.captions for each in plan.train} == {("",)}
    assert {problem.severity for problem in plan.problems} == {Severity.WARNING}
    assert len(plan.problems) == 25


def test_unusable_items_stop_by_name_unless_skipped_and_are_then_named(section: Make, tmp_path: Path) -> None:
    good = section(5)
    (tmp_path / "set" / "bad.png").write_bytes(b"")
    (tmp_path / "set" / "notes.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"bad\.png: The file is empty"):
        plan_datasets([good], GEOMETRY, 1)
    plan = plan_datasets([good.model_copy(update={"skip_unusable": True})], GEOMETRY, 1)
    assert len(plan.train) + len(plan.validation) == 5
    assert {each.path.name for each in plan.unused} == {"bad.png", "notes.json"}
    assert [problem.path.name for problem in plan.unusable] == ["bad.png"]


def test_nothing_left_after_skipping_is_refused(section: Make) -> None:
    with pytest.raises(DatasetError, match="Nothing is left"):
        plan_datasets([section(3, captions=False, skip_unusable=True)], GEOMETRY, 1)


def test_much_cropping_and_much_enlarging_are_warned_of(section: Make) -> None:
    plan = plan_dataset(section(1, size=(20, 200)), GEOMETRY)
    whats = [problem.what for problem in plan.problems]
    assert any("cuts off" in what for what in whats)
    assert any("is enlarged" in what for what in whats)
    assert {problem.severity for problem in plan.problems} == {Severity.WARNING}


def mixed(section: Make) -> list[DatasetSection]:
    return [
        section(7, folder="square", repeats=2, validation_share=0),
        section(5, folder="wide!", size=(96, 64), resolutions=[64, 96], validation_share=0),
    ]


def test_an_epoch_holds_every_item_as_often_as_it_repeats_in_batches_of_one_bucket(section: Make) -> None:
    train = plan_datasets(mixed(section), GEOMETRY, 1).train
    epoch = batches(train, 4, 0, 1)
    assert Counter(i for batch in epoch for i in batch) == {i: each.repeats for i, each in enumerate(train)}
    assert all(len({train[i].placement.bucket for i in batch}) == 1 for batch in epoch)
    assert sorted(len(batch) for batch in epoch) == [1, 1, 2, 4, 4, 4, 4, 4]


def test_the_order_hangs_on_seed_and_epoch_alone(section: Make) -> None:
    train = plan_datasets(mixed(section), GEOMETRY, 1).train
    assert batches(train, 2, 3, 1) == batches(train, 2, 3, 1)
    orders = {str(batches(train, 2, epoch, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9
    # Written down, so that a newer version that orders otherwise, and would break the resuming of runs, is noticed.
    assert batches(train[:3], 1, 0, 42) == [[2], [0], [2], [1], [1], [0]]


def test_the_summary_counts_all_items_and_names_the_worst(section: Make) -> None:
    sections = [section(6, folder="a", size=(128, 128)), section(4, folder="bb", size=(20, 64), validation_share=0)]
    plan = plan_datasets(sections, GEOMETRY, 1)
    rows = summary(plan)
    assert [str(row.bucket) for row in rows] == ["40x96", "64x64"]
    assert [row.items for row in rows] == [4, 6]
    assert [row.upscaled for row in rows] == [4, 0]
    assert rows[1].mean_lost_share == 0
    assert rows[0].worst.item.path.parent.name == "bb"
    assert rows[0].mean_lost_share == pytest.approx(rows[0].worst.placement.lost_share) == pytest.approx(0.25, abs=0.02)
