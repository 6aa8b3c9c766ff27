"""Which place is best, what stands in the way elsewhere, and how gangs stay together."""

from __future__ import annotations

import subprocess
import sys

import fleet_kit as kit
import numpy as np
import pytest
from fleet_kit import CPU, HALF, WHOLE, gpu, node, share

from gpushare.core.capacity import host_need, matches_card, matches_labels, never_fits, share_on, tier_for
from gpushare.core.kinds import Enforcement, GpuState, Topology
from gpushare.core.model import MPS_CLIENT_SLOTS, MPS_V2_TIER, Gpu, GpuCondition, Node, Slice, TaskRequest, TierOffer
from gpushare.core.placement.ask import Ask, Room
from gpushare.core.placement.claims import Claim
from gpushare.core.placement.filters import STRENGTH, gang_refusals, refusals, strongest
from gpushare.core.placement.place import place_gang, place_task
from gpushare.core.plan import Plan
from gpushare.reasons import Reason


def where(found: Slice | None) -> str:
    assert found is not None
    return ",".join(found.gpu_uuids) or found.node


def spots(found: list[Slice] | None) -> list[str]:
    assert found is not None
    return [where(piece) for piece in found]


# -- policies


def used(state_plan: Plan, *pieces: Slice) -> Plan:
    for piece in pieces:
        state_plan.take("t", piece)
    return state_plan


@pytest.mark.parametrize(
    ("policy", "request_", "expected"),
    [
        ("best_fit", share(300), "b-0"),
        ("best_fit", share(400), "a-0"),
        ("best_fit", WHOLE, "b-1"),
        ("best_fit", CPU, "d"),
        ("consolidate", share(300), "b-0"),
        ("consolidate", share(700), "a-1"),
        ("consolidate", WHOLE, "b-1"),
        ("spread", share(300), "c-0"),
        ("spread", WHOLE, "c-0"),
        ("spread", CPU, "c"),
    ],
)
def test_a_policy_goes_by_its_own_idea_of_the_best(policy: str, request_: TaskRequest, expected: str) -> None:
    plan = kit.plan(node("a", 2), node("b", 2), node("c", 2), node("d", 0), policy=policy)
    used(plan, kit.piece("a", "a-0", milli=400), kit.piece("b", "b-0", milli=700), kit.piece("a", "a-1", milli=10))
    assert where(place_task(plan, Ask(request_))) == expected


def test_consolidate_leaves_whole_nodes_asleep_and_spread_wakes_all() -> None:
    for policy, awake in (("consolidate", 2), ("spread", 6)):
        plan = kit.plan(*(node(f"n{i}", 2) for i in range(6)), policy=policy)
        for _ in range(8):
            assert place_task(plan, Ask(HALF)) is not None
        assert int((plan.fleet.tasks > 0).sum()) == awake


# -- against plain Python, one card at a time


def verdict(plan: Plan, request: TaskRequest, here: Node, card: Gpu, room: int) -> Reason | None:
    """What refuses a share on a card, by the rules of the filters in their order."""
    offer = tier_for(request, card.inventory.tiers)
    if not matches_card(request, card.inventory):
        return Reason.MODEL_UNAVAILABLE
    if not matches_labels(request, here):
        return Reason.LABELS_UNAVAILABLE
    if offer is None:
        return Reason.FENCE_UNAVAILABLE
    if not here.is_placeable:
        return Reason.NODES_UNAVAILABLE
    if not card.is_placeable:
        return Reason.GPU_UNHEALTHY
    want = share_on(request, card.inventory.usable_mib)
    milli, mib = plan.free_milli(card) - want.milli, plan.free_mib(card) - want.mib
    is_full = offer.tier == MPS_V2_TIER and plan.holders(card) >= MPS_CLIENT_SLOTS
    if milli < 0 or mib < 0 or is_full:
        ours = milli >= 0 and mib + card.stranger_mib >= 0 and not is_full
        return Reason.OCCUPIED if ours else Reason.NO_CAPACITY
    cpu, memory = host_need(request, here, want.milli)
    if cpu > plan.free_cpu_milli(here) or memory > plan.free_memory_mib(here):
        return Reason.HOST_CAPACITY
    return Reason.TENANT_LIMIT if want.charge_milli > room else None


