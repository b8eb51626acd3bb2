"""The recipe that a session's answers make: a file of the person's, commented, which the same training can be done from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, cast

import tomlkit

from lorapod import recipe as recipes
from lorapod.files import write_text_whole
from lorapod.recipe import Recipe
from lorapod.start.answers import KEEP, TRIGGER_ALONE
from lorapod.start.session import Session
from lorapod.start.steps import demo_paths, trainer_of
from lorapod.start.steps_length import learnt_from, usual_size, usual_steps
from lorapod.trainers import get_trainer


def recipe_text(session: Session) -> str:
    """The recipe as TOML.

    Raises:
        RecipeError: The answers make none.
    """
    answers = session.answers
    folders = answers.data or []
    name, trainer = answers.name or "lora", trainer_of(session)
    workspace = session.facts.workspace
    if folders == demo_paths(session):
        document = _demo_recipe(folders)
        document["name"] = name
        cast(Any, document["datasets"])[0]["trigger_word"] = answers.trigger or ""
    else:
        document = tomlkit.parse(
            recipes.new(
                session.model,
                folders[0],
                trainer,
                name,
                workspace,
                recipes.Goal(answers.goal) if answers.goal else None,
                learnt_from(session),
            )
        )
        tables = cast(Any, document["datasets"])
        for folder in folders[1:]:
            table = tomlkit.table()
            table.update(tables[0].unwrap())
            table["path"] = folder.as_posix()
            tables.append(table)
        for table in tables:
            _about_captions(session, table)
    if answers.size and answers.size != usual_size(session):
        for table in cast(Any, document["datasets"]):
            table["resolutions"] = [answers.size]
    if answers.steps and answers.steps != usual_steps(session):
        training = document.setdefault("training", tomlkit.table())
        cast(Any, training)["steps"] = answers.steps
    return tomlkit.dumps(document)


def _demo_recipe(folders: list[Path]) -> tomlkit.TOMLDocument:
    text = (resources.files("lorapod") / "demo" / "recipe.toml").read_text(encoding="utf-8")
    document = tomlkit.parse(text)
    for table, folder in zip(cast(Any, document["datasets"]), folders, strict=True):
        table["path"] = folder.as_posix()
    return document


def _about_captions(session: Session, table: Any) -> None:
    table["trigger_word"] = session.answers.trigger or ""
    if session.contents.bare and session.answers.captioner == TRIGGER_ALONE:
        table["allow_missing_captions"] = True
    if session.unusable or (session.contents.bare and session.answers.captioner == KEEP):
        table["skip_unusable"] = True


def write_recipe(session: Session) -> Path:
    """Writes the recipe into the workspace's `recipes/`; one that is there and says the same is taken.

    Raises:
        DiskError: The workspace cannot be written.
    """
    text = recipe_text(session)
    stem, number = session.answers.name or "lora", 1
    while True:
        path = session.facts.workspace.root / "recipes" / (f"{stem}.toml" if number == 1 else f"{stem}-{number}.toml")
        if not path.exists():
            write_text_whole(path, text)
            return path
        if path.read_text(encoding="utf-8", errors="replace") == text:
            return path
        number += 1


def checked_recipe(session: Session, path: Path) -> Recipe:
    """The recipe as it will be run; refused now what its trainer would refuse later.

    Raises:
        RequestError: What it is, and what to change.
    """
    recipe = recipes.load(path, workspace=session.facts.workspace)
    get_trainer(recipe.trainer).check(recipe)
    return recipe
