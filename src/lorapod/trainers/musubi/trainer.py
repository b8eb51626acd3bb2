"""Runs musubi-tuner: its stages one after the other, resumed from its own states, its LoRA files collected.

Its `--resume` restores weights, optimizer and schedule, but counts from step 0 again and would overwrite earlier files: so
each start writes into a folder of its own, `output/from-000500`, and trains the steps that remain.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.data.export import Layout
from lorapod.errors import StageFailedError
from lorapod.events import Event, event
from lorapod.lora_convert import read, write
from lorapod.lora_file import metadata_for
from lorapod.models import Entry
from lorapod.recipe import Recipe
from lorapod.recipe.schema import LoraFormat
from lorapod.trainers.base import Stage
from lorapod.trainers.external import ExternalTrainer, LineReader
from lorapod.trainers.musubi.parse import Reader
from lorapod.trainers.musubi.render import output_names

_FROM = re.compile(r"from-(\d+)$")
_STATE = re.compile(r"(?P<name>.+)-step(?P<step>\d{8})-state$")
_FILE = re.compile(r"(?P<name>.+?)(?:-step(?P<step>\d{8})|-(?P<epoch>\d{6}))?\.safetensors$")


class MusubiTrainer(ExternalTrainer):
    """kohya-ss/musubi-tuner."""

    name, title, layout = "musubi", "musubi-tuner", Layout.MUSUBI

    def started(self, stage: Stage, recipe: Recipe, output: Path, resume: bool) -> Stage | None:
        name = _option(stage.argv, "output_name")
        anew = replace(stage, argv=_with(stage.argv, output_dir=output / f"from-{0:06d}"))
        if not resume:
            return anew
        if any(folder.joinpath(f"{name}.safetensors").is_file() for folder in _starts(output)):
            return None
        states = [
            (_offset(folder) + int(found["step"]), state)
            for folder in _starts(output)
            for state in folder.glob(f"{name}-step*-state")
            if (found := _STATE.match(state.name)) and (state / "model.safetensors").is_file()
        ]
        if not states or recipe.training.steps is None:
            return anew
        step, state = max(states)
        left = max(1, recipe.training.steps - step)
        argv = _with(stage.argv, output_dir=output / f"from-{step:06d}", max_train_steps=left)
        return replace(stage, argv=[*argv, "--resume", str(state)])

    def reader(self, stage: Stage) -> LineReader:
        if not stage.name.startswith("train"):
            return Reader(stage.name)
        offset = _offset(Path(_option(stage.argv, "output_dir")))
        return Reader(stage.name, offset, float(_option(stage.argv, "learning_rate")))

    def collect(self, recipe: Recipe, entry: Entry, run_dir: Path, commit: str) -> list[Event]:
        names, found = output_names(recipe, entry), []
        for folder in _starts(run_dir / "output"):
            for path in sorted(folder.glob("*.safetensors")):
                match = _FILE.match(path.name)
                if match is None or match["name"] not in names:
                    continue
                final = not (match["step"] or match["epoch"])
                step = recipe.training.steps or 0 if final else _offset(folder) + int(match["step"] or 0)
                stem = match["name"] + (
                    "" if final else f"-step{step:06d}" if match["step"] else f"-epoch{match['epoch']}"
                )
                target = run_dir / "lora" / f"{stem}.safetensors"
                _collect(path, target, recipe, entry, commit, step)
                fields = {"format": LoraFormat.COMFYUI.value, "base_model": entry.name}
                found.append(event("lora", step=step, path=str(target.relative_to(run_dir)), **fields))
        missing = [name for name in names if not (run_dir / "lora" / f"{name}.safetensors").is_file()]
        if missing:
            raise StageFailedError(
                f"musubi-tuner ended without the LoRA {missing[0]}",
                f"It is in none of the folders of {run_dir / 'output'}.",
                "The whole output is in log.txt.",
            )
        return found


def _collect(path: Path, target: Path, recipe: Recipe, entry: Entry, commit: str, step: int) -> None:
    """A file of musubi-tuner as ComfyUI loads it, with lorapod's metadata and the trainer's name and commit."""
    lora = read(path, entry.family)
    expert = next((which for which in ("high", "low") if path.stem.startswith(f"{recipe.name}-{which}")), "")
    ours = metadata_for(
        recipe,
        recipe_text=recipes.dumps(recipe),
        base_model_hash="",
        family=entry.family,
        steps=step,
        items=0,
        expert=expert,
    )
    theirs = {key: value for key, value in lora.metadata.items() if key.startswith("ss_")}
    made_by = {"lorapod.trainer": "musubi-tuner", "lorapod.trainer_commit": commit}
    write(replace(lora, metadata=theirs | ours | made_by), target, LoraFormat.COMFYUI)


def _starts(output: Path) -> list[Path]:
    """The folders of each start, oldest first."""
    return sorted((f for f in output.glob("from-*") if _FROM.match(f.name)), key=_offset)


def _offset(folder: Path) -> int:
    found = _FROM.search(folder.name)
    return int(found[1]) if found else 0


def _option(argv: list[str], name: str) -> str:
    return argv[argv.index(f"--{name}") + 1]


def _with(argv: list[str], **options: object) -> list[str]:
    """A command line with values of options replaced."""
    changed = list(argv)
    for name, value in options.items():
        changed[changed.index(f"--{name}") + 1] = str(value)
    return changed
