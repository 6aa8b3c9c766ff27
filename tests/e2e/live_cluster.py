"""A private cluster of real daemons in a directory of its own, whose processes a test may kill, stop and start again.

`live_cluster` starts a scheduler and one agent per node with the settings of a server (TLS, tokens, enrolment, SQLite
with synchronous=FULL). Leaving the block ends what still runs and then looks for what was left behind: processes,
control groups, records, descriptors, a journal that contradicts itself. Signals go to processes of this cluster alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import leaks
from standins.nursery import Forked, Nursery
from witness import TENANT, Witness

from gpushare.client.aio import AsyncClient
from gpushare.client.messages import (
    ENDED_JOB_STATES,
    AttemptState,
    Job,
    JobSpec,
    JobState,
    Node,
    Role,
    TaskAttempt,
    TenantSettings,
)
from gpushare.client.settings import ConnectionSettings, settings_of_join
from gpushare.client.spec import job_spec
from gpushare.errors import GpushareError
from gpushare.join import decode_join

T = TypeVar("T")
START_LIMIT_S = 60.0
WAIT_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
POLL_S = 0.03
USER = "ann"
# Below what the kernel gives to outgoing connections: a client that calls a dead port there may reach itself.
PORTS = range(20_000, 29_000)
# Connections come and go; a leak grows with every job.
FDS_SLACK = 8


async def until(condition: Callable[[], T | Awaitable[T]], what: str, within_s: float = WAIT_LIMIT_S) -> T:
    """The first true answer of `condition`, which may be a coroutine function; `what` is the failure's text."""
    deadline_s = time.monotonic() + within_s
    while True:
        found: Any = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found  # type: ignore[no-any-return]
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(POLL_S)


