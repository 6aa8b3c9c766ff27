"""Who would wait, start or be reclaimed with other settings: the preview says what then happens."""

from __future__ import annotations

import msgspec
import pytest
from scenario import Scenario

from gpushare.core.commands import Rejection, UpdateTenant
from gpushare.core.model import TenantSettings
from gpushare.core.preview import Effect, PreviewedJob, preview


def effects(scenario: Scenario, **changes: dict[str, object]) -> dict[str, Effect]:
    """By the job's name in the scenario; the state stays as it was."""
    return {name: job.effect for name, job in outcome(scenario, **changes).items()}


def outcome(scenario: Scenario, **changes: dict[str, object]) -> dict[str, PreviewedJob]:
    cluster = scenario.cluster
    before, touched = cluster.state.encode(), set(cluster.state.touched)
    submitted = list(cluster.state.submitted)
    found = preview(cluster.state, settings(scenario, changes), cluster.now_ms, cluster.settings)
    assert not isinstance(found, Rejection), found
    assert cluster.state.encode() == before
    assert cluster.state.submitted == submitted
    assert cluster.state.touched == touched, "the scheduler's own brain is told of what changed as before"
    names = {key: name for name, key in scenario.jobs.items()}
    return {names[job.job]: job for job in found}


def settings(scenario: Scenario, changes: dict[str, dict[str, object]]) -> dict[str, TenantSettings]:
    tenants = scenario.cluster.state.tenants
    return {name: msgspec.structs.replace(tenants[name].settings, **fields) for name, fields in changes.items()}


def enact(scenario: Scenario, **changes: dict[str, object]) -> None:
    for name, has in settings(scenario, changes).items():
        scenario.cluster.must(UpdateTenant(name, has))
    scenario.cluster.cycle()


def test_a_lower_limit_makes_a_job_wait_that_would_start() -> None:
    scenario = Scenario().run("""
        tenant t
        node n1 2
        submit t a count=2 gpus=1
    """)
    change = {"t": {"limit_milli": 1000}}
    assert effects(scenario, **change) == {"a2": Effect.WOULD_WAIT}
    enact(scenario, **change)
    assert [str(scenario.job(name).state) for name in ("a1", "a2")] == ["STARTING", "QUEUED"]


def test_a_higher_limit_starts_a_job_that_waits_for_it() -> None:
    scenario = Scenario().run("""
        tenant t limit=1000
        node n1 3
        submit t a count=2 gpus=1
        cycle
        run a1
    """)
    assert effects(scenario, t={"limit_milli": 1999}) == {}
    assert effects(scenario, t={"limit_milli": 2000}) == {"a2": Effect.WOULD_START}
    enact(scenario, t={"limit_milli": 2000})
    assert scenario.job("a2").state == "STARTING"


def test_a_limit_under_what_waits_for_room_is_told_too() -> None:
    scenario = Scenario().run("""
        tenant t
        node n1 1
        submit t a count=2 gpus=1
        cycle
        run a1
    """)
    found = outcome(scenario, t={"limit_milli": 500})
    assert [(name, job.effect) for name, job in found.items()] == [("a2", Effect.WOULD_WAIT)]
    assert found["a2"].detail.startswith("TENANT_LIMIT")


def test_a_guarantee_takes_back_what_others_borrow() -> None:
    scenario = Scenario().run("""
        tenant lender
        tenant borrower
        node n1 2
        submit borrower b count=2 gpus=1
        cycle
        run b1
        run b2
        wait 1000
        submit lender a gpus=1
        cycle
        expect a QUEUED
    """)
    change = {"lender": {"guaranteed_milli": 1000}}
    found = outcome(scenario, **change)
    assert found["a"].effect is Effect.WOULD_START
    reclaimed = [name for name, job in found.items() if job.effect is Effect.WOULD_BE_RECLAIMED]
    assert len(reclaimed) == 1
    assert scenario.jobs["a"] in found[reclaimed[0]].detail
    enact(scenario, **change)
    told = [name for name in ("b1", "b2") if any(a.desired_stop for a in scenario.job(name).live())]
    assert told == reclaimed


def test_a_borrower_within_its_minimum_run_time_is_named_with_what_is_left_of_it() -> None:
    scenario = Scenario().run("""
        tenant lender
        tenant borrower
        node n1 1
        submit borrower b gpus=1
        cycle
        run b
        wait 1000
        submit lender a gpus=1
        cycle
    """)
    enact(scenario, borrower={"min_run_ms": 61_000})
    found = outcome(scenario, lender={"guaranteed_milli": 1000})
    assert found["b"].effect is Effect.WOULD_BE_RECLAIMED
    assert "in 1m" in found["b"].detail
    enact(scenario, lender={"guaranteed_milli": 1000})
    assert not scenario.job("b").live()[0].desired_stop
    scenario.run("wait 60000\ncycle")
    assert scenario.job("b").live()[0].desired_stop


@pytest.mark.parametrize(
    "changes",
    [
        {"t": {"weight": 0}},
        {"t": {"parent": "u"}, "u": {"parent": "t"}},
        {"t": {"guaranteed_milli": 2, "parent": "u"}, "u": {"guaranteed_milli": 1}},
    ],
)
def test_what_could_not_be_set_is_refused(changes: dict[str, dict[str, object]]) -> None:
    scenario = Scenario().run("""
        tenant t
        tenant u
    """)
    cluster = scenario.cluster
    found = preview(cluster.state, settings(scenario, changes), cluster.now_ms, cluster.settings)
    assert isinstance(found, Rejection)


def test_changes_count_together_whatever_their_order() -> None:
    scenario = Scenario().run("""
        tenant lab guaranteed=1000
        tenant team parent=lab guaranteed=1000
    """)
    assert effects(scenario, team={"guaranteed_milli": 2000}, lab={"guaranteed_milli": 2000}) == {}
