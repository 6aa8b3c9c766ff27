"""The short way to guess all ends on a node finds what the long way does."""

from __future__ import annotations

from unittest.mock import patch

from gpushare.core.brain import Brain
from gpushare.core.placement.guesses import GuessedEndings
from gpushare.core.state import ClusterState
from gpushare.sim.driver import Simulation
from gpushare.sim.traces import TraceJob, TraceNode

KINDS = ((1, 300), (1, 1000), (2, 1000), (0, 0))


def test_guesses_are_the_same_both_ways() -> None:
    """Of shares, whole cards, gangs and tasks without cards; none of them has a limit."""
    jobs = [TraceJob(f"j{n}", 1000 * n, 500, 512, *KINDS[n % 4], tasks=1 + n % 3 // 2) for n in range(40)]
    made = Simulation([TraceNode(f"n{i}", 64_000, 65_536, 8, "A") for i in range(4)], jobs)
    made.run(until_ms=60_000)
    state = ClusterState.decode(made.state.encode())
    # The tasks of a gang do not begin at one moment.
    for place, attempt in enumerate(state.attempts.values()):
        attempt.started_ms = (attempt.started_ms or 0) + 100 * place
    brain = Brain(state, made.settings)
    brain.refresh()
    for node in range(4):
        short = brain.guessed._rows(node)
        with patch.object(GuessedEndings, "_has_ends", return_value=True):
            long = brain.guessed._rows(node)
        assert [sorted(rows) for rows in short] == [sorted(rows) for rows in long]
        assert len(short[0]) > 5
