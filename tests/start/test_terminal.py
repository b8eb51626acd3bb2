"""`lorapod start` on a pseudo-terminal: small and large, plain, dumb, without colour, resized, with Ctrl-C everywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import gpus as fakes
from lorapod.runs import find_run, stop_run
from lorapod.start.answers import kept_in
from lorapod.workspace import Workspace
from start.helpers import folder_of
from start.terminal import CTRL_C, CTRL_U, DOWN, ENTER, ESCAPE, Terminal

Open = Callable[..., Terminal]

QUESTIONS = (
    "Which base model",
    "What is the LoRA to learn",
    "Where are your pictures",
    "Which word is to call it",
    "to be called",
)


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def start(*arguments: str, **options: object) -> Terminal:
        (tmp_path / "w").mkdir(exist_ok=True)
        terminal = Terminal(tmp_path / "w", "start", *arguments, **options)  # type: ignore[arg-type]
        opened.append(terminal)
        return terminal

    yield start
    for terminal in opened:
        terminal.kill()


def begin(terminal: Terminal) -> None:
    terminal.wait("Press Enter to begin")
    terminal.press(ENTER)


def through(terminal: Terminal, *questions: str) -> None:
    for question in questions:
        terminal.wait(question)
        terminal.press(ENTER)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60)])
def test_twenty_pictures_are_trained_with_no_key_but_enter(
    tmp_path: Path, open_terminal: Open, columns: int, lines: int
) -> None:
    folder_of(tmp_path / "w/image_dataset_here", 20, captions="zorb on hill {}")
    terminal = open_terminal("--steps", "2", columns=columns, lines=lines)
    begin(terminal)
    through(terminal, *QUESTIONS, "Enter begins")
    shown = terminal.wait("Captions, as they will be trained")
    assert "zorb on hill 2" in shown and max(map(len, terminal.everything().splitlines())) <= columns
    assert [key for key in terminal.pressed if key != ENTER] == []
    assert "20 pictures" in terminal.everything()
    if lines == 60:
        return
    terminal.press(ENTER)
    terminal.wait("The same again: lorapod train", 120)
    assert terminal.end() == 0
    assert "recipes/zorb.toml" in terminal.everything().replace("\n", "")
    assert list((tmp_path / "w").rglob("lora/zorb.safetensors"))
    kept = kept_in(Workspace(tmp_path / "w"))
    assert kept is not None and kept.run
    again = open_terminal()
    begin(again)
    again.wait(QUESTIONS[0])  # that session is over: a new one begins
    assert "You began a session" not in again.everything()


def test_ctrl_c_at_every_question_keeps_what_was_answered(tmp_path: Path, open_terminal: Open) -> None:
    places = [*QUESTIONS, "Enter begins"]
    for i, place in enumerate(places):
        terminal = open_terminal()
        begin(terminal)
        if i > 1:
            through(terminal, "You began a session before")
        if i:
            through(terminal, places[i - 1])
        terminal.wait(place)
        assert i < 2 or places[i - 2] not in terminal.everything()
        terminal.press(CTRL_C)
        assert terminal.end() == 130
        assert "lorapod start goes on from here" in " ".join(terminal.everything().split())
    kept = kept_in(Workspace(tmp_path / "w"))
    assert kept is not None and kept.done == ["model", "goal", "data", "trigger", "name"]


@pytest.mark.parametrize("how", ["--plain", "TERM=dumb"])
def test_plain_questions_move_no_cursor_and_take_numbers_words_and_back(
    tmp_path: Path, open_terminal: Open, how: str
) -> None:
    terminal = (
        open_terminal("--plain", "--steps", "2")
        if how == "--plain"
        else open_terminal("--steps", "2", environment={"TERM": "dumb"})
    )
    begin(terminal)
    terminal.wait(QUESTIONS[0])
    terminal.press("7", ENTER)
    terminal.wait("Give a number from 1 to 1")
    terminal.press(ENTER)
    terminal.wait(QUESTIONS[1])
    terminal.press("style", ENTER)
    terminal.wait(QUESTIONS[2])
    terminal.press("b", ENTER)
    terminal.wait("Number (Enter: 2)")
    through(terminal, "Number (Enter: 2)", *QUESTIONS[2:], "Enter begins")
    terminal.wait("Enter goes on")
    terminal.press("e", ENTER)
    assert terminal.end() == 130
    assert "\x1b" not in terminal.raw


def test_without_colour_nothing_is_coloured(open_terminal: Open) -> None:
    terminal = open_terminal(environment={"NO_COLOR": "1"})
    begin(terminal)
    through(terminal, *QUESTIONS[:3])
    terminal.wait(QUESTIONS[3])
    assert terminal.colours == []


def test_a_window_that_changes_its_size_in_the_middle_goes_on(open_terminal: Open) -> None:
    terminal = open_terminal(columns=120, lines=40)
    begin(terminal)
    terminal.wait(QUESTIONS[0])
    terminal.resize(60, 20)
    time.sleep(0.3)
    through(terminal, "lorapod demo model", *QUESTIONS[1:])
    terminal.wait("Enter begins")


def test_in_a_narrow_window_names_stay_whole_and_what_is_cut_is_said_below(tmp_path: Path, open_terminal: Open) -> None:
    fakes.smi(tmp_path / "bin", (fakes.RTX4090.but(mebibytes=8192),))
    terminal = open_terminal(columns=40, lines=40, environment={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    begin(terminal)
    shown = terminal.wait(QUESTIONS[0])
    said = " ".join(shown.split())
    assert "not here (needs at least" in said and "this one has 8): Wan 2.1 T2V 14B, Wan 2.2" in said
    told = " ".join(shown.partition("Description:")[2].split())
    assert "Stable Diffusion XL base 1.0: pictures, 7 GB to fetch" in told


def test_a_training_that_was_stopped_is_offered_again_and_goes_on_to_its_end(
    tmp_path: Path, open_terminal: Open
) -> None:
    folder_of(tmp_path / "w/image_dataset_here", 12, captions="zorb on hill {}")
    terminal = open_terminal("--steps", "12", "--plain")
    begin(terminal)
    through(terminal, *QUESTIONS, "Enter begins", "Enter goes on")
    terminal.wait("Run ", 60)
    stop_run(find_run(None, Workspace(tmp_path / "w")))
    assert terminal.end(120) == 130
    again = open_terminal("--plain")
    begin(again)
    shown = again.wait("ended early, at step")
    assert "1. go on with it, from its newest checkpoint" in shown
    again.press(ENTER)
    assert again.end(120) == 0
    assert list((tmp_path / "w").rglob("lora/zorb.safetensors"))
    third = open_terminal("--plain")
    begin(third)
    third.wait(QUESTIONS[0])  # nothing is left to go on with


def test_a_gpu_that_lacks_what_every_preset_needs_is_spoken_of_before_the_first_question(
    tmp_path: Path, open_terminal: Open
) -> None:
    fakes.smi(tmp_path / "bin", (fakes.T4,))
    terminal = open_terminal(lines=60, environment={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    shown = terminal.wait("Press Enter to begin")
    assert "Careful: The Tesla T4 does not compute in bfloat16" in shown


def test_keys_pressed_right_after_escape_belong_to_the_next_question(tmp_path: Path, open_terminal: Open) -> None:
    terminal = open_terminal()
    begin(terminal)
    through(terminal, *QUESTIONS)
    terminal.wait("Enter begins")
    terminal.press("1", ENTER)
    terminal.wait(QUESTIONS[0])
    terminal.press(ESCAPE)
    time.sleep(0.7)
    terminal.press("9", "9", ENTER)
    terminal.wait("There is no line 99")
    terminal.press("x", ENTER)
    terminal.wait("'x' is none of these")


def test_escape_goes_back_and_a_number_changes_a_line(open_terminal: Open) -> None:
    terminal = open_terminal()
    begin(terminal)
    through(terminal, QUESTIONS[0])
    terminal.wait(QUESTIONS[1])
    terminal.press(DOWN, ENTER)
    terminal.wait(QUESTIONS[2])
    terminal.press(ESCAPE)
    time.sleep(0.8)
    terminal.wait("› style")
    through(terminal, "› style", *QUESTIONS[2:])
    terminal.wait("Enter begins")
    terminal.press("6", ENTER)
    terminal.wait("to be called")
    terminal.press("my-style", ENTER)
    assert "my-style" in terminal.wait("6  Name          my-style")


def test_a_folder_is_dropped_into_the_terminal_and_what_is_wrong_with_it_is_said(
    tmp_path: Path, open_terminal: Open
) -> None:
    folder = folder_of(tmp_path / "my pictures", 6, captions="zorb {}")
    (folder / "04.png").write_bytes(b"not a picture")
    terminal = open_terminal()
    begin(terminal)
    through(terminal, *QUESTIONS[:2])
    terminal.wait(QUESTIONS[2])
    terminal.press(DOWN, ENTER)
    assert (tmp_path / "w/image_dataset_here").is_dir()  # which the question names
    terminal.press("/no such folder", ENTER)
    terminal.wait("There is no folder")
    assert terminal.shown().endswith("› /no such folder")  # to be mended; Enter takes no other pictures
    terminal.press(ENTER)
    assert terminal.wait("There is no folder").count("There is no folder /no such folder.") == 2
    terminal.press(ESCAPE)
    terminal.wait("the demo's: 20 pictures")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"not a picture")
    terminal.press(DOWN, ENTER)
    terminal.press(str(broken), ENTER)
    terminal.wait("None of these files can be trained on")
    terminal.press(CTRL_U, f"'{folder}'", ENTER)
    shown = terminal.wait(QUESTIONS[3])
    assert "orth fixing" in shown and "04.png" in shown


def test_a_key_is_not_shown_while_it_is_typed(tmp_path: Path, open_terminal: Open) -> None:
    fakes.smi(tmp_path / "bin", (fakes.H100,))
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    terminal = open_terminal("--model", "flux-dev", environment={"PATH": path, "HF_ENDPOINT": "http://127.0.0.1:9"})
    begin(terminal)
    terminal.wait("your key for Hugging Face")
    terminal.press(*"hf_secret", ENTER)
    terminal.wait("cannot be asked")
    assert "hf_secret" not in terminal.raw
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    assert "hf_secret" not in "".join(file.read_text() for file in (tmp_path / "w").glob("*.toml"))
