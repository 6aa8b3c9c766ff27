"""NVML keeps the promises of the GpuLibrary port, over the stand-in; `tests/gpu` asks the same of real cards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from standins.fake_nvml import FakeNvml
from standins.gpu_library_conformance import GpuLibraryConformance

from gpushare_agent.gpus.nvml_client import NvmlLibrary
from gpushare_agent.gpus.port import GpuLibrary


class TestOverTheStandIn(GpuLibraryConformance):
    @pytest.fixture
    def open_library(self, tmp_path: Path) -> Callable[[], GpuLibrary]:
        fake = FakeNvml.with_cards(tmp_path, 8)
        fake.process(2, os.getpid(), 4000, "compute")
        fake.process(3, 1, None, "graphics")
        fake.utilization(2, os.getpid(), 35)
        fake.write()
        return lambda: NvmlLibrary(environ=fake.environ())


class TestOverAnOldDriver(GpuLibraryConformance):
    @pytest.fixture
    def open_library(self, tmp_path: Path) -> Callable[[], GpuLibrary]:
        fake = FakeNvml.with_cards(tmp_path, 2, old_driver=True)
        fake.process(1, os.getpid(), 500, "compute", "mps")
        fake.write()
        return lambda: NvmlLibrary(environ=fake.environ())