def random_node(name: str, rng: np.random.Generator) -> Node:
    def pick(*choices: object) -> object:
        return choices[int(rng.integers(len(choices)))]

    soft, mps = TierOffer("timeslice", Enforcement.SOFT), TierOffer(MPS_V2_TIER, Enforcement.SERVER)
    tiers = ((soft,), (mps, soft), (mps,), (TierOffer("exclusive", Enforcement.HARD),))
    cards = []
    for index in range(int(rng.integers(0, 5))):
        card = gpu(f"{name}-{index}", index, pick(8000, 16_001, 40_000), pick("A", "B"), tiers=pick(*tiers))  # type: ignore[arg-type]
        if rng.random() < 0.15:
            card = gpu(card.uuid, index, 16_001, strangers_mib=int(rng.integers(1, 16_000)))
        if rng.random() < 0.1:
            card.condition = GpuCondition(card.uuid, GpuState.DRAINED)
        if rng.random() < 0.1:
            card.holds = {f"h{k}": None for k in range(MPS_CLIENT_SLOTS)}  # type: ignore[misc]
        cards.append(card)
    found = node(name, cards, int(pick(4000, 64_000)), int(pick(8000, 200_000)))  # type: ignore[call-overload]
    found.ready, found.labels = bool(rng.random() < 0.9), pick({}, {"zone": "x"})  # type: ignore[assignment]
    return found


