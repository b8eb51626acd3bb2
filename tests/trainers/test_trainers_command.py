"""`lorapod trainers` with repositories and packages on this machine, and `lorapod recipe render`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes.external import with_model, with_trainer
from lorapod.cli.main import app
from lorapod.errors import LorapodError, RequestError, StageFailedError
from lorapod.recipe import TrainerName
from lorapod.trainers import installs, pins
from lorapod.workspace import Workspace


def run(workspace: Workspace, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["--workspace", str(workspace.root), *words])
    if isinstance(result.exception, LorapodError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def git(folder: Path, *words: str) -> str:
    given = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "protocol.file.allow=always", "-C", str(folder)]
    return subprocess.run([*given, *words], check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
    return folder


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a submodule in place of the trainer's own; a pin that needs no package."""
    repository(tmp_path / "mirror/owner/part", part__py="VALUE = 1\n")
    root = repository(tmp_path / "upstream", train__py="import part\n")
    git(root, "submodule", "add", "-q", str(tmp_path / "mirror/owner/part"), "submodules/part")
    git(root, "commit", "-qm", "with a part")
    pin = replace(
        pins.pin_of(TrainerName.DIFFUSION_PIPE),
        repository=str(root), commit=git(root, "rev-parse", "HEAD"), python=(3, 11),
        submodules={"submodules/part": "owner/part"},
        torch=(), requirements=(), smoke=("import sys; sys.path.insert(0, 'submodules/part'); import part",),
    )  # fmt: skip
    monkeypatch.setattr(installs, "pin_of", lambda name: pin)
    monkeypatch.setattr(pins, "pin_of", lambda name: pin)
    return root


def test_a_trainer_is_installed_at_its_commit_checked_and_removed(upstream: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    assert "not installed" in run(workspace, "trainers", "list")
    words = ["trainers", "install", "diffusion-pipe", "--mirror", str(tmp_path / "mirror"), "--python", sys.executable]
    output = run(workspace, *words)
    home = workspace.root / "trainers/diffusion-pipe/checkout"
    assert "installed at" in output and (home / "submodules/part/part.py").is_file()
    assert "can be started" in run(workspace, "trainers", "check", "diffusion-pipe")
    assert "is at" in run(workspace, "trainers", "update", "diffusion-pipe")
    (home / "submodules/part/part.py").write_text("raise ImportError('broken')\n")
    assert "broken" in run(workspace, "trainers", "check", "diffusion-pipe", code=1)
    assert "removed" in run(workspace, "trainers", "remove", "diffusion-pipe") and not home.exists()


def test_an_installation_that_was_broken_off_goes_on_where_it_was(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    words = ["trainers", "install", "diffusion-pipe", "--python", sys.executable, "--mirror"]
    with pytest.raises(StageFailedError) as caught:
        run(workspace, *words, str(tmp_path / "nowhere"))
    assert "fetching what the sources need" in caught.value.what and "install.log" in caught.value.remedy
    with pytest.raises(RequestError) as broken:
        installs.find_installation(TrainerName.DIFFUSION_PIPE, workspace)
    assert "cloned, checked out" in broken.value.why
    output = run(workspace, *words, str(tmp_path / "mirror"))
    assert "fetching the sources" not in output and "installed at" in output


def test_a_checkout_of_ones_own_is_used_and_never_removed(upstream: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(RequestError, match=r"train\.py|no checkout"):
        run(workspace, "trainers", "install", "diffusion-pipe", "--use", str(tmp_path))
    run(workspace, "trainers", "install", "diffusion-pipe", "--use", str(upstream), "--python", sys.executable)
    assert "your own" in run(workspace, "trainers", "list")
    with pytest.raises(RequestError, match="not installed by lorapod"):
        run(workspace, "trainers", "update", "diffusion-pipe")
    run(workspace, "trainers", "remove", "diffusion-pipe")
    assert (upstream / "train.py").is_file()


@pytest.fixture
def recipe(tmp_path: Path, pictures: Callable[..., Path]) -> Path:
    pictures("pictures", 6)
    path = tmp_path / "recipe.toml"
    path.write_text(
        "name = 'x'\n[base_model]\nname = 'sdxl'\n[training]\nepochs = 3\n"
        "[[datasets]]\npath = 'pictures'\nresolutions = [64]\n"
    )
    return path


def test_a_recipe_is_rendered_with_nothing_on_this_machine(recipe: Path, tmp_path: Path) -> None:
    workspace, out = Workspace(tmp_path / "ws"), tmp_path / "out"
    words = ["recipe", "render", str(recipe), "--trainer", "diffusion-pipe", "--out", str(out)]
    with pytest.raises(RequestError, match="not installed"):
        run(workspace, *words)
    run(workspace, *words, "--assume-files")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["01-cache.command.json", "02-train.command.json", "dataset.toml", "main.toml"]
    command = json.loads((out / "02-train.command.json").read_text())
    assert command["cwd"].endswith("trainers/diffusion-pipe/checkout") and str(out / "main.toml") in command["argv"]
    with pytest.raises(LorapodError, match="not empty"):
        run(workspace, *words, "--assume-files")
    with pytest.raises(LorapodError, match="musubi"):
        run(workspace, *words[:4], "musubi", "--out", str(tmp_path / "o"), "--assume-files")


def test_a_recipe_is_rendered_with_its_data_so_that_its_commands_can_be_run_by_hand(
    recipe: Path, tmp_path: Path
) -> None:
    workspace, out = Workspace(tmp_path / "ws"), tmp_path / "out"
    with_model(workspace, "sdxl")
    with_trainer(workspace)
    run(workspace, "recipe", "render", str(recipe), "--trainer", "diffusion-pipe", "--out", str(out))
    for name in ("01-cache", "02-train"):
        command = json.loads((out / f"{name}.command.json").read_text())
        subprocess.run(command["argv"], cwd=command["cwd"], check=True, capture_output=True)
    assert list((out / "output").glob("*/epoch3/adapter_model.safetensors"))
