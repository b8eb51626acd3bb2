"""What the device did while it was timed: power, clock, temperature and energy, as its driver says. Nothing on a CPU."""

from __future__ import annotations

from typing import Any

import pynvml
import torch


class GpuState:
    """A GPU's state from now on; drivers that do not tell something leave it out."""

    def __init__(self, device: torch.device) -> None:
        self._handle = self._find(device)
        self._energy = self._read("nvmlDeviceGetTotalEnergyConsumption")

    def since(self, samples: int) -> dict[str, Any]:
        """Now, and the energy of each of `samples` since the beginning."""
        if self._handle is None:
            return {}
        energy = self._read("nvmlDeviceGetTotalEnergyConsumption")  # millijoules
        watts = self._read("nvmlDeviceGetPowerUsage")
        limit = self._read("nvmlDeviceGetEnforcedPowerLimit")
        found = {
            "watts": watts / 1000 if watts is not None else None,
            "watts_limit": limit / 1000 if limit is not None else None,
            "sm_mhz": self._read("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            "celsius": self._read("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            "joules_a_sample": (energy - self._energy) / 1000 / samples
            if energy is not None and self._energy is not None
            else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _find(self, device: torch.device) -> Any:
        if device.type != "cuda":
            return None
        try:
            pynvml.nvmlInit()
            # torch counts the devices that the process may see, the driver all of them
            return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except pynvml.NVMLError:
            return None

    def _read(self, question: str, *given: Any) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(pynvml, question)(self._handle, *given)
        except pynvml.NVMLError:
            return None
