"""What an admin sets of a node: how far shares of its cards may be overcommitted."""

from __future__ import annotations

import pytest
from cluster import Cluster
from scenario import Scenario

from gpushare.core.commands import Outcome, RawResources, Rejection, SetNode
from gpushare.reasons import Reason

# CPU and memory of the host are not overcommitted, so a share says what it needs of them.
SHARE = RawResources(gpu_milli=500, gpu_memory_mib=1000, cpu_milli=1000, memory_mib=1000)


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    found.node("n1", 1)
    return found


def test_more_shares_fit_a_card_whose_compute_is_overcommitted() -> None:
    Scenario().run("""
        tenant t
        node n1 1
        submit t a count=3 milli=500 mib=1000 cpu=1000 memory=1000
        cycle
        expect a2 STARTING
        expect a3 QUEUED
        overcommit n1 1500
        cycle
        expect a3 STARTING
        card n1 0 milli=1500 mib=3000
    """)


def test_memory_is_never_overcommitted() -> None:
    Scenario().run("""
        tenant t
        node n1 1 mib=10000
        overcommit n1 10000
        submit t a count=3 milli=100 mib=4000 cpu=1000 memory=1000
        cycle
        expect a2 STARTING
        expect a3 QUEUED
    """)


@pytest.mark.parametrize("milli", [-1, 0, 999, 10_001, 2**63 - 1])
def test_what_no_card_can_give_is_refused(cluster: Cluster, milli: int) -> None:
    before = cluster.state.encode()
    rejection = cluster.do(SetNode("n1", milli))
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.field) == (Reason.INVALID_FIELD, "compute_overcommit_milli")
    assert cluster.state.encode() == before


def test_no_job_loses_its_share_to_a_smaller_factor(cluster: Cluster) -> None:
    cluster.must(SetNode("n1", 2000))
    jobs = cluster.submit(count=3, resources=SHARE)
    cluster.cycle()
    before = cluster.state.encode()
    rejection = cluster.do(SetNode("n1", 1499))
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, "1500" in rejection.detail) == (Reason.NODE_BUSY, True)
    assert cluster.state.encode() == before
    cluster.must(SetNode("n1", 1500))
    cluster.finish(jobs[0])
    cluster.must(SetNode("n1", 1000))
    assert cluster.replayed().encode() == cluster.state.encode()


def test_nothing_to_change_and_a_node_that_is_not_there(cluster: Cluster) -> None:
    for milli in (None, 1000):
        outcome = cluster.do(SetNode("n1", milli))
        assert isinstance(outcome, Outcome)
        assert outcome.events == ()
    rejection = cluster.do(SetNode("n9", 1000))
    assert isinstance(rejection, Rejection)
    assert rejection.reason is Reason.NOT_FOUND


def test_each_setting_is_changed_by_itself(cluster: Cluster) -> None:
    node = cluster.state.nodes["n1"]
    cluster.must(SetNode("n1", trust_logins=True))
    cluster.must(SetNode("n1", 1500))
    assert (node.trust_logins, node.compute_overcommit_milli) == (True, 1500)
    assert isinstance(cluster.do(SetNode("n1", 99, trust_logins=False)), Rejection)
    assert node.trust_logins, "a refusal changes nothing"
    cluster.must(SetNode("n1", 1000, trust_logins=False))
    assert (node.trust_logins, node.compute_overcommit_milli) == (False, 1000)
