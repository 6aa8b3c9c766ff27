"""The socket at which people of this host get their tokens: who they are by the kernel's word, not by their own.

Imports asyncio, the name lookups and the join string; no grpc. One JSON line in, one out, then the end. Invariants: a
person is who SO_PEERCRED says, root and system accounts are nobody; a connection costs at most `DEADLINE_S`, a few
kilobytes and one place of the few that its account has, so that nobody holds up others; nothing here can end the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.names import NAME_MAX_CHARS
from gpushare.ratelimit import RateLimit
from gpushare.reasons import Reason
from gpushare_agent.launchspec import LaunchRefused
from gpushare_agent.unixuser import Person

REQUEST_MAX_BYTES: Final = 4096
DEADLINE_S: Final = 5.0
CONNECTIONS_MAX: Final = 256
CONNECTIONS_PER_ACCOUNT: Final = 8
BACKLOG: Final = 512
# One person may ask so often; whoever keeps the token asks twice a day.
PERSON_BURST: Final = 20
PERSON_PER_S: Final = 0.5
LISTEN_AGAIN_S: Final = 30.0
_NOBODY_UID = 65534
_PEERCRED = struct.Struct("=iII")


class Issued(NamedTuple):
    """What the scheduler gave: one pasted line, for whom, and how long it holds."""

    join: str
    user: str
    tenant: str
    ttl_s: int


#: Asks the scheduler for a token of this person; the second argument is the tenant that they asked for, or "".
Issue = Callable[[Person, str], Awaitable[Issued]]


class LoginServer:
    """`own_uid` is the agent's account: without root it serves that one alone."""

    def __init__(
        self,
        path: Path,
        find: Callable[[str], Awaitable[Person]],
        issue: Issue,
        log: Any,
        *,
        min_uid: int = 1000,
        own_uid: int | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._path = path
        self._find = find
        self._issue = issue
        self._log = log
        self._min_uid = min_uid
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._deadline_s = deadline_s
        self._rate = RateLimit(PERSON_BURST, PERSON_PER_S)
        self._open: Counter[int] = Counter()

    async def run(self) -> None:
        """Serves until cancelled. A place that cannot be listened at is tried again; jobs do not depend on it."""
        said = ""
        while True:
            try:
                await self._serve_at(listen(self._path))
            except OSError as err:
                why = err.strerror or str(err)
                if why != said:
                    self._log.warning("nobody can log in at this host's socket", path=str(self._path), why=why)
                said = why
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _serve_at(self, listener: socket.socket) -> None:
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_MAX_BYTES, backlog=BACKLOG)
        self._log.info("people of this host may log in here, if an admin trusts it", path=str(self._path))
        try:
            await server.serve_forever()
        finally:
            server.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        self._open[uid] += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                writer.write(await self._answer(uid, reader))
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # Whoever says nothing, or goes, is told nothing.
        except Exception as err:
            self._log.error("a login failed", error=f"{type(err).__name__}: {err}")
        finally:
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]
            writer.close()

    async def _answer(self, uid: int, reader: asyncio.StreamReader) -> bytes:
        try:
            self._check_room(uid)
            tenant = _tenant_in(await _line(reader))
            self._check_account(uid)
            issued = await self._issue(await self._person(uid), tenant)
        except GpushareError as err:
            said = {
                "reason": err.reason,
                "message": err.message,
                "what_to_do": err.what_to_do,
                "metadata": err.metadata,
            }
            return _encoded({"error": said})
        self._log.info("logged in", user=issued.user, tenant=issued.tenant, uid=uid)
        return _encoded(issued._asdict())

    def _check_room(self, uid: int) -> None:
        if self._open[uid] > CONNECTIONS_PER_ACCOUNT or self._open.total() > CONNECTIONS_MAX:
            raise error_of(Reason.BUSY, "Too many logins are under way on this host.", what_to_do="Try again.")

    def _check_account(self, uid: int) -> None:
        if uid == 0:
            raise error_of(Reason.LOGIN_DENIED, "Root gets no token on this host's word.")
        if self._own_uid and uid != self._own_uid:
            raise error_of(
                Reason.LOGIN_DENIED, "The agent of this host runs without root, so it serves its own account alone."
            )
        if uid < self._min_uid or uid == _NOBODY_UID:
            raise error_of(
                Reason.LOGIN_DENIED,
                f"Account {uid} is a system account; tokens are for people, from {self._min_uid} on.",
            )
        if not self._rate.allows(uid, time.monotonic()):
            raise error_of(
                Reason.BUSY, "Too many tokens were asked for this account.", what_to_do="Try again in a minute."
            )

    async def _person(self, uid: int) -> Person:
        try:
            return await self._find(str(uid))
        except LaunchRefused as refused:
            if refused.reason is Reason.NOT_STARTED:
                raise error_of(Reason.BUSY, f"{refused.detail}.", what_to_do="Try again in a minute.") from refused
            raise error_of(Reason.LOGIN_DENIED, f"{refused.detail}.") from refused


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError) as err:
        raise invalid_field("request", f"is not one line of at most {REQUEST_MAX_BYTES} bytes") from err


def _tenant_in(line: bytes) -> str:
    """Of `{"tenant": "vision"}`; "" where none is asked for. What a newer client says besides is not minded."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise invalid_field("request", "is no JSON") from err
    tenant = asked.get("tenant", "") if isinstance(asked, dict) else None
    if not isinstance(tenant, str) or len(tenant) > NAME_MAX_CHARS:
        raise invalid_field("tenant", "is no tenant's name")
    try:
        tenant.encode()
    except UnicodeEncodeError as err:
        raise invalid_field("tenant", "is no tenant's name") from err
    return tenant


def _encoded(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def peer_uid(connection: Any) -> int:
    """The account at the other end when it connected."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    uid: int = _PEERCRED.unpack(said)[1]
    return uid


def listen(path: Path) -> socket.socket:
    """A socket there that everybody of this host may connect to. OSError where that cannot be, or another process
    serves it: a second agent must not take it away."""
    _make_directory(path.parent)
    dirfd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # However long the path is: the kernel takes 108 bytes.
        place = f"/proc/self/fd/{dirfd}/{path.name}"
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            probe.settimeout(1.0)
            probe.connect(place)
            raise OSError(None, "another process serves this socket")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=dirfd)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(place)
            # Who they are is the kernel's word, so anybody may knock.
            os.chmod(path.name, 0o666, dir_fd=dirfd)  # noqa: S103
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    finally:
        os.close(dirfd)


def _make_directory(directory: Path) -> None:
    """One that was there keeps its mode; a new one lets everybody through, whatever the umask."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)
