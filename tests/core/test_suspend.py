"""Suspension in the core: who holds what meanwhile, what is ordered, and that a missed message does no harm."""

from __future__ import annotations

import pytest
from cluster import Cluster, user_of

from gpushare.core.commands import AttemptReport, CancelJob
from gpushare.core.events import (
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    JobsCreated,
)
from gpushare.core.kinds import AttemptState, GpuState, JobState, PreemptionMode
from gpushare.core.model import Attempt, GpuCondition, Job, JobSpec, Slice, TaskRequest
from gpushare.core.orders import ResumeOrder, StopOrder, SuspendOrder, orders_after_sync, orders_for
from gpushare.reasons import Reason
from gpushare.scheduler import convert_nodes

CLAIMANT = "vision/999"
CARDS = ("GPU-n-0", "GPU-n-1")


class SuspendCluster(Cluster):
    """One node with two cards; jobs of one whole card, placed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.node("n", 2)

    def start(self, uuid: str = CARDS[0], **fields: object) -> Job:
        spec = {"argv": ("true",), "resources": TaskRequest(gpus=1), "working_directory": "/", **fields}
        number = self.state.tenants["vision"].next_number
        self.apply([JobsCreated(tenant="vision", number=number, spec=JobSpec(**spec))], user_of("vision"))  # type: ignore[arg-type]
        job = self.state.jobs[f"vision/{number}"]
        self.apply([AttemptsAllocated(job=job.key, round=1, slices=(whole(uuid),))])
        return job

    def running(self, uuid: str = CARDS[0], **fields: object) -> Job:
        job = self.start(uuid, **fields)
        self.run(job)
        return job

    def suspend(self, attempt: Attempt) -> None:
        self.apply([AttemptSuspendRequested(attempt.id, Reason.PREEMPTED, "makes way", CLAIMANT)])

    def suspended(self) -> tuple[Job, Attempt]:
        job = self.running()
        (attempt,) = job.current()
        self.suspend(attempt)
        self.tick(1000)
        self.report(attempt, AttemptState.SUSPENDED)
        return job, attempt

    def resume(self, attempt: Attempt, uuid: str = CARDS[0]) -> None:
        self.apply([AttemptResumed(attempt.id, whole(uuid))])

    def held(self, uuid: str) -> set[str]:
        return set(self.state.nodes["n"].gpus[uuid].holds)

    def orders(self) -> list[object]:
        """What follows from the last entry."""
        return list(orders_for(self.journal[-1], self.state))

    def back(self, *reports: AttemptReport) -> list[object]:
        """The node's agent comes back and tells this of its attempts; what it is ordered then."""
        cards = tuple(gpu.inventory for gpu in self.state.nodes["n"].gpus.values())
        self.sync("n", gpus=cards, attempts=reports)
        return list(orders_after_sync(self.state, self.state.nodes["n"], reports))


def whole(uuid: str) -> Slice:
    return Slice(
        task=0,
        node="n",
        gpu_uuids=(uuid,),
        gpu_milli=1000,
        gpu_memory_mib=81_559,
        held_mib=(81_559,),
        cpu_milli=1000,
        memory_mib=64,
        charge_milli=1000,
        tier="exclusive",
        whole=True,
    )


@pytest.fixture
def cluster() -> SuspendCluster:
    return SuspendCluster()


def test_a_job_keeps_its_card_until_it_is_suspended_and_its_host_memory_after_that(cluster: SuspendCluster) -> None:
    job = cluster.running()
    (attempt,) = job.current()
    cluster.suspend(attempt)
    assert cluster.orders() == [SuspendOrder("n", attempt.id)]
    assert cluster.held(CARDS[0]) == {attempt.id}
    cluster.report(attempt, AttemptState.SUSPENDED)
    assert (job.state, cluster.held(CARDS[0])) == (JobState.SUSPENDED, set())
    assert cluster.state.nodes["n"].used_memory_mib == 64
    cluster.running()
    assert job.preemptions == 1


