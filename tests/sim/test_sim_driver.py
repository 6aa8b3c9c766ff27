"""Traces by hand with the placements that they must have, and random ones that must break no constraint."""

from __future__ import annotations

import msgspec
import pytest
from traces_made import random_jobs, random_nodes, simulated

from gpushare.core.cycle import Pass
from gpushare.core.events import AttemptStopRequested
from gpushare.core.invariants import check
from gpushare.reasons import Reason
from gpushare.sim import driver, outcome
from gpushare.sim.checkers import refused_with_room, violations
from gpushare.sim.driver import Simulation
from gpushare.sim.placements import Placement
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant

ONE_CARD = [TraceNode("a", 8000, 8192, 1, "T4")]


def job(name: str, arrival_ms: int = 0, milli: int = 1000, **fields: object) -> TraceJob:
    base = {"cpu_milli": 1000, "memory_mib": 64, "num_gpu": 1, "gpu_milli": milli}
    return TraceJob(name, arrival_ms, **{**base, **fields})  # type: ignore[arg-type]


def starts(rows: list[Placement]) -> dict[str, int | None]:
    return {row.job_id: row.start_ms for row in rows}


def test_jobs_wait_in_line_and_start_as_room_is_freed() -> None:
    jobs = [job("first", 0, duration_ms=1500), job("second", 100, duration_ms=0), job("third", 200)]
    simulation, rows = simulated(ONE_CARD, jobs)
    assert starts(rows) == {"first": 0, "second": 1500, "third": 1500}
    summary = outcome.summarise(simulation, seed=0)
    assert (summary.placed, summary.unplaced) == (3, 0)
    assert summary.wait_s is not None
    assert (summary.wait_s.p50, summary.wait_s.p99) == (1.3, 1.4)
    assert summary.jct_s is not None
    assert (summary.jct_s.count, summary.jct_s.p99) == (2, 1.5)
    assert summary.allocation_final == 1.0


def test_tried_once_a_job_that_does_not_fit_is_lost() -> None:
    jobs = [job("first", 0, duration_ms=1500), job("second", 100), job("third", 1500), job("fourth", 1500)]
    _, rows = simulated(ONE_CARD, jobs, once=True)
    assert starts(rows) == {"first": 0, "second": None, "third": 1500, "fourth": None}


def test_equal_arrivals_go_by_the_order_of_the_file() -> None:
    jobs = [job("late", 10), job("b", 5, 600), job("a", 5, 600)]
    _, rows = simulated(ONE_CARD, jobs, once=True)
    assert starts(rows) == {"late": None, "b": 5, "a": None}


def test_shares_fill_a_card_to_the_last_thousandth_and_memory_never_binds() -> None:
    jobs = [job(f"j{n}", 0, 1, cpu_milli=0, memory_mib=0) for n in range(1000)] + [job("more", 1, 1)]
    _, rows = simulated(ONE_CARD, jobs, once=True)
    assert all(row.node == "a" and row.gpu_index == (0,) and row.gpu_milli == 1 for row in rows[:-1])
    assert rows[-1] == Placement("more")


def test_a_job_that_asks_for_no_cpu_and_no_memory_runs_on_a_node_that_has_none_left() -> None:
    nodes = [TraceNode("a", 1000, 64, 2, "T4")]
    jobs = [job("all"), job("none", 1, cpu_milli=0, memory_mib=0), job("some", 2, cpu_milli=1, memory_mib=0)]
    _, rows = simulated(nodes, jobs, once=True)
    assert starts(rows) == {"all": 0, "none": 1, "some": None}


def test_cpu_jobs_take_host_room_and_no_card() -> None:
    nodes = [TraceNode("gpus", 4000, 1024, 1, "T4"), TraceNode("cpus", 2000, 1024, 0, "")]
    jobs = [job(f"c{n}", n, 0, num_gpu=0, cpu_milli=2000) for n in range(4)]
    _, rows = simulated(nodes, jobs, once=True)
    assert sorted(row.node for row in rows) == ["cpus", "gpus", "gpus", "unplaced"]
    assert {row.gpu_index for row in rows} == {()}


def test_a_model_binds_gpu_jobs_and_cpu_jobs_alike() -> None:
    nodes = [TraceNode("t", 8000, 1024, 1, "T4"), TraceNode("v", 8000, 1024, 2, "V100")]
    jobs = [
        job("share", 0, 500, models=("V100",)),
        job("cpu", 0, 0, num_gpu=0, models=("T4",)),
        job("either", 0, 0, num_gpu=0, models=("A10", "V100")),
        job("nowhere", 0, models=("A10",)),
    ]
    simulation, rows = simulated(nodes, jobs)
    assert [row.node for row in rows] == ["v", "t", "v", "unplaced"]
    assert simulation.refused == 1


def test_a_job_for_several_models_takes_either() -> None:
    nodes = [TraceNode("t", 8000, 1024, 1, "T4"), TraceNode("v", 8000, 1024, 1, "V100"), TraceNode("a", 1, 1, 1, "A10")]
    jobs = [job(f"j{n}", n, models=("T4", "V100")) for n in range(3)]
    _, rows = simulated(nodes, jobs, once=True)
    assert sorted(row.node for row in rows) == ["t", "unplaced", "v"]


def test_a_gang_starts_together_with_one_line_a_task() -> None:
    nodes = [TraceNode(name, 8000, 1024, 2, "T4") for name in "ab"]
    jobs = [job("one", 0, duration_ms=50), job("gang", 10, tasks=4, duration_ms=5), job("last", 20, duration_ms=5)]
    _, rows = simulated(nodes, jobs)
    assert [row.job_id for row in rows] == ["one", *["gang"] * 4, "last"]
    assert {row.start_ms for row in rows if row.job_id == "gang"} == {50}
    assert violations(nodes, jobs, rows) == []


