"""What is taken out of answers, what is asked for again, and what must pass unharmed."""

from __future__ import annotations

import pytest

from lorapod.captioning.cleaning import clean, loops, place_trigger
from lorapod.captioning.wording import Fault, Wish
from lorapod.data.checks.tokens import TextLimit

CAT = "A black cat sits on a red chair."


@pytest.mark.parametrize(
    "answer",
    [
        CAT,
        f"Sure! Here is a caption: {CAT}",
        f"Sure, here's a description of the image:\n\n{CAT}",
        f"Certainly! Here's the caption you asked for:\n{CAT}",
        f"Here is a detailed caption for the image: {CAT}",
        f"Below is a caption for training:\n\n{CAT}",
        f"Caption: {CAT}",
        f"**Caption:** {CAT}",
        f"Caption (medium): {CAT}",
        f"Description - {CAT}",
        f"Image description: {CAT}",
        f"Final answer: {CAT}",
        f'"{CAT}"',
        f"“{CAT}”",
        f'Caption: "{CAT}"',
        f'Here is the caption:\n"{CAT}"',
        f"```\n{CAT}\n```",
        f"```text\n{CAT}```",
        f'```json\n{{"caption": "{CAT}"}}\n```',
        f'{{"description": "{CAT}"}}',
        f"<think>It seems to be a cat.</think>\n{CAT}",
        f"<thinking>\nhm\n</thinking>{CAT}",
        f"It is a cat, I think.</think>\n\n{CAT}",
        f"The image shows {CAT[0].lower()}{CAT[1:]}",
        f"The image depicts {CAT[0].lower()}{CAT[1:]}",
        f"This image features {CAT[0].lower()}{CAT[1:]}",
        f"In this image, {CAT[0].lower()}{CAT[1:]}",
        f"In the photo, {CAT[0].lower()}{CAT[1:]}",
        f"In this picture we can see {CAT[0].lower()}{CAT[1:]}",
        f"The video captures {CAT[0].lower()}{CAT[1:]}",
        f"This short video clip shows {CAT[0].lower()}{CAT[1:]}",
        f"# {CAT}",
        f"**{CAT}**",
        "A **black cat** sits on a *red* chair.",
        "A `black` cat sits on a red chair.",
        f"- {CAT}",
        f"{CAT}\n\nLet me know if you would like another one!",
        f"{CAT} I hope this helps!",
        f"{CAT}\n\nWould you like me to make it shorter?",
        "A black cat\nsits on   a red chair.",
        f"OK! {CAT}",
    ],
)
def test_what_stands_around_a_caption_is_taken_away(answer: str) -> None:
    assert clean(answer, Wish()).text == CAT and clean(answer, Wish()).fault is None


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", Fault.EMPTY),
        ("  \n ", Fault.EMPTY),
        ("I'm sorry, but I can't help with that.", Fault.REFUSED),
        ("I’m sorry, but I can’t describe this image.", Fault.REFUSED),
        ("I am unable to identify people in images.", Fault.REFUSED),
        ("As an AI language model, I cannot view images.", Fault.REFUSED),
        ("I cannot assist with this request.", Fault.REFUSED),
        ("Unfortunately, I can't provide a caption.", Fault.REFUSED),
        ("I don't feel comfortable describing this.", Fault.REFUSED),
        ("Sorry, I can't do that.", Fault.REFUSED),
        ("Caption: I'm sorry, I cannot describe this.", Fault.REFUSED),
        ("I am programmed to be a harmless assistant.", Fault.REFUSED),
        ("No image was provided.", Fault.REFUSED),
        ("This is a person, but I can't identify them.", Fault.REFUSED),
        ("I won't describe this content.", Fault.REFUSED),
        ("<think>The picture seems to show a cat and", Fault.THINKING),
        ("<think>hm</think>   ", Fault.EMPTY),
        ("A cat. " * 6, Fault.LOOP),
        ("A woman in a red dress. " * 3, Fault.LOOP),
        ("A man and a woman and a man and a woman and a man and a woman and a man and a woman", Fault.LOOP),
        ("very very very very very very very very nice", Fault.LOOP),
        ("1girl, solo, hat, hat, hat, hat, hat, hat, hat, hat, hat, hat, hat", Fault.LOOP),
        ("A tree!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", Fault.LOOP),
        ("A cat sits on the", Fault.CUT),
        ("A woman wearing a red dress and", Fault.CUT),
        ("A man stands in a field, looking at (", Fault.CUT),
        ("A man stands in a field, looking at the sky,", Fault.CUT),
        ("- A cat\n- A chair\n- A window", Fault.LIST),
        ("1. A cat\n2. A chair", Fault.LIST),
        ("## Subject\nA cat\n## Background\nA wall", Fault.LIST),
        ("A cat sits. The image also shows a chair.", Fault.ABOUT_THE_IMAGE),
        ("A cat sits. The overall image depicts calm.", Fault.ABOUT_THE_IMAGE),
        ("The image shows that cats like chairs.", Fault.ABOUT_THE_IMAGE),
        ("cat, chair, red, black, window, light, floor, room, wall", Fault.NOT_PROSE),
    ],
)
def test_what_is_no_caption_is_told_apart(answer: str, fault: Fault) -> None:
    assert clean(answer, Wish()).fault is fault


