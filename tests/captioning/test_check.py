"""What is suspicious about captions, and the review of them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from captioning.helpers import make_pictures
from fakes.openai_server import FakeOpenAI
from lorapod.captioning.check import Looked, check_captions, language_of
from lorapod.captioning.registry import Options
from lorapod.captioning.replace import plan_replacement
from lorapod.captioning.wording import Wish
from lorapod.cli.caption import recaptioner
from lorapod.cli.caption_review import Review, Screen
from lorapod.cli.main import app
from lorapod.cli.pictures import draw
from lorapod.data.checks.tokens import TextLimit
from lorapod.data.scan import scan
from lorapod.errors import LorapodError
from lorapod.recipe.schema import DatasetSection

CAPTIONS = {
    "a": "ohwx, a woman in a red coat walks along the shore at dusk.",
    "b": "ohwx, a woman in a blue dress sits on a bench in the park.",
    "c": "ohwx, a woman with a hat looks out of a window at the street.",
    "d": "ohwx, a woman rides a bicycle through a field of wheat.",
    "e": "ohwx, a woman reads a newspaper in a small kitchen.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    made.mkdir()
    for name, caption in CAPTIONS.items():
        add(made, name, caption)
    return made


def add(folder: Path, name: str, caption: str | None) -> Path:
    seed = sum(map(ord, name))
    Image.effect_noise((64, 48), 40 + seed % 60).convert("RGB").save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder / f"{name}.png"


def looked_at(folder: Path, **wish: object) -> Looked:
    section = DatasetSection(path=folder, trigger_word="ohwx")
    return check_captions(section, scan(folder), Wish(trigger="ohwx", **wish))  # type: ignore[arg-type]


def test_nothing_is_found_about_good_captions(folder: Path) -> None:
    looked = looked_at(folder)
    assert looked.findings == []
    assert looked.words.with_trigger == 5 and ("woman", 1.0) in looked.words.always
    assert "bicycle" in looked.words.once and "woman" not in looked.words.once


@pytest.mark.parametrize(
    ("name", "caption", "says"),
    [
        ("x", None, "has no caption"),
        ("x", "I'm sorry, but I can't help with that.", "excuse"),
        ("x", "ohwx, a woman and a woman and a woman and a woman and a woman and a woman", "repeats itself"),
        ("x", "Sure! Here is a caption: ohwx, a woman on a chair.", "words to you"),
        ("x", "ohwx, **a woman** on a chair.", "markup"),
        ("x", "“ohwx, a woman on a chair.”", "without them: “ohwx, a woman on a chair.”"),
        ("x", "- ohwx\n- a woman", "without them"),
        ("x", "The user wants a caption. A woman.", "thought aloud"),
        ("x", "N/A", "says nothing"),
        ("x", "ohwx. The image shows a woman on a chair.", "about the image"),
        ("x", "ohwx, a woman stands near the", "middle of a sentence"),
        ("x", "ohwx, a woman sees ohwx in a mirror.", "2 times"),
        ("x", "ohwx, a woman in a red coat walks slowly along the shore at dusk.", "nearly that of a.png"),
        ("green_car", "ohwx, a woman beside a red car.", "“green”, its caption says “red”"),
        ("x", "ohwx, a man on a ladder paints a wall.", "“man” where 5 of 6 say “woman”"),
        ("x", "ohwx, eine Frau sitzt mit der Katze und ist müde.", "looks German, the others English"),
        ("x", "ohwx, 一个女人坐在椅子上看书，窗外在下雨。", "Chinese or Japanese"),
        ("x", "ohwx, a woman " + " ".join(f"thing{i}" for i in range(200)) + ".", "of which sdxl reads 75"),
    ],
)
def test_what_is_suspicious_is_named(folder: Path, name: str, caption: str | None, says: str) -> None:
    path = add(folder, name, caption)
    found = [finding for finding in looked_at(folder, limit=TextLimit("sdxl", 77, 2)).findings if finding.path == path]
    assert any(says in finding.what for finding in found), found


def test_languages_are_told_by_common_words() -> None:
    assert language_of("a cat is on the chair with a hat") == "English"
    assert language_of("un chat est dans la rue avec les enfants et une balle") == "French"
    assert language_of("cat") is None


def test_check_prints_findings_and_ends_with_1_where_a_caption_is_none(folder: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["--workspace", str(tmp_path), "caption", "check", str(folder), *words])
        return result.exit_code, result.output

    code, output = run("--trigger", "ohwx")
    assert code == 0 and "Nothing suspicious" in output and "in 5 of them" in output
    add(folder, "x", None)
    code, output = run("--trigger", "ohwx")
    assert code == 1 and "x.png" in output and "no caption" in output
    code, output = run("--json")
    said = json.loads(output[output.index("{") :])
    assert code == 1 and said["items"] == 6 and said["findings"][0]["path"].endswith("x.png")


def screen(folder: Path, keys: str, lines: list[str | None] | None = None, **more: object) -> Screen:
    """A review with keys that are pressed one after the other."""
    pressed, typed = iter(keys), iter(lines or [])
    section = DatasetSection(path=folder, trigger_word="ohwx")
    found = scan(folder)
    review = Review.of(found.items, check_captions(section, found, Wish(trigger="ohwx")))

    def key() -> str:
        try:
            return next(pressed)
        except StopIteration:
            raise EOFError from None

    return Screen(review, key=key, line=lambda title, text: next(typed), **more)  # type: ignore[arg-type]


def test_the_suspicious_come_first_and_an_edit_is_on_disk_at_once(folder: Path) -> None:
    add(folder, "z", "I'm sorry, but I can't help with that.")
    made = screen(folder, "e", ["ohwx, a woman sleeps."])
    assert made.review.item.path.name == "z.png"
    made.run()
    assert (folder / "z.txt").read_text() == "ohwx, a woman sleeps.\n"
    assert made.review.item.caption == "ohwx, a woman sleeps." and not made.review.said


def test_a_review_goes_on_back_and_undoes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = screen(folder, "\r\rebuq", ["another caption"])
    made.run()
    assert made.review.at == 2, "undo goes to what it changed"
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == CAPTIONS
    assert "2 of 5 kept, 0 captions changed" in capsys.readouterr().out


def test_search_and_replace_is_shown_done_and_undone_as_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = screen(folder, "/nq", ["woman", "person"])
    made.run()
    assert "Change 5 captions? y or n" in capsys.readouterr().out
    assert (folder / "a.txt").read_text().strip() == CAPTIONS["a"]
    made = screen(folder, "y", ["woman", "person"])
    made.heed("/")
    assert "a person in a red coat" in (folder / "a.txt").read_text()
    made.heed("u")
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == CAPTIONS


def test_replacing_heeds_whole_words_and_tidies_up(folder: Path) -> None:
    items = scan(folder).items
    assert plan_replacement(items, "wom", "x") == []
    (taken,) = plan_replacement(items, "in a red coat", "")
    assert taken.after == "ohwx, a woman walks along the shore at dusk."
    with pytest.raises(LorapodError, match="no regular expression"):
        plan_replacement(items, "(", "", pattern=True)


def test_a_caption_is_asked_for_again_with_a_note(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "set", 1)
    with FakeOpenAI() as fake:
        fake.next_faults.append("refusal")
        again = recaptioner("openai", Options(endpoint=fake.url, model="fake-vl"), Wish(trigger="ohwx"))
        made = screen(folder, "rq", ["It is a toy."], recaption=again)
        made.run()
        prompts = [
            part["text"] for r in fake.requests for part in r["messages"][-1]["content"] if part["type"] == "text"
        ]
    assert len(prompts) == 2 and all("It is a toy." in prompt for prompt in prompts)
    assert next(folder.glob("*.txt")).read_text().startswith("ohwx, a plain square")


@pytest.mark.parametrize("way", ["kitty", "sixel", "blocks"])
def test_a_picture_is_drawn_in_each_way(tmp_path: Path, way: str) -> None:
    Image.new("RGB", (40, 20), (200, 10, 10)).save(tmp_path / "a.png")
    drawn = draw(tmp_path / "a.png", 20, 8, way)  # type: ignore[arg-type]
    marks = {"kitty": "\x1b_Ga=T,f=100", "sixel": "\x1bPq", "blocks": "\x1b[38;2;200;10;10m"}
    assert marks[way] in drawn
    assert draw(tmp_path / "nothing.png", 20, 8, way) == ""  # type: ignore[arg-type]


@pytest.fixture
def terminal(folder: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """`lorapod caption review` in a pseudo-terminal of 80 x 24: sends keys, gives what was drawn since."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(tmp_path), "caption", "review", str(folder)]
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)

    def press(keys: str, until: str, seconds: float = 30) -> str:
        if keys:
            time.sleep(0.5)  # what is typed before the program waits for a key is dropped
            os.write(master, keys.encode())
        seen, deadline = "", time.monotonic() + seconds
        while until not in seen:
            assert time.monotonic() < deadline, seen[-2000:]
            if select.select([master], [], [], 0.2)[0]:
                try:
                    seen += os.read(master, 65536).decode("utf-8", "replace")
                except OSError:
                    break
        return seen

    yield press
    process.kill()
    process.wait()
    os.close(master)


def test_the_review_in_a_terminal(terminal: Callable[[str], str], folder: Path) -> None:
    first = terminal("", "quit")
    assert "1 of 5" in first and "a.png" in first and "▀" in first
    second = terminal("\r", "2 of 5")
    assert "b.png" in second or "b.png" in terminal("", "b.png")
    terminal("e", "Caption")
    terminal(" and sings\r", "Changed.")
    assert (folder / "b.txt").read_text() == CAPTIONS["b"] + " and sings\n"
    terminal("\x1b[C", "3 of 5")
    terminal("\x1bOD", "2 of 5")
    terminal("é", "does nothing")
    assert "1 of 5 kept, 1 captions" in terminal("q", "on disk")
