"""Answers as models give them, a table of each kind: what is repaired, what is asked for again, what passes unharmed."""

from __future__ import annotations

import time

import pytest

from lorapod.captioning.cleaning import clean, place_trigger
from lorapod.captioning.wording import Fault, Wish

CAT = "A black cat sits on a red chair."
LOWER = "a black cat sits on a red chair."

WRAPPED = [
    f"Sure thing! Here's your caption:\n\n{CAT}",
    f"Absolutely! {CAT}",
    f"Of course! Here is a concise caption for your LoRA training dataset:\n\n> {CAT}",
    f"> {CAT}",
    f"Here's a caption that fits the requirements (18 words):\n\n{CAT}",
    f"Here you go:\n{CAT}",
    f"Okay, here is the description.\n\n{CAT}",
    f"Alright, here's the caption: {CAT}",
    f"Got it. Here's a caption: {CAT}",
    f"Understood. {CAT}",
    f"Based on the image, here is a caption: {CAT}",
    f"Based on the image provided, {LOWER}",
    f"### Caption\n{CAT}",
    f"**Caption**\n\n{CAT}",
    f"**Caption:**\n{CAT}",
    f"*{CAT}*",
    f"_{CAT}_",
    f'Caption:\n\n"{CAT}"',
    f"CAPTION: {CAT}",
    f"Training caption: {CAT}",
    f"Suggested caption: {CAT}",
    f"Short caption: {CAT}",
    f"LoRA caption: {CAT}",
    f"Image caption: {CAT}",
    f"Alt text: {CAT}",
    f"Prompt: {CAT}",
    f"Response: {CAT}",
    f"Assistant: {CAT}",
    f"assistant\n\n{CAT}",
    f"ASSISTANT: {CAT}",
    f"{CAT}<|im_end|>",
    f"{CAT}<|eot_id|>",
    f"{CAT}</s>",
    f"<|im_start|>assistant\n{CAT}<|im_end|>",
    f"<caption>{CAT}</caption>",
    f"<answer>{CAT}</answer>",
    f"<think></think>\n\n{CAT}",
    f"<think>\n\n</think>\n\n{CAT}",
    f"<|begin_of_box|>{CAT}<|end_of_box|>",
    f"<reasoning>a cat</reasoning>{CAT}",
    f'["{CAT}"]',
    f'[{{"caption": "{CAT}"}}]',
    f'```json\n[{{"caption": "{CAT}"}}]\n```',
    f'Here is the JSON:\n```json\n{{"caption": "{CAT}"}}\n```',
    f'{{"caption": {{"text": "{CAT}"}}}}',
    f'{{"Caption": "{CAT}"}}',
    f'{{"prompt": "{CAT}", "negative": ""}}',
    f"```markdown\n{CAT}\n```",
    f"`{CAT}`",
    f"```{CAT}```",
    f"This image depicts {LOWER}",
    f"The image is of {LOWER}",
    f"The provided image shows {LOWER}",
    f"In the image, {LOWER}",
    f"In the provided image, {LOWER}",
    f"The image you provided shows {LOWER}",
    f"In this video, {LOWER}",
    f"The video begins with {LOWER}",
    f"The video clip shows {LOWER}",
    f"This is an image of {LOWER}",
    f"This image captures {LOWER}",
    f"This high-resolution photograph shows {LOWER}",
    f"The image presents {LOWER}",
    f"The main subject of the image is {LOWER}",
    f"Depicted here is {LOWER}",
    f"{CAT}\n\n---\nLet me know if you need any changes!",
    f"{CAT}\n\n(8 words)",
    f"{CAT} (8 words)",
    f"{CAT}\n\nWord count: 8",
    f"{CAT}\n\n*Note: I left out the eye colour as requested.*",
    f"{CAT}\n\nNote: The trigger word is not used.",
    f"{CAT}\n\nThis caption follows the guidelines you gave.",
    f"{CAT}\n\nFeel free to ask for more!",
    f"{CAT} Let me know if you'd like any adjustments.",
    f"\ufeff{CAT}",
    f"\u200b{CAT}",
    f"{CAT}\r\n",
    "A black cat sits\r\n\r\non a red chair.",
    f"{CAT}\u00a0",
    f"'{CAT}'",
    f"‘{CAT}’",
    f'"""{CAT}"""',
    f"[{CAT}]",
    f"**Description:** {CAT}",
    f"1. {CAT}",
    "<b>A black cat</b> sits on a red chair.",
    f"<p>{CAT}</p>",
    f"{CAT}<br>",
    f"Answer: **{CAT}**",
    f"Final caption: {CAT}",
    f"Final Caption:\n\n{CAT}",
    f"Thinking: it is a cat.\n</think>{CAT}",
    f"Sure! {CAT}",
    f"Yes! {CAT}",
    f"Great! {CAT}",
    f"\\boxed{{{CAT}}}",
    f"Here’s the caption you requested, ready to paste:\n\n{CAT}",
    f"Caption for training: {CAT}",
    f"Of course. Here is one:\n{CAT}",
    f"Certainly, here's a suitable caption:\n\n**{CAT}**",
    f"Video caption: {CAT}",
    f"Description of the image: {CAT}",
    f"Output:\n{CAT}",
    f'JSON:\n{{"caption": "{CAT}"}}',
    f"The caption is: {CAT}",
    f'The caption for this image is: "{CAT}"',
    f"My caption: {CAT}",
    f'A caption for this image could be: "{CAT}"',
    f'I would caption this image as: "{CAT}"',
    f"{CAT} [end]",
    f"{CAT}\n\n#cat #chair #cute",
    f"{CAT}\n\nTags: cat, chair",
    f"{CAT}\n\nIs there anything else you'd like me to do?",
    f"{CAT}\n\nHope that helps!",
    f"{CAT} Hope this helps.",
    f"{CAT}\n\n(Caption length: 8 words)",
    f"{CAT}\n\n✨",
    f"🐱 {CAT}",
    f"Sure! 😊 {CAT}",
    f"“{CAT}”",
    f"Here is a 20-word caption:\n{CAT}",
    f"Let me describe this image: {CAT}",
]

