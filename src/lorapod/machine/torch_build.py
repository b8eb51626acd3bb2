"""Which torch is installed, and what it was built for; read from its files in a millisecond, without importing it.

`lorapod doctor` also asks torch itself, in a process of its own (`ask_torch`), which takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

_ASK_SECONDS = 120.0

_ARCHITECTURES: dict[tuple[int, int], tuple[int, ...]] = {
    (12, 6): (50, 60, 70, 75, 80, 86, 90),
    (12, 8): (70, 75, 80, 86, 90, 100, 120),
    (12, 9): (70, 75, 80, 86, 90, 100, 120),
    (13, 0): (75, 80, 86, 90, 100, 120),
    (13, 2): (75, 80, 86, 90, 100, 120),
}
"""CUDA of a torch wheel to the capabilities it has machine code for. Read from the default wheels of torch 2.9.1 to 2.15.0
(12.8, 13.0, 13.2) and from PyTorch's build scripts (12.6); 12.9 is taken to be as 12.8. Volta ended with CUDA 13, Blackwell
began with 12.8."""

DRIVER_FLOORS: dict[int, tuple[int, str]] = {12: (525, "525.60"), 13: (580, "580.65")}
"""Major CUDA version to the oldest Linux driver that runs it (NVIDIA's CUDA compatibility guide, minor-version
compatibility)."""


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch.

    Attributes:
        version: As in `2.11.0+cu128`.
        cuda: CUDA that it was built with, as (12, 8); None of a CPU build.
        architectures: Capabilities that it has machine code for, as 86; empty where that is not known.
    """

    version: str
    cuda: tuple[int, int] | None = None
    architectures: tuple[int, ...] = ()

    @property
    def shown(self) -> str:
        """Version and CUDA for a person, as in `2.10.0 for CUDA 12.8`."""
        return f"{self.version} for {f'CUDA {self.cuda[0]}.{self.cuda[1]}' if self.cuda else 'processors only'}"

    def runs_on(self, capability: tuple[int, int] | None) -> bool:
        """Whether it has code for a GPU: machine code runs on later minor versions of the same major capability."""
        if not self.architectures or capability is None:
            return True
        return any(a // 10 == capability[0] and a % 10 <= capability[1] for a in self.architectures)


def find_torch() -> TorchBuild | None:
    """The torch that this Python would import; None if there is none."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return read_version_file(text)


def read_version_file(text: str) -> TorchBuild | None:
    """What torch's own `version.py` says; None if it names no version."""
    version = _assigned(text, "__version__")
    if version is None:
        return None
    cuda = re.fullmatch(r"(\d+)\.(\d+).*", _assigned(text, "cuda") or "")
    pair = (int(cuda[1]), int(cuda[2])) if cuda else None
    return TorchBuild(version, pair, _ARCHITECTURES.get(pair, ()) if pair else ())


def _assigned(text: str, name: str) -> str | None:
    """The string assigned to a name; comes with or without a type, and `None` for none."""
    found = re.search(rf"^{name}\s*(?::[^=\n]+)?=\s*(.+)$", text, re.MULTILINE)
    try:
        value = ast.literal_eval(found[1].strip()) if found else None
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


@dataclass(frozen=True)
class TorchAnswer:
    """What torch itself said.

    Attributes:
        works: Whether it multiplied two matrices on the GPU.
        device: Name of the GPU that it used.
        architectures: As compiled, as in `sm_86`.
        error: Its last words if it could not.
    """

    works: bool
    device: str = ""
    architectures: list[str] = field(default_factory=list)
    error: str = ""


_QUESTION = """
import json, sys
answer = {"works": False, "device": "", "architectures": [], "error": ""}
try:
    import torch
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: "")() or ""
    answer["architectures"] = flags.split()
    if torch.cuda.is_available():
        answer["device"] = torch.cuda.get_device_name(0)
        a = torch.ones(64, 64, device="cuda")
        answer["works"] = bool((a @ a)[0, 0].item() == 64)
    else:
        torch.zeros(1).to("cuda")
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
sys.stdout.write("\\n" + json.dumps(answer))
"""


def ask_torch() -> TorchAnswer:
    """Lets torch compute on the GPU in a process of its own, which takes seconds and a few hundred MB of GPU memory."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSTARTUP"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _QUESTION],
            capture_output=True, text=True, errors="replace", timeout=_ASK_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return TorchAnswer(False, error=f"torch did not answer within {_ASK_SECONDS:.0f} s")
    try:
        return TorchAnswer(**json.loads(done.stdout.rsplit("\n", 1)[-1]))
    except (ValueError, TypeError):
        words = (done.stderr or done.stdout).strip().splitlines()
        return TorchAnswer(False, error=words[-1] if words else f"torch ended with exit status {done.returncode}")
