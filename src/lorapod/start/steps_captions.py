"""The questions of the guided session about captions and keys."""

from __future__ import annotations

from lorapod.captioning.registry import KNOWN
from lorapod.errors import RequestError
from lorapod.settings import KEYS
from lorapod.start.answers import KEEP, TRIGGER_ALONE
from lorapod.start.session import Choice, Question, Session
from lorapod.start.steps import (
    Base,
    DataStep,
    GoalStep,
    ModelStep,
    NameStep,
    TrainerStep,
    TriggerStep,
    demo_paths,
)
from lorapod.start.steps_length import SizeStep, StepsStep

_TITLES = {
    "joycaption": "on this GPU, free",
    "qwen-vl": "on this GPU, free",
    "gemini": "sends them to Google, costs a little",
    "openai": "sends them to OpenAI or another service",
    "tagger": "tags in place of sentences, on this machine",
    "template": "no model, one sentence with the trigger word for all",
}
_PICTURES_ONLY = ("joycaption", "tagger")
_SERVICES = {"HF_TOKEN": "Hugging Face", "GEMINI_API_KEY": "Gemini", "OPENAI_API_KEY": "OpenAI"}
_KEY_OF = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_API_KEY"}


class KeyStep(Base):
    """A key that an answer needs; it is asked for only where it is not set."""

    name = ""

    def holds(self, session: Session) -> bool:
        return not self.is_asked(session)

    def shown(self, session: Session) -> str:
        return ""

    def take(self, session: Session, text: str) -> None:
        value = text.strip()
        name = self.name_for(session)
        if not value:
            raise RequestError(f"{name} is needed here", "", "Give it, or go back and choose something else.")
        session.test_key(name, value, session.facts.environment, self.opens(session))
        session.facts.environment[name] = value

    def name_for(self, session: Session) -> str:
        return self.name

    def opens(self, session: Session) -> str:
        """The repository of the hub that the key has to open; empty for none."""
        return ""

    def question(self, session: Session) -> Question:
        name = self.name_for(session)
        key = next(each for each in KEYS if each.name == name)
        why = f"Get one at {key.page}. It is tried at once, and not shown."
        return Question(f"What is your key for {_SERVICES[name]} ({name})?", why, secret=True)


class ModelKeyStep(KeyStep):
    key, name = "model_key", "HF_TOKEN"

    def opens(self, session: Session) -> str:
        return session.facts.entries[session.model].hub or ""

    def is_asked(self, session: Session) -> bool:
        entry = session.facts.entries[session.model]
        return (
            bool(entry.gated)
            and not session.facts.here.get(entry.name)
            and not session.facts.environment.get(self.name)
        )

    def question(self, session: Session) -> Question:
        asked = super().question(session)
        entry = session.facts.entries[session.model]
        where = f"Its licence has to be accepted first, at {entry.page}. " if entry.page else ""
        return Question(asked.text, f"{entry.title} needs it. {where}{asked.why}", secret=True)


class CaptionerKeyStep(KeyStep):
    key = "captioner_key"

    def name_for(self, session: Session) -> str:
        return _KEY_OF[session.answers.captioner or ""]

    def is_asked(self, session: Session) -> bool:
        name = session.answers.captioner or ""
        return "captioner" in session.done and _lacks_key_alone(session, name)


def _lacks_key_alone(session: Session, name: str) -> bool:
    lacking = session.facts.captioner_lacks(name)
    return name in _KEY_OF and len(lacking) == 1 and _KEY_OF[name] in lacking[0]


class ClassWordStep(Base):
    key, label = "class_word", "Class word"

    def is_asked(self, session: Session) -> bool:
        return bool(session.contents.bare) and session.answers.goal in ("character", "concept")

    def question(self, session: Session) -> Question:
        return Question(
            f"What is {session.answers.trigger or 'it'}, in one word?",
            "As in woman, dog, car: captions then speak of it rightly. `-` to say nothing.",
            default=session.answers.class_word or "-",
        )

    def take(self, session: Session, text: str) -> None:
        word = text.strip()
        if len(word) > 60 or any(ord(letter) < 32 for letter in word):
            raise RequestError("That is too long for a class word", "", "Give one word, or two.")
        session.answers.class_word = "" if word == "-" else word

    def shown(self, session: Session) -> str:
        return (session.answers.class_word or "none") if self.is_asked(session) else ""


