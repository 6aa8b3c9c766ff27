"""The MPS control daemon of one card: started, found again after a restart of the agent, health-checked,
stopped.

Imports the control channel and the child process module. Invariants: one daemon per card, which sees that
card alone as device 0; it runs in a session of its own and outlives the agent, as the jobs do; it is
recognised by what the kernel says of its process, never by the pid file, which every tenant can write. A
stopped daemon is gone.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from gpushare_agent.gpus.child import ChildProcess
from gpushare_agent.sharing.access import admit, fingerprint, why_deaf
from gpushare_agent.sharing.mps_control import ControlError, MpsControl

CONTROL_PROGRAM = "nvidia-cuda-mps-control"
SERVER_PROGRAM = "nvidia-cuda-mps-server"
MAX_PIPE_PATH = 87
LOGGED_LIMIT = re.compile(r"[Dd]evice pinned memory limit for device 0 set to 0x([0-9a-fA-F]+)")
POLL_S = 0.02
LOG_TAIL_BYTES = 64 << 10


class MpsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How daemons are run. `program` is the control program's full path, `environ` what it inherits.

    `multiuser`: servers take clients of every user (root's daemons on drivers from 555 on).
    """

    folder: Path
    program: str
    environ: dict[str, str]
    multiuser: bool = False
    control_timeout_s: float = 5.0
    start_timeout_s: float = 10.0
    server_timeout_s: float = 20.0
    stop_timeout_s: float = 3.0


class DaemonError(Exception):
    """The daemon or its server is not as it must be; `detail` says how."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ServerGoneError(DaemonError):
    """The server ended while it was looked at."""


def short_name(uuid: str) -> str:
    """A card's name in paths: 12 digits of its UUID."""
    return re.sub(r"[^0-9a-z]", "", uuid.lower().removeprefix("gpu-"))[:12]