REFUSED = [
    "I'm not able to describe the people in this picture.",
    "I apologize, but I cannot fulfill this request.",
    "I apologise, but this image cannot be captioned.",
    "I’m really sorry, but I’m not able to help with that.",
    "My apologies, but I can't generate a caption for this image.",
    "I'm sorry, I'm not able to provide a caption for this image.",
    "It appears that the image is explicit, so I can't describe it.",
    "The image contains explicit content that I cannot describe.",
    "This image appears to contain sexual content, and I'm not comfortable describing it.",
    "This content may violate our usage policies.",
    "I cannot generate captions for sexually explicit content.",
    "Sorry, but I can't assist with that.",
    "Sorry! I can't describe that.",
    "As a large language model, I can't view images.",
    "As an AI, I'm not able to see the video.",
    "As a text-based AI, I cannot see images.",
    "I'm designed to be a helpful and harmless AI assistant and cannot describe this.",
    "I am just a language model and can't help with that.",
    "I'm a language model and cannot see pictures.",
    "I don't have the ability to view images.",
    "I don't see any image attached.",
    "I do not see an image in your message.",
    "I can't see the image. Please upload it again.",
    "Please provide the image you would like me to caption.",
    "Please upload an image.",
    "It seems like you haven't provided an image.",
    "It looks like no image was attached.",
    "There is no image attached to your message.",
    "You haven't uploaded an image yet.",
    "I need to see the image first to caption it.",
    "I would need to see the image in order to describe it.",
    "Request blocked by safety filters.",
    "[REFUSED]",
    "Content policy violation.",
    "I must respectfully decline.",
    "I'd prefer not to describe this image.",
    "I'd rather not describe this image.",
    "I'm going to have to decline this request.",
    "I will not caption this.",
    "I won't be able to help with that.",
    "I'm unable to assist with describing this image as it contains nudity.",
    "This request goes against my guidelines.",
    "Describing this image would violate my guidelines.",
    "I'm afraid I can't describe that.",
    "I can’t help identify or describe people in this image.",
    "Unfortunately, I cannot provide a description of this image.",
    "Unfortunately, this image cannot be described.",
    "As a responsible AI, I must avoid describing this.",
    "Sure, but I can't describe the people in it.",
    "I'm here to help, but I can't describe explicit content.",
    "The person cannot be identified, and I can't assist with describing them.",
    "Sorry, I'm unable to process this image.",
    "I'm sorry, this image contains content I can't describe.",
    "This image seems to have explicit material. I can't describe it.",
    "I cannot and will not describe this.",
    "It is not appropriate to describe this image.",
    "It's against my policy to identify people.",
    "I do not feel comfortable captioning this image.",
    "I'm not going to describe this.",
    "The image could not be loaded.",
    "I'm having trouble viewing the image.",
    "I can't make out anything in the image.",
    "Could you please provide the image?",
    "Can you upload the image again?",
    "Thank you for sharing, but I can't describe this image.",
    "Hello! How can I help you today?",
    "How can I assist you today?",
    "Lo siento, pero no puedo ayudar con eso.",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "抱歉，我无法描述这张图片。",
    "很抱歉，我不能协助处理这个请求。",
    "申し訳ありませんが、この画像を説明することはできません。",
    "Извините, я не могу описать это изображение.",
    "Mi dispiace, ma non posso descrivere questa immagine.",
    "Desculpe, não posso ajudar com isso.",
]

