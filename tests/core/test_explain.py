"""Why a job waits, in words and figures: one small cluster for each reason, and what is said of it."""

from __future__ import annotations

import msgspec
import pytest
from cluster import Cluster, card, user_of

from gpushare.core.brain import Brain
from gpushare.core.commands import CordonNode, CoreSettings, CreateReservation, CreateTenant, RawResources, UpdateTenant
from gpushare.core.explain import AHEAD_MAX, Explanation, explain, wait_of
from gpushare.core.forecast import expected_start
from gpushare.core.kinds import AttemptState, DependencyKind, Enforcement, JobState, PreemptionMode, Qos
from gpushare.core.model import Dependency, Job, TenantSettings, TierOffer
from gpushare.core.waiting import line_key
from gpushare.core.whatif import World
from gpushare.reasons import Reason

MINUTE_MS = 60_000
WHOLE = RawResources(gpus=1, cpu_milli=1000, memory_mib=1024)
SUSPENDS = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)


def told(cluster: Cluster, job: Job, *sees: str) -> Explanation:
    """To a reader who sees these tenants' jobs; to one of its own tenant alone where none is named."""
    before = cluster.state.encode()
    seen = sees.__contains__ if sees else None
    found = explain(cluster.state, cluster.state.jobs[job.key], cluster.now_ms, cluster.settings, sees=seen)
    assert cluster.state.encode() == before
    return found


def said(cluster: Cluster, job: Job) -> tuple[str, Reason, str]:
    """(stage, reason, sentence); a listing gives the same reason after the pass."""
    found = told(cluster, job)
    assert found.wait is not None
    last = cluster.cycle()
    verdict = last.job_waits.get(job.key) or last.waits.get(line_key(job))
    listed = wait_of(cluster.state, job, verdict, cluster.now_ms, last.starts_ms)
    assert listed is not None
    assert listed.reason is found.wait.reason
    assert listed.detail
    return found.stage, found.wait.reason, found.wait.detail


def busy(cards: int = 1, **fields: object) -> Cluster:
    """Every card is taken by a whole-card job of `vision`."""
    cluster = Cluster(tenants=("vision", "nlp"))
    cluster.node("n", cards)
    for job in cluster.submit(count=cards, resources=WHOLE, **fields):
        cluster.cycle()
        cluster.run(job)
    return cluster


def set_tenant(cluster: Cluster, tenant: str, **fields: object) -> None:
    has = cluster.state.tenants[tenant].settings
    cluster.must(UpdateTenant(tenant, msgspec.structs.replace(has, **fields)))


# -- reasons


def test_a_job_without_room_is_told_of_nodes_that_are_closed_to_it() -> None:
    cluster = busy(1)
    cluster.node("spare", 1)
    (job,) = cluster.submit(resources=WHOLE)
    cluster.must(CordonNode("spare", drain=True))
    assert told(cluster, job).wait.detail.endswith("now; closed to new tasks: spare (draining)")  # type: ignore[union-attr]


def test_a_full_cluster_names_whom_it_waits_for_and_until_when() -> None:
    cluster = busy(2, max_run_ms=10 * MINUTE_MS)
    cluster.tick(MINUTE_MS)
    (job,) = cluster.submit(resources=WHOLE)
    found = told(cluster, job)
    assert (found.stage, found.wait and found.wait.reason) == ("capacity", Reason.NO_CAPACITY)
    assert [(f.reason, f.gpus, f.nodes) for f in found.filters] == [(Reason.NO_CAPACITY, 2, ("n",))]
    assert found.blocking_jobs == ("vision/1",)
    ends_ms = cluster.state.jobs["vision/1"].live()[0].started_ms + 10 * MINUTE_MS  # type: ignore[operator]
    assert found.earliest_start_ms == found.expected_start_ms == ends_ms


def test_without_time_limits_nobody_knows_when() -> None:
    cluster = busy(1)
    (job,) = cluster.submit("nlp", resources=WHOLE)
    found = told(cluster, job)
    assert (found.expected_start_ms, found.earliest_start_ms) == (None, None)
    assert found.unknown_because == "jobs without a time limit stand in the way: a job of another tenant"
    to_others = told(cluster, job, "vision", "nlp").unknown_because
    assert to_others == "jobs without a time limit stand in the way: job vision/1"
    assert found.blocking_jobs == ("vision/1",)


