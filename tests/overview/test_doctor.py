"""`lorapod doctor` and `lorapod status`, as a person and as a program meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import gpus as fakes

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lorapod.cli.main", "--workspace", str(tmp_path / "w"), *words]
        own = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path / 'packages'}:{os.environ.get('PYTHONPATH', '')}",
            "HOME": str(tmp_path),
            "LORAPOD_RUNTIME": str(tmp_path / "run"),
            "COLUMNS": "80",
        }
        return subprocess.run(argv, env=own | environment, capture_output=True, text=True)

    return run


def torch_build(folder: Path, version: str, cuda: str | None, body: str = "") -> None:
    """A package named torch that says which build it is, as the real one's `version.py` does."""
    package = folder / "packages/torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(body or "raise ImportError('libcudart.so.12: cannot open shared object file')")
    (package / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def test_a_sound_machine_has_no_fault_and_everything_is_on_one_screen(call: Call, tmp_path: Path) -> None:
    fakes.smi(tmp_path / "bin", (fakes.RTX4090,))
    working = (
        "class cuda:\n is_available = staticmethod(lambda: True)\n get_device_name = staticmethod(lambda i: 'x')\n"
        "class _C: pass\n"
        "class M:\n def __matmul__(s, o): return s\n def __getitem__(s, i): return s\n def item(s): return 64\n"
        "def ones(*a, **k): return M()\n"
    )
    torch_build(tmp_path, "2.11.0+cu128", "12.8", working)
    found = json.loads(call("doctor", "--json").stdout)
    assert [one for one in found["findings"] if one["about"] in ("gpu", "torch")] == []
    shown = call("status", HF_TOKEN="hf_secret_value", CIVITAI_TOKEN="cv_secret_value")
    assert shown.returncode == 0
    for part in ("NVIDIA GeForce RTX 4090", "sm_89", "driver 570.86.15", "torch 2.11.0+cu128", "HF_TOKEN", "musubi"):
        assert part in shown.stdout
    assert "secret_value" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80 + len(str(tmp_path))
    assert not (tmp_path / "w").exists()  # a look makes nothing


@pytest.mark.parametrize("cuda", ["13.0", "12.6", None])
def test_each_fault_of_a_broken_machine_has_its_remedy_and_the_exit_code_says_so(
    call: Call, tmp_path: Path, cuda: str | None
) -> None:
    fakes.smi(tmp_path / "bin", (fakes.B200,), fakes.Driver("570.86.15", (12, 8)))
    torch_build(tmp_path, "2.13.0", cuda)
    done = call("doctor")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    expected = {
        "13.0": "too old for torch",
        "12.6": "has no code for the NVIDIA B200 (sm_100)",
        None: "cannot use a GPU",
    }
    assert expected[cuda] in said and "Traceback" not in said
    findings = json.loads(call("doctor", "--json").stdout)["findings"]
    assert all(one["remedy"] for one in findings)


def test_a_torch_that_breaks_on_the_gpu_is_found_by_asking_it(call: Call, tmp_path: Path) -> None:
    fakes.smi(tmp_path / "bin", (fakes.H100,))
    torch_build(tmp_path, "2.11.0+cu128", "12.8")
    said = " ".join(call("doctor").stdout.split())
    assert "torch cannot compute on the GPU" in said and "libcudart.so.12" in said
    assert "torch cannot compute" not in call("doctor", "--quick").stdout


def test_a_workspace_that_was_broken_is_told(call: Call, tmp_path: Path) -> None:
    records = tmp_path / "w/models/.store/records"
    records.mkdir(parents=True)
    (records / "sdxl.json").write_text("{ torn")
    gone = {"layout": "diffusers", "part": "vae", "target": "x", "size": 5, "key": "sha256:" + "a" * 64, "origin": "o"}
    record = {"model": "z-image", "pins": {}, "files": [gone]}
    (records / "z-image.json").write_text(json.dumps(record))
    (tmp_path / "w/training_outputs").write_text("a file")
    (tmp_path / "w/.env").write_text("HF_TOKEN=hf_abc\n")
    (tmp_path / "w/.env").chmod(0o644)
    done = call("doctor", "--json")
    assert done.returncode == 1
    whats = " | ".join(one["what"] for one in json.loads(done.stdout)["findings"])
    for part in ("sdxl.json", "z-image is not whole", "training_outputs is not a folder", ".env can be read"):
        assert part in whats


def test_keys_under_other_names_count(call: Call) -> None:
    found = json.loads(
        call("status", "--json", HUGGING_FACE_TOKEN="hf_x", civitai_token="c", GOOGLE_API_KEY="g").stdout
    )
    assert found["keys"] == {"HF_TOKEN": True, "CIVITAI_TOKEN": True, "GEMINI_API_KEY": True, "OPENAI_API_KEY": False}
    assert "hf_x" not in json.dumps(found)


def test_the_screen_is_plain_without_a_terminal_and_coloured_where_asked(call: Call) -> None:
    assert "\x1b[" not in call("doctor", TERM="dumb").stdout
    assert "\x1b[" in call("doctor", FORCE_COLOR="1").stdout
    assert "\x1b[3" not in call("doctor", FORCE_COLOR="1", NO_COLOR="1").stdout
