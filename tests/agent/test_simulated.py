"""Simulated cards: the catalogue, the same port as real ones, real processes that pretend, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standins.gpu_library_conformance import GpuLibraryConformance

from gpushare_agent.gpus.catalogue import MODELS, CatalogueError, card_uuid, parse_node
from gpushare_agent.gpus.port import DriverState, GpuLibrary, GpuSnapshot
from gpushare_agent.gpus.simulated import SimulatedLibrary, UsageDir, read_usages
from gpushare_agent.gpus.simwork import start_ticks

NODE = "n1"
UUIDS = [card_uuid(NODE, index) for index in range(4)]


def library(*dirs: Path, script: Path | None = None, clock: Callable[[], float] = time.monotonic) -> SimulatedLibrary:
    return SimulatedLibrary(NODE, parse_node("4xL40S"), lambda: [UsageDir(path) for path in dirs], script, clock)


def look(cards: SimulatedLibrary) -> GpuSnapshot:
    return asyncio.run(cards.snapshot())


def declare(directory: Path, name: str = "1.json", **fields: object) -> None:
    pid = os.getpid()
    usage = {"pid": pid, "start_ticks": start_ticks(pid), "cards": [UUIDS[0]], "memory_mib": 6144, "sm_percent": 40}
    (directory / name).write_text(json.dumps({**usage, **fields}))


class TestCatalogue:
    @pytest.mark.parametrize(
        ("text", "count", "memory_mib"),
        [
            ("4xH100-80GB", 4, 81559),
            ("1xL40S", 1, 46068),
            ("8xA100-40GB", 8, 40960),
            ("2xA100-80GB", 2, 81920),
            ("16xH200-141GB", 16, 143771),
            ("1xA10", 1, 23028),
            ("1xT4", 1, 15360),
            ("1xV100-32GB", 1, 32768),
            ("2xrtx 4090", 2, 24564),
        ],
    )
    def test_a_node_of_real_models_has_the_memory_that_nvidia_smi_prints(
        self, text: str, count: int, memory_mib: int
    ) -> None:
        node = parse_node(text)
        assert (node.count, node.model.memory_mib) == (count, memory_mib)

    def test_a_node_has_the_cpu_and_ram_of_its_cards(self) -> None:
        one, four = parse_node("1xH100-80GB"), parse_node("4xH100-80GB")
        assert (four.cpu_milli, four.memory_mib) == (4 * one.cpu_milli, 4 * one.memory_mib)
        assert four.cpu_milli >= 4000
        assert four.memory_mib > 4 * four.model.memory_mib

    @pytest.mark.parametrize(
        "text", ["", "4", "H100-80GB", "0xL40S", "-1xL40S", "٤xL40S", "4 x L40S", "17xL40S", "4xL40S\n"]
    )
    def test_what_names_no_cards_is_refused_with_an_example_or_a_bound(self, text: str) -> None:
        with pytest.raises(CatalogueError, match=r"4xH100-80GB|at most 16"):
            parse_node(text)

    def test_an_unknown_model_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(CatalogueError, match="L40S") as refused:
            parse_node("4xVOODOO2")
        assert all(name in str(refused.value) for name in MODELS)

    @pytest.mark.parametrize(
        ("text", "domains"),
        [
            ("8xH100-80GB", ["board0"] * 8),
            ("16xA100-80GB", ["board0"] * 8 + ["board1"] * 8),
            ("4xL40S", ["numa0", "numa0", "numa1", "numa1"]),
            ("3xT4", ["numa0", "numa0", "numa1"]),
            ("1xA10", ["numa0"]),
        ],
    )
    def test_cards_of_a_board_are_near_each_other_and_pcie_cards_near_those_of_their_processor(
        self, text: str, domains: list[str]
    ) -> None:
        node = parse_node(text)
        assert [node.domain(index) for index in range(node.count)] == domains

    def test_uuids_are_the_same_at_every_start_and_differ_between_nodes_and_cards(self) -> None:
        assert card_uuid("n1", 0) == card_uuid("n1", 0)
        assert len({card_uuid(node, index) for node in ("n1", "n2") for index in range(16)}) == 32


class TestConformance(GpuLibraryConformance):
    @pytest.fixture
    def open_library(self, tmp_path: Path) -> Callable[[], GpuLibrary]:
        declare(tmp_path)
        return lambda: library(tmp_path)


class TestUse:
    def test_a_live_process_uses_what_it_declares(self, tmp_path: Path) -> None:
        declare(tmp_path, cards=UUIDS[:2])
        samples = look(library(tmp_path)).samples
        assert [sample.used_mib for sample in samples] == [6144, 6144, 0, 0]
        assert samples[0].free_mib == 46068 - 6144
        (process,) = samples[0].processes
        assert (process.pid, process.sm_percent) == (os.getpid(), 40)
        assert process.user

    @pytest.mark.parametrize("fields", [{"pid": 2**22 + 1}, {"start_ticks": 1}])
    def test_a_process_that_is_gone_or_was_replaced_uses_nothing(
        self, tmp_path: Path, fields: dict[str, object]
    ) -> None:
        declare(tmp_path, **fields)
        assert look(library(tmp_path)).samples[0].processes == ()

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff\xfe", b"x" * 100_000, b'{"pid":1,"memory_mib":-5}']
    )
    def test_a_malformed_usage_file_is_passed_over(self, tmp_path: Path, content: bytes) -> None:
        declare(tmp_path)
        (tmp_path / "0.json").write_bytes(content)
        assert [usage.memory_mib for usage in read_usages(tmp_path)] == [6144]

    def test_a_usage_file_may_be_no_link_no_pipe_and_no_directory(self, tmp_path: Path) -> None:
        declare(tmp_path, "real")
        (tmp_path / "link.json").symlink_to(tmp_path / "real")
        os.mkfifo(tmp_path / "pipe.json")
        (tmp_path / "directory.json").mkdir()
        assert read_usages(tmp_path) == []

    @pytest.mark.parametrize("fields", [{"memory_mib": -1}, {"memory_mib": 1 << 40}, {"sm_percent": 101}])
    def test_figures_out_of_range_are_passed_over(self, tmp_path: Path, fields: dict[str, object]) -> None:
        declare(tmp_path, **fields)
        assert read_usages(tmp_path) == []


class TestFaults:
    def script(self, tmp_path: Path, *faults: dict[str, object]) -> Path:
        path = tmp_path / "faults.json"
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps(faults))
        fresh.replace(path)
        return path

    def test_a_card_falls_off_the_bus_and_the_others_stay(self, tmp_path: Path) -> None:
        samples = look(library(script=self.script(tmp_path, {"fault": "lost", "gpu": 1}))).samples
        assert [sample.lost for sample in samples] == [False, True, False, False]

    def test_a_stranger_holds_memory(self, tmp_path: Path) -> None:
        script = self.script(tmp_path, {"fault": "stranger", "gpu": 2, "pid": 7, "user": "eve", "memory_mib": 2048})
        sample = look(library(script=script)).samples[2]
        assert [(p.pid, p.user, p.memory_mib) for p in sample.processes] == [(7, "eve", 2048)]
        assert sample.used_mib == 2048

    @pytest.mark.parametrize(("fault", "state"), [("hang", DriverState.HUNG), ("mismatch", DriverState.MISMATCH)])
    def test_the_driver_is_in_trouble_for_a_while(self, tmp_path: Path, fault: str, state: DriverState) -> None:
        now = [100.0]
        script = self.script(tmp_path, {"fault": fault, "after_s": 5, "for_s": 10})
        cards = library(script=script, clock=lambda: now[0])
        seen = []
        for age in (0, 5, 14.9, 15):
            now[0] = 100.0 + age
            seen.append(look(cards).state)
        assert seen == [DriverState.OK, state, state, DriverState.OK]

    def test_the_script_is_followed_as_it_changes(self, tmp_path: Path) -> None:
        script = self.script(tmp_path)
        cards = library(script=script)
        assert not look(cards).samples[0].lost
        self.script(tmp_path, {"fault": "lost", "gpu": 0})
        assert look(cards).samples[0].lost
        script.unlink()
        assert not look(cards).samples[0].lost

    @pytest.mark.parametrize("text", ["{", '[{"fault": "flood"}]', '[{"fault": "lost", "card": 1}]'])
    def test_a_wrong_script_is_an_error_that_names_it(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "faults.json"
        path.write_text(text)
        snapshot = look(library(script=path))
        assert snapshot.state is DriverState.ERROR
        assert str(path) in snapshot.detail


class TestSimwork:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
        started: list[subprocess.Popen[str]] = []

        def start(*arguments: str, limit_mib: int = 20_000, **environ: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "gpushare_agent.gpus.simwork", *arguments],
                env={
                    **os.environ,
                    "CUDA_VISIBLE_DEVICES": UUIDS[0],
                    "GPUSHARE_SIM_DIR": str(tmp_path),
                    "GPUSHARE_GPU_MEMORY_MIB": str(limit_mib),
                    **environ,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_it_uses_its_memory_while_it_runs_and_then_no_more(
        self, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = run("--memory", "6G", "--util", "0.4", "--seconds", "0.6")
        cards = library(tmp_path)
        deadline = time.monotonic() + 10
        while not (processes := look(cards).samples[0].processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [(p.pid, p.memory_mib, p.sm_percent) for p in processes] == [(process.pid, 6144, 40)]
        out, _ = process.communicate(timeout=10)
        assert process.returncode == 0
        assert out.splitlines()[-1] == "done"
        assert look(cards).samples[0].processes == ()

    def test_killed_it_uses_nothing_though_its_file_is_still_there(
        self, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = run("--memory", "1G", "--seconds", "60")
        assert process.stdout is not None
        assert "1024 MiB" in process.stdout.readline()
        process.kill()
        process.wait(10)
        assert list(tmp_path.glob("*.json"))
        assert look(library(tmp_path)).samples[0].used_mib == 0

    def test_a_smaller_slice_is_an_out_of_memory_error(self, run: Callable[..., subprocess.Popen[str]]) -> None:
        process = run("--memory", "6G", "--seconds", "60", limit_mib=4096)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "out of memory: tried to allocate 6144 MiB, the slice has 4096 MiB" in err

    def test_it_overruns_its_slice_when_told_to(
        self, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = run("--memory", "6G", "--seconds", "0", "--ignore-limit", "--exit-code", "9", limit_mib=4096)
        process.communicate(timeout=10)
        assert process.returncode == 9

    def test_without_a_card_it_fails(self, run: Callable[..., subprocess.Popen[str]]) -> None:
        process = run("--seconds", "0", CUDA_VISIBLE_DEVICES="")
        _, err = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "no simulated CUDA device" in err

    @pytest.mark.parametrize(
        "arguments", [("--memory", "6"), ("--util", "2"), ("--seconds", "-1"), ("--seconds", "nan")]
    )
    def test_wrong_arguments_are_a_usage_error(
        self, run: Callable[..., subprocess.Popen[str]], arguments: tuple[str, str]
    ) -> None:
        process = run(*arguments)
        process.communicate(timeout=10)
        assert process.returncode == 2
