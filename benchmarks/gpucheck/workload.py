"""A CUDA program on a string: `python -m benchmarks.gpucheck.workload` does what its stdin says, one JSON line each.

Each command is answered with one JSON object that holds `code`, the driver's result. While it is busy it launches one
short kernel after the other and still takes commands. It ends with its input, so that it never outlives the check.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpucheck import driver

MIB = 1 << 20
PATTERN = 0x5EED1234
Reply = dict[str, Any]


class Workload:
    """The state of the program: a driver, what it allocated, whether it is busy."""

    def __init__(self) -> None:
        self._cuda = driver.Driver()
        self._held: list[tuple[int, int]] = []
        self._sms = 1
        self._busy_rounds = 0
        self._busy_done = 0
        self._busy_code = 0

    def do_init(self) -> Reply:
        """Open the first visible device and a context on it; tells where it stopped."""
        cuda = self._cuda
        began = time.perf_counter()
        code = cuda.init()
        if code != 0:
            return {"code": code, "at": "cuInit"}
        initialised = time.perf_counter()
        said: Reply = {"code": 0, "version": cuda.version(), "devices": cuda.devices()}
        code = cuda.open_device()
        if code != 0:
            return {**said, "code": code, "at": "cuDeviceGet"}
        said.update(
            uuid=cuda.uuid(),
            name=cuda.name(),
            device_total_mib=cuda.total_bytes() // MIB,
            capability=f"{cuda.attribute(driver.CAPABILITY_MAJOR)}.{cuda.attribute(driver.CAPABILITY_MINOR)}",
        )
        code = cuda.open_context()
        if code != 0:
            return {**said, "code": code, "at": "context"}
        self._sms = cuda.attribute(driver.MULTIPROCESSORS) or 1
        return {
            **said,
            **self.do_memory(),
            "sms": self._sms,
            "mps": cuda.attribute(driver.MPS_ENABLED),
            "init_s": initialised - began,
            "context_s": time.perf_counter() - initialised,
        }

    def do_cuinit(self) -> Reply:
        """cuInit alone, for a helper that needs no context."""
        return {"code": self._cuda.init()}

    def do_memory(self) -> Reply:
        code, free, total = self._cuda.memory()
        return {"code": code, "free_mib": free // MIB, "total_mib": total // MIB}

    def do_alloc(self, mib: int, *, managed: bool = False, fill: bool = True) -> Reply:
        """Allocate one block and write to all of it; a failed write gives the block back."""
        code, pointer = self._cuda.alloc(mib * MIB, managed=managed)
        if code != 0:
            return {"code": code, "at": "alloc"}
        code = self._cuda.fill(pointer, mib * MIB, PATTERN) if fill else 0
        if code != 0:
            self._cuda.free(pointer)
            return {"code": code, "at": "fill"}
        self._held.append((pointer, mib))
        return {"code": 0}

    def do_fill_up(self, chunk_mib: int, max_mib: int) -> Reply:
        """Allocate chunk by chunk until the driver refuses or `max_mib` is reached."""
        got = 0
        code = 0
        while got + chunk_mib <= max_mib:
            code, pointer = self._cuda.alloc(chunk_mib * MIB)
            if code != 0:
                break
            self._held.append((pointer, chunk_mib))
            got += chunk_mib
        return {"code": code, "mib": got}

    def do_free(self) -> Reply:
        code = 0
        while self._held:
            code = self._cuda.free(self._held.pop()[0]) or code
        return {"code": code}

    def do_verify(self) -> Reply:
        """Whether the first and last word of each block still are what was written."""
        for pointer, mib in self._held:
            for address in (pointer, pointer + mib * MIB - 4):
                code, word = self._cuda.word(address)
                if code != 0 or word != PATTERN:
                    return {"code": code, "intact": False}
        return {"code": 0, "intact": True}

    def do_kernels(self) -> Reply:
        began = time.perf_counter()
        return {"code": self._cuda.load_kernels(), "seconds": time.perf_counter() - began}

    def do_burn(self, rounds: int, times: int = 1) -> Reply:
        """Run the busy kernel on every multiprocessor this process sees, `times` over."""
        began = time.perf_counter()
        code = 0
        for _ in range(times):
            code = self._cuda.burn(self._sms, rounds)
            if code != 0:
                break
        return {"code": code, "seconds": time.perf_counter() - began}

    def do_busy(self, rounds: int) -> Reply:
        self._busy_rounds, self._busy_done, self._busy_code = rounds, 0, 0
        return {"code": 0}

    def do_busy_report(self) -> Reply:
        """How many kernels ended since `busy`, and the error that ended it."""
        return {"code": self._busy_code, "done": self._busy_done, "busy": self._busy_rounds > 0}

    def do_crash(self) -> Reply:
        return {"code": self._cuda.crash()}

    def do_synchronize(self) -> Reply:
        return {"code": self._cuda.synchronize()}

    def do_process_state(self, pid: int) -> Reply:
        code, state = self._cuda.process_state(pid)
        return {"code": code, "state": state}

    def do_process(self, act: str, pid: int, timeout_ms: int = 10_000) -> Reply:
        """One step of suspending another process: lock, checkpoint, restore or unlock."""
        cuda = self._cuda
        began = time.perf_counter()
        acts: dict[str, Callable[[], int]] = {
            "lock": lambda: cuda.process_lock(pid, timeout_ms),
            "checkpoint": lambda: cuda.process_checkpoint(pid),
            "restore": lambda: cuda.process_restore(pid),
            "unlock": lambda: cuda.process_unlock(pid),
        }
        return {"code": acts[act](), "seconds": time.perf_counter() - began}

    @property
    def busy(self) -> bool:
        return self._busy_rounds > 0

    def work(self) -> None:
        """One kernel of the busy loop."""
        code = self._cuda.burn(self._sms, self._busy_rounds)
        if code != 0:
            self._busy_code, self._busy_rounds = code, 0
        else:
            self._busy_done += 1


def commands(busy: Callable[[], bool]) -> Iterator[dict[str, Any] | None]:
    """Commands from stdin; None while there is none and the program has work to do. Ends with the input."""
    waiting = b""
    while True:
        line, found, rest = waiting.partition(b"\n")
        if found:
            waiting = rest
            yield json.loads(line)
            continue
        if busy() and not select.select([0], [], [], 0)[0]:
            yield None
            continue
        data = os.read(0, 65536)
        if not data:
            return
        waiting += data


def main() -> int:
    try:
        workload = Workload()
    except OSError as failure:
        print(json.dumps({"code": -1, "at": f"libcuda.so.1: {failure}"}), flush=True)
        return 1
    print(json.dumps({"code": 0, "pid": os.getpid()}), flush=True)
    for command in commands(lambda: workload.busy):
        if command is None:
            workload.work()
            continue
        answer = getattr(workload, f"do_{command.pop('do')}")(**command)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