EMPTY = [
    "N/A",
    "None",
    "null",
    "...",
    "-",
    "Error: out of memory",
    "unknown",
    "[image]",
    "<image>",
    "\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd",
]

LOOPED = [
    "A woman in a dress, a woman in a dress, a woman in a dress, a woman in a dress",
    "The woman wears a red hat. She is smiling. " * 3,
    "A cat on a chair, with a lamp, and a lamp, and a lamp, and a lamp, and a lamp.",
    "hahahahahahahahahahahahahahahahahahahaha",
    "A dog runs. The dog is brown. The dog is brown and white. The dog is brown and white and black. "
    "The dog is brown and white and black and grey.",
    "masterpiece, best quality, 1girl, 1girl, 1girl, 1girl, 1girl, 1girl, 1girl, 1girl, 1girl",
    "The background is blurred, the background is blurred, the background is blurred.",
    "A tree, a tree, a tree, a tree, a tree, a tree",
    "猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫",
    "一只黑猫坐在红色的椅子上。一只黑猫坐在红色的椅子上。一只黑猫坐在红色的椅子上。一只黑猫坐在红色的椅子上。",
    "A man with a beard and a mustache and a beard and a mustache and a beard and a mustache.",
    "0000000000000000000000000000000000000000",
    "A sign, text text text text text text text text",
    "The colors are red, blue, green, red, blue, green, red, blue, green, red, blue, green, red, blue, green",
    "blue eyes, blue hair, blue dress, blue shoes, blue hat, blue gloves, " * 2 + "blue eyes, blue hair",
    "A woman stands in a field. " + "She has long hair and a dress that flows in the wind. " * 2,
]

CUT = [
    "A woman in a red dress stands on a balcony overlooking the",
    "A woman in a red dress stands on a balcony. Behind her, the sun is set",
    "A woman in a red dress stands on a balcony. Behind her, the sun",
    "A woman in a red dress stands on a balcony which",
    "A man walks; he is wearing a coat that",
    "A man walks through a very",
    "The dog's fur is brown and its eyes are dark. It looks at",
    "A man walks… ...",
    'A sign that reads "OPEN',
    "A man walks, his hands in his pockets, and looks as if",
    "She wears a hat, which is",
]

