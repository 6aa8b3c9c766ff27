"""Scheduling as text cases: exact arithmetic of slices, gangs, limits, losses, cancels. Each case replays to itself."""

import pytest
from scenario import Scenario

CASES = {
    "ten tenths fill a card and the eleventh waits": """
        tenant t
        node n 1
        submit t a count=10 milli=100
        submit t late milli=100
        cycle
        card n 0 milli=1000
        expect a10 STARTING
        expect late QUEUED NO_CAPACITY
        run a3
        exit a3 0
        cycle
        expect late STARTING
    """,
    "0.1 and 0.2 fit a limit of 0.3 exactly": """
        tenant t limit=300
        node n 8
        submit t a milli=100 mib=1
        submit t b milli=200 mib=1
        submit t c milli=1 mib=1
        cycle
        expect a STARTING
        expect b STARTING
        expect c QUEUED TENANT_LIMIT
    """,
    "three of 0.333 and then 0.001 fit, 0.002 does not": """
        tenant t
        node n 1
        submit t a count=3 milli=333
        submit t two milli=2
        submit t one milli=1
        cycle
        expect two QUEUED NO_CAPACITY
        expect one STARTING
        card n 0 milli=1000
    """,
    "memory is conserved per card: 24 x 2000 MiB do not fit 46068": """
        tenant t
        node n 1 mib=46068
        submit t a count=24 milli=1 mib=2000
        cycle
        card n 0 milli=23 mib=46000
        expect a23 STARTING
        expect a24 QUEUED NO_CAPACITY
    """,
    "memory alone takes its proportion of the card, rounded up": """
        tenant t
        node n 1 mib=46068
        submit t a mib=2000
        cycle
        card n 0 milli=44 mib=2000
    """,
    "a share alone takes its proportion of the memory, rounded down": """
        tenant t
        node n 1 mib=81559
        submit t a milli=333
        cycle
        card n 0 milli=333 mib=27159
    """,
    "a small share with all memory is charged the whole card": """
        tenant t limit=999
        node n 2
        submit t a milli=100 mib=81559
        cycle
        expect a QUEUED TENANT_LIMIT_NEVER
    """,
    "whole cards are exclusive": """
        tenant t
        node n 2
        submit t share milli=1
        submit t two gpus=2
        submit t one gpus=1
        cycle
        expect share STARTING
        expect two QUEUED NO_CAPACITY
        expect one STARTING
        card n 1 milli=1000 mib=81559
    """,
    "priority goes first, then the time of submission": """
        tenant t
        node n 1
        submit t first gpus=1
        submit t urgent gpus=1 priority=5
        cycle
        expect urgent STARTING
        expect first QUEUED
    """,
    "a job that does not fit lets a smaller one pass": """
        tenant t
        node n 1
        submit t half milli=500
        submit t big gpus=1
        submit t other milli=500
        cycle
        expect big QUEUED NO_CAPACITY
        expect other STARTING
    """,
    "a gang starts whole or not at all": """
        tenant t
        node n 1
        node m 1
        submit t block milli=600
        cycle
        submit t gang tasks=4 milli=500
        cycle
        expect gang QUEUED NO_CAPACITY
        run block
        exit block 0
        cycle
        expect gang STARTING
        card n 0 milli=1000
        card m 0 milli=1000
    """,
    "a gang's summed charge counts against the limit": """
        tenant t limit=1000
        node n 8
        submit t gang tasks=3 milli=400 mib=1
        submit t pair tasks=2 milli=400 mib=1
        cycle
        expect gang QUEUED TENANT_LIMIT_NEVER
        expect pair STARTING
    """,
    "the first task that fails ends the others, and its code is the job's": """
        tenant t
        node n 4
        submit t gang tasks=3 milli=500
        cycle
        run gang
        exit gang 7 task=1
        stops gang 0,2
        expect gang RUNNING
        stopped gang
        expect gang FAILED EXIT_CODE
        code gang 7
        card n 0 milli=0
    """,
    "a lost task stops its peers and the whole gang runs again, free of its own budget": """
        tenant t
        node n 4
        submit t gang tasks=2 milli=500
        cycle
        run gang
        lose gang INFRA task=0
        stopped gang
        expect gang QUEUED RETRY_BACKOFF
        cycle
        expect gang QUEUED
        wait 1000
        cycle
        expect gang STARTING
        round gang 2
        run gang
        exit gang 0
        expect gang SUCCEEDED COMPLETED
        code gang 0
    """,
    "infrastructure losses are retried five times and no more": """
        tenant t
        node n 1
        submit t a milli=500
        cycle
        lose a INFRA
        wait 60000
        cycle
        lose a NODE_REBOOTED
        wait 60000
        cycle
        lose a INFRA
        wait 60000
        cycle
        lose a INFRA
        wait 60000
        cycle
        lose a INFRA
        wait 60000
        cycle
        round a 6
        lose a INFRA
        expect a FAILED INFRA
        code a 125
    """,
    "own failures are retried as often as the job says": """
        tenant t
        node n 1
        submit t a milli=500 retries=1
        cycle
        exit a 3
        wait 1000
        cycle
        round a 2
        exit a 4
        expect a FAILED EXIT_CODE
        code a 4
    """,
    "a missing command is not tried again": """
        tenant t
        node n 1
        submit t a milli=500 retries=5
        cycle
        lose a EXEC
        expect a FAILED EXEC
    """,
    "cancelled while queued, cancelled while running": """
        tenant t
        node n 1
        submit t a gpus=1
        submit t b gpus=1
        cycle
        cancel b
        expect b CANCELLED CANCELLED
        run a
        cancel a
        expect a CANCELLING
        cancel a
        stops a 0
        stopped a
        expect a CANCELLED CANCELLED
        code a 143
        cancel a
        expect a CANCELLED
    """,
    "a cancel that lost the race leaves a success alone": """
        tenant t
        node n 1
        submit t a gpus=1
        cycle
        run a
        cancel a
        exit a 0
        expect a SUCCEEDED COMPLETED
    """,
    "a silent node keeps its tasks and their capacity": """
        tenant t
        node n 1
        submit t a gpus=1
        cycle
        run a
        silent n
        submit t b gpus=1
        cycle
        expect a RUNNING
        expect b QUEUED NODES_UNAVAILABLE
        card n 0 milli=1000
        back n
        cycle
        expect b QUEUED NO_CAPACITY
        run a
        exit a 0
        cycle
        expect b STARTING
    """,
    "a cordoned node takes nothing new": """
        tenant t
        node n 1
        cordon n
        submit t a milli=500
        cycle
        expect a QUEUED NODES_UNAVAILABLE
        uncordon n
        cycle
        expect a STARTING
    """,
    "unset CPU and memory follow the share of the node": """
        tenant t
        node n 4 cpu=64000 memory=262144
        submit t a count=8 milli=500
        cycle
        expect a8 STARTING
        submit t cpu gpus=0
        cycle
        expect cpu QUEUED HOST_CAPACITY
    """,
    "a node that lost the job is taken last the next time": """
        tenant t
        node n 1
        node m 1
        submit t a milli=500
        cycle
        on a m
        lose a INFRA
        wait 1000
        cycle
        on a n
    """,
    "a node without a session takes nothing new, and keeps what it runs": """
        tenant t
        node n 1
        submit t a milli=500
        cycle
        run a
        disconnect n
        submit t b milli=500
        cycle
        expect a RUNNING
        expect b QUEUED NODES_UNAVAILABLE
        back n
        cycle
        expect b STARTING
    """,
    "without a node a job waits for one": """
        tenant t
        submit t a milli=500
        cycle
        expect a QUEUED NO_NODES
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Scenario().run(CASES[name])


@pytest.mark.parametrize("shuffle", range(100))
def test_sixteen_half_card_jobs_end_two_per_card(shuffle: int) -> None:
    """However the jobs come in, eight cards take two each."""
    scenario = Scenario().run(f"tenant t\nnode n{shuffle} 4\nnode m{shuffle} 4")
    for k in range(16):
        scenario.run(f"submit t j{k} milli=500" + (f" priority={(k * 7 + shuffle) % 5}" if shuffle % 2 else ""))
    scenario.run("cycle")
    cards = [g for n in scenario.cluster.state.nodes.values() for g in n.gpus.values()]
    assert [len(g.holds) for g in cards] == [2] * 8
