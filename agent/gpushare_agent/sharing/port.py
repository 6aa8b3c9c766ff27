"""How a slice of a card is fenced: the words every tier speaks, and the Fence port.

Pure data and one Protocol; imports msgspec, the reasons and the card port. Invariants: a fence either
stands, and `prepare` returns what the job's environment must hold, or `FenceRefused` says why not; nothing
in between is ever launched. A slice is a share of exactly one card, or one or more whole cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import GpuSnapshot


class Tier(StrEnum):
    """How shares of a card are kept apart."""

    EXCLUSIVE = "exclusive"
    TIMESLICE = "timeslice"
    MPS_V2 = "mps-v2"


class Enforcement(StrEnum):
    """Who holds the limit: the card itself, a ceiling that all clients of one server share, or the
    watchdog.
    """

    HARD = "hard"
    SERVER = "server"
    SOFT = "soft"

    def meets(self, demanded: Enforcement | None) -> bool:
        """Whether this is at least as strong as what was asked for (None asks for nothing)."""
        strength = {Enforcement.SOFT: 0, Enforcement.SERVER: 1, Enforcement.HARD: 2}
        return demanded is None or strength[self] >= strength[demanded]


class SliceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt was given. `whole` cards carry 1000 milli and the card's memory; a share has one
    UUID.

    `uid` is the Unix user the job runs as, `gids` all its groups, the primary one included; `demanded` is
    the weakest enforcement the job accepts.
    """

    attempt_id: str
    gpu_uuids: tuple[str, ...]
    gpu_milli: int
    gpu_memory_mib: int
    whole: bool
    uid: int
    gids: tuple[int, ...] = ()
    demanded: Enforcement | None = None


class Fenced(msgspec.Struct, frozen=True, kw_only=True):
    """A standing fence: what to set last in the job's environment, and what was built. `detail` is for a
    person.
    """

    env: dict[str, str]
    tier: Tier
    enforcement: Enforcement
    detail: str = ""


class FenceRefused(Exception):
    """The slice cannot be fenced now, so the attempt must not start. `reason` is stable, `detail` names the
    cause.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TierOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One tier on one card: offered or not, and the sentence why not (or what to know about it).

    `can_suspend`: a job of it can give up the card without ending.
    """

    tier: Tier
    enforcement: Enforcement
    available: bool
    detail: str = ""
    can_suspend: bool = False


class CardTiers(msgspec.Struct, frozen=True, kw_only=True):
    """What one card can fence. `multiuser`: jobs of different Unix users may be clients of its MPS server
    at once.

    `client_slots` is the number of MPS clients the card takes (0 without MPS).
    """

    uuid: str
    offers: tuple[TierOffer, ...]
    multiuser: bool = False
    client_slots: int = 0

    def available(self) -> tuple[Tier, ...]:
        """The tiers a job may get here, in the order of the offers."""
        return tuple(offer.tier for offer in self.offers if offer.available)


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """What every card of this host can fence, in the order of the snapshot."""

    cards: tuple[CardTiers, ...]


class Termination(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an attempt's clients before they are killed.

    `ended` are pids whose contexts the server has closed: a SIGKILL harms nobody now. `failed` are pids for
    which that could not be had: they are killed all the same, and the server counts as suspect until it is
    empty.
    """

    ended: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    detail: str = ""


class Fence(Protocol):
    """One way to keep slices apart on the cards of this host. One conformance suite runs on every
    implementation.
    """

    async def probe(self, snapshot: GpuSnapshot) -> TierReport:
        """Find out what each card can fence; remembers the cards. Called at start and when the cards
        change.
        """

    async def prepare(self, spec: SliceSpec) -> Fenced:
        """Fence the slice and read the limit back. The same attempt again gives the same answer.

        Raises FenceRefused on any doubt: the attempt must not start.
        """

    async def release(self, attempt_id: str) -> None:
        """The attempt's processes are gone. Unknown attempts are ignored."""

    async def recover(self, live: Sequence[SliceSpec]) -> None:
        """After a restart of the agent: these attempts still run; whatever else was fenced is released."""

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        """Before a SIGKILL: end the GPU contexts of these processes in the order the tier demands."""

    def suspect(self, attempt_id: str, cause: str) -> None:
        """Processes of this attempt died where they may have harmed their neighbours. Unknown ones are ignored."""

    async def close(self) -> None:
        """The agent stops; fences of running jobs stay."""
