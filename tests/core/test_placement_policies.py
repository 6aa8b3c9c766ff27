"""The learning policies on small clusters: where a task goes, what is learned, and that both fill better than best fit."""

from __future__ import annotations

import fleet_kit as kit
import numpy as np
import pytest
from gpushare.core.model import Slice, TaskRequest
from gpushare.core.placement.best_fit import BestFit
from gpushare.core.placement.card_prices import best_fillings, piece_prices
from gpushare.core.placement.fgd import Fgd
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.mix import FIRST_READING_TASKS, MOST_CLASSES, JobMix
from gpushare.core.placement.policy import Policy
from gpushare.core.placement.price_fit import PriceFit, PriceFitWeights

LEARNING = pytest.mark.parametrize("policy", [Fgd, PriceFit])

# Shares that fill a card only together: 700 + 300 and 600 + 400.
PAIRS = tuple(kit.share(milli) for milli in (700, 600, 400, 300))


def slice_for(fleet: Fleet, request: TaskRequest) -> Slice | None:
    """The best place of one task, as a slice; every card of these clusters has 10,000 MiB."""
    place = fleet.scores.of(request).best()
    if place is None:
        return None
    cpu, memory = request.cpu_milli or 0, request.memory_mib or 0
    if request.is_share:
        milli = request.gpu_milli or 0
        return kit.piece(
            fleet.names[int(fleet.node_of[place])], fleet.uuids[place], milli=milli, cpu=cpu, memory=memory
        )
    first = int(fleet.first_card[place])
    free = [c for c in range(first, first + int(fleet.card_count[place])) if not fleet.holders[c]]
    uuids = [fleet.uuids[c] for c in free[: request.gpus]]
    return kit.piece(fleet.names[place], *uuids, milli=1000 if uuids else 0, cpu=cpu, memory=memory)


def put(fleet: Fleet, request: TaskRequest) -> Slice | None:
    found = slice_for(fleet, request)
    if found is not None:
        fleet.take(found)
    return found


def taught(policy: Policy, *mix: TaskRequest, times: int = 200) -> Policy:
    """`policy` after many submissions of this mix, in turn."""
    for _ in range(times):
        for request in mix:
            policy.learn(request, 1)
    return policy


def filled(policy: Policy, requests: list[TaskRequest], *nodes: object) -> float:
    """Submit each once; the part of all cards that is in use when every one was tried."""
    fleet = Fleet(kit.cluster(*nodes), policy)  # type: ignore[arg-type]
    used = 0
    for request in requests:
        policy.learn(request, 1)
        found = put(fleet, request)
        used += found.charge_milli if found else 0
    return used / (1000 * len(fleet.uuids))


# -- prices


def test_a_piece_is_worth_its_part_of_the_fillings_that_the_mix_can_make():
    # Two 470s share a card (60 is lost with them), an 810 has one to itself, and there is plenty of both.
    prices = piece_prices(np.array([470, 810, 1000]), np.array([1.0, 0.5, 0.2]))
    assert prices == pytest.approx([500.0, prices[1], 1000.0], abs=35)
    assert prices[1] > 800


def test_a_size_of_which_there_is_too_much_earns_nothing_for_the_piece_beside_it():
    # 190 fits beside 810, but there are far more such pieces than tasks of 150.
    prices = piece_prices(np.array([150, 810]), np.array([0.01, 1.1]))
    assert prices[1] == pytest.approx(1000.0, abs=1)
    assert prices[0] == pytest.approx(0.0, abs=1)


@pytest.mark.parametrize("seed", range(8))
def test_prices_bound_every_filling_and_are_reached_by_one(seed: int):
    rng = np.random.default_rng(seed)
    sizes = np.unique(rng.integers(20, 1001, size=12))
    supply = rng.random(len(sizes))
    supply *= 1.2 * 1000 / float(supply @ sizes)
    prices = piece_prices(sizes, supply)
    assert best_fillings(sizes, prices[None, :], 1000)[0, 1000] == pytest.approx(1000.0, abs=0.5)
    assert (prices >= 0).all()


