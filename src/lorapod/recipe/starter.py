"""A first recipe for a newcomer: short, commented, and valid as it stands."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from lorapod.errors import RecipeError
from lorapod.recipe import presets
from lorapod.recipe.choices import TrainerName
from lorapod.recipe.goals import USUAL_STEPS, Goal, passes_of, steps_for
from lorapod.recipe.schema import BaseModelSection, DatasetSection, Recipe
from lorapod.workspace import Workspace


def new(
    model: str,
    data: Path,
    trainer: str = TrainerName.BUILTIN,
    name: str | None = None,
    workspace: Workspace | None = None,
    goal: Goal | None = None,
    items: int = 0,
) -> str:
    """A commented recipe as TOML: what a person is likely to change, with the values of the base model's preset.

    Args:
        model: Base model: one with a preset, one that was added to `workspace`, or the path of a folder in diffusers
            layout.
        data: Folder of pictures, written as given; a relative path will count from the recipe's folder.
        trainer: What trains.
        name: Name of the LoRA; the data folder's where left out.
        goal: What is to be learnt, which decides how long is trained; None for the base model's own length.
        items: How many items there are; 0 where nobody knows, and then the goal decides nothing.

    Raises:
        RecipeError: An unknown base model or trainer, or a name that cannot be a file name.
    """
    known = model in presets.names() or presets.is_added(model, workspace)
    if not known and not Path(model).expanduser().is_dir():
        near = difflib.get_close_matches(model, presets.names(), n=1, cutoff=0.4)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        raise RecipeError(
            f"There is no base model `{model}`{meant}",
            f"Base models with a preset: {', '.join(presets.names())}.",
            "Give one of them, or the path of a folder in diffusers layout.",
        )
    if any("\ud800" <= character <= "\udfff" for character in f"{model}{data}"):
        raise RecipeError(f"The path {str(data)!r} is not Unicode text", "", "Rename the folder.")
    name = _checked_name(name if name is not None else _name_from(data))
    recipe = _resolved(model, data, _checked_trainer(trainer), name, workspace)
    why = "or, in its place, `epochs`: passes over the dataset"
    if goal is not None and items:
        recipe.training.steps = steps_for(goal, items, model, workspace)
        times = passes_of(recipe.training.steps, items, model, workspace)
        why = f"{items} items, each about {times} times; {why}"
    return _text(recipe, data, model, why, _control(data, model, workspace))


def _control(data: Path, model: str, workspace: Workspace | None) -> Path | None:
    """The folder of control pictures that a recipe names: where a base model needs them, or where there is one."""
    use, folder = presets.control_for(model, workspace), data / "control"
    return folder if use == "needed" or (use == "taken" and folder.is_dir()) else None


def _checked_trainer(trainer: str) -> TrainerName:
    try:
        return TrainerName(trainer)
    except ValueError:
        near = difflib.get_close_matches(trainer, list(TrainerName), n=1, cutoff=0.4)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        raise RecipeError(
            f"There is no trainer `{trainer}`{meant}", remedy=f"Give one of {', '.join(TrainerName)}."
        ) from None


def _checked_name(name: str) -> str:
    try:
        Recipe(name=name, base_model=BaseModelSection(name="any"), datasets=[DatasetSection(path=Path())])
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"The name {name!r} cannot be used", reason, "Give another with --name.") from None
    return name


def _name_from(data: Path) -> str:
    """The folder's name, with what no file name may hold taken out."""
    return re.sub(r'[/\\\0\n:*?"<>|]+', "-", data.absolute().name).strip()[:100].strip() or "lora"


def _resolved(model: str, data: Path, trainer: TrainerName, name: str, workspace: Workspace | None) -> Recipe:
    written: dict[str, Any] = {
        "name": name,
        "trainer": trainer,
        "base_model": {"name": model},
        "datasets": [{"path": data}],
    }
    recipe = Recipe.model_validate(presets.fill(written, workspace))
    recipe.training.steps = recipe.training.steps or USUAL_STEPS
    return recipe


def _quoted(text: str) -> str:
    return tomlkit.item(text).as_string()


def _text(recipe: Recipe, data: Path, model: str, why_steps: str, control: Path | None) -> str:
    dataset: DatasetSection = recipe.datasets[0]
    items = "pictures and clips" if recipe.previews.frames > 1 else "pictures"
    lines = [
        "# A recipe of lorapod: everything about one training. Only what you are likely to change is written here;",
        "# `lorapod recipe show` prints this recipe with every other setting and its value.",
        "",
        f"name = {_quoted(recipe.name)}  # of the LoRA file and of the run's folder",
    ]
    if recipe.trainer is not TrainerName.BUILTIN:
        lines.append(f"trainer = {_quoted(recipe.trainer)}  # what trains; `builtin` is lorapod's own")
    lines += ["", "[base_model]", f"name = {_quoted(model)}  # what the LoRA is trained on: `lorapod models list`"]
    lines += [
        "",
        "[[datasets]]",
        f"path = {_quoted(data.as_posix())}  # folder of {items}, each with a caption in a .txt file of the same name",
        *(
            [f"control = {_quoted(control.as_posix())}  # folder of what each was edited from, under the same name"]
            if control
            else []
        ),
        f"trigger_word = {_quoted(dataset.trigger_word)}  # a rare word put before every caption, to call the LoRA by",
        f"resolutions = {dataset.resolutions}  # sides in pixels; smaller is faster and needs less memory",
        f"repeats = {dataset.repeats}  # how often each of them is seen in an epoch",
        "",
        "[adapter]",
        f"rank = {recipe.adapter.rank}  # how much the LoRA can hold; a larger one overfits sooner",
        "",
        "[optimizer]",
        f"learning_rate = {recipe.optimizer.learning_rate}  # lower if pictures turn harsh, raise if none change",
        "",
        "[training]",
        f"steps = {recipe.training.steps}  # {why_steps}",
        f"batch_size = {recipe.training.batch_size}  # items at once; more is steadier and needs more memory",
        "",
        "[previews]",
        "prompts = []  # what to draw while training; empty: your first captions",
        f"every = {recipe.previews.every}  # steps between previews; 0: only before and after training",
        "",
        "[saving]",
        f"lora_every = {recipe.saving.lora_every or recipe.saving.checkpoint_every}  # steps between LoRA files, for the "
        "best may be an earlier one; 0: only the last",
    ]
    return "\n".join(lines) + "\n"
