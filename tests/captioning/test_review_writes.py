"""What a review writes, and what it must never write over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lorapod.captioning.check import check_captions
from lorapod.captioning.wording import Wish
from lorapod.cli.caption_review import Review, edited, typed
from lorapod.data.scan import scan
from lorapod.recipe.schema import DatasetSection


def review_of(folder: Path) -> Review:
    found = scan(folder)
    return Review.of(found.items, check_captions(DatasetSection(path=folder), found, Wish()))


def picture(path: Path) -> Path:
    Image.effect_noise((64, 48), 40 + sum(map(ord, path.name)) % 60).convert("RGB").save(path)
    return path


def test_metadata_of_a_folder_are_never_written(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "caption": f"the letter {name} on a wall"} for name in "abc"]
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = metadata.read_bytes()
    review = review_of(tmp_path)
    assert review.write([(review.items[0], "a better caption"), (review.items[1], "another one")]) == 2
    assert metadata.read_bytes() == before
    assert [item.caption for item in scan(tmp_path).items][:2] == ["a better caption", "another one"]
    assert review.undo() == "Undone."
    assert metadata.read_bytes() == before and not list(tmp_path.glob("*.txt"))
    assert review.items[0].caption == "the letter a on a wall"


def test_undo_brings_back_the_very_bytes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for before in (b"\xef\xbb\xbftwo\r\nlines \r\n", "café".encode(), b"", b" \n"):
        (tmp_path / "a.txt").write_bytes(before)
        review = review_of(tmp_path)
        review.write([(review.item, "a new one")])
        assert (tmp_path / "a.txt").read_bytes() == b"a new one\n"
        review.undo()
        assert (tmp_path / "a.txt").read_bytes() == before


def test_undo_leaves_alone_what_was_changed_meanwhile_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the letter {name}")
    review = review_of(tmp_path)
    review.write([(item, f"{item.caption} again") for item in review.items])
    (tmp_path / "b.txt").write_text("mine")
    assert review.undo() == "Changed meanwhile, so left as it is: b.txt"
    assert (tmp_path / "a.txt").read_text() == "the letter a" and (tmp_path / "b.txt").read_text() == "mine"


def test_what_was_found_about_a_caption_goes_with_it_and_comes_back(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("I'm sorry, but I can't help with that.")
    review = review_of(tmp_path)
    assert review.said
    review.write([(review.item, "a house")])
    assert not review.said
    review.undo()
    assert review.said


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a house")
    (tmp_path / "b.txt").write_bytes("a café".encode("latin-1"))
    review = review_of(tmp_path)
    assert [item.path.name for item in review.items] == ["a.png"]
    assert any("not UTF-8" in each for each in review.unseen)
    assert (tmp_path / "b.txt").read_bytes() == "a café".encode("latin-1")


def test_an_editor_that_gives_up_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, line in {"wrote": "exit 0", "gave_up": "exit 1"}.items():
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "a new caption" > "$1"\n{line}\n')
        script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(tmp_path / "wrote"))
    assert (edited("an old one") or "").strip() == "a new caption"
    monkeypatch.setenv("VISUAL", str(tmp_path / "gave_up"))
    assert edited("an old one") is None
    monkeypatch.setenv("VISUAL", "true")
    assert edited("an old one") is None


def test_a_plain_terminal_is_asked_for_a_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    answers = iter(["", "a new one"])
    monkeypatch.setattr("builtins.input", lambda title: next(answers))
    assert typed("Caption", "an old one") == "an old one"
    assert typed("Caption", "an old one") == "a new one"
