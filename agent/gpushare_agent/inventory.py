"""What this node offers: CPU, RAM and cards with the memory that slices may have together.

Imports msgspec, psutil, the records, the nouns and the ports; reads control files. Invariant: a card's
`usable_mib` is fixed when the card is first seen and changed only while nothing of ours is on it, because slices
already given count on it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec
import psutil

from gpushare.core.kinds import Enforcement
from gpushare.core.model import GpuInventory, TierOffer
from gpushare_agent import records
from gpushare_agent.gpus.port import GpuInfo
from gpushare_agent.sharing import port as sharing

CARDS = "cards"
_STRENGTH: Mapping[sharing.Enforcement, Enforcement] = {
    sharing.Enforcement.SOFT: Enforcement.SOFT,
    sharing.Enforcement.SERVER: Enforcement.SERVER,
    sharing.Enforcement.HARD: Enforcement.HARD,
}
# Files that cap this process's memory when it runs in a container; the smallest counts.
_MEMORY_CAPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class HostSize(msgspec.Struct, frozen=True):
    """CPU in thousandths, RAM in MiB."""

    cpu_milli: int
    memory_mib: int


class Inventory(msgspec.Struct, frozen=True):
    """The managed cards: as the driver describes them, and as the scheduler registers them, in one order."""

    infos: tuple[GpuInfo, ...] = ()
    gpus: tuple[GpuInventory, ...] = ()
    driver_version: str = ""

    def info(self, uuid: str) -> GpuInfo | None:
        """The card of that name."""
        return next((info for info in self.infos if info.uuid == uuid), None)


class CardBook:
    """The inventory that was registered last, kept in one file of the state directory. It serves while the driver is
    silent at a start, and it fixes each card's usable memory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir
        dirfd = records.open_directory(str(state_dir))
        try:
            data = records.read(dirfd, CARDS)
        finally:
            os.close(dirfd)
        try:
            self.last = msgspec.json.decode(data, type=Inventory) if data else Inventory()
        except ValueError:
            # Only figures that can be measured again; live slices are checked against the new ones.
            self.last = Inventory()

    def usable_mib(self, info: GpuInfo, reserve_mib: int, *, empty: bool) -> int:
        """The card's usable memory: as registered, or measured now if it is new, or empty and changed."""
        measured_mib = max(0, info.total_mib - info.reserved_mib - reserve_mib)
        known = next((card.usable_mib for card in self.last.gpus if card.uuid == info.uuid), None)
        return measured_mib if known is None or empty else known

    def write(self, inventory: Inventory) -> None:
        """Durable on return, if it is news."""
        if inventory == self.last:
            return
        self.last = inventory
        dirfd = records.open_directory(str(self._path))
        try:
            records.replace(dirfd, CARDS, msgspec.json.encode(inventory))
        finally:
            os.close(dirfd)


def managed(infos: Iterable[GpuInfo], managed_gpus: Collection[str] | None) -> list[GpuInfo]:
    """The cards that are ours to give (None: all of them); the others are left alone."""
    return [info for info in infos if managed_gpus is None or info.uuid in managed_gpus]


def absent_text(infos: Iterable[GpuInfo], managed_gpus: Collection[str] | None) -> str:
    """Names the cards that are said to be ours and that the driver does not have; "" where there is none."""
    here = {info.uuid for info in infos}
    absent = sorted(uuid for uuid in managed_gpus or () if uuid not in here)
    return f"managed_gpus names cards that the driver does not have: {', '.join(absent)}" if absent else ""


def inventory_of(
    infos: Iterable[GpuInfo], usable_mib: Mapping[str, int], tiers: sharing.TierReport
) -> tuple[GpuInventory, ...]:
    """The cards as the scheduler registers them."""
    offers = {card.uuid: card.offers for card in tiers.cards}
    return tuple(
        GpuInventory(
            uuid=info.uuid,
            index=info.index,
            model=info.model,
            total_mib=info.total_mib,
            usable_mib=usable_mib[info.uuid],
            tiers=tuple(_offer(offer) for offer in offers.get(info.uuid, ())),
            simulated=info.simulated,
            domain=info.domain,
        )
        for info in infos
    )


def fence_lines(cards: Iterable[GpuInventory]) -> list[str]:
    """One line a card for the log at start: what it can fence, and what stands in the way of the rest."""
    lines = []
    for card in cards:
        can = [f"{o.tier} ({o.enforcement.name.lower()})" for o in card.tiers if not o.absent_because]
        cannot = [f"{o.tier}: {o.absent_because}" for o in card.tiers if o.absent_because]
        line = f"card {card.index} {card.uuid} {card.model}, {card.usable_mib} of {card.total_mib} MiB usable"
        line += f", fences {', '.join(can) or 'nothing'}"
        lines.append(line + (f"; not {'; not '.join(cannot)}" if cannot else ""))
    return lines


def host_size() -> HostSize:
    """What this host, or the container that the agent runs in, may use."""
    cpus = len(psutil.Process().cpu_affinity())
    total_mib = psutil.virtual_memory().total >> 20
    caps_mib = [cap for cap in map(_cap_mib, _MEMORY_CAPS) if cap is not None]
    return HostSize(cpu_milli=cpus * 1000, memory_mib=min([total_mib, *caps_mib]))


def _cap_mib(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) >> 20 if text.isdigit() else None


def _offer(offer: sharing.TierOffer) -> TierOffer:
    return TierOffer(
        tier=str(offer.tier),
        enforcement=_STRENGTH[offer.enforcement],
        absent_because="" if offer.available else (offer.detail or "not offered here"),
        can_suspend=offer.available and offer.can_suspend,
    )
