"""The state directory of `gpushare up`: who may use it, what lies where, and the daemons' configuration.

Imports the standard library, `config`'s places and the names. Layout: `up.lock`, `shape`, `scheduler.toml`,
`scheduler.log`, `scheduler/`, and for each node `nodes/NAME/{agent.toml,agent.log,join,state,run}`. Invariants: one
`up` at a time on a directory; a directory keeps the shape it was made with, because jobs of its nodes may still run.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpushare.config import places
from gpushare.errors import FailedPreconditionError, GpushareError
from gpushare.names import TextError
from gpushare.quantity import parse_int
from gpushare.reasons import Reason

TENANT = "default"
MAX_NODES = 64
_LOG_MAX_BYTES = 16 << 20
_SHAPE = re.compile(r"(?:([0-9]{1,6})x)?([0-9]{1,6}x[A-Za-z][A-Za-z0-9 -]*)")


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One agent: its node's name, and its simulated cards ("4xH100-80GB"), "" for the real ones of this host."""

    name: str
    simulate: str


class UpState:
    """A locked state directory. Raises GpushareError where it cannot be used; the lock goes with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise _refused(f"{path} cannot be used: {err.strerror}.", "Name another with --state-dir.") from err
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            pid = os.pread(self._lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock_fd)
            raise _refused(
                f"Another `gpushare up` (pid {pid}) runs on {path}.", "Use that one, or name another --state-dir."
            ) from err
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Gives the directory free."""
        os.close(self._lock_fd)

    @property
    def scheduler_config(self) -> Path:
        return self.path / "scheduler.toml"

    @property
    def scheduler_log(self) -> Path:
        return self.path / "scheduler.log"

    @property
    def admin_join(self) -> Path:
        """Written by the scheduler at its start."""
        return self.path / "scheduler" / "admin.join"

    def node_dir(self, name: str) -> Path:
        return self.path / "nodes" / name

    def is_enrolled(self, name: str) -> bool:
        return (self.node_dir(name) / "state" / "credentials").exists()

    def check_shape(self, simulate: str) -> None:
        """Refuses another shape than that of the nodes that are here."""
        file = self.path / "shape"
        kept = file.read_text().strip() if file.exists() else simulate
        if kept != simulate:
            was = f"--simulate {kept}" if kept else "the real cards of this host"
            raise _refused(f"{self.path} was made with {was}.", "Start it so again, or name another --state-dir.")

    def keep_shape(self, simulate: str) -> None:
        """Remembers the shape, once its nodes are there."""
        (self.path / "shape").write_text(simulate + "\n")

    def write_scheduler_config(self, listen: str, user: str) -> None:
        _write_toml(
            self.scheduler_config,
            {
                "listen": listen,
                "state_dir": str(self.path / "scheduler"),
                "bootstrap_tenant": TENANT,
                "bootstrap_user": user,
            },
        )

    def write_agent_config(self, plan: NodePlan, server: str, join: str | None) -> Path:
        """agent.toml of one node; `join` is given until it has enrolled."""
        node_dir = self.node_dir(plan.name)
        node_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        settings: dict[str, object] = {
            "server": server,
            "state_dir": str(node_dir / "state"),
            "run_dir": str(node_dir / "run"),
            "log_dir": str(node_dir / "state" / "logs"),
            # One person's daemons: they run jobs as that person, and take what confinement the host lets them have.
            "containment": "weak",
            "single_user": True,
        }
        if plan.simulate:
            settings["simulate"] = plan.simulate
        join_file = node_dir / "join"
        join_file.unlink(missing_ok=True)
        if join is not None:
            with os.fdopen(os.open(join_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(join + "\n")
            settings["join_file"] = str(join_file)
        return _write_toml(node_dir / "agent.toml", settings)


def default_state_dir() -> Path:
    """Beside the state of the daemons proper, never in it."""
    return places().state_dir / "up"


def plan_nodes(simulate: str) -> list[NodePlan]:
    """Nodes node-1, node-2, ... of "2x4xH100-80GB", one of "4xH100-80GB", this host for "". Raises TextError."""
    if not simulate:
        return [NodePlan(_host_name(), "")]
    match = _SHAPE.fullmatch(simulate)
    if match is None:
        raise TextError("simulate", simulate, "is no shape", "NODESxCARDSxMODEL, e.g. 2x4xH100-80GB")
    count = parse_int(match[1] or "1", "simulate", minimum=1, maximum=MAX_NODES)
    return [NodePlan(f"node-{number}", match[2]) for number in range(1, count + 1)]


def os_user() -> str:
    """The Unix account that everything runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid-{os.geteuid()}"


def as_name(text: str, fallback: str) -> str:
    """`text` within the grammar of names: what that does not take becomes a dash."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:63].strip("-") or fallback


def rotate_log(path: Path) -> None:
    """Keeps one older log, so that a directory that is used for years stays small."""
    if path.exists() and path.stat().st_size > _LOG_MAX_BYTES:
        path.replace(path.with_suffix(".log.1"))


def _host_name() -> str:
    return as_name(socket.gethostname().partition(".")[0], "node-1")


def _write_toml(path: Path, settings: Mapping[str, object]) -> Path:
    # JSON's texts and truth values are TOML's, too.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def _refused(message: str, what_to_do: str) -> GpushareError:
    return FailedPreconditionError(Reason.CONFIG_INVALID, message, what_to_do=what_to_do)
