"""The search among buckets: it finds what scoring every place finds, and looks at few."""

from __future__ import annotations

import random
import weakref

import fleet_kit as kit
import numpy as np
import pytest
from fleet_kit import CPU, HALF, WHOLE, share
from hypothesis import given
from hypothesis import strategies as st

from gpushare.core.kinds import GpuState
from gpushare.core.model import GpuCondition, Node, Slice, Stranger, TaskRequest
from gpushare.core.placement import scores as scores_module
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.buckets import NOWHERE, Buckets
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.node_worths import NodeWorths
from gpushare.core.placement.place import place_task
from gpushare.core.placement.policy import INFINITE
from gpushare.core.placement.price_fit import PriceFit, make_tables, site_of
from gpushare.core.placement.scores import Needs, Scores
from gpushare.core.placement.search import MOST_BUCKETS, MOST_LOOKS, NO_PLACE, Found, lowest
from gpushare.core.plan import Plan
from gpushare.core.state import ClusterState
from gpushare.weights import PriceFitWeights

# -- the lowest of many places


def found_in(buckets: dict[int, dict[int, float]], slack: dict[int, float]) -> tuple[Found, int]:
    """`buckets`: by key, the score of each place; bounds lie `slack` below the least of them. And how many looks."""
    score = {place: value for places in buckets.values() for place, value in places.items()}
    looks: list[int] = []

    def look(place: int) -> float:
        looks.append(place)
        return score[place]

    ids = {key: sorted(places) for key, places in buckets.items()}
    return lowest(ids, {}, lambda key: min(buckets[key].values()) - slack.get(key, 0.0), look), len(looks)


SCORES = st.one_of(st.integers(0, 4).map(float), st.just(INFINITE))
BUCKETS = st.lists(st.lists(SCORES, min_size=1, max_size=5), max_size=6)


@given(BUCKETS, st.lists(st.integers(0, 2), min_size=6, max_size=6), st.randoms(use_true_random=False))
def test_the_lowest_score_wins_then_the_lowest_id(rows: list[list[float]], slack: list[int], rng: random.Random):
    ids = list(range(sum(map(len, rows))))
    rng.shuffle(ids)
    buckets = {key: {ids.pop(): value for value in row} for key, row in enumerate(rows)}
    found, _ = found_in(buckets, dict(enumerate(map(float, slack))))
    every = [(value, place) for places in buckets.values() for place, value in places.items() if value < INFINITE]
    assert found == (Found(min(every)[1]) if every else NO_PLACE)


def test_places_that_cannot_be_the_best_are_not_looked_at():
    alike = dict.fromkeys(range(100, 1000), 5.0)
    assert found_in({1: alike, 2: {7: 6.0}}, {}) == (Found(100), 1)
    assert found_in({1: alike, 2: {7: 5.0}}, {}) == (Found(7), 2)


def test_a_search_that_looks_at_too_many_says_that_it_does_not_know():
    loose = dict.fromkeys(range(1000), 5.0)
    assert found_in({1: loose}, {1: 1.0}) == (Found(None, is_sure=False), MOST_LOOKS)
    assert found_in({key: {key: 1.0} for key in range(MOST_BUCKETS + 1)}, {}) == (Found(None, is_sure=False), 0)
    assert found_in({1: dict.fromkeys(range(MOST_LOOKS), INFINITE), 2: {7: INFINITE}}, {})[0] == NO_PLACE


# -- buckets


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(NOWHERE, 3)), max_size=120), st.integers(0, 9))
def test_buckets_follow_each_move(moves: list[tuple[int, int]], at_once: int):
    buckets, expected = Buckets(40), [NOWHERE] * 40
    buckets.by_key()
    for place, key in moves:
        if place < at_once:
            places = np.arange(place, 40, 7)
            buckets.move_all(places, np.full(len(places), key))
            expected[place::7] = [key] * len(places)
        else:
            buckets.move(place, key)
            expected[place] = key
        found = {key: [p for p, at in enumerate(expected) if at == key] for key in set(expected) - {NOWHERE}}
        assert buckets.by_key() == found


# -- the default policy is searched

REQUESTS = [
    *(share(milli, cpu_milli=cpu, memory_mib=2) for milli, cpu in ((100, 900), (250, 300), (400, 2000), (730, 10))),
    share(50, gpu_memory_mib=4000, cpu_milli=100),
    share(300, gpu_memory_mib=100, cpu_milli=100, gpu_model="H100"),
    share(250, node_labels=(("zone", "x"),)),
    TaskRequest(gpu_memory_mib=2500, cpu_milli=500, memory_mib=10),
    TaskRequest(gpu_milli=200),
    TaskRequest(gpus=2, cpu_milli=1500, memory_mib=5),
    TaskRequest(gpus=1, cpu_milli=100, memory_mib=5, gpu_model="A30"),
    TaskRequest(gpus=4),
    TaskRequest(cpu_milli=4000, memory_mib=100),
    WHOLE,
    CPU,
]


