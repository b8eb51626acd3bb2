"""GPUs, asked through the driver: NVML, else `nvidia-smi`, never torch.

NVML is the driver's own library (`libnvidia-ml.so.1`, put into a container by the NVIDIA container toolkit); its calls
are described in NVIDIA's NVML API reference. `nvidia-smi` is asked where that library is not there, as under WSL with an
unusual path. Slices of a divided GPU (MIG) are listed in place of the GPU, because only they can be used.

Not covered: AMD and Intel GPUs, and Apple's. Torch may still use them; lorapod says that it sees no NVIDIA GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 1 << 20
_SMI_SECONDS = 20.0
_SMI_FIELDS = ("name", "uuid", "memory.total", "memory.free", "driver_version", "mig.mode.current", "compute_cap")
_VGPU = 2
"""`NVML_GPU_VIRTUALIZATION_MODE_VGPU`."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that can be computed on, or one slice of a divided one.

    Attributes:
        memory_total: Bytes; None where GPU and machine share their memory (Jetson, DGX Spark).
        memory_free: Bytes now; likewise.
        capability: Compute capability, as (8, 9); None where an old driver does not tell.
        slice_of: Name of the GPU that this is a slice of (MIG).
        virtual: Whether a hypervisor shares it out (vGPU).
    """

    name: str
    uuid: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    capability: tuple[int, int] | None = None
    slice_of: str = ""
    virtual: bool = False

    @property
    def architecture(self) -> str:
        """The compute capability as compilers write it, as in `sm_89`; empty if it is not known."""
        return f"sm_{self.capability[0]}{self.capability[1]}" if self.capability else ""

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bfloat16: from compute capability 8.0 (NVIDIA's Transformer Engine support matrix)."""
        return self.capability is None or self.capability >= (8, 0)

    @property
    def has_fp8(self) -> bool:
        """Whether it multiplies in 8-bit floats: from compute capability 8.9 (same source)."""
        return self.capability is not None and self.capability >= (8, 9)


@dataclass(frozen=True)
class Gpus:
    """What the driver says.

    Attributes:
        found: Every GPU, in the driver's order.
        driver: The driver's version, as `570.86.15`; empty without a driver.
        cuda: Highest CUDA version that the driver runs, as (12, 8).
        asked: Who answered: `nvml`, `nvidia-smi`, or empty.
        trouble: Why there is no answer, where the machine has a GPU or a driver all the same; one of the words of
            `lorapod.machine.verdict`, else the driver's own message.
        hidden: Whether `CUDA_VISIBLE_DEVICES` hides every GPU from programs.
        divided: Names of GPUs that are in MIG mode and have no slice that this machine may use.
    """

    found: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: tuple[int, int] | None = None
    asked: str = ""
    trouble: str = ""
    hidden: bool = False
    divided: tuple[str, ...] = ()

    @property
    def largest(self) -> Gpu | None:
        """The GPU with the most memory."""
        return max(self.found, key=lambda gpu: gpu.memory_total or 0, default=None)


def find_gpus(root: Path = Path("/")) -> Gpus:
    """Asks the driver. Never raises: what stands in the way is `trouble`.

    Args:
        root: Where `dev` and `proc` are, for tests.
    """
    answer, trouble = _by_nvml()
    if answer is None:
        answer, smi_trouble = _by_smi()
        trouble = trouble if trouble not in ("", "no library") else smi_trouble or trouble
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    if answer is not None:
        return Gpus(**answer, hidden=hidden)
    if trouble in ("", "no library"):
        trouble = "no toolkit" if _has_device(root) else ""
    return Gpus(trouble=trouble, hidden=hidden)


def _has_device(root: Path) -> bool:
    """Whether the kernel has an NVIDIA driver or device, whatever this container was given."""
    return (root / "proc/driver/nvidia/version").exists() or any((root / "dev").glob("nvidia[0-9]*"))


