"""The fences of a host as one: the best tier that a card offers, that the admin allows and that the job
accepts.

Imports the tiers. Invariants: a whole card is `exclusive`; a share gets `mps-v2` before `timeslice`; a tier
that was chosen and then fails refuses the launch, it is never replaced by a weaker one. Where jobs of
several Unix users may come and one MPS server cannot serve them together, `mps-v2` is not offered at all:
they share by time slices, and no job finds out at its launch that another user was first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import GpuSnapshot
from gpushare_agent.sharing.exclusive import ExclusiveFence
from gpushare_agent.sharing.mps_daemon import CONTROL_PROGRAM, SERVER_PROGRAM, MpsSettings
from gpushare_agent.sharing.mps_v2 import MpsFence
from gpushare_agent.sharing.port import (
    CardTiers,
    Enforcement,
    Fence,
    Fenced,
    FenceRefused,
    SliceSpec,
    Termination,
    Tier,
    TierOffer,
    TierReport,
)
from gpushare_agent.sharing.timeslice import TimesliceFence

BEST_FIRST = (Tier.EXCLUSIVE, Tier.MPS_V2, Tier.TIMESLICE)
ENFORCEMENT = {
    Tier.EXCLUSIVE: Enforcement.HARD,
    Tier.MPS_V2: Enforcement.SERVER,
    Tier.TIMESLICE: Enforcement.SOFT,
}
MULTIUSER_FROM_DRIVER = 555


class CardFences:
    """`Fence` over all tiers.

    `run_dir` is the agent's run directory, `allowed` the tiers the admin lets jobs use, `single_user`
    whether all jobs run as one Unix user, `environ` what daemons inherit (its PATH is where the MPS programs
    are looked for). Timeouts are those of `MpsSettings`, by name.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        allowed: Collection[Tier] = BEST_FIRST,
        single_user: bool = False,
        environ: Mapping[str, str] | None = None,
        timeouts: Mapping[str, float] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._allowed = frozenset(allowed)
        self._single_user = single_user
        self._environ = clean_environ(os.environ if environ is None else environ)
        self._timeouts = dict(timeouts or {})
        self._exclusive = ExclusiveFence()
        self._timeslice = TimesliceFence()
        self._mps: MpsFence | None = None
        self._report: dict[str, CardTiers] = {}

    # -- what there is

    async def probe(self, snapshot: GpuSnapshot) -> TierReport:
        """Every tier on every card: offered, or the sentence why not."""
        per_tier: dict[Tier, dict[str, CardTiers]] = {}
        for tier, fence in ((Tier.EXCLUSIVE, self._exclusive), (Tier.TIMESLICE, self._timeslice)):
            per_tier[tier] = _by_uuid(await fence.probe(snapshot))
        per_tier[Tier.MPS_V2] = await self._probe_mps(snapshot)
        cards = []
        for info in snapshot.infos:
            offers = tuple(self._offer(tier, per_tier[tier][info.uuid]) for tier in BEST_FIRST)
            mps = per_tier[Tier.MPS_V2][info.uuid]
            cards.append(
                CardTiers(uuid=info.uuid, offers=offers, multiuser=mps.multiuser, client_slots=mps.client_slots)
            )
        self._report = {card.uuid: card for card in cards}
        return TierReport(cards=tuple(cards))

    def _offer(self, tier: Tier, card: CardTiers) -> TierOffer:
        (offer,) = card.offers
        if tier in self._allowed:
            return offer
        return TierOffer(
            tier=tier, enforcement=offer.enforcement, available=False, detail="the agent's configuration forbids it"
        )

    async def _probe_mps(self, snapshot: GpuSnapshot) -> dict[str, CardTiers]:
        cause = self._why_no_mps(snapshot)
        if cause:
            offer = TierOffer(tier=Tier.MPS_V2, enforcement=Enforcement.SERVER, available=False, detail=cause)
            return {info.uuid: CardTiers(uuid=info.uuid, offers=(offer,)) for info in snapshot.infos}
        if self._mps is None:
            settings = MpsSettings(
                folder=self._run_dir / "mps",
                program=str(self._find(CONTROL_PROGRAM)),
                environ=self._environ,
                multiuser=not why_one_user(snapshot.driver_version),
                **self._timeouts,
            )
            self._mps = MpsFence(settings)
        return _by_uuid(await self._mps.probe(snapshot))

    def _why_no_mps(self, snapshot: GpuSnapshot) -> str:
        if Tier.MPS_V2 not in self._allowed:
            return "the agent's configuration forbids it"
        if snapshot.infos and all(info.simulated for info in snapshot.infos):
            return "a simulated card has no MPS"
        missing = [name for name in (CONTROL_PROGRAM, SERVER_PROGRAM) if self._find(name) is None]
        if missing:
            return f"{' and '.join(missing)} not found on PATH (they come with the NVIDIA driver's utilities)"
        one_user = "" if self._single_user else why_one_user(snapshot.driver_version)
        if one_user:
            return f"this agent runs jobs of several Unix users, and {one_user}; they share by time slices"
        return ""

    def _find(self, program: str) -> str | None:
        return shutil.which(program, path=self._environ.get("PATH"))

    # -- one slice

    async def prepare(self, spec: SliceSpec) -> Fenced:
        """See `Fence.prepare`."""
        fence = self._choose(spec)
        if spec.whole and self._mps is not None:
            await asyncio.gather(*(self._mps.vacate(uuid) for uuid in spec.gpu_uuids))
        return await fence.prepare(spec)

    def _choose(self, spec: SliceSpec) -> Fence:
        """The best fence for this slice."""
        cards = [self._report.get(uuid) for uuid in spec.gpu_uuids]
        if not cards or None in cards:
            raise FenceRefused(Reason.FENCE_FAILED, f"this host has no card {', '.join(spec.gpu_uuids) or 'named'}")
        causes = []
        for tier in (Tier.EXCLUSIVE,) if spec.whole else (Tier.MPS_V2, Tier.TIMESLICE):
            cause = next((why for card in cards if card and (why := _why_not_offered(card, tier))), "")
            if not cause and not ENFORCEMENT[tier].meets(spec.demanded):
                cause = f"it is {ENFORCEMENT[tier]} and the job demands {spec.demanded}"
            if not cause:
                return self._fence(tier)
            causes.append(f"{tier}: {cause}")
        raise FenceRefused(Reason.FENCE_UNAVAILABLE, "; ".join(causes))

    def _fence(self, tier: Tier) -> Fence:
        if tier is Tier.MPS_V2 and self._mps is not None:
            return self._mps
        return self._exclusive if tier is Tier.EXCLUSIVE else self._timeslice

    def tier_of(self, spec: SliceSpec) -> Tier:
        """The tier a fenced attempt has."""
        if spec.whole:
            return Tier.EXCLUSIVE
        behind_mps = self._mps is not None and self._mps.holds(spec.attempt_id)
        return Tier.MPS_V2 if behind_mps else Tier.TIMESLICE

    async def release(self, attempt_id: str) -> None:
        """See `Fence.release`."""
        for fence in self._all():
            await fence.release(attempt_id)

    async def recover(self, live: Sequence[SliceSpec]) -> None:
        """See `Fence.recover`. Called after `probe`."""
        if self._mps is not None:
            await self._mps.recover(live)
        rest = [spec for spec in live if self.tier_of(spec) is not Tier.MPS_V2]
        await self._exclusive.recover(rest)
        await self._timeslice.recover(rest)

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        """See `Fence.terminate_clients`."""
        if self._mps is not None and self._mps.holds(attempt_id):
            return await self._mps.terminate_clients(attempt_id, pids)
        return Termination(ended=tuple(pids))

    def suspect(self, attempt_id: str, cause: str) -> None:
        """See `Fence.suspect`."""
        if self._mps is not None:
            self._mps.suspect(attempt_id, cause)

    def own_pids(self) -> frozenset[int]:
        """Pids of processes of ours that hold memory of the cards: no strangers."""
        return self._mps.own_pids() if self._mps is not None else frozenset()

    async def close(self) -> None:
        """See `Fence.close`."""
        for fence in self._all():
            await fence.close()

    def _all(self) -> list[Fence]:
        fences: list[Fence] = [self._exclusive, self._timeslice]
        return [*fences, self._mps] if self._mps is not None else fences


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What a daemon may inherit: nothing that would set its cards, pipe or limits, and no secret of ours."""
    return {key: value for key, value in environ.items() if not key.startswith(("CUDA_", "NVIDIA_", "GPUSHARE_"))}


def why_one_user(driver_version: str) -> str:
    """Why one MPS server cannot serve jobs of several Unix users at once; "" if it can."""
    if os.geteuid() != 0:
        return "an MPS daemon that is not root's serves its own user only"
    if driver_major(driver_version) < MULTIUSER_FROM_DRIVER:
        shown = driver_version or "of unknown version"
        return f"an MPS server of driver {shown} serves one at a time (from {MULTIUSER_FROM_DRIVER} on it serves all)"
    return ""


def driver_major(version: str) -> int:
    """The release of a driver version: "580.159.03" -> 580; 0 if it cannot be read."""
    major = version.partition(".")[0]
    return int(major) if major.isdigit() else 0


def _by_uuid(report: TierReport) -> dict[str, CardTiers]:
    return {card.uuid: card for card in report.cards}


def _why_not_offered(card: CardTiers, tier: Tier) -> str:
    offer = next((offer for offer in card.offers if offer.tier is tier), None)
    if offer is None or not offer.available:
        return f"{card.uuid}: {offer.detail if offer else 'unknown'}"
    return ""
