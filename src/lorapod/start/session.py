"""The state of a guided session: which question is next, going back, changing one by its number, and the summary.

The questions themselves are `lorapod.start.steps`. After every answer the session is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorapod.errors import LorapodError, RequestError
from lorapod.start.answers import Answers, Kept, keep
from lorapod.start.data import Contents, contents_of
from lorapod.start.facts import Facts


@dataclass(frozen=True)
class Choice:
    """One answer to choose.

    Attributes:
        value: What is answered.
        title: One line.
        about: Said of it while it is pointed at.
        lacks: Why it cannot be chosen; empty where it can.
    """

    value: str
    title: str
    about: str = ""
    lacks: str = ""


@dataclass(frozen=True)
class Question:
    """What a person is asked.

    Attributes:
        text: The question.
        why: What depends on it, in one or two sentences.
        choices: Empty where any text is an answer.
        default: What Enter answers.
        other: With choices: how an answer is offered that is none of them; empty where there is none.
        secret: It is not shown while it is typed.
    """

    text: str
    why: str = ""
    choices: tuple[Choice, ...] = ()
    default: str = ""
    other: str = ""
    secret: bool = False


class Step(Protocol):
    """One question of the session."""

    key: str
    label: str

    def is_asked(self, session: Session) -> bool:
        """Whether it has to be asked, as things stand."""

    def question(self, session: Session) -> Question:
        """The question, as things stand."""

    def take(self, session: Session, text: str) -> None:
        """Takes an answer.

        Raises:
            LorapodError: It cannot be one; nothing was changed.
        """

    def holds(self, session: Session) -> bool:
        """Whether the answer that was given still makes sense after another one changed."""

    def shown(self, session: Session) -> str:
        """The answer in the summary; empty where it has no line there."""


KeyTest = Callable[[str, str, dict[str, str], str], str]
"""Name, value, environment, repository or nothing: asks the service whether a key is right; says whose it is."""


@dataclass
class Session:
    """A guided session.

    Attributes:
        answers: So far, also those that were taken back: they are the next time's defaults.
        done: Keys of the questions that are answered.
        order: The same in the order of asking in this sitting, for going back.
        asked_again: Key of the question that a number of the summary asks for.
        unusable: Items that cannot be trained on, as the last look at the data found; None before it.
        is_kept: Whether answers are written to the workspace.
    """

    facts: Facts
    steps: Sequence[Step]
    test_key: KeyTest
    answers: Answers = field(default_factory=Answers)
    done: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    is_kept: bool = True
    asked_again: str = ""
    unusable: frozenset[Path] | None = None
    _contents: tuple[tuple[str, ...], Contents] | None = None

    def step(self, key: str) -> Step:
        return next(step for step in self.steps if step.key == key)

    @property
    def current(self) -> Step | None:
        """The next question; None where all are answered."""
        if self.asked_again and self.asked_again not in self.done:
            return self.step(self.asked_again)
        return next((step for step in self.steps if step.key not in self.done and step.is_asked(self)), None)

    def answer(self, text: str) -> Step:
        """Answers the current question, and keeps it.

        Raises:
            LorapodError: It cannot be the answer; the question stays.
        """
        step = self.current
        assert step is not None
        step.take(self, text)
        self.done.add(step.key)
        self.asked_again = ""
        self.order = [key for key in self.order if key != step.key] + [step.key]
        for later in self.steps:
            if later.key in self.done and later is not step and not later.holds(self):
                self.done.discard(later.key)
        self.keep()
        return step

    def back(self) -> bool:
        """Takes the last answer back; False where there is none in this sitting."""
        if self.asked_again:
            self.done.add(self.asked_again)
            self.asked_again = ""
            return True
        while self.order:
            key = self.order.pop()
            if key in self.done:
                self.done.discard(key)
                self.keep()
                return True
        return False

    def numbered(self) -> list[tuple[int, Step, str]]:
        """The summary: number, question and answer of everything that can be changed."""
        rows = [(step, step.shown(self)) for step in self.steps if step.key in self.done or not step.is_asked(self)]
        return [(i, step, text) for i, (step, text) in enumerate([row for row in rows if row[1]], start=1)]

    def change(self, number: int) -> Step:
        """The question of that number in the summary is asked again.

        Raises:
            RequestError: There is none of that number.
        """
        for i, step, _ in self.numbered():
            if i == number:
                self.done.discard(step.key)
                self.asked_again = step.key
                return step
        raise RequestError(f"There is no line {number}", "", f"Give 1 to {len(self.numbered())}.")

    def fill(self) -> None:
        """Answers everything that is left with its default.

        Raises:
            RequestError: A question has none that can be taken.
        """
        while (step := self.current) is not None:
            question = step.question(self)
            try:
                self.answer(question.default)
            except LorapodError as error:
                flag = f"In a script, answer it with `{step.key}` in the file of --answers."
                raise RequestError(error.what, error.why, f"{error.remedy} {flag}".strip()) from error

    def take(self, given: Answers) -> None:
        """Answers what was given beforehand, each as if it had been typed.

        Raises:
            LorapodError: One of them cannot be taken.
        """
        for step in self.steps:
            value = getattr(given, step.key, None)
            if value is None:
                continue
            text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
            step.take(self, text)
            self.done.add(step.key)
        for step in self.steps:
            if step.key in self.done and not step.holds(self):
                self.done.discard(step.key)

    def keep(self, run: str = "") -> None:
        """Writes the session to the workspace.

        Raises:
            DiskError: The workspace cannot be written.
        """
        if self.is_kept:
            done = [step.key for step in self.steps if step.key in self.done]
            keep(self.facts.workspace, Kept(answers=self.answers, done=done, run=run))

    def go_on(self, kept: Kept) -> None:
        """Takes up a session that was broken off; what does not hold any more is asked again."""
        self.answers = kept.answers.model_copy(deep=True)
        known = {step.key for step in self.steps}
        self.done = {key for key in kept.done if key in known}
        self.done = {key for key in self.done if self.step(key).holds(self)}

    @property
    def contents(self) -> Contents:
        """What the chosen folders hold; looked at anew when `forget_contents` was called.

        Raises:
            DatasetError: One is not there any more.
        """
        folders = tuple(map(str, self.answers.data or []))
        if self._contents is None or self._contents[0] != folders:
            self._contents = (folders, contents_of(self.answers.data or []))
        return self._contents[1]

    def forget_contents(self) -> None:
        """The folders are to be looked at anew, as files in them changed."""
        self._contents = None

    @property
    def bare(self) -> list[Path]:
        """Items without a caption, but for those that cannot be trained on anyway."""
        return [path for path in self.contents.bare if path not in (self.unusable or ())]

    @property
    def model(self) -> str:
        """The base model; the demo's before it was answered."""
        return self.answers.model or "demo"
