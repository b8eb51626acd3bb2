"""The answers of a guided session, kept in the workspace after each of them. Keys are never among them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorapod.errors import RequestError
from lorapod.files import write_text_whole
from lorapod.start.demo_data import DEMO_FOLDERS
from lorapod.workspace import Workspace

FILE = "start.toml"

KEEP, TRIGGER_ALONE = "keep", "trigger"
"""Answers in place of a captioner: the captions that are there; the trigger word for what has none."""


class Answers(BaseModel):
    """What a person answered; None: not asked yet."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: str | None = Field(None, description="Base model, by its name in the catalogue.")
    goal: str | None = Field(None, description="character, style, concept or motion.")
    data: list[Path] | None = Field(None, description="Folders of pictures or clips; `demo`: the demo's own.")
    trigger: str | None = Field(None, description="Trigger word; empty for none.")
    class_word: str | None = Field(None, description="What the trigger word is, as in woman; empty for nothing.")
    captioner: str | None = Field(
        None,
        description="What writes missing captions; `keep`: those that are there, `trigger`: the trigger word alone.",
    )
    name: str | None = Field(None, description="Of the LoRA's file.")
    trainer: str | None = Field(None, description="What trains.")
    size: int | None = Field(
        None, ge=64, le=4096, description="Side in pixels at which is trained; None: as the base model's preset."
    )
    steps: int | None = Field(
        None, ge=1, le=1_000_000, description="How long to train; None: as the base model's preset."
    )


class Kept(BaseModel):
    """A session as it is on disk.

    Attributes:
        done: Keys of the questions that were answered; the others' answers are only what was said before.
        run: The run that it ended in; empty while it goes on.
    """

    model_config = ConfigDict(extra="forbid")

    answers: Answers = Field(default_factory=Answers)
    done: list[str] = []
    run: str = ""


def keep(workspace: Workspace, kept: Kept) -> None:
    """Writes the session to the workspace.

    Raises:
        DiskError: The workspace cannot be written.
    """
    text = "# What `lorapod start` was told, so that it can go on; delete it to begin anew.\n"
    write_text_whole(workspace.root / FILE, text + tomlkit.dumps(kept.model_dump(mode="json", exclude_none=True)))


def kept_in(workspace: Workspace) -> Kept | None:
    """The session that was broken off or done last; None where there is none.

    Raises:
        RequestError: It cannot be read; nothing was changed.
    """
    path = workspace.root / FILE
    try:
        return Kept.model_validate(tomlkit.parse(path.read_text(encoding="utf-8")).unwrap())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(
            f"The session kept in {path} cannot be read", str(error).splitlines()[0], "Mend or delete the file."
        ) from error


def read_answers(path: Path) -> Answers:
    """Answers from a file of the person's: those of `start.toml` itself, or its `[answers]` alone at the top level.

    Raises:
        RequestError: It cannot be read, or says what no question asks.
    """
    try:
        raw: dict[str, Any] = tomlkit.parse(path.expanduser().read_text(encoding="utf-8")).unwrap()
    except OSError as error:
        raise RequestError(
            f"The answers in {path} cannot be read", f"{error.strerror}.", "Give a TOML file with answers."
        ) from error
    except ValueError as error:
        raise RequestError(f"The answers in {path} cannot be read", str(error), "Mend the TOML.") from error
    found = raw.get("answers", raw)
    try:
        answers = Answers.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(Answers.model_fields)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Answers.model_fields, n=1)
            meant = f"Did you mean `{near[0]}`?" if near else "Leave it out."
            raise RequestError(
                f"{path}: no question has the answer `{key}`", f"Answers are: {known}.", meant
            ) from error
        what = first["msg"].replace("Input should be", "it must be").replace("a valid list", "a list in brackets")
        raise RequestError(f"{path}: `{key}`: {what}", "", "Change the file.") from error
    if answers.data:
        base = path.expanduser().absolute().parent
        demo = Path(DEMO_FOLDERS)
        answers.data = [each if each == demo else base / each.expanduser() for each in answers.data]
    return answers
