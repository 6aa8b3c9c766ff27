"""`gpushare up`: a scheduler and its agents on this machine, in the foreground, for the one who starts it.

Imports click; the rest when the command runs. The daemons are subprocesses and never imported. Invariants: jobs
outlive `up` and are adopted by the next one on the same state directory; a daemon that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gpushare.cli.daemons import Daemon
    from gpushare.cli.interrupts import Interrupts
    from gpushare.cli.upstate import NodePlan, UpState
    from gpushare.client.aio import AsyncClient
    from gpushare.client.settings import ConnectionSettings

CONTEXT = "local"
_SCHEDULER_READY_S = 60.0
_NODE_READY_S = 120.0
_POLL_S = 0.1
_STOP_JOBS_LIMIT_S = 120.0


@click.command()
@click.option("--simulate", metavar="SHAPE", default="", help="Simulated cards: NODESxCARDSxMODEL, e.g. 2x4xH100-80GB.")
@click.option("--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="Where everything is kept.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:7480", show_default=True, help="Where to serve.")
@click.option("--stop-jobs", is_flag=True, help="When stopped, cancel all jobs first and wait for their end.")
def up(simulate: str, state_dir: Path | None, listen: str, stop_jobs: bool) -> int:
    """Scheduler and agents on this machine, in the foreground, as the user who starts them.

    The first start makes tenant "default" with you as its admin. Ctrl-C stops the daemons and leaves the jobs; the
    next start with the same state directory adopts them.
    """
    from gpushare.address import parse_address
    from gpushare.cli.session import quiet_grpc
    from gpushare.cli.upstate import UpState, default_state_dir, os_user, plan_nodes

    account = os_user()
    _say(f"jobs run as {account} (uid {os.geteuid()}), the user who started this, whoever submits them")
    plans = plan_nodes(simulate)
    parse_address(listen, "listen", minimum_port=0)
    state = UpState((state_dir or default_state_dir()).absolute())
    quiet_grpc()
    try:
        state.check_shape(simulate)
        return asyncio.run(_Up(state, plans, simulate, listen, account, stop_jobs=stop_jobs).run())
    finally:
        state.close()


def _say(text: str) -> None:
    # The terminal may be gone, and the daemons still want to be stopped in order.
    with contextlib.suppress(OSError):
        print(text, flush=True)


@dataclass
class _Up:
    """One run of `up`."""

    state: UpState
    plans: list[NodePlan]
    shape: str
    listen: str
    account: str
    stop_jobs: bool
    daemons: list[Daemon] = field(default_factory=list)
    settings: ConnectionSettings | None = None
    # The context that was current before.
    context_before: str = ""

    async def run(self) -> int:
        from gpushare.cli.interrupts import Interrupts

        with Interrupts() as interrupts:
            watching: list[asyncio.Task[None]] = []
            starting = asyncio.create_task(self._start())
            asked = asyncio.create_task(_asked_to_stop(interrupts))
            try:
                await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    watching = [asyncio.create_task(daemon.keep_running()) for daemon in self.daemons]
                    await asked
                    await self._end_jobs(interrupts)
            finally:
                starting.cancel()
                asked.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await self._stop(watching)
        return 0

    async def _start(self) -> None:
        from gpushare.address import Address, parse_address
        from gpushare.cli.daemons import Daemon
        from gpushare.cli.upstate import as_name, rotate_log
        from gpushare.client.settings import context_path, read_contexts, save_context

        user = as_name(self.account, "admin")
        self.state.write_scheduler_config(self.listen, user)
        _say(f"state is in {self.state.path}")
        rotate_log(self.state.scheduler_log)
        scheduler = Daemon(
            "scheduler", "gpushare.scheduler.main", self.state.scheduler_log, self._prepare_scheduler, _say
        )
        await scheduler.start()
        self.daemons.append(scheduler)
        self.settings = await self._scheduler_ready(scheduler, user)
        # Started again, it must serve where everybody looks for it, even where any free port was good at first.
        bound = parse_address(self.settings.server).port
        listen = Address(parse_address(self.listen, minimum_port=0).host, bound)
        self.state.write_scheduler_config(str(listen), user)
        _say(f"the scheduler serves at {self.settings.server}")
        agents = [await self._start_agent(plan) for plan in self.plans]
        await asyncio.gather(*(self._node_ready(plan, agent) for plan, agent in zip(self.plans, agents, strict=True)))
        self.state.keep_shape(self.shape)
        path = context_path()
        before = read_contexts(path).current
        # Its own, where it was killed the last time.
        self.context_before = before if before != CONTEXT else ""
        save_context(path, CONTEXT, self.settings)
        _say(f"context {CONTEXT!r} is now the current one in {path}")
        command = "gpushare-simwork --memory 6G --seconds 10" if self.plans[0].simulate else "nvidia-smi"
        _say(f"ready; in another terminal: gpushare run --gpus 0.25 -- {command}")
        _say("Ctrl-C stops the daemons and leaves the jobs" if not self.stop_jobs else "Ctrl-C ends all jobs and stops")

    async def _prepare_scheduler(self) -> Path:
        return self.state.scheduler_config

    async def _scheduler_ready(self, scheduler: Daemon, user: str) -> ConnectionSettings:
        """The admin's connection, as soon as a call gets through."""
        from gpushare.cli.upstate import TENANT
        from gpushare.client.aio import AsyncClient
        from gpushare.client.settings import settings_of_join
        from gpushare.errors import GpushareError, UnavailableError
        from gpushare.join import decode_join
        from gpushare.reasons import Reason

        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _SCHEDULER_READY_S
        trouble = "it wrote no admin.join"
        while loop.time() < deadline_s:
            scheduler.check()
            try:
                join = decode_join(self.state.admin_join.read_text())
                settings = settings_of_join(join, tenant=TENANT, user=user)
                async with AsyncClient(settings, timeout_s=1.0) as client:
                    async for _ in client.list_nodes():
                        break
                # The port may be that of another scheduler, while ours could not have it.
                scheduler.check()
                return settings
            except (OSError, GpushareError) as err:
                trouble = str(err)
            await asyncio.sleep(_POLL_S)
        raise UnavailableError(
            Reason.SCHEDULER_UNREACHABLE, f"The scheduler was not ready in {_SCHEDULER_READY_S:.0f} s: {trouble}"
        )

    async def _start_agent(self, plan: NodePlan) -> Daemon:
        from gpushare.cli.daemons import Daemon
        from gpushare.cli.upstate import rotate_log

        async def prepare() -> Path:
            assert self.settings is not None
            join = None
            if not self.state.is_enrolled(plan.name):
                async with self._client() as client:
                    join = (await client.create_join_token(plan.name)).join
            return self.state.write_agent_config(plan, self.settings.server, join)

        self.state.node_dir(plan.name).mkdir(mode=0o711, parents=True, exist_ok=True)
        log = self.state.node_dir(plan.name) / "agent.log"
        rotate_log(log)
        agent = Daemon(f"agent of {plan.name}", "gpushare_agent.main", log, prepare, _say)
        await agent.start()
        self.daemons.append(agent)
        return agent

    async def _node_ready(self, plan: NodePlan, agent: Daemon) -> None:
        """Waits for the node's session, and says what it has."""
        from gpushare.errors import NotFoundError, UnavailableError
        from gpushare.reasons import Reason

        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _NODE_READY_S
        async with self._client() as client:
            while loop.time() < deadline_s:
                agent.check()
                try:
                    node = await client.get_node(f"nodes/{plan.name}")
                except NotFoundError:
                    await asyncio.sleep(_POLL_S)
                    continue
                if node.ready:
                    models = ", ".join(_cards_text([gpu.model for gpu in node.gpus])) or "no cards"
                    kind = " (simulated)" if plan.simulate else ""
                    _say(f"{plan.name} is ready: {models}{kind}, containment {node.containment}")
                    if not node.gpus:
                        why = f" ({node.reason}: {node.detail})" if node.reason else ""
                        _say(f"note: no card was found here{why}; to try without one: --simulate 1x2xH100-80GB")
                    return
                await asyncio.sleep(_POLL_S)
        raise UnavailableError(
            Reason.NODE_UNREACHABLE,
            f"{plan.name} was not ready in {_NODE_READY_S:.0f} s: {agent.last_words()}",
            what_to_do=f"Look into {self.state.node_dir(plan.name) / 'agent.log'}.",
        )

    def _client(self) -> AsyncClient:
        from gpushare.client.aio import AsyncClient

        assert self.settings is not None
        return AsyncClient(self.settings, timeout_s=15.0)

    async def _end_jobs(self, interrupts: Interrupts) -> None:
        """With --stop-jobs: cancels everything and waits, unless asked a second time."""
        from gpushare.errors import GpushareError

        if not self.stop_jobs:
            _say("stopping; running jobs go on")
            return
        async with self._client() as client:
            names = [job.name async for job in client.list_jobs()]
            _say(f"ending {len(names)} jobs (Ctrl-C once more leaves them)")
            ending = asyncio.create_task(_cancel_and_wait(client, names))
            leaving = asyncio.create_task(interrupts.leave.wait())
            try:
                await asyncio.wait({ending, leaving}, timeout=_STOP_JOBS_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    ending.result()
                else:
                    _say("some jobs have not ended and go on")
            except GpushareError as err:
                print(f"error: {err}", file=sys.stderr)
            finally:
                ending.cancel()
                leaving.cancel()

    async def _stop(self, watching: list[asyncio.Task[None]]) -> None:
        """Agents first, so that the scheduler still hears what they have to say."""
        agents = self.daemons[1:]
        await asyncio.gather(*(agent.stop() for agent in agents))
        for scheduler in self.daemons[:1]:
            await scheduler.stop()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        self._leave_context()
        _say("stopped")

    def _leave_context(self) -> None:
        """Whoever works on another cluster, too, has that one before them again."""
        from gpushare.client.settings import context_path, leave_context
        from gpushare.errors import GpushareError

        with contextlib.suppress(GpushareError):
            left = self.settings and leave_context(context_path(), CONTEXT, self.settings, self.context_before)
            if left and self.context_before:
                _say(f"context {self.context_before!r} is the current one again")


async def _cancel_and_wait(client: AsyncClient, names: list[str]) -> None:
    from gpushare.cli.follow import cancel_jobs

    await cancel_jobs(client, names)
    await client.wait_jobs(names)


async def _asked_to_stop(interrupts: Interrupts) -> None:
    """Ctrl-C, SIGTERM, or a terminal that is gone."""
    asking = [asyncio.ensure_future(each.wait()) for each in (interrupts.cancel, interrupts.leave)]
    try:
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in asking:
            each.cancel()


def _cards_text(models: list[str]) -> list[str]:
    """ "4 x H100-80GB" for each model."""
    return [f"{models.count(model)} x {model}" for model in dict.fromkeys(models)]
