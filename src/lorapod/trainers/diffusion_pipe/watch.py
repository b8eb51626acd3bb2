"""Following a process of diffusion-pipe: its clean way to stop, its checkpoints and LoRA files as they come, its failures.

Facts: `train.py`, `utils/saver.py`. It looks for the file `save_quit` in its run folder after each step, writes a checkpoint
and ends with status 0; while it caches, loads or evaluates it does not look, and there is nothing to save either.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from lorapod.errors import AdapterError, DatasetError, LorapodError, StageFailedError
from lorapod.events import Event, event
from lorapod.files import is_whole_safetensors
from lorapod.trainers.base import Ending
from lorapod.trainers.collect import collect_lora
from lorapod.trainers.dialect import Followed
from lorapod.trainers.diffusion_pipe.interface import interface
from lorapod.trainers.diffusion_pipe.parse import Reader
from lorapod.trainers.diffusion_pipe.render import CACHE
from lorapod.trainers.external import OUTPUT, stage_is_done
from lorapod.trainers.failures import Rule
from lorapod.trainers.follow import ProcessWatch
from lorapod.trainers.tensorboard import EventFile
from lorapod.trainers.tracebacks import Raised, Tracebacks

_FILES = ("adapter_model.safetensors", "lora.safetensors", "pytorch_lora_weights.safetensors")
_SAVED = re.compile(r"(epoch|step)(\d+)")
_CHECKPOINT = re.compile(r"global_step(\d+)")


def _no_items(stage: str, raised: Raised) -> LorapodError:
    return DatasetError(
        "diffusion-pipe found nothing to train on",
        raised.said[:300],
        "Lower the batch size or accumulation, raise `repeats`, or look whether the files of the dataset were moved.",
    )


def _pictures(stage: str, raised: Raised) -> LorapodError:
    return DatasetError(
        "The base model trains on clips alone, and a picture is among the data", raised.said[:300], "Take it out."
    )


def _no_checkpoint(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        "There is no checkpoint to go on with", str(raised), "Start a new run; LoRA files of this one are whole."
    )


def _weights(stage: str, raised: Raised) -> LorapodError:
    return StageFailedError(
        "The base model's weights cannot be trained on",
        raised.said[:300],
        "Fetch them again with `lorapod models pull`; scaled fp8 files are of no use here.",
    )


_RULES = (
    Rule(r"RuntimeError", r"Processed dataset was empty", _no_items),
    Rule(r"AssertionError", r"had no images/videos", _no_items),
    Rule(r"RuntimeError", r"Invalid path", _no_items),
    Rule(r"AssertionError", r"must train on videos", _pictures),
    Rule(r"AssertionError", r"load_path is not None", _no_checkpoint),
    Rule(r"ValueError", r"fp8_scaled weights", _weights),
    Rule(r"RuntimeError", r"Could not autodetect model variant|Unknown model_type", _weights),
)


class DiffusionPipeWatch(ProcessWatch):
    """Follows one stage."""

    rules = _RULES

    def __init__(self, followed: Followed) -> None:
        super().__init__(followed)
        self.reader = Reader(followed.stage, self.total, followed.recipe.optimizer.learning_rate)
        suffix = followed.stage.partition("-")[2]
        self.suffix = f"-{suffix}" if suffix else ""
        output = followed.run_dir / OUTPUT
        self.output = output / suffix if suffix else output
        self._there_before = set(self._checkpoints())
        self._collected: dict[str, Path] = {}
        self._refused: set[str] = set()
        self._losses: EventFile | None = None
        for signal_file in self.output.glob("*/save_quit"):  # of a stop that a process did not live to heed
            with contextlib.suppress(OSError):
                signal_file.unlink()

    @property
    def tracebacks(self) -> Tracebacks:
        return self.reader.tracebacks

    @property
    def folder(self) -> Path | None:
        """The run folder of diffusion-pipe; its name is a time, so the last one is the newest."""
        folders = sorted(each for each in self.output.glob("*_*") if each.is_dir())
        return folders[-1] if folders else None

    def events_of(self, text: str) -> list[Event]:
        found = self.reader.read(text)
        if self.reader.loss_broke is not None and self.doom is None:
            self.break_off(self.reader.loss_broke)
        return found

    def tick(self) -> list[Event]:
        return [*super().tick(), *self._new_losses(), *self._new_checkpoints(), *self._new_loras()]

    def last_events(self) -> list[Event]:
        return [*self._new_losses(), *self._new_checkpoints(), *self._new_loras()]

    def ask_to_stop(self) -> bool:
        folder = self.folder
        if not self.reader.step or folder is None or self.followed.stage == CACHE:
            return False
        try:
            (folder / "save_quit").touch()
        except OSError:
            return False
        return True

    def real_code(self, code: int) -> int:
        return self.reader.return_code if self.reader.return_code not in (None, 0) else code

    def stopped(self, code: int, forced: bool) -> Ending:
        events = self.last_events()
        if self.reader.complete and code == 0:
            return self.finished()
        if self.reader.step and not self.reader.quit:
            events.append(
                event(
                    "warning",
                    message=f"{self.followed.stage} was ended without a checkpoint",
                    hint="What it saved before is kept; a resume goes on from its last checkpoint.",
                )
            )
        return Ending("stopped", events)

    def finished(self) -> Ending:
        if self.followed.stage == CACHE:
            if self.tracebacks.seen and not self.reader.complete:
                return self.untrained()
            return Ending("done")
        if self.reader.quit:
            return Ending("stopped", self.last_events())
        if not self.reader.complete:
            return self.untrained("It ended with status 0 before it said that the training is complete.")
        events = self.last_events()
        try:
            events += self._final_lora()
        except LorapodError as error:
            return Ending("failed", events, error)
        stage_is_done(self.followed.run_dir, self.followed.stage, self.followed.recipe)
        return Ending("done", events)

    def _checkpoints(self) -> dict[Path, int]:
        """Whole checkpoints by their step: those up to the one that `latest` names, which is written after it."""
        found = {}
        for latest in self.output.glob("*/latest"):
            try:
                newest = _CHECKPOINT.fullmatch(latest.read_text(encoding="utf-8").strip())
            except OSError:
                continue
            for folder in latest.parent.glob("global_step*"):
                match = _CHECKPOINT.fullmatch(folder.name)
                if match and newest and int(match[1]) <= int(newest[1]):
                    found[folder] = int(match[1])
        return found

    def _new_checkpoints(self) -> list[Event]:
        events = []
        for folder, step in sorted(self._checkpoints().items(), key=lambda each: each[1]):
            if folder not in self._there_before:
                self._there_before.add(folder)
                events.append(event("checkpoint", step=step, path=str(folder.relative_to(self.followed.run_dir))))
        return events

    def _saved(self) -> dict[str, tuple[int, Path]]:
        """Whole LoRA files of diffusion-pipe by the name of their folder, with the steps that they are of.

        A folder is whole when its `tmp` is gone, which is removed last, after the configuration was copied beside it.
        """
        folder = self.folder
        found: dict[str, tuple[int, Path]] = {}
        for place in folder.iterdir() if folder else ():
            match = _SAVED.fullmatch(place.name)
            if not match or (place / "tmp").exists() or not any(place.glob("*.toml")):
                continue
            file = next((place / name for name in _FILES if is_whole_safetensors(place / name)), None)
            if file is None:
                continue
            of_epoch = int(self.followed.state.get("steps_per_epoch") or 0)
            step = int(match[2]) if match[1] == "step" else self.reader.saved.get(place.name, int(match[2]) * of_epoch)
            found[place.name] = (step, file)
        return found

    def _new_loras(self) -> list[Event]:
        events = []
        for name, (step, file) in sorted(self._saved().items(), key=lambda each: each[1][0]):
            if name in self._collected or name in self._refused or not step:
                continue
            target = self._target(f"-step{step:06d}")
            if not target.exists():
                try:
                    self._collect(file, target, step)
                except AdapterError as error:
                    self._refused.add(name)
                    events.append(event("warning", message=error.what, hint=error.to_hint()))
                    continue
                events.append(self._lora_event(target, step))
            self._collected[name] = target
        return events

    def _final_lora(self) -> list[Event]:
        """The last file under the LoRA's own name.

        Raises:
            LorapodError: There is none, or it is of no use.
        """
        saved = sorted(self._saved().values())
        if not saved:
            raise StageFailedError(
                "diffusion-pipe says that it is done, yet left no LoRA file",
                f"It is looked for in {self.folder}.",
                "Look into log.txt.",
            )
        step, file = saved[-1]
        target = self._target("")
        among = self._target(f"-step{step:06d}")
        if among.exists():
            among.replace(target)
        else:
            self._collect(file, target, step)
        return [self._lora_event(target, step)]

    def _collect(self, file: Path, target: Path, step: int) -> None:
        followed = self.followed
        collect_lora(
            file,
            target,
            followed.recipe,
            followed.entry,
            steps=step,
            items=int(followed.state.get("items", 0)),
            trainer="diffusion-pipe",
            commit=followed.commit or str(interface()["commit"]),
            base_model_hash=followed.base_model_hash,
        )

    def _target(self, more: str) -> Path:
        return self.followed.run_dir / "lora" / f"{self.followed.recipe.name}{self.suffix}{more}.safetensors"

    def _lora_event(self, target: Path, step: int) -> Event:
        path = str(target.relative_to(self.followed.run_dir))
        return event("lora", step=step, path=path, format="comfyui", base_model=self.followed.recipe.base_model.name)

    def _new_losses(self) -> list[Event]:
        """Losses on held-out items, which stand in the TensorBoard file alone."""
        folder = self.folder
        if folder is None:
            return []
        newest = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.name)
        if not newest:
            return []
        if self._losses is None or self._losses.path != newest[-1]:
            self._losses = EventFile(newest[-1])
        return [
            event("eval", step=scalar.step, loss=scalar.value, dataset=scalar.tag.removesuffix("/loss"))
            for scalar in self._losses.new()
            if scalar.tag.endswith("/loss") and not scalar.tag.startswith("train/")
        ]


__all__ = ["DiffusionPipeWatch"]
