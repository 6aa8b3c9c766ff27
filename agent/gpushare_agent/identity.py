"""One agent, one identity: what the state directory remembers of the agent itself.

Imports the standard library, msgspec and the records. The directory is locked while an agent runs, so that two agents
can never share it. Kept there: the instance id (made once), the start counter (one more at each start), the highest
leader term seen, and the credentials that enrolment gave, readable by the owner alone. Each is durable before anybody
acts on it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from gpushare_agent import records

LOCK = "lock"
IDENTITY = "identity"
TERM = "term"
CREDENTIALS = "credentials"


class IdentityError(Exception):
    """The agent must not start on this state directory; one sentence for a person."""


class Identity(msgspec.Struct, frozen=True):
    """`start_counter` counts the starts of the agent on this directory, the first is 1."""

    instance_id: str
    start_counter: int


class Credentials(msgspec.Struct, frozen=True):
    """What enrolment gave. `join_sha256` tells which join line it came from, so that a new one is noticed."""

    address: str
    ca_pem: str
    node: str
    token: str
    join_sha256: str

    def __repr__(self) -> str:
        return f"Credentials(address={self.address!r}, node={self.node!r})"


class StateDirectory:
    """The agent's own files. Use: `open` (which locks), then everything else; the lock goes with the process."""

    def __init__(self, path: Path, dirfd: int, lock_fd: int) -> None:
        self.path = path
        self._dirfd = dirfd
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path) -> StateDirectory:
        """Make the directory if need be, and lock it. Raises IdentityError; it names the agent that holds it."""
        try:
            # Jobs pass through it on the way to their own directories, and see nothing on the way.
            path.mkdir(mode=0o711, parents=True, exist_ok=True)
            dirfd = records.open_directory(str(path))
            lock_fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
        except OSError as err:
            raise IdentityError(f"the state directory {path} cannot be used: {err.strerror}") from err
        if os.fstat(dirfd).st_uid != os.geteuid():
            raise IdentityError(f"the state directory {path} belongs to another user (uid {os.fstat(dirfd).st_uid})")
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise IdentityError(f"another agent (pid {pid}) runs on the state directory {path}") from err
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return cls(path, dirfd, lock_fd)

    def begin(self) -> Identity:
        """The identity of this start: the same instance, the counter one higher."""
        data = records.read(self._dirfd, IDENTITY)
        if data is None:
            if records.exists(self._dirfd, IDENTITY):
                raise IdentityError(f"{self.path / IDENTITY} is damaged or foreign; it names this agent's instance")
            known = Identity(instance_id=secrets.token_hex(8), start_counter=0)
        else:
            try:
                known = msgspec.json.decode(data, type=Identity)
            except ValueError as err:
                raise IdentityError(f"{self.path / IDENTITY} is damaged: {err}") from err
        identity = Identity(known.instance_id, known.start_counter + 1)
        records.replace(self._dirfd, IDENTITY, msgspec.json.encode(identity))
        return identity

    def highest_term(self) -> int:
        """The highest leader term this agent ever followed, 0 before the first."""
        data = records.read(self._dirfd, TERM)
        if data is None:
            if records.exists(self._dirfd, TERM):
                raise IdentityError(f"{self.path / TERM} is damaged or foreign; it keeps old leaders out")
            return 0
        try:
            return int(data)
        except ValueError as err:
            raise IdentityError(f"{self.path / TERM} is damaged; it keeps old leaders out") from err

    def write_term(self, term: int) -> None:
        """Durable on return."""
        records.replace(self._dirfd, TERM, str(term).encode())

    def credentials(self) -> Credentials | None:
        """What enrolment gave; None before it. Raises IdentityError where the file is unreadable."""
        data = records.read(self._dirfd, CREDENTIALS)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Credentials)
        except ValueError as err:
            raise IdentityError(f"{self.path / CREDENTIALS} is damaged; enrol again with a join line") from err

    def write_credentials(self, credentials: Credentials) -> None:
        """Durable on return, mode 0600."""
        records.replace(self._dirfd, CREDENTIALS, msgspec.json.encode(credentials))


def is_enrolled(state_dir: Path) -> bool:
    """There are credentials, as far as this user may see; takes no lock and makes nothing."""
    return os.path.exists(state_dir / CREDENTIALS)


def place_logs(state_dir: Path, log_dir: Path) -> None:
    """Output lies under the state directory; where the configuration wants it elsewhere, a link leads there.

    Raises IdentityError where that cannot be.
    """
    usual = state_dir / "logs"
    if log_dir == usual:
        return
    try:
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if usual.is_symlink():
            if usual.readlink() == log_dir:
                return
            usual.unlink()
        usual.symlink_to(log_dir)
    except FileExistsError:
        raise IdentityError(f"log_dir is {log_dir}, but {usual} holds output already; move it to {log_dir}") from None
    except OSError as err:
        raise IdentityError(f"log_dir {log_dir} cannot be used: {err.strerror}") from err
