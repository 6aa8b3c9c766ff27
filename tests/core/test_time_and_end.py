"""How long jobs may run and how they come back: defaults, caps, extensions, codes that queue a job again."""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster, raw_job, user_of
from scenario import Scenario

from gpushare.core.commands import (
    AttemptReport,
    CreateTenant,
    ExtendJob,
    Rejection,
    RequeueJob,
    SubmitJobs,
    UpdateTenant,
)
from gpushare.core.kinds import AttemptState, JobState, Role, SignalTarget
from gpushare.core.model import EarlySignal, Principal, TenantSettings
from gpushare.core.orders import LimitOrder, StartOrder, orders_after_sync, orders_for
from gpushare.core.placement.bookings import sure_end_ms
from gpushare.reasons import Reason
from gpushare.scheduler import convert_nodes

HOUR = 3_600_000
ADMIN = Principal(user="root", role=Role.ADMIN, tenant="vision")

CASES = {
    "a code queues the job again with its id and its place, whoever waits behind it": """
        tenant t
        node n 1
        submit t a gpus=1 codes=85,86
        submit t b gpus=1 count=2
        cycle
        run a
        exit a 85
        expect a QUEUED
        cycle
        expect a STARTING
        expect b1 QUEUED NO_CAPACITY
        round a 2
        run a
        exit a 86
        cycle
        run a
        exit a 0
        expect a SUCCEEDED
    """,
    "another code ends it, and retries are not used up by codes": """
        tenant t
        node n 1
        submit t a gpus=1 codes=85 retries=1
        cycle
        run a
        exit a 85
        cycle
        run a
        exit a 1
        wait 1000
        cycle
        run a
        exit a 85
        cycle
        run a
        exit a 1
        expect a FAILED EXIT_CODE
        code a 1
    """,
    "so often and no more": """
        tenant t
        node n 1
        settings requeues_max=2
        submit t a gpus=1 codes=85
        cycle
        run a
        exit a 85
        cycle
        run a
        exit a 85
        cycle
        run a
        exit a 85
        expect a FAILED EXIT_CODE
        code a 85
    """,
    "one task's code queues a whole gang again, also one that goes on without a task": """
        tenant t
        node n 4
        submit t a gpus=1 tasks=4 min_tasks=2 on_failure=continue codes=85
        cycle
        run a
        exit a 85 task=1
        stops a 0,2,3
        obey
        expect a QUEUED
        cycle
        expect a STARTING
    """,
    "requeue stops a job and keeps its place": """
        tenant t
        node n 1
        submit t a gpus=1 preemption=cancel
        submit t b gpus=1
        cycle
        run a
        requeue a
        goes a
        obey
        expect a QUEUED
        cycle
        expect a STARTING
        expect b QUEUED NO_CAPACITY
        requeue b
        expect b QUEUED NO_CAPACITY
        cancel a
        requeue a
        refuses JOB_ENDED
        obey
        expect a CANCELLED
        requeue a
        refuses JOB_ENDED
    """,
    "what makes way for good, or is ending by itself, is not told that it comes again": """
        tenant t guaranteed=2000
        tenant u
        node n 2
        submit u a gpus=1 preemption=cancel cpu=1 memory=1
        submit u b gpus=1 cpu=1 memory=1
        cycle
        run a
        run b
        submit t c gpus=2 qos=guaranteed cpu=1 memory=1
        cycle
        requeue a
        refuses JOB_ENDED
        requeue b
        obey
        expect a CANCELLED PREEMPTED
        expect b QUEUED
    """,
    "a person's word does not count against what codes may ask": """
        tenant t
        node n 1
        settings requeues_max=1
        submit t a gpus=1 codes=85
        cycle
        run a
        requeue a
        obey
        cycle
        run a
        exit a 85
        expect a QUEUED
        cycle
        run a
        exit a 85
        expect a FAILED EXIT_CODE
    """,
    "a job that is lost while it goes is queued again all the same, and a cancel wins": """
        tenant t
        node n 2
        submit t a gpus=1
        submit t b gpus=1
        cycle
        run a
        run b
        requeue a
        lose a NODE_REBOOTED
        expect a QUEUED
        requeue b
        cancel b
        obey
        expect b CANCELLED
    """,
    "a limit is extended up to the cap, and by an admin beyond it": """
        tenant t max_run=8000
        node n 1
        submit t a gpus=1 limit_ms=2000
        cycle
        run a
        extend a +6000
        extend a +1
        refuses RUN_LIMIT
        extend a TO:8001 role=tenant-admin
        refuses RUN_LIMIT
        extend a TO:8001 role=operator
        refuses RUN_LIMIT
        extend a TO:9000 role=admin
        extend a TO:9000
        extend a TO:8500
        refuses INVALID_FIELD
        exit a 0
        extend a +1
        refuses JOB_ENDED
    """,
    "the smallest cap up the tree counts, and a job without a time has it": """
        tenant top max_run=5000
        tenant t parent=top max_run=9000 default_run=7000
        node n 1
        submit t a gpus=1
        cycle
        run a
        extend a TO:5001
        refuses RUN_LIMIT
    """,
    "a job without a limit has none to extend": """
        tenant t
        node n 1
        submit t a gpus=1
        cycle
        extend a +1
        refuses INVALID_FIELD
    """,
    "no extension into maintenance, and none into what is reserved for others": """
        tenant t
        tenant u
        node n 2
        node m 1
        submit t a gpus=1 limit_ms=10000 model=H100
        cycle
        run a
        on a m
        reserve mend maintenance 20000 30000 node=m
        extend a TO:20000
        extend a TO:20001
        refuses RESERVATION_CONFLICT
        submit t b gpus=1 limit_ms=10000
        cycle
        run b
        on b n
        reserve both u 20000 30000 node=n gpus=2
        extend b TO:25000
        refuses RESERVATION_CONFLICT
    """,
    "one's own reservation, and one that leaves room, stand in nobody's way": """
        tenant t
        tenant u
        node n 2
        submit t a gpus=1 limit_ms=10000
        cycle
        run a
        reserve mine t 20000 30000 gpus=2
        extend a TO:25000
        reserve theirs u 40000 50000 gpus=1
        extend a TO:60000
    """,
    "no extension into a later window of what recurs": """
        tenant t
        node n 1
        submit t a gpus=1 limit_ms=100000
        cycle
        run a
        reserve nightly maintenance 200000 300000 node=n repeat=1000000
        extend a TO:200000
        extend a TO:1200000
        refuses RESERVATION_CONFLICT
    """,
    "what was planned behind a job adapts to its extension": """
        tenant t
        node n 2
        submit t a gpus=1 limit_ms=10000
        cycle
        run a
        submit t head gpus=2 limit_ms=10000
        submit t small gpus=1 limit_ms=15000
        cycle
        expect small QUEUED HELD
        extend a +10000
        cycle
        expect head QUEUED NO_CAPACITY
        expect small STARTING
    """,
}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_case(text: str) -> None:
    Scenario().run(text)