def _by_nvml() -> tuple[dict[str, Any] | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, "no library"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, _trouble_of(error)
    try:
        found: list[Gpu] = []
        divided: list[str] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus = list(_devices(pynvml, handle))
            found += gpus
            if not gpus:
                divided.append(_text(pynvml.nvmlDeviceGetName(handle)))
        cuda: int | None = None
        with suppress(pynvml.NVMLError):
            cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        return {
            "found": tuple(found),
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": (cuda // 1000, cuda % 1000 // 10) if cuda else None,
            "asked": "nvml",
            "divided": tuple(divided),
        }, ""
    except pynvml.NVMLError as error:
        return None, _trouble_of(error)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _devices(nvml: Any, handle: Any) -> Iterator[Gpu]:
    """The GPU, or its slices where it is divided."""
    capability: tuple[int, int] | None = None
    with suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = (int(major), int(minor))
    name = _text(nvml.nvmlDeviceGetName(handle))
    virtual = False
    with suppress(nvml.NVMLError):
        virtual = nvml.nvmlDeviceGetVirtualizationMode(handle) == _VGPU
    if not _is_divided(nvml, handle):
        yield _gpu(nvml, handle, name, capability, virtual=virtual)
        return
    with suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(nvml.NVMLError):  # places for slices may be empty
                piece = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                piece_name = f"{name} MIG"
                with suppress(nvml.NVMLError):
                    piece_name = _text(nvml.nvmlDeviceGetName(piece))
                yield _gpu(nvml, piece, piece_name, capability, slice_of=name, virtual=virtual)


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # GPUs that cannot be divided say so by an error
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _gpu(nvml: Any, handle: Any, name: str, capability: tuple[int, int] | None, **more: Any) -> Gpu:
    total = free = None
    with suppress(nvml.NVMLError):  # not supported where GPU and machine share their memory
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    uuid = ""
    with suppress(nvml.NVMLError):
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    return Gpu(name, uuid, total, free, capability, **more)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _trouble_of(error: Any) -> str:
    """NVML's error in a word of ours where there is one."""
    import pynvml

    return {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no library",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "driver not loaded",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "versions differ",
        pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
        pynvml.NVML_ERROR_NO_PERMISSION: "no permission",
    }.get(error.value, str(error))


def _by_smi() -> tuple[dict[str, Any] | None, str]:
    path = shutil.which("nvidia-smi")
    if path is None:
        return None, ""
    fields: tuple[str, ...] = _SMI_FIELDS
    code, text = _smi(path, fields)
    if code and "not a valid field" in text:  # older drivers know neither compute_cap nor MIG
        fields = _SMI_FIELDS[:5]
        code, text = _smi(path, fields)
    if code:
        return None, _smi_trouble(text)
    rows = [
        dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in text.splitlines() if "," in line
    ]
    if not rows:
        return None, "no GPU given"
    _, banner = _smi_raw(path)
    version = re.search(r"CUDA (?:\w+ )?Version\s*:\s*(\d+)\.(\d+)", banner)
    return {
        "found": tuple(_gpu_of_row(row) for row in rows if row.get("mig.mode.current") != "Enabled"),
        "driver": rows[0]["driver_version"],
        "cuda": (int(version[1]), int(version[2])) if version else None,
        "asked": "nvidia-smi",
        "divided": tuple(row["name"] for row in rows if row.get("mig.mode.current") == "Enabled"),
    }, ""


def _smi(path: str, fields: tuple[str, ...]) -> tuple[int, str]:
    return _smi_raw(path, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def _smi_raw(path: str, *words: str) -> tuple[int, str]:
    """Exit status and output. A driver that hangs counts as one that failed."""
    try:
        done = subprocess.run(
            [path, *words], capture_output=True, text=True, errors="replace", timeout=_SMI_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"nvidia-smi did not answer within {_SMI_SECONDS:.0f} s"
    except OSError as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def _gpu_of_row(row: dict[str, str]) -> Gpu:
    def mebibytes(value: str) -> int | None:
        return int(value) * _MIB if value.isdigit() else None  # "[N/A]" where memory is shared

    capability = re.fullmatch(r"(\d+)\.(\d+)", row.get("compute_cap", ""))
    return Gpu(
        row["name"],
        row["uuid"],
        mebibytes(row["memory.total"]),
        mebibytes(row["memory.free"]),
        (int(capability[1]), int(capability[2])) if capability else None,
    )


def _smi_trouble(text: str) -> str:
    if "couldn't communicate with the NVIDIA driver" in text:
        return "driver not loaded"
    if "version mismatch" in text.lower():
        return "versions differ"
    if "No devices were found" in text:
        return "no GPU given"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "nvidia-smi failed without a word"


def visible_gpus() -> list[str]:
    """Numbers of the GPUs that programs see, as `CUDA_VISIBLE_DEVICES` has them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [each.strip() for each in said.split(",") if each.strip() not in ("", "-1")]
    return [str(number) for number in range(len(find_gpus().found))]
