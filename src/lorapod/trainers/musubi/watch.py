"""Following a process of musubi-tuner: its states, LoRA files and previews as they come, its failures.

It has no way of its own to be asked to stop: what it did since its last state is lost, which is said. A resumed training
counts from 0 again, so that each start writes into a folder of its own, `output/from-000500`.
"""

from __future__ import annotations

import re
from pathlib import Path

from lorapod.errors import AdapterError, DatasetError, LorapodError
from lorapod.events import Event, event
from lorapod.files import is_whole_safetensors, write_text_whole
from lorapod.trainers.base import Ending
from lorapod.trainers.collect import collect_lora
from lorapod.trainers.dialect import Followed
from lorapod.trainers.external import OUTPUT, RENDERED, stage_is_done
from lorapod.trainers.failures import Rule
from lorapod.trainers.follow import ProcessWatch
from lorapod.trainers.musubi.interface import interface
from lorapod.trainers.musubi.parse import Reader
from lorapod.trainers.tracebacks import Raised, Tracebacks

_WHOLE_STATE = ("model.safetensors", "random_states_0.pkl")
_START = re.compile(r"from-(\d+)")
_SAVED = re.compile(r"-step(\d{8})|-(\d{6})|")
_PREVIEW = re.compile(r"_(?:e(?P<epoch>\d{6})|(?P<step>\d{6}))_(?P<number>\d{2,})_\d{14}(?:_\d+)+\.png")
"""Name of a preview: the epoch (0 before the first step) or the step, the line of the prompt file, the time, the seed where
there is one, and the number of the picture."""


def starts(output: Path) -> list[tuple[int, Path]]:
    """The folders of each start of a training with the step that it began at, first to last."""
    found = ((_START.fullmatch(folder.name), folder) for folder in output.glob("from-*"))
    return sorted((int(match[1]), folder) for match, folder in found if match)


def states(output: Path, name: str) -> list[tuple[int, Path]]:
    """Whole states of a training with the steps behind them, first to last. What is random is what they end with."""
    found = []
    for began, folder in starts(output):
        for state in folder.glob(f"{name}-step*-state"):
            number = state.name.removeprefix(f"{name}-step").removesuffix("-state")
            if number.isdigit() and all((state / each).is_file() for each in _WHOLE_STATE):
                found.append((began + int(number), state))
    return sorted(found)


