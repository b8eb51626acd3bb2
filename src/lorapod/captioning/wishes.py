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
