"""JoyCaption's choices as requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod.captioning.items import Subject
from lorapod.captioning.joycaption_style import (
    LENGTHS,
    TAG_TYPES,
    WORD_COUNTS,
    JoyOption,
    JoyStyle,
    JoyType,
    style_of,
    word_count,
)
from lorapod.captioning.wording import Wish, ask_for
from lorapod.data.media_cache import FileId
from lorapod.errors import RequestError

PICTURE = Subject(Path("/d/a.png"), "picture", Path("/d/a.txt"), FileId(Path("/d/a.png"), 1, 2, 3))


def test_there_are_twelve_types_and_twenty_seven_options() -> None:
    assert len(JoyType) == 12 and len(JoyOption) == 27 and len(TAG_TYPES) == 4


@pytest.mark.parametrize("kind", list(JoyType))
def test_every_type_takes_every_length(kind: JoyType) -> None:
    prompts = {JoyStyle(kind, length).prompt() for length in (*LENGTHS, *WORD_COUNTS)}
    assert len(prompts) == len(LENGTHS) + len(WORD_COUNTS)
    assert all("{" not in prompt and "  " not in prompt and ".." not in prompt for prompt in prompts)


def test_requests_have_the_form_that_the_model_was_trained_on() -> None:
    assert JoyStyle(length="any").prompt() == "Write a detailed description for this image."
    assert JoyStyle(length="very long").prompt() == "Write a very long detailed description for this image."
    assert JoyStyle(length=40).prompt() == "Write a detailed description for this image in 40 words or less."
    casual = JoyStyle(JoyType.CASUAL, "short").prompt()
    assert casual == "Write a short descriptive caption for this image in a casual tone."


def test_options_come_after_it_in_order_and_braces_do_no_harm() -> None:
    style = style_of("descriptive", "long", ["lighting", "no-text", "lighting"], name="{x}")
    assert style.options == (JoyOption.NAME, JoyOption.LIGHTING, JoyOption.NO_TEXT)
    assert style.prompt().endswith(
        "character as {x}. Describe the lighting. Do NOT mention any text that is in the image."
    )
    everything = JoyStyle(options=tuple(JoyOption), name="Ann").prompt()
    assert everything.count(".") >= 27 and "{" not in everything


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sonnet", "long"), "no type 'sonnet'"),
        (("booru", "endless"), "no length 'endless'"),
        (("booru", "25"), "no length '25'"),
        (("booru", "300"), "no length '300'"),
        (("booru", "long", ["rhymes"]), "no option 'rhymes'"),
        (("booru", "long", ["name"]), "needs a name"),
    ],
)
def test_what_is_none_of_the_choices_is_refused(words: tuple[str, str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        style_of(*words)


def test_names_are_heeded_as_people_write_them() -> None:
    assert style_of("Art Critic", "Medium", ["no_mood"]) == JoyStyle(
        JoyType.ART_CRITIC, "medium-length", (JoyOption.NO_MOOD,)
    )
    assert style_of("rule34", "120").is_tags


def test_words_are_counted_in_tens_that_it_knows() -> None:
    assert [word_count(most) for most in (5, 20, 56, 259, 900)] == [20, 20, 50, 250, 260]


def test_a_style_goes_over_what_comes_nearest_to_the_wish() -> None:
    style = JoyStyle(JoyType.STRAIGHTFORWARD, "short")
    asked = ask_for(
        Wish(captioner="joycaption", joycaption=style, notes="It is Bob.", goal="character"), PICTURE
    ).prompt
    assert asked == f"{style.prompt()} It is Bob."
    nearest = ask_for(Wish(captioner="joycaption", goal="character", class_word="woman"), PICTURE).prompt
    assert "as the woman." in nearest and "cannot be changed" in nearest
