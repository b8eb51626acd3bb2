"""The questions of the guided session about the training: base model, goal, data, trigger word, name, trainer.

Those about captions and keys are in `lorapod.start.steps_captions`, about size and length in `lorapod.start.steps_length`.
Each has a default, so that Enter all the way gives a good LoRA; what does not fit this machine is listed with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

from lorapod.errors import RequestError
from lorapod.models.catalogue import Entry
from lorapod.models.memory import GIB
from lorapod.models.plan import size_text
from lorapod.recipe.goals import Goal, goal_preset
from lorapod.start.answers import KEEP, TRIGGER_ALONE
from lorapod.start.data import shared_word
from lorapod.start.demo_data import DEMO_FOLDERS, demo_folders
from lorapod.start.facts import GB, Facts
from lorapod.start.fits import fit_of
from lorapod.start.paths import typed_folder
from lorapod.start.recommend import GOOD_FOR, TRAINERS, base_model_for, trainer_for, trainers_of
from lorapod.start.session import Choice, Question, Session

DEMO_TRIGGER = "momo"
_RARE = "ohwx"
"""A word without a meaning that text encoders know as one token; common among those who train LoRAs."""

_GOAL_TEXTS = {
    "character": "a person, an animal, a figure: somebody who stays the same",
    "style": "how pictures look: a painter's hand, a way to light or to colour",
    "concept": "a thing, a garment, a pose, a place",
    "motion": "how something moves; clips alone show it",
}


class Base:
    """What most questions have in common."""

    key = ""
    label = ""

    def is_asked(self, session: Session) -> bool:
        return True

    def holds(self, session: Session) -> bool:
        return getattr(session.answers, self.key, None) is not None

    def shown(self, session: Session) -> str:
        return str(getattr(session.answers, self.key, None) or "")


class ModelStep(Base):
    key, label = "model", "Base model"

    def question(self, session: Session) -> Question:
        facts = session.facts
        choices = tuple(_model_choice(entry, facts) for entry in facts.offered())
        usable = {choice.value for choice in choices if not choice.lacks}
        default = session.answers.model if session.answers.model in usable else base_model_for(facts)
        return Question(
            "Which base model is the LoRA for?",
            "A LoRA works with the base model that it was trained on, and its fine-tunes.",
            choices,
            default or "demo",
        )

    def take(self, session: Session, text: str) -> None:
        session.answers.model = session.facts.entry(text).name
        session.unusable = None

    def holds(self, session: Session) -> bool:
        return session.answers.model in session.facts.entries

    def shown(self, session: Session) -> str:
        facts, entry = session.facts, session.facts.entries[session.model]
        fit = fit_of(entry, facts.gpus)
        size = fetch_text(entry, facts, trainer_of(session))
        return f"{entry.title} ({size})" + (f"; careful: {fit.why_not}" if fit.why_not else "")


def _model_choice(entry: Entry, facts: Facts) -> Choice:
    fit = fit_of(entry, facts.gpus)
    need = f"{-(-fit.need // GIB)} GB of GPU memory" if fit.need else "any processor" if entry.packaged else "memory: ?"
    need += f" (here {fit.means})" if fit.means else ""
    about = GOOD_FOR.get(entry.name) or GOOD_FOR.get(entry.based_on or "") or f"trains on {entry.modality}s"
    use = {True: "business use allowed", False: "no business use", None: "business use: read it"}[entry.commercial_use]
    gate = "; access has to be asked for at Hugging Face" if entry.gated else ""
    own = " (your own)" if entry.own else ""
    kind = {"picture": "pictures", "clip": "clips"}[entry.modality]
    return Choice(
        entry.name,
        f"{entry.title}{own}: {kind}, {fetch_text(entry, facts)}, {need}",
        f"{about[0].upper()}{about[1:]}. Licence: {entry.licence}, {use}{gate}.",
        fit.why_not,
    )


def fetch_text(entry: Entry, facts: Facts, trainer: str | None = None) -> str:
    """`comes with lorapod`, `is here` or `20.7 GB to fetch`."""
    if entry.packaged:
        return "comes with lorapod"
    able = trainer if trainer in entry.trainers else None
    wanted = able or next(iter(entry.trainers), "builtin")
    if wanted in facts.here.get(entry.name, []):
        return "is here"
    size = facts.fetch_bytes(entry, able)
    if not size:  # sizes are known of single files, not of all of a repository
        size = max((facts.fetch_bytes(entry, name) for name in entry.trainers), default=0.0)
    return f"{size_text(size) if size < GB else f'{size / GB:.0f} GB'} to fetch" if size else "size not known"


class GoalStep(Base):
    key, label = "goal", "Goal"

    def question(self, session: Session) -> Question:
        clips = session.facts.entries[session.model].modality == "clip"
        goals = [goal.value for goal in Goal if clips or goal is not Goal.MOTION]
        choices = tuple(Choice(goal, f"{goal}: {_GOAL_TEXTS[goal]}") for goal in goals)
        if not clips:
            choices += (Choice("motion", f"motion: {_GOAL_TEXTS['motion']}", "", "this base model makes pictures"),)
        before = session.answers.goal
        default = before if before in goals else "motion" if clips else "character"
        return Question(
            "What is the LoRA to learn?",
            "It decides what captions say and leave out, how long is trained, and what your pictures are checked for.",
            choices,
            default,
        )

    def take(self, session: Session, text: str) -> None:
        if text not in list(Goal):
            raise RequestError(f"There is no goal {text!r}", "", "Give character, style, concept or motion.")
        if text == "motion" and session.facts.entries[session.model].modality == "picture":
            raise RequestError("A base model of pictures learns no motion", "", "Choose another goal or base model.")
        session.answers.goal = text

    def holds(self, session: Session) -> bool:
        goal = session.answers.goal
        return goal is not None and (goal != "motion" or session.facts.entries[session.model].modality == "clip")

    def shown(self, session: Session) -> str:
        goal = session.answers.goal
        ours = session.contents.bare and session.answers.captioner not in (None, KEEP, TRIGGER_ALONE)
        return f"{goal}: captions {'' if ours else 'should '}{goal_preset(Goal(goal)).captions}" if goal else ""


class DataStep(Base):
    key, label = "data", "Pictures"

    def question(self, session: Session) -> Question:
        takes_clips = session.facts.entries[session.model].modality == "clip"
        found = [each for each in session.facts.found if each.pictures or takes_clips]
        if takes_clips:
            found.sort(key=lambda each: -each.clips)
        choices = [Choice(str(each.folders[0]), f"{each.folders[0].name}: {each}") for each in found]
        if len(found) > 1 and takes_clips:
            both = "\n".join(str(each.folders[0]) for each in found)
            choices.append(Choice(both, "both of them"))
        if session.model == "demo":
            choices.append(
                Choice(
                    DEMO_FOLDERS,
                    "the demo's: 20 pictures of Momo, whom the demo model does not know",
                    "They come with captions, and with 100 pictures of what the model knows.",
                )
            )
        what = "pictures or clips" if takes_clips else "pictures"
        places = " or ".join(
            name for name in ("image_dataset_here", "video_dataset_here") if takes_clips or name[0] == "i"
        )
        before = "\n".join(map(str, session.answers.data or []))
        folder = session.facts.workspace.root
        hint = (
            f"They stay as they are. Put them into {places} of {folder}, or give a folder."
            if not found
            else ("They stay as they are; captions are written beside them.")
        )
        default = choices[0].value if choices else ""
        if before and (before in [each.value for each in choices] or _exist(session.answers.data or [])):
            default = before
            if before not in [each.value for each in choices] and before != _demo_text(session):
                choices.insert(0, Choice(before, ", ".join(each.name for each in session.answers.data or [])))
        if before == _demo_text(session):
            default = DEMO_FOLDERS if session.model == "demo" else default
        other = "another folder: type its path, or drop it into this window" if choices else ""
        return Question(f"Where are your {what}?", hint, tuple(choices), default, other)

    def take(self, session: Session, text: str) -> None:
        from lorapod.start.data import contents_of

        if not text.strip():
            raise RequestError(
                "A folder is needed", "", "Drop a folder of pictures into the terminal, or type its path."
            )
        workspace = session.facts.workspace
        if text == DEMO_FOLDERS:
            folders = demo_folders(workspace)
        else:
            folders = [typed_folder(line, workspace) for line in text.split("\n") if line.strip()]
        inside = contents_of(folders)
        if not inside.total:
            raise RequestError(
                f"{', '.join(map(str, folders))} holds no pictures and no clips",
                "Sub-folders are not looked into.",
                "Give the folder that the files themselves are in.",
            )
        if session.facts.entries[session.model].modality == "picture" and not inside.pictures:
            raise RequestError(
                f"{', '.join(map(str, folders))} holds {inside}",
                f"{session.facts.entries[session.model].title} learns from pictures.",
                "Give a folder of pictures, or choose a base model of clips.",
            )
        if session.model.startswith("wan") and "i2v" in session.model and not inside.clips:
            raise RequestError(
                f"{', '.join(map(str, folders))} holds {inside}", "This base model learns from clips.", "Give clips."
            )
        session.answers.data, session.unusable = folders, None
        session.forget_contents()

    def holds(self, session: Session) -> bool:
        if not session.answers.data or not _exist(session.answers.data):
            return False
        inside = session.contents
        needs_pictures = session.facts.entries[session.model].modality == "picture"
        is_demo = session.answers.data == demo_paths(session)
        return (
            bool(inside.total)
            and (not needs_pictures or bool(inside.pictures))
            and (not is_demo or session.model == "demo")
        )

    def shown(self, session: Session) -> str:
        if not session.answers.data:
            return ""
        inside = session.contents
        bare = f", {len(inside.bare)} without a caption" if inside.bare else ", all with captions"
        if session.answers.data == demo_paths(session):
            return f"the demo's: {inside}{bare}"
        return f"{', '.join(each.name for each in session.answers.data)}: {inside}{bare}"


def demo_paths(session: Session) -> list[Path]:
    """The folders of the demo's own pictures in this workspace, whether they are there or not."""
    from lorapod.start.demo_data import NAMES

    return [session.facts.workspace.root / "demo" / "dataset" / name for name in NAMES]


