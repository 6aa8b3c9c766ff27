"""A private cluster for a benchmark: one scheduler and its agents as processes, in a directory of their own.

The daemons are the real ones with the settings of a server: TLS, tokens, enrolment, SQLite with synchronous=FULL. The
benchmark's caller is a plain user of a tenant, as people are; the admin's token only sets that tenant up. Leaving the
block ends the jobs, the daemons and what they left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.processes import Spent
from gpushare.client.aio import AsyncClient
from gpushare.client.messages import Job, JobSpec, JobState, Role, TenantSettings
from gpushare.client.settings import ConnectionSettings, settings_of_join
from gpushare.client.spec import job_spec
from gpushare.errors import GpushareError
from gpushare.join import decode_join

TENANT = "bench"
USER = "caller"
#: The only cap that the benchmarks change: a tenant may queue this many jobs (10,000 by default).
MAX_QUEUED_JOBS = 200_000
CAPS = f"caps: a tenant may queue {MAX_QUEUED_JOBS:,} jobs (default 10,000); all else as shipped"

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05


class ClusterError(Exception):
    """The cluster did not start, or a daemon ended; the text has the end of its log."""


class Cluster:
    """`scheduler` and `agents` are processes; `client` calls as a user of `TENANT`, `admin` as the cluster's admin."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scheduler: subprocess.Popen[bytes]
        self.agents: list[subprocess.Popen[bytes]] = []
        self.admin: AsyncClient
        self.client: AsyncClient

    # -- using it

    async def cordon(self) -> None:
        """From here on jobs queue and none starts."""
        async for node in self.admin.list_nodes():
            await self.admin.cordon_node(node.name)

    async def uncordon(self) -> None:
        async for node in self.admin.list_nodes():
            await self.admin.uncordon_node(node.name)

    async def containment(self) -> str:
        """How the nodes confine jobs, for the page."""
        kinds = {node.containment async for node in self.admin.list_nodes()}
        return ", ".join(sorted(kinds))

    def spent(self) -> Spent:
        """Counts CPU time from now on."""
        return Spent(self.scheduler.pid, [agent.pid for agent in self.agents])

    async def wait_ended(self, name: str, *, poll_s: float = POLL_S, timeout_s: float = 300.0) -> Job:
        """The job once it has ended. TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                job = await self.client.get_job(name)
                if job.HasField("end_time"):
                    return job
                await asyncio.sleep(poll_s)

    async def jobs(self, *, ended: bool = True) -> list[Job]:
        return [job async for job in self.client.list_jobs(show_ended=ended)]

    # -- starting it

    async def start_scheduler(self) -> None:
        state_dir = self.directory / "scheduler"
        config = self._write_config("scheduler", {"state_dir": state_dir, "listen": "127.0.0.1:0"})
        self.scheduler = self._spawn("scheduler", ["-m", "gpushare.scheduler.main", "--config", str(config)], {})
        join_file = state_dir / "admin.join"
        await self._until(join_file.exists, "the scheduler's first start")
        settings = settings_of_join(decode_join(join_file.read_text()), tenant=TENANT)
        self.admin = AsyncClient(settings)
        await self.admin.create_tenant(TENANT, TenantSettings(max_queued_jobs=MAX_QUEUED_JOBS))
        token = (await self.admin.create_token(USER, Role.ROLE_USER, tenant=TENANT)).secret
        self.client = AsyncClient(ConnectionSettings(settings.server, token, settings.ca_pem, TENANT, USER))

    async def start_agent(self, name: str, simulate: str, environ: Mapping[str, str]) -> None:
        """`simulate` "" looks for real cards, or for those of a stand-in that `environ` leads to."""
        home = self.directory / name
        home.mkdir(mode=0o711)
        join_file = home / "join"
        join = (await self.admin.create_join_token(name)).join
        join_file.touch(mode=0o600)
        join_file.write_text(join)
        settings: dict[str, object] = {
            "join_file": join_file,
            "state_dir": home / "state",
            "run_dir": home / "run",
            "simulate": simulate,
            # As `gpushare up`: jobs run as whoever runs this, in cgroups where the host allows them.
            "containment": "weak",
            "single_user": True,
        }
        config = self._write_config(name, settings)
        self.agents.append(self._spawn(name, ["-m", "gpushare_agent.main", "--config", str(config)], environ))

    async def wait_ready(self) -> None:
        """Until every agent is connected and its cards are known."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                self._refuse_dead()
                nodes = [node async for node in self.admin.list_nodes()]
                if len(nodes) == len(self.agents) and all(node.ready and node.gpus for node in nodes):
                    return
                await asyncio.sleep(POLL_S)

    # -- ending it

    async def stop(self) -> None:
        if hasattr(self, "client"):
            with suppress(GpushareError, TimeoutError):
                await self._end_jobs()
            await self.client.close()
        if hasattr(self, "admin"):
            await self.admin.close()
        processes = [*self.agents, *([self.scheduler] if hasattr(self, "scheduler") else [])]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def _end_jobs(self) -> None:
        """Cordon, so that nothing queued starts; cancel what runs. The queue goes with the directory."""
        await self.cordon()
        live = [job async for job in self.client.list_jobs() if job.state != JobState.JOB_STATE_QUEUED]
        for job in live:
            await self.client.cancel_job(job.name)
        for job in live:
            await self.wait_ended(job.name, timeout_s=STOP_TIMEOUT_S)

    # -- plumbing

    def _write_config(self, name: str, settings: Mapping[str, object]) -> Path:
        path = self.directory / f"{name}.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
        return path

    def _spawn(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_clean_environment(), **environ},
                # A Ctrl-C is this process's to deal with.
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _refuse_dead(self) -> None:
        named = [("scheduler", self.scheduler)]
        named += [(str(path.args[-1]).rpartition("/")[2].removesuffix(".toml"), path) for path in self.agents]
        for name, process in named:
            if process.poll() is not None:
                tail = self._log(name).read_text(errors="replace")[-2000:]
                raise ClusterError(f"{name} ended with code {process.returncode}:\n{tail}")

    async def _until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self._refuse_dead()
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} took more than {START_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def running(
    directory: Path, *, nodes: Sequence[str] = ("4xH100-80GB", "4xH100-80GB"), environ: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """A cluster in `directory` (made, must be new) with one simulated node for each of `nodes`, ready to run jobs."""
    directory.mkdir(mode=0o711, parents=True)
    cluster = Cluster(directory)
    try:
        await cluster.start_scheduler()
        for number, simulate in enumerate(nodes, 1):
            await cluster.start_agent(f"node{number}", simulate, environ or {})
        await cluster.wait_ready()
        yield cluster
    finally:
        await cluster.stop()


def quarter_card(argv: Sequence[str]) -> JobSpec:
    """A job with 0.25 of a card."""
    return job_spec(list(argv), working_directory="/", gpus="0.25")


def _clean_environment() -> dict[str, str]:
    """Ours without the settings of a gpushare that this machine may run for real."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GPUSHARE_")}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"'
