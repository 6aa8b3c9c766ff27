"""What the node's cards look like to the scheduler: a condition for each, from one snapshot after another.

Pure: imports msgspec, the reasons, the cluster's nouns and the ports' words; time arrives in the snapshots. Invariants:
one bad reading changes nothing (a hang and a silent card need two, a stranger must be there twice); a driver that
cannot be read says nothing about running jobs; occupancy is never derived from utilisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gpushare.core.kinds import GpuState
from gpushare.core.model import GpuCondition, Stranger
from gpushare.reasons import Reason
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuSample, GpuSnapshot
from gpushare_agent.sharing.exclusive import why_no_jobs
from gpushare_agent.sharing.watchdog import CardUse

MISSES_TO_TELL = 2
# Memory that no process holds: what a driver may keep by itself, and how long it may take to come back after a job.
LEAK_MIN_MIB = 512
LEAK_AFTER_NS = 10_000_000_000
DOUBT_FIRST_S = 30.0
DOUBT_MAX_S = 600.0

_NODE_TROUBLE: Mapping[DriverState, Reason] = {
    DriverState.MISMATCH: Reason.DRIVER_MISMATCH,
    DriverState.HUNG: Reason.NVML_HUNG,
    DriverState.NO_DRIVER: Reason.DRIVER_MISSING,
    DriverState.NO_LIBRARY: Reason.DRIVER_MISSING,
    DriverState.ERROR: Reason.GPU_UNHEALTHY,
}
# States that the next reading may well not have.
_MAY_PASS = frozenset({DriverState.HUNG, DriverState.ERROR})


class FenceDoubts:
    """Cards whose MPS server refused to fence a share: no more is placed there for a while, longer each time in a row.

    Without this every waiting share would be sent there, be refused, and use up its tries. Times in seconds, from any
    clock that only grows.
    """

    def __init__(self) -> None:
        self._doubts: dict[str, tuple[int, float, str]] = {}

    def refused(self, uuid: str, detail: str, now_s: float) -> None:
        """A share could not be fenced."""
        row, until_s, _ = self._doubts.get(uuid, (0, 0.0, ""))
        if now_s >= until_s:
            until_s = now_s + min(DOUBT_FIRST_S * 2**row, DOUBT_MAX_S)
            row += 1
        self._doubts[uuid] = (row, until_s, detail)

    def stood(self, uuid: str) -> None:
        """A share was fenced."""
        self._doubts.pop(uuid, None)

    def active(self, now_s: float) -> dict[str, str]:
        """The cards in doubt, and why."""
        return {uuid: detail for uuid, (_, until_s, detail) in self._doubts.items() if now_s < until_s}


class Assessor:
    """Remembers of earlier snapshots what it takes to judge the next one."""

    def __init__(self) -> None:
        # Until the driver has answered once nothing good is known, so the first miss counts.
        self._misses = MISSES_TO_TELL - 1
        self._silent: dict[str, int] = {}
        self._suspects: dict[str, frozenset[int]] = {}
        self._leak_since_ns: dict[str, int] = {}
        self._idle_mib: dict[str, int] = {}
        self._conditions: dict[str, GpuCondition] = {}

    def assess(
        self,
        snapshot: GpuSnapshot,
        cards: Collection[str],
        uses: Mapping[str, CardUse],
        held: Collection[str],
        stuck: Mapping[str, str],
        doubts: Mapping[str, str],
    ) -> dict[str, GpuCondition]:
        """The condition of each of the managed `cards`.

        `uses` names the strangers of each card that answered; `held` are cards that live attempts hold; `stuck` maps
        cards to a sentence where a process of an attempt outlived SIGKILL, `doubts` where MPS refused to fence.
        """
        if snapshot.state is not DriverState.OK:
            return self._without_driver(snapshot, cards)
        self._misses = 0
        infos = {info.uuid: info for info in snapshot.infos}
        samples = {sample.uuid: sample for sample in snapshot.samples}
        for uuid in cards:
            sample = samples.get(uuid)
            if sample is None or sample.lost:
                said = sample.error if sample else "the driver no longer shows this card"
                self._conditions[uuid] = _condition(uuid, GpuState.LOST, Reason.GPU_LOST, said)
                continue
            strangers = self._confirmed(uses.get(uuid, CardUse(uuid=uuid)))
            condition = self._judge(infos.get(uuid), sample, stuck.get(uuid, ""), doubts.get(uuid, ""))
            condition = condition or self._leak(sample, uuid in held, snapshot.taken_boot_ns) or GpuCondition(uuid)
            self._conditions[uuid] = GpuCondition(uuid, condition.state, condition.reason, condition.detail, strangers)
        return {uuid: self._conditions[uuid] for uuid in cards}

    def _without_driver(self, snapshot: GpuSnapshot, cards: Collection[str]) -> dict[str, GpuCondition]:
        """No card can be read: what was known stays until it is clear that this lasts."""
        self._misses += 1
        if snapshot.state not in _MAY_PASS or self._misses >= MISSES_TO_TELL:
            reason = _NODE_TROUBLE[snapshot.state]
            for uuid in cards:
                known = self._conditions.get(uuid, GpuCondition(uuid))
                # How long it has been so changes in the driver's words, and is no news.
                if known.state is not GpuState.LOST and known.reason != str(reason):
                    self._conditions[uuid] = _condition(uuid, GpuState.DRAINED, reason, snapshot.detail)
        return {uuid: self._conditions.setdefault(uuid, GpuCondition(uuid)) for uuid in cards}

    def _judge(self, info: GpuInfo | None, sample: GpuSample, stuck: str, doubt: str) -> GpuCondition | None:
        """What keeps new work off the card, the gravest first; None when nothing does."""
        uuid = sample.uuid
        if sample.error:
            self._silent[uuid] = self._silent.get(uuid, 0) + 1
            if self._silent[uuid] < MISSES_TO_TELL:
                return self._conditions.get(uuid)
            return _condition(uuid, GpuState.DRAINED, Reason.GPU_UNHEALTHY, sample.error)
        self._silent.pop(uuid, None)
        if sample.recovery_action not in (None, "none"):
            detail = f"the driver asks for: {str(sample.recovery_action).replace('_', ' ')}"
            return _condition(uuid, GpuState.DRAINED, Reason.GPU_UNHEALTHY, detail)
        if stuck:
            return _condition(uuid, GpuState.DIRTY, Reason.GPU_UNHEALTHY, stuck)
        cause = why_no_jobs(info) if info is not None else ""
        if cause:
            return _condition(uuid, GpuState.DRAINED, Reason.FENCE_UNAVAILABLE, cause)
        return _condition(uuid, GpuState.DIRTY, Reason.MPS_UNHEALTHY, doubt) if doubt else None

    def _leak(self, sample: GpuSample, is_held: bool, now_ns: int) -> GpuCondition | None:
        """DIRTY when memory stays taken on a card that nobody uses."""
        uuid = sample.uuid
        if sample.error or not sample.processes_known or sample.processes or is_held:
            self._leak_since_ns.pop(uuid, None)
            return None
        idle_mib = self._idle_mib[uuid] = min(self._idle_mib.get(uuid, sample.used_mib), sample.used_mib)
        if sample.used_mib < idle_mib + LEAK_MIN_MIB:
            self._leak_since_ns.pop(uuid, None)
            return None
        since_ns = self._leak_since_ns.setdefault(uuid, now_ns)
        if now_ns - since_ns < LEAK_AFTER_NS:
            return None
        detail = f"{idle_mib} MiB are in use when it is idle, but much more stays taken and no process holds it"
        return _condition(uuid, GpuState.DIRTY, Reason.GPU_UNHEALTHY, detail)

    def _confirmed(self, use: CardUse) -> tuple[Stranger, ...]:
        """Strangers that were there before: a process of ours that has just begun or ended looks like one, once."""
        seen_before = self._suspects.get(use.uuid, frozenset())
        self._suspects[use.uuid] = frozenset(one.pid for one in use.strangers)
        unsaid_mib = use.stranger_mib - sum(one.memory_mib or 0 for one in use.strangers)
        found = []
        for one in sorted(use.strangers, key=lambda one: one.pid):
            if one.pid not in seen_before:
                continue
            memory_mib = one.memory_mib
            if memory_mib is None:
                # What the driver does not say of one process is charged to the first such, so that the sum is right.
                memory_mib, unsaid_mib = max(0, unsaid_mib), 0
            found.append(Stranger(pid=one.pid, user=one.user, memory_mib=memory_mib))
        return tuple(found)


def _condition(uuid: str, state: GpuState, reason: Reason, detail: str) -> GpuCondition:
    return GpuCondition(uuid=uuid, state=state, reason=str(reason), detail=detail)