def test_the_limit_that_binds_is_named_with_its_tenant() -> None:
    cluster = busy(2)
    cluster.must(CreateTenant("lab", TenantSettings(limit_milli=2500)))
    set_tenant(cluster, "vision", parent="lab")
    cluster.node("m", 2)
    (job,) = cluster.submit(resources=WHOLE)
    stage, reason, text = said(cluster, job)
    assert (stage, reason) == ("quota", Reason.TENANT_LIMIT)
    assert text.startswith("tenant lab uses 2 of its limit of 2.5 cards and this needs 1")
    (large,) = cluster.submit(resources=RawResources(gpus=1), tasks=3)
    stage, reason, text = said(cluster, large)
    assert (stage, reason) == ("quota", Reason.TENANT_LIMIT_NEVER)
    assert "it needs 3 cards at least and tenant lab may use 2.5" in text


def test_a_guaranteed_job_must_fit_the_guarantee() -> None:
    cluster = Cluster()
    cluster.node("n", 4)
    set_tenant(cluster, "vision", guaranteed_milli=1500)
    (first,) = cluster.submit(resources=WHOLE, qos=Qos.GUARANTEED)
    cluster.cycle()
    cluster.run(first)
    (job,) = cluster.submit(resources=WHOLE, qos=Qos.GUARANTEED)
    stage, reason, text = said(cluster, job)
    assert (stage, reason) == ("quota", Reason.QUOTA)
    assert "use 1 of the 1.5 cards that tenant vision is guaranteed and this needs 1" in text
    assert ("with QoS burst", "--qos burst") in [(c.change, c.flag) for c in told(cluster, job).counterfactuals]
    (large,) = cluster.submit(resources=RawResources(gpus=2), qos=Qos.GUARANTEED)
    assert said(cluster, large)[:2] == ("quota", Reason.QUOTA_NEVER)


def test_a_limit_of_cpus_is_told_apart_from_one_of_cards() -> None:
    cluster = Cluster()
    cluster.node("n", 4)
    set_tenant(cluster, "vision", cpu_limit_milli=6000, limit_milli=4000)
    (first,) = cluster.submit(resources=RawResources(gpus=1, cpu_milli=4000))
    cluster.cycle()
    cluster.run(first)
    (job,) = cluster.submit(resources=RawResources(gpus=1, cpu_milli=4000))
    stage, reason, text = said(cluster, job)
    assert (stage, reason) == ("quota", Reason.HOST_LIMIT)
    assert text == "tenant vision uses 4 of its limit of 6 CPUs and this needs 4"
    assert "--cpus 2" in [c.flag for c in told(cluster, job).counterfactuals]


@pytest.mark.parametrize(
    ("settings", "reason", "text"),
    [
        ({"max_running_jobs": 1}, Reason.TENANT_CAP, "tenant vision runs 1 jobs and may run 1"),
        ({"max_running_per_user": 1}, Reason.USER_CAP, "ann runs 1 jobs and each user of tenant vision may run 1"),
    ],
)
def test_caps_on_running_jobs(settings: dict[str, object], reason: Reason, text: str) -> None:
    cluster = Cluster()
    cluster.node("n", 4)
    set_tenant(cluster, "vision", **settings)
    (first,) = cluster.submit(resources=WHOLE, max_run_ms=5 * MINUTE_MS)
    cluster.cycle()
    cluster.run(first)
    (job,) = cluster.submit(resources=WHOLE)
    assert said(cluster, job)[:2] == ("cap", reason)
    assert text in said(cluster, job)[2]
    found = told(cluster, job)
    assert found.blocking_jobs == (first.key,)
    assert found.expected_start_ms == cluster.now_ms + 5 * MINUTE_MS
    assert found.filters == ()


def test_an_arrays_own_cap() -> None:
    cluster = Cluster()
    cluster.node("n", 4)
    children = cluster.submit(resources=WHOLE, array_indexes=(0, 1, 2), array_max_running=1)
    cluster.cycle()
    stage, reason, text = said(cluster, children[1])
    assert (stage, reason) == ("cap", Reason.ARRAY_CAP)
    assert text.startswith("1 jobs of array 1 run and its submitter allowed 1 at once")
    assert [c.flag for c in told(cluster, children[1]).counterfactuals] == ["--array without %1"]


