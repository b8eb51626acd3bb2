"""The ledger: whose a caption is, what is never overwritten, and how it is undone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lorapod.captioning.ledger import Fault, Ledger, State, Write, alone_in, read_exactly, undo_newest
from lorapod.errors import RequestError


def write(folder: Path, name: str, text: str, run: str = "r1") -> list[Path]:
    entry = Write(run, name, text, read_exactly(folder / name), "fake", time.time())
    return Ledger(folder).write([entry])


def test_what_was_written_is_ours_until_a_hand_changes_it(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "a cat\n")
    assert Ledger(tmp_path).state(tmp_path / "a.txt") is State.OURS
    (tmp_path / "a.txt").write_text("a black cat\n")
    assert Ledger(tmp_path).state(tmp_path / "a.txt") is State.BY_HAND


@pytest.mark.parametrize(("content", "state"), [(None, "missing"), (" \n", "missing"), ("a dog", "by hand")])
def test_files_that_nobody_told_us_about(tmp_path: Path, content: str | None, state: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_text(content)
    assert Ledger(tmp_path).state(tmp_path / "a.txt") == state


def test_a_caption_of_a_hand_is_left_alone_even_where_a_write_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    assert write(tmp_path, "a.txt", "theirs\n") == [tmp_path / "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert undo_newest([tmp_path]) is None


def test_undo_goes_back_run_by_run_and_keeps_what_was_edited(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(" ")
    for name in ("a.txt", "b.txt", "c.txt"):
        write(tmp_path, name, f"first {name}\n", "r1")
    write(tmp_path, "a.txt", "second a.txt\n", "r2")
    (tmp_path / "c.txt").write_text("edited")

    undone = undo_newest([tmp_path])
    assert undone is not None and undone.run == "r2"
    assert (tmp_path / "a.txt").read_text() == "first a.txt\n"
    assert Ledger(tmp_path).state(tmp_path / "a.txt") is State.OURS

    undone = undo_newest([tmp_path])
    assert undone is not None and undone.run == "r1"
    assert (undone.removed, undone.restored, undone.kept) == (
        [tmp_path / "a.txt"],
        [tmp_path / "b.txt"],
        [tmp_path / "c.txt"],
    )
    assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "b.txt").read_text() == " "
    assert (tmp_path / "c.txt").read_text() == "edited"
    assert undo_newest([tmp_path]) is None


def test_a_dataset_that_was_moved_keeps_its_ledger(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write(tmp_path / "old", "a.txt", "a cat\n")
    (tmp_path / "old").rename(tmp_path / "new")
    assert Ledger(tmp_path / "new").state(tmp_path / "new/a.txt") is State.OURS


def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "a cat\n")
    ledger = tmp_path / ".lorapod/captions.jsonl"
    with ledger.open("a") as file:
        file.write('{"did": "write", "name": "b.t')
    write(tmp_path, "c.txt", "a cow\n", "r2")
    read = Ledger(tmp_path)
    assert read.state(tmp_path / "a.txt") is State.OURS
    assert read.state(tmp_path / "c.txt") is State.OURS
    assert read.damaged == 1
    assert all(json.loads(line) for i, line in enumerate(ledger.read_text().splitlines()) if i != 1)
    undone = undo_newest([tmp_path])
    assert undone is not None and undone.removed == [tmp_path / "c.txt"]


def test_a_kill_between_the_line_and_the_caption_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "first\n", "r1")
    Ledger(tmp_path)._append(  # what is on disk after a kill between the two steps of a second write
        [
            {
                "did": "write",
                "sha256": "0" * 64,
                "run": "r2",
                "name": "a.txt",
                "text": "x",
                "before": "first\n",
                "by": "",
                "time": time.time(),
            }
        ]
    )
    assert Ledger(tmp_path).state(tmp_path / "a.txt") is State.OURS
    undone = undo_newest([tmp_path])
    assert undone is not None and undone.kept == []
    assert (tmp_path / "a.txt").read_text() == "first\n"


def test_faults_are_remembered_until_settled(tmp_path: Path) -> None:
    Ledger(tmp_path).note_faults([Fault("r1", "a.png", "It was refused", "hash", True, 1.0)])
    known = Ledger(tmp_path).fault(tmp_path / "a.png")
    assert known is not None and known.reason == "It was refused" and known.final
    Ledger(tmp_path).settle(["a.png", "never.png"], "r2")
    assert Ledger(tmp_path).fault(tmp_path / "a.png") is None


def test_two_cannot_write_into_one_folder(tmp_path: Path) -> None:
    with alone_in([tmp_path]), pytest.raises(RequestError, match="being written already"), alone_in([tmp_path]):
        pass
    with alone_in([tmp_path]):
        pass


def test_the_ledger_is_no_part_of_the_dataset(tmp_path: Path) -> None:
    from PIL import Image

    from lorapod.data import scan

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write(tmp_path, "a.txt", "a cat\n")
    found = scan(tmp_path, recursive=True)
    assert found.items[0].caption == "a cat"
    assert found.problems == [] and found.others == []
