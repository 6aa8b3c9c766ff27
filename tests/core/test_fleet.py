"""The fleet's arrays: in step with the state, exact under scratch, and never wrong about what is promised."""

from __future__ import annotations

import fleet_kit as kit
import numpy as np
import pytest
from fleet_kit import HALF, WHOLE, share
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpushare.core.kinds import GpuState
from gpushare.core.model import GpuCondition, TaskRequest
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.claims import MAX_STARTS, Booking, Claim, Claims, Owner
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.place import place_task
from gpushare.core.plan import Plan

DYNAMIC = (
    "free_milli", "free_mib", "holders", "stranger_mib", "strangers", "gpu_open", "open", "free_cpu_milli",
    "free_memory_mib", "free_share", "tasks", "node_open", "open_milli", "is_empty", "piece_milli",
)  # fmt: skip


def columns(fleet: Fleet) -> dict[str, list[int]]:
    return {name: getattr(fleet, name).tolist() for name in DYNAMIC}


TENTH = share(100)


# -- in step with the state


def test_a_fleet_follows_what_the_state_touched() -> None:
    state = kit.cluster(kit.node("a", 2), kit.node("b", 1))
    fleet = kit.fleet(state)
    first = kit.run(state, kit.piece("b", "b-0"), 1)
    kit.run(state, kit.piece("a", "a-1", milli=300), 2)
    fleet.refresh()
    assert columns(fleet) == columns(kit.fleet(state))
    assert not state.touched
    kit.end(state, first)
    state.nodes["a"].cordoned = True
    state.nodes["b"].gpus["b-0"].condition = GpuCondition("b-0", GpuState.QUARANTINED)
    state.touched.add("a")
    fleet.refresh()
    assert columns(fleet) == columns(kit.fleet(state))
    assert fleet.open.tolist() == [False, False, False]


def test_scratch_is_forgotten_at_the_next_plan() -> None:
    state = kit.cluster(kit.node("a", 2))
    fleet = kit.fleet(state)
    before = columns(fleet)
    plan = Plan(state, fleet)
    plan.take("t", kit.piece("a", "a-0"))
    assert fleet.free_milli.tolist() == [500, 1000]
    assert columns(Plan(state, fleet).fleet) == before


def test_new_cards_new_nodes_and_new_labels_lay_the_arrays_out_anew() -> None:
    state = kit.cluster(kit.node("b", 1))
    fleet = kit.fleet(state)
    ask = Ask(share(100, node_labels=(("zone", "x"),)))
    assert place_task(Plan(state, fleet), ask) is None
    state.nodes["a"] = kit.node("a", 2, labels={"zone": "x"})
    found = place_task(Plan(state, fleet), ask)
    assert found is not None
    assert found.gpu_uuids == ("a-0",)
    state.nodes["b"].labels = {"zone": "x"}
    state.nodes["a"].gpus["a-2"] = kit.gpu("a-2", 2)
    state.touched.update("ab")
    fleet.refresh()
    assert fleet.uuids == ["a-0", "a-1", "a-2", "b-0"]
    assert fleet.card_count.tolist() == [3, 1]
    found = place_task(Plan(state, fleet), ask._replace(only=frozenset("b")))
    assert found is not None
    assert found.node == "b"


def test_ties_go_by_the_given_order_of_nodes_and_then_by_card() -> None:
    state = kit.cluster(kit.node("a"), kit.node("b", 2), kit.node("c"))
    for order, first in (((), "a-0"), (("c", "b", "a"), "c-0"), (("b",), "b-0")):
        found = place_task(Plan(state, kit.fleet(state, order=order)), Ask(share(100)))
        assert found is not None
        assert found.gpu_uuids == (first,)


OPS = st.lists(
    st.tuples(st.sampled_from(["take", "give", "mark", "back"]), st.integers(0, 5), st.integers(0, 9)), max_size=40
)


