"""How long one placement decision takes at 6,000 and 50,000 cards: mixed requests and one request, best fit.

The cluster is kept three quarters full: each decision first gives an old slice back. Beside it a plain Python loop that
scores every card the same way.

Run: python -m benchmarks.place [POLICY]
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import deque

from benchmarks.figures import Figure, Reference, spread
from benchmarks.session import Session, command
from gpushare.core.kinds import Enforcement
from gpushare.core.model import Gpu, GpuCondition, GpuInventory, Node, Slice, TaskRequest, TierOffer
from gpushare.core.placement import POLICIES
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.place import place_task
from gpushare.core.plan import Plan
from gpushare.core.state import ClusterState, Snapshot

CARDS_PER_NODE = 8
USABLE_MIB = 81559
SHAPES = 200
DECISIONS = 3_000
ROUNDS = 3
TIERS = (TierOffer("exclusive", Enforcement.HARD), TierOffer("timeslice", Enforcement.SOFT))


def cluster(cards: int) -> ClusterState:
    nodes = [_node(f"n{i:05}") for i in range(cards // CARDS_PER_NODE)]
    return ClusterState(Snapshot(nodes={node.name: node for node in nodes}))


def _node(name: str) -> Node:
    node = Node(name=name, created_ms=0, ready=True, cpu_milli=128_000, memory_mib=1_048_576)
    for index in range(CARDS_PER_NODE):
        uuid = f"GPU-{name}-{index}"
        card = GpuInventory(uuid, index, "H100", USABLE_MIB, USABLE_MIB, TIERS)
        node.gpus[uuid] = Gpu(inventory=card, condition=GpuCondition(uuid=uuid))
    return node


def shapes(count: int, rng: random.Random) -> list[TaskRequest]:
    """Mostly shares, some whole cards, some tasks without a card."""
    found: set[TaskRequest] = {TaskRequest(gpu_milli=250, cpu_milli=2000, memory_mib=8192)}
    while len(found) < count:
        draw = rng.random()
        cpu, memory = rng.randint(1, 16) * 500, rng.randint(1, 32) * 512
        if draw < 0.7:
            request = TaskRequest(gpu_milli=rng.randint(2, 90) * 10, cpu_milli=cpu, memory_mib=memory)
        elif draw < 0.9:
            request = TaskRequest(gpus=rng.choice((1, 1, 1, 2, 4, 8)), cpu_milli=cpu, memory_mib=memory)
        else:
            request = TaskRequest(cpu_milli=cpu, memory_mib=memory)
        found.add(request)
    return sorted(found, key=repr)


class Load:
    """A cluster three quarters full, on which one more task comes for each that goes."""

    def __init__(self, cards: int, kinds: int, policy: str) -> None:
        self.rng = random.Random(0)
        self.state = cluster(cards)
        self.plan = Plan(self.state, Fleet(self.state, POLICIES[policy]()))
        self.asks = [Ask(request) for request in shapes(kinds, self.rng)]
        self.held: deque[Slice] = deque()
        full = int(self.plan.fleet.free_milli.sum()) // 4
        while int(self.plan.fleet.free_milli.sum()) > full:
            for _ in range(max(1, cards // 100)):
                self.place()
        self.rng.shuffle(self.held)

    def place(self) -> None:
        piece = place_task(self.plan, self.rng.choice(self.asks))
        if piece is not None:
            self.held.append(piece)

    def decide_us(self, decisions: int) -> float:
        """Mean time of a decision, the giving back aside. Unit: microseconds."""
        spent = 0.0
        for _ in range(decisions):
            if self.held:
                self.plan.give("", self.held.popleft())
            ask = self.rng.choice(self.asks)
            began = time.perf_counter()
            piece = place_task(self.plan, ask)
            spent += time.perf_counter() - began
            if piece is not None:
                self.held.append(piece)
        return spent / decisions * 1e6

    def loop_us(self, decisions: int) -> float:
        """The same question asked of every card in plain Python. Unit: microseconds."""
        fleet = self.plan.fleet
        milli, mib = fleet.free_milli.tolist(), fleet.free_mib.tolist()
        cpu, memory, node_of = fleet.free_cpu_milli.tolist(), fleet.free_memory_mib.tolist(), fleet.node_of.tolist()
        began = time.perf_counter()
        for _ in range(decisions):
            best = None
            for card, node in enumerate(node_of):
                if milli[card] >= 250 and mib[card] >= 20_389 and cpu[node] >= 2000 and memory[node] >= 8192:
                    score = (milli[card] - 250, mib[card] - 20_389, cpu[node] - 2000, card)
                    if best is None or score < best:
                        best = score
        return (time.perf_counter() - began) / decisions * 1e6


def measure(session: Session, policy: str = "best_fit") -> list[Figure]:
    figures = []
    for cards in (6_000, 50_000):
        for kinds, what in ((SHAPES, f"{SHAPES} requests"), (1, "one request")):
            load = Load(cards, kinds, policy)
            load.decide_us(DECISIONS // 4)
            samples = [load.decide_us(DECISIONS) for _ in range(ROUNDS)]
            beside = (Reference("a plain Python loop over the cards", load.loop_us(10)),)
            name = f"place_{cards}_{'mixed' if kinds > 1 else 'one'}"
            text = f"one decision, {cards:,} cards, {what}"
            figures.append(Figure(name, text, statistics.median(samples), "us", beside, spread(samples, "us")))
    return figures


if __name__ == "__main__":
    chosen = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "best_fit"
    command(__doc__, [lambda session: measure(session, chosen)])
