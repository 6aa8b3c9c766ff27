"""Shares over time, on synthetic tenants: weights, half-lives, guarantees within a cycle and the grace, users."""

from __future__ import annotations

import random

import pytest
from cluster import user_of
from fair_lab import FairLab, Meter

from gpushare.core.commands import CreateTenant, RawResources
from gpushare.core.fairshare import FairShare
from gpushare.core.kinds import JobState
from gpushare.core.model import Job, TenantSettings
from gpushare.core.order import Order
from gpushare.core.quota import QuotaTree

MINUTE_MS = 60_000
ONE = RawResources(gpus=1)


def lab_of(cards: int, half_life_ms: int, **tenants: TenantSettings) -> FairLab:
    lab = FairLab(half_life_ms=half_life_ms, checked=False)
    for name, settings in tenants.items():
        lab.must(CreateTenant(tenant=name, settings=settings))
    for number in range(cards // 8 + bool(cards % 8)):
        lab.node(f"n{number}", min(8, cards - 8 * number))
    return lab


def forget_ended(lab: FairLab) -> None:
    """So that a long run stays quick."""
    from gpushare.core.commands import Housekeep

    lab.must(Housekeep(archive_before_ms=lab.now_ms + 1, most=10_000))


def keep_supplied(lab: FairLab, tenants: list[tuple[str, str]], queued: int, until_ms: int) -> None:
    """Each (tenant, user) always has so many jobs of one card waiting."""

    def top_up() -> None:
        for tenant, user in tenants:
            mine = [j for j in lab.state.jobs.values() if (j.tenant, j.created_by.user) == (tenant, user)]
            lack = queued - sum(j.state is JobState.QUEUED for j in mine)
            if lack > 0:
                lab.submit(tenant, lack, who=user_of(tenant, user), resources=ONE)
        forget_ended(lab)
        if lab.now_ms + MINUTE_MS <= until_ms:
            lab.after(MINUTE_MS, top_up)

    top_up()
    lab.settle()


@pytest.mark.parametrize("seed", [1, 2])
def test_weights_one_two_four_get_charge_in_these_parts(seed: int) -> None:
    """Within 2 % of its due for each, over one half-life under saturation, from an empty history on."""
    half_life_ms = 120 * MINUTE_MS
    lab = lab_of(14, half_life_ms, **{f"w{w}": TenantSettings(weight=w) for w in (1, 2, 4)})
    chance = random.Random(seed)
    lab.runs_ms = lambda job: chance.randint(2 * MINUTE_MS, 10 * MINUTE_MS)
    begin_ms = lab.now_ms
    keep_supplied(lab, [("w1", "ann"), ("w2", "ann"), ("w4", "ann")], 16, begin_ms + 2 * half_life_ms)
    meter = Meter(lab)
    for half_life in (1, 2):
        meter.begin()
        lab.go_on(begin_ms + half_life * half_life_ms)
        used = meter.used()
        assert sum(used.values()) > 13_900, "no card idles"
        for weight in (1, 2, 4):
            due = sum(used.values()) * weight / 7
            assert abs(used[f"w{weight}"] - due) <= 0.02 * due, used


def test_what_one_had_alone_others_get_back() -> None:
    """A tenant that was alone for a half-life gets less than half until the average is even, and never nothing."""
    half_life_ms = 60 * MINUTE_MS
    lab = lab_of(8, half_life_ms, early=TenantSettings(), late=TenantSettings())
    lab.runs_ms = lambda job: 3 * MINUTE_MS
    begin_ms = lab.now_ms
    keep_supplied(lab, [("early", "ann")], 10, begin_ms + 6 * half_life_ms)
    lab.go_on(begin_ms + half_life_ms)
    keep_supplied(lab, [("late", "bob")], 10, begin_ms + 6 * half_life_ms)
    meter = Meter(lab)
    lab.go_on(begin_ms + 2 * half_life_ms)
    used = meter.used()
    assert used["early"] < used["late"]
    lab.go_on(begin_ms + 5 * half_life_ms)
    meter.begin()
    lab.go_on(begin_ms + 6 * half_life_ms)
    used = meter.used()
    assert abs(used["early"] - used["late"]) < 0.05 * used["late"]


@pytest.mark.parametrize("grace_ms", [0, 20_000])
def test_a_guarantee_is_met_within_one_cycle_and_the_grace(grace_ms: int) -> None:
    """From the owner's submission; every borrower uses all of its grace."""
    lab = lab_of(24, 3_600_000, own=TenantSettings(guaranteed_milli=16_000), other=TenantSettings())
    lab.delay_ms = lambda attempt: grace_ms
    lab.submit("other", 24, resources=ONE, grace_ms=grace_ms)
    lab.settle()
    assert lab.state.tenants["other"].charge_milli == 24_000
    lab.tick(MINUTE_MS)
    lab.submit("own", 20, resources=ONE)
    submitted_ms = lab.now_ms
    lab.settle()
    lab.go_on(submitted_ms + grace_ms)
    assert lab.state.tenants["own"].charge_milli == 16_000
    assert lab.state.tenants["other"].charge_milli == 8_000


def test_a_borrower_is_not_touched_before_its_minimum_run_time() -> None:
    min_run_ms = 10 * MINUTE_MS
    lab = lab_of(4, 3_600_000, own=TenantSettings(guaranteed_milli=4_000), other=TenantSettings(min_run_ms=min_run_ms))
    for _ in range(4):
        lab.submit("other", 1, resources=ONE)
        lab.settle()
        lab.tick(MINUTE_MS)
    told: dict[str, int] = {}
    begun = {j.key: j.live()[0].started_ms or 0 for j in lab.state.jobs.values()}
    lab.heard = lambda event: (
        told.setdefault(lab.state.must_attempt(event.attempt).job_key, lab.now_ms)
        if type(event).__name__ == "AttemptStopRequested"
        else None
    )
    lab.submit("own", 4, resources=ONE)
    lab.settle()
    lab.go_on(lab.now_ms + 2 * min_run_ms)
    assert told == {key: since + min_run_ms for key, since in begun.items()}, "each at once when its time is over"
    assert lab.state.tenants["own"].charge_milli == 4_000


def test_of_three_users_one_with_a_large_array_the_others_start_next() -> None:
    """The other two's jobs are next; over the half-life the three shares are within 5 % of each other."""
    half_life_ms = 120 * MINUTE_MS
    lab = lab_of(12, half_life_ms, t=TenantSettings())
    chance = random.Random(3)
    lab.runs_ms = lambda job: chance.randint(MINUTE_MS, 3 * MINUTE_MS)
    begin_ms = lab.now_ms
    (first, *_) = lab.submit("t", who=user_of("t", "ann"), resources=ONE, array_indexes=tuple(range(500)))
    lab.settle()
    assert lab.state.tenants["t"].people["ann"].running_jobs == 12
    started: list[str] = []
    lab.heard = lambda event: (
        started.append(lab.state.jobs[event.job].created_by.user)
        if type(event).__name__ == "AttemptsAllocated"
        else None
    )
    keep_supplied(lab, [("t", "bob"), ("t", "cid")], 12, begin_ms + half_life_ms)
    lab.go_on(begin_ms + 4 * MINUTE_MS)
    assert set(started[:8]) == {"bob", "cid"}, "what comes free is theirs first"
    meter = Meter(lab, by_user=True)
    meter._from_ms, meter._before = begin_ms, {}
    lab.go_on(begin_ms + half_life_ms)
    used = meter.used()
    assert first.array_id
    assert max(used.values()) - min(used.values()) <= 0.05 * max(used.values()), used


def test_a_larger_share_counts_as_what_it_is_charged() -> None:
    """All memory of a card with a tenth of its compute is the whole card: who asks so has no more than others."""
    half_life_ms = 60 * MINUTE_MS
    lab = lab_of(8, half_life_ms, memory=TenantSettings(), whole=TenantSettings())
    lab.runs_ms = lambda job: 4 * MINUTE_MS
    begin_ms = lab.now_ms
    lab.submit("memory", 400, resources=RawResources(gpu_milli=100, gpu_memory_mib=81559))
    lab.submit("whole", 400, resources=ONE)
    lab.settle()
    meter = Meter(lab)
    lab.go_on(begin_ms + half_life_ms)
    used = meter.used()
    assert abs(used["memory"] - used["whole"]) <= 0.02 * used["whole"]


def test_the_order_of_one_pass_is_that_of_the_measures() -> None:
    """Nothing but the order is looked at: tenants, users, and what is waiting, in turn."""
    lab = lab_of(2, 3_600_000, a=TenantSettings(weight=2), b=TenantSettings(), c=TenantSettings(guaranteed_milli=1))
    for tenant, user in (("b", "x"), ("a", "x"), ("a", "y"), ("c", "x"), ("a", "x")):
        lab.submit(tenant, who=user_of(tenant, user), resources=ONE)
    tree = QuotaTree(lab.state)
    order = Order(lab.state, tree, FairShare(lab.state, tree, lab.now_ms), lambda line: False)
    seen = []
    while (cursor := order.first()) is not None:
        job: Job = lab.state.jobs[cursor.job_key]
        seen.append((job.tenant, job.created_by.user))
        tree.add(job, (), ())
        tree.branches[job.tenant].charge_milli += 1000
        order.placed(job, 1000)
    assert seen == [("c", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]