def noted_total(rendered: Path, stage: str) -> int | None:
    """Steps that a stage said that it has when it began; None where it never did."""
    try:
        return int((rendered / f"{stage}.total").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _no_items(stage: str, raised: Raised) -> LorapodError:
    return DatasetError(
        "musubi-tuner found nothing to train on",
        raised.said[:300],
        "Look whether the files of the dataset were moved, and whether clips are long enough for `frames`.",
    )


_RULES = (Rule(r"ValueError", r"No training items found", _no_items),)


class MusubiWatch(ProcessWatch):
    """Follows one stage."""

    rules = _RULES

    def __init__(self, followed: Followed) -> None:
        super().__init__(followed)
        self.trains = followed.stage.startswith("train")
        self.suffix = followed.stage.removeprefix("train")
        self.output = followed.run_dir / OUTPUT
        began, rate = followed.resume.step if followed.resume else 0, followed.recipe.optimizer.learning_rate
        self.reader = Reader(followed.stage, began, rate)
        self._seen = {path for _, path in states(self.output, self._name)} | {path for _, path in self._previews()}
        self._refused: set[Path] = set()

    @property
    def tracebacks(self) -> Tracebacks:
        return self.reader.tracebacks

    def events_of(self, text: str) -> list[Event]:
        begun = self.reader.total is not None
        found = self.reader.read(text)
        if self.trains and not begun and self.reader.total is not None:
            path = self.followed.run_dir / RENDERED / f"{self.followed.stage}.total"
            write_text_whole(path, f"{self.reader.total}\n")
        if self.reader.loss_broke is not None and self.doom is None:
            self.break_off(self.reader.loss_broke)
        return found

    def tick(self) -> list[Event]:
        return [*super().tick(), *self._new_files()]

    def last_events(self) -> list[Event]:
        return [*self.reader.rest(), *self._new_files()]

    def _new_files(self) -> list[Event]:
        return [*self._new_states(), *self._new_loras(), *self._new_previews()] if self.trains else []

    def stopped(self, code: int, forced: bool) -> Ending:
        events = self.last_events()
        if self.trains and code == 0:
            return self.finished()
        kept = max((step for step, _ in states(self.output, self._name)), default=0)
        if self.reader.step > kept:
            message = f"musubi-tuner cannot be asked to save: {self.reader.step - kept} steps are lost"
            hint = f"A resume goes on from step {kept}; `saving.checkpoint_every` says how often it saves."
            events.append(event("warning", message=message, hint=hint))
        return Ending("stopped", events)

    def finished(self) -> Ending:
        if not self.trains:
            return Ending("done")
        events, target = self.last_events(), self._target("")
        if not target.exists():
            return self.untrained(f"It ended with status 0, yet left no LoRA file in {self.output}.")
        stage_is_done(self.followed.run_dir, self.followed.stage, self.followed.recipe)
        return Ending("done", events)

    @property
    def _name(self) -> str:
        return f"{self.followed.recipe.name}{self.suffix}"

    def _new_states(self) -> list[Event]:
        new = [each for each in states(self.output, self._name) if each[1] not in self._seen]
        self._seen.update(path for _, path in new)
        return [event("checkpoint", step=step, path=self._relative(path)) for step, path in new]

    def _new_loras(self) -> list[Event]:
        events = []
        for began, folder in starts(self.output):
            for path in sorted(folder.glob(f"{self._name}*.safetensors")):
                saved = _SAVED.fullmatch(path.stem.removeprefix(self._name))
                if saved is None or path in self._refused:
                    continue
                last = not (saved[1] or saved[2])
                step = began + int(saved[1]) if saved[1] else self.reader.step
                if last and self.reader.total is not None:
                    step = self.reader.total
                more = "" if last else f"-step{step:06d}" if saved[1] else f"-epoch{saved[2]}"
                target = self._target(more)
                if target.exists() or not is_whole_safetensors(path):
                    continue
                try:
                    self._collect(path, target, step)
                except AdapterError as error:
                    self._refused.add(path)
                    events.append(event("warning", message=error.what, hint=error.to_hint()))
                    continue
                model = self.followed.recipe.base_model.name
                events.append(event("lora", step=step, path=self._relative(target), format="comfyui", base_model=model))
        return events

    def _collect(self, path: Path, target: Path, step: int) -> None:
        followed = self.followed
        collect_lora(
            path,
            target,
            followed.recipe,
            followed.entry,
            steps=step,
            items=int(followed.state.get("items", 0)),
            trainer="musubi-tuner",
            commit=followed.commit or str(interface()["commit"]),
            base_model_hash=followed.base_model_hash,
            expert=self.suffix.removeprefix("-"),
        )

    def _previews(self) -> list[tuple[int, Path]]:
        """Previews with their steps. Where they come by steps, those at an epoch's end are drawn twice; once is told."""
        recipe, found = self.followed.recipe, []
        by_epochs = not recipe.previews.every and recipe.training.epochs is not None
        for began, folder in starts(self.output):
            for path in (folder / "sample").glob(f"{self._name}_*.png"):
                match = _PREVIEW.fullmatch(path.name.removeprefix(self._name))
                if match and match["step"]:
                    found.append((began + int(match["step"]), path))
                elif match and (int(match["epoch"]) == 0 or (by_epochs and not began)):
                    found.append((self.reader.step if int(match["epoch"]) else began, path))
        return sorted(found)

    def _new_previews(self) -> list[Event]:
        """Pictures that it drew. Of clips it writes MP4 files, which stay in its output."""
        events = []
        for step, path in self._previews():
            match = _PREVIEW.fullmatch(path.name.removeprefix(self._name))
            if path in self._seen or match is None:
                continue
            self._seen.add(path)
            previews = self.followed.recipe.previews
            prompt, seed = divmod(int(match["number"]), max(1, len(previews.seeds)))
            if prompt < len(previews.prompts):
                found = {"prompt": previews.prompts[prompt], "seed": previews.seeds[seed]}
                events.append(event("preview", step=step, path=self._relative(path), **found))
        return events

    def _target(self, more: str) -> Path:
        return self.followed.run_dir / "lora" / f"{self._name}{more}.safetensors"

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.followed.run_dir))


__all__ = ["MusubiWatch", "noted_total", "states"]