WHOLE = [
    "A woman in a red dress dances under paper lanterns while a crowd watches.",
    'A man holds a sign reading "I\'m sorry" in front of a brick wall.',
    "Sorry is written in red letters on a white wall.",
    "I love New York is printed across the front of her white T-shirt.",
    "The image of a saint hangs above the door of a small chapel.",
    "The picture frame on the wall is empty, and a cat sits under it.",
    "The video store has neon signs in its windows and nobody inside.",
    "The photograph in her hand is torn in two.",
    "A close-up photo of a bee on a sunflower, its wings blurred.",
    "A photo of a woman on a bench.",
    "A low-angle shot of a skater who jumps over a rail.",
    "The camera slowly pushes in on a candle as its flame flickers.",
    "The camera pans left across a harbour at dusk, then tilts up to the moon.",
    "The scene shows signs of a storm: broken branches, puddles and a fallen fence.",
    "The frame contains no glass, and its gilding has flaked off.",
    "The illustration on the mug shows a fox.",
    "A boy blows out candles; the number 10 is on the cake.",
    "Three chairs, three lamps, three tables and three mirrors stand in a row.",
    'The sign says "STOP STOP STOP" in red letters.',
    'A man says "no, no, no" and shakes his head.',
    "A runner with the number 111111 on her vest crosses the line.",
    "The walls are white, the ceiling is white, the floor is white and the sheets are white.",
    'She wears a T-shirt with the text "As an AI" and jeans.',
    "A robot holds a note: I cannot help you.",
    "A dog, black and white, with one ear up",
    "A 1950s diner with chrome stools; a waitress in pink pours coffee.",
    "A cat (asleep) on a sofa (blue) in a room (dim).",
    "A can of beans stands on a shelf next to a jar.",
    "Can-can dancers kick their legs on a stage.",
    "Here be dragons is written on an old map.",
    "Here, in the corner of a dim bar, an old man sleeps over his glass.",
    "Note the time on the clock: a quarter to nine. A woman waits below it.",
    "A shop window with the words: caption: sale.",
    "Below, a river winds through the valley; above, an eagle circles.",
    "In the picture on the wall, a girl holds a dove; before it stands a guard.",
    "In the frame of the open door, a child waves.",
    "There is a light in the window of the last house.",
    'A title card reads "The End".',
    "The film crew stands around a camera on a dolly.",
    "A woman and a man and a child and a dog run along the beach.",
    "It is what it is, says a sticker on the bumper of a red car.",
    "Wide shot: a lone rider crosses a salt flat at noon.",
    "Close-up: rain runs down a window pane.",
    'A woman with "sure" tattooed on her wrist holds a cup.',
    "Certain leaves have turned yellow; the others are still green.",
    "Great waves break against a lighthouse.",
    "Yes, the man on the poster says, and points at the viewer.",
    "Okay is spelled in balloons: O, K, A, Y.",
    "A keyboard with the keys A, S, D, F, J, K, L and ; lit up in blue.",
    "A file name such as my_photo_01.png is shown on the screen of a laptop.",
    "An emoticon :-) is drawn on the dusty window of a van",
    "Tokyo, at night. Neon. Rain. A man with an umbrella waits.",
    "A 3/4 view of a car, its headlights on.",
    "Water drips, drips, drips from a tap into a full sink.",
    "The numbers 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 12 stand on the face of a clock.",
    "A person whose face is hidden by a hood walks in.",
    "A pair of shoes to walk in",
    "A child with a toy to play with",
    "A woman leans against the wall she stands by.",
    "A door that someone has walked through, left open.",
    "Кошка сидит на стуле.",
    "猫が椅子に座っている。",
    "Una mujer con un vestido rojo baila bajo las luces.",
    "A café's menu: crème brûlée, soufflé, pâté.",
    '"Stop" is written on a red sign, and "Go" on a green one.',
    "'Open' is written on the door, and a bell hangs over it; the shop is called 'Sam's'.",
    'A 24-year-old\'s birthday cake with "24" on it.',
    "A black-and-white photograph of a man in a bowler hat who crosses a wet street.",
    "A painting of a ship in a storm hangs over a fireplace.",
    "A tag on the dog's collar reads: tags: 12.",
    "An answer: 42, is chalked on the blackboard.",
    "A woman looks in a mirror; the image shows her from behind.",
    "A man in a van waves at us; let me know is written on its side.",
    "A flip chart says: 1. plan 2. do 3. check.",
    "The subject stands with her back to the wall.",
    "The woman in the video call laughs at something off screen.",
    "Output power is shown on a dial in a control room.",
    "A response team in yellow vests lifts a stretcher.",
    "Answer sheets lie on a desk beside two pencils.",
    "Sorry-looking flowers hang over the rim of a vase.",
    "I-beams are stacked on the back of a lorry.",
    "As an actor bows, the curtain falls.",
    "As a dog barks, the cat arches its back.",
    "As an athlete runs past, the crowd cheers.",
    "As a young model walks down the runway, cameras flash.",
    "As an old man sleeps, a boy paints his nose.",
    "Please knock, says a note on the door.",
    "No photo is on the wall, only a nail.",
    "No picture is available of the room behind the curtain, so the door alone is seen.",
    "Unable to move, a bear sits between two rocks.",
    "Content with her meal, a lioness rolls on the grass.",
    "It seems to rain behind the misted window; a man waits.",
    "You see the sea between two houses.",
    "Note: the left half is dark. A man stands in the right half.",
    "The request line at a radio station blinks; a man in headphones leans in.",
    "Unknown hands hold a box.",
    "An image of a dog is projected on a wall.",
    "The image of the moon ripples on the lake.",
    "The video game on the screen shows a racing car; two boys hold controllers.",
    "This is a woman's hand with three rings.",
    "This picture book lies open.",
    "A shot glass stands on the bar.",
    "The frame features carved lilies and a coat of gold.",
    "A painting depicts a hunt; below it, a dog sleeps.",
    "The painting shows cracks where the sun has struck it.",
    "The clip on her hair is blue.",
    "The clip holds a stack of bills.",
    "A single red umbrella. Grey street. Rain.",
    "A man with a U.S. Army cap",
    "A view of St. Mary Church from the river",
    "Mr. Brown and Mrs. Grey dance",
    "A woman walks along a beach at dusk. Soft light",
    "A dog at play. Close-up",
    'A 24" monitor on a desk.',
    'She says "hello" and he says "goodbye"',
    "The rock 'n' roll band plays.",
    "The letter X, the letter Y, the letter Z and the number 1 are cut from felt.",
    "Step by step by step, a child climbs the stairs.",
    "Row upon row upon row of vines.",
    "A man, a woman, a boy, a girl, a dog, a cat, a bird, a horse",
    "He looks left, then right, then left, then right, and crosses the road.",
    "Door after door after door lines the hall.",
    "The lights turn red, then green, then red again, then green again.",
    "A banner with the words HO HO HO.",
    "A checkerboard of black, white, black, white, black, white squares.",
    "Okay sign made with the hand, thumb and finger joined.",
    "A bowl of soup (tomato), bread (rye), and a spoon (silver).",
    "_ _ _ is drawn on the pavement: a hangman game.",
    "5 * 3 = 15 is written on the blackboard, and 2 * 4 = 8 below it.",
    "The file my_cat_photo.png is open in a window.",
    "A <b> key on a keyboard.",
    "A heart: <3 drawn in the sand.",
    "A man in a [redacted] T-shirt.",
    "The man in the image on the phone's screen waves.",
    "A young woman is depicted in the mosaic.",
    "Two lovers, seen from above, lie on a lawn. He reads. She sleeps.",
    "She turns, smiles, turns again, and walks away, away, away into fog.",
    "Ohne Titel: ein rotes Quadrat auf weißem Grund.",
    "Caption contest: three men hold up cards with jokes.",
]


