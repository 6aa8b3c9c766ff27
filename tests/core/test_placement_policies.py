"""The learning policies on small clusters: where a task goes, what is learned, and how well they fill."""

from __future__ import annotations

from copy import deepcopy

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
from gpushare.core.placement.price_fit import PriceFit
from gpushare.weights import PriceFitWeights

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
    # 100 from 600 leaves room for a 500, as others ask for; best fit takes it from the 550.
    mix = (kit.share(500),)
    state = kit.cluster(kit.node("a", 2))
    best, learned = Fleet(state, BestFit()), Fleet(state, taught(policy(), *mix))
    for fleet in (best, learned):
        fleet.take(kit.piece("a", "a-0", milli=400))
        fleet.take(kit.piece("a", "a-1", milli=450))
    assert slice_for(best, kit.share(100)).gpu_uuids == ("a-1",)
    assert slice_for(learned, kit.share(100)).gpu_uuids == ("a-0",)


def test_without_a_mix_price_fit_is_best_fit():
    fleet = Fleet(kit.cluster(kit.node("a", 3)), PriceFit())
    fleet.take(kit.piece("a", "a-1", milli=300))
    fleet.take(kit.piece("a", "a-2", milli=500))
    assert put(fleet, kit.share(200)).gpu_uuids == ("a-2",)
    assert put(fleet, kit.share(600)).gpu_uuids == ("a-1",)


@pytest.mark.parametrize(("lean", "rich"), [("a", "b"), ("b", "a")])
def test_cpu_goes_where_it_abounds_and_light_tasks_where_it_is_short(lean: str, rich: str):
    light = TaskRequest(gpus=1, cpu_milli=2_000, memory_mib=100)
    heavy = TaskRequest(gpus=1, cpu_milli=20_000, memory_mib=100)
    cpu = TaskRequest(cpu_milli=6_000, memory_mib=100)
    nodes = kit.node(lean, 4, cpu_milli=24_000), kit.node(rich, 4, cpu_milli=100_000)
    fleet = Fleet(kit.cluster(*nodes), taught(PriceFit(), light, heavy))
    placed = [put(fleet, request).node for request in (light, heavy, cpu)]
    assert placed == [lean, rich, rich]


def test_memory_is_charged_like_cpu():
    light = TaskRequest(gpus=1, cpu_milli=1, memory_mib=2_000)
    heavy = TaskRequest(gpus=1, cpu_milli=1, memory_mib=20_000)
    nodes = kit.node("a", 4, memory_mib=100_000), kit.node("b", 4, memory_mib=24_000)
    fleet = Fleet(kit.cluster(*nodes), taught(PriceFit(), light, heavy))
    assert [put(fleet, request).node for request in (light, heavy)] == ["b", "a"]


def test_a_cpu_task_prefers_a_node_without_cards():
    fleet = Fleet(kit.cluster(kit.node("a", 2), kit.node("b", 0)), taught(PriceFit(), kit.WHOLE))
    assert put(fleet, kit.CPU).node == "b"


def test_nodes_stay_whole_for_a_mix_that_asks_for_whole_nodes():
    wide = TaskRequest(gpus=4, cpu_milli=4, memory_mib=4)
    state = kit.cluster(kit.node("a", 4), kit.node("b", 4), kit.node("c", 2))
    narrow_mix, wide_mix = (Fleet(state, taught(PriceFit(), kit.WHOLE, *w)) for w in ((), (wide,)))
    assert put(narrow_mix, kit.WHOLE).node == "a"
    assert put(wide_mix, kit.WHOLE).node == "c"
    assert [put(wide_mix, wide).node for _ in range(2)] == ["a", "b"]


@LEARNING
def test_equal_places_go_by_the_given_order(policy: type[Fgd | PriceFit]):
    state = kit.cluster(kit.node("a"), kit.node("b"), kit.node("c"))
    fleet = Fleet(state, taught(policy(), kit.WHOLE), order=["c", "a", "b"])
    assert [put(fleet, kit.WHOLE).node for _ in range(3)] == ["c", "a", "b"]


