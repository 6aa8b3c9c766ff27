"""Builds and drives the C stand-in for libnvidia-ml.so.1 (`nvml/nvml.c` holds the format of its state file).

The unmodified pynvml loads it through LD_LIBRARY_PATH in the child process that reads the cards. A `FakeNvml` is the
typed form of the state file; `write()` replaces the file in one step, so that a call sees the old state or the new.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml" / "nvml.c"
DRIVER = "580.159.03"


@functools.cache
def compiled(*, old_driver: bool) -> bytes:
    """The stand-in as a shared object; compiled once per process."""
    flags = ["-DOLD_DRIVER"] if old_driver else []
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", *flags]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "lib.so"
        subprocess.run([*command, "-o", str(built), str(SOURCE)], check=True, timeout=60)
        return built.read_bytes()


def build_library(folder: Path, *, old_driver: bool = False) -> Path:
    """Put the stand-in into a folder for LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libnvidia-ml.so.1").write_bytes(compiled(old_driver=old_driver))
    return folder


def uuid_of(index: int) -> str:
    """A card's UUID as NVIDIA writes them."""
    return f"GPU-{index:08x}-0000-4000-8000-{index:012x}"


@dataclass
class FakeCard:
    """One card; None in a figure means that the card does not support it."""

    uuid: str
    model: str = "NVIDIA H200"
    total_mib: int = 143771
    reserved_mib: int = 600
    used_mib: int = 0
    minor: int | None = None
    bus: str = "00000000:01:00.0"
    compute_mode: int | None = 0
    mig: int | None = 0
    sm_percent: int | None = 0
    power_mw: int | None = 75_000
    energy_mj: int | None = 1_000_000
    temperature_c: int | None = 30
    ecc: int | None = 0
    action: int | None = 0

    def line(self, index: int) -> str:
        """The card's line in the state file."""
        words: dict[str, object] = {
            "uuid": self.uuid,
            "model": self.model.replace(" ", "_"),
            "total": self.total_mib,
            "reserved": self.reserved_mib,
            "used": self.used_mib,
            "minor": index if self.minor is None else self.minor,
            "bus": self.bus,
            "mode": self.compute_mode,
            "mig": self.mig,
            "sm": self.sm_percent,
            "mem": 0,
            "power": self.power_mw,
            "energy": self.energy_mj,
            "temp": self.temperature_c,
            "ecc": self.ecc,
            "action": self.action,
        }
        return "card " + " ".join(f"{key}={'-' if value is None else value}" for key, value in words.items())


@dataclass
class FakeNvml:
    """The state of the stand-in. Change it, then `write()`."""

    folder: Path
    cards: list[FakeCard] = field(default_factory=list)
    driver: str = DRIVER
    cuda: int = 13000
    empty_utilization: int = 6
    log: bool = False
    rows: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    old_driver: bool = False

    @classmethod
    def with_cards(cls, folder: Path, count: int, *, old_driver: bool = False) -> FakeNvml:
        """A host with that many cards, written and ready."""
        build_library(folder / "lib", old_driver=old_driver)
        cards = [FakeCard(uuid=uuid_of(n), bus=f"00000000:{n + 1:02X}:00.0") for n in range(count)]
        fake = cls(folder=folder, cards=cards, old_driver=old_driver)
        fake.write()
        return fake

    @property
    def state_file(self) -> Path:
        """The file that each call of the library reads."""
        return self.folder / "nvml.state"

    def environ(self) -> dict[str, str]:
        """What a process needs to load the stand-in instead of a driver."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
            "GPUSHARE_FAKE_NVML_STATE": str(self.state_file),
        }

    def process(self, card: int, pid: int, mib: int | None, *lists: str) -> None:
        """A process that holds memory of a card, in "compute", "graphics" and "mps" lists."""
        for name in lists or ("compute",):
            self.rows.append(f"proc uuid={uuid_of(card)} pid={pid} mib={'-' if mib is None else mib} list={name}")

    def utilization(self, card: int, pid: int, sm_percent: int, age_ms: int = 100) -> None:
        """A sample of a process's SM use, as old as that at each call (a negative age lies in the future)."""
        self.rows.append(f"util uuid={uuid_of(card)} pid={pid} sm={sm_percent} age_ms={age_ms}")

    def fault(self, call: str, code: int, card: int | None = None) -> None:
        """The call answers with this error code."""
        self.faults.append(f"fault call={call} uuid={'*' if card is None else uuid_of(card)} code={code}")

    def hang(self, call: str, seconds: int, card: int | None = None) -> None:
        """The call hangs that long, deaf to every signal but SIGKILL."""
        self.faults.append(f"hang call={call} uuid={'*' if card is None else uuid_of(card)} seconds={seconds}")

    def write(self) -> None:
        """Put the state in force."""
        lines = [
            f"driver {self.driver}",
            f"cuda {self.cuda}",
            f"empty_utilization {self.empty_utilization}",
            f"log {int(self.log)}",
            *(card.line(index) for index, card in enumerate(self.cards)),
            *self.rows,
            *self.faults,
        ]
        fresh = self.state_file.with_suffix(".fresh")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.state_file)

    def calls(self) -> list[str]:
        """Names of the calls made while `log` was set."""
        path = self.state_file.with_name(self.state_file.name + ".calls")
        return path.read_text().split() if path.exists() else []

    def setters(self) -> list[str]:
        """Setters that were called: there must be none."""
        path = self.state_file.with_name(self.state_file.name + ".setters")
        return path.read_text().split() if path.exists() else []
