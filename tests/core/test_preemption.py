"""Who makes way: the smallest and youngest sufficient set, whole gangs, never for nothing, never twice in a row."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

import pytest
from cluster import Cluster, card
from gantt import check_chart

from gpushare.core.brain import Brain
from gpushare.core.commands import RawResources
from gpushare.core.events import AttemptStopRequested, CapacityHeld
from gpushare.core.kinds import AttemptState, Enforcement, PreemptionMode, Topology
from gpushare.core.model import Job, TierOffer
from gpushare.core.placement.ask import Ask, Room
from gpushare.core.placement.place import place_gang
from gpushare.core.plan import Plan
from gpushare.core.preemption import Way, find_victims
from gpushare.core.promises import CapacityHold
from gpushare.reasons import Reason

SUSPENDING = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)


class Town:
    """Jobs by name, on nodes of `cards` cards each; `way` asks for the victims of a waiting one."""

    def __init__(self, *cards: int, cpu_milli: int = 64_000, tiers: tuple[TierOffer, ...] | None = None) -> None:
        self.cluster = Cluster(tenants=("low", "high"))
        for number, count in enumerate(cards):
            more = {} if tiers is None else {"tiers": tiers}
            gpus = tuple(card(f"GPU-n{number}-{i}", i, 80_000, **more) for i in range(count))
            self.cluster.node(f"n{number}", 0)
            self.cluster.sync(f"n{number}", gpus=gpus, cpu_milli=cpu_milli)
        self.jobs: dict[str, Job] = {}

    def submit(self, name: str, tenant: str, resources: dict[str, int], **fields: object) -> Job:
        (self.jobs[name],) = self.cluster.submit(tenant, resources=RawResources(**resources), **fields)
        return self.jobs[name]

    def run(self, name: str, *, milli: int = 0, gpus: int = 0, cpu: int = 100, **fields: object) -> Job:
        """A job of tenant low that runs since a minute after the one before it."""
        self.cluster.tick(60_000)
        size = {"gpu_milli": milli} if milli else {"gpus": gpus}
        job = self.submit(name, "low", {**size, "cpu_milli": cpu, "memory_mib": 10}, **fields)
        self.cluster.cycle()
        self.cluster.run(job)
        assert job.live(), f"{name} does not run"
        return job

    def want(self, *, milli: int = 0, gpus: int = 0, cpu: int = 100, **fields: object) -> Job:
        size = {"gpu_milli": milli} if milli else {"gpus": gpus}
        return self.submit("claimant", "high", {**size, "cpu_milli": cpu, "memory_mib": 10}, **fields)

    def ask(self, job: Job, **fields: object) -> Ask:
        spec = job.spec
        ask = Ask(request=spec.resources, tenant=job.tenant, user="ann", job=job.key, topology=spec.topology)
        return ask._replace(**fields)

    def way(self, job: Job, allowed: Callable[[Job], bool] | None = None, **fields: object) -> Way | None:
        plan = Plan(self.cluster.state, Brain(self.cluster.state, self.cluster.settings).fleet)
        before = plan.fleet.free_milli.tolist()
        found = find_victims(plan, self.ask(job, **fields), job, self.cluster.now_ms, allowed or _anybody)
        assert plan.fleet.free_milli.tolist() == before, "the plan was left changed"
        return found

    def names(self, way: Way | None) -> list[str]:
        assert way is not None
        return sorted(name for name, job in self.jobs.items() if job.key in way.victims)

    def stop(self, name: str, claimant: str = "") -> None:
        job = self.jobs[name]
        reason = Reason.PREEMPTED
        self.cluster.apply([AttemptStopRequested(a.id, reason, claimant=claimant) for a in job.live()])

    def gone(self, name: str) -> None:
        for attempt in self.jobs[name].live():
            self.cluster.report(attempt, AttemptState.STOPPED, "PREEMPTED", signal=15)


def _anybody(job: Job) -> bool:
    return job.tenant == "low"


# -- which ones


def test_the_smallest_charge_makes_way() -> None:
    town = Town(1, 1)
    town.run("large", milli=900)
    town.run("small", milli=600)
    assert town.names(town.way(town.want(milli=500))) == ["small"]


def test_of_equal_ones_the_youngest_makes_way() -> None:
    town = Town(4)
    for name in ("first", "second", "third", "fourth"):
        town.run(name, gpus=1)
    assert town.names(town.way(town.want(gpus=1))) == ["fourth"]
    assert town.names(town.way(town.want(gpus=2))) == ["fourth", "third"]


def test_what_is_free_already_counts() -> None:
    town = Town(1)
    town.run("a", milli=300)
    town.run("b", milli=500)
    assert town.names(town.way(town.want(milli=400))) == ["a"]
    assert town.names(town.way(town.want(milli=600))) == ["b"]
    assert town.names(town.way(town.want(milli=900))) == ["a", "b"]


def test_two_small_ones_before_one_large_one() -> None:
    town = Town(1)
    town.run("large", milli=500)
    town.run("a", milli=200)
    town.run("b", milli=250)
    assert town.names(town.way(town.want(milli=450))) == ["a", "b"]
    assert town.names(town.way(town.want(milli=500))) == ["a", "b"]
    assert town.names(town.way(town.want(milli=501))) == ["large"]


def test_a_whole_gang_counts_with_all_its_tasks() -> None:
    """The gang has a card on the second node, too: two cards would be lost for one."""
    town = Town(1, 1, 1)
    town.run("gang", gpus=1, tasks=2)
    town.run("alone", gpus=1)
    assert town.names(town.way(town.want(gpus=1))) == ["alone"]
    assert town.names(town.way(town.want(gpus=1, tasks=2))) == ["gang"]


def test_a_gang_that_must_go_frees_its_cards_everywhere() -> None:
    town = Town(2, 2)
    town.run("gang", gpus=2, tasks=2)
    way = town.way(town.want(gpus=1, tasks=4))
    assert town.names(way) == ["gang"]
    assert way is not None
    assert sorted(s.gpu_uuids[0] for s in way.slices) == ["GPU-n0-0", "GPU-n0-1", "GPU-n1-0", "GPU-n1-1"]


def test_nobody_makes_way_for_nothing() -> None:
    """One card of the two is held by somebody who may not be touched."""
    town = Town(2)
    town.run("theirs", gpus=1)
    own = town.run("untouchable", gpus=1)
    assert town.way(town.want(gpus=2), lambda job: job.key != own.key) is None


def test_nobody_makes_way_when_the_claimants_own_limit_is_in_the_way() -> None:
    town = Town(1)
    town.run("theirs", gpus=1)
    assert town.way(town.want(gpus=1), room=Room(milli=999)) is None


def test_a_job_of_the_same_tenant_makes_room_within_the_limit() -> None:
    town = Town(2)
    town.run("mine", gpus=1)
    job = town.submit("claimant", "low", {"gpus": 1, "cpu_milli": 1, "memory_mib": 1})
    assert town.names(town.way(job, room=Room(milli=0))) == ["mine"]


def test_no_victims_where_enough_is_free() -> None:
    town = Town(2)
    town.run("a", gpus=1)
    assert town.way(town.want(gpus=1)) == Way(town.way(town.jobs["claimant"]).slices, (), frozenset())


def test_cpu_is_freed_where_cards_are_not_what_lacks() -> None:
    town = Town(2, cpu_milli=4000)
    town.run("hog", gpus=0, cpu=3000)
    town.run("small", gpus=0, cpu=500)
    assert town.names(town.way(town.want(gpus=1, cpu=1000))) == ["small"]
    assert town.names(town.way(town.want(gpus=0, cpu=2000))) == ["hog"]


def test_tasks_of_a_gang_stay_together_where_asked() -> None:
    town = Town(2, 2)
    town.run("a", gpus=1)
    town.run("b", gpus=1)
    town.run("c", gpus=1)
    way = town.way(town.want(gpus=1, tasks=2), topology=Topology.NODE)
    assert way is not None
    assert len({s.node for s in way.slices}) == 1
    assert town.names(way) == ["c"]


def test_a_gang_takes_as_few_as_it_needs() -> None:
    town = Town(2, 2, 2)
    for name in "abcdef":
        town.run(name, gpus=1)
    assert town.names(town.way(town.want(gpus=1, tasks=4))) == ["c", "d", "e", "f"]


def test_a_gang_with_a_minimum_takes_only_that() -> None:
    town = Town(4)
    for name in "abcd":
        town.run(name, gpus=1)
    assert town.names(town.way(town.want(gpus=1, tasks=4, min_tasks=2))) == ["c", "d"]


# -- stability


def test_never_twice_in_a_row_for_the_same_job() -> None:
    town = Town(1)
    victim = town.run("victim", gpus=1)
    claimant = town.want(gpus=1)
    victim.preempted_for = claimant.key
    assert town.way(claimant) is None


def test_who_made_way_for_the_same_tenant_the_last_time_comes_last() -> None:
    town = Town(1, 1)
    town.run("large", milli=1000)
    town.run("small", milli=600).preempted_for = "high/999"
    assert town.names(town.way(town.want(milli=500))) == ["large"]


def test_what_makes_way_already_is_waited_for() -> None:
    town = Town(2)
    town.run("going", gpus=1)
    town.run("staying", gpus=1)
    town.stop("going")
    way = town.way(town.want(gpus=1))
    assert way is not None
    assert way.victims == ()
    assert way.slices[0].gpu_uuids == ("GPU-n0-0",)
    assert town.names(town.way(town.want(gpus=2))) == ["staying"]


def test_what_makes_way_for_another_is_not() -> None:
    town = Town(2)
    going = town.run("going", gpus=1)
    town.run("staying", gpus=1)
    other = town.submit("other", "high", {"gpus": 1, "cpu_milli": 1, "memory_mib": 1})
    piece = going.live()[0].slice
    town.cluster.apply([CapacityHeld(CapacityHold(other.key, (piece,), (going.key,), town.cluster.now_ms))])
    town.stop("going", other.key)
    assert town.names(town.way(town.want(gpus=1))) == ["staying"]


def test_what_nobody_can_tell_to_stop_is_no_victim() -> None:
    town = Town(1, 1)
    town.run("lost", gpus=1)
    town.run("here", gpus=1)
    town.cluster.silence(town.jobs["lost"].live()[0].slice.node)
    assert town.names(town.way(town.want(gpus=1))) == ["here"]


# -- suspension


def test_a_job_that_can_is_suspended() -> None:
    town = Town(1, tiers=SUSPENDING)
    job = town.run("parked", gpus=1, preemption=PreemptionMode.SUSPEND)
    way = town.way(town.want(gpus=1))
    assert way is not None
    assert (way.victims, way.suspend) == ((job.key,), frozenset({job.key}))


@pytest.mark.parametrize(
    ("tiers", "fields"),
    [
        (None, {"preemption": PreemptionMode.SUSPEND}),
        (SUSPENDING, {"preemption": PreemptionMode.REQUEUE}),
        (SUSPENDING, {"preemption": PreemptionMode.SUSPEND, "tasks": 2}),
    ],
)
def test_others_are_stopped(tiers: tuple[TierOffer, ...] | None, fields: dict[str, object]) -> None:
    town = Town(2, tiers=tiers)
    job = town.run("stopped", gpus=1, **fields)
    way = town.way(town.want(gpus=2))
    assert way is not None
    assert (way.victims, way.suspend) == ((job.key,), frozenset())


def test_a_suspended_job_keeps_its_cpu_so_it_is_stopped_where_that_is_short() -> None:
    town = Town(1, cpu_milli=4000, tiers=SUSPENDING)
    job = town.run("parked", gpus=1, cpu=3000, preemption=PreemptionMode.SUSPEND)
    way = town.way(town.want(gpus=1, cpu=2000))
    assert way is not None
    assert (way.victims, way.suspend) == ((job.key,), frozenset())


# -- in time

CHARTS = {
    "a higher priority takes the younger one's card, which comes back later": """
        tenant t
        node n 2
        job A gpus=1 limit=9
        job B gpus=1 limit=4 at=1
        job P gpus=1 limit=3 at=2 priority=5
        n/0 AAAAAAAAA
        n/1 .BPPPBBBB
    """,
    "what is freed is kept for its claimant while the last victim uses its grace": """
        tenant t
        node n 2
        job A gpus=1 limit=9 grace=2
        job B gpus=1 limit=9 at=1
        job P gpus=2 limit=2 at=3 priority=5
        job C gpus=1 limit=1 at=4
        n/0 AAAAAPPAAAAAAAAA
        n/1 .BB..PPBBBBBBBBB
    """,
    "a stopping job is waited for, not another one stopped": """
        tenant t
        node n 2
        job A gpus=1 limit=9 grace=3
        job B gpus=1 limit=9 at=1
        cancel A at=2
        job P gpus=1 limit=2 at=3 priority=5
        n/0 AAAAAPP...
        n/1 .BBBBBBBBB
    """,
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_of_preemption(name: str) -> None:
    check_chart(CHARTS[name])


def test_a_suspended_job_goes_on_where_it_was() -> None:
    gantt = check_chart(
        """
        tenant t
        node n 1
        job A gpus=1 cpu=100 memory=100 preemption=suspend
        job P gpus=1 cpu=100 memory=100 limit=2 at=2 priority=5
        n/0 AAPPAA
        """,
        tiers=SUSPENDING,
    )
    (attempt,) = gantt.jobs["A"].attempts
    assert attempt.state is AttemptState.RUNNING


# -- properties, on random towns


def _random_town(seed: int) -> tuple[Town, Job]:
    """A few small nodes, some of them full, and a job that may or may not fit."""
    draw = random.Random(seed)
    town = Town(*(draw.randint(1, 3) for _ in range(draw.randint(1, 3))), cpu_milli=16_000)
    nodes = len(town.cluster.state.nodes)
    for number in range(draw.randint(2, 8)):
        milli = draw.choice((200, 250, 400, 500, 750, 0))
        resources = {"gpu_milli": milli} if milli else {"gpus": 1}
        town.cluster.tick(60_000)
        cpu, tasks = draw.choice((100, 3000, 6000)), min(nodes, draw.choice((1, 1, 1, 2)))
        job = town.submit(f"j{number}", "low", {**resources, "cpu_milli": cpu, "memory_mib": 10}, tasks=tasks)
        town.cluster.cycle()
        if job.live():
            town.cluster.run(job)
        else:
            town.cluster.cancel(town.jobs.pop(f"j{number}"))
    milli, cpu = draw.choice((300, 600, 900, 0)), draw.choice((100, 5000))
    resources = {"gpu_milli": milli} if milli else {"gpus": 1}
    tasks = min(nodes, draw.choice((1, 1, 2, 3)))
    return town, town.submit("claimant", "high", {**resources, "cpu_milli": cpu, "memory_mib": 10}, tasks=tasks)


def _starts(town: Town, claimant: Job, victims: tuple[str, ...]) -> bool:
    plan = Plan(town.cluster.state, Brain(town.cluster.state, town.cluster.settings).fleet)
    for key in victims:
        for attempt in town.cluster.state.jobs[key].live():
            plan.give(attempt.tenant, attempt.slice)
    spec = claimant.spec
    return place_gang(plan, town.ask(claimant), spec.tasks, spec.least_tasks) is not None


def check_random_town(seed: int) -> None:
    town, claimant = _random_town(seed)
    low = [j for j in town.jobs.values() if j.tenant == "low" and j.live()]
    untouchable = random.Random(-seed).choice([*low, None, None])
    may = [j for j in low if j is not untouchable]
    way = town.way(claimant, lambda job: job in may)
    everybody = tuple(j.key for j in may)
    assert (way is not None) == _starts(town, claimant, everybody), "a way is found exactly where there is one"
    if way is None:
        return
    assert set(way.victims) <= set(everybody)
    assert _starts(town, claimant, way.victims), "it starts without them"
    for key in way.victims:
        rest = tuple(k for k in way.victims if k != key)
        assert not _starts(town, claimant, rest), f"{key} need not go"
    if claimant.spec.tasks == 1:
        charge = {j.key: sum(a.slice.charge_milli for a in j.live()) for j in may}
        best = min(
            sum(charge[k] for k in chosen)
            for size in range(len(everybody) + 1)
            for chosen in combinations(everybody, size)
            if _starts(town, claimant, chosen)
        )
        assert sum(charge[k] for k in way.victims) == best, "no other set costs less"


@pytest.mark.parametrize("seed", range(40))
def test_a_way_is_found_where_there_is_one_and_nobody_goes_in_vain(seed: int) -> None:
    check_random_town(seed)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_way_is_found_at_length() -> None:
    for seed in range(40, 1500):
        check_random_town(seed)
