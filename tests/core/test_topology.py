"""Jobs whose tasks must be near to each other: what can never be is refused, what may be waits, growth keeps to it."""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster, card

from gpushare.core.commands import CordonNode, RawResources
from gpushare.core.kinds import AttemptState, Role, Topology
from gpushare.core.model import Principal
from gpushare.reasons import Reason

R = RawResources
ADMIN = Principal(user="root", role=Role.ADMIN)


def host(cluster: Cluster, name: str, *domains: int) -> None:
    """A node with so many cards in each domain."""
    sizes = [place for place, size in enumerate(domains) for _ in range(size)]
    cards = [
        msgspec.structs.replace(card(f"GPU-{name}-{index}", index), domain=f"d{place}")
        for index, place in enumerate(sizes)
    ]
    cluster.node(name, 0)
    cluster.sync(name, gpus=tuple(cards))


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    host(made, "n1", 2, 2)
    host(made, "n2", 3)
    return made


NEVER = {
    "five cards on one node": ({"tasks": 5, "topology": Topology.NODE}, "5 tasks on one node", "node holds 4"),
    "four cards of one domain": ({"tasks": 4, "topology": Topology.DOMAIN}, "in one card domain", "domain holds 3"),
    "one task of four cards": ({"resources": R(gpus=4), "topology": Topology.DOMAIN}, "one task", "domain holds 0"),
    "of which three at first": (
        {"tasks": 9, "min_tasks": 4, "topology": Topology.DOMAIN},
        "4 tasks in one card domain",
        "domain holds 3",
    ),
    "thirteen thirds of one domain": (
        {"resources": R(gpu_milli=300), "tasks": 10, "topology": Topology.DOMAIN},
        "10 tasks in one card domain",
        "domain holds 9",
    ),
    "more CPU than one node": (
        {"resources": R(gpus=0, cpu_milli=100_000), "tasks": 2, "topology": Topology.NODE},
        "2 tasks on one node",
        "node holds 1",
    ),
    "more than all together": ({"tasks": 8, "topology": Topology.NODE}, "8 tasks at once", "together hold 4"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_no_node_could_ever_hold_is_refused(cluster: Cluster, name: str) -> None:
    fields, *said = NEVER[name]
    rejection = cluster.refuse(**{"resources": R(gpus=1), **fields})
    assert rejection.reason is Reason.NEVER_FITS
    assert all(part in rejection.detail for part in said), rejection.detail


def test_drained_and_silent_nodes_count_and_without_nodes_it_waits(cluster: Cluster) -> None:
    host(cluster, "big", 8)
    cluster.silence("big")
    cluster.must(CordonNode(node="big", drain=True), ADMIN)
    job = cluster.submit(resources=R(gpus=1), tasks=8, topology=Topology.DOMAIN)[0]
    assert cluster.cycle().waits
    assert job.state == "QUEUED"
    empty = Cluster()
    job = empty.submit(resources=R(gpus=1), tasks=8, topology=Topology.DOMAIN)[0]
    assert list(empty.cycle().waits.values()) == [Reason.NO_NODES]


def test_a_cpu_job_has_no_card_domain(cluster: Cluster) -> None:
    rejection = cluster.refuse(resources=R(gpus=0), tasks=2, topology=Topology.DOMAIN)
    assert (rejection.reason, rejection.field) == (Reason.INVALID_FIELD, "topology")


def test_the_cards_of_one_task_are_of_one_domain_where_that_is_demanded(cluster: Cluster) -> None:
    """One card is left in each domain of n1, one in n2: four in all, nowhere two together."""
    for domain in ("d0", "d1"):
        cards = [g.uuid for g in cluster.state.nodes["n1"].gpus.values() if g.inventory.domain == domain]
        assert len(cards) == 2
    fillers = [cluster.submit(resources=R(gpus=1))[0] for _ in range(7)]
    cluster.cycle()
    held = {job.key: job.current()[0].slice.gpu_uuids[0] for job in fillers}
    for key, uuid in held.items():
        if uuid in ("GPU-n1-0", "GPU-n1-2", "GPU-n2-0"):
            cluster.cancel(cluster.state.jobs[key])
            cluster.report(cluster.state.jobs[key].current()[0], AttemptState.STOPPED, reason=Reason.CANCELLED)
    near = cluster.submit(resources=R(gpus=2), topology=Topology.DOMAIN)[0]
    assert list(cluster.cycle().waits.values()) == [Reason.NO_CAPACITY]
    assert near.state == "QUEUED"
    anywhere = cluster.submit(resources=R(gpus=2))[0]
    cluster.cycle()
    assert anywhere.current()[0].slice.gpu_uuids == ("GPU-n1-0", "GPU-n1-2")


@pytest.mark.parametrize(("topology", "most"), [(Topology.NODE, 4), (Topology.DOMAIN, 2), (Topology.ANY, 5)])
def test_a_gang_grows_where_its_tasks_are(topology: Topology, most: int) -> None:
    """It begins on n1 with one task while the rest of the node is in use."""
    cluster = Cluster()
    host(cluster, "n1", 2, 2)
    filler = cluster.submit(resources=R(gpus=3))[0]
    cluster.cycle()
    gang = cluster.submit(resources=R(gpus=1), tasks=5, min_tasks=1, topology=topology)[0]
    cluster.cycle()
    host(cluster, "n2", 3)
    cluster.cancel(filler)
    cluster.report(filler.current()[0], AttemptState.STOPPED, reason=Reason.CANCELLED)
    cluster.report(gang.current()[0], AttemptState.RUNNING, started_ms=cluster.now_ms)
    cluster.cycle()
    slices = [attempt.slice for attempt in gang.live()]
    assert len(slices) == most
    if topology is not Topology.ANY:
        assert {piece.node for piece in slices} == {"n1"}
    if topology is Topology.DOMAIN:
        gpus = cluster.state.nodes["n1"].gpus
        assert len({gpus[piece.gpu_uuids[0]].inventory.domain for piece in slices}) == 1
