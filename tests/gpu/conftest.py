"""A real card for the tests beside it, or a skip that says what is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.gpucheck.bench import Bench, choose, open_nvml
from benchmarks.gpucheck.report import AbsentError

TEST_TIME_S = 60.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    """The emptiest card of this machine, and programs on it that end with the test."""
    try:
        reader = open_nvml()
        try:
            card = choose(reader.ask("snapshot", timeout_s=60)["cards"], None)
        finally:
            reader.close()
    except AbsentError as absent:
        pytest.skip(f"no NVIDIA card on this machine: {absent}")
    opened = Bench(card=card, deadline=time.monotonic() + TEST_TIME_S)
    yield opened
    opened.close()
