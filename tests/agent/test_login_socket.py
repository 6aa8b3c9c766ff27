"""The socket at which people of a host get their tokens: who is served, as whom, and that nobody holds up others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpushare.errors import GpushareError, error_of
from gpushare.reasons import Reason
from gpushare_agent import unixuser
from gpushare_agent.launchspec import LaunchRefused
from gpushare_agent.logins import CONNECTIONS_PER_ACCOUNT, REQUEST_MAX_BYTES, Issued, LoginServer, listen
from gpushare_agent.unixuser import Person

ME = os.geteuid()
ADA, BOB = 60_001, 60_002
PEOPLE = {ADA: Person(ADA, "ada", ("ada", "vision-lab")), BOB: Person(BOB, "bob", ("bob",))}
needs_root = pytest.mark.skipif(ME != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")

# What a person's program does: connect, say, hear.
ASK = """
import contextlib, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
with contextlib.suppress(BrokenPipeError):
    s.sendall(sys.argv[2].encode() + b"\\n")
sys.stdout.write(s.makefile().readline())
"""


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = error = info


class Host:
    """A served socket. `issued` has whom the scheduler was asked about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log()
        self.issued: list[tuple[Person, str]] = []
        self.refusal: GpushareError | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def find(self, uid: str) -> Person:
        if int(uid) not in PEOPLE:
            raise LaunchRefused(Reason.UNIX_USER_UNMAPPED, f"this host knows no account {uid}")
        return PEOPLE[int(uid)]

    async def issue(self, person: Person, tenant: str) -> Issued:
        self.issued.append((person, tenant))
        await self.free.wait()
        if self.refusal is not None:
            raise self.refusal
        return Issued(f"gps-join-v1.{person.name}", person.name, tenant or "vision", 60)

    async def ask(self, uid: int, text: str = "{}") -> dict[str, Any]:
        """As a process of that account, which is this one where it may be."""
        command = [sys.executable, "-S", "-c", ASK, str(self.path), text]
        if uid != ME:
            command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]
        child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd="/")
        out, _ = await asyncio.wait_for(child.communicate(), 30)
        answer: dict[str, Any] = json.loads(out or b"{}")
        return answer

    async def reason(self, uid: int, text: str = "{}") -> str:
        return str((await self.ask(uid, text))["error"]["reason"])

    async def say(self, data: bytes) -> bytes:
        """As this process; b"" where the other end closes without a word."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Other accounts get there, which they do not to pytest's own directories."""
    with tempfile.TemporaryDirectory(prefix="gps-login-") as name:
        os.chmod(name, 0o755)  # noqa: S103 - so that others get through
        yield Path(name)


@asynccontextmanager
async def host(folder: Path, **options: Any) -> AsyncIterator[Host]:
    made = Host(folder / "run" / "login.sock")
    settings = {"min_uid": 1000, "own_uid": ME, "deadline_s": 5.0, **options}
    server = LoginServer(made.path, made.find, made.issue, made.log, **settings)
    running = asyncio.create_task(server.run())
    deadline_s = time.monotonic() + 20
    while not (made.path.exists() and made.log.lines):
        assert time.monotonic() < deadline_s, made.log.lines
        assert not running.done()
        await asyncio.sleep(0.01)
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait({running})
        assert not made.path.exists(), "the socket goes with its agent"


@needs_root
def test_each_account_is_served_as_itself_whatever_it_says(folder: Path) -> None:
    async def test() -> None:
        async with host(folder) as here:
            ada, bob = await asyncio.gather(
                here.ask(ADA, '{"tenant": "nlp", "user": "bob", "uid": 0}'), here.ask(BOB, '{"more": [1]}')
            )
            assert (ada["user"], ada["tenant"], ada["ttl_s"]) == ("ada", "nlp", 60)
            assert (bob["user"], bob["tenant"], bob["join"]) == ("bob", "vision", "gps-join-v1.bob")
            assert sorted(here.issued) == [(PEOPLE[ADA], "nlp"), (PEOPLE[BOB], "")]

    asyncio.run(test())


@needs_root
def test_who_is_no_person_is_refused_without_asking_anybody(folder: Path) -> None:
    async def test() -> None:
        async with host(folder) as here:
            for uid in (0, 1, 999, 65_534, 60_003):
                assert await here.reason(uid) == "LOGIN_DENIED", uid
            assert here.issued == []
        async with host(folder, min_uid=60_002) as here:
            assert await here.reason(ADA) == "LOGIN_DENIED"
            assert (await here.ask(BOB))["user"] == "bob"

    asyncio.run(test())


@needs_root
def test_an_agent_without_root_serves_its_own_account_alone(folder: Path) -> None:
    async def test() -> None:
        async with host(folder, own_uid=ADA) as here:
            assert (await here.ask(ADA))["user"] == "ada"
            assert await here.reason(BOB) == "LOGIN_DENIED"
            assert await here.reason(0) == "LOGIN_DENIED"

    asyncio.run(test())


@needs_root
def test_what_the_scheduler_refuses_comes_word_for_word(folder: Path) -> None:
    async def test() -> None:
        async with host(folder) as here:
            here.refusal = error_of(
                Reason.TENANT_AMBIGUOUS, "ada belongs to nlp, vision", what_to_do="Say which.", metadata={"a": "b"}
            )
            assert (await here.ask(ADA))["error"] == {
                "reason": "TENANT_AMBIGUOUS",
                "message": "ada belongs to nlp, vision",
                "what_to_do": "Say which.",
                "metadata": {"a": "b"},
            }

    asyncio.run(test())


