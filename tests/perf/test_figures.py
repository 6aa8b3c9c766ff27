"""The page of a benchmark: medians and percentiles, ratios, and floors that go the right way round."""

from __future__ import annotations

import pytest

from benchmarks.figures import TARGETS, Figure, Reference, number, percentile, render, verdict


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0), (0.5, 1.0)],
)
def test_a_percentile_is_a_sample_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_the_p99_of_a_hundred_leaves_out_the_worst_one_alone() -> None:
    assert percentile([1.0] * 98 + [7.0, 900.0], 99) == 7.0


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("submit", 500.0, "PASS"),
        ("submit", 499.0, "below"),
        ("start_p50", 100.0, "PASS"),
        ("start_p50", 101.0, "below"),
        ("cpu_agent", 1.9, "PASS"),
        ("cpu_agent", 2.1, "below"),
        ("pss_agent", 70.5, "below"),
    ],
)
def test_a_floor_is_a_least_rate_and_a_greatest_time_or_size(key: str, value: float, expected: str) -> None:
    assert verdict(Figure(key, "what", value, "unit")).startswith(expected)


def test_a_figure_without_a_floor_has_no_verdict() -> None:
    assert verdict(Figure("start_p99", "what", 1.0, "ms")) == ""


def test_what_a_figure_is_compared_with_stands_below_it() -> None:
    reference = Reference("bare commits", 2_000.0)
    page = render(Figure("submit", "CreateJob", 1_000.0, "jobs/s", (reference,), "5 rounds")).splitlines()
    assert page[0].split() == ["CreateJob", "1,000", "jobs/s", "PASS", "(floor", "500,", "aim", "2,000)"]
    assert page[1].strip() == "5 rounds"
    assert page[2].strip() == "beside bare commits: 2,000 jobs/s, ratio 0.5"
    assert TARGETS["submit"].peers in page[3]


def test_a_reference_of_nothing_gives_no_ratio() -> None:
    assert "no ratio" in render(Figure("x", "what", 1.0, "s", (Reference("nothing", 0.0),)))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (3.14159, "3.14"), (0.0432, "0.0432"), (12_345.6, "12,346"), (99.96, "100")]
)
def test_numbers_have_three_digits_or_all_whole_ones(value: float, text: str) -> None:
    assert number(value) == text