@given(OPS)
@settings(max_examples=60, deadline=None)
def test_take_and_give_are_exact_inverses(ops: list[tuple[str, int, int]]) -> None:
    state = kit.cluster(kit.node("a", 2), kit.node("b", 3), kit.node("c", 0))
    for number in range(1, 4):
        kit.run(state, kit.piece("b", f"b-{number - 1}", milli=100 * number), number)
    fleet = kit.fleet(state)
    pieces = [
        kit.piece("a", "a-0", milli=1), kit.piece("a", "a-0", "a-1", milli=1000), kit.piece("b", "b-2", milli=7),
        kit.piece("c", cpu=5), kit.piece("b", "b-0", mib=3), kit.piece("a", "a-1", milli=999, memory=50),
    ]  # fmt: skip
    marks = [(fleet.checkpoint(), columns(fleet))]
    for what, which, back in ops:
        if what == "take":
            fleet.take(pieces[which])
        elif what == "give":
            fleet.give(pieces[which])
        elif what == "mark":
            marks.append((fleet.checkpoint(), columns(fleet)))
        else:
            place = back % len(marks)
            checkpoint, seen = marks[place]
            marks = marks[: place + 1]
            fleet.rollback(checkpoint)
            assert columns(fleet) == seen
    fleet.refresh()
    assert columns(fleet) == columns(kit.fleet(state))


REQUESTS = [
    share(100), share(500), share(900), TaskRequest(gpu_memory_mib=3000), TaskRequest(gpu_milli=250), WHOLE,
    TaskRequest(gpus=2), TaskRequest(gpus=4, cpu_milli=1, memory_mib=1), TaskRequest(), TaskRequest(cpu_milli=30_000),
    share(300, gpu_model="A30|H100"), share(50, min_gpu_memory_mib=20_000),
]  # fmt: skip


@pytest.mark.parametrize("policy", ["best_fit", "consolidate", "spread"])
@pytest.mark.parametrize("seed", range(6))
def test_kept_scores_answer_like_new_ones(policy: str, seed: int) -> None:
    """Takes, gives, roll-backs, passes and ends between two questions: a fleet that is used for long decides as one
    that was made for the question."""
    rng = np.random.default_rng(seed)
    mixed = [kit.gpu(f"m-{i}", i, 10_000 + 20_000 * (i % 2), "A30" if i % 2 else "H100") for i in range(4)]
    state = kit.cluster(kit.node("a", 4), kit.node("b", 2, cpu_milli=40_000), kit.node("m", mixed), kit.node("z", 0))
    kept = kit.fleet(state, policy)
    running = []
    for number in range(1, 120):
        plan = Plan(state, kept)
        checkpoint = plan.checkpoint()
        for _ in range(3):
            place_task(plan, Ask(REQUESTS[int(rng.integers(len(REQUESTS)))]))
        plan.rollback(checkpoint)
        ask = Ask(REQUESTS[int(rng.integers(len(REQUESTS)))])
        found = place_task(plan, ask)
        assert found == place_task(Plan(state, kit.fleet(state, policy)), ask)
        if found is not None:
            running.append(kit.run(state, found, number))
        if running and rng.random() < 0.45:
            kit.end(state, running.pop(int(rng.integers(len(running)))))


def test_compute_may_be_overcommitted_but_memory_and_whole_cards_may_not() -> None:
    plan = kit.plan(kit.node("a", [kit.gpu("a-0", capacity_milli=2000)]))
    thirds = [place_task(plan, Ask(share(600, gpu_memory_mib=3000))) for _ in range(4)]
    assert [p is not None for p in thirds] == [True, True, True, False]
    assert place_task(plan, Ask(WHOLE)) is None
    plan = kit.plan(kit.node("a", [kit.gpu("a-0", capacity_milli=2000)]))
    assert place_task(plan, Ask(WHOLE)) is not None
    assert place_task(plan, Ask(share(1, gpu_memory_mib=1))) is None


