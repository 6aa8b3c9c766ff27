"""Jobs before and after others, as text cases: priorities, dependencies, kept places. Each case replays to itself."""

import pytest
from scenario import Scenario

PRIORITY = {
    "a higher priority takes from lower ones of its own tenant alone": """
        tenant t
        tenant other
        node n 2
        submit t low gpus=1
        submit other o gpus=1
        cycle
        submit t high gpus=1 priority=5
        cycle
        goes low
        stays o
    """,
    "equal ones take nothing": """
        tenant t
        node n 1
        submit t a gpus=1 priority=5
        cycle
        submit t b gpus=1 priority=5
        cycle
        stays a
    """,
    "also where the tenant's own limit is what is in the way": """
        tenant t limit=1000
        node n 4
        submit t low gpus=1
        cycle
        submit t high gpus=1 priority=5
        cycle
        goes low
        expect high QUEUED PREEMPTING
        obey
        cycle
        expect high STARTING
        expect low QUEUED TENANT_LIMIT
        share t 1000
    """,
    "as few as the limit asks for, wherever they run": """
        tenant t limit=4000
        node n 2
        node m 2
        node k 2
        submit t a count=2 gpus=1
        submit t b count=4 milli=500
        cycle
        wait 1000
        submit t high gpus=1 priority=5
        cycle
        goes a1
        stays a2 b1 b2 b3 b4
        obey
        cycle
        expect high STARTING
    """,
    "a gang under a limit makes whole gangs go": """
        tenant t limit=4000
        node n 4
        node m 4
        submit t low tasks=4 gpus=1
        cycle
        submit t high tasks=2 gpus=1 priority=5
        cycle
        stops low 0,1,2,3
        obey
        cycle
        expect high STARTING
    """,
    "nobody goes when the limit would still be in the way": """
        tenant t limit=2000
        node n 4
        submit t low gpus=1
        submit t mid gpus=1 priority=9
        cycle
        submit t high gpus=2 priority=5
        cycle
        stays low mid
        expect high QUEUED TENANT_LIMIT
    """,
    "what leaves anyway is waited for": """
        tenant t limit=2000
        node n 4
        submit t low count=2 gpus=1
        cycle
        run low1
        run low2
        cancel low1
        submit t high gpus=1 priority=5
        cycle
        stays low2
        stopped low1
        cycle
        expect high STARTING
    """,
    "a limit of CPU is made room within, too": """
        tenant t cpu_limit=4000
        node n 4
        submit t low gpus=0 cpu=3000
        cycle
        submit t high gpus=0 cpu=2000 priority=5
        cycle
        goes low
    """,
    "a limit of a parent is none that a child's priority lifts": """
        tenant top limit=1000
        tenant a parent=top
        tenant b parent=top
        node n 4
        submit a x gpus=1
        cycle
        submit b y gpus=1 priority=50
        cycle
        stays x
        expect y QUEUED TENANT_LIMIT
    """,
}

