"""How `lorapod start` asks: with lists to move in on a terminal that can, else with numbers, a line each.

Both give the answer as text, or raise `Back`, `KeyboardInterrupt` (Ctrl-C) or `EOFError` (Ctrl-D, or the terminal is gone).
"""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from lorapod.start.session import Choice, Question

_OTHER = "\0other"
_LEAST_WIDTH = 40

_SAME_REASON = 3
"""More choices than this that cannot be taken for one reason share a line."""


class BackError(Exception):
    """The person wants to go back to the question before."""


class Asker(Protocol):
    """Asks a person."""

    def ask(self, question: Question) -> str:
        """The answer to a question, one of its choices' values or typed."""

    def line(self, text: str, default: str = "") -> str:
        """A line, or the default for none."""

    def say(self, text: str, style: str = "") -> None:
        """Says something, wrapped to the terminal."""


def width() -> int:
    """Columns to write in."""
    return max(_LEAST_WIDTH, min(100, shutil.get_terminal_size((80, 24)).columns))


def wrapped(text: str, indent: str = "", at: int | None = None) -> str:
    """The text in lines; a word that is longer than a line stays whole, so that paths can be copied."""
    under = indent + ("  " if text.startswith("- ") else "")
    return textwrap.fill(
        text, at or width() - 1, initial_indent=indent, subsequent_indent=under, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def is_dumb() -> bool:
    """Whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


def asker(plain: bool) -> Asker:
    """What suits the terminal."""
    return PlainAsker() if plain or is_dumb() else ListAsker()


class PlainAsker:
    """Numbered questions: for screen readers and terminals that only print."""

    def say(self, text: str, style: str = "") -> None:
        typer.echo(wrapped(text) if text else "")

    def ask(self, question: Question) -> str:
        self.say("")
        self.say(question.text)
        if question.why:
            self.say(question.why)
        if question.secret:
            return self._answer(getpass.getpass("Key (b: back): "))
        if not question.choices:
            return self.line("Your answer", question.default)
        usable = [choice for choice in question.choices if not choice.lacks]
        for i, choice in enumerate(usable, start=1):
            self.say(f"{i}. {choice.title}" + (f". {choice.about}" if choice.about else ""))
        for reason in dict.fromkeys(choice.lacks for choice in question.choices if choice.lacks):
            names = ", ".join(_name(choice) for choice in question.choices if choice.lacks == reason)
            self.say(f"Not here: {names}: {reason}.")
        if question.other:
            self.say(f"Or {question.other}.")
        default = next((i for i, choice in enumerate(usable, start=1) if choice.value == question.default), 1)
        while True:
            given = self.line("Number", str(default))
            if given.isdigit() and 1 <= int(given) <= len(usable):
                return usable[int(given) - 1].value
            named = next((choice.value for choice in usable if given in (choice.value, _name(choice))), None)
            if named is not None or (question.other and not given.isdigit()):
                return named or given
            self.say(f"Give a number from 1 to {len(usable)}, or b to go back.")

    def line(self, text: str, default: str = "") -> str:
        shown = f" (Enter: {default})" if default else ""
        return self._answer(input(f"{text.rstrip('.')}{shown}: ")) or default

    def _answer(self, given: str) -> str:
        if given.strip().lower() in ("b", "back"):
            raise BackError
        return given.strip()


class ListAsker:
    """Lists to move in with the arrow keys, by questionary and prompt_toolkit; Esc goes back.

    An answer that was typed and refused, so that the same question comes again, stands there to be mended.
    """

    def __init__(self) -> None:
        self._question = self._before = ""

    def say(self, text: str, style: str = "") -> None:
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text(wrapped(text), style=style), soft_wrap=True)

    def ask(self, question: Question) -> str:
        self.say("")
        refused = self._before if question.text == self._question else ""
        self._question, self._before = question.text, ""
        if not question.choices:
            self.say(question.text, "bold")
            if question.why:
                self.say(question.why, "dim")
            typed = self._typed(question.default, secret=question.secret, begin=refused)
            self._before = "" if question.secret or typed == question.default else typed
            return typed
        while True:
            if refused:
                self.say("Change it, or press Esc for the list.", "dim")
            elif (answer := self._chosen(question)) != _OTHER:
                return answer
            try:
                self._before = self._typed("", begin=refused)
            except BackError:
                refused = ""
                continue
            return self._before

    def _chosen(self, question: Question) -> str:
        import questionary
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.styles import Style

        self.say(question.text, "bold")
        if question.why:
            self.say(question.why, "dim")
        at = width() - 4
        reasons = Counter(choice.lacks for choice in question.choices if choice.lacks)
        shared = [reason for reason, count in reasons.items() if count > _SAME_REASON]
        choices: list[questionary.Choice] = []
        for choice in question.choices:
            if choice.lacks in shared:
                continue
            name = _cut(_name(choice), at)
            title = name if choice.lacks else _cut(choice.title, at)
            about = choice.about if title in (choice.title, name) else f"{choice.title}. {choice.about}".strip()
            choices.append(
                questionary.Choice(
                    title,
                    value=choice.value,
                    disabled=_cut(choice.lacks, at - len(name) - 5) if choice.lacks else None,
                    description="\n" + wrapped(about, "    ", at) if about else None,
                )
            )
        for reason in shared:
            names = ", ".join(_name(choice) for choice in question.choices if choice.lacks == reason)
            choices.append(questionary.Separator(wrapped(f"not here ({reason}): {names}", "     ", at).lstrip()))
        if question.other:
            choices.append(questionary.Choice(_cut(question.other, at), value=_OTHER))
        asked = questionary.select(
            "",
            choices=choices,
            default=question.default or None,
            instruction="(arrow keys and Enter; Esc goes back)",
            qmark="",
            pointer="›",
            style=Style([("selected", "noreverse"), ("disabled", "fg:ansibrightblack"), ("pointer", "bold")]),
        )
        bindings = asked.application.key_bindings
        assert isinstance(bindings, KeyBindings)
        _bind_back(bindings)
        return str(asked.unsafe_ask())

    def _typed(self, default: str, *, secret: bool = False, begin: str = "") -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings

        bindings = KeyBindings()
        _bind_back(bindings)
        shown = f"[{default}] " if default else ""
        session: PromptSession[str] = PromptSession(key_bindings=bindings)
        return session.prompt(f"› {shown}", is_password=secret, default=begin).strip() or default

    def line(self, text: str, default: str = "") -> str:
        self.say(text)
        return self._typed(default)


def _bind_back(bindings: Any) -> None:
    def go_back(event: Any) -> None:
        event.app.exit(exception=BackError)

    # Eager, else it waits a second for a key that it might be a prefix of, and swallows what is typed meanwhile.
    bindings.add("escape", eager=True)(go_back)


def _name(choice: Choice) -> str:
    return choice.title.partition(": ")[0]


def _cut(text: str, at: int) -> str:
    return text if len(text) <= at else text[: max(1, at - 1)] + "…"


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()
