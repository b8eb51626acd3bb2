"""What holds of every answer: wrappings in any combination come off, and cleaning twice is cleaning once."""

from __future__ import annotations

import random
from itertools import product

import pytest

from lorapod.captioning.cleaning import clean
from lorapod.captioning.trigger import count_trigger
from lorapod.captioning.wording import Wish

CAPTIONS = (
    "A black cat sits on a red chair.",
    'A woman in a blue coat holds a sign that reads "open".',
    "Two children run along a beach at dusk, kites above them; a dog follows.",
    "It's raining, and the cyclist's hood is up.",
)
ASSENTS = ("", "Sure! ", "Of course.\n\n", "Okay, ", "Certainly! 😊 ")
INTRODUCTIONS = (
    "",
    "here is a caption for the image:\n\n",
    "here's your caption: ",
    "Below is a short description, as you asked:\n",
    "I've written this caption for you:\n\n",
)
LABELS = ("", "Caption: ", "**Caption:** ", "### Caption\n", "Image description:\n")
AROUND = (("", ""), ("**", "**"), ("\n> ", ""), ("```\n", "\n```"), ("“", "”"), ("<think>It is a scene.</think>", ""))
CLOSINGS = (
    "",
    "\n\nLet me know if you want another!",
    "\n\n---\n\n(12 words)",
    "<|im_end|>",
    "\n\n*Note: the trigger is left out.*",
)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_wrappings_come_off_in_every_combination(caption: str) -> None:
    for assent, introduction, label, (left, right), closing in product(
        ASSENTS, INTRODUCTIONS, LABELS, AROUND, CLOSINGS
    ):
        opening = introduction if assent.rstrip().endswith(",") else introduction[:1].upper() + introduction[1:]
        if assent == "Okay, " and not introduction:
            continue  # “Okay, A black cat” is said by nobody
        inside = f"{left}{caption}{right}"
        answer = (
            f"{left}{assent}{opening}{label}{caption}{closing}"
            if "think" in left
            else f"{assent}{opening}{label}{inside}{closing}"
        )
        found = clean(answer, Wish())
        assert (found.text, found.fault) == (caption, None), answer


WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "woman",
    "man",
    "sits",
    "walks",
    "red",
    "blue",
    "on",
    "under",
    "with",
    "and",
    "near",
    "tree",
    "house",
    "at",
    "night",
    "photo",
    "of",
    "in",
]


def test_cleaning_twice_is_cleaning_once_and_the_trigger_word_stands_once() -> None:
    rng = random.Random(7)
    accepted = 0
    for _ in range(4000):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(3, 14))) for _ in range(rng.randint(1, 3))]
        for _ in range(rng.randint(0, 2)):
            at = rng.randrange(len(sentences))
            words = sentences[at].split()
            words.insert(rng.randint(0, len(words)), rng.choice(("ohwx", "Ohwx", "OHWX")))
            sentences[at] = " ".join(words)
        text = ". ".join(each[:1].upper() + each[1:] for each in sentences) + "."
        for place in ("first", "subject", "none"):
            wish = Wish(trigger="ohwx", class_word="woman", place=place)  # type: ignore[arg-type]
            found = clean(text, wish)
            if found.fault:
                continue
            accepted += 1
            if place != "none":
                assert count_trigger(found.text, "ohwx") == 1, (text, found.text)
            again = clean(found.text, wish)
            assert again == found, (text, found.text)
    assert accepted > 2000


def test_no_text_whatever_breaks_cleaning() -> None:
    rng = random.Random(3)
    pieces = [
        *"{}[]<>|*_`\"'“”#>-.,:;!?\n\\",
        "<think>",
        "</think>",
        "```",
        "json",
        "caption",
        "I'm sorry",
        "猫",
        "\ufffd",
        "\x00",
        " ",
        "A cat",
    ]
    for _ in range(6000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 24)))
        for unit in ("prose", "tags"):
            found = clean(text, Wish(trigger="ohwx", unit=unit))  # type: ignore[arg-type]
            assert found.fault or ("\n" not in found.text and found.text.strip() == found.text)