def random_share(rng: np.random.Generator) -> TaskRequest:
    fields: dict[str, object] = {}
    if rng.random() < 0.8:
        fields["gpu_milli"] = int(rng.choice([1, 100, 333, 500, 1000]))
    if "gpu_milli" not in fields or rng.random() < 0.4:
        fields["gpu_memory_mib"] = int(rng.choice([1, 3000, 8001, 30_000]))
    options: list[tuple[str, object]] = [
        ("cpu_milli", 2500), ("memory_mib", 0), ("gpu_model", "A"), ("gpu_model", "B|C"), ("min_gpu_memory_mib", 9000),
        ("node_labels", (("zone", "x"),)), ("min_enforcement", Enforcement.SERVER),
    ]  # fmt: skip
    fields.update(option for option in options if rng.random() < 0.2)
    return TaskRequest(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_shares_are_judged_like_one_card_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = kit.plan(*(random_node(f"n{i}", rng) for i in range(5)))
    requests = [random_share(rng) for _ in range(8)]
    for _ in range(60):
        request, room = requests[int(rng.integers(8))], int(rng.choice([300, 10_000]))
        expected: dict[Reason, list[tuple[str, str]]] = {}
        open_to = set()
        for here in plan.state.nodes.values():
            for card in here.gpus.values():
                reason = verdict(plan, request, here, card, room)
                if reason is None:
                    open_to.add(card.uuid)
                else:
                    expected.setdefault(reason, []).append((here.name, card.uuid))
        ask = Ask(request, room=Room(room))
        told = max((STRENGTH.index(r) for r in expected), default=0)
        assert strongest(plan, ask) == STRENGTH[told]
        assert refusals(plan, ask).by_reason == expected
        found = place_task(plan, ask)
        assert (found is not None) == bool(open_to)
        assert found is None or found.gpu_uuids[0] in open_to


# -- refusals


def one_word(plan: Plan, ask: Ask) -> Reason:
    assert place_task(plan, ask) is None
    told = refusals(plan, ask)
    assert told.strongest() == strongest(plan, ask)
    return told.strongest()


def test_claims_and_limits_have_words_of_their_own() -> None:
    plan = kit.plan(node("a", 1), node("b", 1))
    plan.fleet.set_claims(
        [
            Claim("r", 100, 200, tenant="u", cards={("a", "a-0"): (1000, 10_000)}),
            Claim("h", 0, job="t/9", cards={("b", "b-0"): (1000, 10_000)}),
        ],
        0,
    )
    assert one_word(plan, Ask(HALF, "t", only=frozenset("a"))) is Reason.RESERVED
    assert one_word(plan, Ask(HALF, "t")) is Reason.HELD
    told = refusals(plan, Ask(HALF, "t")).by_reason
    assert told == {Reason.RESERVED: [("a", "a-0")], Reason.HELD: [("b", "b-0")]}
    assert one_word(plan, Ask(HALF, "u", room=Room(499))) is Reason.TENANT_LIMIT
    assert refusals(plan, Ask(WHOLE, "u")).by_reason == {Reason.HELD: [("b", "b-0")]}
    assert one_word(kit.plan(), Ask(HALF)) is Reason.NO_NODES


def test_limits_on_a_model_bar_its_cards_alone() -> None:
    plan = kit.plan(node("a", [gpu("a-0", model="A"), gpu("a-1", 1, model="B")]))
    ask = Ask(HALF, "t", room=Room(by_model=(("A", 400),)))
    assert where(place_task(plan, ask)) == "a-1"
    assert where(place_task(plan, ask)) == "a-1"
    assert one_word(plan, ask) is Reason.TENANT_LIMIT


def test_limits_on_cpu_and_memory_count_what_follows_the_share() -> None:
    plan = kit.plan(node("a", 1, cpu_milli=8000, memory_mib=4000))
    half = TaskRequest(gpu_milli=500)
    assert one_word(plan, Ask(half, room=Room(cpu_milli=3999))) is Reason.TENANT_LIMIT
    assert one_word(plan, Ask(half, room=Room(memory_mib=1999))) is Reason.TENANT_LIMIT
    assert where(place_task(plan, Ask(half, room=Room(None, (), 4000, 2000)))) == "a-0"


def test_nodes_to_avoid_are_taken_last() -> None:
    plan = kit.plan(node("a", 1), node("b", 1))
    ask = Ask(WHOLE, avoid=frozenset("a"))
    assert [where(place_task(plan, ask)), where(place_task(plan, ask))] == ["b-0", "a-0"]


# -- gangs


@pytest.mark.parametrize("shuffle", range(20))
def test_sixteen_halves_always_fit_eight_cards(shuffle: int) -> None:
    plan = kit.plan(node(f"n{shuffle}", 4), node(f"m{shuffle % 7}", 3), node("k", 1))
    assert len(place_gang(plan, Ask(HALF), 16, 16) or []) == 16
    assert not plan.fleet.free_milli.any()
    assert place_gang(plan, Ask(share(1)), 2, 1) is None


def domains(name: str, *sizes: int) -> Node:
    cards = [gpu(f"{name}-{d}{i}", d * 10 + i, domain=f"d{d}") for d, size in enumerate(sizes) for i in range(size)]
    return node(name, cards)


def test_a_gang_keeps_to_one_domain_then_to_one_node_then_to_few_nodes() -> None:
    def nodes() -> Plan:
        return kit.plan(domains("a", 2, 2), domains("b", 3, 1), node("c", 1))

    assert spots(place_gang(nodes(), Ask(WHOLE), 3, 3)) == ["b-00", "b-01", "b-02"]
    assert spots(place_gang(nodes(), Ask(WHOLE), 2, 2)) == ["a-00", "a-01"], "the smallest that is enough"
    assert {s.split("-")[0] for s in spots(place_gang(nodes(), Ask(WHOLE), 4, 4))} == {"a"}
    assert [s[0] for s in spots(place_gang(nodes(), Ask(WHOLE), 5, 5))] == ["a"] * 4 + ["c"]
    assert spots(place_gang(nodes(), Ask(TaskRequest(gpus=2)), 1, 1)) == ["a-00,a-01"]
    assert [s[0] for s in spots(place_gang(nodes(), Ask(share(600)), 9, 9))] == ["a"] * 4 + ["b"] * 4 + ["c"]


def test_a_gang_that_must_stay_together_waits_for_such_a_place() -> None:
    plan = kit.plan(domains("a", 2, 2), domains("b", 3, 2))
    at_node, in_domain = Ask(WHOLE, topology=Topology.NODE), Ask(WHOLE, topology=Topology.DOMAIN)
    assert place_gang(plan, in_domain, 4, 4) is None
    assert place_gang(plan, at_node, 6, 6) is None
    assert strongest(plan, at_node, 6) is Reason.NO_CAPACITY
    assert plan.fleet.checkpoint() == 0
    assert {s[0] for s in spots(place_gang(plan, at_node, 6, 5))} == {"b"}
    assert {s[:3] for s in spots(place_gang(plan, in_domain, 2, 2))} == {"a-0"}
    assert len(place_gang(plan, in_domain, 4, 1) or []) == 2


def test_a_gang_starts_with_its_least_or_not_at_all_and_takes_what_fits_up_to_all() -> None:
    plan = kit.plan(node("a", 2), node("b", 1))
    assert place_gang(plan, Ask(WHOLE), 8, 4) is None
    assert plan.fleet.checkpoint() == 0
    found = place_gang(plan, Ask(WHOLE), 8, 2, numbers=[7, 5, 3, 1, 2, 4, 6, 0])
    assert found is not None
    assert [piece.task for piece in found] == [7, 5, 3]
    assert place_gang(plan, Ask(CPU), 3, 3) is not None


def test_a_limit_takes_the_cards_that_charge_least_where_that_lets_a_gang_start() -> None:
    """2000 MiB are the fifth part of a small card and the tenth of a large one."""
    plan = kit.plan(node("a", [gpu("a-0", 0, 10_000)]), node("b", [gpu("b-0", 0, 20_000)]))
    small = TaskRequest(gpu_memory_mib=2000, cpu_milli=1, memory_mib=1)
    assert spots(place_gang(plan, Ask(small, room=Room(500)), 5, 5)) == ["b-0"] * 5
    assert place_gang(plan, Ask(small, room=Room(400)), 5, 5) is None


def test_a_gang_avoids_nodes_that_lost_it_unless_there_is_no_other_way() -> None:
    plan = kit.plan(node("a", 2), node("b", 3))
    checkpoint = plan.checkpoint()
    assert set(spots(place_gang(plan, Ask(WHOLE, avoid=frozenset("b")), 2, 2))) == {"a-0", "a-1"}
    plan.rollback(checkpoint)
    found = spots(place_gang(plan, Ask(WHOLE, avoid=frozenset("b")), 3, 3))
    assert [s[0] for s in found] == ["a", "a", "b"]


def test_the_words_of_a_gang_are_those_of_its_first_task_without_a_place() -> None:
    plan = kit.plan(node("a", 2), node("b", 1, cpu_milli=50))
    assert place_gang(plan, Ask(WHOLE), 3, 3) is None
    told = gang_refusals(plan, Ask(WHOLE), 3).by_reason
    assert told == {Reason.NO_CAPACITY: [("a", "a-0"), ("a", "a-1")], Reason.HOST_CAPACITY: [("b", "b-0")]}
    limited = Ask(WHOLE, room=Room(1500))
    assert gang_refusals(plan, limited, 2).strongest() is Reason.TENANT_LIMIT
    assert strongest(plan, limited, 2) is Reason.TENANT_LIMIT
    assert plan.fleet.checkpoint() == 0


@pytest.mark.parametrize("seed", range(25))
def test_a_gang_is_placed_exactly_where_its_tasks_fit_one_by_one(seed: int) -> None:
    """Equal tasks: as many fit as a task can be placed again and again, claims and limits included."""
    rng = np.random.default_rng(seed)
    for _ in range(6):
        nodes = [node(f"n{i}", int(rng.integers(1, 5)), int(rng.choice([300, 100_000]))) for i in range(4)]
        plan = kit.plan(*nodes)
        for here in nodes:
            for uuid in here.gpus:
                if rng.random() < 0.6:
                    plan.take("x", kit.piece(here.name, uuid, milli=int(rng.integers(1, 900))))
        cards = {(nodes[0].name, uuid): (400, 4000) for uuid in nodes[0].gpus}
        if rng.random() < 0.5:
            plan.fleet.set_claims([Claim("c", 50, tenant="u", cards=cards)], 0)
        request = (HALF, share(170), WHOLE, TaskRequest(gpus=2), CPU)[int(rng.integers(5))]
        room = Room(int(rng.choice([1700, 100_000])))
        ask = Ask(request, "t", room=room)
        checkpoint, most, charge = plan.checkpoint(), 0, 0
        while most < 40:
            piece = place_task(plan, ask._replace(room=Room((room.milli or 0) - charge)), most)
            if piece is None:
                break
            most, charge = most + 1, charge + piece.charge_milli
        plan.rollback(checkpoint)
        if most == 40:
            continue
        assert place_gang(plan, ask, most + 1, most + 1) is None
        if most:
            assert len(place_gang(plan, ask, most + 3, most) or []) >= most
            plan.rollback(checkpoint)


# -- what could ever fit


def test_a_request_may_name_several_models_and_overcommit_makes_room_for_ever() -> None:
    state = kit.cluster(node("a", [gpu("a-0", model="A", capacity_milli=1500)]))
    assert never_fits(state, share(100, gpu_model="A|B"), 1) == ""
    assert "no registered card is called B or C" in never_fits(state, share(100, gpu_model="B|C"), 1)
    small = share(500, gpu_memory_mib=10)
    assert never_fits(state, small, 3) == ""
    assert "hold 3 when empty" in never_fits(state, small, 4)
    assert never_fits(state, TaskRequest(cpu_milli=0, memory_mib=0), 5) == ""


def test_clients_and_agents_load_no_arrays() -> None:
    code = (
        "import sys, gpushare.client, gpushare.cli.main, gpushare.core.model, gpushare.core.admission\n"
        "import gpushare_agent.core\n"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
