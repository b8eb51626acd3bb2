"""`lorapod start` without a terminal: it never waits, and goes from answers to a LoRA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.openai_server import FakeOpenAI
from start.helpers import folder_of

Call = Callable[..., subprocess.CompletedProcess[str]]
_KEYS = ("HF_TOKEN", "GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL")


@pytest.fixture
def call(tmp_path: Path) -> Call:
    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(tmp_path / "w"), "start", *map(str, words)]
        own = {name: value for name, value in os.environ.items() if name not in _KEYS}
        own |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=own, timeout=300)

    return run


def test_without_a_terminal_it_does_not_wait_and_says_what_to_give(call: Call, tmp_path: Path) -> None:
    ended = call()
    assert ended.returncode == 2 and "--yes" in ended.stderr and "--answers" in ended.stderr
    assert not (tmp_path / "w").exists()


def test_from_answers_in_a_file_to_a_lora_on_the_demo_model(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "answers.toml"
    file.write_text('model = "demo"\ndata = ["demo"]\nsteps = 9\n')
    ended = call("--answers", file, "--yes", "--steps", "2", "--name", "mine", "--trigger", "momo")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 steps (usual: 1000)" in ended.stdout
    lora = re.search(r"^LoRA +(\S+)$", ended.stdout, re.MULTILINE)
    assert lora and Path(lora[1]).is_file() and Path(lora[1]).name == "mine.safetensors"
    assert f"The same again: lorapod train {tmp_path / 'w/recipes/mine.toml'}" in ended.stdout
    assert not (tmp_path / "w/start.toml").exists()  # a script leaves no half-done session behind


def test_captions_are_written_and_reviewed_before_training(call: Call, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", 6)
    (folder / "05.png").write_bytes(b"no picture")
    with FakeOpenAI() as service:
        ended = call("--yes", "--data", folder, "--captioner", "openai", "--trigger", "zorb", "--steps", "1",
                     OPENAI_BASE_URL=service.url, OPENAI_API_KEY="sk-secret")  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Captions, as they will be trained" in ended.stdout and "00.png: zorb, a plain square" in ended.stdout
    assert "sk-secret" not in ended.stdout + ended.stderr
    assert len(list(folder.glob("*.txt"))) == 5
    assert "5 of 6 can be trained on; the other is left out" in ended.stdout and "05.png" in ended.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "sdxxl"], "did you mean sdxl?"),
        (["--data", "/nowhere"], "There is no folder /nowhere"),
        (["--goal", "fame"], "There is no goal"),
        (["--trainer", "musubi"], "cannot train"),
        (["--model", "flux-dev"], "HF_TOKEN is needed"),
        (["--answers", "/nowhere.toml"], "cannot be read"),
        (["--model", "sdxl"], "A folder is needed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(call: Call, words: list[str], said: str) -> None:
    ended = call("--yes", *words)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr
