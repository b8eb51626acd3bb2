"""musubi-tuner's output as events, at the shapes that it really prints."""

from __future__ import annotations

import time

from lorapod.events import Event
from lorapod.trainers.musubi.parse import Reader


def read(reader: Reader, line: str) -> Event | None:
    """The only event of a line."""
    found = reader.read(line)
    assert len(found) < 2
    return found[0] if found else None


def bar(step: int, total: int, loss: str = "0.0871", rate: str = "1.23s/it") -> str:
    return f"steps: {100 * step // total:3d}%|{'█' * 10}| {step}/{total} [02:33<1:20:01,  {rate}, avr_loss={loss}]"


def test_a_progress_bar_is_steps_with_loss_rate_and_epoch() -> None:
    reader = Reader("train", learning_rate=1e-4)
    assert read(reader, "epoch 3/16") is None
    found = read(reader, bar(40, 1600))
    assert found is not None and found["type"] == "step"
    assert (found["step"], found["total"], found["epoch"], found["loss"]) == (40, 1600, 3, 0.0871)
    assert (found["seconds"], found["lr"]) == (1.23, 1e-4)
    fast = read(reader, bar(41, 1600, "0.0869", rate="4.00it/s"))
    assert fast is not None and fast["seconds"] == 0.25


def test_a_resumed_training_goes_on_counting() -> None:
    found = read(Reader("train", offset=500), bar(3, 100))
    assert found is not None and (found["step"], found["total"]) == (503, 600)


def test_a_loss_that_is_no_number_is_noted_with_its_first_step() -> None:
    reader = Reader("train")
    assert read(reader, bar(3, 100, loss="nan")) is None and read(reader, bar(4, 100, loss="nan")) is None
    assert reader.loss_broke == 3


def test_other_bars_and_words_are_not_steps() -> None:
    reader = Reader("train")
    read(reader, bar(50, 100))
    assert read(reader, "saving checkpoint: /run/output/zorb-step00000050.safetensors") is None
    assert read(reader, "Loading checkpoint shards:  50%|#####     | 1/2 [00:02<00:02,  2.0s/it]") is None
    assert read(reader, "an error was never so near: 100 errors") is None
    assert (reader.step, reader.total) == (50, 100)


def test_what_was_raised_is_kept() -> None:
    reader = Reader("train")
    for line in ("Traceback (most recent call last):", '  File "x.py", line 1, in f', "KeyError: 'latents_image'"):
        assert read(reader, line) is None
    assert reader.tracebacks.last is not None and reader.tracebacks.last.kind == "KeyError"


def test_caching_is_progress() -> None:
    reader = Reader("cache latents")
    found = read(reader, "12it [00:03,  3.9it/s]")
    assert found is not None and (found["type"], found["done"]) == ("progress", 12)


def test_a_slow_step_that_is_drawn_twice_is_one_step_with_its_own_loss() -> None:
    reader, found = Reader("train"), []
    for step, loss in ((1, "0.5"), (2, "0.5"), (2, "0.4"), (3, "0.4"), (3, "0.4"), (4, "0.4")):
        found += reader.read(bar(step, 4, loss))
    found += reader.rest()
    assert [(each["step"], each["loss"]) for each in found] == [(1, 0.5), (2, 0.4), (3, 0.4), (4, 0.4)]


def test_a_hundred_thousand_lines_lose_no_step_and_take_two_seconds() -> None:
    lines, wanted = [], []
    for number in range(1, 25_001):
        lines += [
            bar(number, 25_000),
            "INFO:musubi_tuner.x:\ufffd\ufffd broken \ufffd",
            "",
            f"warning {number}%| of 3/4 [",
        ]
        wanted.append(number)
    lines.insert(500, "x" * 1_000_000)
    lines.insert(900, "y" * 900_000 + "\r" + bar(225, 25_000))
    reader, seen = Reader("train"), []
    began = time.process_time()
    for line in lines:
        seen += [found["step"] for found in reader.read(line)]
    seen += [found["step"] for found in reader.rest()]
    assert seen == wanted
    # Not a benchmark: a reading that is quadratic in a line takes minutes here.
    assert time.process_time() - began < 20
