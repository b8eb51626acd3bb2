import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorapod.data import Bucket, Item, TrainItem, load_item, load_items, load_picture, loading, place
from lorapod.data.threads import in_order
from lorapod.errors import DatasetError


def train_item(path: Path, bucket: Bucket) -> TrainItem:
    with Image.open(path) as image:
        size = image.size
    return TrainItem(0, Item(path, *size, "x", None, 1, path.name), place(*size, [bucket]), ("x",), 1, 0.0)


@pytest.fixture
def items(tmp_path: Path) -> list[TrainItem]:
    for i in range(12):
        Image.new("RGB", (40 + i, 32), (i * 20, 0, 0)).save(tmp_path / f"{i}.png")
    return [train_item(tmp_path / f"{i}.png", Bucket(32, 32)) for i in range(12)]


def test_items_come_in_order_and_are_what_one_by_one_they_are(items: list[TrainItem]) -> None:
    loaded = list(load_items(items, threads=4))
    assert len(loaded) == 12
    for each, pixels in zip(items, loaded, strict=True):
        assert pixels.shape == (1, 32, 32, 3)
        assert np.array_equal(pixels[0], load_picture(each.item.path, each.placement))
        assert np.array_equal(pixels, load_item(each))


def test_an_item_that_fails_raises_in_its_place_and_the_rest_is_dropped(items: list[TrainItem]) -> None:
    items[5].item.path.write_bytes(b"")
    loaded = load_items(items)
    for _ in range(5):
        next(loaded)
    with pytest.raises(DatasetError, match=r"5\.png"):
        next(loaded)
    assert list(loaded) == []


def test_no_more_is_begun_than_is_waited_for(items: list[TrainItem], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def noted(path: Path, placement: object) -> np.ndarray:
        begun.append(path)
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(loading, "load_picture", noted)
    monkeypatch.setattr(loading, "HELD_BYTES", 3 * 32 * 32 * 3)
    loaded = load_items(items, threads=2)
    next(loaded)
    time.sleep(0.1)
    assert len(begun) <= 4
    assert len(list(loaded)) == 11


def test_work_runs_on_several_threads_at_once_and_stops_when_nobody_listens() -> None:
    together = threading.Barrier(3, timeout=10)
    begun = []

    def meet(number: int) -> int:
        begun.append(number)
        if number < 3:
            together.wait()
        return number

    results = in_order(meet, range(1000), threads=3, ahead=6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(begun) < 20


def test_nothing_gives_nothing() -> None:
    assert list(load_items([])) == []
