"""What tenants may rely on, tried on random clusters: sharing incentive, no envy beyond weights, guarantees, stability,
and that nothing is gained by splitting jobs."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from cluster import user_of
from fair_lab import FairLab, Meter

from gpushare.core.commands import CreateTenant, RawResources
from gpushare.core.cycle import Cycle, Pass
from gpushare.core.events import AttemptsAllocated, AttemptStopRequested
from gpushare.core.kinds import JobState
from gpushare.core.model import TenantSettings

ONE = RawResources(gpus=1)
MINUTE_MS = 60_000


def tenant(lab: FairLab, name: str, **settings: object) -> str:
    lab.must(CreateTenant(tenant=name, settings=TenantSettings(**settings)))  # type: ignore[arg-type]
    return name


def nodes(lab: FairLab, chance: random.Random, most: int) -> int:
    """A few nodes; how many cards they have together."""
    cards = [chance.randint(1, 8) for _ in range(chance.randint(1, most))]
    for number, count in enumerate(cards):
        lab.node(f"n{number}", count)
    return sum(cards)


def guarantees(chance: random.Random, cards: int, tenants: int) -> list[int]:
    """In cards, for so many tenants; together no more than there are."""
    cuts = sorted(chance.randint(0, cards) for _ in range(tenants))
    return [b - a for a, b in zip([0, *cuts], cuts, strict=False)]


# -- sharing incentive, and every guarantee reachable


def check_sharing_incentive(seed: int) -> None:
    """Whoever has a guarantee of g cards and g jobs of one card (or gangs of such) waiting holds g or more after one
    cycle and the grace, whatever others borrow, and whoever else claims at the same time. Borrowers have run for their
    minimum; the grace is used up to its end."""
    chance = random.Random(seed)
    lab = FairLab(checked=False)
    cards = nodes(lab, chance, 4)
    has = guarantees(chance, cards, chance.randint(1, 5))
    for number, count in enumerate(has):
        tenant(lab, f"own{number}", guaranteed_milli=1000 * count, weight=chance.randint(1, 4))
    borrowers = [tenant(lab, f"other{k}", weight=chance.randint(1, 4)) for k in range(chance.randint(1, 3))]
    # Some of the owners borrow, too, or have begun to use what is theirs.
    early = chance.sample([*borrowers, *(f"own{k}" for k in range(len(has)))], chance.randint(1, len(has)))
    for name in early:
        lab.submit(name, chance.randint(1, cards), resources=ONE)
        lab.settle()
        lab.tick(chance.randint(0, MINUTE_MS))
    for name in borrowers:
        lab.submit(name, cards, resources=RawResources(gpu_milli=1000) if chance.random() < 0.3 else ONE)
        lab.settle()
    grace_ms = chance.choice([0, 30_000])
    lab.delay_ms = lambda attempt: grace_ms
    for number in chance.sample(range(len(has)), len(has)):
        left = has[number]
        while left:
            # What the owner has besides could leave a part of its guarantee that no gang fits.
            tasks = chance.randint(1, min(left, 3)) if f"own{number}" not in early else 1
            lab.submit(f"own{number}", resources=ONE, tasks=tasks)
            left -= tasks
    begin_ms = lab.now_ms
    lab.settle()
    lab.go_on(begin_ms + grace_ms)
    for number, count in enumerate(has):
        charge = lab.state.tenants[f"own{number}"].charge_milli
        assert charge >= 1000 * count, f"own{number} holds {charge} of {count} cards"


@pytest.mark.parametrize("seed", range(25))
def test_a_guarantee_with_demand_is_held_after_one_cycle_and_the_grace(seed: int) -> None:
    check_sharing_incentive(seed)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_guarantee_with_demand_is_held_at_length() -> None:
    for seed in range(25, 1000):
        check_sharing_incentive(seed)


# -- no envy


class Envy:
    """Watches passes: who starts something while another, who should have come first, still waits."""

    def __init__(self, lab: FairLab) -> None:
        self.lab = lab
        self.starts = 0

    def __call__(self, cycle: Cycle, found: Pass) -> None:
        state = self.lab.state
        started = [e for e in found.events if isinstance(e, AttemptsAllocated)]
        self.starts += len(started)
        if not started:
            return
        waiting = {job.tenant for key in state.lines for job in [state.jobs[key]] if key not in cycle.started}
        for event in started:
            # As it was when its turn came: without what the pass gave it then and later.
            job = state.jobs[event.job]
            own = cycle.fair.turn(job.tenant).measure
            width = sum(s.charge_milli for s in event.slices) / self.weight(job.tenant)
            for other in waiting - {job.tenant}:
                theirs = cycle.fair.turn(other).measure
                assert own - width <= theirs + 1e-6, f"{job.tenant} at {own} goes before {other} at {theirs}"

    def weight(self, name: str) -> int:
        return self.lab.state.tenants[name].settings.weight


def check_no_envy(seed: int) -> None:
    """Jobs of one card, no guarantees and limits: after a pass in which a tenant started a job while another had one
    waiting, its measure (decayed average + holdings, by weight) is above the other's by no more than that one job. So
    nobody would rather have what another got, each by their weight, but for the one job that made the difference."""
    chance = random.Random(seed)
    lab = FairLab(checked=False, half_life_ms=chance.choice([10, 60, 600]) * MINUTE_MS)
    cards = nodes(lab, chance, 3)
    names = [tenant(lab, f"t{k}", weight=chance.choice([1, 1, 2, 4, 7])) for k in range(chance.randint(2, 5))]
    lab.runs_ms = lambda job: chance.randint(1, 10) * MINUTE_MS
    lab.watch = envy = Envy(lab)
    for _ in range(12):
        for name in chance.sample(names, chance.randint(1, len(names))):
            lab.submit(name, chance.randint(1, cards), who=user_of(name, chance.choice("ab")), resources=ONE)
        lab.settle()
        lab.go_on(lab.now_ms + chance.randint(1, 8) * MINUTE_MS)
    assert envy.starts, "something was looked at"


@pytest.mark.parametrize("seed", range(8))
def test_nobody_envies_anybody_beyond_weights(seed: int) -> None:
    check_no_envy(seed)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_nobody_envies_anybody_at_length() -> None:
    for seed in range(8, 300):
        check_no_envy(seed)


# -- stability


def check_alternating_claims(seed: int, claims: int = 50) -> None:
    """Two owners claim in turn, again and again; what they free goes back to those who wait. No job makes way twice in
    a row for the same job, nor (where others could go instead) for the same tenant, and every claim is met."""
    chance = random.Random(seed)
    lab = FairLab(checked=False)
    cards = nodes(lab, chance, 3) + 2
    lab.node("extra", 2)
    for name in ("red", "blue"):
        tenant(lab, name, guaranteed_milli=1000)
    tenant(lab, "other")
    lab.runs_ms = lambda job: None if job.tenant == "other" else MINUTE_MS
    lab.submit("other", cards, resources=ONE)
    lab.settle()
    preempted: dict[str, list[str]] = {}

    def hear(event: object) -> None:
        if isinstance(event, AttemptStopRequested) and event.claimant:
            preempted.setdefault(lab.state.must_attempt(event.attempt).job_key, []).append(event.claimant)

    lab.heard = hear
    for number in range(claims):
        (job,) = lab.submit(("red", "blue")[number % 2], resources=ONE)
        lab.settle()
        lab.go_on(lab.now_ms + 5000)
        assert job.state is JobState.RUNNING, f"claim {number} is not met"
        lab.go_on(lab.now_ms + chance.randint(1, 2) * MINUTE_MS)
    assert sum(map(len, preempted.values())) >= claims
    for key, claimants in preempted.items():
        for one, other in pairwise(claimants):
            assert one != other, f"{key} makes way twice in a row for {one}"
            if cards > 2:
                assert one.split("/")[0] != other.split("/")[0], f"{key} makes way for {one} and then {other}"


@pytest.mark.parametrize("seed", range(3))
def test_fifty_alternating_claims_take_from_nobody_twice_in_a_row(seed: int) -> None:
    check_alternating_claims(seed)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_alternating_claims_at_length() -> None:
    for seed in range(3, 60):
        check_alternating_claims(seed)


# -- splitting


def _used(seed: int, parts: int) -> tuple[float, int]:
    """What tenant `t` uses on average of a saturated cluster when it splits each of its jobs into `parts`, and the
    longest job in ms."""
    chance = random.Random(seed)
    lab = FairLab(checked=False, half_life_ms=60 * MINUTE_MS)
    cards = nodes(lab, chance, 3) + 1
    lab.node("extra", 1)
    for name in ("t", "u", "v"):
        tenant(lab, name, weight=chance.choice([1, 2, 3]))
    length = {"t": chance.randint(4, 20), "u": chance.randint(1, 20), "v": chance.randint(1, 20)}
    horizon_ms = 120 * MINUTE_MS
    for name, minutes in length.items():
        count = cards * horizon_ms // (minutes * MINUTE_MS) + cards
        lab.submit(name, min(900, count * (parts if name == "t" else 1)), resources=ONE)
    lab.runs_ms = lambda job: length[job.tenant] * MINUTE_MS // (parts if job.tenant == "t" else 1)
    lab.settle()
    meter = Meter(lab)
    lab.go_on(lab.now_ms + horizon_ms)
    return meter.used()["t"], max(length.values()) * MINUTE_MS


def check_splitting(seed: int) -> None:
    """Under saturation, with jobs of one card, a tenant that splits each of its jobs into up to six shorter ones gets
    no more of the cluster over two half-lives than with the long ones, but for half a card and for what the ends of
    jobs leave undecided: the longest job's time on two cards."""
    horizon_ms = 120 * MINUTE_MS
    plain, longest_ms = _used(seed, 1)
    split, _ = _used(seed, random.Random(seed).choice([2, 3, 6]))
    assert split <= plain + 1000 * (0.5 + 2 * longest_ms / horizon_ms), (plain, split)


@pytest.mark.parametrize("seed", range(4))
def test_splitting_jobs_brings_no_larger_share(seed: int) -> None:
    check_splitting(seed)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_splitting_jobs_brings_no_larger_share_at_length() -> None:
    for seed in range(4, 60):
        check_splitting(seed)
