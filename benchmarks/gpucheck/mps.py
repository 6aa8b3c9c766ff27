"""One private MPS daemon of the check, on its own pipe directory, for one card. Standard library alone.

It touches no daemon that others run and no setting of the card; it is gone when the check ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpucheck import answers

PROGRAM = "nvidia-cuda-mps-control"
SERVER_PROGRAM = "nvidia-cuda-mps-server"
#: Answered by every daemon; a session that ends with its answer was not dropped on the way.
SENTINEL = "get_default_active_thread_percentage"
SESSION_TIMEOUT_S = 10.0
START_WAIT_S = 15.0
SERVER_WAIT_S = 30.0
STOP_WAIT_S = 4.0


class MpsError(Exception):
    """The daemon did not start, answer or serve; the text says which."""


def session(
    program: str, environ: Mapping[str, str], *lines: str, timeout_s: float = SESSION_TIMEOUT_S
) -> tuple[int | None, list[str]]:
    """One command session: exit code (None: still blocked after the timeout) and the lines of its answer."""
    try:
        ran = subprocess.run(
            [program],
            input="".join(f"{line}\n" for line in lines),
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, []
    return ran.returncode, (ran.stdout + ran.stderr).splitlines()


class Daemon:
    """A daemon in the foreground as our child. `environ` is what the check's programs run with, less MPS."""

    def __init__(self, program: str, uuid: str, environ: Mapping[str, str], *flags: str) -> None:
        self.program = program
        self._flags = flags
        # /tmp keeps the path far below the 87 characters that the program can take.
        self._folder = Path(tempfile.mkdtemp(prefix="gpc", dir="/tmp"))
        self._folder.chmod(0o755)
        self.pipe = self._folder / "p"
        self.log = self._folder / "l"
        for folder in (self.pipe, self.log):
            folder.mkdir()
            folder.chmod(0o755)
        own = {key: value for key, value in environ.items() if not key.startswith("CUDA_MPS")}
        self.environ = {
            **own,
            "CUDA_VISIBLE_DEVICES": uuid,
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> float:
        """Start it and wait until it answers; seconds that took. Raises MpsError."""
        began = time.monotonic()
        output = (self.log / "stdout").open("wb")
        try:
            self._process = subprocess.Popen(
                [self.program, "-f", *self._flags],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as failure:
            raise MpsError(f"{self.program} cannot be run: {failure}") from failure
        finally:
            output.close()
        while time.monotonic() - began < START_WAIT_S:
            if self._process.poll() is not None:
                raise MpsError(f"the daemon ended with code {self._process.returncode}: {self.text('stdout').strip()}")
            if (self.pipe / "control").exists() and self._sentinel():
                return time.monotonic() - began
            time.sleep(0.05)
        raise MpsError(f"the daemon did not answer within {START_WAIT_S:.0f} s")

    def _sentinel(self) -> bool:
        return bool(session(self.program, self.environ, SENTINEL, timeout_s=2)[1])

    def ask(self, *lines: str, timeout_s: float = SESSION_TIMEOUT_S) -> list[str]:
        """The answers to commands, sent in one session. Raises MpsError where the session was blocked."""
        code, said = session(self.program, self.environ, *lines, timeout_s=timeout_s)
        if code is None:
            raise MpsError(f"the daemon did not answer {lines[0]!r} within {timeout_s:.0f} s")
        return said

    def servers(self) -> list[int]:
        return answers.pids(self.ask("get_server_list"))

    def start_server(self, uid: int) -> tuple[int, float]:
        """Start the server of a user and wait until it is active: its pid and the seconds. Raises MpsError."""
        began = time.monotonic()
        self.ask(f"start_server -uid {uid}")
        status = "none was listed"
        while time.monotonic() - began < SERVER_WAIT_S:
            for server in self.servers():
                status = self.status(server)
                if "ACTIVE" in status:
                    return server, time.monotonic() - began
            time.sleep(0.1)
        raise MpsError(f"no server for uid {uid} within {SERVER_WAIT_S:.0f} s ({status}); {self.last_log()}")

    def status(self, server: int) -> str:
        return " ".join(self.ask(f"get_server_status {server}"))

    def text(self, name: str) -> str:
        """A log file of the daemon: `server.log`, `control.log`, `stdout`."""
        try:
            return (self.log / name).read_text(errors="replace")
        except OSError:
            return ""

    def last_log(self) -> str:
        lines = (self.text("server.log") or self.text("control.log")).strip().splitlines()
        return f"last log line: {lines[-1]}" if lines else "no log"

    def stop(self) -> None:
        """Quit, and make sure of it; the folder goes too."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            session(self.program, self.environ, "quit -t 2", timeout_s=5)
            for blow in (None, signal.SIGTERM, signal.SIGKILL):
                if blow is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, blow)  # the daemon leads a session of its own: its servers go with it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=STOP_WAIT_S)
                    break
        shutil.rmtree(self._folder, ignore_errors=True)