def settled(cluster: Cluster, **settings: object) -> None:
    old = cluster.state.tenants["vision"].settings
    cluster.must(UpdateTenant("vision", msgspec.structs.replace(old, **settings)))


def test_a_job_that_names_no_time_gets_the_default_or_the_cap_and_a_longer_one_is_told_the_cap() -> None:
    cluster = Cluster()
    cluster.node("n")
    assert cluster.submit()[0].spec.max_run_ms == 0
    settled(cluster, max_run_ms=8 * HOUR)
    assert cluster.submit()[0].spec.max_run_ms == 8 * HOUR
    settled(cluster, default_run_ms=2 * HOUR)
    assert cluster.submit()[0].spec.max_run_ms == 2 * HOUR
    refused = cluster.refuse(max_run_ms=8 * HOUR + 1)
    assert (refused.reason, refused.field) == (Reason.RUN_LIMIT, "max_run_duration")
    assert "8h, the longest that jobs of tenant vision may run" in refused.detail
    assert cluster.submit(max_run_ms=8 * HOUR)[0].spec.max_run_ms == 8 * HOUR
    assert cluster.submit(who=ADMIN, max_run_ms=9 * HOUR)[0].spec.max_run_ms == 9 * HOUR


def test_the_refusal_of_an_extension_names_the_cap_and_changes_nothing() -> None:
    cluster = Cluster()
    cluster.node("n")
    settled(cluster, max_run_ms=8 * HOUR)
    (job,) = cluster.submit(max_run_ms=2 * HOUR)
    before = cluster.state.encode()
    refused = cluster.do(ExtendJob(job.key, longer_by_ms=7 * HOUR), user_of("vision"))
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.metadata["cap_ms"]) == (Reason.RUN_LIMIT, str(8 * HOUR))
    assert "9h is above 8h" in refused.detail
    assert cluster.state.encode() == before