def test_a_dependency_is_named_with_its_state_and_can_be_left_out() -> None:
    cluster = Cluster()
    cluster.node("n", 4)
    (first,) = cluster.submit(resources=WHOLE, max_run_ms=3 * MINUTE_MS)
    cluster.cycle()
    cluster.run(first)
    after = (Dependency(first.key, DependencyKind.AFTEROK),)
    (job,) = cluster.submit(resources=WHOLE, after=after)
    assert said(cluster, job) == ("dependency", Reason.DEPENDENCY, "it waits for job 1 to succeed, which is RUNNING")
    found = told(cluster, job)
    assert found.blocking_jobs == (first.key,)
    assert [(c.change, c.flag) for c in found.counterfactuals] == [("without waiting for 1", "without --after-ok 1")]
    assert found.expected_start_ms == cluster.now_ms + 3 * MINUTE_MS


def test_a_reservation_is_named_with_its_window_and_a_shorter_time_helps() -> None:
    cluster = Cluster(tenants=("vision", "nlp"))
    cluster.node("n", 1)
    start_ms = cluster.now_ms + 30 * MINUTE_MS
    end_ms = start_ms + 60 * MINUTE_MS
    cluster.must(CreateReservation(name="paper", tenant="nlp", gpus=1, start_ms=start_ms, end_ms=end_ms))
    (job,) = cluster.submit(resources=WHOLE, max_run_ms=120 * MINUTE_MS)
    found = told(cluster, job)
    assert found.wait is not None
    assert (found.stage, found.wait.reason) == ("reservation", Reason.RESERVED)
    said_to_own = (
        "reservation paper of another tenant has the room: its window opens in 30m and closes in 1h30m; with --time 2h "
        "it could run into it"
    )
    assert found.wait.detail == said_to_own
    openly = told(cluster, job, "nlp").wait
    assert openly is not None
    assert openly.detail == said_to_own.replace("another tenant", "tenant nlp")
    assert [(c.change, c.flag) for c in found.counterfactuals] == [("with a time limit of 30m", "--time 30m")]
    assert found.expected_start_ms == end_ms
    assert said(cluster, job)[1] is Reason.RESERVED


def test_maintenance_names_its_nodes() -> None:
    cluster = Cluster()
    cluster.node("n", 1)
    start_ms = cluster.now_ms + 5 * MINUTE_MS
    window = {"start_ms": start_ms, "end_ms": start_ms + MINUTE_MS}
    cluster.must(CreateReservation(name="fans", maintenance=True, nodes=("n",), **window))  # type: ignore[arg-type]
    (job,) = cluster.submit(resources=WHOLE)
    _, reason, text = said(cluster, job)
    assert reason is Reason.RESERVED
    assert text.startswith("maintenance fans on n has the room: its window opens in 5m")
    assert "without a --time it could run into it" in text


def test_room_that_is_owed_to_the_head_is_told_with_its_time() -> None:
    """One card is free for as long as the other's job runs; then a job of two cards starts."""
    cluster = Cluster(tenants=("vision", "nlp"))
    cluster.node("n", 2)
    (first,) = cluster.submit(resources=WHOLE, max_run_ms=20 * MINUTE_MS)
    cluster.cycle()
    cluster.run(first)
    (head,) = cluster.submit("nlp", resources=RawResources(gpus=2))
    cluster.cycle()
    (job,) = cluster.submit(resources=WHOLE, max_run_ms=30 * MINUTE_MS)
    found = told(cluster, job)
    assert found.wait is not None
    assert (found.stage, found.wait.reason, found.claimant) == ("order", Reason.HELD, head.key)
    said_to_own = (
        "the room that it would fit is owed to a job of another tenant, which starts there in 20m at the latest; with "
        "--time 30m this one could still be running then"
    )
    assert found.wait.detail == said_to_own
    openly = told(cluster, job, "nlp").wait
    assert openly is not None
    assert openly.detail == said_to_own.replace("a job of another tenant", "job nlp/1")
    assert (found.ahead, found.ahead_count) == ((head.key,), 1)
    assert [c.flag for c in found.counterfactuals] == ["--time 20m"]
    planned = told(cluster, head)
    assert planned.expected_start_ms == cluster.now_ms + 20 * MINUTE_MS
    assert planned.wait is not None
    assert planned.wait.expected_start_ms == planned.expected_start_ms


def test_who_makes_way_and_since_when() -> None:
    cluster = busy(2, grace_ms=20_000)
    set_tenant(cluster, "nlp", guaranteed_milli=1000)
    (job,) = cluster.submit("nlp", resources=WHOLE)
    since_ms = cluster.now_ms
    cluster.cycle()
    cluster.tick(5000)
    found = told(cluster, job)
    assert found.wait is not None
    assert (found.stage, found.wait.reason) == ("preemption", Reason.PREEMPTING)
    assert found.wait.detail == "a job of another tenant is making way for it; it starts at the end of their grace"
    (victim,) = found.victims
    openly = told(cluster, job, "vision").wait
    assert openly is not None
    assert openly.detail == f"job {victim} is making way for it; it starts at the end of their grace"
    assert any(a.desired_stop for a in cluster.state.jobs[victim].live())
    assert (found.hold_ms, found.expected_start_ms) == (since_ms, since_ms + 20_000)


def test_a_suspended_job_waits_for_its_own_node() -> None:
    cluster = Cluster(tenants=("vision", "nlp"))
    cluster.node("n", 0)
    cluster.sync("n", gpus=(card("G", tiers=SUSPENDS),))
    (lent,) = cluster.submit(resources=WHOLE, preemption=PreemptionMode.SUSPEND)
    cluster.cycle()
    cluster.run(lent)
    set_tenant(cluster, "nlp", guaranteed_milli=1000)
    (owner,) = cluster.submit("nlp", resources=WHOLE, max_run_ms=7 * MINUTE_MS)
    cluster.cycle()
    cluster.report(lent.live()[0], AttemptState.SUSPENDED)
    cluster.cycle()
    cluster.run(owner)
    assert lent.state is JobState.SUSPENDED
    stage, reason, text = said(cluster, lent)
    assert (stage, reason) == ("capacity", Reason.RESUMING)
    assert text.startswith("it is suspended on node n, where no card has room for 1 whole GPU now")
    found = told(cluster, lent)
    assert found.counterfactuals == ()
    assert found.blocking_jobs == (owner.key,)
    assert found.expected_start_ms == cluster.now_ms + 7 * MINUTE_MS


def test_a_backoff_is_told_and_foretold() -> None:
    cluster = busy(1)
    job = cluster.state.jobs["vision/1"]
    cluster.report(job.live()[0], AttemptState.FAILED, "INFRA", detail="lost")
    stage, reason, text = said(cluster, job)
    assert (stage, reason, text) == (
        "order",
        Reason.RETRY_BACKOFF,
        "try 1 ended with INFRA; the next starts in 1s at most",
    )
    assert told(cluster, job).expected_start_ms == cluster.now_ms + cluster.settings.infra_backoff_ms


def test_a_job_that_fits_starts_now() -> None:
    cluster = Cluster()
    cluster.node("n", 1)
    (job,) = cluster.submit(resources=WHOLE)
    found = told(cluster, job)
    assert (found.wait and found.wait.reason, found.expected_start_ms) == (Reason.SCHEDULING, cluster.now_ms)
    cluster.cycle()
    assert told(cluster, job) == Explanation(job=job.key, state=JobState.STARTING)


def test_a_job_that_runs_again_shows_nothing_of_its_last_end() -> None:
    cluster = busy(1, max_retries=1)
    (job,) = cluster.state.jobs.values()
    cluster.finish(job, 3)
    assert (cluster.now(job).state, cluster.now(job).reason) == (JobState.QUEUED, Reason.EXIT_CODE)
    cluster.tick(60_000)
    cluster.cycle()
    cluster.run(job)
    again = cluster.now(job)
    assert (again.state, again.reason, again.detail) == (JobState.RUNNING, None, "")
    assert again.attempts[0].reason is Reason.EXIT_CODE


def test_a_start_deadline_comes_before_the_room() -> None:
    cluster = busy(1, max_run_ms=10 * MINUTE_MS)
    (job,) = cluster.submit(resources=WHOLE, start_within_ms=MINUTE_MS)
    found = told(cluster, job)
    assert found.expected_start_ms is None
    assert found.unknown_because.startswith("it would end before: it had not started within the 60 s")


# -- the order, the words, the work


def test_jobs_ahead_are_counted_and_the_first_are_named() -> None:
    cluster = busy(1)
    urgent = cluster.submit(count=2, resources=WHOLE, priority=5)
    older = cluster.submit(count=30, resources=WHOLE)
    (job,) = cluster.submit(resources=RawResources(gpu_milli=300))
    cluster.submit(count=3, resources=WHOLE)
    found = told(cluster, job)
    assert found.ahead_count == 32
    assert found.ahead == tuple(j.key for j in (urgent + older)[:AHEAD_MAX])


def test_the_smallest_change_comes_first() -> None:
    cluster = Cluster()
    cluster.node("n", 2)
    (first,) = cluster.submit(resources=RawResources(gpu_milli=600, cpu_milli=1000))
    (second,) = cluster.submit(resources=RawResources(gpus=1, cpu_milli=1000))
    cluster.cycle()
    assert first.state is second.state is JobState.STARTING
    (job,) = cluster.submit(resources=RawResources(gpu_milli=500))
    found = told(cluster, job)
    assert found.suggestion == "it would start now with 0.4 of a card (--gpus 0.4)"
    assert found.counterfactuals[0].start_ms == cluster.now_ms


def test_a_gang_is_told_how_many_could_start() -> None:
    cluster = busy(1)
    cluster.node("m", 2)
    (job,) = cluster.submit(resources=WHOLE, tasks=3)
    assert ("with 2 of its 3 tasks at first", "--min-tasks 2") in [
        (c.change, c.flag) for c in told(cluster, job).counterfactuals
    ]


def test_what_needs_other_cards_or_nodes() -> None:
    cluster = busy(1)
    cluster.sync("n", gpus=(card("GPU-n-0", model="H100-80GB"),), labels={"rack": "1"})
    cluster.node("old", 0)
    cluster.sync("old", gpus=(card("G", model="V100-16GB", usable_mib=16_000),))
    (model,) = cluster.submit(resources=RawResources(gpus=1, gpu_model="H100-80GB", cpu_milli=1000))
    assert ("on a V100-16GB", "--model V100-16GB") in [(c.change, c.flag) for c in told(cluster, model).counterfactuals]
    (labelled,) = cluster.submit(resources=RawResources(gpus=1, node_labels={"rack": "1"}, cpu_milli=1000))
    assert "without --node-label rack=1" in [c.flag for c in told(cluster, labelled).counterfactuals]
    (fenced,) = cluster.submit(
        resources=RawResources(gpu_milli=500, min_enforcement=int(Enforcement.HARD), cpu_milli=1000)
    )
    found = told(cluster, fenced)
    assert found.stage == "fence"
    assert "--fence soft" in [c.flag for c in found.counterfactuals]


def test_asking_leaves_the_schedulers_brain_as_it_was() -> None:
    """A pass after the question decides what it would have decided without it."""
    cluster = busy(2, max_run_ms=MINUTE_MS)
    brain = Brain(cluster.state, cluster.settings)
    brain.refresh()
    jobs = cluster.submit(count=3, resources=WHOLE)
    touched, submitted = set(cluster.state.touched), list(cluster.state.submitted)
    found = explain(cluster.state, jobs[0], cluster.now_ms, cluster.settings, brain)
    assert found.expected_start_ms == cluster.now_ms + MINUTE_MS
    assert (cluster.state.touched, cluster.state.submitted) == (touched, submitted)


def test_a_copy_shares_nothing_that_changes() -> None:
    cluster = busy(2, max_run_ms=MINUTE_MS)
    cluster.submit(count=3, resources=WHOLE, array_indexes=(0, 1))
    before = cluster.state.encode()
    assert cluster.state.fork().jobs == cluster.state.jobs
    world = World(cluster.state, cluster.now_ms, cluster.settings)
    world.begin()
    for _ in range(6):
        world.run_pass()
        at_ms = world.next_ms()
        if at_ms is None:
            break
        world.go_on(at_ms)
    assert world.state.seq > cluster.state.seq + 5
    assert cluster.state.encode() == before


def test_the_work_of_a_forecast_is_bounded() -> None:
    """A job is behind more others than are looked through."""
    cluster = busy(1, max_run_ms=MINUTE_MS)
    jobs = cluster.submit(count=50, resources=WHOLE, max_run_ms=MINUTE_MS)
    world = World(cluster.state, cluster.now_ms, CoreSettings())
    found = expected_start(world, jobs[-1].key, passes_max=20)
    assert (found.start_ms, found.unknown_because) == (None, "more happens before it than can be foreseen")
    whole = expected_start(World(cluster.state, cluster.now_ms, CoreSettings()), jobs[-1].key)
    assert whole.start_ms == cluster.now_ms + 50 * MINUTE_MS


def test_no_sentence_names_another_tenants_job() -> None:
    cluster = busy(1, max_run_ms=10 * MINUTE_MS)
    jobs = cluster.submit("nlp", who=user_of("nlp"), count=2, resources=WHOLE)
    for job in jobs:
        found = told(cluster, job)
        assert found.wait is not None
        assert "vision/" not in found.wait.detail + found.unknown_because + found.suggestion