def _demo_text(session: Session) -> str:
    return "\n".join(map(str, demo_paths(session)))


def _exist(folders: list[Path]) -> bool:
    return all(folder.is_dir() for folder in folders)


class TriggerStep(Base):
    key, label = "trigger", "Trigger word"

    def question(self, session: Session) -> Question:
        before = session.answers.trigger
        if before is None:
            is_demo = session.answers.data == demo_paths(session)
            before = DEMO_TRIGGER if is_demo else shared_word(session.contents) or _RARE
        goal = goal_preset(Goal(session.answers.goal or Goal.CHARACTER))
        return Question(
            "Which word is to call it up in prompts?",
            f"The trigger word, {goal.trigger}. Take one that means nothing, so that the base model knows nothing of it. "
            "It is put before every caption. `-` for none.",
            default=before or "-",
        )

    def take(self, session: Session, text: str) -> None:
        word = text.strip()
        if len(word) > 60 or "\n" in word or any(ord(letter) < 32 for letter in word):
            raise RequestError("That is too long for a trigger word", "", "Give one word, or two.")
        session.answers.trigger = "" if word == "-" else word

    def shown(self, session: Session) -> str:
        return session.answers.trigger or "none"


class NameStep(Base):
    key, label = "name", "Name"

    def question(self, session: Session) -> Question:
        return Question("What is the LoRA's file to be called?", default=session.answers.name or _name_for(session))

    def take(self, session: Session, text: str) -> None:
        from lorapod.recipe import new

        name = text.strip().removesuffix(".safetensors")
        new("demo", Path("pictures"), name=name)
        session.answers.name = name


