"""Moving suspendable jobs together: what a plan shows, that it is carried out as shown, and that nothing moves else."""

from __future__ import annotations

import random

from cluster import Cluster, card

from gpushare.core.commands import ApplyRepack, RawResources, Rejection
from gpushare.core.events import AttemptSuspendRequested, CapacityHeld
from gpushare.core.invariants import check
from gpushare.core.kinds import AttemptState, Enforcement, JobState, PreemptionMode
from gpushare.core.model import Job, TierOffer
from gpushare.core.repack import RepackPlan, plan_repack
from gpushare.reasons import Reason

SUSPENDS = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)


def clustered(cards: int = 3, tiers: tuple[TierOffer, ...] = SUSPENDS) -> Cluster:
    cluster = Cluster()
    cluster.node("n", 0)
    cluster.sync("n", gpus=tuple(card(f"G{i}", i, 80_000, tiers=tiers) for i in range(cards)))
    return cluster


def spread(cluster: Cluster, *shares: int, mode: PreemptionMode = PreemptionMode.SUSPEND) -> list[Job]:
    """One running job a card, whatever the policy would do: the rest of each card is taken and given back."""
    jobs, fillers = [], []
    for milli in shares:
        (job,) = cluster.submit(resources=RawResources(gpu_milli=milli, cpu_milli=1000), preemption=mode)
        cluster.cycle()
        cluster.run(job)
        (filler,) = cluster.submit(resources=RawResources(gpu_milli=1000 - milli, cpu_milli=1000))
        cluster.cycle()
        cluster.run(filler)
        assert card_of(filler) == card_of(job)
        jobs.append(job)
        fillers.append(filler)
    for filler in fillers:
        cluster.finish(filler)
    return jobs


def card_of(job: Job) -> str:
    return job.current()[0].slice.gpu_uuids[0]


def plan(cluster: Cluster) -> RepackPlan:
    before = cluster.state.encode()
    found = plan_repack(cluster.state, cluster.now_ms, cluster.settings)
    assert cluster.state.encode() == before
    return found


def carry_out(cluster: Cluster, found: RepackPlan) -> None:
    """The command, the agents' words, and the passes that follow."""
    cluster.must(ApplyRepack(jobs=tuple(m.job for m in found.moves)))
    cluster.cycle()
    for move in found.moves:
        attempt = cluster.state.attempts[move.attempt]
        assert attempt.desired_suspend
        cluster.report(attempt, AttemptState.SUSPENDED)
    cluster.cycle()
    for move in found.moves:
        cluster.report(cluster.state.attempts[move.attempt], AttemptState.RUNNING)
    cluster.cycle()


def test_two_halves_on_two_cards_come_together_and_a_whole_card_is_free() -> None:
    cluster = clustered(2)
    one, other = spread(cluster, 500, 400)
    found = plan(cluster)
    (move,) = found.moves
    assert (move.job, move.node, move.gpu_memory_mib) == (other.key, "n", 32_000)
    assert (move.from_uuid, move.to_uuid) == (card_of(other), card_of(one))
    assert found.opened == (("n", 1),)
    assert (found.largest_share_before_milli, found.largest_share_after_milli) == (600, 1000)
    assert (found.fragmentation_before_milli, found.fragmentation_after_milli) == (1000, 90)
    assert found.gpu_memory_mib == 32_000


def test_it_resumes_on_the_card_that_was_planned_and_nobody_takes_that_place_meanwhile() -> None:
    cluster = clustered(3)
    one, other, third = spread(cluster, 500, 400, 700)
    found = plan(cluster)
    (move,) = found.moves
    assert (move.job, move.to_uuid) == (other.key, card_of(one))
    cluster.must(ApplyRepack(jobs=(other.key,)))
    # Everything that is still free is asked for, more than once.
    rivals = cluster.submit(count=12, resources=RawResources(gpu_milli=100, cpu_milli=1000))
    cluster.cycle()
    assert other.key in cluster.state.holds
    cluster.report(cluster.state.attempts[move.attempt], AttemptState.SUSPENDED)
    assert cluster.now(other).state is JobState.SUSPENDED
    cluster.cycle()
    cluster.report(cluster.state.attempts[move.attempt], AttemptState.RUNNING)
    other, third, *rivals = (cluster.now(job) for job in (other, third, *rivals))
    assert (other.state, card_of(other)) == (JobState.RUNNING, move.to_uuid)
    assert third.state is JobState.RUNNING
    assert not cluster.state.holds
    assert sum(r.state is JobState.QUEUED for r in rivals) < 12


def test_nothing_moves_by_itself() -> None:
    cluster = clustered(2)
    spread(cluster, 300, 300)
    for _ in range(5):
        cluster.tick(60_000)
        events = cluster.cycle().events
        assert not [e for e in events if isinstance(e, AttemptSuspendRequested | CapacityHeld)]


