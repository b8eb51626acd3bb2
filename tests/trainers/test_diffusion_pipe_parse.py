"""What diffusion-pipe prints becomes events, and none of its steps is lost."""

from __future__ import annotations

import random
import time

import pytest

from lorapod.trainers.diffusion_pipe.parse import Reader
from lorapod.trainers.lines import LineSplitter


def step_line(step: int, loss: float = 0.1234) -> str:
    return f"steps: {step} loss: {loss:0.4f} iter time (s): 1.250 samples/sec: 0.800"


def read(reader: Reader, *lines: str) -> list[dict]:
    return [found for line in lines for found in reader.read(line)]


def test_a_step_has_the_rate_and_the_epoch_that_were_said_before_it() -> None:
    found = read(
        Reader("train", total=100, learning_rate=1e-4),
        "[2026-08-21 10:00:00,000] [INFO] [logging.py:107] [Rank 0] step=1, skipped=0, lr=[2.5e-05], mom=[[0.9, 0.99]]",
        step_line(1),
        "Started new epoch: 2",
        step_line(2),
    )
    assert [(e["step"], e["total"], e["epoch"], e["lr"], e["seconds"]) for e in found] == [
        (1, 100, 1, 2.5e-05, 1.25), (2, 100, 2, 2.5e-05, 1.25)
    ]  # fmt: skip
    assert found[0]["loss"] == 0.1234


@pytest.mark.parametrize(
    "line",
    [
        f" 50%|█████     | 9/18 [00:03<00:03,  2.9it/s]{step_line(3)}",
        f"[rank0]: warning{step_line(3)}",
        f"{step_line(3)}[2026-08-21] [INFO] something else",
        "y" * 1_000_000 + step_line(3),
    ],
)
def test_a_step_is_found_wherever_it_was_printed_into(line: str) -> None:
    assert [e["step"] for e in read(Reader("train", 10), line)] == [3]


def test_two_steps_glued_into_one_line_are_both_found() -> None:
    assert [e["step"] for e in read(Reader("train", 10), step_line(3) + step_line(4))] == [3, 4]


def test_of_a_hundred_thousand_lines_no_step_is_lost_and_it_is_quick() -> None:
    rng, output, steps = random.Random(0), [], 0
    while len(output) < 100_000:
        kind = rng.random()
        if kind < 0.3:
            steps += 1
            output.append(step_line(steps, rng.random()).encode() + b"\n")
        elif kind < 0.6:
            output.append(b"\r %d%%|##   | %d/100 [00:01<00:02, 5.0it/s]" % (len(output) % 100, len(output) % 100))
        elif kind < 0.8:
            output.append(b"[2026-08-21 10:00:00] [INFO] [Rank 0] step=%d, skipped=0, lr=[1e-4], mom=[0.9]\n" % steps)
        else:
            output.append(b"broken \xff\xfe line " + b"z" * rng.randint(0, 200) + b"\n")
    data = b"".join(output)
    splitter, reader = LineSplitter(), Reader("train", total=steps)
    began, seen = time.perf_counter(), []
    for at in range(0, len(data), 1 << 16):
        for line in splitter.feed(data[at : at + (1 << 16)]):
            seen += [e["step"] for e in reader.read(line.text) if e["type"] == "step"]
    for line in splitter.rest():
        seen += [e["step"] for e in reader.read(line.text) if e["type"] == "step"]
    took = time.perf_counter() - began
    assert seen == list(range(1, steps + 1))
    assert len(output) / took > 50_000, f"{len(output) / took:.0f} lines a second"


def test_what_it_says_of_its_end_is_kept() -> None:
    reader = Reader("train")
    read(reader, step_line(40), "Saving model to directory epoch4", "TRAINING COMPLETE!", "Global batch size = 2")
    assert reader.complete and not reader.quit and reader.saved == {"epoch4": 40} and reader.global_batch == 2
    reader = Reader("train")
    read(reader, "Manually quitting", "[ERROR] [launch.py:325] /x/train.py exits with return code = -9")
    assert reader.quit and reader.return_code == -9


def test_a_loss_that_is_no_number_is_noticed_and_is_no_event() -> None:
    reader = Reader("train")
    found = read(reader, "steps: 5 loss: nan iter time (s): 1.0 samples/sec: 1.0")
    assert reader.loss_broke == 5 and not found


def test_items_that_are_left_out_are_warned_of() -> None:
    reader = Reader("cache")
    found = read(reader, "WARNING Cound not find caption for /x/a.png. Skipping image.")
    assert found[0]["type"] == "warning" and "/x/a.png" in found[0]["hint"] and reader.lost


def test_caching_shows_how_far_it_is() -> None:
    reader = Reader("cache")
    found = read(reader, "caching latents: (1.0, 512, 512, 1)", " 50%|█████     | 9/18 [00:03<00:03,  2.9it/s]")
    assert (found[0]["stage"], found[0]["done"], found[0]["total"]) == ("caching latents", 9, 18)


def test_the_last_exception_counts_and_not_the_launchers() -> None:
    reader = Reader("train")
    read(
        reader,
        "[rank0]: Traceback (most recent call last):",
        '[rank0]:   File "/x/train.py", line 1, in <module>',
        "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Traceback (most recent call last):",
        '  File "/x/launch.py", line 1',
        "subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1.",
    )
    last = reader.tracebacks.last
    assert last and last.kind == "OutOfMemoryError" and "2.00 GiB" in last.said