def test_load_steers_shares_to_calm_cards_as_far_as_its_weight_goes() -> None:
    state = kit.cluster(kit.node("a", 3))
    kit.run(state, kit.piece("a", "a-0", milli=500))

    def where(weight: float, loads: dict[str, int], request: TaskRequest = TENTH) -> str:
        fleet = kit.fleet(state, load_weight=weight)
        fleet.set_loads(loads)
        found = place_task(Plan(state, fleet), Ask(request))
        assert found is not None
        return found.gpu_uuids[0]

    busy = {"a-0": 90, "a-1": 30}
    assert where(0.0, busy) == "a-0"
    assert where(0.1, busy) == "a-0"
    assert where(1.0, busy) == "a-2"
    assert where(1.0, {"a-0": 24}) == "a-0", "less than one step is calm"
    assert where(1.0, {"a-1": 30, "a-2": 60}) == "a-0"
    assert where(1.0, {"a-1": 90}, WHOLE) == "a-1", "a card that is empty for us is free for a whole task"


# -- claims: the arithmetic of one device, against a walk through every instant

END = 12
AMOUNTS = st.integers(1, 10)
OWNERS = st.sampled_from(["x", "y", "z", "w"])
BOOKINGS = st.lists(st.tuples(AMOUNTS, st.one_of(st.none(), st.integers(1, END)), OWNERS), max_size=4)


def fits_at_each_instant(
    capacity: int, bookings: list[tuple[int, int | None, str]], claims: list[Claim], task: tuple[int, int | None, str]
) -> bool:
    """Whether the task can hold its amount from 0 to its end with every promise to others kept."""
    amount, task_end, owner = task
    for at in range(END if task_end is None else min(END, task_end)):
        total = amount
        for claim in claims:
            is_on = claim.start_ms <= at and (claim.end_ms is None or at < claim.end_ms)
            if is_on and claim.tenant != owner:
                mine = sum(n for n, end, who in bookings if who == claim.tenant and (at == 0 or not end or end > at))
                total += max(0, claim.cards["n", "c"][0] - mine)
        total += sum(n for n, end, _ in bookings if at == 0 or end is None or end > at)
        if total > capacity:
            return False
    return True


@st.composite
def claims_of(draw: st.DrawFn, most: int) -> list[Claim]:
    holders = draw(st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=most, unique=True))
    found = []
    for holder in holders:
        start = draw(st.integers(-2, END - 1))
        ends = draw(st.one_of(st.none(), st.integers(max(1, start + 1), END)))
        found.append(Claim(holder, start, ends, tenant=holder, cards={("n", "c"): (draw(AMOUNTS), 0)}))
    return found


def allows(
    capacity: int, bookings: list[tuple[int, int | None, str]], claims: list[Claim], task: tuple[int, int | None, str]
) -> bool:
    amount, task_end, owner = task
    promised = Claims(claims, 0)
    held = [Booking(Owner(who), {"c": (n, 0)}, (0, 0), end) for n, end, who in bookings]
    short = promised.shortfall("n", held, promised.horizon(task_end), promised.own(Owner(owner)))
    free = capacity - sum(n for n, _, _ in bookings)
    return amount <= free - short.cards.get("c", (0, 0))[0]


TASKS = st.tuples(AMOUNTS, st.one_of(st.none(), st.integers(1, END)), OWNERS)


@given(st.integers(5, 25), BOOKINGS, claims_of(1), TASKS)
@settings(max_examples=400, deadline=None)
def test_one_claim_is_kept_and_nothing_else_is_refused(capacity, bookings, claims, task) -> None:
    assert allows(capacity, bookings, claims, task) == fits_at_each_instant(capacity, bookings, claims, task)


@given(st.integers(5, 25), BOOKINGS, claims_of(3), TASKS)
@settings(max_examples=400, deadline=None)
def test_claims_of_several_holders_are_kept_exactly(capacity, bookings, claims, task) -> None:
    assert allows(capacity, bookings, claims, task) == fits_at_each_instant(capacity, bookings, claims, task)


