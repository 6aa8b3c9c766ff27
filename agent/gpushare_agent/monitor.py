"""Looks at the cards again and again: conditions, memory per attempt, verdicts, samples.

Imports asyncio, the card library's port, the watchdog and the health rules. Runs beside the session and never in its
way: a driver that hangs delays the next look and nothing else. Invariants: a verdict reaches the attempt within one
look; cards that appear, vanish or change are registered anew; what cannot be read accuses nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from gpushare.core.model import GpuCondition
from gpushare.reasons import Reason
from gpushare_agent.core import Holding
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuLibrary, GpuSample, GpuSnapshot
from gpushare_agent.health import Assessor
from gpushare_agent.inventory import managed
from gpushare_agent.launchspec import AttemptStatus
from gpushare_agent.sharing.port import SliceSpec, Tier
from gpushare_agent.sharing.watchdog import CardUse, Held, JobUse, WatchSettings, WatchState, launch_obstacle, watch

IDLE_INTERVAL_S = 2.0
# A sample is sent after so many looks.
SAMPLE_LOOKS = 10
# An attempt that took what is not its own harms its neighbours, so its own grace is cut to this.
VERDICT_GRACE_MS = 2000
# Memory of a job that has just ended comes back a moment later, and process lists are up to a second old.
OBSTACLE_PAUSES_S = (0.0, 0.7, 0.7, 0.7)


class MonitorSettings(msgspec.Struct, frozen=True):
    """`managed_gpus` None means all; `interval_s` is between looks while an attempt holds a card."""

    managed_gpus: frozenset[str] | None = None
    interval_s: float = 0.5
    stranger_mib: int = 32


class Watched(Protocol):
    """What the monitor needs of the agent."""

    def live_holdings(self) -> Sequence[Holding]:
        """What every live attempt holds, CPU jobs included."""

    def statuses(self) -> Mapping[str, AttemptStatus]: ...

    def pids(self, attempt_id: str) -> Collection[int]: ...

    def fence_doubts(self) -> Mapping[str, str]:
        """Cards whose MPS server refused to fence a share a while ago, and why."""

    def on_conditions(self, conditions: Mapping[str, GpuCondition]) -> None: ...

    def on_card_users(self, attempts: Collection[str]) -> None:
        """The attempts that have a process on a card of theirs now."""

    def on_samples(self, samples: Sequence[GpuSample], uses: Sequence[JobUse]) -> None: ...

    def on_near_limit(self, attempt_id: str, text: str) -> None:
        """It has taken nearly all the memory of its slice."""

    def on_verdict(self, attempt_id: str, reason: Reason, detail: str, grace_ms: int) -> None: ...


class Monitor:
    """`register` takes the managed cards and the driver's version whenever they change; `own_pids` are our servers'."""

    def __init__(
        self,
        library: GpuLibrary,
        agent: Watched,
        settings: MonitorSettings,
        register: Callable[[list[GpuInfo], GpuSnapshot], Awaitable[None]],
        own_pids: Callable[[], Collection[int]],
        log: Any,
    ) -> None:
        self._library = library
        self._agent = agent
        self._settings = settings
        self._samples_every_s = SAMPLE_LOOKS * settings.interval_s
        self._register = register
        self._own_pids = own_pids
        self._log = log
        self._assessor = Assessor()
        self._watch_settings = WatchSettings(
            min_gap_ms=int(settings.interval_s * 1000 * 0.8), stranger_mib=settings.stranger_mib
        )
        self._watch_state = WatchState()
        self._infos: list[GpuInfo] = []
        self._uses: dict[str, CardUse] = {}
        self._snapshot = GpuSnapshot(state=DriverState.ERROR, detail="the cards were not read yet")
        self._cards: tuple[str, ...] = ()
        self._sampled_s = 0.0
        self._said = (DriverState.OK, "")
        self._looking = asyncio.Lock()
        self._nudged = asyncio.Event()

    def expect(self, cards: Sequence[str]) -> None:
        """Cards that are registered from an earlier time: they have a condition even while the driver is silent."""
        self._cards = tuple(cards)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            busy = any(holding.gpu_uuids for holding in self._agent.live_holdings())
            await self._pause(self._settings.interval_s if busy else IDLE_INTERVAL_S)
            try:
                await self.look()
            except Exception as err:
                # A look is repeated anyway; a bug in one must not end the watch over all the others.
                self._log.error("looking at the cards failed", error=f"{type(err).__name__}: {err}")

    def nudge(self) -> None:
        """Something begins on a card: the idle pause is over."""
        self._nudged.set()

    async def _pause(self, pause_s: float) -> None:
        try:
            await asyncio.wait_for(self._nudged.wait(), pause_s)
        except TimeoutError:
            return
        self._nudged.clear()
        await asyncio.sleep(self._settings.interval_s)

    async def look(self) -> GpuSnapshot:
        """One look, with everything that follows from it."""
        async with self._looking:
            snapshot = await self._library.snapshot()
            self._say(snapshot)
            if snapshot.state is DriverState.OK:
                await self._keep_registered(snapshot)
            self._judge(snapshot)
            self._snapshot = snapshot
            return snapshot

    async def obstacle(self, spec: SliceSpec) -> tuple[Reason, str] | None:
        """Why this slice must not be launched now by what is really on its cards; None when nothing is in its way."""
        for pause_s in OBSTACLE_PAUSES_S:
            said = launch_obstacle(spec, self._snapshot, self._uses)
            if not said:
                return None
            await asyncio.sleep(pause_s)
            await self.look()
        said = launch_obstacle(spec, self._snapshot, self._uses)
        if not said:
            return None
        answered = {sample.uuid for sample in self._snapshot.samples if not sample.error}
        if answered.issuperset(spec.gpu_uuids):
            return Reason.OCCUPIED, said
        return Reason.NOT_STARTED, f"{said} ({self._snapshot.detail})" if self._snapshot.detail else said

    def _say(self, snapshot: GpuSnapshot) -> None:
        was, _ = self._said
        self._said = (snapshot.state, snapshot.detail)
        if snapshot.state is was:
            return
        if snapshot.state is DriverState.OK:
            self._log.info("the cards can be read again")
        else:
            self._log.warning("the cards cannot be read", state=str(snapshot.state), why=snapshot.detail)

    async def _keep_registered(self, snapshot: GpuSnapshot) -> None:
        infos = managed(snapshot.infos, self._settings.managed_gpus)
        if infos == self._infos:
            return
        await self._register(infos, snapshot)
        self._infos = infos
        self._cards = tuple(info.uuid for info in infos)

    def _judge(self, snapshot: GpuSnapshot) -> None:
        holdings = self._agent.live_holdings()
        held = {holding.attempt_id: _held(holding) for holding in holdings}
        owner_of = self._owners(snapshot, holdings)
        own_pids = self._own_pids()
        self._watch_state, findings = watch(self._watch_state, snapshot, owner_of, held, own_pids, self._watch_settings)
        self._uses = {use.uuid: use for use in findings.cards}
        self._agent.on_card_users([use.attempt_id for use in findings.jobs if use.pids])
        for near in findings.near_limit:
            self._agent.on_near_limit(near.attempt_id, near.sentence())
        for verdict in findings.verdicts:
            self._agent.on_verdict(verdict.attempt_id, verdict.reason, verdict.detail, VERDICT_GRACE_MS)
        cards_held = {uuid for holding in holdings for uuid in holding.gpu_uuids}
        conditions = self._assessor.assess(
            snapshot, self._cards, self._uses, cards_held, self._stuck(holdings), self._agent.fence_doubts()
        )
        self._agent.on_conditions(conditions)
        now_s = time.monotonic()
        if snapshot.state is DriverState.OK and now_s - self._sampled_s >= self._samples_every_s and self._cards:
            self._sampled_s = now_s
            mine = [sample for sample in snapshot.samples if sample.uuid in self._cards]
            self._agent.on_samples(mine, [use for use in findings.jobs if held[use.attempt_id].spec.gpu_uuids])

    def _owners(self, snapshot: GpuSnapshot, holdings: Sequence[Holding]) -> dict[int, str]:
        """Which attempt each process belongs to; nobody is asked when no process is on any card."""
        if not any(sample.processes for sample in snapshot.samples):
            return {}
        return {pid: h.attempt_id for h in holdings for pid in self._agent.pids(h.attempt_id)}

    def _stuck(self, holdings: Sequence[Holding]) -> dict[str, str]:
        statuses = self._agent.statuses()
        return {
            uuid: f"attempt {holding.attempt_id}: {status.detail}"
            for holding in holdings
            if (status := statuses.get(holding.attempt_id)) is not None and status.stuck
            for uuid in holding.gpu_uuids
        }


def slice_of(holding: Holding) -> SliceSpec:
    """What is held, in the words of the fences."""
    return SliceSpec(
        attempt_id=holding.attempt_id,
        gpu_uuids=holding.gpu_uuids,
        gpu_milli=holding.gpu_milli,
        gpu_memory_mib=holding.gpu_memory_mib,
        whole=holding.whole,
        uid=holding.uid,
        gids=holding.gids,
    )


def _held(holding: Holding) -> Held:
    # A CPU job has no tier and no cards: any card it computes on is one it was not given.
    return Held(spec=slice_of(holding), tier=Tier(holding.tier) if holding.gpu_uuids else Tier.EXCLUSIVE)
