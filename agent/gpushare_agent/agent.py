"""The shell around the agent's pure core: carries its effects out, and feeds it what happens.

Imports asyncio, the executor and this package's parts; no grpc, no protobuf. Invariants: the effects of one attempt are
carried out one after the other in the order they were decided, those of different attempts at once; an effect on an
attempt that fails is an observation and never an exception that ends the agent; a leader's term that the disk does not
keep is an OSError to the session that heard of it, which then does not follow that leader; what a session is told is
always the core's present state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import gpushare
from gpushare.core.kinds import GpuState, OnDisconnect
from gpushare.core.model import GpuCondition
from gpushare.reasons import Reason
from gpushare_agent import core as decisions
from gpushare_agent.channels import Channels
from gpushare_agent.clientends import ClientEnds
from gpushare_agent.core import AgentCore, Card, Effect, Holding, ResumeOrder, StartOrder
from gpushare_agent.executor import AttemptStatus, Executor, LaunchRefused, lease_needed_ms
from gpushare_agent.facts import HelloFacts, SyncFacts
from gpushare_agent.gpus.port import GpuSample
from gpushare_agent.gpus.simulated import UsageDir
from gpushare_agent.health import FenceDoubts
from gpushare_agent.holdings import HoldingBook
from gpushare_agent.identity import Identity, StateDirectory
from gpushare_agent.inventory import HostSize, Inventory
from gpushare_agent.launching import FenceFailed, Launching
from gpushare_agent.logs import LogReads
from gpushare_agent.monitor import slice_of
from gpushare_agent.outbox import Outbox
from gpushare_agent.scratch import ScratchSpace
from gpushare_agent.sharing.port import Fence, Tier
from gpushare_agent.sharing.watchdog import JobUse

# Clients of an MPS server are ended this long before the kill, so that the kill harms no neighbour.
TERMINATE_BEFORE_KILL_S = 1.5
TERMINATE_TIMEOUT_S = 5.0
# How long an order may wait for an agent that has just started to know what its cards can fence.
READY_TIMEOUT_S = 60.0
LEASE_TIMEOUT_S = 10.0
LEASE_LOOK_EVERY_S = 0.05
RENEW_AT_LEAST_EVERY_S = 0.2
SEAL_AGAIN_S = 2.0


class NodeFacts(msgspec.Struct, frozen=True):
    """What does not change while the agent runs."""

    identity: Identity
    boot_id: str
    host: HostSize
    labels: dict[str, str]
    shared_paths: tuple[str, ...] = ()
    # What is wrong with how the host is set up, for whoever looks at the node.
    warnings: tuple[str, ...] = ()


class StatusRelay:
    """Gives the executor somewhere to report to before the agent exists."""

    def __init__(self) -> None:
        self.target: Callable[[AttemptStatus], None] | None = None

    def __call__(self, status: AttemptStatus) -> None:
        if self.target is not None:
            self.target(status)


class Agent:
    """One node's agent. Everything runs on one event loop; the methods a session calls do not wait."""

    def __init__(
        self,
        facts: NodeFacts,
        state: StateDirectory,
        executor: Executor,
        fence: Fence,
        scratch: ScratchSpace,
        log: Any,
    ) -> None:
        self._facts = facts
        self._state = state
        self._executor = executor
        self._fence = fence
        self._scratch = scratch
        self._log = log
        self._book = HoldingBook(state.path)
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._kept_term = state.highest_term()
        self.core = AgentCore(self._kept_term)
        self.outbox = Outbox()
        self.reads = LogReads(self)
        self.channels = Channels(
            lambda: executor.connections, executor.pids, executor.log_dir, lambda: self.core.highest_term
        )
        self.inventory = Inventory()
        self.conditions: dict[str, GpuCondition] = {}
        # What is wrong with the cards as they are managed, beside what is wrong with the host.
        self.card_warnings: tuple[str, ...] = ()
        self._launching: Launching | None = None
        self._cards_known = asyncio.Event()
        self._nudge: Callable[[], None] = lambda: None
        self._doubts = FenceDoubts()
        self._client_ends = ClientEnds()
        self._leased = asyncio.Event()

    # -- at start

    def use(self, launching: Launching, nudge: Callable[[], None]) -> None:
        """The way of a launch, and whom to tell when something begins on a card. Before any order."""
        self._launching = launching
        self._nudge = nudge

    def cards_are_known(self) -> None:
        """The driver was asked once: launches on cards wait no longer."""
        self._cards_known.set()
        self._count_cards()

    async def recover(self) -> None:
        """Take up what an earlier agent left: adopt, and forget what was never launched."""
        statuses = await self._executor.recover()
        holdings = self._book.load()
        self.core.recover(statuses, holdings)
        for attempt_id in holdings.keys() - self.core.known():
            self._book.drop(attempt_id)
        self._scratch.sweep({status.attempt_id for status in statuses if not status.final})
        live = sum(not status.final for status in statuses)
        self._log.info("attempts found", running=live, ended=len(statuses) - live)

    async def recover_fences(self) -> None:
        """Once the cards are known: fences of live attempts stay, all others go."""
        await self._fence.recover([slice_of(held) for held in self.core.on_cards() if held.gpu_uuids])

    def register(self, inventory: Inventory) -> None:
        """The cards as they are from now on; a session that is open must be begun anew to tell."""
        self._register(inventory, {card.uuid: GpuCondition(card.uuid) for card in inventory.gpus})

    def remember(self, inventory: Inventory) -> None:
        """The cards of an earlier run, while the driver is silent: what runs on them goes on, and nothing begins."""
        detail = "the cards were not read yet since the agent started"
        unread = [GpuCondition(c.uuid, GpuState.DRAINED, str(Reason.GPU_UNHEALTHY), detail) for c in inventory.gpus]
        self._register(inventory, {condition.uuid: condition for condition in unread})

    def _register(self, inventory: Inventory, otherwise: Mapping[str, GpuCondition]) -> None:
        self.inventory = inventory
        self.conditions = {uuid: self.conditions.get(uuid, condition) for uuid, condition in otherwise.items()}
        self._count_cards()

    # -- what a session asks and orders

    def hello(self) -> HelloFacts:
        """See `HelloFacts`."""
        identity = self._facts.identity
        return HelloFacts(
            instance_id=identity.instance_id,
            boot_id=self._facts.boot_id,
            start_counter=identity.start_counter,
            agent_version=gpushare.__version__,
            highest_term=self.core.highest_term,
        )

    def sync(self) -> SyncFacts:
        """See `SyncFacts`."""
        return SyncFacts(
            cpu_milli=self._facts.host.cpu_milli,
            memory_mib=self._facts.host.memory_mib,
            labels=self._facts.labels,
            containment=self._executor.containment,
            driver_version=self.inventory.driver_version,
            gpus=self.inventory.gpus,
            conditions=tuple(self.conditions.values()),
            reports=tuple(self.core.reports()),
            shared_paths=self._facts.shared_paths,
            warnings=(*self._facts.warnings, *self.card_warnings),
        )

    def begin_term(self, term: int) -> decisions.Refused | None:
        """A leader of that term answered; what comes back is why not to follow it."""
        effects = self.core.begin_term(term)
        self._apply([effect for effect in effects if not isinstance(effect, decisions.Refused)])
        return next((effect for effect in effects if isinstance(effect, decisions.Refused)), None)

    def start(self, order: StartOrder) -> None:
        """Launch it, once."""
        self._apply(self.core.start(order))
        if order.on_disconnect is OnDisconnect.STOP_AND_REQUEUE:
            self.outbox.wake()

    def renew_every_s(self, ttl_s: float) -> float:
        """A third of the ttl; or of what the longest grace leaves of it, where something stops itself that long before
        the lease ends: else it would stop between two renewals."""
        grace_ms = self.core.lease_grace_ms()
        left_s = ttl_s if grace_ms is None else ttl_s - lease_needed_ms(grace_ms) / 1000
        return max(RENEW_AT_LEAST_EVERY_S, left_s / 3)

    def stop(self, attempt_id: str, term: int, reason: str, grace_ms: int, detail: str) -> None:
        """End it. A reason this version does not know counts as a cancel."""
        known = Reason(reason) if reason in Reason.__members__ else Reason.CANCELLED
        self._apply(self.core.stop(attempt_id, term, known, grace_ms, detail))

    def suspend(self, attempt_id: str, term: int) -> None:
        """Stop its processes and give up its cards."""
        holding = self.core.holding(attempt_id)
        if holding is not None and not self._can_suspend(holding):
            self._log.warning("order refused", attempt=attempt_id, detail="a job on these cards cannot be suspended")
            return
        self._apply(self.core.suspend(attempt_id, term))

    def _can_suspend(self, holding: Holding) -> bool:
        cards = [card for card in self.inventory.gpus if card.uuid in holding.gpu_uuids]
        return bool(cards) and all(o.can_suspend for card in cards for o in card.tiers if o.tier == holding.tier)

    def resume(self, order: ResumeOrder) -> None:
        """Let it go on, perhaps on other cards."""
        self._apply(self.core.resume(order))

    def set_run_limit(self, attempt_id: str, term: int, run_limit_ms: int) -> None:
        """It may run for so long from its start on."""
        self._apply(self.core.set_run_limit(attempt_id, term, run_limit_ms))

    def seal(self, attempt_id: str, term: int) -> None:
        """It must never start, and what lives of it must end."""
        self._apply(self.core.seal(attempt_id, term))

    def forget(self, attempt_id: str, term: int) -> None:
        """Its end is durable at the scheduler."""
        self._apply(self.core.forget(attempt_id, term))

    def lease_granted(self, deadline_boot_ns: int) -> None:
        """The shims read it from here on."""
        self._executor.renew_lease(deadline_boot_ns)
        self._leased.set()

    # -- what is observed

    def on_status(self, status: AttemptStatus) -> None:
        """The executor's word on one attempt; its end is durable by then."""
        holding = self.core.holding(status.attempt_id)
        if holding is not None and holding.tier == Tier.MPS_V2 and self.core.is_live(status.attempt_id):
            self._mind_neighbours(status, holding)
        self._apply(self.core.observe(status))
        self.reads.changed(status.attempt_id)

    def on_conditions(self, conditions: Mapping[str, GpuCondition]) -> None:
        """What the cards are like: told when it changed; whatever ran on a lost card ends."""
        changed = [c for uuid, c in conditions.items() if self.conditions.get(uuid, GpuCondition(uuid)) != c]
        self.conditions = dict(conditions)
        for condition in changed:
            good = condition.state is GpuState.HEALTHY and not condition.strangers
            say = self._log.info if good else self._log.warning
            say(
                "card changed", card=condition.uuid, state=str(condition.state), reason=condition.reason,
                detail=condition.detail, strangers=[f"pid {s.pid} of {s.user}" for s in condition.strangers],
            )  # fmt: skip
        if changed:
            self._count_cards()
            self.outbox.tell_conditions(changed)
        for uuid, condition in conditions.items():
            if condition.state is GpuState.LOST:
                self._apply(self.core.card_lost(uuid, f"card {uuid}: {condition.detail}"))

    def on_card_users(self, attempts: Collection[str]) -> None:
        """The attempts that have a process on a card of theirs now."""
        self._client_ends.seen(attempts)

    def on_samples(self, samples: Sequence[GpuSample], uses: Sequence[JobUse]) -> None:
        """What the cards do now, and what attempts take of them."""
        self.outbox.tell_samples(samples, uses)

    def on_verdict(self, attempt_id: str, reason: Reason, detail: str, grace_ms: int) -> None:
        """The watchdog's verdict on one attempt."""
        effects = self.core.overran(attempt_id, reason, detail, grace_ms)
        if effects:
            self._log.warning("attempt is ended", attempt=attempt_id, reason=str(reason), detail=detail)
        self._apply(effects)

    def on_near_limit(self, attempt_id: str, text: str) -> None:
        """The attempt has taken nearly all of its slice: its owner reads so in its log."""
        self._executor.tell(attempt_id, text)

    def live_holdings(self) -> list[Holding]:
        """What every live attempt holds that is not suspended."""
        return self.core.on_cards()

    def statuses(self) -> Mapping[str, AttemptStatus]:
        """The executor's word on every attempt."""
        return self._executor.statuses()

    def pids(self, attempt_id: str) -> set[int]:
        """The processes of one attempt now."""
        return self._executor.pids(attempt_id)

    def fence_doubts(self) -> Mapping[str, str]:
        """Cards whose MPS server refused to fence a share a while ago, and why."""
        return self._doubts.active(time.monotonic())

    def usage_dirs(self) -> list[UsageDir]:
        """Where processes on simulated cards say what they use, and which cards they are on by now."""
        return [
            UsageDir(self._executor.private_dir(h.attempt_id), self._card_names(h))
            for h in self.core.on_cards()
            if h.gpu_uuids
        ]

    def _card_names(self, holding: Holding) -> dict[str, str]:
        """What a program that was launched by `holding` calls its cards, by UUID or by index -> what they are now."""
        names: dict[str, str] = {}
        for launched, now in zip(holding.launch_uuids or holding.gpu_uuids, holding.gpu_uuids, strict=False):
            info = self.inventory.info(launched)
            names[launched] = now
            if info is not None:
                names[str(info.index)] = now
        return names

    # -- where output lies (see `logs.LogSource`)

    def log_dir(self, attempt_id: str) -> Path:
        """The directory of the attempt's output, whether or not it exists."""
        return self._executor.log_dir(attempt_id)

    def may_grow(self, attempt_id: str) -> bool:
        """True until the attempt's end is durable."""
        return self.core.is_live(attempt_id)

    def has_ended(self, attempt_id: str) -> bool:
        """True for one that ended here and, a while, for one that was let go of."""
        return self.core.has_ended(attempt_id)

    async def close(self) -> None:
        """Stop working; jobs and fences stay."""
        tasks = [*self._lanes.values(), *self._background]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._scratch.close()

    # -- inside

    def _count_cards(self) -> None:
        # Before the first look an order waits for it (see `_when_ready`) and is not refused because of it.
        states = {uuid: c.state for uuid, c in self.conditions.items()} if self._cards_known.is_set() else {}
        self.core.set_cards(
            [Card(c.uuid, c.usable_mib, states.get(c.uuid, GpuState.HEALTHY)) for c in self.inventory.gpus]
        )

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case decisions.PersistTerm(term):
                    self._keep_term(term)
                case decisions.Tell(report):
                    self.outbox.tell(report)
                case decisions.Refused(attempt_id, reason, detail):
                    self._log.warning("order refused", attempt=attempt_id, reason=str(reason), detail=detail)
                case decisions.Launch(order):
                    self._in_turn(order.attempt_id, partial(self._launch, order))
                case decisions.StopRunning(attempt_id):
                    self._in_turn(attempt_id, partial(self._stop, effect))
                case decisions.Note(holding):
                    self._note(holding)
                case decisions.Suspend(attempt_id):
                    self._in_turn(attempt_id, partial(self._suspend, attempt_id))
                case decisions.Resume(attempt_id):
                    self._in_turn(attempt_id, partial(self._resume, attempt_id))
                case decisions.SetLimit(attempt_id, run_limit_ms):
                    self._in_turn(attempt_id, partial(self._set_run_limit, attempt_id, run_limit_ms))
                case decisions.SealIt(attempt_id):
                    self._in_turn(attempt_id, partial(self._seal, attempt_id))
                case decisions.Release(attempt_id):
                    self._in_turn(attempt_id, partial(self._release, attempt_id))
                case decisions.ForgetIt(attempt_id):
                    self._in_turn(attempt_id, partial(self._forget, attempt_id))

    def _keep_term(self, term: int) -> None:
        try:
            self._state.write_term(term)
        except OSError:
            # Not durable, so not seen: the same term asks for it again.
            self.core.highest_term = self._kept_term
            raise
        self._kept_term = term

    def _in_turn(self, attempt_id: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin the work when the attempt's earlier work is done."""
        before = self._lanes.get(attempt_id)
        task = asyncio.create_task(self._run(attempt_id, before, work), name=f"lane-{attempt_id}")
        self._lanes[attempt_id] = task

        def done(_: asyncio.Task[None]) -> None:
            if self._lanes.get(attempt_id) is task:
                del self._lanes[attempt_id]

        task.add_done_callback(done)

    async def _run(
        self, attempt_id: str, before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await work()
        except Exception as err:
            # One attempt's trouble (a full disk, a bug) must not end the agent of all the others.
            self._log.error("work on an attempt failed", attempt=attempt_id, error=f"{type(err).__name__}: {err}")

    async def _launch(self, order: StartOrder) -> None:
        attempt_id = order.attempt_id
        try:
            self._refuse_if_unwanted(attempt_id)
            launching = await self._when_ready(order)
            ready = await launching.ready(order)
            fenced = await launching.fence(order, ready)
            holding = self.core.fenced(attempt_id, ready.user.uid, ready.user.groups)
            if holding is not None:
                self._book.write(holding)
            self._nudge()
            await launching.launch(order, ready, fenced, lambda: self.core.stop_wanted(attempt_id))
            self._judge_fence(order, "")
        except LaunchRefused as err:
            if isinstance(err, FenceFailed):
                self._judge_fence(order, err.detail)
            self._refused(attempt_id, err.reason, err.detail)
        except Exception as err:
            detail = f"the launch failed on this node: {type(err).__name__}: {err}"
            if attempt_id not in self._executor.statuses():
                self._refused(attempt_id, Reason.INFRA, detail)
                return
            self._log.error("launch failed half way", attempt=attempt_id, detail=detail)
            await self._seal(attempt_id)

    def _judge_fence(self, order: StartOrder, cause: str) -> None:
        """Remember of an MPS server whether it fenced the last share it was asked to."""
        if order.tier != Tier.MPS_V2:
            return
        for uuid in order.gpu_uuids:
            if cause:
                self._doubts.refused(uuid, cause, time.monotonic())
                self._nudge()
            else:
                self._doubts.stood(uuid)

    async def _when_ready(self, order: StartOrder) -> Launching:
        """What an order may have to wait for when the agent or its session has just begun."""
        if self._launching is None:
            raise LaunchRefused(Reason.NOT_STARTED, "the agent is still starting")
        if order.gpu_uuids:
            await _within(self._cards_known, READY_TIMEOUT_S, "the cards of this node cannot be read yet")
        if order.on_disconnect is OnDisconnect.STOP_AND_REQUEUE:
            # An order may overtake the first grant; a job that ends with the lease cannot start before it.
            await _within(self._leased, LEASE_TIMEOUT_S, "the scheduler has granted this node no lease")
            await self._lease_for(order.grace_ms)
        return self._launching

    async def _lease_for(self, grace_ms: int) -> None:
        """Until a renewal leaves enough of the lease for a job with that grace; the executor refuses it without."""
        deadline_s = time.monotonic() + LEASE_TIMEOUT_S
        while self._executor.lease_left_ms() <= lease_needed_ms(grace_ms) and time.monotonic() < deadline_s:
            await asyncio.sleep(LEASE_LOOK_EVERY_S)

    def _refuse_if_unwanted(self, attempt_id: str) -> None:
        reason = self.core.stop_wanted(attempt_id)
        if reason is not None:
            raise LaunchRefused(Reason.NOT_STARTED, f"ended before it was started ({reason})")

    def _refused(self, attempt_id: str, reason: Reason, detail: str) -> None:
        self._log.warning("launch refused", attempt=attempt_id, reason=str(reason), detail=detail)
        self._apply(self.core.launch_refused(attempt_id, reason, detail))
        self.reads.changed(attempt_id)

    async def _stop(self, stop: decisions.StopRunning) -> None:
        if stop.attempt_id not in self._executor.statuses():
            return  # its launch was refused meanwhile
        holding = self.core.holding(stop.attempt_id)
        in_mps = holding is not None and holding.tier == Tier.MPS_V2
        grace_s = stop.grace_ms / 1000
        if in_mps:
            self._client_ends.begin(stop.attempt_id)
        if in_mps and grace_s <= TERMINATE_BEFORE_KILL_S:
            await self._end_clients(stop.attempt_id, 0.0)
        await self._executor.stop(
            stop.attempt_id, stop.reason, stop.grace_ms, stop.detail, "FAILED" if stop.failed else "STOPPED"
        )
        if in_mps and grace_s > TERMINATE_BEFORE_KILL_S:
            self._end_clients_soon(stop.attempt_id, grace_s - TERMINATE_BEFORE_KILL_S)

    def _note(self, holding: Holding) -> None:
        try:
            self._book.write(holding)
        except OSError as err:
            # A restarted agent asks its shim, which knows that it is suspended; that it was, nobody else does.
            self._log.warning("a suspension is not noted on disk", attempt=holding.attempt_id, why=str(err))

    async def _suspend(self, attempt_id: str) -> None:
        self._executor.suspend(attempt_id, True)

    async def _set_run_limit(self, attempt_id: str, run_limit_ms: int) -> None:
        if not self._executor.set_run_limit(attempt_id, run_limit_ms):
            detail = "the task was started by an earlier version, under which a time limit cannot change"
            self._log.warning("the old time limit stays", attempt=attempt_id, detail=detail)

    async def _resume(self, attempt_id: str) -> None:
        holding = self.core.holding(attempt_id)
        if holding is None or holding.suspended:
            return
        self._book.write(holding)
        # Its environment is what it was launched with: a tier that can suspend sets nothing there that differs by card.
        await self._fence.prepare(slice_of(holding))
        self._nudge()
        self._executor.suspend(attempt_id, False)

    def _mind_neighbours(self, status: AttemptStatus, holding: Holding) -> None:
        """An attempt behind an MPS server ends: its clients go before the kill, whoever decided on it (here a shim, at
        a time limit or the end of a lease); where they died first, the server is suspect."""
        if status.state == "STOPPING" and self._client_ends.begin(status.attempt_id):
            self._end_clients_soon(status.attempt_id, max(0.0, holding.grace_ms / 1000 - TERMINATE_BEFORE_KILL_S))
        cause = self._client_ends.over(status) if status.final else ""
        if cause:
            self._log.warning("the MPS server is suspect", attempt=status.attempt_id, why=cause)
            self._fence.suspect(status.attempt_id, cause)
            for uuid in holding.gpu_uuids:
                self._doubts.refused(uuid, cause, time.monotonic())
            self._nudge()

    def _end_clients_soon(self, attempt_id: str, after_s: float) -> None:
        task = asyncio.create_task(self._end_clients(attempt_id, after_s))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _end_clients(self, attempt_id: str, after_s: float) -> None:
        """Before the kill: the MPS server lets go of the attempt's processes, or is known to be suspect."""
        await asyncio.sleep(after_s)
        if not self.core.is_live(attempt_id):
            return
        try:
            async with asyncio.timeout(TERMINATE_TIMEOUT_S):
                pids = sorted(self._executor.pids(attempt_id))
                ended = await self._fence.terminate_clients(attempt_id, pids)
        except TimeoutError:
            self._log.warning("the MPS server did not let go of an attempt in time", attempt=attempt_id)
            return
        if not ended.failed:
            self._client_ends.let_go(attempt_id)
        else:
            self._log.warning("MPS clients are killed while active", attempt=attempt_id, detail=ended.detail)

    async def _seal(self, attempt_id: str) -> None:
        while True:
            try:
                self.on_status(await self._executor.seal(attempt_id))
                return
            except OSError as err:
                # Until the disk takes the seal nobody knows that it never starts, and nobody is told so.
                self._log.warning("an attempt cannot be sealed yet", attempt=attempt_id, why=str(err))
                await asyncio.sleep(SEAL_AGAIN_S)

    async def _release(self, attempt_id: str) -> None:
        await self._fence.release(attempt_id)
        if not self.core.is_live(attempt_id):
            self._scratch.drop(attempt_id)

    async def _forget(self, attempt_id: str) -> None:
        await self._executor.forget(attempt_id)
        self._book.drop(attempt_id)


async def _within(event: asyncio.Event, timeout_s: float, otherwise: str) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        raise LaunchRefused(Reason.NOT_STARTED, otherwise) from None
