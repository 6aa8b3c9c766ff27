"""Builds and drives the C stand-in for libcuda.so.1 (`cuda/cuda.c` says what it imitates).

A thread carries what the stand-in's processes hold into the NVML stand-in's state, so that both tell one story.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from standins.fake_nvml import FakeNvml

SOURCE = Path(__file__).parent / "cuda" / "cuda.c"
REFRESH_S = 0.01


@functools.cache
def compiled() -> bytes:
    """The stand-in as a shared object; compiled once per process."""
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "lib.so"
        subprocess.run([*command, "-o", str(built), str(SOURCE)], check=True, timeout=60)
        return built.read_bytes()


class FakeCuda:
    """CUDA on the first card of an NVML stand-in, while the context lasts."""

    def __init__(self, nvml: FakeNvml) -> None:
        self.nvml = nvml
        self.strangers: list[tuple[int, int]] = []
        self._folder = nvml.folder / "cuda"
        self._folder.mkdir()
        card = nvml.cards[0]
        (self._folder / "card").write_text(f"{card.uuid} {card.total_mib - card.reserved_mib}\n")
        (nvml.folder / "lib" / "libcuda.so.1").write_bytes(compiled())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def environ(self) -> dict[str, str]:
        """What a process needs to load both stand-ins."""
        return {**self.nvml.environ(), "GPUSHARE_FAKE_CUDA_DIR": str(self._folder)}

    def _follow(self) -> None:
        while not self._stop.wait(REFRESH_S):
            self.show()

    def show(self) -> None:
        """Write the process list of this moment into NVML's state."""
        self.nvml.rows.clear()
        used_mib = 0
        for pid, mib in self.strangers:
            self.nvml.process(0, pid, mib)
            used_mib += mib
        for path in self._folder.glob("*[0-9]"):
            words = path.read_text().split()
            if len(words) != 2 or not alive(path.name) or path.with_name(f"{path.name}.parked").exists():
                continue
            self.nvml.process(0, int(path.name), int(words[0]), *(("compute", "mps") if words[1] == "mps" else ()))
            used_mib += int(words[0])
        self.nvml.cards[0].used_mib = used_mib
        self.nvml.write()

    def __enter__(self) -> FakeCuda:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)


def alive(pid: str) -> bool:
    """Whether a process runs; one that only waits to be reaped holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
