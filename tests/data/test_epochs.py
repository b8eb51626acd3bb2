"""What does not fill a batch, and the chart of buckets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from lorapod.data import Bucket, DataPlan, Fate, Item, TrainItem, batches, batches_per_epoch, leftovers, place
from lorapod.data.bucket_chart import draw_buckets
from lorapod.data.scan import ControlPicture
from lorapod.recipe.choices import TrainerName

SQUARE, WIDE, CLIP = Bucket(64, 64), Bucket(96, 64), Bucket(64, 64, 17)


def items(count: int, bucket: Bucket, dataset: int = 0, repeats: int = 1) -> list[TrainItem]:
    placement = replace(place(bucket.width * 2, bucket.height * 3, [bucket]), bucket=bucket)
    return [
        TrainItem(
            dataset,
            Item(Path(f"/{dataset}/{bucket} {i}.png"), 1, 1, "x", None, 1, f"{dataset} {bucket} {i}"),
            placement,
            ("x",),
            repeats,
            0.0,
        )
        for i in range(count)
    ]


def plan(*groups: list[TrainItem]) -> DataPlan:
    return DataPlan([each for group in groups for each in group], [], [], [])


def test_full_batches_leave_nothing_over() -> None:
    assert leftovers(plan(items(8, SQUARE), items(2, WIDE, repeats=2)), 4) == []


def test_each_trainer_says_what_it_does_with_the_rest() -> None:
    found = leftovers(plan(items(9, SQUARE), items(4, WIDE)), 4)
    assert [(each.trainer, each.fate, each.bucket, each.count, each.of) for each in found] == [
        (TrainerName.BUILTIN, Fate.SHORT_BATCH, SQUARE, 1, 9),
        (TrainerName.DIFFUSION_PIPE, Fate.DROPPED, SQUARE, 1, 9),
        (TrainerName.MUSUBI, Fate.SHORT_BATCH, SQUARE, 1, 9),
    ]
    assert "drops 1 of the 9 of 64x64" in str(found[1])
    assert "64x64 0.png" in str(found[1])
    assert "and 4 more" in str(found[1])


def test_a_bucket_that_fills_no_batch_is_never_trained_on_by_diffusion_pipe_and_its_items_are_named() -> None:
    (found,) = [each for each in leftovers(plan(items(3, CLIP)), 4) if each.fate is Fate.DROPPED]
    assert [each.item.path.name for each in found.candidates] == ["64x64x17 0.png", "64x64x17 1.png", "64x64x17 2.png"]
    assert "never trains on anything of 64x64x17" in str(found)
    assert "64x64x17 2.png" in str(found)


def test_datasets_share_a_bucket_but_not_with_musubi_and_steps_are_whole_with_diffusion_pipe() -> None:
    shared = plan(items(3, SQUARE), items(3, SQUARE, dataset=1, repeats=2))
    counts = {each.trainer: each.count for each in leftovers(shared, 2, accumulation=2)}
    assert counts == {TrainerName.BUILTIN: 1, TrainerName.DIFFUSION_PIPE: 1, TrainerName.MUSUBI: 1}
    assert batches_per_epoch(shared, 2, accumulation=2) == {
        TrainerName.BUILTIN: 5,
        TrainerName.DIFFUSION_PIPE: 4,
        TrainerName.MUSUBI: 5,
    }
    uneven = plan(items(3, SQUARE), items(3, SQUARE, dataset=1))
    assert [each.trainer for each in leftovers(uneven, 2)] == [TrainerName.MUSUBI, TrainerName.MUSUBI]


def test_what_is_said_of_the_builtin_trainer_is_what_its_batches_are() -> None:
    train = plan(items(9, SQUARE, repeats=2), items(5, WIDE), items(3, CLIP)).train
    epoch = batches(train, 4, 0, 1)
    assert len(epoch) == batches_per_epoch(plan(train), 4)[TrainerName.BUILTIN]
    short = Counter(train[batch[0]].placement.bucket for batch in epoch if len(batch) < 4)
    said = Counter(each.bucket for each in leftovers(plan(train), 4) if each.trainer is TrainerName.BUILTIN)
    assert short == said


def test_the_chart_has_a_row_a_bucket_and_draws_very_many_and_none() -> None:
    few = draw_buckets(plan(items(9, SQUARE), items(5, WIDE), items(2, CLIP)))
    fewer = draw_buckets(plan(items(9, SQUARE)))
    assert few.width == fewer.width
    assert few.height - fewer.height == 2 * (fewer.height - draw_buckets(plan()).height)
    many = draw_buckets(plan(*(items(1, Bucket(64, 64 + 8 * i)) for i in range(200))))
    assert many.height < 10_000
    assert len(few.getcolors(1_000_000) or []) > 5


def test_items_of_a_batch_have_as_many_control_pictures() -> None:
    """Else it would take several passes, and where the base model is split over GPUs they would lose step."""
    picture = ControlPicture(Path("/c.png"), 64, 64, "c")
    train = plan(items(5, SQUARE), items(6, SQUARE), items(3, SQUARE, dataset=1), known(7, SQUARE)).train
    for i, each in enumerate(train):
        train[i] = replace(each, item=replace(each.item, controls=(picture,) * (i % 3)))
    for epoch in range(3):
        portions = batches(train, 4, epoch, 1)
        assert all(len({len(train[i].item.controls) for i in portion}) == 1 for portion in portions)
        assert len(portions) == batches_per_epoch(plan(train), 4)[TrainerName.BUILTIN]
    said = sum(each.trainer is TrainerName.BUILTIN for each in leftovers(plan(train), 4))
    assert said == sum(len(portion) < 4 for portion in portions)


def known(count: int, bucket: Bucket) -> list[TrainItem]:
    """Regularisation items."""
    return [replace(each, regularises=True) for each in items(count, bucket, dataset=9)]


def test_regularisation_items_take_their_share_and_all_get_their_turn() -> None:
    train = plan(items(6, SQUARE, repeats=2), known(31, SQUARE), known(9, WIDE)).train
    seen: Counter[int] = Counter()
    for epoch in range(10):
        portions = batches(train, 4, epoch, 1)
        taken = [i for portion in portions for i in portion if train[i].regularises]
        assert len(taken) == 12 and sum(map(len, portions)) == 24
        assert len(portions) == batches_per_epoch(plan(train), 4)[TrainerName.BUILTIN]
        assert all(len({train[i].placement.bucket for i in portion}) == 1 for portion in portions)
        seen.update(taken)
    for bucket in (SQUARE, WIDE):
        times = [seen[i] for i, each in enumerate(train) if each.regularises and each.placement.bucket == bucket]
        assert min(times) >= 2 and max(times) - min(times) <= 1
    assert batches(train, 4, 3, 1) == batches(train, 4, 3, 1) != batches(train, 4, 4, 1)


def test_few_regularisation_items_come_often_and_a_share_of_zero_leaves_them_out() -> None:
    train = plan(items(9, SQUARE), known(2, SQUARE)).train
    (count,) = {sum(map(len, batches(train, 1, epoch, 1, 0.25))) for epoch in range(3)}
    assert count == 12
    assert all(not train[i].regularises for portion in batches(train, 1, 0, 1, 0.0) for i in portion)