# -- fragmentation by the paper's definition


def test_fgd_scores_by_the_change_of_expected_fragmentation():
    # Popularity 3/4 of shares of 600, 1/4 of whole cards. On one card: F(1000) = 0; with 300 taken, F(700) is 1/4 of
    # 700 (too small for a whole card only); so fragmentation rises by 175.
    mix = (kit.share(600), kit.share(600), kit.share(600), kit.WHOLE)
    fleet = Fleet(kit.cluster(kit.node("a")), taught(Fgd(), *mix, times=64))
    values = fleet.scores.of(kit.share(300))
    values.update()
    assert values.values[0] == -np.floor(100 / (1 + np.exp(0.175)))


def test_fgd_counts_gpu_without_cpu_as_fragments():
    # On either node the share leaves 500; on `a` no CPU is left with it, so all of it is a fragment.
    request = kit.share(500, cpu_milli=1000)
    state = kit.cluster(kit.node("a", 1, cpu_milli=1500), kit.node("b", 1, cpu_milli=4000))
    fleet = Fleet(state, taught(Fgd(), request))
    assert put(fleet, request).node == "b"


def test_fgd_keeps_a_model_for_those_who_ask_for_it():
    rare, common = [kit.gpu("a-0", model="A100")], [kit.gpu("b-0", model="T4")]
    asked = kit.share(500, gpu_model="A100")
    fleet = Fleet(kit.cluster(kit.node("a", rare), kit.node("b", common)), taught(Fgd(), asked))
    assert put(fleet, kit.share(500)).node == "b"


# -- learning as it goes


@LEARNING
def test_the_epoch_moves_with_the_mix(policy: type[Fgd | PriceFit]):
    learner = policy()
    fleet = Fleet(kit.cluster(kit.node("a", 2)), learner)
    put(fleet, kit.HALF)
    before = learner.epoch()
    taught(learner, kit.share(470), times=FIRST_READING_TASKS)
    assert learner.epoch() > before


@LEARNING
def test_a_copy_of_a_policy_decides_the_same_and_learns_apart(policy: type[Fgd | PriceFit]):
    """Each question to the scheduler asks a copy of its own."""
    made = taught(policy(), *PAIRS)
    nodes = (kit.node("a", 4), kit.node("b", 4))
    fleet = Fleet(kit.cluster(*nodes), made)
    other = Fleet(kit.cluster(*nodes), deepcopy(made))
    for request in (*PAIRS, *PAIRS):
        assert put(fleet, request) == put(other, request)
    fleet.scores.of(PAIRS[0]).update()
    before = fleet.scores.of(PAIRS[0]).values.tolist()
    taught(other.policy, kit.share(500, cpu_milli=50_000), times=5_000)
    put(other, PAIRS[1])
    fleet.scores.of(PAIRS[0]).update()
    assert fleet.scores.of(PAIRS[0]).values.tolist() == before


def test_prices_that_hardly_move_do_not_void_what_was_scored():
    learner = PriceFit()
    fleet = Fleet(kit.cluster(kit.node("a", 2)), learner)
    put(fleet, kit.HALF)
    taught(learner, *PAIRS, times=64)
    before = learner.epoch()
    taught(learner, *PAIRS, times=4096)
    assert learner.epoch() == before


def test_a_memory_only_share_is_learned_by_the_cards_of_the_fleet():
    # 2,500 MiB is a quarter of these cards: 250 from 500 leaves one such piece, from 450 a useless 200.
    request = TaskRequest(gpu_memory_mib=2_500, cpu_milli=1, memory_mib=1)
    fleet = Fleet(kit.cluster(kit.node("a", 2)), taught(PriceFit(), request))
    fleet.take(kit.piece("a", "a-0", milli=500))
    fleet.take(kit.piece("a", "a-1", milli=250))
    assert fleet.uuids[fleet.scores.of(kit.share(250)).best()] == "a-0"


