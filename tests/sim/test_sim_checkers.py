"""The checker sees every kind of broken constraint; a checker that finds nothing proves nothing."""

from __future__ import annotations

import msgspec
import pytest
from traces_made import random_jobs, random_nodes, simulated

from gpushare.sim.checkers import refused_with_room, violations
from gpushare.sim.placements import Placement
from gpushare.sim.traces import TraceJob, TraceNode

NODES = [TraceNode("a", 4000, 1000, 2, "T4"), TraceNode("b", 4000, 1000, 1, "V100"), TraceNode("c", 4000, 1000, 0, "")]
JOBS = [
    TraceJob("whole", 0, 1000, 100, 1, 1000, (), 1000),
    TraceJob("share", 0, 1000, 100, 1, 600, ("T4",), None),
    TraceJob("pair", 2000, 1000, 100, 2, 1000, (), None),
    TraceJob("cpu", 0, 4000, 100, 0, 0, (), 500),
    TraceJob("gang", 0, 100, 100, 0, 0, (), None, tasks=2),
]
GOOD = [
    Placement("whole", "a", (0,), 1000, 0),
    Placement("share", "a", (1,), 600, 0),
    Placement("pair"),
    Placement("cpu", "c", (), 0, 0),
    Placement("gang", "b", (), 0, 1),
    Placement("gang", "c", (), 0, 500),
]
GOOD[4] = Placement("gang", "b", (), 0, 500)


@pytest.mark.parametrize(
    ("place", "wrong", "says"),
    [
        (0, Placement("whole", "a", (1,), 1000, 0), "card 1 is 600 milli over"),
        (1, Placement("share", "a", (0,), 600, 999), "card 0 is 600 milli over"),
        (1, Placement("share", "b", (0,), 600, 0), "is on a V100"),
        (1, Placement("share", "a", (1,), 500, 0), "has 500 milli and asks for 600"),
        (1, Placement("share", "a", (2,), 600, 0), "of a node with 2"),
        (1, Placement("share", "z", (0,), 600, 0), "there is no node z"),
        (2, Placement("pair", "a", (0, 0), 1000, 2000), "asks for 2"),
        (2, Placement("pair", "a", (0,), 1000, 2000), "asks for 2"),
        (2, Placement("pair", "a", (0, 1), 1000, 1999), "arrives at 2000 ms"),
        (2, Placement("pair", "a", (0, 1), 1000, 2000), "card 1 is 600 milli over"),
        (3, Placement("cpu", "a", (), 0, 0), "milli-CPU over"),
        (3, Placement("cpu", "c", (0,), 0, 0), "asks for 0"),
        (3, Placement("cpu", "c", (), 0, 1), "100 milli-CPU over"),
        (4, Placement("gang"), "do not start together"),
        (4, Placement("gang", "b", (), 0, 501), "do not start together"),
        (4, Placement("stranger", "b", (), 0, 0), "not in the trace"),
    ],
)
def test_a_broken_constraint_is_named(place: int, wrong: Placement, says: str) -> None:
    assert violations(NODES, JOBS, GOOD) == []
    rows = [wrong if n == place else row for n, row in enumerate(GOOD)]
    assert any(says in fault for fault in violations(NODES, JOBS, rows))


def test_a_missing_or_repeated_line_is_named() -> None:
    assert violations(NODES, JOBS, GOOD[1:]) == ["job whole: has 0 lines; it has 1 tasks"]
    assert violations(NODES, JOBS, [*GOOD, GOOD[0]]) == ["job whole: has 2 lines; it has 1 tasks"]


def test_an_end_frees_for_a_start_at_the_same_moment() -> None:
    jobs = [JOBS[0], msgspec.structs.replace(JOBS[0], id="next", arrival_ms=1000)]
    rows = [GOOD[0], Placement("next", "a", (0,), 1000, 1000)]
    assert violations(NODES, jobs, rows) == []
    assert violations(NODES, jobs, [GOOD[0], msgspec.structs.replace(rows[1], start_ms=999)]) != []


def test_a_refusal_that_had_room_is_named() -> None:
    jobs = [job for job in JOBS if job.tasks == 1]
    rows = [row for row in GOOD if row.job_id != "gang"]
    assert refused_with_room(NODES, jobs, rows) == []
    assert refused_with_room(NODES, jobs, [Placement("whole"), *rows[1:]]) == ["whole"]


@pytest.mark.parametrize("seed", range(6))
def test_moving_any_one_task_onto_a_full_card_is_seen(seed: int) -> None:
    nodes, jobs = random_nodes(seed), random_jobs(seed, 40, leaving=False)
    _, rows = simulated(nodes, jobs, seed=seed, once=True)
    full = [row for row in rows if row.gpu_milli == 1000]
    shares = [row for row in rows if 0 < row.gpu_milli < 1000]
    for whole, share in zip(full, shares, strict=False):
        moved = msgspec.structs.replace(share, node=whole.node, gpu_index=whole.gpu_index[:1])
        assert violations(nodes, jobs, [moved if row is share else row for row in rows])
