"""Reads every card through the real pynvml: each line of stdin is answered with one line of JSON.

A process of its own, because a call into a dying driver can hang. It calls getters alone: no setting of a card is
changed. What a card does not support is null.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

MIB = 1 << 20
COST_CALLS = 20
Json = dict[str, Any]


def text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Reader:
    """NVML, initialised for the life of the process."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()

    def _may(self, name: str, *arguments: object) -> Any:
        nvml = self._nvml
        try:
            return getattr(nvml, name)(*arguments)
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError, AttributeError):
            return None

    def snapshot(self) -> Json:
        """Driver and cards."""
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return {
            "driver": text(nvml.nvmlSystemGetDriverVersion()),
            "cuda": self._may("nvmlSystemGetCudaDriverVersion_v2"),
            "nvml": text(nvml.nvmlSystemGetNVMLVersion()),
            "cards": [self._card(index, handle) for index, handle in enumerate(handles)],
        }

    def _card(self, index: int, handle: Any) -> Json:
        nvml = self._nvml
        memory = self._may("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2) or self._may(
            "nvmlDeviceGetMemoryInfo", handle
        )
        mig = self._may("nvmlDeviceGetMigMode", handle)
        return {
            "index": index,
            "uuid": text(nvml.nvmlDeviceGetUUID(handle)),
            "name": text(nvml.nvmlDeviceGetName(handle)),
            "minor": self._may("nvmlDeviceGetMinorNumber", handle),
            "total_mib": memory.total // MIB if memory else None,
            "reserved_mib": getattr(memory, "reserved", 0) // MIB if memory else None,
            "used_mib": memory.used // MIB if memory else None,
            "free_mib": memory.free // MIB if memory else None,
            "compute_mode": self._may("nvmlDeviceGetComputeMode", handle),
            "mig": bool(mig and mig[0]),
            "persistence": self._may("nvmlDeviceGetPersistenceMode", handle),
            "power_mw": self._may("nvmlDeviceGetPowerUsage", handle),
            "temperature_c": self._may("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            "energy_mj": self._may("nvmlDeviceGetTotalEnergyConsumption", handle),
            "compute": self._rows("nvmlDeviceGetComputeRunningProcesses_v3", handle),
            "graphics": self._rows("nvmlDeviceGetGraphicsRunningProcesses_v3", handle),
            "mps": self._rows("nvmlDeviceGetMPSComputeRunningProcesses_v3", handle),
        }

    def _rows(self, name: str, handle: Any) -> list[Json] | None:
        rows = self._may(name, handle)
        if rows is None:
            return None
        return [
            {"pid": row.pid, "mib": None if row.usedGpuMemory is None else row.usedGpuMemory // MIB} for row in rows
        ]

    def utilisation(self, uuid: str, since_us: int) -> Json:
        """Rows of per-process SM use since a moment (µs of wall time), and the error where there are none."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        try:
            rows = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except nvml.NVMLError as failure:
            return {"rows": [], "error": failure.value}
        return {
            "rows": [{"pid": row.pid, "sm": row.smUtil, "mem": row.memUtil, "at_us": row.timeStamp} for row in rows],
            "error": 0,
        }

    def cost(self, uuid: str) -> Json:
        """Median microseconds of the calls that the agent makes for each card."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        now_us = int(time.time() * 1e6) - 2_000_000
        calls: dict[str, Callable[[], Any]] = {
            "memory": lambda: self._may("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2),
            "utilisation": lambda: self._may("nvmlDeviceGetUtilizationRates", handle),
            "power": lambda: self._may("nvmlDeviceGetPowerUsage", handle),
            "compute list": lambda: self._may("nvmlDeviceGetComputeRunningProcesses_v3", handle),
            "mps list": lambda: self._may("nvmlDeviceGetMPSComputeRunningProcesses_v3", handle),
            "process utilisation": lambda: self._may("nvmlDeviceGetProcessUtilization", handle, now_us),
        }
        return {name: _median_us(call) for name, call in calls.items()}


def _median_us(call: Callable[[], Any]) -> float:
    taken = []
    for _ in range(COST_CALLS):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e6)
    return round(statistics.median(taken), 1)


def main() -> int:
    try:
        import pynvml as nvml
    except ImportError:
        print(json.dumps({"absent": "the Python package nvidia-ml-py is not installed"}), flush=True)
        return 0
    try:
        reader = Reader(nvml)
    except (nvml.NVMLError, nvml.NVMLLibraryMismatchError) as failure:
        print(json.dumps({"absent": f"NVML does not start: {failure}"}), flush=True)
        return 0
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(reader, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