def test_the_refusal_of_an_extension_names_the_window() -> None:
    found = Scenario().run(CASES["no extension into maintenance, and none into what is reserved for others"])
    refused = found.cluster.do(ExtendJob(found.job("a").key, max_run_ms=30_000), user_of("t"))
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.metadata) == (Reason.RESERVATION_CONFLICT, {"reservations": "mend"})
    assert "mend (from " in refused.detail


def test_agents_are_told_of_an_extension_at_once_and_again_when_they_come_back() -> None:
    cluster = Cluster()
    cluster.node("n")
    (job,) = cluster.submit(max_run_ms=HOUR)
    cluster.cycle()
    cluster.run(job)
    (attempt,) = job.current()
    assert sure_end_ms(cluster.state, attempt) == cluster.now_ms + HOUR
    cluster.state.touched.clear()
    cluster.must(ExtendJob(job.key, longer_by_ms=HOUR), user_of("vision"))
    told = LimitOrder("n", attempt.id, 2 * HOUR)
    assert orders_for(cluster.journal[-1], cluster.state) == [told]
    assert (sure_end_ms(cluster.state, attempt), cluster.state.touched) == (cluster.now_ms + 2 * HOUR, {"n"})
    node = cluster.state.nodes["n"]
    said = AttemptReport(attempt.id, AttemptState.RUNNING)
    assert orders_after_sync(cluster.state, node, [said]) == [told]
    message = convert_nodes.order_message(told, 7).set_run_limit
    assert (message.attempt_id, message.term, message.max_run_ms) == (attempt.id, 7, 2 * HOUR)
    assert (job.spec.max_run_ms, job.submitted_run_ms) == (2 * HOUR, HOUR)


def test_a_job_that_starts_after_its_extension_has_all_of_it_from_the_start() -> None:
    cluster = Cluster()
    (job,) = cluster.submit(max_run_ms=HOUR, early_signal=EarlySignal("SIGUSR1", 60_000, SignalTarget.ALL))
    cluster.must(ExtendJob(job.key, max_run_ms=2 * HOUR), user_of("vision"))
    cluster.node("n")
    cluster.cycle()
    (order,) = [o for e in cluster.journal for o in orders_for(e, cluster.state) if isinstance(o, StartOrder)]
    message = convert_nodes.order_message(order, 1).start_attempt
    assert message.max_run_ms == 2 * HOUR
    assert (message.early_signal.signal, message.early_signal.before.ToSeconds()) == ("USR1", 60)


def test_a_limit_that_has_struck_is_not_extended() -> None:
    cluster = Cluster()
    cluster.node("n")
    (job,) = cluster.submit(max_run_ms=HOUR)
    cluster.cycle()
    cluster.run(job)
    cluster.report(job.current()[0], AttemptState.STOPPING)
    refused = cluster.do(ExtendJob(job.key, longer_by_ms=HOUR), user_of("vision"))
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.JOB_ENDED
    refused = cluster.do(RequeueJob(job.key), user_of("vision"))
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.JOB_ENDED


def test_a_code_that_is_given_in_the_grace_after_the_limit_counts_too() -> None:
    cluster = Cluster()
    cluster.node("n")
    (job,) = cluster.submit(max_run_ms=HOUR, requeue_exit_codes=(85,))
    cluster.cycle()
    cluster.run(job)
    cluster.report(job.current()[0], AttemptState.FAILED, "TIME_LIMIT", exit_code=85)
    assert (job.state, job.requeues, job.retries) == (JobState.QUEUED, 1, 0)
    cluster.cycle()
    cluster.run(job)
    cluster.report(job.current()[0], AttemptState.FAILED, "TIME_LIMIT", signal=9)
    assert (job.state, job.reason, job.exit_code) == (JobState.FAILED, Reason.TIME_LIMIT, 124)


