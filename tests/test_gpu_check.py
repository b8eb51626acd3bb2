"""Training on a GPU that is not there: every kind of denoiser does it right, and what is done wrong is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
import pretend_gpu  # noqa: E402

pytestmark = pytest.mark.skipif(bool(pretend_gpu.why_not()), reason=pretend_gpu.why_not())

SPOILT = """
import json, sys, tempfile
from pathlib import Path
from unittest import mock
sys.path.insert(0, sys.argv[1])
import pretend_gpu
pretend_gpu.begin()
import gpu_check, torch
from lorapod.engine import step, streaming
from pretend_gpu import watch

right, weighted = "lorapod.engine.", step.weighted_loss
spoilt = {
    "nothing": {},
    "a number is read": {right + "step.weighted_loss": lambda *given: weighted(*given) * weighted(*given).item()},
    "computes with the CPU's": {right + "step.weighted_loss": lambda *given: weighted(*given) + torch.zeros(2).sum(0, True)},
    "not page-locked": {right + "streaming.on_host": lambda value, device: value.to("cpu")},
    "not waited for": {right + "streaming.OnHost.arrive": lambda *given: None},
    "written too soon": {"pretend_gpu.watch.Stream.wait_stream": lambda *given: None},
    "let go too soon": {right + "streaming.StreamedBlocks.rest": lambda self: self.coming.clear()},
}
way = next(way for way in gpu_check.WAYS if str(way) == "full, 8 swapped")
found = {}
for name, changes in spoilt.items():
    with tempfile.TemporaryDirectory() as folder:
        patches = [mock.patch(*each) for each in changes.items()]
        for patch in patches:
            patch.start()
        cell = gpu_check.Cell("z-image", "64x64", compiled=False, checkpointing=False, tiny=True)
        found[name] = " ".join(gpu_check.check(cell, way, Path(folder)).wrong)
        for patch in patches:
            patch.stop()
print(json.dumps(found))
"""


def test_steps_and_previews_of_every_kind_of_denoiser_are_right() -> None:
    models = ["flux-kontext", "flux2-klein-4b", "qwen-image-edit", "sdxl", "wan2.1-i2v-14b"]
    command = [sys.executable, str(TOOLS / "gpu_check.py"), *models, "--way", "off", "selective, nf4, 8 swapped"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.endswith("15 looked at, 0 not right\n") and done.returncode == 0, done.stdout + done.stderr


def test_what_is_done_wrong_is_found() -> None:
    command = [sys.executable, "-c", SPOILT, str(TOOLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("nothing") == ""
    words = {
        "a number is read": "a number is read: lorapod/engine/step.py",
        "computes with the CPU's": "Expected all tensors to be on the same device",
        "not page-locked": "memory that is not page-locked: lorapod/engine/streaming.py",
        "not waited for": "does not wait for another stream",
        "written too soon": "aten.copy_.default does not wait for another stream: lorapod/engine/streaming.py",
        "let go too soon": "memory is given up while another stream works on it",
    }
    assert found.keys() == words.keys()
    for name, said in found.items():
        assert words[name] in said, name
