"""The agent's parts put together and run until a signal: enrol, recover, look at the cards, keep a session.

Imports everything of the agent, grpc included; `main` starts the launcher before it imports this. Invariants: a signal
ends the agent within two seconds whatever hangs, and no job notices; a part that ends by itself ends the agent with an
error, it never limps on without its watchdog or its session.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gpushare.config import AgentConfig
from gpushare.errors import GpushareError
from gpushare.host import notify, places
from gpushare.join import JoinString
from gpushare_agent import logs, unixuser
from gpushare_agent.agent import Agent, NodeFacts, StatusRelay
from gpushare_agent.executor import Executor
from gpushare_agent.gpus.catalogue import SimulatedNode, parse_node
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuLibrary, GpuSnapshot
from gpushare_agent.identity import Credentials, Identity, IdentityError, StateDirectory
from gpushare_agent.inpassing import in_passing
from gpushare_agent.inventory import CardBook, HostSize, Inventory, absent_text, fence_lines, host_size, inventory_of
from gpushare_agent.launching import Launching, LaunchSettings
from gpushare_agent.loginrpc import issuing
from gpushare_agent.logins import LoginServer
from gpushare_agent.monitor import Monitor, MonitorSettings
from gpushare_agent.scratch import ScratchSpace
from gpushare_agent.session import Backoff, SessionLoop, enroll
from gpushare_agent.sharing.choose import CardFences
from gpushare_agent.sharing.port import Tier
from gpushare_agent.users import UserLookup

# A restarted agent has jobs whose leases want renewing: it does not wait long for its cards before the session.
FIRST_LOOK_RESTARTED_S = 0.5
FIRST_LOOK_FRESH_S = 120.0
CLOSE_TIMEOUT_S = 1.2
SWEEP_EVERY_S = 600.0
# A host full of people who all come at nine.
LOGIN_LOOKUPS_MAX = 64
SWEEP_AGAIN_S = 5.0


class Daemon:
    """One run of the agent."""

    def __init__(
        self,
        config: AgentConfig,
        state: StateDirectory,
        identity: Identity,
        executor: Executor,
        relay: StatusRelay,
        join: JoinString | None,
        log: Any,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._config = config
        self._state = state
        self._identity = identity
        self._executor = executor
        self._relay = relay
        self._join = join
        self._log = log
        self._warnings = warnings
        self._shape: SimulatedNode | None = parse_node(config.simulate) if config.simulate else None
        self._library: GpuLibrary | None = None
        self._session: SessionLoop | None = None
        self._logins: LoginServer | None = None
        self._fences_recovered = False

    async def run(self) -> int:
        """The exit code. Raises IdentityError."""
        loop = asyncio.get_running_loop()
        signalled = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled.set)
        work = asyncio.create_task(self._work(), name="work")
        stop = asyncio.create_task(signalled.wait(), name="signal")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                return 1
            self._log.info("stopping; running jobs go on")
            return 0
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.wait({work, stop}, timeout=CLOSE_TIMEOUT_S)

    async def _work(self) -> None:
        credentials = await self._credentials()
        fence = CardFences(
            self._config.run_dir,
            allowed=[Tier(tier) for tier in self._config.tiers],
            single_user=self._config.single_user,
        )
        facts = NodeFacts(
            identity=self._identity,
            boot_id=self._executor.boot_id,
            host=self._host(),
            labels=self._config.labels,
            shared_paths=self._config.shared_paths,
            warnings=self._warnings,
        )
        scratch = ScratchSpace(self._config.scratch_dir, self._left_behind)
        scratch.open()
        agent = Agent(facts, self._state, self._executor, fence, scratch, self._log)
        self._relay.target = agent.on_status
        await agent.recover()
        notify.ready()
        self._library = self._open_library(credentials.node, agent)
        book = CardBook(self._state.path)
        managed_gpus = None if self._config.managed_gpus == ("all",) else frozenset(self._config.managed_gpus)
        if book.last.infos and all(info.simulated == (self._shape is not None) for info in book.last.infos):
            agent.remember(book.last)

        async def register(infos: list[GpuInfo], snapshot: GpuSnapshot) -> None:
            await self._register(infos, snapshot, agent, fence, book)

        settings = MonitorSettings(
            managed_gpus=managed_gpus,
            interval_s=self._config.watchdog_interval_ms / 1000,
            stranger_mib=self._config.stranger_threshold_mib,
        )
        monitor = Monitor(self._library, agent, settings, register, fence.own_pids, self._log)
        monitor.expect([card.uuid for card in agent.inventory.gpus])
        launching = Launching(
            self._launch_settings(credentials.node),
            self._executor,
            fence,
            UserLookup(unixuser.resolve),
            scratch,
            lambda uuid: agent.inventory.info(uuid),
            monitor,
        )
        self._session = SessionLoop(
            agent, credentials.node, self._config.server or credentials.address, credentials.ca_pem, credentials.token,
            self._log, self._config.advertise_address,
        )  # fmt: skip
        self._logins = self._login_server(credentials)
        await self._run_parts(agent, monitor, launching, fence)

    def _login_server(self, credentials: Credentials) -> LoginServer | None:
        """Where people of this host get their tokens; None where the configuration wants none."""
        if not self._config.login_socket:
            return None
        address = self._config.server or credentials.address
        return LoginServer(
            Path(self._config.login_socket),
            UserLookup(unixuser.person, lookups_max=LOGIN_LOOKUPS_MAX).find,
            issuing(address, credentials.ca_pem, credentials.token),
            self._log,
            min_uid=self._config.login_min_uid,
        )

    async def _run_parts(self, agent: Agent, monitor: Monitor, launching: Launching, fence: CardFences) -> None:
        """The session, the monitor, the logins and the sweeping of old output, until one of them ends."""
        agent.use(launching, monitor.nudge)
        restarted = bool(agent.core.live()) or bool(agent.inventory.gpus)

        async def watch() -> None:
            await first_look
            agent.cards_are_known()
            await monitor.run()

        async def converse() -> None:
            await asyncio.wait({first_look}, timeout=FIRST_LOOK_RESTARTED_S if restarted else FIRST_LOOK_FRESH_S)
            assert self._session is not None
            await self._session.run()

        async def look_first() -> None:
            self._name_absent(agent, await monitor.look())

        first_look = asyncio.create_task(look_first(), name="first-look")
        parts = {
            asyncio.create_task(watch(), name="monitor"),
            asyncio.create_task(converse(), name="session"),
            asyncio.create_task(self._sweep(agent), name="sweep"),
        }
        if self._logins is not None:
            parts.add(asyncio.create_task(self._logins.run(), name="logins"))
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            await self._close([first_look, *parts], agent, fence)

    async def _close(self, tasks: list[asyncio.Task[Any]], agent: Agent, fence: CardFences) -> None:
        """Everything at once, since any of it may hang."""
        for task in tasks:
            task.cancel()
        closing: list[Awaitable[None]] = [agent.close(), fence.close(), self._executor.close()]
        if self._library is not None:
            closing.append(self._library.close())
        jobs = [asyncio.ensure_future(each) for each in closing]
        await asyncio.wait([*tasks, *jobs], timeout=CLOSE_TIMEOUT_S)

    async def _register(
        self, infos: list[GpuInfo], snapshot: GpuSnapshot, agent: Agent, fence: CardFences, book: CardBook
    ) -> None:
        """The cards are new or have changed: what each can fence, what it has, and a session that says so."""
        kept = {info.uuid for info in infos}
        mine = msgspec.structs.replace(
            snapshot, infos=tuple(infos), samples=tuple(sample for sample in snapshot.samples if sample.uuid in kept)
        )
        report = await fence.probe(mine)
        self._tell_logins(kept, snapshot)
        first = not self._fences_recovered
        if first:
            await agent.recover_fences()
            self._fences_recovered = True
        reserve_mib = self._reserve_mib()
        usable_mib = {
            info.uuid: book.usable_mib(info, reserve_mib, empty=not agent.core.on_card(info.uuid)) for info in infos
        }
        inventory = Inventory(tuple(infos), inventory_of(infos, usable_mib, report), snapshot.driver_version)
        try:
            book.write(inventory)
        except OSError as err:
            self._log.warning("the inventory is not kept for the next start", why=str(err))
        news = self._name_absent(agent, snapshot) or inventory != agent.inventory
        for line in fence_lines(inventory.gpus) if news or first else ():
            self._log.info(line)
        if not news:
            return
        agent.register(inventory)
        if self._session is not None and self._session.connected:
            self._session.restart()

    def _name_absent(self, agent: Agent, snapshot: GpuSnapshot) -> bool:
        """Warns of managed cards that are not there; whether that is news."""
        if snapshot.state is not DriverState.OK:
            return False
        named = None if self._config.managed_gpus == ("all",) else self._config.managed_gpus
        text = absent_text(snapshot.infos, named)
        warnings = (text,) if text else ()
        if warnings == agent.card_warnings:
            return False
        agent.card_warnings = warnings
        if text:
            self._log.warning(text)
        if self._session is not None and self._session.connected:
            self._session.restart()
        return True

    def _tell_logins(self, managed: set[str], snapshot: GpuSnapshot) -> None:
        """The cards that are not ours, for the login shells of a host that hides the others from them."""
        if self._shape is not None:
            return
        others = [info.uuid for info in snapshot.infos if info.uuid not in managed]
        file = self._config.run_dir / places.LOGIN_CARDS
        beside = file.with_name(f".{file.name}.new")
        try:
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            beside.write_text(",".join(others) + "\n")
            beside.chmod(0o644)
            os.replace(beside, file)
        except OSError as err:
            self._log.warning("login shells are not told which cards are not gpushare's", why=str(err))

    async def _sweep(self, agent: Agent) -> None:
        """Removes output that is older than it is kept."""
        root = self._state.path / "logs"
        while True:
            known = agent.core.known()
            # Thousands of directories on a disk that may be slow: not on the loop that renews the leases.
            removed = await in_passing(partial(logs.sweep, root, self._config.log_keep_s, known, time.time()))
            if removed:
                self._log.info("old output removed", attempts=len(removed))
            await asyncio.sleep(SWEEP_AGAIN_S if len(removed) == logs.SWEEP_MOST else SWEEP_EVERY_S)

    # -- who we are

    async def _credentials(self) -> Credentials:
        """Those of an earlier enrolment, or of a new join line; enrols, however long the scheduler is away."""
        known = self._state.credentials()
        join = self._join
        if join is None:
            if known is None:
                raise IdentityError(
                    "this agent is not enrolled: give it the join line that `gpushare node join-token NODE` prints "
                    "(--join, or join_file in its configuration)"
                )
            return known
        digest = hashlib.sha256(join.secret.encode()).hexdigest()
        if known is not None and known.join_sha256 == digest:
            return known
        backoff = Backoff()
        while True:
            try:
                node, token = await enroll(join.address, join.ca_pem, join.secret, self._identity.instance_id)
                break
            except GpushareError as err:
                if err.status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    if known is None:
                        raise IdentityError(f"enrolling at {join.address} was refused: {err}") from err
                    self._log.warning("the new join line was refused, the old credentials are used", why=str(err))
                    return known
                self._log.warning("cannot enrol yet", address=join.address, why=str(err))
                # It waits for another machine now, and whoever started it need not.
                notify.ready()
                await asyncio.sleep(backoff.after(err.reason))
        credentials = Credentials(join.address, join.ca_pem, node, token, digest)
        self._state.write_credentials(credentials)
        self._log.info("enrolled", node=node, address=join.address)
        return credentials

    # -- what we have

    def _left_behind(self, path: str) -> None:
        self._log.warning("a scratch directory cannot be removed; the next start tries again", path=path)

    def _host(self) -> HostSize:
        if self._shape is not None:
            return HostSize(cpu_milli=self._shape.cpu_milli, memory_mib=self._shape.memory_mib)
        return host_size()

    def _reserve_mib(self) -> int:
        shares = set(self._config.tiers) - {"exclusive"}
        return self._config.gpu_reserve_mib if shares and self._shape is None else 0

    def _open_library(self, node: str, agent: Agent) -> GpuLibrary:
        if self._shape is not None:
            from gpushare_agent.gpus.simulated import SimulatedLibrary

            return SimulatedLibrary(node, self._shape, agent.usage_dirs, self._config.simulate_faults)
        from gpushare_agent.gpus.nvml_client import NvmlLibrary

        return NvmlLibrary(deadline_s=self._config.nvml_deadline_ms / 1000, stuck_file=self._state.path / "stuck-nvml")

    def _launch_settings(self, node: str) -> LaunchSettings:
        return LaunchSettings(
            node=node,
            single_user=self._config.single_user,
            log_cap_bytes=self._config.log_cap_mib << 20,
            simulated=self._shape is not None,
            filters_devices=self._executor.containment != "weak",
        )
