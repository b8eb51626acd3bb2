"""What the guided session does not ask but lets a person change: the size in pixels and the length in steps."""

from __future__ import annotations

import re

from lorapod.errors import RequestError
from lorapod.recipe import presets
from lorapod.recipe.goals import Goal, goal_preset, passes_of, steps_for
from lorapod.start.answers import KEEP
from lorapod.start.session import Question, Session
from lorapod.start.steps import Base, demo_paths

_USUAL_SIZE = 1024
_NEAR = 0.3
"""Share by which each item is seen more or less often than the goal asks for, which is still as often."""


class SizeStep(Base):
    """At how many pixels: not asked, as the preset knows; changed in the summary."""

    key, label = "size", "Size"

    def is_asked(self, session: Session) -> bool:
        return session.asked_again == self.key

    def question(self, session: Session) -> Question:
        usual = usual_size(session)
        return Question(
            "At which size is it to be trained, in pixels?",
            f"The side of a square of the same area; each picture keeps its shape. Usual for this base model: {usual}. "
            "Smaller is faster, takes less GPU memory and suits small pictures; details are lost.",
            default=str(session.answers.size or usual),
        )

    def take(self, session: Session, text: str) -> None:
        digits = text.strip().lower().removesuffix("px").strip()
        if not digits.isdigit() or not 64 <= int(digits) <= 4096:
            raise RequestError(f"{text.strip()!r} is no size", "", "Give one number of pixels from 64 to 4096, as 768.")
        session.answers.size = int(digits)
        session.unusable = None

    def holds(self, session: Session) -> bool:
        return True

    def shown(self, session: Session) -> str:
        usual = usual_size(session)
        size = session.answers.size or usual
        said = f"about {size}x{size} pixels, each in its own shape"
        return said if size == usual else f"{said} (usual: {usual})"


class StepsStep(Base):
    """How long: not asked, as the preset knows; changed in the summary."""

    key, label = "steps", "Length"

    def is_asked(self, session: Session) -> bool:
        return session.asked_again == self.key

    def question(self, session: Session) -> Question:
        usual = usual_steps(session)
        return Question(
            "For how many steps?",
            f"Usual here: {_length(usual, session)}. More learn it more firmly, too many learn your very pictures. Stopping "
            "early and going on later is fine.",
            default=str(session.answers.steps or usual),
        )

    def take(self, session: Session, text: str) -> None:
        digits = re.sub(r"[ ,._']", "", text.strip())
        if not digits.isdigit() or not 1 <= int(digits) <= 1_000_000:
            raise RequestError(f"{text.strip()!r} is no number of steps", "", "Give a whole number, as 2000.")
        session.answers.steps = int(digits)

    def holds(self, session: Session) -> bool:
        return True

    def shown(self, session: Session) -> str:
        usual = usual_steps(session)
        steps = session.answers.steps or usual
        return _length(steps, session) + (_how_usual(session) if steps == usual else f" (usual: {usual})")


def _length(steps: int, session: Session) -> str:
    """`2000 steps: each picture about 100 times`."""
    if not session.answers.data or session.answers.data == demo_paths(session):
        return f"{steps} steps"
    times = passes_of(steps, learnt_from(session), session.model, session.facts.workspace)
    each = "clip" if session.contents.clips and not session.contents.pictures else "picture"
    return f"{steps} steps: each {each} about {times} times" if times > 1 else f"{steps} steps"


def _how_usual(session: Session) -> str:
    """What is said of the usual steps: those of very few and of very many items are a bound of the goal's."""
    goal = session.answers.goal
    if not goal or not session.answers.data or session.answers.data == demo_paths(session):
        return ", as is usual"
    wanted = goal_preset(Goal(goal)).passes
    times = passes_of(usual_steps(session), learnt_from(session), session.model, session.facts.workspace)
    if times > wanted * (1 + _NEAR):
        return f", the fewest steps that are usual; with more items it would be about {wanted} times"
    return f", the most steps that are usual for a {goal}" if times < wanted * (1 - _NEAR) else ", as is usual"


def usual_size(session: Session) -> int:
    """The side in pixels that the base model's preset trains at."""
    dataset = presets.preset_for(session.model, session.facts.workspace).get("dataset", {})
    return int((dataset.get("resolutions") or [_USUAL_SIZE])[0])


def usual_steps(session: Session) -> int:
    """The steps for the base model, the goal and what there is to learn from."""
    answers = session.answers
    goal = Goal(answers.goal) if answers.goal and answers.data else None
    return steps_for(goal, learnt_from(session) if goal else 0, session.model, session.facts.workspace)


def learnt_from(session: Session) -> int:
    """How many of the items are trained on, as far as the answers say."""
    inside = session.contents
    if session.answers.captioner == KEEP and inside.bare:
        return len(inside.captioned)
    return inside.total if session.facts.entries[session.model].modality == "clip" else inside.pictures
