"""What captioners are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lorapod.captioning.base import Answer
from lorapod.captioning.cleaning import Judge
from lorapod.captioning.items import Subject
from lorapod.captioning.judging import Accepted, AskAgain
from lorapod.captioning.wording import GOALS, Fault, Wish, ask_again, ask_for
from lorapod.data.checks.tokens import TextLimit
from lorapod.data.media_cache import FileId

PICTURE = Subject(Path("/d/a.png"), "picture", Path("/d/a.txt"), FileId(Path("/d/a.png"), 1, 2, 3))
CLIP = replace(PICTURE, path=Path("/d/a.mp4"), kind="clip", seconds=4.0)


@pytest.mark.parametrize("goal", GOALS)
def test_each_goal_says_what_to_describe_and_what_to_leave_out(goal: str) -> None:
    asked = {name: ask_for(Wish(goal=name), PICTURE).prompt for name in ("", *GOALS)}
    assert len(set(asked.values())) == len(asked)
    assert "Do not" in asked[goal] or goal == "motion"


def test_the_request_names_the_subject_what_is_absorbed_and_the_notes() -> None:
    wish = Wish(trigger="ohwx", class_word="woman", goal="character", absorb="her scar", notes="She is a dancer.")
    prompt = ask_for(wish, PICTURE).prompt
    assert "“woman”" in prompt and "Do not mention this: her scar." in prompt and "She is a dancer." in prompt
    assert "ohwx" not in prompt, "the trigger word is put in afterwards"


def test_clips_are_asked_for_what_happens() -> None:
    assert "from beginning to end" in ask_for(Wish(), CLIP).prompt and ask_for(Wish(), CLIP).seconds == 4.0


def test_no_more_words_are_asked_for_than_the_text_encoder_reads() -> None:
    clip_limit, t5_limit = TextLimit("sdxl", 77, 2), TextLimit("flux-dev", 512, 1)
    assert Wish(limit=clip_limit, length="long").most_words() == 56
    assert Wish(limit=t5_limit, length="long").most_words() == 130
    assert Wish(limit=clip_limit, length="long", trigger="a trigger of many words").most_words() < 56


def test_ones_own_prompt_goes_over_all() -> None:
    assert ask_for(Wish(prompt="Only the colour.", goal="style"), PICTURE).prompt == "Only the colour."


def test_joycaption_is_asked_in_its_own_form() -> None:
    prompt = ask_for(Wish(captioner="joycaption", length="long"), PICTURE).prompt
    assert prompt.startswith("Write a long detailed description for this image.")
    short = ask_for(Wish(captioner="joycaption", limit=TextLimit("sdxl", 77, 2)), PICTURE).prompt
    assert "in 50 words or less" in short


def test_a_fault_changes_the_request() -> None:
    wish = Wish(limit=TextLimit("sdxl", 77, 2))
    ask = ask_for(wish, PICTURE)
    for fault in Fault:
        again = ask_again(wish, ask, fault, tokens=150)
        assert again != ask or fault is Fault.NO_SUBJECT
    assert "at most 28 words" in ask_again(wish, ask, Fault.TOO_LONG, tokens=150).prompt
    assert ask_again(wish, ask, Fault.CUT).max_tokens == 800
    assert ask_again(wish, ask, Fault.LOOP).temperature > ask.temperature
    twice = ask_again(wish, ask_again(wish, ask, Fault.LOOP), Fault.LOOP)
    assert twice.prompt.count("Say each thing once") == 1


def test_a_refusal_and_a_loop_are_repaired_by_asking_again() -> None:
    wish = Wish(trigger="ohwx")
    judge, ask = Judge(wish), ask_for(wish, PICTURE)
    refused = judge(ask, Answer("I'm sorry, I can't help with that."), 0)
    assert isinstance(refused, AskAgain) and "refused" in refused.reason and "I'm sorry" in refused.reason
    looped = judge(refused.ask, Answer("A dog on a dog on a dog on a dog on a dog on a dog on a dog"), 1)
    assert isinstance(looped, AskAgain) and "plainly what can be seen" in looped.ask.prompt
    good = judge(looped.ask, Answer("A dog runs."), 2)
    assert good == Accepted("ohwx, A dog runs.")