DEPENDENCIES = {
    "after: it has begun, also where it was taken back since": """
        tenant own guaranteed=1000
        tenant t
        node n 1
        submit t first gpus=1
        submit t next gpus=1 after=first:after
        cycle
        expect next QUEUED DEPENDENCY
        run first
        cycle
        expect next QUEUED NO_CAPACITY
        submit own a gpus=1
        cycle
        obey
        expect first QUEUED
        cycle
        expect next QUEUED NO_CAPACITY
    """,
    "afterany: it has ended, well or not": """
        tenant t
        node n 4
        submit t a gpus=1
        submit t b gpus=1 after=a:afterany
        cycle
        run a
        cycle
        expect b QUEUED DEPENDENCY
        exit a 1
        cycle
        expect b STARTING
    """,
    "afterok: it has succeeded, or this one never starts": """
        tenant t
        node n 4
        submit t a gpus=1
        submit t b gpus=1 after=a
        submit t c gpus=1 after=b
        cycle
        run a
        exit a 1
        cycle
        expect b FAILED DEPENDENCY_FAILED
        cycle
        expect c FAILED DEPENDENCY_FAILED
    """,
    "of an array all children": """
        tenant t
        node n 4
        submit t a array=2 milli=100
        submit t b milli=100 after=a
        submit t c milli=100 after=a:after
        cycle
        expect c QUEUED DEPENDENCY
        run a0
        cycle
        expect c QUEUED DEPENDENCY
        run a1
        cycle
        expect c STARTING
        exit a0 0
        cycle
        expect b QUEUED DEPENDENCY
        exit a1 0
        cycle
        expect b STARTING
    """,
    "one child that fails is enough": """
        tenant t
        node n 4
        submit t a array=2 milli=100
        submit t b milli=100 after=a
        cycle
        run a0
        exit a0 1
        cycle
        expect b FAILED DEPENDENCY_FAILED
    """,
    "what is cancelled before it began has ended": """
        tenant t
        node n 1
        submit t block gpus=1
        cycle
        submit t a gpus=1
        submit t b milli=100 after=a:after
        submit t c milli=100 after=a:afterok
        cycle
        cancel a
        run block
        exit block 0
        cycle
        expect b STARTING
        expect c FAILED DEPENDENCY_FAILED
    """,
    "a start that comes too late does not come": """
        tenant t
        node n 1
        submit t block gpus=1
        cycle
        run block
        submit t late gpus=1 start_within=60000
        submit t soon gpus=1 start_within=60000
        wait 59000
        exit block 0
        cycle
        expect late STARTING
        run late
        wait 2000
        cycle
        expect soon FAILED START_DEADLINE
        expect late RUNNING
    """,
}

