"""What is off with a machine, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from lorapod.machine.findings import Finding, Severity
from lorapod.machine.gpus import Gpu, Gpus
from lorapod.machine.host import Disk, Host, Keeping
from lorapod.machine.torch_build import DRIVER_FLOORS, TorchBuild

GB = 1_000_000_000
GIB = 1 << 30
"""Memory of GPUs and machines is sold by this, and called GB."""
LEAST_FREE_DISK = 10 * GB
"""Below this a run with checkpoints may fill the disk."""
_LEAST_GPU_MEMORY = 7 * GB
_LEAST_FREE_SHARE = 0.8

_ANOTHER_GPU = "Rent another GPU: RTX 3090, A100 or newer."
_BUILD_12_8 = "Install a build for CUDA 12.8 (`cu128`): pytorch.org, Get Started, shows the command for your system."
"""12.8 is the first that knows Blackwell, and the last that runs on drivers from 525."""
_HOST_ONLY = "This cannot be repaired from inside a container: stop the pod and start it on another machine."

_TROUBLES: dict[str, tuple[str, str, str]] = {
    "no toolkit": (
        "The machine has an NVIDIA GPU, but this container was not given it",
        "The driver's libraries are not in the container.",
        "With Docker, add `--gpus all` (NVIDIA container toolkit); on a pod, choose a GPU when you create it.",
    ),
    "driver not loaded": (
        "The NVIDIA driver does not run",
        "Its library is there, but the kernel's part is not loaded.",
        f"On your own machine reinstall the driver and restart. On a pod: {_HOST_ONLY}",
    ),
    "versions differ": (
        "The two halves of the NVIDIA driver are of different versions",
        "The driver was updated and the machine was not restarted.",
        f"Restart the machine. On a pod: {_HOST_ONLY}",
    ),
    "lost": ("The GPU does not answer any more", "It fell off the bus, a fault of the machine.", _HOST_ONLY),
    "no permission": (
        "The GPU may not be used by this user",
        "The device files belong to somebody else.",
        "Run as the user that owns /dev/nvidia*, or start the container with `--gpus all`.",
    ),
    "no GPU given": (
        "There is a driver, but no GPU",
        "A pod that was stopped is started without a GPU where another person rented it meanwhile.",
        "Stop the pod and start a new one on the same network volume.",
    ),
}
"""What stands in the way of asking, to what, why and remedy."""


def gpu_findings(gpus: Gpus, torch: TorchBuild | None) -> list[Finding]:
    """Everything that is off with GPU, driver and torch together; the gravest first."""
    found = [*_presence(gpus, torch), *_torch(gpus, torch), *(f for gpu in gpus.found for f in _one(gpu, torch))]
    order = list(Severity)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity))


def _presence(gpus: Gpus, torch: TorchBuild | None) -> Iterator[Finding]:
    if gpus.trouble:
        what, why, remedy = _TROUBLES.get(
            gpus.trouble, ("The NVIDIA driver gives no answer", f"It says: {gpus.trouble}.", _HOST_ONLY)
        )
        yield Finding(Severity.FAULT, "gpu", what, why, remedy)
    elif not gpus.found and not gpus.divided:
        yield Finding(
            Severity.WARNING,
            "gpu",
            "There is no NVIDIA GPU",
            "Only the demo model can be trained in reasonable time on a processor.",
            "Try `lorapod demo` here; to train for real, use a machine with a GPU of 16 GB or more.",
        )
    for name in gpus.divided:
        yield Finding(
            Severity.FAULT,
            "gpu",
            f"The {name} is divided (MIG), and no slice of it can be used here",
            "In MIG mode programs can use slices only, and this container was given none.",
            "Give the container a slice by its UUID (`nvidia-smi -L` on the host lists them), or turn MIG off there.",
        )
    if gpus.found and gpus.hidden:
        yield Finding(
            Severity.FAULT,
            "gpu",
            "CUDA_VISIBLE_DEVICES hides every GPU",
            "It is set, and empty or -1.",
            "Unset it: `unset CUDA_VISIBLE_DEVICES`.",
        )


def _torch(gpus: Gpus, torch: TorchBuild | None) -> Iterator[Finding]:
    if torch is None:
        yield Finding(
            Severity.FAULT, "torch", "torch is not installed", "The built-in trainer needs it.",
            "Install it: `pip install 'lorapod[engine]'`.",
        )  # fmt: skip
        return
    if not gpus.found:
        return
    if torch.cuda is None:
        yield Finding(
            Severity.FAULT,
            "torch",
            f"torch {torch.version} cannot use a GPU",
            "It is a build for processors only.",
            _BUILD_12_8,
        )
        return
    floor, name = DRIVER_FLOORS.get(torch.cuda[0], (0, ""))
    major = int(gpus.driver.split(".")[0]) if gpus.driver.split(".")[0].isdigit() else None
    too_old = (major is not None and major < floor) or (gpus.cuda is not None and gpus.cuda[0] < torch.cuda[0])
    if too_old:
        version = f"{torch.cuda[0]}.{torch.cuda[1]}"
        yield Finding(
            Severity.FAULT,
            "torch",
            f"The driver {gpus.driver} is too old for torch {torch.version}",
            f"This torch was built for CUDA {version}, which needs driver {name} or newer"
            + (f"; this one runs CUDA up to {gpus.cuda[0]}.{gpus.cuda[1]}." if gpus.cuda else "."),
            f"On a pod: create it with CUDA {version} or newer as the least version (`gpu.minCudaVersion`). On your own "
            f"machine: update the driver.",
        )


def _one(gpu: Gpu, torch: TorchBuild | None) -> Iterator[Finding]:
    if torch is not None and torch.cuda is not None and not torch.runs_on(gpu.capability):
        known = ", ".join(f"sm_{a}" for a in torch.architectures)
        newer = gpu.capability is not None and gpu.capability[0] * 10 > max(torch.architectures)
        blackwell = gpu.capability is not None and gpu.capability >= (10, 0) and torch.cuda < (12, 8)
        yield Finding(
            Severity.FAULT,
            "torch",
            f"torch {torch.version} has no code for the {gpu.name} ({gpu.architecture})",
            f"It was built for {known}.",
            _BUILD_12_8
            if blackwell
            else ("Install a newer torch." if newer else f"Install an older torch, or better: {_ANOTHER_GPU}"),
        )
    if not gpu.has_bf16:
        yield Finding(
            Severity.WARNING,
            "gpu",
            f"The {gpu.name} does not compute in bfloat16",
            "Every base model's preset trains in bfloat16, which begins with compute capability 8.0; this GPU's is "
            f"{gpu.capability[0]}.{gpu.capability[1]}."
            if gpu.capability
            else "",
            f"{_ANOTHER_GPU} Small models can be trained with `--set training.precision=fp32`, at half the speed or less.",
        )
    if gpu.memory_total is not None and gpu.memory_total < _LEAST_GPU_MEMORY:
        yield Finding(
            Severity.WARNING, "gpu", f"The {gpu.name} has {gpu.memory_total / GIB:.0f} GB of memory",
            "No base model of the catalogue but the demo is known to train in that.", "Use a GPU of 16 GB or more.",
        )  # fmt: skip
    if gpu.memory_total and gpu.memory_free is not None and gpu.memory_free < _LEAST_FREE_SHARE * gpu.memory_total:
        used = (gpu.memory_total - gpu.memory_free) / GIB
        yield Finding(
            Severity.NOTE,
            "gpu",
            f"{used:.0f} of {gpu.memory_total / GIB:.0f} GB of the {gpu.name}'s memory are in use",
            "Another program holds them, or a run of yours is going on.",
            "See which with `nvidia-smi`; `lorapod runs list` shows your runs.",
        )
    if gpu.virtual:
        yield Finding(
            Severity.NOTE, "gpu", f"The {gpu.name} is shared out by a hypervisor (vGPU)",
            "Without a licence for it the host slows it down after a while.", "If training grows slow, ask the provider.",
        )  # fmt: skip


def host_findings(host: Host, disk: Disk) -> list[Finding]:
    """What is off with memory and the workspace's disk."""
    return [*_memory(host), *_disk(disk)]


