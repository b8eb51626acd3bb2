"""Output cut into lines, whatever is in it and however it is cut up on its way."""

from __future__ import annotations

import random
import time

import pytest

from lorapod.trainers.lines import LONGEST_LINE, Line, LineSplitter


def lines_of(*pieces: bytes) -> list[Line]:
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.rest()


def test_states_of_a_bar_are_lines_of_their_own_of_which_the_last_stays() -> None:
    assert lines_of(b"\r 10%\r 50%\r100%\nnext\r\nlast") == [
        Line(" 10%", False), Line(" 50%", False), Line("100%", True), Line("next", True), Line("last", True)
    ]  # fmt: skip


def test_a_bar_is_seen_before_it_ends() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"\r 10%\r 20%") == [Line(" 10%", False)]
    assert splitter.feed(b"\r 30%") == [Line(" 20%", False)]


@pytest.mark.parametrize("seed", range(5))
def test_where_the_output_is_cut_up_does_not_matter_for_what_stays(seed: int) -> None:
    output = "über 1\n\r 5%|x|\r 10%\r\nbroken \n".encode() + b"\xff\xfe utf-8\nend"
    rng, pieces, rest = random.Random(seed), [], output
    while rest:
        cut = rng.randint(1, 4)
        pieces.append(rest[:cut])
        rest = rest[cut:]
    stays = [line.text for line in lines_of(*pieces) if line.stays]
    assert stays == ["über 1", " 10%", "broken ", "\ufffd\ufffd utf-8", "end"]


def test_a_line_without_end_is_given_in_pieces_and_nothing_after_it_is_lost() -> None:
    lines = lines_of(b"x" * (3 * LONGEST_LINE + 10), b"\nsteps: 7\n")
    assert sum(len(line.text) for line in lines[:-1]) == 3 * LONGEST_LINE + 10
    assert lines[-1] == Line("steps: 7", True)


def test_a_line_cut_within_a_character_is_whole() -> None:
    assert lines_of("é".encode()[:1], "é".encode()[1:] + b"\n") == [Line("é", True)]


def test_it_is_quick() -> None:
    data = b"".join(b"steps: %d loss: 0.1\r" % i + b"a line of the log\n" for i in range(100_000))
    began = time.perf_counter()
    splitter, count = LineSplitter(), 0
    for at in range(0, len(data), 1 << 16):
        count += len(splitter.feed(data[at : at + (1 << 16)]))
    assert count == 200_000 and time.perf_counter() - began < 4