@needs_root
def test_one_account_may_not_ask_without_end_and_another_is_served(folder: Path) -> None:
    async def test() -> None:
        async with host(folder) as here:
            found = await asyncio.gather(*(here.ask(ADA) for _ in range(CONNECTIONS_PER_ACCOUNT)))
            while "error" not in found[-1]:
                found.append(await here.ask(ADA))
                assert len(found) < 60
            assert found[-1]["error"]["reason"] == "BUSY"
            assert (await here.ask(BOB))["user"] == "bob"

    asyncio.run(test())


GARBAGE = {
    "nothing": b"",
    "no line": b"{}",
    "no JSON": b"hello\n",
    "no object": b"[1]\n",
    "a tenant that is no text": b'{"tenant": 7}\n',
    "a tenant too long": b'{"tenant": "' + b"a" * 64 + b'"}\n',
    "a lone surrogate": b'{"tenant": "\\ud800"}\n',
    "no UTF-8": b"\xff\xfe\n",
    "deep": b"[" * 4000 + b"\n",
    "a line of 1 MiB": b"a" * (1 << 20) + b"\n",
    "just too long": b" " * REQUEST_MAX_BYTES + b"{}\n",
    "zeros": b"\0" * 4000 + b"\n",
}


def test_whatever_is_no_question_is_refused_and_the_next_one_is_answered(folder: Path) -> None:
    async def test() -> None:
        async with host(folder) as here:
            for what, data in GARBAGE.items():
                answer = await here.say(data)
                # A sender that is cut off in the middle may not hear why.
                assert not answer or json.loads(answer)["error"]["reason"] == "INVALID_FIELD", what
                assert answer or len(data) > REQUEST_MAX_BYTES, what
            assert here.issued == []
            if ME == 0:
                assert json.loads(await here.say(b"{}\n"))["error"]["reason"] == "LOGIN_DENIED"
            assert all(event != "a login failed" for event, _ in here.log.lines), here.log.lines

    asyncio.run(test())


@needs_root
def test_a_thousand_idle_connections_of_one_account_hold_up_nobody(folder: Path) -> None:
    async def test() -> None:
        async with host(folder, deadline_s=30.0) as here:
            idle: list[socket.socket] = []
            try:
                for _ in range(1000):
                    idle.append(socket.socket(socket.AF_UNIX))
                    idle[-1].setblocking(False)
                    await asyncio.get_running_loop().sock_connect(idle[-1], str(here.path))
                began_s = time.monotonic()
                assert (await here.ask(ADA))["user"] == "ada"
                assert time.monotonic() - began_s < 10
                assert await here.reason(0) == "BUSY", "this account has no place left"
            finally:
                for each in idle:
                    each.close()

    asyncio.run(test())


def test_whoever_says_nothing_loses_its_place(folder: Path) -> None:
    async def test() -> None:
        async with host(folder, deadline_s=0.3) as here:
            quiet = [await asyncio.open_unix_connection(str(here.path)) for _ in range(CONNECTIONS_PER_ACCOUNT)]
            for reader, _ in quiet:
                assert await asyncio.wait_for(reader.read(), 20) == b""
            for _, writer in quiet:
                writer.close()
            assert b"BUSY" not in await here.say(b"x\n")

    asyncio.run(test())


@needs_root
def test_a_scheduler_that_is_silent_costs_a_person_the_deadline_and_others_nothing(folder: Path) -> None:
    async def test() -> None:
        async with host(folder, deadline_s=1.0) as here:
            here.free.clear()
            waiting = asyncio.create_task(here.ask(ADA))
            while not here.issued:
                await asyncio.sleep(0.01)
            assert await here.reason(0) == "LOGIN_DENIED"
            assert await waiting == {}

    asyncio.run(test())


class TestPlace:
    def test_everybody_may_connect_also_to_a_long_path_and_a_dead_one_is_replaced(self, folder: Path) -> None:
        path = folder.joinpath(*["a" * 60] * 3) / "run" / "login.sock"
        old_umask = os.umask(0o077)
        try:
            first = listen(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
            first.close()
            listen(path).close()
        finally:
            os.umask(old_umask)

    def test_a_socket_that_is_served_is_not_taken_away(self, folder: Path) -> None:
        first = listen(folder / "login.sock")
        with pytest.raises(OSError, match="another process"):
            listen(folder / "login.sock")
        first.close()

    def test_a_place_that_cannot_be_listened_at_ends_nothing(self, folder: Path) -> None:
        async def test() -> None:
            (folder / "file").touch()
            made = Host(folder / "file" / "login.sock")
            running = asyncio.create_task(LoginServer(made.path, made.find, made.issue, made.log).run())
            while not made.log.lines:
                await asyncio.sleep(0.01)
            assert not running.done()
            assert made.log.lines[0][0] == "nobody can log in at this host's socket"
            running.cancel()

        asyncio.run(test())


class TestPerson:
    def test_the_name_service_says_name_and_groups(self) -> None:
        found = unixuser.person(str(ME))
        assert (found.uid, unixuser.current().name) == (ME, found.name)
        assert found.groups == tuple(sorted(found.groups))
        assert found.groups

    def test_an_account_without_a_name_is_nobody(self) -> None:
        with pytest.raises(LaunchRefused, match="knows no account 4000000000"):
            unixuser.person("4000000000")

    def test_a_name_that_leads_to_another_account_is_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A local file hides the directory's account of the same name, and jobs run by name."""
        import pwd

        def entry(uid: int) -> pwd.struct_passwd:
            return pwd.struct_passwd(("ada", "x", uid, uid, "", "/", "/bin/sh"))

        monkeypatch.setattr(pwd, "getpwuid", entry)
        monkeypatch.setattr(pwd, "getpwnam", lambda name: entry(4242))
        with pytest.raises(LaunchRefused, match="another account's"):
            unixuser.person("60001")