@given(st.integers(5, 25), st.lists(TASKS, max_size=8), claims_of(3))
@settings(max_examples=150, deadline=None)
def test_what_is_let_in_never_takes_a_promise_away(capacity, tasks, claims) -> None:
    """One after the other: at each instant of each window the claim's rest is there, unless it never was."""
    bookings: list[tuple[int, int | None, str]] = []
    if not all(fits_at_each_instant(capacity, [], claims, (0, None, who)) for who in "xyzw"):
        return
    for task in tasks:
        if allows(capacity, bookings, claims, task):
            bookings.append(task)
            assert fits_at_each_instant(capacity, bookings, claims, (0, None, "w"))


def test_more_starts_than_are_told_apart_are_only_stricter() -> None:
    claims = [Claim(f"c{k}", 10 * k, 10 * k + 5, tenant="x", cards={("n", "c"): (k, 0)}) for k in range(1, 31)]
    promised = Claims(claims, 0)
    assert len(promised.starts) == MAX_STARTS
    last = 10 * MAX_STARTS
    assert promised.horizon(last) == MAX_STARTS - 1
    early = promised.shortfall("n", [], promised.horizon(last), frozenset())
    assert early.cards["c"][0] == MAX_STARTS - 1
    late = promised.shortfall("n", [], promised.horizon(last + 1), frozenset())
    assert late.cards["c"][0] >= 30, "the last start stands for all later ones"


# -- claims on a fleet


def let_in(state, claims: list[Claim], ask: Ask, now_ms: int = 0) -> str | None:
    fleet = kit.fleet(state)
    fleet.set_claims(claims, now_ms)
    found = place_task(Plan(state, fleet), ask)
    return None if found is None else found.gpu_uuids[0] if found.gpu_uuids else found.node


def test_a_hold_is_for_its_job_alone() -> None:
    state = kit.cluster(kit.node("a"))
    hold = Claim("hold", 0, job="t/1", cards={("a", "a-0"): (700, 7000)}, hosts={"a": (10, 10)})
    assert let_in(state, [hold], Ask(HALF, "t", "ann", "t/2")) is None
    assert let_in(state, [hold], Ask(share(300), "t", "ann", "t/2")) == "a-0"
    assert let_in(state, [hold], Ask(HALF, "t", "ann", "t/1")) == "a-0"
    assert let_in(state, [hold], Ask(WHOLE, "t", "ann", "t/1")) == "a-0"
    assert let_in(state, [hold], Ask(WHOLE, "t", "ann", "t/2")) is None


def test_a_job_that_ends_before_the_window_may_use_it_and_its_tenant_may_any_time() -> None:
    state = kit.cluster(kit.node("a"))
    window = Claim("r", 100, 200, tenant="u", users=("bob",), cards={("a", "a-0"): (1000, 10_000)})
    assert let_in(state, [window], Ask(WHOLE, "t", end_ms=100)) == "a-0"
    assert let_in(state, [window], Ask(WHOLE, "t", end_ms=101)) is None
    assert let_in(state, [window], Ask(WHOLE, "t")) is None
    assert let_in(state, [window], Ask(WHOLE, "u", "bob")) == "a-0"
    assert let_in(state, [window], Ask(WHOLE, "u", "eve")) is None
    assert let_in(state, [window], Ask(WHOLE, "t"), now_ms=200) == "a-0", "the window is over"


def test_what_runs_past_the_window_counts_and_what_ends_before_does_not() -> None:
    state = kit.cluster(kit.node("a"))
    kit.run(state, kit.piece("a", "a-0", milli=400), max_run_ms=100)
    window = Claim("r", 100, 200, tenant="u", cards={("a", "a-0"): (500, 5000)})
    assert let_in(state, [window], Ask(share(500), "t")) == "a-0", "400 are free again when the window opens"
    assert let_in(state, [window], Ask(share(501), "t")) is None
    late = kit.cluster(kit.node("a"))
    kit.run(late, kit.piece("a", "a-0", milli=400), max_run_ms=101)
    assert let_in(late, [window], Ask(share(101), "t")) is None
    assert let_in(late, [window], Ask(share(100), "t")) == "a-0"


