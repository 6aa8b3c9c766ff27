"""Figures against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare.sim import placements
from gpushare.sim.measure import Allocation, FreeNode, jain, spread_s, stranded_milli
from gpushare.sim.placements import Placement
from gpushare.sim.traces import TraceJob


def test_allocation_over_time() -> None:
    held = Allocation(1000, start_ms=100)
    held.change(+500, 100)
    held.change(+500, 200)
    held.mark(250)
    held.change(-800, 300)
    assert held.mean(400) == pytest.approx((500 * 100 + 1000 * 100 + 200 * 100) / 300 / 1000)
    assert held.since_mark(400) == pytest.approx((1000 * 50 + 200 * 100) / 150 / 1000)
    assert (held.peak(), held.now()) == (1.0, 0.2)
    assert Allocation(0, 0).mean(10) is None


def test_fairness_is_jains_index() -> None:
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0, 0.0]) is None


def test_percentiles_are_times_that_occurred() -> None:
    found = spread_s(range(0, 100_000, 1000))
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.count) == (49.0, 94.0, 98.0, 100)
    assert spread_s([]) is None


def job(num_gpu: int, milli: int, cpu: int = 0, memory: int = 0, models: tuple[str, ...] = ()) -> TraceJob:
    return TraceJob("j", 0, cpu, memory, num_gpu, milli, models)


@pytest.mark.parametrize(
    ("jobs", "stranded"),
    [
        ([job(1, 500)], 300),  # the 300 is too small a rest
        ([job(1, 1000)], 900),  # only the free card is of use
        ([job(2, 1000)], 1900),  # not even that
        ([job(1, 300, cpu=5000)], 1900),  # no CPU left for any
        ([job(1, 300, memory=51)], 1900),
        ([job(1, 300, models=("V100", "A10"))], 1900),
        ([job(1, 300, models=("T4", "A10"))], 0),
        ([job(1, 500), job(1, 1000)], 600),  # the mean of 300 and 900
        ([job(0, 0)], 0),  # no GPU jobs, no measure
    ],
)
def test_stranded_capacity_is_what_the_next_job_cannot_use(jobs: list[TraceJob], stranded: int) -> None:
    node = FreeNode("T4", 4000, 50, (0, 300, 600, 1000))
    assert stranded_milli([node], jobs) == pytest.approx(stranded)
    assert stranded_milli([node, node], jobs) == pytest.approx(2 * stranded)


def test_placements_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Placement('a,"b" é', "n 1", (0, 2, 11), 1000, 12_000),
        Placement("cpu", "n", (), 0, 0),
        Placement("share", "n", (3,), 1, 1_050),
        Placement("none"),
    ]
    path = tmp_path / "placements.csv"
    placements.write(path, rows)
    assert placements.read(path) == rows
    assert path.read_text().splitlines() == [
        "job_id,node,gpu_index,gpu_milli,start",
        '"a,""b"" é",n 1,0-2-11,1000,12',
        "cpu,n,,0,0",
        "share,n,3,1,1.05",
        "none,unplaced,,,",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["placements.csv"]