def test_a_run_limit_ends_a_job_before_its_time() -> None:
    jobs = [job("long", 0, duration_ms=10_000, max_run_ms=3000), job("next", 1)]
    _, rows = simulated(ONE_CARD, jobs)
    assert starts(rows)["next"] == 3000


def test_a_tenant_stays_below_its_limit_and_fairness_shows_it() -> None:
    nodes = [TraceNode("a", 64000, 1024, 4, "T4")]
    tenants = [TraceTenant("ml", 1, 0, 1000), TraceTenant("nlp")]
    jobs = [job(f"{t}{n}", 0, tenant=t, duration_ms=1000) for n in range(3) for t in ("ml", "nlp")]
    simulation, rows = simulated(nodes, jobs, tenants)
    ml = sorted(row.start_ms or 0 for row in rows if row.job_id.startswith("ml"))
    assert ml == [0, 1000, 2000], "one card at a time"
    fairness = outcome.summarise(simulation, seed=0).fairness
    assert fairness == pytest.approx(1.0), "both had three card-seconds"


class _MakingWay(Simulation):
    """Its first pass with a job of high priority waiting stops what runs, as a preemption does."""

    has_stopped = False

    def _pass(self) -> Pass:
        running = [run for run in self.runs if run.round]
        if self.has_stopped or not running or not any(self._runs[key].job.priority for key in self._waiting):
            return super()._pass()
        self.has_stopped = True
        attempt = self.state.jobs[running[0].key].live()[0]
        return Pass([AttemptStopRequested(attempt=attempt.id, reason=Reason.PREEMPTED)], {}, None, False)


@pytest.mark.parametrize("once", [False, True])
def test_a_preempted_job_starts_again_from_the_beginning_and_is_lost_where_nothing_waits(once: bool) -> None:
    jobs = [job("old", 0, duration_ms=10_000), job("new", 4000, duration_ms=5000, priority=5)]
    simulation = _MakingWay(ONE_CARD, jobs, once=once)
    simulation.run()
    rows = list(outcome.placements(simulation))
    assert starts(rows) == {"old": None if once else 9000, "new": 4000}
    assert violations(ONE_CARD, jobs, rows) == []
    summary = outcome.summarise(simulation, seed=0)
    assert summary.preemptions == 1
    assert summary.wait_s is not None
    assert summary.wait_s.p99 == 0, "waiting is until the first start"
    if not once:
        assert summary.jct_s is not None
        assert summary.jct_s.p99 == 19.0
        assert summary.allocation == 1.0, "what it did before it made way was held, too"


def test_ended_jobs_leave_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_ARCHIVE_EVERY", 256)
    jobs = [job(f"j{n}", n, duration_ms=1) for n in range(600)]
    simulation, rows = simulated(ONE_CARD, jobs, once=True)
    assert all(row.start_ms is not None for row in rows)
    assert len(simulation.state.jobs) < 300


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.prove) for n in range(4, 12))])
def test_no_random_trace_breaks_a_constraint(seed: int, once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What waits for ever has the core look again each minute.
    monkeypatch.setattr(driver, "_IDLE_WAKES_MAX", 100)
    nodes, jobs = random_nodes(seed), random_jobs(seed, 120, tasks_max=3)
    simulation, rows = simulated(nodes, jobs, seed=seed, once=once)
    assert violations(nodes, jobs, rows) == []
    check(simulation.state)
    assert any(row.start_ms is not None for row in rows)
    # Whatever left has freed all that it held.
    held = sum(gpu.used_milli for node in simulation.state.nodes.values() for gpu in node.gpus.values())
    assert held == simulation.observer.allocation.held_milli


@pytest.mark.parametrize("seed", range(12))
def test_what_fits_is_never_refused(seed: int) -> None:
    nodes = random_nodes(seed)
    # Nobody has to make way, so that a job without a place never had one.
    jobs = [msgspec.structs.replace(job, priority=0) for job in random_jobs(seed, 120)]
    simulation, rows = simulated(nodes, jobs, seed=seed, once=True)
    assert simulation.preemptions == 0
    assert violations(nodes, jobs, rows) == []
    assert refused_with_room(nodes, jobs, rows) == []


def test_a_guarantee_is_met_at_once_and_the_borrower_starts_again_later() -> None:
    tenants = [TraceTenant("ml"), TraceTenant("nlp", guaranteed_milli=1000)]
    jobs = [
        job("borrower", 0, tenant="ml", duration_ms=10_000),
        job("owner", 2000, tenant="nlp", duration_ms=3000),
    ]
    simulation, rows = simulated(ONE_CARD, jobs, tenants)
    assert starts(rows) == {"borrower": 5000, "owner": 2000}
    assert simulation.preemptions == 1
    assert violations(ONE_CARD, jobs, rows) == []


def test_the_same_seed_gives_the_same_placements() -> None:
    nodes = [msgspec.structs.replace(node, gpu_count=4, model="T4") for node in random_nodes(3) * 1]
    nodes = [msgspec.structs.replace(nodes[0], name=f"n{n}", cpu_milli=64000) for n in range(8)]
    jobs = random_jobs(3, 60)
    first, again, other = (simulated(nodes, jobs, seed=seed)[1] for seed in (5, 5, 6))
    assert first == again
    assert [row.node for row in first] != [row.node for row in other], "ties go by the seed's order of nodes"
    assert [row.start_ms for row in first] == [row.start_ms for row in other], "alike nodes: the order alone differs"
