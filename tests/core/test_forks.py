"""A fork of the state and the state it was made of share records until one of the two changes them, and never more."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from cluster import Cluster, card, user_of

from gpushare.core import facts, facts_jobs
from gpushare.core.commands import CordonNode, DeclareNodeDead, RawResources, SetNode, UncordonNode, UpdateTenant
from gpushare.core.invariants import check
from gpushare.core.kinds import Role
from gpushare.core.model import Principal, TenantSettings
from gpushare.core.state import ClusterState

ADMIN = Principal(user="root", role=Role.ADMIN)


def a_day(cluster: Cluster) -> list[object]:
    """What a cluster sees, one step at a time."""
    first, second = cluster.submit(count=2, resources=RawResources(gpu_milli=500), max_retries=1, array_indexes=())
    gang = cluster.submit(resources=RawResources(gpus=1), tasks=3, min_tasks=1)[0]
    after = cluster.submit(resources=RawResources(gpus=1))[0]
    steps = [
        cluster.cycle,
        lambda: cluster.run(first),
        lambda: cluster.run(gang),
        lambda: cluster.finish(first, 3),
        lambda: cluster.tick(60_000),
        cluster.cycle,
        lambda: cluster.cancel(second),
        lambda: cluster.finish(gang),
        lambda: cluster.must(CordonNode(node="n", drain=True), ADMIN),
        lambda: cluster.must(UncordonNode(node="n"), ADMIN),
        lambda: cluster.must(SetNode("n", 2000), ADMIN),
        lambda: cluster.must(UpdateTenant("vision", TenantSettings(weight=3)), ADMIN),
        cluster.cycle,
        lambda: cluster.silence("n"),
        lambda: cluster.sync("n", gpus=tuple(card(f"GPU-n-{i}", i) for i in range(2)), boot_id="boot-2"),
        lambda: cluster.silence("n"),
        lambda: cluster.must(DeclareNodeDead(node="n"), ADMIN),
        lambda: cluster.node("m", 2),
        lambda: cluster.submit(who=user_of("vision", "zoe")),
        lambda: cluster.cancel(after),
        cluster.cycle,
    ]
    return list(steps)


def test_neither_sees_what_the_other_does() -> None:
    cluster = Cluster()
    cluster.node("n", 2)
    forks: list[tuple[ClusterState, bytes]] = []
    for step in a_day(cluster):
        made = cluster.state.fork()
        forks.append((made, made.encode()))
        step()  # type: ignore[operator]
        check(made)
        for one, before in forks:
            assert one.encode() == before
    assert cluster.replayed().encode() == cluster.state.encode()


def test_a_fork_goes_on_as_the_state_would_have() -> None:
    cluster = Cluster()
    cluster.node("n", 2)
    steps = a_day(cluster)
    own = cluster.state
    cluster.state = own.fork()
    before, begin = own.encode(), len(cluster.journal)
    for step in steps:
        step()  # type: ignore[operator]
    assert own.encode() == before
    check(cluster.state)
    for entry in cluster.journal[begin:]:
        own.apply(entry)
    hidden = {"tokens": {}, "join_tokens": {}, "requests": {}}
    own_text, fork_text = (
        msgspec.json.encode(msgspec.structs.replace(state.snapshot(), **hidden)) for state in (own, cluster.state)
    )
    assert msgspec.json.decode(own_text) == msgspec.json.decode(fork_text)


def test_handlers_change_records_that_are_their_own() -> None:
    """Every fact takes jobs and nodes by `own_job`, `own_attempt` and `own_node`."""
    for module in (facts, facts_jobs):
        text = Path(module.__file__).read_text()
        assert not re.findall(r"state\.(?:nodes|jobs)\[[^]]*\]\.\w+ =[^=]", text)
        assert not re.findall(r"(?:node|job) = state\.(?:nodes|jobs)\[event\b.*", text)
        assert "must_attempt(" not in text
