"""What tenants may use, as text cases: guarantees and borrowing, QoS, limits. Each case replays to itself."""

import pytest
from scenario import Scenario

GUARANTEES = {
    "what is guaranteed is taken back from whoever borrows it": """
        tenant own guaranteed=2000
        tenant other
        node n 4
        submit other b1 gpus=1
        submit other b2 gpus=1
        cycle
        wait 1000
        submit other b3 gpus=1
        submit other b4 gpus=1
        cycle
        submit own a count=3 gpus=1
        cycle
        expect a1 QUEUED PREEMPTING
        expect a2 QUEUED PREEMPTING
        expect a3 QUEUED NO_CAPACITY
        stays b1 b2
        goes b3 b4
        obey
        cycle
        expect a1 STARTING
        expect a2 STARTING
        expect a3 QUEUED NO_CAPACITY
        share own 2000
        share other 2000
    """,
    "what is not in use is lent, up to the limit": """
        tenant own guaranteed=4000
        tenant other limit=3000
        node n 4
        submit other b count=4 gpus=1
        cycle
        share other 3000
        expect b4 QUEUED TENANT_LIMIT
    """,
    "a tenant at its guarantee has no claim": """
        tenant own guaranteed=1000
        tenant other
        node n 2
        submit own a1 gpus=1
        submit other b1 gpus=1
        cycle
        submit own a2 gpus=1
        cycle
        expect a2 QUEUED NO_CAPACITY
        stays a1 b1
    """,
    "what would pass the guarantee has no claim, not even in part": """
        tenant own guaranteed=1500
        tenant other
        node n 2
        submit other b count=2 gpus=1
        cycle
        submit own a gpus=2
        cycle
        expect a QUEUED NO_CAPACITY
        stays b1 b2
    """,
    "nobody who stays within the own guarantee loses anything": """
        tenant own guaranteed=2000
        tenant modest guaranteed=1000
        tenant greedy
        node n 3
        submit modest m gpus=1
        submit greedy g count=2 gpus=1
        cycle
        submit own a count=2 gpus=1
        cycle
        stays m
        goes g1 g2
    """,
    "a tenant that borrows loses no more than it borrows": """
        tenant own guaranteed=2000
        tenant some guaranteed=1000
        tenant greedy
        node n 4
        submit greedy g count=1 gpus=1
        cycle
        wait 1000
        submit some s1 gpus=1
        cycle
        wait 1000
        submit some s2 gpus=1
        submit some s3 gpus=1
        cycle
        submit own a count=2 gpus=1
        cycle
        goes s2 s3
        stays s1 g
        obey
        cycle
        share some 1000
        share own 2000
    """,
    "two halves on one card are not both taken from who borrows one half": """
        tenant own guaranteed=1000
        tenant halves guaranteed=1500
        tenant greedy
        node n 3
        submit greedy g gpus=1
        cycle
        submit halves h count=4 milli=500
        cycle
        submit own a gpus=1
        cycle
        goes g
        stays h1 h2 h3 h4
    """,
    "nor over many cards, however young they are": """
        tenant own guaranteed=1000
        tenant halves guaranteed=9500
        tenant greedy
        node n 11
        submit greedy g gpus=1
        cycle
        wait 1000
        submit halves h count=20 milli=500
        cycle
        submit own a gpus=1
        cycle
        goes g
        stays h1 h2 h19 h20
    """,
    "a guarantee holds on cards of its model alone": """
        tenant own quota=H100:1000
        tenant other
        node n 1 model=H100
        node m 1 model=A100
        submit other b count=2 gpus=1
        cycle
        submit own a gpus=1 model=A100
        cycle
        expect a QUEUED NO_CAPACITY
        stays b1 b2
        submit own h gpus=1
        cycle
        expect h QUEUED PREEMPTING
        obey
        cycle
        on h n
    """,
    "one on a model comes on top of the general one": """
        tenant own guaranteed=1000 quota=H100:1000
        tenant other
        node n 1 model=H100
        node m 2 model=A100
        submit own h gpus=1 model=H100
        submit other b count=2 gpus=1
        cycle
        expect h STARTING
        submit own a count=2 gpus=1 model=A100
        cycle
        expect a1 QUEUED PREEMPTING
        expect a2 QUEUED NO_CAPACITY
    """,
    "who borrows on one model keeps what is guaranteed on another": """
        tenant own quota=H100:1000
        tenant some quota=H100:1000
        tenant greedy
        node n 2 model=H100
        node m 1 model=A100
        submit greedy g gpus=1 model=H100
        cycle
        submit some s gpus=1 model=H100
        submit some t gpus=1 model=A100
        cycle
        submit own a gpus=1 model=H100
        cycle
        goes g
        stays s t
    """,
    "a gang takes back all of its guarantee, or nothing": """
        tenant own guaranteed=3000
        tenant keeps guaranteed=1000
        tenant other
        node n 2
        node m 2
        submit keeps k gpus=1
        submit other b count=3 gpus=1
        cycle
        submit own four tasks=4 gpus=1
        submit own three tasks=3 gpus=1
        cycle
        expect four QUEUED NO_CAPACITY
        expect three QUEUED PREEMPTING
        stays k
        goes b1 b2 b3
        obey
        cycle
        expect three STARTING
    """,
    "a gang claims with its fewest tasks and grows later": """
        tenant own guaranteed=2000
        tenant other
        node n 4
        submit other b1 gpus=1
        submit other b2 gpus=1
        cycle
        wait 1000
        submit other b3 gpus=1
        submit other b4 gpus=1
        cycle
        submit own gang tasks=4 min_tasks=2 gpus=1
        cycle
        stays b1 b2
        goes b3 b4
        obey
        cycle
        share own 2000
        run gang
        run b1
        exit b1 0
        run b2
        exit b2 0
        cancel b3
        cancel b4
        cycle
        share own 4000
    """,
    "a gang of the borrower goes whole": """
        tenant own guaranteed=1000
        tenant other
        node n 1
        node m 1
        submit other gang tasks=2 gpus=1
        cycle
        submit own a gpus=1
        cycle
        stops gang 0,1
        obey
        cycle
        expect a STARTING
        expect gang QUEUED
    """,
    "eleven claims at once are all met, as soon as time allows": """
        tenant own guaranteed=11000
        tenant other
        node n 11
        submit other b count=11 gpus=1
        cycle
        submit own a count=11 gpus=1
        cycle
        cycle
        obey
        cycle
        share own 11000
    """,
}

