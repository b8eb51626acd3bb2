"""The captioner without a model: a pattern, filled in with the trigger word, the class word and what the scan knows.

What a first try needs, and what suits a base model that is taught a word and nothing else.
"""

from __future__ import annotations

import string

from lorapod.captioning.base import Answer, Ask, Cost, ItemError, Kind
from lorapod.captioning.registry import Options
from lorapod.errors import RequestError

DEFAULT_PATTERN = "{trigger}, {class}, {shape} {kind}"

FACTS = ("name", "folder", "kind", "width", "height", "shape", "seconds", "fps")
"""What the scan knows of an item; `seconds` and `fps` of clips alone."""


def create(options: Options) -> TemplateCaptioner:
    """From the options. Raises RequestError where the pattern names what isn't known."""
    return TemplateCaptioner(options.pattern or DEFAULT_PATTERN, trigger=options.trigger, class_word=options.class_word)


class TemplateCaptioner:
    """Fills in a pattern such as `{trigger}, {class}, {shape} {kind}`.

    Args:
        trigger: What `{trigger}` stands for; parts between commas that end up empty are left out.
        class_word: What `{class}` stands for, as in `woman`.

    Raises:
        RequestError: The pattern names what isn't known.
    """

    name = "template"
    model = "pattern"
    kinds: frozenset[Kind] = frozenset({"picture", "clip"})
    at_once = 16

    def __init__(self, pattern: str = DEFAULT_PATTERN, *, trigger: str = "", class_word: str = "") -> None:
        self.pattern, self.words = pattern, {"trigger": trigger, "class": class_word}
        known = {*self.words, *FACTS}
        try:
            named = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        except ValueError as error:
            raise RequestError(
                f"The pattern {pattern!r} cannot be read", f"{error}.", "Write {{ for a brace that is meant as such."
            ) from error
        if named - known:
            raise RequestError(
                f"The pattern names {', '.join(sorted(map(repr, named - known)))}, which nothing stands for",
                "",
                f"Choose from {', '.join(f'{{{name}}}' for name in ('trigger', 'class', *FACTS))}.",
            )

    def estimate(self, ask: Ask) -> Cost:
        return Cost(0, 0, 0.0)

    async def caption(self, ask: Ask) -> Answer:
        try:
            filled = self.pattern.format(**{**ask.facts, **self.words})
        except KeyError as error:
            raise ItemError(f"The pattern names {error.args[0]!r}, which is not known of a {ask.kind}") from error
        parts = (" ".join(part.split()) for part in filled.split(","))
        return Answer(", ".join(part for part in parts if part), dollars=0.0)

    async def close(self) -> None:
        pass
