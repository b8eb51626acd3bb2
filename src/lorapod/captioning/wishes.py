"""What captions are to be like, of what a person said in words; and what a base model's rules say of sizes and of text.

Commands and the guided session ask the same things and get the same answers here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lorapod.captioning.wording import GOALS, LENGTHS, PLACES, Wish
from lorapod.data import Geometry
from lorapod.data.checks import TextLimit, limit_of
from lorapod.errors import BaseModelError, RequestError
from lorapod.models import find_base_model
from lorapod.models.catalogue import entries
from lorapod.workspace import Workspace

DIVISOR, FRAME_STEP, FPS = 16, 4, 16.0
"""What a folder is looked at with where no base model is named: Wan's, which suit most families."""

VARIANTS = (*LENGTHS, "prose", "tags")
"""What the captions of an item can be told apart by."""


def wish_of(
    workspace: Workspace,
    *,
    trigger: str = "",
    class_word: str = "",
    goal: str = "",
    base: str = "",
    place: str = "first",
    length: str = "medium",
    form: str = "",
    absorb: str = "",
    notes: str = "",
    prompt: str = "",
) -> Wish:
    """What captions are to be like, of what a person said. Tags are what SDXL was trained on; all others read sentences.

    Raises:
        RequestError: A word that is none of those to choose from, or a base model that is not known.
    """
    for name, word, choices in (
        ("goal", goal, ("", *GOALS)),
        ("place", place, PLACES),
        ("length", length, LENGTHS),
        ("form", form, ("", "prose", "tags")),
    ):
        if word not in choices:
            raise RequestError(f"There is no {name} {word!r}", "", f"Choose one of {', '.join(filter(None, choices))}.")
    limit, family = None, ""
    if base:
        known = entries(workspace)
        limit = rules_of(base, workspace)[1]
        family = known[base].family if base in known else ""
    unit = form or ("tags" if family == "sdxl" else "prose")
    return Wish(
        trigger=trigger,
        class_word=class_word,
        goal=cast(Any, goal),
        unit=cast(Any, unit),
        place=cast(Any, place),
        length=cast(Any, length),
        limit=limit,
        absorb=absorb,
        notes=notes,
        prompt=prompt,
    )


def variants_of(wish: Wish, variants: str, captioner: str) -> list[Wish]:
    """The wishes for several captions of each item; the wish alone where no variants are asked for.

    Args:
        variants: Lengths, `prose` or `tags`, with commas between, as `long,short,tags`.

    Raises:
        RequestError: A word that is none of these or stands there twice, or a wish that leaves nothing to vary.
    """
    if not variants:
        return [suited(wish, captioner)]
    words = [word.strip() for word in variants.split(",")]
    if wrong := [word for word in words if word not in VARIANTS]:
        raise RequestError(f"There is no variant {wrong[0]!r} of a caption", "", f"Choose among {', '.join(VARIANTS)}.")
    if len(set(words)) < len(words):
        raise RequestError(f"The variants {variants} name one twice", "", "Name each once.")
    if captioner in ("template", "tagger"):
        raise RequestError(
            f"The captioner {captioner} writes one kind of caption",
            "It is asked for variants.",
            "Leave --variants out.",
        )
    if wish.prompt or wish.joycaption:
        asked = "--prompt" if wish.prompt else "--joy-type or --joy-option"
        raise RequestError(
            "All variants would be the same",
            f"{asked} says what every caption is.",
            f"Leave {asked} or --variants out.",
        )
    asked_for = [
        replace(wish, unit=cast(Any, word)) if word in ("prose", "tags") else replace(wish, length=cast(Any, word))
        for word in words
    ]
    return [suited(each, captioner) for each in asked_for]


def suited(wish: Wish, captioner: str) -> Wish:
    """The wish as a captioner can fulfil it: a tagger writes tags, and the template's pattern is no prompt."""
    return replace(
        wish,
        captioner=captioner,
        unit="tags" if captioner == "tagger" else wish.unit,
        prompt="" if captioner == "template" else wish.prompt,
    )


def rules_of(name: str, workspace: Workspace) -> tuple[Geometry, TextLimit | None]:
    """Sizes and text limit of a base model, from the catalogue; of a folder, those of its family."""
    known = entries(workspace)
    folder, family = None, None
    try:
        base = find_base_model(name, workspace)
        folder, family = base.folder, base.family
    except BaseModelError:
        if name not in known:
            raise
    family = known[name].family if name in known else family
    # An entry says what is its own; the rest is as with the others of its family.
    related = [*([known[name]] if name in known else []), *(e for e in known.values() if e.family == family)]
    sizes = next((e.geometry for e in related if e.geometry), None)
    tokens, around = next(((e.text_tokens, e.text_tokens_around) for e in related if e.text_tokens), (None, 0))
    geometry = (
        Geometry(sizes.divisor, frame_step=sizes.frame_step or 1, fps=sizes.fps)
        if sizes
        else Geometry(DIVISOR, frame_step=FRAME_STEP, fps=FPS)
    )
    return geometry, limit_of(Path(name).name, tokens, around, folder)