QOS = {
    "a guaranteed job must fit the guarantee": """
        tenant t guaranteed=1000
        node n 4
        submit t a gpus=1 qos=guaranteed
        submit t b gpus=1 qos=guaranteed
        submit t c gpus=2 qos=guaranteed
        submit t d gpus=1
        cycle
        expect a STARTING
        expect b QUEUED QUOTA
        expect c QUEUED QUOTA_NEVER
        expect d STARTING
        run a
        exit a 0
        cycle
        expect b STARTING
    """,
    "a guaranteed job is never taken back, nor does it give way to a priority": """
        tenant own guaranteed=1000
        tenant safe guaranteed=1000
        node n 1
        submit safe s gpus=1 qos=guaranteed
        cycle
        submit own a gpus=1
        submit safe urgent gpus=1 priority=50
        cycle
        stays s
        expect a QUEUED NO_CAPACITY
        expect urgent QUEUED NO_CAPACITY
    """,
    "what is guaranteed to a child is not for guaranteed jobs of its parent": """
        tenant top guaranteed=2000
        tenant low parent=top guaranteed=1000
        node n 2
        submit top p count=2 gpus=1 qos=guaranteed
        cycle
        expect p1 STARTING
        expect p2 QUEUED QUOTA
        submit low c gpus=1 qos=guaranteed
        cycle
        expect c STARTING
    """,
    "a guarantee on a model is none for guaranteed jobs elsewhere": """
        tenant t quota=H100:1000
        node m 2 model=A100
        node n 1 model=H100
        submit t a gpus=1 model=A100 qos=guaranteed
        submit t h count=2 gpus=1 qos=guaranteed
        cycle
        expect a QUEUED QUOTA_NEVER
        expect h1 STARTING
        on h1 n
        expect h2 QUEUED QUOTA
    """,
}

LIMITS = {
    "a limit on a model": """
        tenant t quota=H100:0:1000
        node n 2 model=H100
        node m 1 model=A100
        submit t a count=3 gpus=1 model=H100
        submit t b gpus=1
        cycle
        expect a1 STARTING
        expect a2 QUEUED TENANT_LIMIT
        on b m
    """,
    "a parent's limit holds for all below it": """
        tenant top limit=2000
        tenant a parent=top
        tenant b parent=top
        node n 4
        submit a x count=2 gpus=1
        submit b y count=2 gpus=1
        cycle
        share a 1000
        share b 1000
        expect x2 QUEUED TENANT_LIMIT
        expect y2 QUEUED TENANT_LIMIT
    """,
    "limits of CPU and memory hold for jobs without cards, too": """
        tenant t cpu_limit=4000 memory_limit=8192
        node n 1
        submit t a gpus=0 cpu=3000 memory=1000
        submit t b gpus=0 cpu=2000 memory=1000
        submit t c gpus=0 cpu=1000 memory=7500
        submit t d milli=100 cpu=1000 memory=7000
        cycle
        expect a STARTING
        expect b QUEUED HOST_LIMIT
        expect c QUEUED HOST_LIMIT
        expect d STARTING
    """,
    "a limit that is lowered takes nothing away": """
        tenant t
        node n 2
        submit t a count=2 gpus=1
        cycle
        set t limit=1000
        submit t b gpus=1
        cycle
        stays a1 a2
        expect b QUEUED NO_CAPACITY
        run a1
        exit a1 0
        cycle
        expect b QUEUED TENANT_LIMIT
        run a2
        exit a2 0
        cycle
        expect b STARTING
    """,
    "running jobs of a tenant are capped": """
        tenant t max_running=2
        node n 4
        submit t a count=3 milli=100
        cycle
        expect a2 STARTING
        expect a3 QUEUED TENANT_CAP
        run a1
        exit a1 0
        cycle
        expect a3 STARTING
    """,
    "and those of all below a tenant": """
        tenant top max_running=2
        tenant a parent=top
        tenant b parent=top
        node n 4
        submit a x count=2 milli=100
        submit b y count=2 milli=100
        cycle
        expect x1 STARTING
        expect y1 STARTING
        expect x2 QUEUED TENANT_CAP
    """,
    "running jobs of a user are capped": """
        tenant t per_user=1
        node n 4
        submit t a count=2 milli=100 user=ann
        submit t b count=2 milli=100 user=bob
        cycle
        expect a1 STARTING
        expect b1 STARTING
        expect a2 QUEUED USER_CAP
        expect b2 QUEUED USER_CAP
    """,
    "children of an array that run at once are capped": """
        tenant t
        node n 4
        submit t a array=5%2 milli=100
        submit t b array=3 milli=100
        cycle
        expect a1 STARTING
        expect a2 QUEUED ARRAY_CAP
        expect b2 STARTING
        run a0
        exit a0 0
        cycle
        expect a2 STARTING
        expect a3 QUEUED ARRAY_CAP
    """,
    "a claimant counts against its user's cap while others make way": """
        tenant own guaranteed=1000 per_user=1
        tenant other
        node n 2
        submit other b count=2 gpus=1
        cycle
        submit own a gpus=1
        cycle
        expect a QUEUED PREEMPTING
        run b1
        exit b1 0
        submit own c gpus=1
        cycle
        expect a STARTING
        expect c QUEUED USER_CAP
    """,
    "also when another card comes free for the second job first": """
        tenant own guaranteed=2000 per_user=1
        tenant other
        node n 2
        node m 1
        submit other b tasks=2 gpus=1
        submit other c gpus=1
        cycle
        submit own a tasks=2 gpus=1 topology=node
        cycle
        submit own late gpus=1
        run c
        exit c 0
        cycle
        expect a QUEUED PREEMPTING
        expect late QUEUED USER_CAP
        obey
        cycle
        expect a STARTING
        expect late QUEUED USER_CAP
    """,
    "a suspended job still counts against its tenant's cap": """
        tenant own guaranteed=1000
        tenant other max_running=1
        node n 1 suspend=yes
        node m 1
        cordon m
        submit other c gpus=1 preemption=suspend cpu=1 memory=1
        cycle
        run c
        submit own a gpus=1 cpu=1 memory=1
        submit other d milli=100
        cycle
        goes c
        uncordon m
        cycle
        expect d QUEUED TENANT_CAP
        obey
        cycle
        expect c SUSPENDED
        expect d QUEUED TENANT_CAP
    """,
    "a suspended job goes on within its tenant's limit of CPU": """
        tenant own guaranteed=1000
        tenant other cpu_limit=4000
        node n 1 suspend=yes
        submit other c gpus=1 cpu=3000 memory=1 preemption=suspend
        cycle
        run c
        submit own a gpus=1 cpu=1000 memory=1
        cycle
        obey
        cycle
        expect c SUSPENDED
        run a
        exit a 0
        cycle
        run c
        expect c RUNNING
    """,
}

CASES = {
    f"{part}: {name}": text
    for part, cases in {
        "guarantees": GUARANTEES,
        "qos": QOS,
        "limits": LIMITS,
    }.items()
    for name, text in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Scenario().run(CASES[name])