def _name_for(session: Session) -> str:
    folder = (session.answers.data or [Path("lora")])[0].name
    own = folder if not folder.endswith("_dataset_here") else session.answers.trigger or session.answers.goal or "lora"
    name = re.sub(r"[^\w.-]+", "-", own).strip("-.")[:60] or "lora"
    return name if name.lower() not in ("images", "pictures", "dataset", "data", _RARE) else f"{name}-{session.model}"


class TrainerStep(Base):
    key, label = "trainer", "Trainer"

    def is_asked(self, session: Session) -> bool:
        several = len(trainers_of(session.facts, session.model)) > 1
        return several or session.asked_again == self.key

    def shown(self, session: Session) -> str:
        return trainer_of(session)

    def question(self, session: Session) -> Question:
        can = trainers_of(session.facts, session.model)
        best = trainer_for(session.facts, session.model)
        choices = []
        for name in [best, *(each for each in TRAINERS if each != best)]:
            ready = session.facts.trainers.get(name, False)
            lacks = "" if name in can else _why_not(session, name)
            if name == "builtin" and not ready:
                lacks = lacks or "needs pip install 'lorapod[engine]'"
            state = "" if ready or name == "builtin" else "; it will be installed"
            first = " (recommended)" if name == best else ""
            choices.append(Choice(name, f"{name}{first}: {TRAINERS[name]}{state}", "", lacks))
        usable = [choice.value for choice in choices if not choice.lacks]
        default = session.answers.trainer if session.answers.trainer in usable else next(iter(usable), best)
        return Question(
            "What is to train it?",
            "The LoRA is the same kind of file whatever trains it.",
            tuple(choices),
            default or best,
        )

    def take(self, session: Session, text: str) -> None:
        can = trainers_of(session.facts, session.model)
        if text not in can:
            raise RequestError(
                f"{text} {_why_not(session, text)}",
                f"These can: {', '.join(can)}.",
                "Choose one of them.",
            )
        session.answers.trainer = text

    def holds(self, session: Session) -> bool:
        return session.answers.trainer in trainers_of(session.facts, session.model)


def _why_not(session: Session, trainer: str) -> str:
    entry = session.facts.entries[session.model]
    if trainer in entry.trainers:
        return f"trains {entry.title} with control pictures alone, which are named in a recipe"
    return f"cannot train {entry.title}"


def trainer_of(session: Session) -> str:
    """What trains: as answered, else what is recommended."""
    return session.answers.trainer or trainer_for(session.facts, session.model)