def test_it_goes_on_on_another_card_of_its_node(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.resume(attempt, CARDS[1])
    (order,) = cluster.orders()
    assert order == ResumeOrder("n", attempt.id, whole(CARDS[1]), 1000)
    assert (job.state, cluster.held(CARDS[1])) == (JobState.SUSPENDED, {attempt.id})
    cluster.report(attempt, AttemptState.RUNNING)
    assert job.state is JobState.RUNNING
    message = convert_nodes.order_message(order, 7).resume_attempt
    assert (message.attempt_id, message.term, list(message.gpu_uuids)) == (attempt.id, 7, [CARDS[1]])
    assert (message.whole, message.gpu_milli, message.gpu_memory_mib) == (True, 1000, 81_559)


def test_the_order_to_suspend_says_which_attempt(cluster: SuspendCluster) -> None:
    message = convert_nodes.order_message(SuspendOrder("n", "vision.1.0.1"), 7)
    assert (message.suspend_attempt.attempt_id, message.suspend_attempt.term) == ("vision.1.0.1", 7)


def test_a_suspended_job_that_is_cancelled_is_told_to_stop(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.must(CancelJob(job.key), user_of("vision"))
    (order,) = cluster.orders()
    assert isinstance(order, StopOrder)
    cluster.report(attempt, AttemptState.STOPPING)
    cluster.report(attempt, AttemptState.STOPPED, "CANCELLED", signal=15)
    assert job.state is JobState.CANCELLED


def test_a_suspended_job_that_runs_into_its_time_limit_has_failed(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.running()
    cluster.report(attempt, AttemptState.STOPPING)
    cluster.report(attempt, AttemptState.FAILED, "TIME_LIMIT", signal=15)
    assert (job.state, job.exit_code) == (JobState.FAILED, 124)


def test_a_job_that_ends_before_it_is_suspended_has_ended(cluster: SuspendCluster) -> None:
    job = cluster.running()
    (attempt,) = job.current()
    cluster.suspend(attempt)
    cluster.finish(job)
    assert (job.state, cluster.held(CARDS[0])) == (JobState.SUCCEEDED, set())


def test_a_job_that_could_not_be_suspended_and_is_stopped_is_queued_again(cluster: SuspendCluster) -> None:
    job = cluster.running(preemption=PreemptionMode.SUSPEND)
    (attempt,) = job.current()
    cluster.suspend(attempt)
    cluster.apply([AttemptStopRequested(attempt.id, Reason.PREEMPTED, "could not be suspended", CLAIMANT)])
    cluster.report(attempt, AttemptState.STOPPED, "PREEMPTED", signal=15)
    assert (job.state, job.preempted_for) == (JobState.QUEUED, CLAIMANT)
    assert (job.infra_retries, job.retries) == (0, 0)


def test_a_suspended_job_whose_node_is_lost_is_a_loss_like_any_other(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.report(attempt, AttemptState.FAILED, "INFRA", detail="its shim died")
    assert (job.state, job.infra_retries, job.preemptions) == (JobState.QUEUED, 1, 1)


def test_a_card_that_is_lost_ends_none_that_gave_it_up(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    other = cluster.running()
    condition = GpuCondition(CARDS[0], GpuState.LOST, "GPU_LOST", "off the bus")
    cards = tuple(gpu.inventory for gpu in cluster.state.nodes["n"].gpus.values())
    said = tuple(AttemptReport(a.id, a.state) for j in (job, other) for a in j.current())
    cluster.sync("n", gpus=cards, conditions=(condition,), attempts=said)
    assert other.current()[0].desired_stop
    assert not attempt.desired_stop


# -- messages that were missed


def test_an_agent_that_missed_the_order_to_suspend_gets_it_again(cluster: SuspendCluster) -> None:
    job = cluster.running()
    (attempt,) = job.current()
    cluster.suspend(attempt)
    assert cluster.back(AttemptReport(attempt.id, AttemptState.RUNNING)) == [SuspendOrder("n", attempt.id)]
    assert cluster.back(AttemptReport(attempt.id, AttemptState.SUSPENDED)) == []
    assert job.state is JobState.SUSPENDED


def test_an_agent_that_missed_the_order_to_resume_gets_it_again_and_its_card_is_not_given_away(
    cluster: SuspendCluster,
) -> None:
    job, attempt = cluster.suspended()
    cluster.resume(attempt, CARDS[1])
    cluster.silence("n")
    (order,) = cluster.back(AttemptReport(attempt.id, AttemptState.SUSPENDED))
    assert order == ResumeOrder("n", attempt.id, whole(CARDS[1]), 1000)
    assert cluster.held(CARDS[1]) == {attempt.id}
    assert job.preemptions == 1
    cluster.report(attempt, AttemptState.RUNNING)
    assert (job.state, attempt.state) == (JobState.RUNNING, AttemptState.RUNNING)


def test_what_runs_although_its_card_is_others_is_suspended_again(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    other = cluster.running()
    (order,) = cluster.back(
        AttemptReport(attempt.id, AttemptState.RUNNING), AttemptReport(other.current()[0].id, AttemptState.RUNNING)
    )
    assert order == SuspendOrder("n", attempt.id)
    assert (job.state, cluster.held(CARDS[0])) == (JobState.SUSPENDED, {other.current()[0].id})


def test_a_suspended_job_of_a_node_that_was_away_is_still_suspended(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.silence("n")
    assert attempt.state is AttemptState.UNKNOWN
    assert cluster.back(AttemptReport(attempt.id, AttemptState.SUSPENDED)) == []
    assert (job.state, attempt.state, job.preemptions) == (JobState.SUSPENDED, AttemptState.SUSPENDED, 1)


def test_an_agent_that_tells_only_of_the_suspension_has_run_it_before(cluster: SuspendCluster) -> None:
    job = cluster.start()
    (attempt,) = job.current()
    cluster.suspend(attempt)
    cluster.report(attempt, AttemptState.SUSPENDED, started_ms=cluster.now_ms)
    assert (job.state, job.started_ms) == (JobState.SUSPENDED, cluster.now_ms)
    assert cluster.held(CARDS[0]) == set()


def test_a_suspended_job_pays_for_the_times_in_which_it_held_a_card(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.tick(50_000)
    cluster.resume(attempt)
    cluster.tick(2000)
    cluster.report(attempt, AttemptState.RUNNING)
    cluster.finish(job)
    assert cluster.state.tenants["vision"].usage["ann"].charge_milli_ms == 1000 * 3000


def test_a_journal_with_suspensions_replays_to_itself(cluster: SuspendCluster) -> None:
    job, attempt = cluster.suspended()
    cluster.resume(attempt, CARDS[1])
    cluster.report(attempt, AttemptState.RUNNING)
    cluster.finish(job)
    assert cluster.replayed().encode() == cluster.state.encode()
