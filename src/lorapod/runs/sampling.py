"""Sampling with a finished LoRA: a request to the engine, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from lorapod import recipe as recipes
from lorapod.errors import AdapterError, RunError, StageFailedError
from lorapod.lora_file import inspect
from lorapod.recipe import Recipe
from lorapod.runs.folder import RunFolder, find_run
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
) -> Path:
    """Draws a grid of `prompts` by `strengths`; prompts and seeds default to those of the LoRA's recipe.

    Args:
        first_frames: Pictures that clips begin with, taken in turn by the prompts, where the base model takes them.
        controls: Pictures that are edited, likewise.

    Raises:
        RunError: Neither a file nor a run, or the run has no LoRA yet.
        AdapterError: The file does not hold the recipe that it was trained with.
        StageFailedError: The engine failed; the message is its own.
    """
    file = Path(lora).expanduser()
    if not (file.is_file() and file.suffix == ".safetensors"):
        file = newest_lora(find_run(lora, workspace))
    with tempfile.TemporaryDirectory(prefix="lorapod-sample-") as folder:
        recipe_file = Path(folder) / "recipe.toml"
        recipe = _recipe_of(file, recipe_file)
        target = (out or file.with_name(f"{file.stem}-grid.png")).expanduser().resolve()
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
        stage = trainer.sample_stage(request_file, workspace)
        ended = subprocess.run(
            stage.argv, env=stage.env, cwd=stage.cwd, capture_output=True, text=True, errors="replace", check=False
        )
    if ended.returncode != 0:
        watch = trainer.watch(stage)
        errors = [e for line in ended.stdout.split("\n") for e in watch.read(line) if e["type"] == "error"]
        if errors:
            raise StageFailedError(errors[-1]["message"], errors[-1].get("hint", ""))
        raise StageFailedError("Sampling failed", "\n".join(ended.stderr.strip().splitlines()[-3:]), "")
    return target


def newest_lora(run: RunFolder) -> Path:
    """The last LoRA file that a run wrote.

    Raises:
        RunError: It has none yet.
    """
    files = sorted(run.lora.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
    if not files:
        raise RunError(
            f"The run {run.id} has no LoRA file yet",
            "It writes one at the end, or every `saving.lora_every` steps.",
            "Wait, or look at the previews.",
        )
    return files[-1]


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
