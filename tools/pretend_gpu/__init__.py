"""A GPU that is not there: the engine runs on it with tensors that have shapes, types and the device `cuda`, and no numbers.

torch's FakeTensorMode computes shapes alone, so that models of full size fit anywhere, and refuses to mix devices. It needs
a build of torch that knows the device; `begin` gives a CPU build what it lacks (gpu.cpp), and `pretend_gpu.watch` looks at
what the engine does: what waits for the GPU, what memory is taken, and whether streams wait for each other where they must.

Not covered: numbers, speed, what kernels of a real GPU refuse, and compiled blocks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def why_not() -> str:
    """Why nothing can be pretended here; empty where it can."""
    if not shutil.which("g++"):
        return "there is no g++"
    if next(_torch().glob("lib/*torch_cuda*"), None):
        return "this torch is made for GPUs, and a GPU says more"
    return ""


def begin() -> None:
    """Makes torch believe in a GPU, for the rest of this process.

    Raises:
        RuntimeError: torch was imported already, or it cannot be done here.
        subprocess.CalledProcessError: gpu.cpp does not fit this torch.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported already")
    if reason := why_not():
        raise RuntimeError(reason)
    root = _torch()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "gpu.so"
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", str(Path(__file__).with_name("gpu.cpp"))]
        places = [f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-lc10", "-ltorch_cpu"]
        subprocess.run([*command, *places, "-o", str(library)], check=True, capture_output=True, text=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL).pretend()


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent
