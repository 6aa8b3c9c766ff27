"""Whose turn it is and who makes way, as text cases: the tenant tree, order, reclaim. Each case replays to itself."""

import pytest
from scenario import Scenario

TREE = {
    "a child takes its guarantee back from its sister, within their parent's limit": """
        tenant top limit=2000
        tenant a parent=top guaranteed=1000
        tenant b parent=top
        node n 4
        submit b y1 gpus=1
        cycle
        wait 1000
        submit b y2 gpus=1
        cycle
        submit a x gpus=1
        cycle
        expect x QUEUED PREEMPTING
        goes y2
        stays y1
        obey
        cycle
        expect x STARTING
        expect y2 QUEUED TENANT_LIMIT
    """,
    "a parent's guarantee is lent to its children first": """
        tenant top guaranteed=2000
        tenant a parent=top
        tenant b parent=top
        tenant other
        node n 2
        submit other o count=2 gpus=1
        cycle
        submit a x gpus=1
        submit b y gpus=1
        cycle
        goes o1 o2
        obey
        cycle
        expect x STARTING
        expect y STARTING
    """,
    "what a child borrows of its parent's guarantee strangers do not take back": """
        tenant top guaranteed=2000
        tenant a parent=top
        tenant other guaranteed=1000
        tenant greedy
        node n 3
        submit a x count=2 gpus=1
        submit greedy g gpus=1
        cycle
        submit other o gpus=1
        cycle
        stays x1 x2
        goes g
    """,
    "a child has no claim on what its sister borrows of their parent's": """
        tenant top guaranteed=2000
        tenant a parent=top
        tenant b parent=top
        node n 2
        submit a x count=2 gpus=1
        cycle
        submit b y gpus=1
        cycle
        stays x1 x2
        expect y QUEUED NO_CAPACITY
    """,
    "a parent's own jobs make way for what is guaranteed to its child": """
        tenant top guaranteed=2000
        tenant a parent=top guaranteed=1000
        node n 2
        submit top p1 gpus=1
        cycle
        wait 1000
        submit top p2 gpus=1
        cycle
        submit a x gpus=1
        cycle
        goes p2
        stays p1
        obey
        cycle
        submit a x2 gpus=1
        cycle
        stays p1
    """,
    "a stranger who borrows goes before a parent's own jobs that do not": """
        tenant top guaranteed=3000
        tenant a parent=top guaranteed=1000
        tenant other
        node n 3
        submit top p count=2 gpus=1
        cycle
        submit other o gpus=1
        cycle
        submit a x gpus=1
        cycle
        goes o
        stays p1 p2
    """,
    "a parent's own jobs have a share beside its children": """
        tenant top
        tenant a parent=top
        tenant other
        node n 8
        submit top p count=8 gpus=1
        submit a x count=8 gpus=1
        submit other o count=8 gpus=1
        cycle
        share other 4000
        share top 2000
        share a 2000
    """,
    "shares are split level by level, by weight": """
        tenant top weight=1
        tenant a parent=top weight=1
        tenant b parent=top weight=3
        tenant other weight=1
        node n 8
        submit a x count=8 gpus=1
        submit b y count=8 gpus=1
        submit other o count=8 gpus=1
        cycle
        share other 4000
        share a 1000
        share b 3000
    """,
}

ORDER = {
    "tenants below their guarantee go first, then the smaller measure by weight": """
        tenant heavy weight=2
        tenant light weight=1
        tenant sure guaranteed=1000
        node n 4
        submit light l count=4 gpus=1
        submit heavy h count=4 gpus=1
        submit sure s count=1 gpus=1
        cycle
        share sure 1000
        share heavy 2000
        share light 1000
    """,
    "a guarantee on a model that nobody waits for is no head start elsewhere": """
        tenant vision quota=H100:4000
        tenant other
        node n 4 model=H100
        node m 4 model=A100
        submit vision v count=4 gpus=1 model=A100
        submit other o count=4 gpus=1 model=A100
        cycle
        share vision 2000
        share other 2000
    """,
    "inside a tenant priority first": """
        tenant t
        node n 2
        submit t a count=2 gpus=1 user=ann
        submit t b count=2 gpus=1 user=bob priority=1
        cycle
        expect b1 STARTING
        expect b2 STARTING
    """,
    "then whoever used less, then the earlier": """
        tenant t
        node n 4
        submit t a count=6 gpus=1 user=ann
        submit t b count=2 gpus=1 user=bob
        submit t c count=2 gpus=1 user=cid
        cycle
        expect a1 STARTING
        expect b1 STARTING
        expect c1 STARTING
        expect a2 STARTING
        expect a3 QUEUED
    """,
    "what was used before counts": """
        tenant t
        node n 1
        submit t a gpus=1 user=ann
        cycle
        run a
        wait 36000000
        exit a 0
        submit t x gpus=1 user=ann
        submit t y gpus=1 user=bob
        cycle
        expect y STARTING
        expect x QUEUED
    """,
    "a job that was taken back has its old place in the order": """
        tenant own guaranteed=1000
        tenant other
        node n 1
        submit other b gpus=1
        submit other c gpus=1
        cycle
        submit own a gpus=1
        cycle
        obey
        cycle
        run a
        exit a 0
        cycle
        expect b STARTING
        expect c QUEUED
    """,
}

RECLAIM = {
    "nobody is touched before the minimum run time": """
        tenant own guaranteed=1000
        tenant other min_run=60000
        node n 1
        submit other b gpus=1
        cycle
        run b
        submit own a gpus=1
        wait 59000
        cycle
        stays b
        wait 1000
        cycle
        goes b
    """,
    "the cluster's minimum run time holds where a tenant says nothing": """
        settings min_run_ms=60000
        tenant own guaranteed=2000
        tenant other
        tenant quick min_run=0
        node n 2
        submit other b gpus=1
        submit quick q gpus=1
        cycle
        submit own a count=2 gpus=1
        cycle
        goes q
        stays b
    """,
    "as few as suffice": """
        tenant own guaranteed=1000
        tenant other
        node n 2
        submit other b count=3 milli=500
        cycle
        wait 1000
        submit other b4 milli=500
        cycle
        submit own a milli=500
        cycle
        goes b4
        stays b1 b2 b3
    """,
    "what is held goes to its claimant and to nobody else, however late the last one ends": """
        tenant own guaranteed=2000
        tenant other
        node n 2
        submit other b count=2 gpus=1
        cycle
        run b1
        run b2
        submit own a gpus=2
        cycle
        goes b1 b2
        stopped b1
        submit other c gpus=1
        submit other d milli=100
        submit own e milli=100
        cycle
        expect a QUEUED PREEMPTING
        expect c QUEUED HELD
        expect d QUEUED HELD
        expect b1 QUEUED HELD
        expect e QUEUED HELD
        wait 30000
        cycle
        expect a QUEUED PREEMPTING
        card n 0 milli=0
        stopped b2
        cycle
        expect a STARTING
    """,
    "a claimant that finds a place elsewhere gives back what was held": """
        tenant own guaranteed=1000
        tenant other
        node n 2
        submit other b1 gpus=1
        cycle
        wait 1000
        submit other b2 gpus=1
        cycle
        submit own a gpus=1
        cycle
        goes b2
        run b1
        exit b1 0
        cycle
        expect a STARTING
        obey
        cycle
        expect b2 STARTING
    """,
    "a claimant that is cancelled gives back what was held": """
        tenant own guaranteed=2000
        tenant other
        node n 2
        submit other b count=2 gpus=1
        cycle
        submit own a gpus=2
        cycle
        stopped b1
        cancel a
        cycle
        expect b1 STARTING
    """,
    "a card that is held and goes away harms nobody": """
        tenant own guaranteed=2000
        tenant other
        node n 1
        node m 1
        submit other b count=2 gpus=1
        cycle
        submit own a tasks=2 gpus=1
        cycle
        goes b1 b2
        stopped b1
        node n 0
        node m 0
        cycle
        stopped b2
        cycle
        expect a QUEUED
        node n 1
        node m 1
        cycle
        expect a STARTING
    """,
    "no job makes way twice in a row for the same one": """
        tenant own guaranteed=1000
        tenant other
        node n 1
        submit other b gpus=1
        cycle
        submit own a gpus=1 retries=3
        cycle
        obey
        cycle
        run a
        exit a 1
        cycle
        expect b STARTING
        wait 5000
        cycle
        stays b
        expect a QUEUED NO_CAPACITY
    """,
    "but the next one like it has its own claim": """
        tenant own guaranteed=1000
        tenant other
        node n 1
        submit other b gpus=1
        cycle
        submit own a gpus=1 retries=3
        cycle
        obey
        cycle
        run a
        exit a 1
        cycle
        expect b STARTING
        wait 5000
        submit own next gpus=1
        cycle
        goes b
        expect next QUEUED PREEMPTING
        expect a QUEUED
    """,
    "requeue and cancel, as the job says": """
        tenant own guaranteed=2000
        tenant other
        node n 2
        submit other b gpus=1 preemption=requeue
        submit other c gpus=1 preemption=cancel
        cycle
        submit own a gpus=2
        cycle
        obey
        expect b QUEUED
        expect c CANCELLED PREEMPTED
        cycle
        expect a STARTING
    """,
    "suspend, where the card's tier can": """
        tenant own guaranteed=1000
        tenant other
        node n 1 suspend=yes
        submit other b gpus=1 preemption=suspend cpu=1000 memory=1000
        cycle
        run b
        submit own a gpus=1 cpu=1000 memory=1000
        cycle
        obey
        expect b SUSPENDED
        cycle
        expect a STARTING
        share other 0
        run a
        exit a 0
        cycle
        share other 1000
    """,
}

CASES = {
    f"{part}: {name}": text
    for part, cases in {
        "tree": TREE,
        "order": ORDER,
        "reclaim": RECLAIM,
    }.items()
    for name, text in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Scenario().run(CASES[name])
