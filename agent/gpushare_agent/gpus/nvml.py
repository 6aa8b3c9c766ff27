"""The child process that talks to the NVIDIA driver: `python -m gpushare_agent.gpus.nvml PARENT_PID`.

The only importer of pynvml. Single-threaded: one line in is one snapshot out, as one line of JSON in the
shape of `port.GpuSnapshot` (a process's `user` holds its uid in digits; the parent knows the names). A call
that hangs hangs this process alone, and the parent kills it. Imports nothing heavy, sets nothing on any
card, dies with its parent. Any state but OK is answered once and then the process ends, so that the next
one loads the library afresh.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

MIB = 1 << 20
LIST_EVERY_S = 1.0  # process lists hold the driver's global lock for milliseconds
MEASURE_EVERY_S = 2.4  # power, energy and temperature are for people, and told every few seconds
IDENTIFY_EVERY_S = 30.0  # compute mode and MIG may be changed by others
PR_SET_PDEATHSIG = 1
PCI_DEVICES = "/sys/bus/pci/devices"

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 3, 4, 6, 7
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, ARGUMENT_VERSION, UNKNOWN = 15, 16, 18, 25, 999
PERMANENT = {NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, ARGUMENT_VERSION}
CARD_LEVEL = {GPU_IS_LOST, RESET_REQUIRED, UNKNOWN}
FIELD_RECOVERY_ACTION = 230
RECOVERY_ACTIONS = ("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset")
COMPUTE_MODES = {0: "default", 2: "prohibited", 3: "exclusive_process"}

Json = dict[str, Any]


class LibraryError(Exception):
    """Nothing can be read from any card: a `port.DriverState` and a sentence."""

    def __init__(self, state: str, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class CardError(Exception):
    """One card does not answer; the others go on."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def code_of(nvml: Any, err: BaseException) -> int:
    """The NVML code of an exception of pynvml. A missing unversioned function is no NVMLError; it counts as
    13.
    """
    if isinstance(err, nvml.NVMLLibraryMismatchError):
        return FUNCTION_NOT_FOUND
    value = getattr(err, "value", UNKNOWN)
    return value if isinstance(value, int) else UNKNOWN


def text_of(value: str | bytes) -> str:
    """Some releases of pynvml return bytes where others return str."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def uid_of(pid: int) -> str:
    """The real uid of a process in digits; "" if it is not visible from here."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Uid:"):
                    return line.split()[1]
    except OSError:
        return ""
    return ""


def numa_domain(bus_id: str, devices: str = PCI_DEVICES) -> str:
    """ "numa1" for a card at the processor of that number; "" where the kernel does not say. NVML writes the PCI domain
    with eight digits, the kernel with four.
    """
    try:
        with open(f"{devices}/{bus_id[-12:].lower()}/numa_node", encoding="ascii") as file:
            number = int(file.read())
    except (OSError, ValueError):
        return ""
    return f"numa{number}" if number >= 0 else ""