@pytest.mark.parametrize("answer", WRAPPED)
def test_the_caption_is_taken_out_of_what_is_around_it(answer: str) -> None:
    found = clean(answer, Wish())
    assert (found.text, found.fault) == (CAT, None)


@pytest.mark.parametrize("answer", REFUSED)
def test_polite_refusals_are_told_apart(answer: str) -> None:
    assert clean(answer, Wish()).fault is Fault.REFUSED


@pytest.mark.parametrize("answer", EMPTY)
def test_placeholders_are_no_captions(answer: str) -> None:
    assert clean(answer, Wish()).fault is Fault.EMPTY


@pytest.mark.parametrize("answer", LOOPED)
def test_loops_are_told_apart(answer: str) -> None:
    assert clean(answer, Wish()).fault is Fault.LOOP


@pytest.mark.parametrize("answer", CUT)
def test_sentences_without_an_end_are_told_apart(answer: str) -> None:
    assert clean(answer, Wish()).fault is Fault.CUT


@pytest.mark.parametrize("caption", WHOLE)
def test_captions_pass_unharmed(caption: str) -> None:
    found = clean(caption, Wish())
    assert (found.text, found.fault) == (caption, None)


@pytest.mark.parametrize("caption", [CAT, *WHOLE])
def test_what_passed_once_passes_again_with_its_trigger_word(caption: str) -> None:
    wish = Wish(trigger="zxqv", class_word="cat")
    first = clean(caption, wish)
    assert first.fault is None and first.text.count("zxqv") == 1
    assert clean(first.text, wish) == first


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("This is a photo of a black cat.", "A photo of a black cat."),
        ("We see the back of a man who looks out at the sea.", "The back of a man who looks out at the sea."),
        ("A *Star Wars* T-shirt hangs on a line.", "A Star Wars T-shirt hangs on a line."),
        ("Two men.\n\nThey wait for a bus.", "Two men. They wait for a bus."),
        ("A caf&eacute; &amp; bar.", "A café & bar."),
        ("The image is a close-up of a bee.", "A close-up of a bee."),
        ("In the image, there is a bee on a flower.", "A bee on a flower."),
    ],
)
def test_openings_are_rewritten(answer: str, caption: str) -> None:
    found = clean(answer, Wish())
    assert (found.text, found.fault) == (caption, None)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("A man waits.\n\nOption 2: A man stands.\n\nOption 3: Someone waits.", Fault.LIST),
        ("Option 1: A man waits.\nOption 2: A man stands.", Fault.LIST),
        ("Subject: a man\nSetting: a street\nLight: dim", Fault.LIST),
        ('{"subject": "a man", "setting": "a street"}', Fault.LIST),
        ('["A man waits.", "A man stands."]', Fault.LIST),
        ('{"caption": "A man waits on a', Fault.CUT),
        ("A man w\ufffdits for a bus.", Fault.GARBLED),
        ("A man. The image has a warm tone.", Fault.ABOUT_THE_IMAGE),
        ("The image is blank.", Fault.ABOUT_THE_IMAGE),
        ("A man waits. The overall scene is calm.", Fault.ABOUT_THE_IMAGE),
        ("A man waits. The scene conveys loneliness.", Fault.ABOUT_THE_IMAGE),
        ("A man waits. The mood of the image is calm.", Fault.ABOUT_THE_IMAGE),
        ("<think>A man.</think><think>Or a woman", Fault.THINKING),
        ("The user wants a caption. A man waits.", Fault.THINKING),
        ("Okay, let's see. The image shows a man.", Fault.THINKING),
    ],
)
def test_what_is_more_or_less_than_a_caption_is_asked_for_again(answer: str, fault: Fault) -> None:
    assert clean(answer, Wish()).fault is fault


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("cat\nchair\nwindow", "cat, chair, window"),
        ("- cat\n- red_chair\n- window", "cat, red chair, window"),
        ("1. cat\n2. chair", "cat, chair"),
        ("#cat #chair #window", "cat, chair, window"),
        ("(cat:1.2), ((chair)), hatsune miku (vocaloid)", "cat, chair, hatsune miku (vocaloid)"),
        ("Here are the tags:\n\ncat, chair, window", "cat, chair, window"),
        ('["cat", "chair"]', "cat, chair"),
        ('{"tags": ["cat", "chair"]}', "cat, chair"),
        ("General: cat, chair\nColours: red, black", "cat, chair, red, black"),
        ("cat, Cat, CAT , chair", "cat, chair"),
        ("1girl, >_<, long__hair,, smile", "1girl, >_<, long hair, smile"),
        ("`cat, chair`", "cat, chair"),
    ],
)
def test_tags_are_told_from_lists_and_made_alike(answer: str, tags: str) -> None:
    found = clean(answer, Wish(unit="tags"))
    assert (found.text, found.fault) == (tags, None)