def test_what_the_holder_runs_is_a_part_of_its_promise() -> None:
    state = kit.cluster(kit.node("a"))
    kit.run(state, kit.piece("a", "a-0", milli=400), tenant="u")
    window = Claim("r", 0, 200, tenant="u", cards={("a", "a-0"): (500, 5000)})
    assert let_in(state, [window], Ask(share(500), "t")) == "a-0"
    assert let_in(state, [window], Ask(share(501), "t")) is None


def test_maintenance_shuts_whole_nodes_for_whoever_would_still_run() -> None:
    state = kit.cluster(kit.node("a", 2), kit.node("b", 0))
    shut = Claim("m", 100, 200, hosts={"a": (0, 0), "b": (0, 0)}, whole_node=True)
    for request in (share(1), WHOLE, kit.CPU):
        assert let_in(state, [shut], Ask(request, "t", end_ms=101)) is None
        assert let_in(state, [shut], Ask(request, "t", end_ms=100)) is not None
        assert let_in(state, [shut], Ask(request, "t"), now_ms=200) is not None


def test_claimed_cpu_and_memory_are_out_of_reach_too() -> None:
    state = kit.cluster(kit.node("a", 1, cpu_milli=1000, memory_mib=1000), kit.node("b", 0, cpu_milli=100))
    hold = Claim("hold", 0, job="t/1", hosts={"a": (600, 0)})
    assert let_in(state, [hold], Ask(TaskRequest(cpu_milli=500, memory_mib=1), "t")) is None
    assert let_in(state, [hold], Ask(share(10, cpu_milli=500), "t")) is None
    assert let_in(state, [hold], Ask(share(10, cpu_milli=400), "t")) == "a-0"
    assert let_in(state, [hold], Ask(TaskRequest(gpus=1, cpu_milli=401), "t")) is None


@pytest.mark.parametrize("seed", range(8))
def test_kept_claims_answer_like_new_ones(seed: int) -> None:
    """Claims come, go and open while jobs are placed: a fleet that is used for long decides as a new one."""
    rng = np.random.default_rng(seed)
    state = kit.cluster(kit.node("a", 4), kit.node("b", 2), kit.node("c", 1))
    kept, claims, running = kit.fleet(state), [], []
    for number in range(1, 90):
        now = number * 10
        if rng.random() < 0.3:
            uuid = f"a-{int(rng.integers(4))}"
            start = now + int(rng.integers(-30, 60))
            amount = int(rng.choice([300, 1000]))
            holder = {"tenant": "u"} if rng.random() < 0.5 else {"job": f"t/{number + 1}"}
            cards = {("a", uuid): (amount, amount * 10), ("b", "b-0"): (100, 1000)}
            claims.append(Claim(f"c{number}", start, start + 100, cards=cards, **holder))
        if rng.random() < 0.1:
            claims.append(Claim(f"m{number}", now + 20, now + 60, hosts={"b": (0, 0)}, whole_node=True))
        claims = [c for c in claims if c.end_ms is not None and c.end_ms > now][-6:]
        plan = Plan(state, kept)
        kept.set_claims(claims, now)
        tenant = str(rng.choice(["t", "u"]))
        limit = int(rng.choice([0, 20, 100]))
        request = REQUESTS[int(rng.integers(len(REQUESTS)))]
        ask = Ask(request, tenant, "ann", f"t/{number}", end_ms=now + limit if limit else None)
        checkpoint = plan.checkpoint()
        place_task(plan, ask)
        plan.rollback(checkpoint)
        found = place_task(plan, ask)
        new = kit.fleet(state)
        new.set_claims(claims, now)
        assert found == place_task(Plan(state, new), ask)
        if found is not None:
            running.append(kit.run(state, found, number, tenant, max_run_ms=now + limit if limit else 0))
        if running and rng.random() < 0.5:
            kit.end(state, running.pop(int(rng.integers(len(running)))))


def test_a_slice_that_is_given_back_no_longer_counts_against_a_claim() -> None:
    state = kit.cluster(kit.node("a"))
    attempts = [kit.run(state, kit.piece("a", "a-0", milli=300), number, max_run_ms=100) for number in (1, 2)]
    fleet = kit.fleet(state)
    fleet.set_claims([Claim("r", 50, 90, tenant="u", cards={("a", "a-0"): (400, 4000)})], 0)
    plan = Plan(state, fleet)
    ask = Ask(share(300), "t")
    assert place_task(plan, ask) is None
    plan.give("t", attempts[1].slice)
    assert place_task(plan, ask) is not None
    assert place_task(plan, Ask(share(1), "t")) is None


