"""What an agent says is bounded: nothing of it may grow the journal, a listing or a terminal without measure."""

import msgspec
import pytest
from cluster import Cluster, card

from gpushare.core.commands import ReportConditions
from gpushare.core.kinds import Enforcement
from gpushare.core.model import GpuCondition, Stranger, TierOffer
from gpushare.reasons import Reason

TIERS = tuple(TierOffer(f"t{i}", Enforcement.SOFT) for i in range(10_000))
INVENTORIES = {
    "10,000 tiers": {"gpus": (card("GPU-x", tiers=TIERS),)},
    "a tier with an escape": {"gpus": (card("GPU-x", tiers=(TierOffer("a\x1bb", Enforcement.SOFT),)),)},
    "a tier with NUL": {"gpus": (card("GPU-x", tiers=(TierOffer("a\0", Enforcement.SOFT),)),)},
    "index -5": {"gpus": (card("GPU-x", index=-5),)},
    "containment of 1 MiB": {"containment": "x" * (1 << 20)},
    "containment with an escape": {"containment": "\x1b[31m"},
    "17 warnings": {"warnings": ("it kills jobs",) * 17},
    "a warning with an escape": {"warnings": ("\x1b[31m",)},
    "a warning of 1 MiB": {"warnings": ("x" * (1 << 20),)},
    "65 cards": {"gpus": tuple(card(f"GPU-{i}", i) for i in range(65))},
    "a card twice": {"gpus": (card("GPU-x"), card("GPU-x"))},
    "another node's card": {"gpus": (card("GPU-n1-0"),)},
    "more usable than there is": {"gpus": (msgspec.structs.replace(card("GPU-x"), usable_mib=10**6),)},
}
CONDITIONS = {
    "a reason of 4 MB": GpuCondition(uuid="GPU-n1-0", reason="x" * 4_000_000),
    "a reason with an escape": GpuCondition(uuid="GPU-n1-0", reason="\x1b]0;x\x07"),
    "a detail of 4 MB": GpuCondition(uuid="GPU-n1-0", detail="x" * 4_000_000),
    "a user of 1 MB": GpuCondition(uuid="GPU-n1-0", strangers=(Stranger(1, "x" * 10**6, 1),)),
    "negative memory": GpuCondition(uuid="GPU-n1-0", strangers=(Stranger(1, "bob", -1),)),
    "5,000 strangers": GpuCondition(uuid="GPU-n1-0", strangers=(Stranger(1, "bob", 1),) * 5000),
}


@pytest.fixture
def nodes() -> Cluster:
    found = Cluster()
    found.node("n1", 1)
    found.node("n2", 0)
    return found


@pytest.mark.parametrize("name", INVENTORIES)
def test_an_inventory_that_cannot_be_changes_nothing(nodes: Cluster, name: str) -> None:
    before = nodes.state.encode()
    assert nodes.sync("n2", **INVENTORIES[name]).reason is Reason.BAD_REPORT
    assert nodes.state.encode() == before


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_that_cannot_be_changes_nothing(nodes: Cluster, name: str) -> None:
    before = nodes.state.encode()
    refused = nodes.do(ReportConditions(node="n1", conditions=(CONDITIONS[name],)))
    assert refused.reason is Reason.BAD_REPORT
    assert nodes.state.encode() == before


def test_a_card_of_a_dead_host_may_turn_up_elsewhere(nodes: Cluster) -> None:
    from gpushare.core.commands import DeclareNodeDead

    nodes.silence("n1")
    nodes.must(DeclareNodeDead(node="n1"))
    nodes.sync("n2", gpus=(card("GPU-n1-0"),))
    assert "GPU-n1-0" in nodes.state.nodes["n2"].gpus
    assert "GPU-n1-0" not in nodes.state.nodes["n1"].gpus
