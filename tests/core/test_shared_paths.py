"""Jobs go where their directory is, as far as the nodes say: rules as text cases, and what `explain` says of them."""

from __future__ import annotations

import pytest
from cluster import Cluster, card
from scenario import Scenario

from gpushare.core.commands import RawResources, Rejection
from gpushare.core.explain import explain
from gpushare.core.kinds import JobState
from gpushare.core.shared_paths import covers, path_around
from gpushare.reasons import Reason

CASES = {
    "nobody says anything: any node will do": """
        tenant t
        node a 1
        node b 1
        submit t j count=2 gpus=1 dir=/home/ada
        cycle
        expect j1 STARTING
        expect j2 STARTING
    """,
    "under a published path only the nodes that publish it": """
        tenant t
        node a 1
        node b 1 shared=/home
        submit t j count=2 gpus=1 dir=/home/ada/proj
        cycle
        expect j1 STARTING
        on j1 b
        expect j2 QUEUED NO_CAPACITY
        exit j1 0
        cycle
        on j2 b
    """,
    "under no published path any node will do": """
        tenant t
        node a 1
        node b 1 shared=/home
        submit t j count=2 gpus=1 dir=/homework/ada
        cycle
        expect j1 STARTING
        expect j2 STARTING
    """,
    "a path further up covers, one further down does not": """
        tenant t
        node deep 1 shared=/data/big
        node up 1 shared=/data
        node beside 1 shared=/data/other
        submit t j count=3 gpus=1 dir=/data/big/run
        cycle
        expect j1 STARTING
        expect j2 STARTING
        expect j3 QUEUED NO_CAPACITY
        card beside 0 milli=0
    """,
    "the node that has the directory has not the model": """
        tenant t
        node a 1 model=A100 shared=/home
        node b 1 model=H100
        submit t j gpus=1 model=H100 dir=/home/ada
        cycle
        expect j QUEUED PATH_MISSING
    """,
    "one that waits does not hold up the next of the same request from elsewhere": """
        tenant t
        node a 1 model=A100 shared=/home
        node b 1 model=H100
        submit t home gpus=1 model=H100 dir=/home/ada
        submit t tmp gpus=1 model=H100 dir=/tmp
        cycle
        expect home QUEUED PATH_MISSING
        on tmp b
    """,
    "all tasks of a gang": """
        tenant t
        node a 1
        node b 1 shared=/home
        node c 1 shared=/home
        submit t j gpus=1 tasks=3 dir=/home/ada
        submit t k gpus=1 tasks=2 dir=/home/ada
        cycle
        expect j QUEUED NO_CAPACITY
        expect k STARTING
        card a 0 milli=0
    """,
    "a CPU job too": """
        tenant t
        node a 0
        node b 0 shared=/home
        submit t j gpus=0 dir=/home/ada
        cycle
        on j b
    """,
    "what runs is not taken back when nodes change their word, and what waits goes by the new one": """
        tenant t
        node a 1
        submit t runs gpus=1 dir=/home/ada
        submit t waits gpus=1 dir=/home/ada
        cycle
        run runs
        node b 1 model=A100 shared=/home
        exit runs 0
        cycle
        on waits b
    """,
    "a suspended job goes on where it is, whatever is published by then": """
        tenant t
        tenant u guaranteed=1000
        node a 1 suspend=yes
        submit t low gpus=1 dir=/home/ada preemption=suspend cpu=1000 memory=1000
        cycle
        run low
        submit u high gpus=1 cpu=1000 memory=1000
        cycle
        goes low
        obey
        cycle
        expect low SUSPENDED
        expect high STARTING
        node b 1 model=A100 shared=/home
        run high
        exit high 0
        cycle
        on low a
        run low
        expect low RUNNING
    """,
    "a node that is away still says where directories are": """
        tenant t
        node a 1
        node b 1 shared=/home
        disconnect b
        submit t j gpus=1 dir=/home/ada
        cycle
        expect j QUEUED NODES_UNAVAILABLE
        back b
        cycle
        on j b
    """,
}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_cases(text: str) -> None:
    Scenario().run(text)


def test_paths_cover_what_is_below_them_and_nothing_that_only_begins_alike() -> None:
    assert covers("/home", "/home")
    assert covers("/home", "/home/ada")
    assert not covers("/home", "/homework")
    assert covers("/", "/anything")
    assert path_around("/home/ada/../bob//x", ("/home/bob", "/home")) == "/home/bob"
    assert path_around("/tmp", ("/home",)) == ""


def test_explain_names_the_path_and_who_shares_it() -> None:
    cluster = Cluster()
    cluster.node("a", 0)
    cluster.sync("a", gpus=(card("GPU-a-0", model="A100"),), shared_paths=("/home",))
    cluster.node("b", 0)
    cluster.sync("b", gpus=(card("GPU-b-0", model="H100"),))
    (job,) = cluster.submit(resources=RawResources(gpus=1, gpu_model="H100"), working_directory="/home/ada")
    cluster.cycle()
    told = explain(cluster.state, job, cluster.now_ms, cluster.settings)
    assert job.state is JobState.QUEUED
    assert told.wait is not None
    assert told.wait.reason is Reason.PATH_MISSING
    assert "/home" in told.wait.detail
    assert "a share" in told.wait.detail
    assert {(f.reason, f.nodes) for f in told.filters} == {
        (Reason.PATH_MISSING, ("b",)),
        (Reason.MODEL_UNAVAILABLE, ("a",)),
    }


@pytest.mark.parametrize("path", ["home", "/home/", "/a//b", "/a/../b", "//a", "", "/a\0b"])
def test_a_node_that_publishes_what_is_no_plain_path_is_refused(path: str) -> None:
    cluster = Cluster()
    cluster.node("a", 1)
    before = cluster.state.encode()
    said = cluster.sync("a", shared_paths=(path,))
    assert isinstance(said, Rejection)
    assert said.reason is Reason.BAD_REPORT
    assert cluster.state.encode() == before
