"""The plain request and the plain judgement of `lorapod caption`: what is asked for in two sentences, and no more.

Answers that are empty, cut off or an excuse are asked for again. The trigger word goes first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorapod.captioning.base import Answer, Ask
from lorapod.captioning.items import Subject
from lorapod.captioning.runner import Accepted, AskAgain, Verdict
from lorapod.data.captions import compose
from lorapod.data.checks.captions import EXCUSE

_LEAVE_OUT = {
    "character": "Do not describe what never changes about the person or character, such as face and build.",
    "style": "Do not name the medium, the technique or the style.",
    "concept": "",
    "motion": "Say what moves, how, in which order, and what the camera does.",
}
"""What the training is to absorb is left out of captions (docs/captions.md)."""

_MOST_TOKENS = 1600


@dataclass(frozen=True)
class Words:
    """What a person wants captions to be like.

    Attributes:
        trigger: Put first; empty for none.
        class_word: What the trigger word stands for, as in `woman`.
        goal: Of the training; empty for none.
        tags: Tags with commas between, rather than sentences.
        prompt: Asked in place of all of it.
        notes: Said to the model besides.
    """

    trigger: str = ""
    class_word: str = ""
    goal: str = ""
    tags: bool = False
    prompt: str = ""
    notes: str = ""

    def ask(self, subject: Subject) -> Ask:
        """The request about an item."""
        return Ask(
            path=subject.path,
            kind=subject.kind,
            prompt=self.prompt or self._prompt(subject),
            seconds=subject.seconds if subject.kind == "clip" else None,
            width=subject.width,
            height=subject.height,
            facts=subject.facts(),
        )

    def _prompt(self, subject: Subject) -> str:
        what = "image" if subject.kind == "picture" else "video clip"
        if self.tags:
            wanted = f"List short tags for this {what}, with commas between, most important first; at most 40 tags."
        else:
            wanted = (
                f"Describe this {what} in two or three plain sentences: subject, action, setting, framing and light."
            )
        known = f"Call the main subject “{self.class_word}”." if self.class_word else ""
        parts = (wanted, known, _LEAVE_OUT.get(self.goal, ""), self.notes, "Answer with the description alone.")
        return " ".join(part for part in parts if part)

    def judge(self, ask: Ask, answer: Answer, repeats: int) -> Verdict:
        """Whether an answer will do."""
        if not answer.complete:
            longer = min(_MOST_TOKENS, ask.max_tokens * 2)
            return AskAgain(replace(ask, max_tokens=longer), "The answer was cut off at its greatest length")
        text = answer.text.strip()
        if not text:
            return AskAgain(ask, "The answer was empty")
        if EXCUSE.match(text):
            return AskAgain(replace(ask, temperature=min(1.0, ask.temperature + 0.2)), f"It was refused: “{text[:80]}”")
        return Accepted(compose(text, trigger_word=self.trigger, prefix=""))
