"""Random clusters with everything switched on, to the end: ledgers hold after each decision, nothing idles that could
be used, guarantees are taken back, nobody who must not is touched, and every job that can run does."""

from __future__ import annotations

import random
import sys
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from cluster import card, raw_job, user_of
from fair_lab import SUSPENDING, FairLab
from room_oracle import Oracle

from gpushare.core.commands import (
    CancelJob,
    CordonNode,
    CoreSettings,
    CreateReservation,
    CreateTenant,
    DeclareNodeDead,
    NodeSessionClosed,
    Outcome,
    RawResources,
    SubmitJobs,
    UncordonNode,
)
from gpushare.core.cycle import Cycle, Pass
from gpushare.core.events import (
    AttemptStopRequested,
    AttemptSuspendRequested,
    CapacityHeld,
    HoldReleased,
    JobEnded,
)
from gpushare.core.kinds import AttemptState, DependencyKind, JobState, OnTaskFailure, PreemptionMode, Qos, Topology
from gpushare.core.model import Dependency, Job, TenantSettings
from gpushare.core.promises import is_kept_free
from gpushare.core.reservations import window
from gpushare.core.waiting import line_key
from gpushare.reasons import Reason

MINUTE_MS = 60_000
# Of every job: how long it may run, and its grace.
LONGEST_MS = 12 * MINUTE_MS
GRACE_MS = 20_000
BUSY_MS = 60 * MINUTE_MS
# How long the cycle may look for jobs to make way: the pause between two searches of a line, twice.
SEARCH_MS = 2_000
NEVER = {Reason.TENANT_LIMIT_NEVER, Reason.QUOTA_NEVER}


