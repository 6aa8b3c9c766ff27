"""Tokens without pasting: the agent of this host says who we are, and the scheduler takes its word.

Imports the standard library, the errors and the settings; no grpc. The token is kept until a tenth of its time is left,
in XDG_RUNTIME_DIR or the cache directory. Invariants: only a socket of root or of our own account is spoken to; what is
kept is readable by its owner alone, and a file that is not, or is damaged, counts as none; a token that cannot be kept
is used all the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gpushare.client.settings import ConnectionSettings
from gpushare.errors import GpushareError, error_of
from gpushare.join import decode_join
from gpushare.reasons import Reason

SOCKET_ENV: Final = "GPUSHARE_LOGIN_SOCKET"
ROOTS_SOCKET: Final = "/run/gpushare/login.sock"
ASK_TIMEOUT_S: Final = 8.0
_ANSWER_MAX_BYTES = 32 << 10
_CONNECT_AGAIN_S = 0.05
# Kept until so much of its time is left, so that no command starts with one that is about to end.
_KEPT_PART = 0.9


@dataclass(frozen=True, slots=True)
class _Kept:
    """A login as it is kept; `renew_at_s` counts by this host's wall clock."""

    server: str
    token: str
    ca_pem: str
    user: str
    tenant: str
    renew_at_s: float


def find_socket(environ: Mapping[str, str] = os.environ) -> str:
    """Where this host's agent listens: GPUSHARE_LOGIN_SOCKET, else a root agent's place, else that of an agent of our
    own; "" where there is none."""
    if SOCKET_ENV in environ:
        return environ[SOCKET_ENV]
    runtime = environ.get("XDG_RUNTIME_DIR")
    places = [ROOTS_SOCKET, *([f"{runtime}/gpushare/login.sock"] if runtime else [])]
    return next((place for place in places if os.path.exists(place)), "")


def log_in(
    path: str,
    tenant: str = "",
    *,
    environ: Mapping[str, str] = os.environ,
    now_s: Callable[[], float] = time.time,
    fresh: bool = False,
) -> ConnectionSettings:
    """The connection by the agent at the socket `path`: the one that is kept, or with `fresh` a new one.

    `tenant` "" leaves the choice to the cluster. Raises GpushareError with the reason of the refusal.
    """
    file = _file(path, tenant, environ)
    kept = None if fresh else _read(file)
    if kept is None or kept.renew_at_s <= now_s():
        kept = _ask(path, tenant, now_s())
        _write(file, kept)
    renew = functools.partial(log_in, path, tenant, environ=environ, now_s=now_s, fresh=True)
    return ConnectionSettings(
        kept.server, kept.token, kept.ca_pem, tenant=kept.tenant, user=kept.user, socket=path, renew=renew
    )


def peek(path: str, tenant: str = "", *, environ: Mapping[str, str] = os.environ) -> ConnectionSettings | None:
    """What is kept of that login, without asking for another; None where nothing is."""
    kept = _read(_file(path, tenant, environ))
    if kept is None:
        return None
    return ConnectionSettings(kept.server, kept.token, kept.ca_pem, kept.tenant, kept.user)


def forget(path: str, tenant: str = "", *, environ: Mapping[str, str] = os.environ) -> None:
    """Removes what is kept of that login."""
    with contextlib.suppress(OSError):
        _file(path, tenant, environ).unlink()


# -- the agent


def _ask(path: str, tenant: str, now_s: float) -> _Kept:
    answer = _exchange(path, {"tenant": tenant})
    error = answer.get("error")
    if isinstance(error, dict):
        raise _refusal(error)
    try:
        join = decode_join(answer["join"])
        ttl_s, user, its_tenant = float(answer["ttl_s"]), str(answer["user"]), str(answer["tenant"])
    except (KeyError, TypeError, ValueError) as err:
        raise _unusable(path, "it gave no login") from err
    return _Kept(join.address, join.secret, join.ca_pem, user, its_tenant, now_s + ttl_s * _KEPT_PART)


def _connect(channel: socket.socket, path: str) -> None:
    """Wait for a place where many connect at once: a Unix socket refuses at once instead of letting anybody wait."""
    give_up = time.monotonic() + ASK_TIMEOUT_S
    while True:
        try:
            return channel.connect(path)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_CONNECT_AGAIN_S)


def _exchange(path: str, request: Mapping[str, str]) -> dict[str, Any]:
    """One line there, one line back."""
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(ASK_TIMEOUT_S)
            _connect(channel, path)
            _check_server(channel, path)
            with contextlib.suppress(BrokenPipeError):
                # It may have refused already, without having heard what for.
                channel.sendall(json.dumps(request).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) <= _ANSWER_MAX_BYTES:
                more = channel.recv(4096)
                if not more:
                    break
                data += more
        answer = json.loads(data)
    except OSError as err:
        raise _unusable(path, err.strerror or str(err)) from err
    except (ValueError, RecursionError) as err:
        raise _unusable(path, "it closed the connection" if not data else "its answer is no JSON") from err
    if not isinstance(answer, dict):
        raise _unusable(path, "its answer is no login")
    return answer


def _check_server(channel: socket.socket, path: str) -> None:
    """Whoever may put a socket there must not collect our commands."""
    peercred = getattr(socket, "SO_PEERCRED", None)
    if peercred is None:
        return
    uid = struct.unpack("=iII", channel.getsockopt(socket.SOL_SOCKET, peercred, 12))[1]
    if uid not in (0, os.geteuid()):
        raise _unusable(path, f"it belongs to account {uid}, neither to root nor to you")


def _refusal(said: Mapping[str, Any]) -> GpushareError:
    """What the agent or the scheduler refused, as the exception that it was."""
    reason, message, way_out = (str(said.get(key, "")) for key in ("reason", "message", "what_to_do"))
    metadata = said.get("metadata")
    return error_of(
        Reason[reason] if reason in Reason.__members__ else Reason.INTERNAL,
        message,
        what_to_do=way_out,
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else None,
    )


def _unusable(path: str, why: str) -> GpushareError:
    return error_of(
        Reason.CONFIG_INVALID,
        f"This host's agent gives no login at {path}: {why}.",
        what_to_do="Run `gpushare login JOIN` with a line from the admin, or have the agent looked at.",
    )


# -- what is kept


def _file(path: str, tenant: str, environ: Mapping[str, str]) -> Path:
    """Apart by host, because a home directory may be that of many, of more than one cluster."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    base = runtime or environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or Path.home(), ".cache")
    key = hashlib.sha256("\n".join((socket.gethostname(), path, tenant)).encode()).hexdigest()[:16]
    return Path(base) / "gpushare" / f"login-{key}.json"


def _read(file: Path) -> _Kept | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8") as source:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                return None
            kept = _Kept(**json.loads(source.read(_ANSWER_MAX_BYTES)))
            texts = (kept.server, kept.token, kept.ca_pem, kept.user, kept.tenant)
            sound = all(isinstance(text, str) for text in texts) and isinstance(kept.renew_at_s, float | int)
            return kept if sound else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write(file: Path, kept: _Kept) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600; a rename never shows half a file to another command.
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError:
        return
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(asdict(kept), out)
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
