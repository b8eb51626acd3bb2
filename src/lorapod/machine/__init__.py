"""The machine that lorapod runs on: GPUs, driver, torch build, memory, disk; and what is off, with the remedy.

Nothing here imports torch: GPUs are asked through the driver, the torch build is read from its files.
"""

from lorapod.machine.findings import Finding, Severity
from lorapod.machine.gpus import Gpu, Gpus, find_gpus, visible_gpus
from lorapod.machine.host import Disk, Host, Keeping, disk_of, find_host
from lorapod.machine.torch_build import TorchBuild, find_torch
from lorapod.machine.verdict import gpu_findings, host_findings

__all__ = [
    "Disk",
    "Finding",
    "Gpu",
    "Gpus",
    "Host",
    "Keeping",
    "Severity",
    "TorchBuild",
    "disk_of",
    "find_gpus",
    "find_host",
    "find_torch",
    "gpu_findings",
    "host_findings",
    "visible_gpus",
]