def test_a_suspended_job_can_be_extended_and_queued_again() -> None:
    found = Scenario().run("""
        tenant t guaranteed=1000
        tenant u
        node n 1 suspend=yes
        submit u a gpus=1 limit_ms=100000 preemption=suspend cpu=1 memory=1
        cycle
        run a
        submit t b gpus=1 qos=guaranteed cpu=1 memory=1
        cycle
        obey
        expect a SUSPENDED
        extend a +1000
        cycle
        requeue a
        obey
        expect a QUEUED
    """)
    assert found.job("a").requeues == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"early_signal": EarlySignal("KILL", 1000), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("", 1000), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("usr1", 1000), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("SIGSIGUSR1", 1000), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("USR1", HOUR), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("USR1", 0), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("USR1", -1), "max_run_ms": HOUR}, "early_signal"),
        ({"early_signal": EarlySignal("USR1", 1000)}, "early_signal"),
        ({"requeue_exit_codes": (0,)}, "requeue_exit_codes"),
        ({"requeue_exit_codes": (256,)}, "requeue_exit_codes"),
        ({"requeue_exit_codes": (-1,)}, "requeue_exit_codes"),
        ({"requeue_exit_codes": (85, 85)}, "requeue_exit_codes"),
        ({"requeue_exit_codes": tuple(range(1, 18))}, "requeue_exit_codes"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], field: str) -> None:
    cluster = Cluster()
    cluster.node("n")
    refused = cluster.refuse(**fields)
    assert (refused.reason, refused.field) == (Reason.INVALID_FIELD, field)


def test_an_early_signal_may_lean_on_the_tenants_limit() -> None:
    cluster = Cluster()
    settled(cluster, max_run_ms=HOUR)
    (job,) = cluster.submit(early_signal=EarlySignal("SIGUSR2", 1000))
    assert job.spec.early_signal == EarlySignal("USR2", 1000)


@pytest.mark.parametrize("ms", [0, -1, 2**63 - 1])
@pytest.mark.parametrize("field", ["longer_by_ms", "max_run_ms"])
def test_no_extension_by_what_is_no_time(field: str, ms: int) -> None:
    cluster = Cluster()
    (job,) = cluster.submit(max_run_ms=HOUR)
    refused = cluster.do(ExtendJob(job.key, **{field: ms}), ADMIN)  # type: ignore[arg-type]
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.INVALID_FIELD


def test_one_of_the_two_says_how_long() -> None:
    cluster = Cluster()
    (job,) = cluster.submit(max_run_ms=HOUR)
    for command in (ExtendJob(job.key), ExtendJob(job.key, longer_by_ms=1, max_run_ms=2 * HOUR)):
        refused = cluster.do(command, ADMIN)
        assert isinstance(refused, Rejection)
        assert (refused.reason, refused.field) == (Reason.INVALID_FIELD, "longer_by")


def test_a_job_that_is_not_there_is_not_found() -> None:
    cluster = Cluster()
    for command in (ExtendJob("vision/9", longer_by_ms=1), RequeueJob("vision/9")):
        refused = cluster.do(command, ADMIN)
        assert isinstance(refused, Rejection)
        assert refused.reason is Reason.NOT_FOUND


def test_a_default_above_the_cap_is_refused_and_a_tenants_admin_caps_no_higher_than_the_own() -> None:
    cluster = Cluster(tenants=())
    for settings in (TenantSettings(default_run_ms=2, max_run_ms=1), TenantSettings(max_run_ms=0)):
        assert isinstance(cluster.do(CreateTenant("lab", settings)), Rejection)
    cluster.must(CreateTenant("lab", TenantSettings(max_run_ms=HOUR)))
    tina = Principal(user="tina", role=Role.TENANT_ADMIN, tenant="lab")
    refused = cluster.do(CreateTenant("squad", TenantSettings(parent="lab", max_run_ms=HOUR + 1)), tina)
    assert isinstance(refused, Rejection)
    assert refused.field == "max_run"
    cluster.must(CreateTenant("squad", TenantSettings(parent="lab", max_run_ms=HOUR)), tina)


def test_a_whole_batch_is_refused_where_one_job_is_too_long() -> None:
    cluster = Cluster()
    cluster.node("n")
    settled(cluster, max_run_ms=HOUR)
    good, bad = (raw_job(max_run_ms=ms) for ms in (HOUR, HOUR + 1))
    assert isinstance(cluster.do(SubmitJobs("vision", (good, bad)), user_of("vision")), Rejection)
    assert not cluster.state.jobs