KEPT_PLACES = {
    "a wide job that waits for jobs without a limit has a place kept free at last": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        submit t a count=2 gpus=1
        cycle
        run a1
        run a2
        submit t wide gpus=2
        wait 300000
        exit a1 0
        submit t b gpus=1
        cycle
        expect b STARTING
        run b
        wait 300000
        cycle
        exit b 0
        submit t c gpus=1
        submit t d milli=100
        cycle
        expect wide QUEUED NO_CAPACITY
        expect c QUEUED HELD
        expect d QUEUED HELD
        wait 36000000
        cycle
        expect c QUEUED HELD
        exit a2 0
        cycle
        expect wide STARTING
        expect c QUEUED NO_CAPACITY
    """,
    "the place is where those run that have run the shortest": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        node m 2
        submit t old count=2 gpus=1
        cycle
        run old1
        run old2
        wait 3600000
        submit t new count=2 gpus=1
        cycle
        run new1
        run new2
        submit t wide gpus=2
        wait 600000
        cycle
        expect wide QUEUED NO_CAPACITY
        exit new1 0
        exit old1 0
        submit t c count=2 gpus=1
        cycle
        expect c1 STARTING
        expect c2 QUEUED HELD
        exit new2 0
        cycle
        expect wide STARTING
    """,
    "one at a time": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        node m 2
        submit t a count=4 gpus=1
        cycle
        run a1
        run a2
        run a3
        run a4
        submit t wide count=2 gpus=2
        wait 600000
        cycle
        exit a1 0
        exit a3 0
        submit t b gpus=1
        cycle
        expect b STARTING
    """,
    "a next place is not guessed at once, so that a queue that moves is not held up, but soon": """
        settings starvation_after_ms=600000
        remember
        tenant t
        node n 3
        submit t a count=3 gpus=1
        cycle
        run a1
        run a2
        run a3
        submit t wide count=2 gpus=2
        wait 600000
        cycle
        exit a1 0
        exit a2 0
        cycle
        expect wide1 STARTING
        run wide1
        exit a3 0
        submit t c gpus=1
        cycle
        expect c STARTING
        run c
        exit c 0
        wait 10000
        cycle
        submit t d gpus=1
        cycle
        expect d QUEUED HELD
    """,
    "in a large cluster a place is guessed less often": f"""
        settings starvation_after_ms=600000
        remember
        tenant t
        node n 3
        {chr(10).join(f"node idle-{i} 0" for i in range(332))}
        submit t a count=3 gpus=1
        cycle
        run a1
        run a2
        run a3
        submit t wide count=2 gpus=2
        wait 600000
        cycle
        exit a1 0
        exit a2 0
        cycle
        expect wide1 STARTING
        run wide1
        exit a3 0
        wait 39000
        cycle
        submit t c gpus=1
        cycle
        expect c STARTING
        run c
        exit c 0
        wait 1000
        cycle
        submit t d gpus=1
        cycle
        expect d QUEUED HELD
    """,
    "a suspended job gives no card back in any guess": """
        settings starvation_after_ms=600000
        remember
        tenant t
        node n 1 suspend=yes
        submit t low milli=500 mib=1000 cpu=1000 memory=1000 preemption=suspend
        submit t m milli=400 mib=1000 cpu=1000 memory=1000 priority=10
        cycle
        run low
        run m
        wait 1000
        submit t high milli=600 mib=1000 cpu=1000 memory=1000 priority=10
        cycle
        obey
        cycle
        run high
        node n2 1 suspend=yes
        submit t y gpus=1 cpu=1000 memory=1000 priority=10
        cycle
        run y
        submit t w milli=900 mib=1000 cpu=1000 memory=1000 priority=5
        wait 600000
        cycle
        exit y 0
        submit t x gpus=1 cpu=1000 memory=1000 priority=10
        cancel w
        submit t v milli=900 mib=1000 cpu=1000 memory=1000 priority=5
        cycle
        wait 600000
        exit x 0
        submit t z gpus=1 cpu=1000 memory=1000 priority=10
        cycle
        expect v QUEUED NO_CAPACITY
        expect z STARTING
    """,
    "what is kept goes back when the job does not wait for room any more": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        submit t a count=2 gpus=1
        cycle
        run a1
        run a2
        submit t wide gpus=2
        wait 600000
        cycle
        exit a1 0
        submit t b gpus=1
        cycle
        expect b QUEUED HELD
        set t limit=1000
        cycle
        set t limit=none
        cycle
        cancel wide
        cycle
        expect b STARTING
    """,
    "nor is a place kept that is not there any more": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        submit t a gpus=2
        cycle
        run a
        wait 1000
        node m 2
        submit t b gpus=2
        cycle
        run b
        submit t wide gpus=2
        wait 600000
        cycle
        cordon m
        cycle
        cycle
        exit a 0
        submit t c gpus=1
        cycle
        expect wide STARTING
        on wide n
    """,
    "a place that is gone is chosen anew": """
        settings starvation_after_ms=600000
        tenant t
        node n 2
        submit t a gpus=2
        cycle
        run a
        wait 1000
        node m 2
        submit t b count=2 gpus=1
        cycle
        run b1
        run b2
        submit t wide gpus=2
        wait 600000
        cycle
        exit b1 0
        submit t c gpus=1
        cycle
        expect c QUEUED HELD
        silent m
        cycle
        cycle
        back m
        cycle
        expect c STARTING
        on c m
    """,
    "a large job of a tenant that used much does not starve behind small ones of others": """
        settings starvation_after_ms=600000
        tenant much
        tenant little
        node n 2
        submit much history count=2 gpus=1
        cycle
        run history1
        run history2
        wait 360000000
        exit history1 0
        exit history2 0
        submit little s1 milli=10 limit_ms=60000
        cycle
        run s1
        submit much large gpus=2 limit_ms=60000
        cycle
        expect large QUEUED NO_CAPACITY
        wait 30000
        submit little s2 milli=10 limit_ms=60000
        cycle
        expect s2 STARTING
        run s2
        wait 30000
        exit s1 0
        cycle
        expect large QUEUED NO_CAPACITY
        wait 540000
        submit little s3 milli=10 limit_ms=600000
        cycle
        run s3
        exit s2 0
        cycle
        submit little s4 milli=10 limit_ms=900000
        cycle
        expect s4 QUEUED HELD
        exit s3 0
        cycle
        expect large STARTING
    """,
}

CASES = {
    f"{part}: {name}": text
    for part, cases in {
        "priority": PRIORITY,
        "dependencies": DEPENDENCIES,
        "kept places": KEPT_PLACES,
    }.items()
    for name, text in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Scenario().run(CASES[name])