class Daemon:
    """One daemon that may be killed and started again. `log_file` has what every run of it said. What its `environ`
    or a `prefix` have for the loader or the kernel needs an exec of its own: `is_forked` False."""

    def __init__(
        self,
        name: str,
        module: str,
        config: Path,
        environ: Mapping[str, str],
        prefix: Sequence[str] = (),
        *,
        is_forked: bool = False,
    ) -> None:
        self.name = name
        self.config = config
        self.log_file = config.with_suffix(".log")
        self.environ = dict(environ)
        self.base_fds = 0
        self._log_start = 0
        self._module = module
        self._is_forked = is_forked
        self._command = [*prefix, sys.executable, "-m", module, "--config", str(config)]
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> None:
        """Returns when the process exists."""
        assert not self.running, f"{self.name} runs already"
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            if self._is_forked:
                arguments = ["--config", str(self.config)]
                self._process = Nursery.start(self._module, arguments, self.environ, log.fileno())
                return
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of this event since the last start."""
        with self.log_file.open(errors="replace") as log:
            log.seek(self._log_start)
            lines = [line for line in log.read().splitlines() if name in line]
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return [line for line in found if line.get("event") == name]

    def fds(self) -> int:
        """Descriptors that it holds now."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def send(self, number: int) -> None:
        self.check()
        os.kill(self.pid, number)

    def check(self) -> None:
        """It runs; otherwise what it said last."""
        code = self._process.poll() if self._process is not None else None
        assert self.running, f"{self.name} has ended with {code}:\n{self.log()[-3000:]}"

    def kill(self) -> None:
        """kill -9, and the process is gone on return."""
        self.send(signal.SIGKILL)
        self._wait(STOP_LIMIT_S)

    async def stop(self) -> float:
        """SIGTERM; it must end with 0. Returns how long that took, in seconds."""
        began_s = time.monotonic()
        self.send(signal.SIGTERM)
        code = await asyncio.to_thread(self._wait, STOP_LIMIT_S)
        assert code == 0, f"{self.name} ended with {code}:\n{self.log()[-3000:]}"
        return time.monotonic() - began_s

    def freeze(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def destroy(self) -> None:
        """However it is, it has ended on return."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_LIMIT_S)

    async def ended(self, within_s: float = STOP_LIMIT_S) -> int:
        """Its exit code, once it has ended by itself."""
        return await asyncio.to_thread(self._wait, within_s)

    def _wait(self, within_s: float) -> int:
        assert self._process is not None
        return self._process.wait(within_s)


class LiveCluster:
    """`scheduler` and `agents` are the daemons; `client` is a user of `TENANT`, `admin` the cluster's admin."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.witness = Witness(home / "witness")
        self.agents: dict[str, Daemon] = {}
        # Programs that outlive their agent on purpose, by their names; they are ended with the cluster.
        self.outlives: tuple[str, ...] = ()
        self.scheduler: Daemon
        self.admin: AsyncClient
        self.client: AsyncClient

    # -- starting

    async def start_scheduler(self, **settings: object) -> None:
        """The first start, and a tenant with one user."""
        listen = f"127.0.0.1:{self.port}"
        config = self.write_config("scheduler", {"state_dir": self.home / "scheduler", "listen": listen, **settings})
        environ = clean_environment()
        self.scheduler = Daemon("scheduler", "gpushare.scheduler.main", config, environ, is_forked=True)
        self.scheduler.start()
        join_file = self.home / "scheduler" / "admin.join"
        await until(lambda: join_file.exists() or not self.scheduler.running, "the scheduler's first start")
        assert self.scheduler.running, self.scheduler.log()
        connection = settings_of_join(decode_join(join_file.read_text()), tenant=TENANT)
        self.admin = AsyncClient(connection)
        await self.admin.create_tenant(TENANT, TenantSettings(max_queued_jobs=100_000))
        self.use_token((await self.admin.create_token(USER, Role.ROLE_USER, tenant=TENANT)).secret)

    def use_token(self, token: str) -> None:
        """`client` calls with this one from now on."""
        known = self.admin.settings
        self.client = AsyncClient(ConnectionSettings(known.server, token, known.ca_pem, TENANT, USER))

    async def add_agent(
        self,
        node: str,
        simulate: str = "",
        *,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **settings: object,
    ) -> Daemon:
        """Enrols and starts one agent; `simulate` "" looks for real cards, or for those that `environ` leads to.
        `prefix` is a command that starts it."""
        home = self.node_home(node)
        home.mkdir(mode=0o711)
        join = (await self.admin.create_join_token(node)).join
        join_file = home / "join"
        join_file.touch(mode=0o600)
        join_file.write_text(join)
        config = self.write_config(
            node,
            {
                "join_file": join_file,
                "state_dir": home / "state",
                "run_dir": home / "run",
                "simulate": simulate,
                "containment": "weak",
                "single_user": True,
                **settings,
            },
        )
        is_plain = environ is None and not prefix
        agent = Daemon(node, "gpushare_agent.main", config, clean_environment(environ), prefix, is_forked=is_plain)
        self.agents[node] = agent
        agent.start()
        return agent

    async def ready(self, *nodes: str, gpus: bool = True) -> None:
        """Until these nodes (all of them if none is named) are connected and have told their cards."""
        wanted = set(nodes or self.agents)

        async def all_ready() -> bool:
            for name in wanted:
                self.agents[name].check()
            found = [node async for node in self.admin.list_nodes()]
            return wanted <= {n.name.removeprefix("nodes/") for n in found if n.ready and (n.gpus or not gpus)}

        await until(all_ready, f"nodes {sorted(wanted)} are ready", START_LIMIT_S)

    async def settled(self, node: str) -> None:
        """Until agent and scheduler, as they were started last, have met."""
        await until(lambda: self._synced(node), f"{node} is in sync", START_LIMIT_S)

    def note_descriptors(self) -> None:
        """What the daemons hold while nothing goes on; the end is compared with it."""
        for daemon in (self.scheduler, *self.agents.values()):
            daemon.base_fds = daemon.fds()

    # -- jobs

    def spec(self, *argv: str, env: Mapping[str, str] | None = None, **options: Any) -> JobSpec:
        """A job that can find the witness file. `options` are those of `job_spec`."""
        env = {"WITNESS": str(self.witness.path), **(env or {})}
        return job_spec(list(argv), working_directory="/", env=env, **options)

    def shell(self, text: str, **options: Any) -> JobSpec:
        """A job that runs this text (see `witness`) in a shell."""
        return self.spec("/bin/sh", "-c", text, **options)

    async def submit(self, *specs: JobSpec) -> list[str]:
        """Their names, in order."""
        if len(specs) == 1:
            return [job.name for job in (await self.client.create_job(specs[0])).jobs]
        return list((await self.client.batch_create_jobs(specs)).names)

    async def job(self, name: str) -> Job:
        return await self.client.get_job(name)

    async def jobs(self) -> dict[str, Job]:
        """All jobs, ended ones too, by name."""
        return {job.name: job async for job in self.client.list_jobs(show_ended=True)}

    async def in_state(self, names: Iterable[str], state: str, within_s: float = WAIT_LIMIT_S) -> list[Job]:
        """The jobs, once each of them is in this state."""
        wanted = JobState.Value(f"JOB_STATE_{state}")
        return [await self._job_when(name, wanted, within_s) for name in names]

    async def running(self, names: Iterable[str]) -> list[Job]:
        """The jobs, once each of them runs and its program has said so."""
        names = list(names)
        found = await self.in_state(names, "RUNNING")
        for job in found:
            await until(lambda job=job: job.tasks[0].attempt_id in self.witness.lives(), f"{job.name} has begun")
        return found

    async def ended(self, names: Iterable[str], within_s: float = WAIT_LIMIT_S) -> dict[str, Job]:
        """The jobs as they ended."""
        return await asyncio.wait_for(self.client.wait_jobs(list(names)), within_s)

    async def node(self, name: str) -> Node:
        return await self.admin.get_node(f"nodes/{name}")

    def node_home(self, node: str) -> Path:
        return self.home / node

    def records(self, node: str, attempt_id: str) -> Path:
        """Where the agent and the shim write down what becomes of the attempt."""
        return self.node_home(node) / "state" / "attempts" / attempt_id

    async def shim_pid(self, node: str, attempt_id: str) -> int:
        """The process that owns the attempt, once it does."""
        record = self.records(node, attempt_id) / "exec"

        def written() -> int:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return int(json.loads(record.read_text()).get("shim_pid", 0))
            return 0

        return await until(written, f"{attempt_id} has a shim")

    async def end_attempt(self, node: str, attempt_id: str) -> None:
        """kill -9 of its shim, which takes the task with it, as a power cut would; nobody is told."""
        os.kill(await self.shim_pid(node, attempt_id), signal.SIGKILL)
        await until(lambda: not self.witness.lives()[attempt_id].alive, f"{attempt_id} has ended")

    # -- ending

    async def end_jobs(self) -> None:
        """Cancel whatever has not ended, and wait."""
        names = [name for name, job in (await self.jobs()).items() if job.state not in ENDED_JOB_STATES]
        for name in names:
            await self.client.cancel_job(name)
        await self.ended(names)

    async def check_clean(self) -> None:
        """End everything in order and assert that nothing is left of it."""
        await self.end_jobs()
        self.witness.check()
        for node in self.agents:
            attempts = self.node_home(node) / "state" / "attempts"
            await until(lambda attempts=attempts: not os.listdir(attempts), f"{node} has forgotten {attempts}")
        for daemon in (self.scheduler, *self.agents.values()):
            if daemon.base_fds:
                most = daemon.base_fds + FDS_SLACK
                await until(
                    lambda daemon=daemon, most=most: daemon.fds() <= most,
                    f"{daemon.name} holds at most {most} descriptors: {leaks.descriptors(daemon.pid)}",
                )
        for agent in self.agents.values():
            await agent.stop()
        await self.scheduler.stop()
        leaks.end_processes_named(self.home, self.outlives)
        await until(
            lambda: not leaks.processes_of(self.home),
            f"no process is left: {leaks.describe(leaks.processes_of(self.home))}",
            STOP_LIMIT_S,
        )
        instances = self._instances()
        assert not (left := leaks.groups_of(instances)), f"control groups are left: {left}"
        await asyncio.to_thread(leaks.check_journal, self.home / "scheduler" / "journal.db")

    async def destroy(self) -> None:
        """However things are: no process and no control group of this cluster is left."""
        for name in ("client", "admin"):
            if hasattr(self, name):
                await getattr(self, name).close()
        for daemon in (*self.agents.values(), *([self.scheduler] if hasattr(self, "scheduler") else [])):
            daemon.destroy()
        await asyncio.to_thread(leaks.end_processes_of, self.home)
        await asyncio.to_thread(leaks.remove_groups_of, self._instances())

    def tails(self) -> str:
        """The ends of all logs, for a failed test."""
        daemons = [*([self.scheduler] if hasattr(self, "scheduler") else []), *self.agents.values()]
        return "\n".join(f"--- {daemon.name}\n{daemon.log()[-4000:]}" for daemon in daemons)

    # -- inside

    def write_config(self, name: str, settings: Mapping[str, object]) -> Path:
        path = self.home / f"{name}.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
        return path

    async def _job_when(self, name: str, wanted: int, within_s: float) -> Job:
        deadline_s = time.monotonic() + within_s
        while True:
            job = await self.job(name)
            if job.state == wanted:
                return job
            words = f"{JobState.Name(job.state)} {job.reason} {job.detail} {job.wait.reason} {job.wait.detail}"
            assert job.state not in ENDED_JOB_STATES, f"{name} ended: {words}"
            assert time.monotonic() < deadline_s, f"{name} is {words} after {within_s:g} s"
            await asyncio.sleep(POLL_S)

    async def _synced(self, node: str) -> bool:
        self.scheduler.check()
        self.agents[node].check()
        leading = self.scheduler.events("leading")
        met = {line["term"] for line in self.agents[node].events("in session with the scheduler")}
        if not leading or leading[-1]["term"] not in met:
            return False
        with contextlib.suppress(GpushareError):
            return (await self.node(node)).ready
        return False

    def _instances(self) -> set[str]:
        found = set()
        for identity in self.home.glob("*/state*/identity"):
            found.add(json.loads(identity.read_text())["instance_id"])
        return found


@asynccontextmanager
async def live_cluster(
    home: Path, nodes: Mapping[str, str] | None = None, **scheduler: object
) -> AsyncIterator[LiveCluster]:
    """A cluster with simulated `nodes` (name -> cards), ready. `scheduler` are settings of the scheduler."""
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    cluster = LiveCluster(home)
    try:
        await cluster.start_scheduler(**scheduler)
        for node, simulate in (nodes or {}).items():
            await cluster.add_agent(node, simulate)
        if nodes:
            await cluster.ready()
            cluster.note_descriptors()
        yield cluster
        await cluster.check_clean()
    except BaseException:
        print(cluster.tails())
        raise
    finally:
        await cluster.destroy()


def run(test: Callable[[], Awaitable[None]], within_s: float = 110.0) -> None:
    """Run one test's coroutine with a limit."""

    async def limited() -> None:
        await asyncio.wait_for(test(), within_s)

    asyncio.run(limited())


def states(job: Job) -> list[tuple[str, str]]:
    """(state, reason) of each task's newest attempt."""
    return [(AttemptState.Name(a.state).removeprefix("ATTEMPT_STATE_"), a.reason) for a in job.tasks]


def state_of(job: Job) -> str:
    return JobState.Name(job.state).removeprefix("JOB_STATE_")


def attempt_state(attempt: TaskAttempt) -> str:
    return AttemptState.Name(attempt.state).removeprefix("ATTEMPT_STATE_")


def attempt_of(name: str, number: int) -> str:
    """The id of that attempt of a job of one task."""
    return f"{TENANT}.{name.rpartition('/')[2]}.0.{number}"


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without the settings of a gpushare or a CUDA that this machine may have for real."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("GPUSHARE_", "CUDA_"))}
    return {**ours, **(more or {})}


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _toml(value: object) -> str:
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)
