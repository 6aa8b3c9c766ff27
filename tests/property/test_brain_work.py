"""Work conservation: after a pass no waiting job fits, within its limits, on capacity that is not held, reserved or
owed to the head of the queue. What fits is found out by going through nodes and cards one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from cluster import card, raw_job, user_of
from fair_lab import FairLab
from room_oracle import Oracle

from gpushare.core.commands import CreateReservation, CreateTenant, RawResources, SubmitJobs
from gpushare.core.cycle import Cycle
from gpushare.core.kinds import Qos, Topology
from gpushare.core.model import TenantSettings

MINUTE_MS = 60_000
NODES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["H100", "A100"])), min_size=1, max_size=4)
TENANTS = st.lists(
    st.fixed_dictionaries(
        {
            "guaranteed_milli": st.sampled_from([0, 0, 1000, 2000]),
            "limit_milli": st.sampled_from([None, None, 2000, 5000]),
            "max_running_jobs": st.sampled_from([None, None, 2]),
            "max_running_per_user": st.sampled_from([None, None, 2]),
            "weight": st.integers(1, 3),
        }
    ),
    min_size=1,
    max_size=4,
)
SIZES = st.one_of(
    st.builds(
        RawResources,
        gpu_milli=st.sampled_from([100, 250, 333, 500, 700]),
        gpu_model=st.sampled_from(["", "H100"]),
        cpu_milli=st.sampled_from([None, 1000]),
    ),
    st.builds(RawResources, gpus=st.integers(0, 3), cpu_milli=st.sampled_from([None, 4000])),
    st.builds(RawResources, gpu_milli=st.just(100), gpu_memory_mib=st.sampled_from([20_000, 79_000])),
)
JOBS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["ann", "bob"]),
        st.fixed_dictionaries(
            {
                "resources": SIZES,
                "tasks": st.sampled_from([1, 1, 1, 2, 3]),
                "topology": st.sampled_from([Topology.ANY, Topology.ANY, Topology.NODE]),
                "priority": st.sampled_from([0, 0, 5]),
                "qos": st.sampled_from([Qos.BURST, Qos.BURST, Qos.GUARANTEED]),
                "max_run_ms": st.sampled_from([None, 2 * MINUTE_MS, 20 * MINUTE_MS]),
            }
        ),
        # What happens before the next job comes: nothing, a pass, or time that goes by.
        st.sampled_from(["", "", "pass", "time"]),
    ),
    min_size=1,
    max_size=25,
)
RESERVED = st.sampled_from([None, None, (0, 5), (5, 10)])


def idle_jobs(lab: FairLab) -> list[str]:
    """Jobs that could start, in the eyes of the oracle, after a pass that decided nothing more."""
    cycle = Cycle(lab.state, lab.now_ms, lab.settings, lab.brain)
    found = cycle.run()
    assert not found.events, "passes have settled"
    return Oracle(lab.state, cycle.claims.values(), lab.now_ms).could_start()


def check_work(nodes, tenants, jobs, reserved) -> None:  # type: ignore[no-untyped-def]
    lab = FairLab(checked=False)
    for number, (cards, model) in enumerate(nodes):
        lab.node(f"n{number}", 0)
        gpus = tuple(card(f"GPU-n{number}-{i}", i, 80_000, model) for i in range(cards))
        lab.sync(f"n{number}", gpus=gpus, cpu_milli=8_000 * cards)
    for number, fields in enumerate(tenants):
        lab.do(CreateTenant(tenant=f"t{number}", settings=TenantSettings(**fields)))
    names = list(lab.state.tenants) or ["t"]
    if reserved is not None:
        start, end = (lab.now_ms + m * MINUTE_MS for m in reserved)
        lab.do(CreateReservation(name="r", tenant=names[0], gpus=1, start_ms=start, end_ms=end))
    lab.runs_ms = lambda job: 3 * MINUTE_MS
    for which, user, fields, then in jobs:
        name = names[which % len(names)]
        lab.do(SubmitJobs(tenant=name, jobs=(raw_job(**fields),)), user_of(name, user))
        if then:
            lab.settle()
            assert idle_jobs(lab) == []
        if then == "time":
            lab.go_on(lab.now_ms + MINUTE_MS)
            lab.settle()
            assert idle_jobs(lab) == []
    lab.settle()
    assert idle_jobs(lab) == []


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@given(NODES, TENANTS, JOBS, RESERVED)
@settings(max_examples=25, **QUIET)  # type: ignore[arg-type]
def test_nothing_waits_that_fits(nodes, tenants, jobs, reserved) -> None:  # type: ignore[no-untyped-def]
    check_work(nodes, tenants, jobs, reserved)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_nothing_waits_that_fits_at_length() -> None:
    settings(max_examples=2000, **QUIET)(given(NODES, TENANTS, JOBS, RESERVED)(check_work))()  # type: ignore[arg-type]


def test_the_second_opinion_sees_what_fits() -> None:
    """Before the pass it names all that the pass then starts, so its silence afterwards means something."""
    lab = FairLab(tenants=("t",))
    lab.node("n", 2)
    jobs = lab.submit("t", 2, resources=RawResources(gpus=1))
    assert Oracle(lab.state, (), lab.now_ms).could_start() == sorted(j.key for j in jobs)
    lab.settle()
    (late,) = lab.submit("t", resources=RawResources(gpus=1))
    lab.settle()
    assert idle_jobs(lab) == []
    assert Oracle(lab.state, (), lab.now_ms).fits(late, frozenset({jobs[0].key}))
