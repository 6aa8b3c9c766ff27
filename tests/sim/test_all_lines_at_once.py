"""A pass that ends with all lines at once decides, and says, what it would have by a look at each line."""

from __future__ import annotations

import random

import pytest

from gpushare.core.brain import Brain
from gpushare.core.cycle import Cycle, Pass
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason
from gpushare.sim.driver import Simulation
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant

MINUTE = 60_000


class LineByLine(Cycle):
    def _is_all_futile(self) -> bool:
        return False


class AtOnce(Cycle):
    short_ways = 0

    def _is_all_futile(self) -> bool:
        found = super()._is_all_futile()
        AtOnce.short_ways += found
        return found


class BothWays(Simulation):
    """Before each pass two others decide on a copy of the state, one way each."""

    def __init__(self, nodes: list[TraceNode], jobs: list[TraceJob], tenants: list[TraceTenant]) -> None:
        super().__init__(nodes, jobs, tenants)
        self.reasons: set[Reason] = set()

    def _pass(self) -> Pass:
        at_once, one_by_one = self._decided(AtOnce), self._decided(LineByLine)
        assert at_once.events == one_by_one.events
        assert at_once.waits == one_by_one.waits
        assert (at_once.starts_ms, at_once.wake_ms) == (one_by_one.starts_ms, one_by_one.wake_ms)
        self.reasons.update(at_once.waits.values())
        return super()._pass()

    def _decided(self, kind: type[Cycle]) -> Pass:
        state = ClusterState.decode(self.state.encode())
        return kind(state, self.now_ms, self.settings, Brain(state, self.settings)).run()


def full_queue(seed: int) -> BothWays:
    """A small full cluster; most of what waits fits nowhere, some of it does as soon as a card is given back. With an
    odd seed tenants have claims, and some jobs come first."""
    rng = random.Random(seed)
    nodes = [TraceNode(f"n{i}", 32_000, 65_536, 4, rng.choice("AB")) for i in range(3)]
    tenants = [TraceTenant(f"t{i}", weight=1 + i, guaranteed_milli=seed % 2 * i * 1000) for i in range(3)]
    jobs = [_job(n, rng, (0, 0, 0, 5 * (seed % 2))) for n in range(60)]
    return BothWays(nodes, jobs, tenants)


def _job(n: int, rng: random.Random, priorities: tuple[int, ...]) -> TraceJob:
    gpus, milli = rng.choice(((1, 300), (1, 700), (2, 1000)))
    lasts = rng.randrange(1, 9) * MINUTE
    return TraceJob(
        id=f"j{n}",
        arrival_ms=n * 1000,
        cpu_milli=1000,
        memory_mib=1024,
        num_gpu=gpus,
        gpu_milli=milli,
        duration_ms=lasts,
        tenant=f"t{rng.randrange(3)}",
        user=f"u{rng.randrange(3)}",
        priority=rng.choice(priorities),
        max_run_ms=rng.choice((None, 10 * MINUTE)),
    )


@pytest.mark.parametrize("seed", range(6))
def test_all_lines_at_once_are_what_each_of_them_is(seed: int) -> None:
    made, begun = full_queue(seed), AtOnce.short_ways
    made.run(until_ms=4 * MINUTE)
    assert AtOnce.short_ways > begun or seed % 2, "none of these passes took the short way"
    assert Reason.NO_CAPACITY in made.reasons
