"""EASY backfill: short jobs run in the gaps, and nothing that does delays the head of the queue."""

from __future__ import annotations

import random
import re

import pytest
from gantt import Gantt, check_chart

CHARTS = {
    "a short job fills the gap before a wide head, a long one waits": """
        tenant t
        node n 2
        job A gpus=1 limit=4
        job B gpus=2 limit=3
        job C gpus=1 limit=4          # ends as B starts
        job D gpus=1 limit=5          # would still run then
        n/0 AAAABBBDDDDD
        n/1 CCCCBBB.....
    """,
    "what ends one slot too late is not backfilled": """
        tenant t
        node n 2
        job A gpus=1 limit=4
        job B gpus=2 limit=3
        job C gpus=1 limit=5
        n/0 AAAABBBCCCCC
        n/1 ....BBB.....
    """,
    "a job without a limit never delays the head": """
        tenant t
        node n 2
        job A gpus=1 limit=3
        job B gpus=2 limit=2
        job C gpus=1 limit=0 runs=9
        n/0 AAABBCCC
        n/1 ...BB...
    """,
    "a long job may run beside the head's place": """
        tenant t
        node n 2
        node m 1
        job A gpus=2 limit=3
        job B gpus=2 limit=2
        job C gpus=1 limit=0 runs=9
        n/0 AAABB...
        n/1 AAABB...
        m/0 CCCCCCCC
    """,
    "an early end lets the head start early": """
        tenant t
        node n 2
        job A gpus=1 limit=6 runs=2
        job B gpus=2 limit=3
        job C gpus=1 limit=6 runs=1
        n/0 AABBB
        n/1 C.BBB
    """,
    "a head behind a job without a limit has no shadow and holds nothing back": """
        tenant t
        node n 2
        job A gpus=1 limit=0 runs=4
        job B gpus=2 limit=2
        job C gpus=1 limit=0 runs=6
        n/0 AAAA..BB
        n/1 CCCCCCBB
    """,
    "shares run in the gap of a card that a whole one waits for": """
        tenant t
        node n 1 lanes=4
        job A milli=500 limit=4
        job B gpus=1 limit=2
        job C milli=250 limit=4
        job D milli=250 limit=3
        job E milli=250 limit=2 at=3
        n/0.0 AAAABBEE
        n/0.1 AAAABB..
        n/0.2 CCCCBB..
        n/0.3 DDD.BB..
    """,
    "a gang over two nodes is the head": """
        tenant t
        node m 2
        node n 2
        job A gpus=2 limit=3
        job B gpus=1 tasks=4 limit=2
        job C gpus=1 limit=3
        job D gpus=1 limit=4
        m/0 AAABBDDDD
        m/1 AAABB....
        n/0 CCCBB....
        n/1 ...BB....
    """,
    "the CPU of a node is what the head waits for": """
        tenant t
        node n 2 cpu=4000
        job A gpus=1 cpu=3000 limit=3
        job B gpus=1 cpu=2000 limit=2
        job C gpus=1 cpu=1000 limit=3
        job D gpus=1 cpu=1000 limit=2
        n/0 AAABB...
        n/1 CCCDD...
    """,
    "equal jobs start one after the other, and what is behind them later": """
        tenant t
        node n 2
        job A gpus=2 limit=2
        job B gpus=2 limit=2
        job C gpus=2 limit=2
        job D gpus=1 limit=9
        n/0 AABBCCDDD
        n/1 AABBCC...
    """,
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_of_backfill(name: str) -> None:
    gantt = check_chart(CHARTS[name])
    for job, told in gantt.promises.items():
        assert gantt.starts.get(job, told[0]) <= told[0], f"{job} was promised slot {told[0]}"


# -- the promise, on random schedules


def random_schedule(seed: int) -> str:
    """A small cluster, a dozen jobs, most of them with limits, some of them gangs, and now and then a window."""
    draw = random.Random(seed)
    nodes = draw.randint(1, 3)
    lines = ["tenant t", "tenant u"]
    lines += [f"node n{i} {draw.randint(1, 3)} lanes=4 cpu=16000" for i in range(nodes)]
    for number in range(draw.randint(6, 14)):
        limit = draw.choice((0, 1, 2, 3, 5, 8))
        runs = draw.randint(1, limit) if limit else 20
        size = draw.choice(("gpus=1", "gpus=2", "milli=250", "milli=500", "milli=750", "gpus=0"))
        lines.append(
            f"job J{number:02} at={draw.randint(0, 4)} limit={limit} runs={runs} {size} "
            f"tasks={draw.choice((1, 1, 1, 2, 3))} cpu={draw.choice((500, 500, 2000, 6000))} optional=1"
        )
    for number in range(draw.choice((0, 0, 1, 2))):
        begin = draw.randint(1, 8)
        end, every = begin + draw.randint(1, 4), draw.choice((0, 0, 6))
        kind = draw.choice(
            ("maintenance M{} nodes=n0", "reserve R{} gpus=1 tenant=u", "reserve R{} milli=500 tenant=u")
        )
        lines.append(kind.format(number) + f" from={begin} to={end} every={every}")
    return "\n".join(lines)


def check_promises(seed: int) -> None:
    """From the first pass in which a job is the oldest that waits and is promised a start, it starts then or earlier,
    whatever is backfilled, arrives or ends before its limit."""
    text = random_schedule(seed)
    gantt = Gantt().read(text)
    gantt.run(24)
    for job, told in gantt.promises.items():
        shown = f"seed {seed}\n{text}\n{gantt.chart()}"
        assert told == sorted(told, reverse=True), f"the promise to {job} got worse: {told}, {shown}"
        assert gantt.starts.get(job, 24) <= told[0] or told[0] >= 24, f"{job} was promised {told}, {shown}"


@pytest.mark.parametrize("seed", range(16))
def test_no_backfilled_job_ever_delays_the_head(seed: int) -> None:
    check_promises(seed)


@pytest.mark.prove
@pytest.mark.parametrize("first", range(16, 2000, 284))
def test_no_backfilled_job_ever_delays_the_head_at_length(first: int) -> None:
    for seed in range(first, first + 284):
        check_promises(seed)


@pytest.mark.parametrize(
    "seed", [*range(500, 506), *(pytest.param(n, marks=pytest.mark.prove) for n in range(506, 520))]
)
def test_the_start_is_exact_when_all_run_to_their_limits_and_nobody_comes(seed: int) -> None:
    """What the head was first promised is what comes true."""
    text = re.sub(r" at=\d+| runs=\d+", "", random_schedule(seed))
    gantt = Gantt().read(text.replace("limit=0", "limit=0 runs=40"))
    gantt.run(24)
    for job, told in gantt.promises.items():
        assert gantt.starts.get(job, told[0]) == told[0] or told[0] >= 24, f"{job}: {told}\n{text}\n{gantt.chart()}"