def test_only_jobs_that_asked_for_it_on_cards_that_can_move() -> None:
    asked_otherwise = clustered(2)
    spread(asked_otherwise, 300, 300, mode=PreemptionMode.REQUEUE)
    assert plan(asked_otherwise).moves == ()
    cannot = clustered(2, tuple(TierOffer(t.tier, t.enforcement) for t in SUSPENDS))
    spread(cannot, 300, 300)
    assert plan(cannot).moves == ()


def test_no_card_is_emptied_for_one_that_then_is_in_use() -> None:
    """Three of four tenths need two cards, however they lie."""
    cluster = clustered(3)
    spread(cluster, 400, 400, 400)
    found = plan(cluster)
    assert len(found.moves) == 1
    assert found.opened == (("n", 1),)
    carry_out(cluster, found)
    assert plan(cluster).moves == ()


def test_where_no_card_can_be_emptied_a_larger_share_is_opened() -> None:
    """Six and two tenths on one card, seven on the other: the two go to the seven, and four are free, not three."""
    cluster = clustered(2)
    six, seven = spread(cluster, 600, 700, mode=PreemptionMode.REQUEUE)
    (filler,) = cluster.submit(resources=RawResources(gpu_milli=300, cpu_milli=1000))
    cluster.cycle()
    cluster.run(filler)
    assert card_of(filler) == card_of(seven)
    (small,) = cluster.submit(resources=RawResources(gpu_milli=200, cpu_milli=1000), preemption=PreemptionMode.SUSPEND)
    cluster.cycle()
    cluster.run(small)
    cluster.finish(filler)
    assert card_of(small) == card_of(six)
    found = plan(cluster)
    assert [(m.job, m.to_uuid) for m in found.moves] == [(small.key, card_of(seven))]
    assert (found.largest_share_before_milli, found.largest_share_after_milli, found.opened) == (300, 400, ())
    carry_out(cluster, found)
    assert card_of(cluster.now(small)) == card_of(seven)


def test_a_job_that_the_plan_does_not_move_is_refused_and_nothing_else_is_done() -> None:
    cluster = clustered(2)
    one, other = spread(cluster, 500, 400)
    before = cluster.state.encode()
    for jobs in ((one.key,), (other.key, one.key), ("vision/99",), ()):
        refused = cluster.do(ApplyRepack(jobs=jobs))
        assert isinstance(refused, Rejection)
        assert refused.reason is Reason.INVALID_FIELD
    assert cluster.state.encode() == before


def test_a_job_that_ends_on_its_way_leaves_nothing_held() -> None:
    cluster = clustered(2)
    _, other = spread(cluster, 500, 400)
    cluster.must(ApplyRepack(jobs=(other.key,)))
    cluster.cycle()
    cluster.finish(other)
    assert cluster.now(other).state is JobState.SUCCEEDED
    cluster.cycle()
    assert not cluster.state.holds


def test_a_pending_job_keeps_the_room_that_it_is_about_to_get() -> None:
    """The next pass starts it on the card that would otherwise take the move."""
    cluster = clustered(2)
    spread(cluster, 500, 400)
    cluster.submit(count=2, resources=RawResources(gpu_milli=500, cpu_milli=1000))
    assert plan(cluster).moves == ()


def test_random_plans_open_what_they_say() -> None:
    assert sum(_opens_what_it_says(seed) for seed in range(25)) > 10


def _opens_what_it_says(seed: int) -> bool:
    """False where nothing was worth a move."""
    rng = random.Random(seed)
    cluster = clustered(rng.randint(2, 5))
    modes = (PreemptionMode.SUSPEND, PreemptionMode.SUSPEND, PreemptionMode.REQUEUE)
    for _ in range(30):
        request = RawResources(gpu_milli=rng.choice((100, 200, 300, 500, 700)), cpu_milli=1000)
        cluster.submit(resources=request, preemption=rng.choice(modes))
    cluster.cycle()
    running = [j for j in cluster.state.jobs.values() if j.live()]
    for job in running:
        cluster.run(job)
    for job in list(cluster.state.jobs.values()):
        if job.state is JobState.QUEUED:
            cluster.cancel(job)
    for job in rng.sample(running, len(running) * 2 // 3):
        cluster.finish(job)
    gpus = cluster.state.nodes["n"].gpus
    empty = sum(not g.holds for g in gpus.values())
    share = max(1000 - g.used_milli for g in gpus.values())
    found = plan(cluster)
    assert found.largest_share_before_milli == share
    assert found.largest_share_after_milli >= share
    assert found.fragmentation_after_milli <= found.fragmentation_before_milli
    places = {m.job: m.to_uuid for m in found.moves}
    if not places:
        return False
    carry_out(cluster, found)
    check(cluster.state)
    gpus = cluster.state.nodes["n"].gpus
    assert {key: card_of(cluster.state.jobs[key]) for key in places} == places
    assert sum(not g.holds for g in gpus.values()) == empty + sum(n for _, n in found.opened)
    assert max(1000 - g.used_milli for g in gpus.values()) == found.largest_share_after_milli
    assert all(job.state is JobState.RUNNING for job in map(cluster.now, running) if job.live())
    return True