def nodes(rng: np.random.Generator, are_alike: bool) -> list[Node]:
    if are_alike:
        return [kit.node(f"n{i:02}", 4, cpu_milli=9_000) for i in range(12)]
    found = [kit.node(f"n{i:02}", int(n), cpu_milli=9_000) for i, n in enumerate(rng.integers(0, 5, size=10))]
    cards = [kit.gpu(f"m-{i}", i, 10_000 + 20_000 * (i % 2), "A30" if i % 2 else "H100") for i in range(4)]
    oversold = [kit.gpu(f"o-{i}", i, capacity_milli=2000 if i else 1000) for i in range(3)]
    found += [kit.node("m", cards, labels={"zone": "x"}), kit.node("o", oversold, cpu_milli=12_000)]
    return found


def changed(rng: np.random.Generator, state: ClusterState) -> None:
    """Something happens to one node that is no job's doing."""
    node = state.nodes[sorted(state.nodes)[int(rng.integers(len(state.nodes)))]]
    kind = rng.integers(3)
    if kind == 0 or not node.gpus:
        node.cordoned = not node.cordoned
    else:
        gpu = node.gpus[sorted(node.gpus)[0]]
        is_well = gpu.condition == GpuCondition(gpu.uuid)
        ill = GpuCondition(gpu.uuid, GpuState.QUARANTINED)
        strange = GpuCondition(gpu.uuid, strangers=(Stranger(1, "eve", 3000),))
        gpu.condition = (ill if kind == 1 else strange) if is_well else GpuCondition(gpu.uuid)
    state.touch(node.name)


def assert_in_step(kept: NodeWorths, fleet: Fleet) -> None:
    fresh = NodeWorths(fleet, kept.tables)
    kept.bring_arrays_in_step()
    for name in ("empty", "charged", "worth", "gone_row"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(fresh, name), err_msg=name)
    assert kept.cards.by_key() == fresh.cards.by_key()
    assert kept.nodes.by_key() == fresh.nodes.by_key()


@pytest.mark.parametrize("are_alike", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_what_scoring_every_place_finds(
    seed: int, are_alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Found] = []

    def noted(*args: object) -> Found:
        searches.append(lowest(*args))  # type: ignore[arg-type]
        return searches[-1]

    monkeypatch.setattr(scores_module, "lowest", noted)
    rng, policy = np.random.default_rng(seed), PriceFit()
    state = kit.cluster(*nodes(rng, are_alike))
    fleet = Fleet(state, policy)
    running: list[Slice] = []
    plan = Plan(state, fleet)
    for step in range(150):
        if step % 30 == 29:
            changed(rng, state)
            running.clear()
            plan = Plan(state, fleet)
        for _ in range(1 if step % 10 else 20):
            request = REQUESTS[int(rng.integers(len(REQUESTS)))]
            policy.learn(request, 1)
            if running and rng.random() < 0.45:
                plan.give("t", running.pop(int(rng.integers(len(running)))))
            scores = fleet.scores.of(request)
            found = scores.best()
            assert found == Scores(fleet, policy, Needs(fleet, request)).best_kept(), f"step {step}: {request}"
            assert found == scores.best_kept()
            placed = place_task(plan, Ask(request))
            if placed is not None:
                running.append(placed)
        assert_in_step(policy.index(fleet), fleet)
    sure = sum(found.is_sure for found in searches)
    assert sure > 150
    assert sure > 0.8 * len(searches)


def test_what_was_kept_under_old_prices_is_forgotten() -> None:
    policy = PriceFit()
    fleet = Fleet(kit.cluster(kit.node("a", 2)), policy)
    fleet.scores.of(HALF).best()
    old = weakref.ref(policy.index(fleet))
    for milli in (100, 300, 700):
        policy.learn(share(milli), 200)
        fleet.scores.of(share(milli)).best()
    assert policy.index(fleet) is not old()
    assert old() is None


def test_a_host_is_never_worth_so_much_that_sums_are_not_exact() -> None:
    fleet = Fleet(kit.cluster(kit.node("a", 0, cpu_milli=256_000, memory_mib=2_000_000)), PriceFit())
    worths = NodeWorths(fleet, make_tables([], site_of(fleet), PriceFitWeights(charge_steps=(0.0, 1 / 3, 0.7, 8.0))))
    assert worths.charged.max() < 2**23


def test_a_node_without_cards_that_opens_late_is_found_for_a_cpu_task() -> None:
    state = kit.cluster(kit.node("a", 2), kit.node("b", 0, cordoned=True))
    fleet = kit.fleet(state, "price_fit")
    assert fleet.names[fleet.scores.of(CPU).best() or 0] == "a"
    state.nodes["b"].cordoned = False
    state.touch("b")
    fleet.refresh()
    assert fleet.names[fleet.scores.of(CPU).best() or 0] == "b"


def test_a_search_that_was_in_vain_is_left_out_for_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def in_vain(*args: object) -> Found:
        asked.append(args)
        return Found(None, is_sure=False)

    monkeypatch.setattr(scores_module, "lowest", in_vain)
    fleet = kit.fleet(kit.cluster(kit.node("a", 2)), "price_fit")
    scores = fleet.scores.of(HALF)
    counts = []
    for _ in range(16):
        assert scores.best() == 0
        counts.append(len(asked))
    assert counts == [1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4]
