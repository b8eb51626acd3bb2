"""What a person at a terminal sees of a run, and what Ctrl-C does there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lorapod import recipe as recipes
from lorapod.cli.progress import finish, watch
from lorapod.events import event
from lorapod.runs import RunFolder, state_of, supervisor_of
from lorapod.runs.folder import create_run
from lorapod.runs.journal import Journal
from lorapod.workspace import Workspace

DRIVER = Path(__file__).parents[1] / "fakes/supervise_stage.py"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def run(workspace: Workspace, recipe_file: Callable[..., Path]) -> RunFolder:
    return create_run(recipes.load(recipe_file()), workspace)


def start(run: RunFolder, workspace: Workspace, mode: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(DRIVER), str(run.path), str(workspace.root), mode]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 30
    while supervisor_of(run) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def press_ctrl_c(run: RunFolder, *pauses: float) -> None:
    """Sends this process a SIGINT after each pause, once the run makes steps."""

    def press() -> None:
        while state_of(run).step < 3:
            time.sleep(0.02)
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_ctrl_c_once_stops_with_a_checkpoint(run: RunFolder, workspace: Workspace) -> None:
    process, shown = start(run, workspace, "slow"), io.StringIO()
    press_ctrl_c(run, 0.1)
    assert watch(run, Console(file=shown)) == "stopped"
    process.wait(10)
    assert "Stopping after this step" in shown.getvalue()
    assert len(state_of(run).checkpoints) == 1


def test_ctrl_c_twice_in_a_row_stops_at_once_and_never_leaves_the_run_unwatched(
    run: RunFolder, workspace: Workspace
) -> None:
    process, shown = start(run, workspace, "stubborn"), io.StringIO()
    press_ctrl_c(run, 0.1, 0.01)
    assert watch(run, Console(file=shown)) == "stopped"
    process.wait(10)
    assert "Stopping at once" in shown.getvalue()


def test_what_happened_before_a_resume_is_not_told_again(run: RunFolder, workspace: Workspace) -> None:
    journal, shown = Journal(run), io.StringIO()
    journal.add(event("warning", message="an old tale", hint="") | {"t": time.time() - 3600})
    journal.close()
    process = start(run, workspace, "done")
    assert watch(run, Console(file=shown)) == "done"
    process.wait(10)
    assert "5/5" in shown.getvalue() and "an old tale" not in shown.getvalue()


def test_both_experts_are_told_of_with_their_losses_and_their_files(run: RunFolder) -> None:
    journal, shown = Journal(run), io.StringIO()
    journal.add(event("stage", name="train", index=1, count=1, total=8))
    for first, expert in ((0, "high"), (4, "low")):
        for step, when in ((first, "before"), (first + 2, None), (first + 4, "after")):
            journal.add(event("step", step=max(step, 1), total=8, loss=1.0, seconds=0.1))
            about = {"when": when} if when else {}
            journal.add(event("eval", step=step, loss=1 + step / 10, dataset=f"cats-{expert}", **about))
        journal.add(event("lora", step=first + 4, path=f"lora/m-{expert}.safetensors", format="comfyui", expert=expert))
        journal.add(
            event("lora", step=first + 4, path=f"lora/m-{expert}-kohya.safetensors", format="kohya", expert=expert)
        )
    journal.add(event("end", status="done", seconds=1.0))
    console = Console(file=shown, width=200)
    finish(run, watch(run, console), console)
    text = shown.getvalue()
    told = [line.strip() for line in text.splitlines() if "held-out" in line]
    assert told == [
        "held-out loss of cats-high before training: 1.0000", "held-out loss of cats-high after training: 1.4000",
        "held-out loss of cats-low before training: 1.4000", "held-out loss of cats-low after training: 1.8000",
    ]  # fmt: skip
    assert "m-high.safetensors" in text and "m-low.safetensors" in text and "kohya" not in text
    assert "copy both LoRAs" in text
