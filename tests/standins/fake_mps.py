"""Installs and drives the stand-in for NVIDIA's MPS programs (`mps/control.py` says what it imitates)."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

DAEMON = Path(__file__).parent / "mps" / "control.py"
CLIENT = Path(__file__).parent / "mps" / "client.c"
# Other users must be able to run it, and a virtual environment may lie where they cannot go.
INTERPRETER = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@dataclass
class FakeMps:
    """A PATH entry with both programs, and the file of switches. Change `switches` with `switch()`."""

    folder: Path
    switches: dict[str, object] = field(default_factory=dict)

    @classmethod
    def installed(cls, folder: Path) -> FakeMps:
        """Both programs in `folder/bin`; readable by every user, as /usr/bin is."""
        fake = cls(folder=folder)
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        fake.bin.mkdir(exist_ok=True)
        (folder / "lib" / "nvidia-cuda-mps-control").write_text(f"#!{INTERPRETER} -SE\n{DAEMON.read_text()}")
        (fake.bin / "nvidia-cuda-mps-control").write_bytes(compiled_client())
        (fake.bin / "nvidia-cuda-mps-server").write_text("#!/bin/sh\nexit 1\n")
        for path in (*fake.bin.iterdir(), *(folder / "lib").iterdir()):
            path.chmod(0o755)
        fake.switch()
        return fake

    @property
    def bin(self) -> Path:
        """The folder for PATH."""
        return self.folder / "bin"

    def environ(self, **more: str) -> dict[str, str]:
        """A process's environment in which the stand-in is the MPS of the host."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        return clean | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FAKE_MPS_STATE": str(self.folder / "mps.state"),
            **more,
        }

    def switch(self, **changes: object) -> None:
        """Turn faults on (a value) and off (None); `silent__GPU-..` is meant for one card alone."""
        for key, value in changes.items():
            if value is None:
                self.switches.pop(key, None)
            else:
                self.switches[key] = value
        lines = [f"{key.replace('__', '@')} {value}" for key, value in self.switches.items()]
        fresh = self.folder / "mps.fresh"
        fresh.write_text("\n".join(lines) + "\n")
        fresh.chmod(0o644)
        fresh.replace(self.folder / "mps.state")

    def control(self, pipe: Path, text: str, *arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
        """Run the program once with this text as its input."""
        environ = self.environ(CUDA_MPS_PIPE_DIRECTORY=str(pipe))
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [str(self.bin / "nvidia-cuda-mps-control"), *arguments],
            input=text,
            env=environ,
            text=True,
            capture_output=True,
            timeout=20,
            **how,
        )


@functools.cache
def compiled_client() -> bytes:
    """The client as a program; compiled once per process."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "client"
        command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(CLIENT)]
        subprocess.run(command, check=True, timeout=60)
        return built.read_bytes()


def short_folder() -> Path:
    """A folder with a path short enough for a pipe directory, which every user may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="gs", dir="/tmp"))
    folder.chmod(0o755)
    return folder


class CudaProcess:
    """What a CUDA program does first: connect to the pipe directory, or run without MPS and without a limit.

    `mode` is "MPS", "805", or "no MPS" where the socket could not be reached. The client's pid is this process's own.
    """

    def __init__(self, pipe: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(10)
        try:
            self._socket.connect(str(pipe / "control"))
            self._socket.send(b"CLIENT")
            self.mode = self._socket.recv(16).decode()
        except OSError:
            self._socket.close()
            self.mode = "no MPS"

    def error(self) -> str:
        """The sticky error the server sends ("810" after terminate_client), "" if the server just went away."""
        return self._socket.recv(16).decode()

    def close(self) -> None:
        """The program ends."""
        self._socket.close()


def cuda_mode(pipe: Path) -> str:
    """How a CUDA program that starts and ends now would run."""
    program = CudaProcess(pipe)
    program.close()
    return program.mode


def wait_for(condition: object, within_s: float = 10) -> None:
    """Poll until a callable is true."""
    deadline_s = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        time.sleep(0.01)
