"""The command line as a person uses it, in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def lorapod(workspace: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(workspace), *map(str, arguments)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)

    return call


def start_on_a_terminal(workspace: Path, *arguments: str) -> tuple[int, int]:
    """Starts lorapod on a pseudo-terminal of its own; returns its process id and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"})
        os.execv(sys.executable, [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(workspace), *arguments])
    return pid, terminal


def read_until(terminal: int, words: str, seconds: float = 120) -> str:
    seen, deadline = "", time.monotonic() + seconds
    while words not in seen:
        assert time.monotonic() < deadline, f"{words!r} was not shown:\n{seen[-2000:]}"
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                seen += os.read(terminal, 1 << 16).decode("utf-8", errors="replace")
            except OSError:
                break
    return seen


def test_help_does_not_import_torch_and_names_every_command() -> None:
    code = (
        "import sys\nsys.argv = ['lorapod', '--help']\nfrom lorapod.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted({'torch', 'diffusers', 'transformers', 'peft', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in shown
    for command in ("demo", "train", "recipe", "dataset", "runs", "sample", "lora"):
        assert f"  {command} " in shown


@pytest.mark.parametrize("wanted", [["--workspace", "{}"], ["--workspace={}", "--debug"]])
def test_the_options_of_all_commands_may_stand_after_the_command(tmp_path: Path, wanted: list[str]) -> None:
    words = ["runs", "list", *(word.format(tmp_path / "elsewhere") for word in wanted)]
    ended = subprocess.run([sys.executable, "-m", "lorapod", *words], capture_output=True, text=True, check=True)
    assert str(tmp_path / "elsewhere") in ended.stdout


def test_from_a_folder_of_pictures_to_a_lora_and_a_grid(
    lorapod: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], workspace: Path
) -> None:
    recipe = recipe_file()
    assert lorapod("recipe", "check", recipe).returncode == 0
    done = lorapod("train", recipe, "--set", "training.steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    lora = next(Path(line.split(None, 1)[1]) for line in done.stdout.splitlines() if line.startswith("LoRA"))
    assert lora.is_file()
    report = next(Path(line.split(None, 1)[1]) for line in done.stdout.splitlines() if line.startswith("Report"))
    assert "<svg" in report.read_text(encoding="utf-8")
    (row,) = json.loads(lorapod("runs", "list", "--json").stdout)
    assert (row["status"], row["step"], row["total"]) == ("done", 3, 3)
    inspected = lorapod("lora", "inspect", lora)
    assert inspected.returncode == 0 and "zorb" in inspected.stdout
    smaller = lorapod("lora", "resize", lora, "--rank", "1")
    assert smaller.returncode == 0 and lora.with_name("zorb-rank1.safetensors").is_file()
    assert lorapod("lora", "inspect", "zorb").stdout == inspected.stdout  # what the run wrote, not what was made of it
    grid = lorapod("sample", "zorb", "--strength", "0", "--strength", "1")
    assert grid.returncode == 0, grid.stderr
    assert "2 of 2 strengths" in grid.stderr
    drawn = next(workspace.rglob("zorb-grid.png"))
    before = drawn.read_bytes()
    refused = lorapod("sample", "zorb", "--out", drawn)
    assert refused.returncode == 2 and "is there already" in refused.stderr
    again = lorapod("sample", lora, "--strength", "0", "--prompt", "a red house")
    assert again.returncode == 0 and "zorb-grid-2.png" in again.stdout
    assert drawn.read_bytes() == before


def test_ctrl_c_stops_with_a_checkpoint_and_resume_goes_on(
    lorapod: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], workspace: Path
) -> None:
    recipe = recipe_file()
    pid, terminal = start_on_a_terminal(workspace, "train", str(recipe), "--set", "training.steps=400")
    read_until(terminal, "s/step")
    os.write(terminal, b"\x03")
    shown = read_until(terminal, "lorapod train --resume")
    assert "with a checkpoint" in shown
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    (row,) = json.loads(lorapod("runs", "list", "--json").stdout)
    assert row["status"] == "stopped" and 0 < row["step"] < 400
    target = str(row["step"] + 3)
    done = lorapod("train", recipe, "--resume", "--set", f"training.steps={target}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Going on from step {row['step']}" in done.stdout
    (row,) = json.loads(lorapod("runs", "list", "--json").stdout)
    assert (row["status"], str(row["step"])) == ("done", target)


def test_closing_the_terminal_leaves_the_run_going(
    lorapod: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], workspace: Path
) -> None:
    pid, terminal = start_on_a_terminal(workspace, "train", str(recipe_file()), "--set", "training.steps=5000")
    read_until(terminal, "s/step")
    os.close(terminal)
    os.kill(pid, signal.SIGHUP)
    os.waitpid(pid, 0)
    before = json.loads(lorapod("runs", "show", "--json").stdout)
    assert before["status"] == "running"
    time.sleep(1)
    assert json.loads(lorapod("runs", "show", "--json").stdout)["step"] > before["step"]
    assert lorapod("runs", "stop").returncode == 0
    deadline = time.monotonic() + 60
    while json.loads(lorapod("runs", "show", "--json").stdout)["status"] == "running":
        assert time.monotonic() < deadline


def test_resuming_with_another_recipe_names_what_differs(
    lorapod: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path]
) -> None:
    recipe = recipe_file()
    assert lorapod("train", recipe).returncode == 0
    refused = lorapod("train", recipe, "--resume", "--set", "adapter.rank=8")
    assert refused.returncode == 2 and "adapter.rank" in refused.stderr
    finished = lorapod("train", recipe, "--resume")
    assert finished.returncode == 2 and "is done" in finished.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("adapter.rnk=4", "rank"),
        ("training.steps=many", "training.steps"),
        ("base_model.name=z-image-turbo", "lorapod models pull z-image-turbo"),
        ("datasets.0.path=/nowhere/at/all", "/nowhere/at/all"),
        ("trainer=musubi", "demo"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(
    lorapod: Callable[..., subprocess.CompletedProcess[str]],
    recipe_file: Callable[..., Path],
    workspace: Path,
    change: str,
    words: str,
) -> None:
    refused = lorapod("train", recipe_file(), "--set", change)
    assert refused.returncode == 2
    assert words in refused.stderr and "Traceback" not in refused.stderr
    assert not list(workspace.glob("training_outputs/*/*"))


def test_pictures_that_cannot_be_used_fail_the_run_by_name(
    lorapod: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file()
    (tmp_path / "pictures/empty.png").write_bytes(b"")
    (tmp_path / "pictures/pictures-1.txt").write_bytes(b"caf\xe9")
    failed = lorapod("train", recipe)
    assert failed.returncode == 1
    assert "empty.png" in failed.stdout and "pictures-1.txt" in failed.stdout