class Card:
    """One card: its handle, what it does not support, and the last process list."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._absent: set[str] = set()
        self._handle = self._must("handle", nvml.nvmlDeviceGetHandleByIndex, index)
        self._index = index
        self.uuid = text_of(self._must("uuid", nvml.nvmlDeviceGetUUID, self._handle))
        self.last_info: Json = {}
        self._identified_at = 0.0
        self._listed: Json = {}
        self._listed_at = 0.0
        self._measured: Json = {}
        self._measured_at = 0.0
        self._seen_us = 0

    def _raise(self, what: str, err: BaseException) -> None:
        code = code_of(self._nvml, err)
        if code == VERSION_MISMATCH:
            raise LibraryError("MISMATCH", f"{what}: {err}") from err
        raise CardError(code, f"{what}: {err} (NVML error {code})") from err

    def _must(self, what: str, call: Callable[..., Any], *args: object) -> Any:
        """A figure without which the card is of no use."""
        try:
            return call(*args)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError) as err:
            self._raise(what, err)

    def _may(self, what: str, call: Callable[..., Any], *args: object) -> Any:
        """A figure that a card may not have: None then, and never asked for again."""
        if what in self._absent:
            return None
        try:
            return call(*args)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError) as err:
            code = code_of(self._nvml, err)
            if code == VERSION_MISMATCH or code in CARD_LEVEL:
                self._raise(what, err)
            if code in PERMANENT:
                self._absent.add(what)
            return None

    def info(self, now_s: float) -> Json:
        """The card's identity: its index as of now, and the settings that others may change read again now and then."""
        nvml, handle = self._nvml, self._handle
        index = self._may("index", nvml.nvmlDeviceGetIndex, handle)
        known = self.last_info.get("index") == (self._index if index is None else index)
        if known and now_s - self._identified_at < IDENTIFY_EVERY_S:
            return self.last_info
        mig = self._may("mig", nvml.nvmlDeviceGetMigMode, handle)
        mode = self._may("compute_mode", nvml.nvmlDeviceGetComputeMode, handle)
        total, reserved, _, _ = self._memory()
        self.last_info = {
            "uuid": self.uuid,
            "index": self._index if index is None else index,
            "minor": self._may("minor", nvml.nvmlDeviceGetMinorNumber, handle),
            "model": text_of(self._may("name", nvml.nvmlDeviceGetName, handle) or "unknown"),
            "total_mib": total // MIB,
            "reserved_mib": -(-reserved // MIB),
            "compute_mode": COMPUTE_MODES.get(mode, "default"),
            "mig_enabled": bool(mig and mig[0]),
            "domain": self._domain(),
        }
        self._identified_at = now_s
        return self.last_info

    def _domain(self) -> str:
        pci = self._may("pci", self._nvml.nvmlDeviceGetPciInfo, self._handle)
        return "" if pci is None else numa_domain(text_of(pci.busId))

    def _memory(self) -> tuple[int, int, int, int]:
        """(total, reserved, free, used) in bytes. Version 1 counts what is reserved as used and does not
        name it.
        """
        nvml = self._nvml
        v2 = self._may("memory_v2", lambda: nvml.nvmlDeviceGetMemoryInfo(self._handle, version=nvml.nvmlMemory_v2))
        if v2 is not None:
            return v2.total, v2.reserved, v2.free, v2.used
        v1 = self._must("memory", nvml.nvmlDeviceGetMemoryInfo, self._handle)
        return v1.total, 0, v1.free, v1.used

    def sample(self, now_s: float) -> Json:
        """What the card does now. CardError if it does not answer."""
        nvml, handle = self._nvml, self._handle
        total, _, free, used = self._memory()
        rates = self._may("utilization", nvml.nvmlDeviceGetUtilizationRates, handle)
        if now_s - self._listed_at >= LIST_EVERY_S or not self._listed:
            self._listed = self._processes(total)
            self._listed_at = now_s
        if now_s - self._measured_at >= MEASURE_EVERY_S or not self._measured:
            self._measured = self._figures()
            self._measured_at = now_s
        return {
            "uuid": self.uuid,
            "used_mib": -(-used // MIB),
            "free_mib": free // MIB,
            "sm_percent": rates.gpu if rates is not None else None,
            "recovery_action": self._recovery_action(),
            **self._measured,
            **self._listed,
        }

    def _figures(self) -> Json:
        """What no limit depends on."""
        nvml, handle = self._nvml, self._handle
        return {
            "power_mw": self._may("power", nvml.nvmlDeviceGetPowerUsage, handle),
            "energy_mj": self._may("energy", nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
            "temperature_c": self._temperature(),
        }

    def _temperature(self) -> int | None:
        nvml = self._nvml
        value: int | None = None
        if hasattr(nvml, "nvmlDeviceGetTemperatureV"):
            value = self._may("temperature_v", nvml.nvmlDeviceGetTemperatureV, self._handle, 0)
        if value is None:
            value = self._may("temperature", nvml.nvmlDeviceGetTemperature, self._handle, 0)
        return value

    def _recovery_action(self) -> str | None:
        values = self._may("fields", self._nvml.nvmlDeviceGetFieldValues, self._handle, [FIELD_RECOVERY_ACTION])
        if values is None or values[0].nvmlReturn != 0:
            return None
        action = values[0].value.uiVal
        return RECOVERY_ACTIONS[action] if action < len(RECOVERY_ACTIONS) else "unknown"

    def _processes(self, total: int) -> Json:
        """Every process once, with the lists it is in.

        The MPS list is read after the compute list: a client that starts in between is then in both or in
        none.
        """
        compute = self._list("Compute")
        graphics = self._list("Graphics")
        mps = self._list("MPSCompute")
        found: dict[int, Json] = {}
        for rows, kind in ((graphics, "graphics"), (compute, "compute"), (mps, "compute")):
            for pid, used in rows or ():
                if pid <= 0:
                    continue
                row = found.setdefault(pid, {"pid": pid, "memory_mib": None, "mps": False, "user": uid_of(pid)})
                row["kind"] = kind
                if used is not None and used <= total:
                    row["memory_mib"] = max(row["memory_mib"] or 0, -(-used // MIB))
        for pid, _ in mps or ():
            if pid in found:
                found[pid]["mps"] = True
        busy = self._sm_percent()
        for pid, row in found.items():
            # No row in a list that was given means idle, except for MPS clients: the driver may show their
            # work under the server.
            row["sm_percent"] = None if busy is None else busy.get(pid, None if row["mps"] else 0)
        return {
            "processes": [found[pid] for pid in sorted(found)],
            "processes_known": compute is not None,
            "mps_known": mps is not None,
        }

    def _list(self, which: str) -> list[tuple[int, int | None]] | None:
        """(pid, bytes or None) of one process list; None if the driver does not give it."""
        for version in ("_v3", "_v2"):
            name = f"nvmlDeviceGet{which}RunningProcesses{version}"
            for _ in range(3):
                if name in self._absent:
                    break
                try:
                    rows = getattr(self._nvml, name)(self._handle)
                    return [(row.pid, row.usedGpuMemory) for row in rows]
                except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError) as err:
                    code = code_of(self._nvml, err)
                    if code == INSUFFICIENT_SIZE:
                        continue  # more processes started than the array was oversized for
                    if code == VERSION_MISMATCH or code in CARD_LEVEL:
                        self._raise(name, err)
                    if code in PERMANENT:
                        self._absent.add(name)
                    if code != FUNCTION_NOT_FOUND:
                        return None
                    break
        return None

    def _sm_percent(self) -> dict[int, int] | None:
        """SM % per pid since the last look; None if the driver cannot say.

        Old stamps, stamps from the future and values over 100 are rubbish that drivers are known to return.
        """
        if "process_utilization" in self._absent:
            return None
        now_us = time.time_ns() // 1000
        since = max(self._seen_us, now_us - 2_000_000)
        try:
            rows = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, since)
        except self._nvml.NVMLError as err:
            code = code_of(self._nvml, err)
            if code in PERMANENT:
                self._absent.add("process_utilization")
            if code == VERSION_MISMATCH or code in CARD_LEVEL:
                self._raise("process utilisation", err)
            # 0 and 6 both say that nothing ran since then.
            return {} if code in (0, NOT_FOUND) else None
        newest: dict[int, tuple[int, int]] = {}
        for row in rows:
            if row.smUtil > 100 or not since < row.timeStamp <= now_us + 1_000_000:
                continue
            self._seen_us = max(self._seen_us, row.timeStamp)
            if row.timeStamp >= newest.get(row.pid, (0, 0))[0]:
                newest[row.pid] = (row.timeStamp, row.smUtil)
        return {pid: percent for pid, (_, percent) in newest.items()}


class Driver:
    """The loaded library and its cards."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._cards: list[Card] = []
        self._unopened: list[str] = []
        self._reopened_for: set[str] = set()
        self._versions: Json = {}
        self._open = False

    def snapshot(self) -> Json:
        """The reply to one request. LibraryError if no card can be read at all.

        A card that has just stopped answering is given one chance with the library opened again; `infos`
        holds only the cards that could be identified, `samples` the ones in trouble too.
        """
        if not self._open:
            self._start()
        infos, samples, fresh_trouble = self._read_all()
        if fresh_trouble:
            self._stop()
            self._start()
            infos, samples, _ = self._read_all()
        return {
            "state": "OK",
            "detail": "; ".join(self._unopened),
            "taken_boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "infos": infos,
            "samples": samples,
            **self._versions,
        }

    def _read_all(self) -> tuple[list[Json], list[Json], bool]:
        now_s = time.monotonic()
        infos, samples, fresh_trouble = [], [], False
        for card in self._cards:
            try:
                card.info(now_s)
                sample = card.sample(now_s)
                self._reopened_for.discard(card.uuid)
            except CardError as trouble:
                sample = {"uuid": card.uuid, "error": trouble.detail, "lost": trouble.code == GPU_IS_LOST}
                if trouble.code in CARD_LEVEL and card.uuid not in self._reopened_for:
                    self._reopened_for.add(card.uuid)
                    fresh_trouble = True
            if card.last_info:
                infos.append(card.last_info)
            samples.append(sample)
        return infos, samples, fresh_trouble

    def _start(self) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            self._open = True
            self._versions = {"driver_version": text_of(nvml.nvmlSystemGetDriverVersion())}
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as err:
            raise self._library_trouble(err) from err
        self._cards, self._unopened = [], []
        for index in range(count):
            try:
                self._cards.append(Card(nvml, index))
            except CardError as trouble:
                self._unopened.append(f"the card at index {index} cannot be opened: {trouble.detail}")

    def _stop(self) -> None:
        self._open = False
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as err:
            raise self._library_trouble(err) from err

    def _library_trouble(self, err: BaseException) -> LibraryError:
        code = code_of(self._nvml, err)
        state, hint = {
            LIBRARY_NOT_FOUND: ("NO_LIBRARY", "libnvidia-ml.so.1 is not installed or not on the loader's path"),
            DRIVER_NOT_LOADED: ("NO_DRIVER", "the NVIDIA kernel driver is not loaded"),
            VERSION_MISMATCH: (
                "MISMATCH",
                "the NVIDIA library and the loaded kernel driver are of different versions: the driver was "
                "upgraded; reload its modules or reboot",
            ),
        }.get(code, ("ERROR", "the NVIDIA driver does not start"))
        return LibraryError(state, f"{hint} (NVML error {code}: {err})")


def die_with_parent(parent_pid: int) -> bool:
    """Ask the kernel to kill this process when its parent ends. False if the parent has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent_pid


def answer(driver: Driver) -> Json:
    """One reply, whatever happens."""
    try:
        return driver.snapshot()
    except LibraryError as trouble:
        return {"state": trouble.state, "detail": trouble.detail}
    except Exception as err:
        # The parent must hear of a bug here in words; the process ends after this answer.
        return {"state": "ERROR", "detail": f"reading the cards failed: {type(err).__name__}: {err}"}


def main() -> int:
    """Serve requests until the parent closes the pipe, or until a state other than OK was answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not die_with_parent(int(sys.argv[1])):
        return 0
    # The library may print; only replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    driver: Driver | None = None
    while sys.stdin.buffer.readline():
        try:
            if driver is None:
                import pynvml

                driver = Driver(pynvml)
            reply = answer(driver)
        except ImportError:
            reply = {"state": "NO_LIBRARY", "detail": "the Python package nvidia-ml-py is not installed"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if reply["state"] != "OK":
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