class Story:
    """One random cluster and what happens to it for an hour; then all nodes are back, and all runs to its end."""

    def __init__(self, seed: int, jobs: int) -> None:
        self.chance = chance = random.Random(seed)
        self.settings = CoreSettings(
            starvation_after_ms=10 * MINUTE_MS,
            min_run_ms=chance.choice([0, 0, MINUTE_MS]),
            infra_retries=100,
            backfill_depth=chance.choice([1, 1, 3]),
        )
        self.lab = FairLab(settings=self.settings, half_life_ms=20 * MINUTE_MS)
        self.lab.delay_ms = lambda attempt: chance.randint(0, GRACE_MS)
        self.lab.runs_ms = lambda job: chance.randint(1000, LONGEST_MS)
        self.lab.watch, self.lab.heard = self.look, self.hear
        self.cards: dict[str, tuple[object, ...]] = {}
        self.quiet_ms = self.lab.now_ms + BUSY_MS
        # (claimant, victim) -> since when the one could have had the other make way.
        self.owed: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        self._victims: dict[str, str] = {}
        self._numbers = count()
        self._make_nodes()
        self._make_tenants()
        for _ in range(jobs):
            self.lab.after(int(chance.random() ** 2 * BUSY_MS * 0.7), self._submit)
        for what, most in ((self._cancel, 6), (self._drain, 2), (self._silence, 2), (self._reserve, 3)):
            for _ in range(chance.randint(0, most)):
                self.lab.after(chance.randint(0, BUSY_MS * 8 // 10), what)

    # -- the cluster

    def _make_nodes(self) -> None:
        for number in range(self.chance.randint(2, 4)):
            name, model = f"n{number}", self.chance.choice(["H100", "H100", "A100"])
            tiers = {"tiers": SUSPENDING} if self.chance.random() < 0.8 else {}
            cards = range(self.chance.randint(1, 4))
            self.cards[name] = tuple(card(f"GPU-{name}-{i}", i, 80_000, model, **tiers) for i in cards)
            self.lab.node(name, 0)
            self._back(name)

    def _back(self, name: str) -> None:
        self.lab.sync(name, gpus=self.cards[name], cpu_milli=16_000 * max(1, len(self.cards[name])))

    def _make_tenants(self) -> None:
        chance = self.chance
        cards = sum(map(len, self.cards.values()))
        self.tenants: list[str] = []
        left = cards
        for number in range(chance.randint(2, 5)):
            parent = chance.choice(["", "", *self.tenants])
            own = 0 if parent else chance.choice([0, 1, 1, 2])
            own = min(own, left)
            left -= own
            settings = TenantSettings(
                parent=parent,
                guaranteed_milli=1000 * own,
                weight=chance.choice([1, 1, 2, 4]),
                limit_milli=chance.choice([None, None, None, 1000 * max(2, own), 1000 * (own + 3)]),
                max_running_jobs=chance.choice([None, None, None, 4]),
                max_running_per_user=chance.choice([None, None, None, 3]),
                min_run_ms=chance.choice([None, None, 0, 2 * MINUTE_MS]),
            )
            name = f"t{number}"
            if isinstance(self.lab.do(CreateTenant(tenant=name, settings=settings)), Outcome):
                self.tenants.append(name)

    # -- what happens

    def _submit(self) -> None:
        chance = self.chance
        name, who = chance.choice(self.tenants), chance.choice(["ann", "bob"])
        kind = chance.random()
        milli = chance.choice([100, 250, 500, 800])
        # Little CPU, so that a suspended job may keep it; or what follows from the share.
        host = {"cpu_milli": 200, "memory_mib": 500} if chance.random() < 0.8 else {}
        resources = RawResources(gpus=0, cpu_milli=chance.choice([1000, 8000]))
        if kind < 0.5:
            resources = RawResources(gpu_milli=milli, gpu_model=chance.choice(["", "", "H100"]), **host)
        elif kind < 0.9:
            resources = RawResources(gpus=chance.choice([1, 1, 1, 2, 3]), **host)
        tasks = chance.choice([1, 1, 1, 1, 2, 3])
        known = [j.key for j in self.lab.state.jobs.values()]
        after = ()
        if known and chance.random() < 0.15:
            after = (Dependency(chance.choice(known), chance.choice(list(DependencyKind))),)
        array = tuple(range(chance.randint(2, 5))) if tasks == 1 and chance.random() < 0.15 else ()
        job = {
            "resources": resources,
            "tasks": tasks,
            "min_tasks": chance.choice([0, 0, 1]) if tasks > 1 else 0,
            "topology": chance.choice([Topology.ANY, Topology.ANY, Topology.NODE]),
            "priority": chance.choice([0, 0, 0, 5]),
            "qos": Qos.GUARANTEED if chance.random() < 0.1 else Qos.BURST,
            "preemption": chance.choice([*PreemptionMode, PreemptionMode.SUSPEND]),
            "on_task_failure": chance.choice(list(OnTaskFailure)),
            "max_run_ms": chance.randint(1, LONGEST_MS // MINUTE_MS) * MINUTE_MS,
            "grace_ms": GRACE_MS,
            "after": after,
            "array_indexes": array,
            "array_max_running": chance.choice([0, 1, 2]) if array else 0,
            "start_within_ms": 30 * MINUTE_MS if chance.random() < 0.05 else None,
        }
        self.lab.do(SubmitJobs(tenant=name, jobs=(raw_job(**job),)), user_of(name, who))

    def _cancel(self) -> None:
        open_jobs = [j for j in self.lab.state.jobs.values() if not j.is_ended]
        if open_jobs:
            job = self.chance.choice(open_jobs)
            self.lab.do(CancelJob(job=job.key), user_of(job.tenant, job.created_by.user))

    def _drain(self) -> None:
        name = self.chance.choice(sorted(self.cards))
        self.lab.must(CordonNode(node=name, drain=True))
        self.lab.after(self.chance.randint(1, 10) * MINUTE_MS, lambda: self.lab.must(UncordonNode(node=name)) and None)

    def _silence(self) -> None:
        name = self.chance.choice(sorted(self.cards))
        if self.lab.state.nodes[name].ready:
            self.lab.must(NodeSessionClosed(node=name))
            self.lab.silence(name)
            if self.chance.random() < 0.3:
                self.lab.must(DeclareNodeDead(node=name))
            self.lab.after(self.chance.randint(1, 5) * MINUTE_MS, lambda: self._return(name))

    def _return(self, name: str) -> None:
        """The agent comes back and tells what still runs there."""
        self._back(name)
        for attempt in self.lab.state.live_attempts(self.lab.state.nodes[name]):
            if attempt.suspended_ms is None:
                self.lab.report(attempt, AttemptState.RUNNING, started_ms=attempt.started_ms or self.lab.now_ms)
            else:
                self.lab.report(attempt, AttemptState.SUSPENDED)

    def _reserve(self) -> None:
        chance, now_ms = self.chance, self.lab.now_ms
        maintenance = chance.random() < 0.3
        node = chance.choice(sorted(self.cards))
        start_ms = now_ms + chance.randint(0, 10) * MINUTE_MS
        self.lab.do(
            CreateReservation(
                name=f"r{next(self._numbers)}",
                tenant="" if maintenance else chance.choice(self.tenants),
                maintenance=maintenance,
                nodes=(node,) if maintenance else (),
                gpus=None if maintenance else 1,
                start_ms=start_ms,
                end_ms=min(start_ms + chance.randint(1, 10) * MINUTE_MS, self.quiet_ms),
                force=True,
            )
        )

    # -- what must hold

    def hear(self, event: object) -> None:
        state, now_ms = self.lab.state, self.lab.now_ms
        if isinstance(event, AttemptStopRequested | AttemptSuspendRequested) and event.claimant:
            attempt = state.must_attempt(event.attempt)
            victim = state.jobs[attempt.job_key]
            assert victim.spec.qos is Qos.BURST, f"{victim.key} is guaranteed"
            assert victim.preempted_for != event.claimant, f"{victim.key} makes way twice in a row for {event.claimant}"
            told = [a.desired_stop or a.desired_suspend or a.suspended_ms is not None for a in victim.live()]
            assert all(told), f"{victim.key} makes way in part"
            own = state.tenants[victim.tenant].settings.min_run_ms
            since_ms = min(a.held_since_ms or a.started_ms or a.allocated_ms for a in victim.live())
            assert now_ms - since_ms >= (self.settings.min_run_ms if own is None else own)
        elif isinstance(event, CapacityHeld) and is_kept_free(event.hold):
            assert sum(map(is_kept_free, state.holds.values())) == 1, "one place at a time is kept free"
            self.kept[event.hold.job] = now_ms
        elif isinstance(event, HoldReleased):
            self.kept.pop(event.job, None)
        elif isinstance(event, JobEnded):
            assert event.reason is not Reason.INTERNAL, event.detail

    def look(self, cycle: Cycle, found: Pass) -> None:
        self._look_at_kept_places()
        if found.events or found.more:
            return
        oracle = Oracle(self.lab.state, cycle.claims.values(), self.lab.now_ms)
        assert oracle.could_start() == [], "nothing waits that could start"
        owed = oracle.could_reclaim(self.settings.min_run_ms)
        self.owed = {key: self.owed.get(key, self.lab.now_ms) for key, _ in owed}
        late = {key for key, since_ms in self.owed.items() if self.lab.now_ms - since_ms > SEARCH_MS}
        assert not late, f"{sorted(owed)}: nobody was told to make way"

    def _look_at_kept_places(self) -> None:
        """From the moment on at which a place is kept free for a job, it starts once all that ran by then has ended."""
        state = self.lab.state
        for key, since_ms in list(self.kept.items()):
            if key not in state.holds:
                del self.kept[key]
            elif since_ms >= self.quiet_ms:
                waited_ms = self.lab.now_ms - since_ms
                assert waited_ms <= LONGEST_MS + GRACE_MS, f"a place is kept free for {key} since {waited_ms} ms"

    def play(self) -> int:
        """The number of events. Every job that can ever run has ended, in the time that is stated."""
        self.lab.settle()
        self.lab.go_on(self.quiet_ms)
        for name in self.cards:
            self.lab.must(UncordonNode(node=name))
            if not self.lab.state.nodes[name].ready:
                self._return(name)
        self.lab.settle()
        state = self.lab.state
        assert not [r for r in state.reservations.values() if window(r, self.lab.now_ms + 1)]
        waiting = len([j for j in state.jobs.values() if not j.is_ended])
        # Each in its turn waits for the longest of those before it; at worst one after the other.
        bound_ms = self.settings.starvation_after_ms + (waiting + 1) * (LONGEST_MS + GRACE_MS + MINUTE_MS)
        self.lab.go_on(self.quiet_ms + bound_ms)
        left = {j.key for j in state.jobs.values() if not j.is_ended}
        assert left == self._never(left), f"{sorted(left)} did not run"
        return state.seq

    def _never(self, left: set[str]) -> set[str]:
        """Of the jobs that are left: those that no waiting helps, and those that wait for them."""
        waits = self.lab.last_pass.waits
        never: set[str] = set()
        empty = Oracle(self.lab.state, (), self.lab.now_ms)
        for key in left:
            job = self.lab.state.jobs[key]
            if job.state is JobState.QUEUED and (waits.get(line_key(job)) in NEVER or not empty.could_ever_fit(job)):
                never.add(key)
        while more := {k for k in left - never if self._waits_for(self.lab.state.jobs[k], never)}:
            never |= more
        return never

    def _waits_for(self, job: Job, others: set[str]) -> bool:
        keys = {k for d in job.spec.after for k in self.lab.state.arrays.get(d.job, [d.job])}
        return job.state is JobState.QUEUED and bool(keys & others)


@pytest.mark.parametrize("seed", range(10))
def test_ten_random_clusters_to_their_end(seed: int) -> None:
    assert Story(seed, 60).play() > 150


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_two_hundred_random_clusters_to_their_end(part: int) -> None:
    for seed in range(10 + part, 210, 4):
        Story(seed, 80).play()