@pytest.mark.parametrize(
    "caption",
    [
        "A woman holds a picture of the sea.",
        "A man in a suit, a woman in a dress, and a dog walk along the shore.",
        "The dog runs, jumps, turns and runs back. The dog then lies down.",
        "Two cats, two dogs and two birds.",
        "A sign says “I can't stop”.",
        "He is sorry for the dog.",
        "A poster: red letters on white, with the words I'm sorry below them.",
        "The camera pans left. The camera then tilts up. The camera stops.",
        "A can't-miss view of the bay at dusk.",
        "A photo album lies open on a table.",
        "A row of red, blue, red, blue and red flags hangs above a street, and people walk below them.",
        "Sure-footed goats climb a cliff.",
        "A certain calm lies over the lake.",
        "An old man sits in a chair by the window, reading a newspaper; a lamp stands behind him",
        "A close-up of a hand. The background is dark and out of focus.",
        "A clock reads 11:11, and a calendar shows 11 November 2011.",
        "Ein Hund läuft über eine Wiese, im Hintergrund ein Wald.",
        "一只黑猫坐在红色的椅子上。",
        "Un chat noir est assis sur une chaise rouge.",
        "A film strip shows a horse that gallops.",
        "A mirror in which a woman, a man and a child are seen.",
        "A boat, a pier, a lighthouse and, far away, a ship with three white sails pass by in the evening light.",
        "She turns round and round and round.",
        "The number 1000000000 stands on a wall.",
        "A caption below the painting reads: caption.",
        "A T-shirt with the letters A, B, C, D, E, F, G and H on it is hung on a line in the garden.",
        "A man with a hat, seen from behind, watches a man without a hat, seen from the front.",
        "Rain falls on the street and on the cars and on the people under umbrellas.",
        "A woman's hand points to a map of the world.",
        "It snows.",
    ],
)
def test_captions_pass_unharmed(caption: str) -> None:
    found = clean(caption, Wish())
    assert (found.text, found.fault) == (caption, None)


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("1girl, long_hair, blue_eyes, ^_^, hat.", "1girl, long hair, blue eyes, ^_^, hat"),
        ("Tags: cat, chair, Cat, red chair", "cat, chair, red chair"),
        ("cat; chair; window", "cat, chair, window"),
        ("cat\nchair\nwindow", None),
    ],
)
def test_tags_are_made_alike(answer: str, tags: str | None) -> None:
    found = clean(answer, Wish(unit="tags"))
    assert found.fault is None or tags is None
    if tags:
        assert found.text == tags


def test_sentences_are_no_tags() -> None:
    assert clean(
        "A black cat sits on a red chair near a window in a large and very bright room.", Wish(unit="tags")
    ).fault
    assert clean("cat, chair", Wish(unit="tags"), complete=False).fault is Fault.CUT


def test_an_answer_that_was_cut_at_its_greatest_length_is_asked_for_again() -> None:
    assert clean(CAT, Wish(), complete=False).fault is Fault.CUT


@pytest.mark.parametrize(
    ("caption", "placed"),
    [
        ("A woman walks.", "ohwx, A woman walks."),
        ("ohwx, a woman walks.", "ohwx, a woman walks."),
        ("ohwx: a woman walks.", "ohwx, a woman walks."),
        ("ohwx a woman walks.", "ohwx, a woman walks."),
        ("ohwx walks along the shore.", "ohwx walks along the shore."),
        ("Ohwx walks along the shore.", "ohwx walks along the shore."),
        ("ohwx walks. Then ohwx sits.", "ohwx walks. Then the woman sits."),
        ("A photo of ohwx on a bench.", "ohwx, A photo of the woman on a bench."),
        ("The ohwx woman sits. ohwx smiles.", "ohwx, The woman sits. The woman smiles."),
        ("ohwxy is a word.", "ohwx, ohwxy is a word."),
    ],
)
def test_the_trigger_word_comes_first_and_once(caption: str, placed: str) -> None:
    wish = Wish(trigger="ohwx", class_word="woman")
    assert place_trigger(caption, wish) == placed
    assert place_trigger(placed, wish) == placed, "what is right stays"


@pytest.mark.parametrize(
    ("caption", "placed"),
    [
        ("A young woman in a red coat walks.", "ohwx in a red coat walks."),
        ("In the rain, a woman waits. The woman is cold.", "In the rain, ohwx waits. The woman is cold."),
        ("A dog and a woman play.", "A dog and ohwx play."),
        ("The woman's hand holds a cup.", "ohwx's hand holds a cup."),
        ("A street at night.", None),
        ("ohwx walks, and ohwx sings.", "ohwx walks, and the woman sings."),
    ],
)
def test_the_trigger_word_takes_the_subjects_place(caption: str, placed: str | None) -> None:
    assert place_trigger(caption, Wish(trigger="ohwx", class_word="woman", place="subject")) == placed


def test_a_caption_without_the_subject_is_asked_for_again() -> None:
    found = clean("A street at night.", Wish(trigger="ohwx", class_word="woman", place="subject"))
    assert found.fault is Fault.NO_SUBJECT


def test_a_caption_is_never_cut_to_fit() -> None:
    limit = TextLimit("sdxl", 77, 2)
    long = " ".join(f"word{number}" for number in range(120)) + "."
    assert clean(long, Wish(limit=limit)).fault is Fault.TOO_LONG
    assert clean(CAT, Wish(limit=limit, trigger="ohwx")).text == f"ohwx, {CAT}"


def test_a_megabyte_is_judged_in_no_time() -> None:
    assert loops("word " * 200_000)
    assert clean("(" * 20_000, Wish()).fault is Fault.LOOP
