"""How JoyCaption is asked: its types of caption, lengths and extra options as choices, rendered to its kind of request.

JoyCaption heeds requests of the form that it was trained on: one sentence with type and length, then a sentence for each
option. Types, lengths and options are those of its own app (fpgaminer/joycaption, `CAPTION_TYPE_MAP`). The opening sentences
of Descriptive, Descriptive (Casual), MidJourney and Booru-like are its own; the other sentences are in our words, and how
well the model heeds them was not measured. Where the very words matter, `--prompt` takes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from lorapod.errors import RequestError

Choice = TypeVar("Choice", bound=StrEnum)
JoyLength = Literal["any", "very short", "short", "medium-length", "long", "very long"]
LENGTHS: tuple[JoyLength, ...] = ("any", "very short", "short", "medium-length", "long", "very long")
WORD_COUNTS = range(20, 261, 10)
"""Numbers of words that it was trained to keep within."""


class JoyType(StrEnum):
    """What a caption is, with its maker's judgement where there is one."""

    DESCRIPTIVE = "descriptive"
    """Formal sentences; most useful."""
    CASUAL = "casual"
    STRAIGHTFORWARD = "straightforward"
    """Short and objective; most useful."""
    STABLE_DIFFUSION = "stable-diffusion"
    """Sentences and tags mixed; glitches in about three of a hundred."""
    MIDJOURNEY = "midjourney"
    """Unstable: often loops."""
    DANBOORU = "danbooru"
    """Less accurate, as the two after it."""
    E621 = "e621"
    RULE34 = "rule34"
    BOORU = "booru"
    """Unstable: often loops."""
    ART_CRITIC = "art-critic"
    PRODUCT = "product"
    SOCIAL_MEDIA = "social-media"


TAG_TYPES = frozenset({JoyType.DANBOORU, JoyType.E621, JoyType.RULE34, JoyType.BOORU})

_OPENINGS = {
    JoyType.DESCRIPTIVE: ("Write a {}detailed description for this image", ""),
    JoyType.CASUAL: ("Write a {}descriptive caption for this image in a casual tone", ""),
    JoyType.STRAIGHTFORWARD: (
        "Write a {}straightforward caption for this image",
        "Begin with the main subject and medium. Name what can be seen, with its colours, textures and places, in plain and "
        "certain words. Leave out mood and guesses. Never begin with “This image is” or the like.",
    ),
    JoyType.STABLE_DIFFUSION: ("Write a {}Stable Diffusion prompt for this image", ""),
    JoyType.MIDJOURNEY: ("Write a {}MidJourney prompt for this image", ""),
    JoyType.DANBOORU: (
        "Write a {}list of Danbooru tags for this image",
        "Separate them by commas, in lower case with underscores; put artist, copyright, character and meta tags first, "
        "each with its prefix.",
    ),
    JoyType.E621: (
        "Write a {}list of e621 tags for this image",
        "Separate them by commas, in alphabetical order, with the prefixes of artist, copyright, character, species and "
        "meta tags.",
    ),
    JoyType.RULE34: (
        "Write a {}list of Rule34 tags for this image",
        "Separate them by commas, in alphabetical order, with the prefixes of artist, copyright, character and meta tags.",
    ),
    JoyType.BOORU: ("Write a {}list of Booru-like tags for this image", ""),
    JoyType.ART_CRITIC: (
        "Analyse this image as an art critic would, in a {}text",
        "Say something about composition, style, symbolism, colour, light and the movement that it may belong to.",
    ),
    JoyType.PRODUCT: ("Write a {}caption for this image as though it were a product listing", ""),
    JoyType.SOCIAL_MEDIA: ("Write a {}caption for this image as though it were a social media post", ""),
}


class JoyOption(StrEnum):
    """What a caption is to say or to leave out besides."""

    NAME = "name"
    NO_FIXED_TRAITS = "no-fixed-traits"
    LIGHTING = "lighting"
    CAMERA_ANGLE = "camera-angle"
    CAMERA_SETTINGS = "camera-settings"
    QUALITY = "quality"
    COMPOSITION = "composition"
    DEPTH_OF_FIELD = "depth-of-field"
    LIGHT_SOURCE = "light-source"
    RATING = "rating"
    ORIENTATION = "orientation"
    AGES = "ages"
    SHOT_SIZE = "shot-size"
    VANTAGE = "vantage"
    WATERMARK = "watermark"
    WATERMARK_IF_ANY = "watermark-if-any"
    JPEG_ARTIFACTS = "jpeg-artifacts"
    NOTHING_SEXUAL = "nothing-sexual"
    NO_RESOLUTION = "no-resolution"
    NO_TEXT = "no-text"
    NO_MOOD = "no-mood"
    NO_ARTIST = "no-artist"
    NO_AMBIGUITY = "no-ambiguity"
    KEY_ELEMENTS = "key-elements"
    VULGAR = "vulgar"
    NO_EUPHEMISMS = "no-euphemisms"
    FOR_TRAINING = "for-training"