class CardDaemon:
    """The daemon of one card. Calls are made one at a time by whoever holds the card's lock."""

    def __init__(self, settings: MpsSettings, uuid: str) -> None:
        self._settings = settings
        self._uuid = uuid
        self.pipe = settings.folder / short_name(uuid)
        self.log = settings.folder / f"{short_name(uuid)}.log"
        self._process: ChildProcess | None = None
        self.known_servers: frozenset[int] = frozenset()  # as of the last look
        self.control = MpsControl(settings.program, self.pipe, settings.environ, timeout_s=settings.control_timeout_s)

    @property
    def socket(self) -> Path:
        """What clients connect to."""
        return self.pipe / "control"

    def alive(self) -> bool:
        """Whether the daemon's process runs."""
        return self._process is not None and self._process.alive()

    async def ensure(self) -> None:
        """A running daemon that answers: the one there is, else a new one. DaemonError if that cannot be
        had.
        """
        if not self.alive() and not await self.adopt():
            await self._end_servers()
            await self._start()
        cause = why_deaf(self.socket)
        if cause:
            raise DaemonError(cause)

    async def adopt(self) -> bool:
        """Take over the daemon an earlier agent left, if it is ours, runs and answers."""
        pid = find_daemon(self.pipe, self._uuid)
        if pid is None:
            return False
        try:
            process = ChildProcess.adopt(pid)
        except ProcessLookupError:
            return False
        self._process = process
        try:
            await self.servers()
        except ControlError as err:
            raise DaemonError(f"the running daemon (pid {pid}) does not answer: {err.detail}") from err
        return True

    async def _start(self) -> None:
        settings = self._settings
        if len(str(self.pipe)) > MAX_PIPE_PATH:
            raise DaemonError(f"the path {self.pipe} is longer than the {MAX_PIPE_PATH} characters that MPS takes")
        _make_folder(settings.folder, 0o711)
        _make_folder(self.pipe, 0o700)
        _make_folder(self.log, 0o700)
        admit(self.pipe, ())
        environ = settings.environ | {
            "CUDA_VISIBLE_DEVICES": self._uuid,
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log),
        }
        options = ["-f", "-multiuser-server"] if settings.multiuser else ["-f"]
        output = os.open(self.log / "daemon.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = ChildProcess.spawn(
                [settings.program, *options], environ, stdout=output, stderr=output, new_session=True
            )
        except OSError as err:
            raise DaemonError(f"{settings.program} cannot be started: {err.strerror}") from err
        finally:
            os.close(output)
        await self._until_it_answers(self._process)

    async def _until_it_answers(self, process: ChildProcess) -> None:
        deadline_s = time.monotonic() + self._settings.start_timeout_s
        cause = "it made no socket"
        while process.alive() and time.monotonic() < deadline_s:
            if not why_deaf(self.socket):
                try:
                    await self.servers()
                    return
                except ControlError as err:
                    cause = err.detail
            await asyncio.sleep(POLL_S)
        if process.alive():
            raise DaemonError(f"the new daemon does not answer: {cause}")
        said = _tail(self.log / "daemon.out").strip() or "it said nothing"
        raise DaemonError(f"the MPS control daemon ended at once: {said}")

    # -- servers

    async def servers(self) -> list[int]:
        """Pids of the daemon's servers."""
        pids = [int(line) for line in await self.control.ask("get_server_list") if line.isdigit()]
        self.known_servers = frozenset(pids)
        return pids

    async def clients(self, server: int) -> list[int]:
        """Pids of a server's clients."""
        return [int(line) for line in await self.control.ask(f"get_client_list {server}") if line.isdigit()]

    async def server_for(self, uid: int) -> tuple[int, bool]:
        """(pid of an ACTIVE server for this user, whether it was just started).

        DaemonError if another user's server is in use, or the server does not come up.
        """
        uid = 0 if self._settings.multiuser else uid
        for pid in await self.servers():
            if uid_of_process(pid) in (uid, None):
                await self._until_active(pid)
                return pid, False
            if await self.clients(pid):
                raise DaemonError(f"its MPS server (pid {pid}) serves another user")
            await self.control.ask(f"shutdown_server {pid}")
            await self._until(partial(self._not_listed, pid), f"the idle server {pid} does not end")
        await self.control.ask(f"start_server -uid {uid}")
        # The command says nothing, not even when the server dies at once.
        await self._until(self._any_server, "the MPS server does not start")
        (pid, *_) = self.known_servers
        try:
            await self._until_active(pid)
        except ServerGoneError as err:
            raise DaemonError(f"the MPS server does not start: pid {pid} ended at once") from err
        return pid, True

    async def _any_server(self) -> bool:
        return bool(await self.servers())

    async def _not_listed(self, pid: int) -> bool:
        return pid not in await self.servers()

    async def _until_active(self, pid: int) -> None:
        status = ""

        async def active() -> bool:
            nonlocal status
            lines = await self.control.ask(f"get_server_status {pid}")
            status = lines[-1] if lines else "no status"
            if "not found" in status:
                raise ServerGoneError(f"the MPS server (pid {pid}) is gone")
            if "INITIALIZING" not in status and "ACTIVE" not in status:
                raise DaemonError(f"the MPS server (pid {pid}) is not usable: {status}")
            return "ACTIVE" in status

        await self._until(active, f"the MPS server (pid {pid}) does not become ACTIVE")

    async def _until(self, condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        deadline_s = time.monotonic() + self._settings.server_timeout_s
        while not await condition():
            if time.monotonic() > deadline_s:
                raise DaemonError(f"{otherwise} within {self._settings.server_timeout_s:g} s")
            await asyncio.sleep(POLL_S)

    def logged_limit_mib(self, since: int) -> int | None:
        """The last memory ceiling that a server logged after this offset of its log; None if it logged
        none.
        """
        found = LOGGED_LIMIT.findall(_tail(self.log / "server.log", since))
        return int(found[-1], 16) >> 20 if found else None

    def log_size(self) -> int:
        """Where the server's log ends now."""
        path = self.log / "server.log"
        return path.stat().st_size if path.exists() else 0

    # -- the end

    async def stop(self) -> None:
        """End the daemon and its servers, gently first. Only for a card without jobs.

        DaemonError if a process is left.
        """
        if self._process is None and self.pipe.is_dir():
            pid = find_daemon(self.pipe, self._uuid)
            self._process = ChildProcess.adopt(pid) if pid is not None else None
        if self._process is not None and self._process.alive():
            await self._quit(self._process)
        if self._process is not None:
            self._process.close()
            self._process = None
        await self._end_servers()

    async def _quit(self, process: ChildProcess) -> None:
        try:
            await self.servers()
            # The command returns before the process is gone.
            await self.control.ask("quit", attempts=1)
        except ControlError:
            process.send(signal.SIGTERM)
        for signum in (None, signal.SIGTERM, signal.SIGKILL):
            if signum is not None:
                process.send(signum)
            if await process.wait(self._settings.stop_timeout_s):
                return
        raise DaemonError(f"the MPS control daemon (pid {process.pid}) does not end, not even by SIGKILL")

    async def _end_servers(self) -> None:
        """Servers that outlived their daemon would keep their memory of the card."""
        for pid in self.known_servers:
            await self._end_server(pid)
        self.known_servers = frozenset()

    async def _end_server(self, pid: int) -> None:
        if SERVER_PROGRAM not in " ".join(words_of(pid, "cmdline")[:1]):
            return
        try:
            server = ChildProcess.adopt(pid)
        except ProcessLookupError:
            return
        try:
            server.send(signal.SIGKILL)
            if not await server.wait(self._settings.stop_timeout_s):
                raise DaemonError(f"the MPS server (pid {pid}) does not end")
        finally:
            server.close()

    def let_go(self) -> None:
        """Forget the process without ending it."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def directory_state(self) -> str:
        """Owner, modes and access list of the pipe directory; "" if there is none."""
        return fingerprint(self.pipe) if self.pipe.is_dir() else ""


def find_daemon(pipe: Path, uuid: str) -> int | None:
    """The pid of a daemon of ours for this card: right program, right user, right pipe directory, right
    card.

    A process can choose its command line and environment, but not its user; so only our own user's count.
    """
    wanted = {f"CUDA_MPS_PIPE_DIRECTORY={pipe}", f"CUDA_VISIBLE_DEVICES={uuid}"}
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        words = words_of(pid, "cmdline")
        if not any(word.endswith(CONTROL_PROGRAM) for word in words[:3]) or not {"-f", "-d"} & set(words):
            continue
        if uid_of_process(pid) == os.geteuid() and wanted <= set(words_of(pid, "environ")):
            found.append(pid)
    # A server looks like the daemon that forks it until it has become its own program.
    return next((pid for pid in found if parent_of(pid) not in found), None)


def words_of(pid: int, name: str) -> list[str]:
    """The words of /proc/PID/cmdline or environ; none if the process is gone or not ours to read."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def uid_of_process(pid: int) -> int | None:
    """The real uid of a process; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None


def parent_of(pid: int) -> int | None:
    """The parent's pid; None if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _make_folder(path: Path, mode: int) -> None:
    """A folder of ours with this mode; whatever is there must be ours already."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.geteuid():
            raise DaemonError(f"{path} belongs to somebody else: remove it")
        path.chmod(mode)
    except OSError as err:
        raise DaemonError(f"{path} cannot be made: {err.strerror}") from err


def _tail(path: Path, since: int = 0) -> str:
    """The end of a text file, from this offset on, bounded."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
