"""The whole family matrix on tiny models: train 3 steps, go on from a checkpoint, write every key layout, load each back here
and in diffusers, draw a preview.

    python tools/family_matrix.py [FAMILY ...] [--kind lora] [--write FILE] [--keep FOLDER]

A row is a base model (all of them without arguments), a column what was done with it, a cell the seconds that it took or
why it failed. Models that make clips of text learn pictures and clips together, and draw a clip, whose frames are a picture
too; `--keep` keeps what was drawn and written. Everything runs in this process through the code that a run's stages run; the tiny models are those of the
tests. What "loads back" means: the held-out loss with the file on a fresh base model is that of the trained one.
Exit code 1 where a cell failed. Goal: all rows in under 3 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/engine"), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from lorapod import recipe as recipes  # noqa: E402
from lorapod.engine import adapter_files  # noqa: E402
from lorapod.engine.job import Job  # noqa: E402
from lorapod.engine.prepare import prepare  # noqa: E402
from lorapod.engine.train import Training  # noqa: E402
from lorapod.errors import LorapodError  # noqa: E402
from lorapod.workspace import Workspace  # noqa: E402

LIKE = 2e-4
"""Largest relative difference of losses that counts as the same."""

Builder = Callable[[Path], Path]


def rows() -> dict[str, tuple[str, Builder]]:
    """Base models by name: the family, and what writes it."""
    import picture_models
    import wan_made
    from z_image_made import build_tiny_z_image

    def wan(kind: str) -> Builder:
        return lambda folder: wan_made.build(folder, kind)

    found: dict[str, tuple[str, Builder]] = {
        "Z-Image": ("z_image", build_tiny_z_image),
        "SDXL": ("sdxl", picture_models.build_sdxl),
        "FLUX.1": ("flux", picture_models.build_flux),
        "FLUX.1 Kontext": ("flux", picture_models.build_kontext),
        "FLUX.2 klein": ("flux2", picture_models.build_flux2),
        "Qwen-Image": ("qwen_image", picture_models.build_qwen_image),
        "Qwen-Image-Edit": ("qwen_image", picture_models.build_qwen_edit),
    }
    return found | {f"Wan {kind}": ("wan", wan(kind)) for kind in wan_made.DENOISERS}


@dataclass
class Row:
    """What was done with one base model, in seconds; a string says why it failed."""

    name: str
    cells: dict[str, float | str] = field(default_factory=dict)

    @contextlib.contextmanager
    def cell(self, column: str) -> Any:
        began = time.perf_counter()
        try:
            yield
        except (LorapodError, AssertionError, RuntimeError, ValueError, KeyError) as error:
            self.cells[column] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            self.cells[column] = time.perf_counter() - began

    @property
    def failed(self) -> bool:
        return any(isinstance(cell, str) for cell in self.cells.values())


def dataset(folder: Path, kinds: str) -> Path:
    """Four small items with captions: a letter each, `p` for a picture, `e` for an edited one, `c` for a clip."""
    from data.clips_made import make_clip

    folder.mkdir()
    for i, kind in enumerate(kinds):
        if kind == "c":
            make_clip(folder / f"{i}.mp4", 10 + i, fps=16, size=(64, 64))
        else:
            Image.new("RGB", (64, 64), (60 * i, 120, 200 - 60 * i)).save(folder / f"{i}.png")
        if kind == "e":
            controls_of(folder).mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), (120, 200 - 60 * i, 60 * i)).save(controls_of(folder) / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"zorb number {i}", encoding="utf-8")
    return folder


def controls_of(data: Path) -> Path:
    """Folder of the control pictures of a dataset, where it has any."""
    return data.with_name("control")


def recipe_for(run: Path, model: Path, data: Path, kind: str, formats: list[str], frames: int) -> None:
    text = (
        f"name = 'zorb'\n[base_model]\nname = '{model}'\n"
        f"[[datasets]]\npath = '{data}'\nresolutions = [64]\nframes = [9]\nvalidation_share = 0.25\n"
        + (f"control = '{controls_of(data)}'\n" if controls_of(data).is_dir() else "")
        + "[training]\nsteps = 3\nbatch_size = 2\nprecision = 'fp32'\nseed = 1\n"
        f"[adapter]\nkind = '{kind}'\nrank = 4\n[optimizer]\nlearning_rate = 0.02\nwarmup_steps = 1\n"
        "[evaluation]\nevery = 0\nquantiles = 2\n"
        f"[previews]\nprompts = ['zorb']\nwidth = 64\nheight = 64\nframes = {frames}\nsteps = 2\nevery = 0\nat_start = false\n"
        f"guidance = 2.0\n[saving]\ncheckpoint_every = 1\nkeep_checkpoints = 9\nprecision = 'fp32'\nformats = {formats}\n"
    )
    run.mkdir(parents=True)
    (run / "given.toml").write_text(text, encoding="utf-8")
    (run / "recipe.toml").write_text(recipes.dumps(recipes.load(run / "given.toml")), encoding="utf-8")


def trained(run: Path, workspace: Workspace, resume: bool = False) -> Training:
    job = Job(run, workspace)
    prepare(job, lambda: False)
    training = Training(job)
    assert training.run(resume, lambda: False), "it stopped"
    return training


def loss(training: Training, denoiser: torch.nn.Module) -> float:
    """The held-out loss."""
    assert training.evaluation.sets, "nothing is held out"
    return sum(training.evaluation.run(denoiser).values())


def matrix_row(name: str, family_name: str, build: Builder, folder: Path, kind: str) -> Row:
    """Does all of it with one base model."""
    from lorapod.engine.export import ONLY_LYCORIS
    from lorapod.engine.families import TakesControl, TakesFirstFrame, family_of
    from lorapod.models import BaseModel
    from lorapod.recipe.choices import AdapterKind, LoraFormat

    row = Row(name)
    model = build(folder / "model")
    family = family_of(BaseModel("tiny", family_name, model))
    formats = [f for f in family.formats if f is not LoraFormat.DIFFUSERS or AdapterKind(kind) not in ONLY_LYCORIS]
    needs_clips = isinstance(family, TakesFirstFrame) and family.first_frame == "needed"
    edits = isinstance(family, TakesControl)
    kinds = "cccc" if needs_clips else "eeee" if edits else "pppp" if family.fps is None else "ppcc"
    frames = 1 if family.fps is None else 9
    data, workspace, run = (
        dataset(folder / "data", kinds),
        Workspace(folder / "workspace"),
        folder / "workspace/runs/whole",
    )
    names = [f.value for f in formats]
    recipe_for(run, model, data, kind, names, frames)
    training: Training | None = None
    with row.cell("train + preview"):
        training = trained(run, workspace)
        pictures = list((run / "previews").glob("step-*.png"))
        assert pictures, "there is no preview"
        assert frames == 1 or list((run / "previews").glob("*.mp4")), "there is no clip"
    if training is None:
        return row
    expert = training.expert
    with row.cell("resume"):
        again = run.with_name("again")
        recipe_for(again, model, data, kind, names, frames)
        (again / "checkpoints").mkdir()
        kept = sorted((run / "checkpoints").glob("*.safetensors"))[-2]
        (again / "checkpoints" / kept.name).write_bytes(kept.read_bytes())
        trained(again, workspace, resume=True)
        own = expert.suffix  # one expert was finished before; its file is written once
        for file in sorted((run / "lora").glob(f"zorb{own}*.safetensors")):
            assert (again / "lora" / file.name).read_bytes() == file.read_bytes(), f"{file.name} differs"
    with row.cell("evaluate"):
        goal = loss(training, training.denoiser)
    for number, format in enumerate(formats):
        stem = f"zorb{expert.suffix}" + (f"-{format.value}" if number else "")
        file = run / f"lora/{stem}.safetensors"
        with row.cell(format.value):
            assert load_file(file), "the file is empty"
            fresh = family.load_denoiser(training.job.base, expert, training.job.device, training.job.dtype)
            before = loss(training, fresh)
            adapter_files.add_lora_file(fresh, family, file)
            assert abs(loss(training, fresh) - goal) <= LIKE * abs(goal), "the loss with the file is another"
            assert abs(before - goal) > LIKE * abs(goal), "the adapter changes nothing"
        # diffusers reads LyCORIS' kinds not at all, and of a DoRA the magnitude in its own layout alone.
        reads = AdapterKind(kind) not in ONLY_LYCORIS
        if reads and (AdapterKind(kind) is not AdapterKind.DORA or format is LoraFormat.DIFFUSERS):
            with row.cell(f"{format.value} in diffusers"):
                assert abs(_loss_in_diffusers(training, model, file) - goal) <= LIKE * abs(goal), "the loss is another"
    return row


def _loss_in_diffusers(training: Training, model: Path, file: Path) -> float:
    import picture_models

    pipe = picture_models.pipeline_of(model)
    second = {"load_into_transformer_2": True} if training.expert.component == "transformer_2" else {}
    pipe.load_lora_weights(file, **second)
    return loss(training, getattr(pipe, training.expert.component))


def text_of(found: list[Row], kind: str, seconds: float) -> str:
    """The matrix as Markdown."""
    columns = list(dict.fromkeys(column for row in found for column in row.cells))

    def shown(cell: float | str | None) -> str:
        return "" if cell is None else cell if isinstance(cell, str) else f"{cell:.1f}"

    lines = [
        f"# The family matrix: `{kind}` on tiny models",
        "",
        f"`python tools/family_matrix.py --kind {kind}` on {os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]},",
        f"Python {platform.python_version()}: {seconds:.0f} s in all. A cell is seconds; a name that is empty has no such layout.",
        "",
        "| base model | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    lines += [
        f"| {row.name} | " + " | ".join(shown(row.cells.get(column)) for column in columns) + " |" for row in found
    ]
    return "\n".join(lines) + "\n"


def run_matrix(chosen: list[str], kind: str, keep: Path | None = None) -> tuple[list[Row], float]:
    """The rows of the families in `chosen`, of all where it is empty, and the seconds of all together.

    Args:
        keep: Folder for the previews and LoRA files of each.
    """
    torch.set_num_threads(1)
    began, found = time.perf_counter(), []
    for name, (family, build) in rows().items():
        if chosen and family not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            found.append(matrix_row(name, family, build, Path(folder), kind))
            if keep is not None:
                for part in ("previews", "lora"):
                    made = Path(folder) / "workspace/runs/whole" / part
                    shutil.copytree(made, keep / name.replace(" ", "-").lower() / part, dirs_exist_ok=True)
    return found, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="of the rows; all without")
    parser.add_argument("--kind", default="lora", help="kind of adapter")
    parser.add_argument("--write", type=Path, help="file for the table")
    parser.add_argument("--keep", type=Path, help="folder for previews and LoRA files")
    given = parser.parse_args()
    with contextlib.redirect_stderr(io.StringIO()):
        found, seconds = run_matrix(given.families, given.kind, given.keep)
    text = text_of(found, given.kind, seconds)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    return int(any(row.failed for row in found))


if __name__ == "__main__":
    sys.exit(main())
