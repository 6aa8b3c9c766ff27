"""Who gets what, as text cases: guarantees and borrowing, limits, the tenant tree, caps, order, reclaim, priorities,
dependencies, and places kept free. Each case replays to itself."""

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
        "guarantees": GUARANTEES,
        "qos": QOS,
        "limits": LIMITS,
        "tree": TREE,
        "order": ORDER,
        "reclaim": RECLAIM,
        "priority": PRIORITY,
        "dependencies": DEPENDENCIES,
        "kept places": KEPT_PLACES,
    }.items()
    for name, text in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    Scenario().run(CASES[name])
