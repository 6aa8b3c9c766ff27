"""Which index names a card, tier by tier, and when nobody can say."""

from __future__ import annotations

import pytest

from gpushare_agent.cardindexes import IndexDoubt, card_indexes
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuSnapshot
from gpushare_agent.sharing.port import Tier


def host(*indexes: int, mig: int = -1, state: DriverState = DriverState.OK) -> GpuSnapshot:
    """Cards "c0", "c1", ... with these indexes."""
    infos = tuple(
        GpuInfo(uuid=f"c{n}", index=index, minor=n, model="M", total_mib=1000, reserved_mib=0, mig_enabled=index == mig)
        for n, index in enumerate(indexes)
    )
    return GpuSnapshot(state=state, infos=infos if state is DriverState.OK else ())


@pytest.mark.parametrize(
    ("indexes", "granted", "tier", "alone", "expected"),
    [
        ((0, 1, 2, 3), ("c2",), Tier.TIMESLICE, False, "2"),
        ((3, 2, 1, 0), ("c0",), Tier.TIMESLICE, False, "3"),
        ((0, 1, 2, 3), ("c3", "c1"), Tier.EXCLUSIVE, False, "1,3"),
        # A daemon of one card calls it 0, whatever else is there.
        ((0, 1, 2, 3), ("c2",), Tier.MPS_V2, False, "0"),
        ((0, 1, 2, 3), ("c2",), Tier.MPS_V2, True, "0"),
        # Where no other card can be opened CUDA counts the granted ones alone.
        ((0, 1, 2, 3), ("c2",), Tier.TIMESLICE, True, "0"),
        ((0, 1, 2, 3), ("c3", "c1"), Tier.EXCLUSIVE, True, "0,1"),
        ((0,), ("c0",), Tier.EXCLUSIVE, False, "0"),
        # A gap in the driver's counting means nothing where the other cards are out of reach.
        ((0, 2), ("c1",), Tier.EXCLUSIVE, True, "0"),
    ],
)
def test_indexes(indexes: tuple[int, ...], granted: tuple[str, ...], tier: Tier, alone: bool, expected: str) -> None:
    assert card_indexes(host(*indexes), granted, tier, sees_no_others=alone) == expected


@pytest.mark.parametrize(
    ("snapshot", "granted", "words"),
    [
        (host(0, state=DriverState.HUNG), ("c0",), "does not answer"),
        (host(0, 1), ("c7",), "does not show c7"),
        (host(0, 2), ("c1",), "[0, 2]"),
        (host(0, 0), ("c1",), "[0, 0]"),
        (host(0, 1, mig=1), ("c0",), "MIG mode is on for c1"),
    ],
)
def test_any_doubt_is_said_and_no_index_given(snapshot: GpuSnapshot, granted: tuple[str, ...], words: str) -> None:
    with pytest.raises(IndexDoubt) as caught:
        card_indexes(snapshot, granted, Tier.TIMESLICE, sees_no_others=False)
    assert words in str(caught.value)
