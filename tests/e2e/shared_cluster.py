"""One live cluster for many tests, with several people, and both doors to it: raw gRPC and the command line.

`World.do` runs a coroutine on the cluster's own loop, in the test's thread; `World.cli` runs a command in this process,
`World.cli_process` in one of its own. Each test keeps to a card model of its own, so that tests do not wait for each
other, and ends its jobs; `World.change_since` is for those that say that nothing happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from live_cluster import TENANT, LiveCluster, clean_environment

from gpushare import rpc
from gpushare.cli import main as cli
from gpushare.client.aio import AsyncClient
from gpushare.client.messages import ENDED_JOB_STATES, Role, TenantSettings
from gpushare.client.settings import CONFIG_ENV, ConnectionSettings, save_context
from gpushare.errors import from_rpc_error

T = TypeVar("T")
OTHER_TENANT = "nlp"
LIMIT_S = 90.0
# node -> its simulated cards. No two nodes have the same model, so that a test picks its cards by their model.
NODES = {"n1": "4xH100-80GB", "n3": "8xA100-80GB"}
# One more keeps only this much of each stream of a job's output.
SMALL_LOGS_NODE, SMALL_LOGS_CARDS, LOG_CAP_MIB = "n2", "2xL40S", 1
# The settings that the command line reads from its environment.
_CLIENT_ENV = ("GPUSHARE_SERVER", "GPUSHARE_TOKEN", "GPUSHARE_CA", CONFIG_ENV)


class Outcome(NamedTuple):
    """How a command ended, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Mark(NamedTuple):
    """A moment of the journal, and what could be seen then."""

    sequence: int
    seen: tuple[bytes, ...]


class World:
    """`people` has a client for each of ann and bob (users of `team`), nina (user of `nlp`) and root (admin)."""

    def __init__(self, runner: asyncio.Runner, cluster: LiveCluster) -> None:
        self._runner = runner
        self.cluster = cluster
        self.contexts = cluster.home / "contexts.toml"
        self.people: dict[str, AsyncClient] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    def do(self, work: Coroutine[Any, Any, T], within_s: float = LIMIT_S) -> T:
        """The result of `work`, run to its end on the cluster's loop."""
        return self._runner.run(asyncio.wait_for(work, within_s))

    async def open(self) -> None:
        """Make the people and their contexts, and add the node whose logs are small."""
        await self.cluster.add_agent(SMALL_LOGS_NODE, SMALL_LOGS_CARDS, log_cap_mib=LOG_CAP_MIB)
        await self.cluster.ready()
        self.cluster.note_descriptors()
        await self.cluster.admin.create_tenant(OTHER_TENANT, TenantSettings(max_queued_jobs=100_000))
        own = self.cluster.client.settings
        self._add("ann", own)
        self._add("root", self.cluster.admin.settings)
        for who, tenant in (("bob", TENANT), ("nina", OTHER_TENANT)):
            await self.add_user(who, tenant)

    async def add_user(self, who: str, tenant: str) -> AsyncClient:
        """A token of role user in this tenant, a client and a context `who`."""
        known = self.cluster.admin.settings
        token = (await self.cluster.admin.create_token(who, Role.ROLE_USER, tenant=tenant)).secret
        return self._add(who, ConnectionSettings(known.server, token, known.ca_pem, tenant, who))

    async def add_tenant(self, tenant: str, settings: TenantSettings | None = None) -> AsyncClient:
        """A tenant, and its one user of the same name."""
        await self.cluster.admin.create_tenant(tenant, settings or TenantSettings())
        return await self.add_user(tenant, tenant)

    def _add(self, who: str, settings: ConnectionSettings) -> AsyncClient:
        save_context(self.contexts, who, settings)
        self.people[who] = AsyncClient(settings, timeout_s=LIMIT_S)
        return self.people[who]

    async def close(self) -> None:
        """Ends everybody's jobs and connections."""
        await self.end_jobs()
        for channel in self._channels.values():
            await channel.close()
        for client in self.people.values():
            await client.close()

    async def end_jobs(self, names: Iterable[str] | None = None) -> None:
        """Cancel these jobs, or all there are, and wait for their ends."""
        if names is None:
            found = [job async for job in self.cluster.admin.list_jobs()]
            names = [job.name for job in found if job.state not in ENDED_JOB_STATES]
        names = list(names)
        await asyncio.gather(*(self.cluster.admin.cancel_job(name) for name in names))
        await self.cluster.admin.wait_jobs(names)

    # -- the two doors

    async def send(self, rpc_name: str, request: Message | bytes, who: str = "ann") -> bytes:
        """A raw unary call of "JobService/CreateJob" with these bytes. Raises GpushareError."""
        if who not in self._channels:
            settings = self.people[who].settings
            self._channels[who] = rpc.aio_channel(settings.server, ca_pem=settings.ca_pem, token=settings.token)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            answer: bytes = await self._channels[who].unary_unary(f"/gpushare.v1.{rpc_name}")(data, timeout=LIMIT_S)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err
        return answer

    def cli(self, *words: str, who: str = "ann") -> Outcome:
        """A command of this person, in this process."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with (
            _environment({CONFIG_ENV: str(self.contexts)}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main(["--context", who, "--timeout", f"{LIMIT_S:g}s", *words])
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, _text(out), _text(err))

    def cli_process(self, *words: str | bytes, who: str = "ann", stdin: bytes = b"") -> Outcome:
        """The same in a process of its own, as a person runs it."""
        command: list[str | bytes] = [sys.executable, "-m", "gpushare.cli.main", "--context", who]
        done = subprocess.run(
            [*command, "--timeout", f"{LIMIT_S:g}s", *words],
            env=self.cli_environment(),
            input=stdin,
            capture_output=True,
            timeout=LIMIT_S,
        )
        return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def cli_environment(self) -> dict[str, str]:
        return {**clean_environment(), CONFIG_ENV: str(self.contexts)}

    # -- what was changed

    def mark(self) -> Mark:
        return self.do(self._mark())

    def change_since(self, mark: Mark) -> list[str]:
        """What is in the journal since, and what looks different; agents that only came back are left out."""
        return self.do(self._change_since(mark))

    async def _mark(self) -> Mark:
        admin = self.cluster.admin
        events = admin.list_audit_events(page_size=1)
        newest = await anext(events)
        await events.aclose()
        seen = [each.SerializeToString(deterministic=True) async for each in admin.list_jobs(show_ended=True)]
        seen += [each.SerializeToString(deterministic=True) async for each in admin.list_tenants()]
        seen += [each.SerializeToString(deterministic=True) async for each in admin.list_tokens()]
        return Mark(newest.sequence, tuple(seen))

    async def _change_since(self, mark: Mark) -> list[str]:
        now = await self._mark()
        found = []
        if now.sequence != mark.sequence:
            async for event in self.cluster.admin.list_audit_events(page_size=50):
                if event.sequence <= mark.sequence:
                    break
                came_back = event.principal.role in ("agent", "system") and event.kind.startswith(("Node", "Gpu"))
                if not came_back:
                    found.append(f"{event.sequence} {event.kind} {event.principal.user} {event.subject}")
        return found + (["what is listed has changed"] if now.seen != mark.seen else [])


def request_id() -> str:
    return uuid.uuid4().hex


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name, None) for name in _CLIENT_ENV}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