class CaptionerStep(Base):
    key, label = "captioner", "Captions"

    def is_asked(self, session: Session) -> bool:
        return bool(session.contents.bare)

    def question(self, session: Session) -> Question:
        inside = session.contents
        choices = []
        for name in _in_order(session):
            lacking = session.facts.captioner_lacks(name)
            key_alone = _lacks_key_alone(session, name)
            lacks = "" if key_alone else " and ".join(lacking)
            if name in _PICTURES_ONLY and not inside.pictures:
                lacks = lacks or "does not look at clips"
            size = session.facts.captioner_gigabytes(name)
            note = "; needs a key, asked for next" if key_alone else f", {size:.0f} GB to fetch" if size else ""
            choices.append(Choice(name, f"{name}: {_TITLES[name]}{note}", "", lacks))
        without = "with the trigger word alone" if session.answers.trigger else "without one"
        count = len(inside.bare)
        choices.append(Choice(TRIGGER_ALONE, f"nothing: train the {count} that lack a caption {without}"))
        if inside.captioned:
            choices.append(
                Choice(KEEP, f"those that are there: leave the {count} out", "Only the captioned ones are trained on.")
            )
        usable = [choice.value for choice in choices if not choice.lacks]
        before = session.answers.captioner
        # Tags suit few base models, so that a tagger is only taken when it is chosen.
        ready = [n for n in usable if n in KNOWN and n != "tagger" and not session.facts.captioner_lacks(n)]
        default = before if before in usable else next(iter(ready), TRIGGER_ALONE)
        text = (
            f"{count} of {inside.total} have no caption. What is to write it?"
            if inside.captioned
            else (f"What is to write the {count} captions?")
        )
        return Question(
            text,
            "Captions name what stays changeable in prompts. What you wrote yourself is never overwritten.",
            tuple(choices),
            default,
        )

    def take(self, session: Session, text: str) -> None:
        if text in (KEEP, TRIGGER_ALONE):
            session.answers.captioner = text
            return
        if text not in KNOWN:
            raise RequestError(
                f"There is no captioner {text!r}", "", f"Give one of {', '.join([*KNOWN, KEEP, TRIGGER_ALONE])}."
            )
        lacking = session.facts.captioner_lacks(text)
        if lacking and not _lacks_key_alone(session, text):
            raise RequestError(f"{text} cannot be used here", f"It needs {' and '.join(lacking)}.", "Choose another.")
        session.answers.captioner = text

    def holds(self, session: Session) -> bool:
        name = session.answers.captioner
        if name is None:
            return False
        lacking = name in KNOWN and session.facts.captioner_lacks(name) and not _lacks_key_alone(session, name)
        return not lacking

    def shown(self, session: Session) -> str:
        inside = session.contents
        name = session.answers.captioner
        if not inside.bare:
            whose = "the demo's" if session.answers.data == demo_paths(session) else "yours"
            return f"{whose}, all {inside.total}"
        if name == KEEP:
            return f"those that are there; {len(inside.bare)} items are left out"
        if name == TRIGGER_ALONE:
            return f"{len(inside.captioned)} yours, {len(inside.bare)} the trigger word alone"
        size = session.facts.captioner_gigabytes(name or "")
        by = f"by {name}" + (f" ({size:.0f} GB to fetch)" if size else "")
        return f"{len(inside.captioned)} yours, {len(inside.bare)} {by}" if inside.captioned else by


def _in_order(session: Session) -> list[str]:
    """Captioners, those that suit what is there first."""
    clips = bool(session.contents.clips)
    first = ["qwen-vl", "gemini"] if clips else ["joycaption", "qwen-vl", "gemini", "openai"]
    return [*first, *(name for name in ("joycaption", "gemini", "openai", "tagger") if name not in first), "template"]


STEPS = (
    ModelStep(),
    ModelKeyStep(),
    GoalStep(),
    DataStep(),
    TriggerStep(),
    ClassWordStep(),
    CaptionerStep(),
    CaptionerKeyStep(),
    NameStep(),
    TrainerStep(),
    SizeStep(),
    StepsStep(),
)
"""Every question, in the order of asking."""