@LEARNING
@pytest.mark.parametrize("seed", range(6))
def test_kept_scores_equal_scores_made_anew(policy: type[Fgd | PriceFit], seed: int):
    rng = np.random.default_rng(seed)
    requests = [kit.share(int(m), cpu_milli=int(c)) for m, c in rng.integers(1, 900, size=(6, 2))]
    requests += [kit.WHOLE, TaskRequest(gpus=2, cpu_milli=500, memory_mib=3), kit.CPU]
    sizes = rng.integers(0, 5, size=12)
    state = kit.cluster(*(kit.node(f"n{i:02d}", int(s), cpu_milli=3_000) for i, s in enumerate(sizes)))
    kept = Fleet(state, taught(policy(), *requests))
    learned = taught(policy(), *requests)
    held: list[Slice] = []
    for step in range(60):
        if held and rng.random() < 0.4:
            ended = held.pop(int(rng.integers(len(held))))
            kept.give(ended)
        else:
            undone = kept.checkpoint()
            put(kept, requests[step % len(requests)])
            kept.rollback(undone)
            found = put(kept, requests[int(rng.integers(len(requests)))])
            if found:
                held.append(found)
        request = requests[int(rng.integers(len(requests)))]
        fresh = Fleet(state, learned)
        for line in held:
            fresh.take(line)
        first, second = kept.scores.of(request), fresh.scores.of(request)
        first.update()
        second.update()
        np.testing.assert_array_equal(first.values, second.values)


@LEARNING
def test_the_same_submissions_give_the_same_placements(policy: type[Fgd | PriceFit]):
    def places() -> list[tuple[str, tuple[str, ...]]]:
        rng = np.random.default_rng(3)
        learner = policy()
        fleet = Fleet(kit.cluster(*(kit.node(f"n{i}", 4) for i in range(6))), learner)
        found = []
        for _ in range(150):
            request = PAIRS[int(rng.integers(4))]
            learner.learn(request, 1)
            piece = put(fleet, request)
            found.append((piece.node, piece.gpu_uuids) if piece else ("", ()))
        return found

    assert places() == places()


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        ("odd shares", [kit.share(m, cpu_milli=4_000) for m in (370, 290, 530, 710)]),
        ("short of CPU", [kit.share(m, cpu_milli=c) for m, c in ((500, 1_000), (300, 9_000), (810, 2_000))]
         + [TaskRequest(gpus=1, cpu_milli=c, memory_mib=1) for c in (3_000, 14_000)]),
        ("wide", [kit.WHOLE, kit.share(500), TaskRequest(gpus=4, cpu_milli=8, memory_mib=4), kit.share(250)]),
    ],
)  # fmt: skip
def test_price_fit_fills_at_least_as_well_as_best_fit(name: str, requests: list[TaskRequest]):
    def mean(policy: type[Policy]) -> float:
        totals = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            cpu = 32_000 if name == "short of CPU" else 100_000
            nodes = [kit.node(f"n{i:02d}", 4, cpu_milli=cpu + 40_000 * (i % 2)) for i in range(20)]
            # Submissions of twice what there are cards.
            drawn = [requests[int(i)] for i in rng.integers(len(requests), size=300)]
            totals.append(filled(policy(), drawn, *nodes))
        return float(np.mean(totals))

    assert mean(PriceFit) >= mean(BestFit)


def test_weights_change_what_is_kept():
    # Nobody asks for several cards at once often enough: unless told otherwise, an empty node is nothing special.
    wide = TaskRequest(gpus=4, cpu_milli=4, memory_mib=4)
    state = kit.cluster(kit.node("a", 4), kit.node("b", 2))
    mix = (kit.WHOLE,) * 60 + (wide,)
    usual, told = PriceFit(), PriceFit(PriceFitWeights(wide_part_min=0.0))
    assert put(Fleet(state, taught(usual, *mix, times=20)), kit.WHOLE).node == "a"
    assert put(Fleet(state, taught(told, *mix, times=20)), kit.WHOLE).node == "b"