_SENTENCES = {
    JoyOption.NAME: "Refer to the person or character as {}.",
    JoyOption.NO_FIXED_TRAITS: "Do NOT describe what cannot be changed about a person (face, ethnicity, build), but do "
    "describe what can, such as hair style and clothing.",
    JoyOption.LIGHTING: "Describe the lighting.",
    JoyOption.CAMERA_ANGLE: "Describe the camera angle.",
    JoyOption.CAMERA_SETTINGS: "If it is a photograph, guess the camera, aperture, shutter speed and ISO.",
    JoyOption.QUALITY: "Rate the aesthetic quality from low to very high.",
    JoyOption.COMPOSITION: "Name the style of composition, such as leading lines, rule of thirds or symmetry.",
    JoyOption.DEPTH_OF_FIELD: "Say what is in focus and whether the background is blurred.",
    JoyOption.LIGHT_SOURCE: "Say whether the light is natural or artificial.",
    JoyOption.RATING: "Say whether the image is sfw, suggestive or nsfw.",
    JoyOption.ORIENTATION: "Say how the image is oriented and its aspect ratio.",
    JoyOption.AGES: "Give the ages of people and characters.",
    JoyOption.SHOT_SIZE: "Say whether it is an extreme close-up, close-up, medium, wide or extreme wide shot.",
    JoyOption.VANTAGE: "Say from which height it is seen: eye level, low, high, bird's-eye or drone.",
    JoyOption.WATERMARK: "Say whether there is a watermark.",
    JoyOption.WATERMARK_IF_ANY: "If there is a watermark, it must be mentioned.",
    JoyOption.JPEG_ARTIFACTS: "Say whether there are JPEG artifacts.",
    JoyOption.NOTHING_SEXUAL: "Do NOT include anything sexual; keep it PG.",
    JoyOption.NO_RESOLUTION: "Do NOT mention the image's resolution.",
    JoyOption.NO_TEXT: "Do NOT mention any text that is in the image.",
    JoyOption.NO_MOOD: "Do NOT mention the mood or feeling of the image.",
    JoyOption.NO_ARTIST: "Do NOT mention the artist's name or the title of the work.",
    JoyOption.NO_AMBIGUITY: "Do NOT use any ambiguous language.",
    JoyOption.KEY_ELEMENTS: "Describe ONLY the most important elements of the image.",
    JoyOption.VULGAR: "Use vulgar and profane words.",
    JoyOption.NO_EUPHEMISMS: "Do NOT use euphemisms; be blunt.",
    JoyOption.FOR_TRAINING: "The caption is for a text-to-image model, so leave out phrases such as “This image shows” or "
    "“You are looking at”.",
}


@dataclass(frozen=True)
class JoyStyle:
    """What JoyCaption is asked for.

    Attributes:
        type: What the caption is.
        length: In words that it knows, or the most words, a ten from 20 to 260.
        options: What it says or leaves out besides, in this order.
        name: What the person or character is called; with the option `name`.
    """

    type: JoyType = JoyType.DESCRIPTIVE
    length: JoyLength | int = "long"
    options: tuple[JoyOption, ...] = ()
    name: str = ""

    @property
    def is_tags(self) -> bool:
        return self.type in TAG_TYPES

    def prompt(self) -> str:
        """The request."""
        opening, more = _OPENINGS[self.type]
        if isinstance(self.length, int):
            first = opening.format("") + f" in {self.length} words or less."
        else:
            first = opening.format("" if self.length == "any" else f"{self.length} ") + "."
        options = (_SENTENCES[each].replace("{}", self.name) for each in self.options)
        return " ".join(part for part in (first, more, *options) if part)


def style_of(type_name: str, length: str, options: Iterable[str] = (), name: str = "") -> JoyStyle:
    """A style from what a person typed.

    Raises:
        RequestError: A word that is none of those to choose from, a number of words that it does not know, or a name without
            the option for it or the other way round.
    """
    chosen = tuple(dict.fromkeys(_one_of("option", each, JoyOption) for each in options))
    if name.strip() and JoyOption.NAME not in chosen:
        chosen = (JoyOption.NAME, *chosen)
    if JoyOption.NAME in chosen and not name.strip():
        raise RequestError("JoyCaption's option name needs a name", "", "Say what the person or character is called.")
    return JoyStyle(_one_of("type", type_name, JoyType), _length(length), chosen, name.strip())


def word_count(most: int) -> int:
    """The most words that JoyCaption can be asked to keep within, not more than `most` where it knows so few."""
    return max((count for count in WORD_COUNTS if count <= most), default=WORD_COUNTS[0])


def _length(text: str) -> JoyLength | int:
    plain = " ".join(text.casefold().split())
    for each in LENGTHS:
        if plain in (each, each.removesuffix("-length")):
            return each
    if plain.isdigit() and int(plain) in WORD_COUNTS:
        return int(plain)
    raise RequestError(
        f"JoyCaption knows no length {text!r}",
        "",
        f"Take one of {', '.join(LENGTHS)}, or a ten of words from 20 to 260.",
    )


def _one_of(what: str, text: str, choices: type[Choice]) -> Choice:
    try:
        return choices(text.strip().casefold().replace(" ", "-").replace("_", "-"))
    except ValueError:
        raise RequestError(f"JoyCaption has no {what} {text!r}", "", f"Take one of {', '.join(choices)}.") from None