def test_best_fillings_agree_with_trying_all_counts():
    sizes, values = np.array([3, 7, 12]), np.array([[2.0, 6.5, 11.0], [1.0, 0.0, -4.0]])
    best = best_fillings(sizes, values, 40)
    for row, value in enumerate(values):
        for top in range(41):
            tried = max(
                a * value[0] + b * value[1] + c * value[2]
                for a in range(14)
                for b in range(6)
                for c in range(4)
                if 3 * a + 7 * b + 12 * c <= top
            )
            assert best[row, top] == pytest.approx(max(0.0, tried))


# -- the mix


def test_the_mix_is_due_after_the_first_tasks_then_after_as_many_again():
    mix = JobMix(1024)
    due = []
    for seen in range(1, 200):
        mix.learn(kit.HALF, 1)
        if mix.is_due:
            due.append(seen)
            mix.read(10_000)
    assert due == [FIRST_READING_TASKS, 2 * FIRST_READING_TASKS, 4 * FIRST_READING_TASKS]


def test_old_requests_fade_and_the_mix_stays_bounded():
    mix = JobMix(1024)
    for _ in range(1024):
        mix.learn(kit.share(300), 1)
    for _ in range(20):
        for _ in range(1024):
            mix.learn(kit.share(700), 1)
        classes = mix.read(10_000)
    weights = {c.milli: c.weight for c in classes}
    assert weights.get(300, 0.0) < 0.01 * weights[700]
    for cpu in range(3 * MOST_CLASSES):
        mix.learn(kit.share(500, cpu_milli=cpu), 1)
    assert len(mix.read(10_000)) <= MOST_CLASSES


def test_one_large_job_does_not_hide_everybody_else():
    mix = JobMix(1024)
    for _ in range(64):
        mix.learn(kit.share(300), 1)
    mix.learn(kit.share(700), 100_000)
    weights = {c.milli: c.weight for c in mix.read(10_000)}
    assert weights == {300: 64.0, 700: 64.0}


def test_a_share_by_memory_counts_as_its_part_of_a_card():
    mix = JobMix(1024)
    mix.learn(TaskRequest(gpu_memory_mib=2500), 1)
    mix.learn(TaskRequest(gpu_milli=100, gpu_memory_mib=2500), 1)
    assert [(c.gpus, c.milli, c.cpu_milli) for c in mix.read(10_000)] == [(1, 250, 0), (1, 250, 0)]


# -- where a task goes


@LEARNING
def test_a_share_completes_a_card_that_the_mix_can_fill(policy: type[Fgd | PriceFit]):
    fleet = Fleet(kit.cluster(kit.node("a", 3)), taught(policy(), *PAIRS))
    fleet.take(kit.piece("a", "a-0", milli=700))
    fleet.take(kit.piece("a", "a-1", milli=600))
    assert put(fleet, kit.share(400)).gpu_uuids == ("a-1",)
    assert put(fleet, kit.share(300)).gpu_uuids == ("a-0",)


@LEARNING
def test_a_share_leaves_a_piece_that_the_mix_can_use(policy: type[Fgd | PriceFit]):
    # After 300 the one card has 300 left, which is asked for, the other 250, which nobody asks for: best fit's choice.
    requests = (kit.share(300), kit.share(700))
    state = kit.cluster(kit.node("a", 2))
    best, learned = Fleet(state, BestFit()), Fleet(state, taught(policy(), *requests))
    for fleet in (best, learned):
        fleet.take(kit.piece("a", "a-0", milli=400))
        fleet.take(kit.piece("a", "a-1", milli=450))
    assert slice_for(best, kit.share(300)).gpu_uuids == ("a-1",)
    assert slice_for(learned, kit.share(300)).gpu_uuids == ("a-1" if policy is Fgd else "a-1",)
