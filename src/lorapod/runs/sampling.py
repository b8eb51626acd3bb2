"""Sampling with a finished LoRA: a request to the engine, in a process of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.errors import AdapterError, RunError, StageFailedError
from lorapod.events import Event
from lorapod.files import refuse_to_overwrite
from lorapod.lora_file import inspect
from lorapod.recipe import Recipe
from lorapod.runs.folder import RunFolder, find_run
from lorapod.runs.journal import state_of
from lorapod.trainers.base import Stage
from lorapod.trainers.builtin import BuiltinTrainer
from lorapod.workspace import Workspace


def sample_grid(
    lora: str,
    workspace: Workspace,
    *,
    prompts: list[str] | None = None,
    strengths: list[float],
    seeds: list[int] | None = None,
    out: Path | None = None,
    first_frames: list[Path] | None = None,
    controls: list[Path] | None = None,
    told: Callable[[Event], None] = lambda event: None,
) -> Path:
    """Draws a grid of `prompts` by `strengths`; prompts and seeds default to those of the LoRA's recipe.

    Args:
        out: The PNG to write, a new one. None: beside the LoRA, numbered where grids of it are there.
        first_frames: Pictures that clips begin with, taken in turn by the prompts, where the base model takes them.
        controls: Pictures that are edited, likewise.
        told: Gets the engine's events as they come.

    Raises:
        RequestError: `out` is there already, or is no PNG.
        RunError: Neither a file nor a run, or the run has no LoRA yet.
        AdapterError: The file does not hold the recipe that it was trained with.
        StageFailedError: The engine failed; the message is its own.
    """
    if out is not None:
        refuse_to_overwrite(out.expanduser(), "--out", ".png")
    file = Path(lora).expanduser()
    if not (file.is_file() and file.suffix == ".safetensors"):
        file = newest_lora(find_run(lora, workspace))
    with tempfile.TemporaryDirectory(prefix="lorapod-sample-") as folder:
        recipe_file = Path(folder) / "recipe.toml"
        recipe = _recipe_of(file, recipe_file)
        target = (out or _new_grid(file)).expanduser().resolve()
        request = {
            "recipe": str(recipe_file),
            "lora": str(file.resolve()),
            "prompts": prompts or recipe.previews.prompts or [recipe.datasets[0].trigger_word or "a picture"],
            "seeds": seeds or recipe.previews.seeds,
            "strengths": strengths,
            "first_frames": [str(path.expanduser().resolve()) for path in first_frames or []],
            "controls": [str(path.expanduser().resolve()) for path in controls or []],
            "out": str(target),
        }
        request_file = Path(folder) / "request.json"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        trainer = BuiltinTrainer()
        workspace.root.mkdir(parents=True, exist_ok=True)
        _draw(trainer, trainer.sample_stage(request_file, workspace), Path(folder) / "stderr.txt", told)
    return target


def _draw(trainer: BuiltinTrainer, stage: Stage, said: Path, told: Callable[[Event], None]) -> None:
    """Runs the engine to its end, with what it says on stderr in the file `said`."""
    watch, error = trainer.watch(stage), None
    with (
        said.open("wb") as stderr,
        subprocess.Popen(
            stage.argv,
            env=stage.env,
            cwd=stage.cwd,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as engine,
    ):
        try:
            for line in engine.stdout or ():
                for event in watch.read(line.rstrip("\n")):
                    error = event if event["type"] == "error" else error
                    told(event)
        except BaseException:  # Ctrl-C above all: nothing goes on drawing unseen
            engine.kill()
            raise
    if engine.returncode == 0:
        return
    if error is not None:
        raise StageFailedError(error["message"], error.get("hint", ""))
    raise StageFailedError(
        "Sampling failed", "\n".join(said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
    )


def _new_grid(lora: Path) -> Path:
    """`NAME-grid.png` beside the LoRA, or the first of `NAME-grid-2.png` and on that is not there: none is drawn over."""
    names = itertools.chain([f"{lora.stem}-grid.png"], (f"{lora.stem}-grid-{n}.png" for n in itertools.count(2)))
    return next(path for name in names if not (path := lora.with_name(name)).exists())


def newest_lora(run: RunFolder) -> Path:
    """The last LoRA file that a run wrote; not what was made of one later and lies beside it.

    Raises:
        RunError: It has none yet.
    """
    written = [run.path / path for _, path in state_of(run).newest_loras.values()]
    files = [path for path in written if path.is_file()] or list(run.lora.glob("*.safetensors"))
    if not files:
        raise RunError(
            f"The run {run.id} has no LoRA file yet",
            "It writes one at the end, or every `saving.lora_every` steps.",
            "Wait, or look at the previews.",
        )
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def _recipe_of(file: Path, target: Path) -> Recipe:
    text = inspect(file).recipe
    if not text:
        raise AdapterError(
            f"{file.name} does not say what it was trained on",
            "It was not made by lorapod, so its base model is not known.",
            "Give a LoRA that lorapod trained.",
        )
    target.write_text(text, encoding="utf-8")
    return recipes.load(target, check_paths=False)
