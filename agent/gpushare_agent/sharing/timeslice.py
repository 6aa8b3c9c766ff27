"""Tier `timeslice`: the driver gives whole time slices to the processes in turn; the watchdog keeps the
memory.

Imports the ports alone. Nothing stops a process at its limit: the agent sums the job's memory from NVML and
stops the job that is over it. So the enforcement is soft and is always called so.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import GpuInfo, GpuSnapshot
from gpushare_agent.sharing.environment import without_mps
from gpushare_agent.sharing.exclusive import why_no_jobs
from gpushare_agent.sharing.port import (
    CardTiers,
    Enforcement,
    Fenced,
    FenceRefused,
    SliceSpec,
    Termination,
    Tier,
    TierOffer,
    TierReport,
)


def why_no_shares(info: GpuInfo) -> str:
    """Why jobs cannot take turns on this card; "" if they can."""
    if info.compute_mode == "exclusive_process":
        return "its compute mode is EXCLUSIVE_PROCESS: one process at a time may use it"
    return why_no_jobs(info)


class TimesliceFence:
    """`Fence` for shares that take turns."""

    tier = Tier.TIMESLICE

    def __init__(self) -> None:
        self._cards: dict[str, GpuInfo] = {}
        self._held: dict[str, SliceSpec] = {}

    async def probe(self, snapshot: GpuSnapshot) -> TierReport:
        """Every card that several processes may use."""
        self._cards = {info.uuid: info for info in snapshot.infos}
        return TierReport(cards=tuple(_offer(info) for info in snapshot.infos))

    async def prepare(self, spec: SliceSpec) -> Fenced:
        """Nothing to set up beyond the words."""
        if spec.whole or len(spec.gpu_uuids) != 1:
            raise FenceRefused(Reason.FENCE_UNAVAILABLE, "the timeslice tier takes a share of one card only")
        (uuid,) = spec.gpu_uuids
        info = self._cards.get(uuid)
        cause = "this host has no such card" if info is None else why_no_shares(info)
        if info is None or cause:
            raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {cause}")
        if not 1 <= spec.gpu_memory_mib <= info.total_mib:
            raise FenceRefused(
                Reason.FENCE_FAILED, f"{uuid}: {spec.gpu_memory_mib} MiB of a card of {info.total_mib} MiB"
            )
        self._held[spec.attempt_id] = spec
        return Fenced(
            env=without_mps(spec),
            tier=self.tier,
            enforcement=Enforcement.SOFT,
            detail=f"the job is stopped when it holds more than {spec.gpu_memory_mib} MiB",
        )

    async def release(self, attempt_id: str) -> None:
        """See `Fence.release`."""
        self._held.pop(attempt_id, None)

    async def recover(self, live: Sequence[SliceSpec]) -> None:
        """See `Fence.recover`."""
        self._held = {spec.attempt_id: spec for spec in live if not spec.whole and spec.gpu_uuids}

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        """Each process has contexts of its own: a SIGKILL harms no other."""
        return Termination(ended=tuple(pids))

    def suspect(self, attempt_id: str, cause: str) -> None:
        """No process here shares a server with another."""

    async def close(self) -> None:
        """See `Fence.close`."""


def _offer(info: GpuInfo) -> CardTiers:
    cause = why_no_shares(info)
    offer = TierOffer(
        tier=Tier.TIMESLICE,
        enforcement=Enforcement.SOFT,
        available=not cause,
        detail=cause or "memory is watched, not fenced; compute is the driver's time slices",
        can_suspend=info.simulated,
    )
    return CardTiers(uuid=info.uuid, offers=(offer,))
