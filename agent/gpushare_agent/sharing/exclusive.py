"""Tier `exclusive`: one job has one or more whole cards. Nothing to set up: the card itself is the fence.

Imports the ports alone. Invariant: a card is given to one attempt at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import GpuInfo, GpuSnapshot
from gpushare_agent.sharing.environment import without_mps
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


def why_no_jobs(info: GpuInfo) -> str:
    """Why no job of any kind can use this card; "" if one can."""
    if info.mig_enabled:
        return "MIG mode is on: programs can use only MIG instances of this card"
    if info.compute_mode == "prohibited":
        return "its compute mode is PROHIBITED: no program may use it (nvidia-smi -c 0 lets them)"
    return ""


class ExclusiveFence:
    """`Fence` for whole cards."""

    tier = Tier.EXCLUSIVE

    def __init__(self) -> None:
        self._cards: dict[str, GpuInfo] = {}
        self._held: dict[str, SliceSpec] = {}

    async def probe(self, snapshot: GpuSnapshot) -> TierReport:
        """Every card that takes programs at all."""
        self._cards = {info.uuid: info for info in snapshot.infos}
        return TierReport(cards=tuple(_offer(info) for info in snapshot.infos))

    async def prepare(self, spec: SliceSpec) -> Fenced:
        """Give the cards to this attempt, unless another has one of them."""
        if not spec.whole or not spec.gpu_uuids:
            raise FenceRefused(Reason.FENCE_UNAVAILABLE, "the exclusive tier takes whole cards only")
        for uuid in spec.gpu_uuids:
            info = self._cards.get(uuid)
            cause = "this host has no such card" if info is None else why_no_jobs(info)
            if cause:
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {cause}")
            for held in self._held.values():
                if uuid in held.gpu_uuids and held.attempt_id != spec.attempt_id:
                    raise FenceRefused(Reason.FENCE_FAILED, f"{uuid} still belongs to attempt {held.attempt_id}")
        self._held[spec.attempt_id] = spec
        return Fenced(
            env=without_mps(spec),
            tier=self.tier,
            enforcement=Enforcement.HARD,
            detail="whole card" if len(spec.gpu_uuids) == 1 else f"{len(spec.gpu_uuids)} whole cards",
        )

    async def release(self, attempt_id: str) -> None:
        """See `Fence.release`."""
        self._held.pop(attempt_id, None)

    async def recover(self, live: Sequence[SliceSpec]) -> None:
        """See `Fence.recover`."""
        self._held = {spec.attempt_id: spec for spec in live if spec.whole and spec.gpu_uuids}

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        """Nobody else is on the card, so nothing must happen before a SIGKILL."""
        return Termination(ended=tuple(pids))

    def suspect(self, attempt_id: str, cause: str) -> None:
        """No process here shares a server with another."""

    async def close(self) -> None:
        """See `Fence.close`."""


def _offer(info: GpuInfo) -> CardTiers:
    cause = why_no_jobs(info)
    offer = TierOffer(
        tier=Tier.EXCLUSIVE,
        enforcement=Enforcement.HARD,
        available=not cause,
        detail=cause,
        can_suspend=info.simulated,
    )
    return CardTiers(uuid=info.uuid, offers=(offer,))