def _memory(host: Host) -> Iterator[Finding]:
    if host.memory_total < 12 * GB:
        yield Finding(
            Severity.WARNING,
            "memory",
            f"There are {host.memory_total / GIB:.0f} GB of memory",
            "Loading a base model of 12 GB and more takes more than that for a moment; the system then ends the run.",
            "Choose a machine with 32 GB or more.",
        )


def _disk(disk: Disk) -> Iterator[Finding]:
    if not disk.writable:
        yield Finding(
            Severity.FAULT, "workspace", f"The workspace {disk.folder} cannot be written",
            "It belongs to another user, or is mounted read-only.",
            "Choose another with `--workspace` or $NETWORK_VOLUME, or mount it writable.",
        )  # fmt: skip
    if not disk.outlives_container:
        kept = "in memory" if disk.keeping is Keeping.MEMORY else "on the container's own disk"
        yield Finding(
            Severity.FAULT if disk.keeping is Keeping.MEMORY else Severity.WARNING,
            "workspace",
            f"The workspace {disk.folder} is {kept}: everything in it is LOST when the pod stops",
            "It is not on a volume.",
            "Attach a network volume at /workspace (when the pod is created), or set $NETWORK_VOLUME to a folder on one. "
            "Until then, copy your LoRA files away before you stop the pod.",
        )
    if disk.free < 64_000_000:
        yield Finding(
            Severity.FAULT, "disk", f"The disk of {disk.folder} is full",
            f"{disk.free / 1e6:.0f} MB of {disk.total / GB:.0f} GB are free.",
            "Free some space: `lorapod models` shows what could go; old checkpoints are the largest in runs.",
        )  # fmt: skip
    elif disk.free < LEAST_FREE_DISK:
        yield Finding(
            Severity.WARNING, "disk", f"{disk.free / GB:.1f} GB are free on the disk of {disk.folder}",
            "A base model takes 2 to 70 GB, a checkpoint up to several.",
            "Free some space: `lorapod models` shows what could go, or make the volume larger.",
        )  # fmt: skip
