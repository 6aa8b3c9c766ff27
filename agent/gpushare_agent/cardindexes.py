"""The cards of a job by index, for programs that cannot take UUIDs: what CUDA will count, checked against the driver.

Pure: imports the card port's words and the tiers. Invariant: an index is given only where the driver, asked just now,
leaves no doubt about which card CUDA means by it; every doubt is a sentence, and refuses the launch.
"""

from __future__ import annotations

from collections.abc import Collection

from gpushare_agent.gpus.port import DriverState, GpuSnapshot
from gpushare_agent.sharing.port import Tier


class IndexDoubt(Exception):
    """Why nobody can say now which index names the card."""


def card_indexes(snapshot: GpuSnapshot, granted: Collection[str], tier: Tier, *, sees_no_others: bool) -> str:
    """What CUDA_VISIBLE_DEVICES must hold for these cards, in PCI order. `sees_no_others`: the device files of all
    other cards are out of the job's reach, so that CUDA does not count them. Raises IndexDoubt.
    """
    if snapshot.state is not DriverState.OK:
        raise IndexDoubt(f"the driver does not answer: {snapshot.detail or snapshot.state}")
    index_of = {info.uuid: info.index for info in snapshot.infos}
    for uuid in granted:
        if uuid not in index_of:
            raise IndexDoubt(f"the driver does not show {uuid} now")
    if tier is Tier.MPS_V2 or sees_no_others:
        # An MPS daemon has one card and calls it 0 to its clients, whatever its index on the host.
        return ",".join(str(place) for place in range(len(granted)))
    if sorted(index_of.values()) != list(range(len(index_of))):
        raise IndexDoubt(f"the driver counts the cards of this host as {sorted(index_of.values())}")
    for info in snapshot.infos:
        if info.mig_enabled:
            raise IndexDoubt(f"MIG mode is on for {info.uuid}, and then CUDA counts in another way")
    return ",".join(str(index) for index in sorted(index_of[uuid] for uuid in granted))