def test_cards_given_without_their_host_are_not_counted_as_freed_once_more() -> None:
    """A suspended job keeps CPU and memory: its cards are free at once, and not again at its time limit."""
    state = kit.cluster(kit.node("a"))
    attempt = kit.run(state, kit.piece("a", "a-0", milli=600), max_run_ms=100)
    fleet = kit.fleet(state)
    fleet.set_claims([Claim("r", 100, 200, tenant="u", cards={("a", "a-0"): (700, 7000)})], 0)
    plan = Plan(state, fleet)
    assert place_task(plan, Ask(share(401), "t")) is None
    checkpoint = plan.checkpoint()
    plan.give("t", replace(attempt.slice, cpu_milli=0, memory_mib=0))
    assert place_task(plan, Ask(share(301), "t")) is None
    assert place_task(plan, Ask(share(300), "t")) is not None
    plan.rollback(checkpoint)
    assert place_task(plan, Ask(share(301), "t")) is None
    assert place_task(plan, Ask(share(300), "t")) is not None


def test_a_look_into_the_future_leaves_the_present_as_it_was() -> None:
    state = kit.cluster(kit.node("a"))
    fleet = kit.fleet(state)
    now = [Claim("r", 100, 200, tenant="u", cards={("a", "a-0"): (700, 7000)})]
    for _ in range(3):
        fleet.set_claims(now, 0)
        assert place_task(Plan(state, fleet), Ask(HALF, "t")) is None
        assert place_task(Plan(state, fleet), Ask(HALF, "t", end_ms=100)) is not None
        fleet.set_claims(now, 150)
        assert place_task(Plan(state, fleet), Ask(HALF, "t", end_ms=160)) is None
        fleet.set_claims(now, 200)
        assert place_task(Plan(state, fleet), Ask(HALF, "t")) is not None
        fleet.set_claims([], 300)
        assert place_task(Plan(state, fleet), Ask(WHOLE, "t")) is not None


def test_a_fleet_reads_only_the_cards_of_what_came_and_went_but_all_where_more_changed() -> None:
    state = kit.cluster(kit.node("a", 3), kit.node("b", 2))
    fleet = kit.fleet(state)
    held = [kit.run(state, kit.piece("a", "a-1", milli=300), 1), kit.run(state, kit.piece("b", "b-0"), 2)]
    state.touched.clear()
    for attempt in held:
        state.move(attempt.slice.node, attempt.slice.gpu_uuids)
    # Nobody says so of this card.
    state.nodes["a"].gpus["a-2"].present = False
    fleet.refresh()
    assert fleet.free_milli.tolist() == [1000, 700, 1000, 500, 1000]
    assert fleet.free_share.tolist() == [2700, 1500]
    assert fleet.open.all()
    assert not state.touched
    assert not state.moved
    kit.end(state, held[0])
    state.touched.clear()
    for tell in (lambda: state.move("a", ["a-1"]), lambda: state.touch("a"), lambda: state.move("a", ["a-1"])):
        tell()
    fleet.refresh()
    assert columns(fleet) == columns(kit.fleet(state))


def test_scratch_that_came_true_and_scratch_that_did_not_are_read_again() -> None:
    state = kit.cluster(kit.node("a", 3))
    fleet = kit.fleet(state)
    plan = Plan(state, fleet)
    for card in range(3):
        plan.take("t", kit.piece("a", f"a-{card}", milli=100 * (card + 1)))
    kit.run(state, kit.piece("a", "a-1", milli=200), 1)
    state.touched.clear()
    state.move("a", ["a-1"])
    fleet.refresh()
    assert fleet.free_milli.tolist() == [1000, 800, 1000]
    assert columns(fleet) == columns(kit.fleet(state))