@pytest.mark.parametrize(
    ("tags", "place", "placed"),
    [
        ("1girl, hat", "first", "ohwx, 1girl, hat"),
        ("1girl, ohwx, hat, OHWX", "first", "ohwx, 1girl, hat"),
        ("1girl, woman, hat", "subject", "1girl, ohwx, hat"),
        ("1girl, young woman, hat", "subject", "1girl, ohwx, hat"),
        ("hat, ohwx, bench, ohwx", "subject", "hat, ohwx, bench"),
        ("hat, bench", "subject", None),
        ("hat, bench", "none", "hat, bench"),
    ],
)
def test_the_trigger_word_among_tags(tags: str, place: str, placed: str | None) -> None:
    wish = Wish(trigger="ohwx", class_word="woman", unit="tags", place=place)  # type: ignore[arg-type]
    assert place_trigger(tags, wish) == placed


@pytest.mark.parametrize(
    ("trigger", "caption", "placed"),
    [
        ("ohwx", "OHWX walks.", "ohwx walks."),
        ("ohwx", "A woman and an ohwx on a bench.", "ohwx, A woman and a woman on a bench."),
        ("Will", "A man says that he will come.", "Will, A man says that he will come."),
        ("c++", "A man reads.", "c++, A man reads."),
        (r"a\1b", "A woman walks.", r"a\1b, A woman walks."),
        ("oh wx", "A photo of oh wx.", "oh wx, A photo of the woman."),
    ],
)
def test_trigger_words_of_every_kind(trigger: str, caption: str, placed: str) -> None:
    assert place_trigger(caption, Wish(trigger=trigger, class_word="woman")) == placed


@pytest.mark.parametrize(
    "answer",
    ["**" * 8000, "<think>" * 2500, "[" * 18000, "Sure! " * 3000, "> " * 9000, '{"a":' * 3500, "a, " * 6000, "_a" * 9000,
     "the image " * 1800, "`" * 18000, "\n" * 19000 + "a", "here is " * 2000, "- a\n" * 4500, "word " * 400_000,
     "\U0001f60a" * 9000 + "a", "a" + "\U0001f60a" * 9000 + "a", "hope " * 4000],
)  # fmt: skip
def test_no_answer_takes_long(answer: str) -> None:
    begun = time.perf_counter()
    clean(answer, Wish(trigger="ohwx", class_word="cat"))
    clean(answer, Wish(unit="tags"))
    assert time.perf_counter() - begun < 3
