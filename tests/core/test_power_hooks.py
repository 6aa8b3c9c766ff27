"""The admin's power hooks as real programs, on a real core: order, failures, restarts, and what a program may do wrong.
And the averages of measured load."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pytest
from cluster import Cluster

from gpushare.cli.nodes import _node_row as node_row
from gpushare.client.messages import Node, NodeState
from gpushare.client.messages import Power as ShownPower
from gpushare.core.commands import Call, Command, NodeSessionClosed
from gpushare.core.events import Entry, NodePowerRequested, NodeSynced
from gpushare.core.kinds import Power
from gpushare.core.state import ClusterState
from gpushare.scheduler import power as power_module
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.loads import Loads
from gpushare.scheduler.power import PowerHooks, run_program


class Leader:
    """The core as an engine whose entries are durable at once, with the hooks hung on it. Hooks write to `told`."""

    def __init__(self, home: Path, down: str = "", up: str = "", timeout_s: float = 20.0) -> None:
        self.cluster = Cluster()
        self.dropped: list[str] = []
        self.told = home / "told"
        self.gate = home / "gate"
        commands = {Power.DOWN: self.command("down", down), Power.WAKING: self.command("up", up)}
        self.hooks = PowerHooks(cast("Engine", self), commands, timeout_s, drop=self.dropped.append)

    def command(self, verb: str, text: str) -> tuple[str, ...]:
        script = f'echo "{verb} $1" >> "{self.told}"; {text.replace("GATE", str(self.gate))}'
        return ("/bin/sh", "-c", script, "hook", "{node}")

    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    async def execute(self, command: Command, call: Call) -> None:
        seq = self.state.seq
        self.cluster.must(command, call.principal)
        self.project(seq)

    def ask(self, power: Power, *nodes: str) -> None:
        seq = self.state.seq
        self.cluster.apply([NodePowerRequested(node=node, power=power) for node in nodes])
        self.project(seq)

    def project(self, after_seq: int) -> None:
        thunk = self.hooks.project([e for e in self.cluster.journal if e.seq > after_seq], self.state)
        if thunk is not None:
            thunk()

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []

    async def __aenter__(self) -> Leader:
        self._task = asyncio.create_task(self.hooks.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.01)


WAIT_FOR_GATE = 'while [ ! -e "GATE" ]; do sleep 0.02; done'


def test_one_hook_a_node_at_a_time_and_only_the_latest_request_counts(tmp_path: Path) -> None:
    async def body() -> None:
        leader = Leader(tmp_path, down=WAIT_FOR_GATE)
        leader.cluster.node("n1", 1)
        leader.cluster.node("n2", 1)
        async with leader:
            leader.ask(Power.DOWN, "n1")
            await until(leader.lines, "the hook of n1 has begun")
            leader.cluster.must(NodeSessionClosed(node="n1"))
            for power in (Power.WAKING, Power.DOWN, Power.WAKING):
                leader.ask(power, "n1")
            leader.ask(Power.WAKING, "n2")
            await until(lambda: len(leader.lines()) == 2, "another node need not wait")
            assert leader.lines() == ["down n1", "up n2"]
            leader.gate.touch()
            await until(lambda: len(leader.lines()) == 3, "n1 is woken")
            assert leader.lines()[2] == "up n1"

    run(body)


def test_many_nodes_are_served_by_a_few_hooks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_module, "HOOKS_MAX", 3)

    async def body() -> None:
        leader = Leader(tmp_path, down=WAIT_FOR_GATE)
        names = [f"n{k}" for k in range(8)]
        for name in names:
            leader.cluster.node(name, 1)
        async with leader:
            leader.ask(Power.DOWN, *names)
            await until(lambda: len(leader.lines()) == 3, "three have begun")
            await asyncio.sleep(0.2)
            assert len(leader.lines()) == 3
            leader.gate.touch()
            await until(lambda: len(leader.lines()) == 8, "all have been served")
            assert sorted(leader.lines()) == [f"down {name}" for name in names]

    run(body)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo no such host; exit 4", "power_down_command failed with exit code 4: no such host"),
        ("kill -9 $$", "power_down_command failed with exit code 137"),
        ("echo waiting; sleep 60", "power_down_command did not end within 0.5 s and was killed: waiting"),
    ],
)
def test_a_node_whose_hook_fails_stays_in_use_and_says_why(tmp_path: Path, text: str, said: str) -> None:
    async def body() -> None:
        leader = Leader(tmp_path, down=text, timeout_s=0.5)
        leader.cluster.node("n1", 1)
        async with leader:
            leader.ask(Power.DOWN, "n1")
            node = leader.state.nodes["n1"]
            assert not node.is_placeable
            await until(lambda: node.power is Power.ON, "the failure is noted")
            assert node.is_placeable
            assert node.power_detail == said
            assert leader.lines() == ["down n1"]

    run(body)


def test_a_node_that_cannot_be_woken_sleeps_on(tmp_path: Path) -> None:
    async def body() -> None:
        leader = Leader(tmp_path, up="exit 1")
        leader.cluster.node("n1", 1)
        leader.cluster.must(NodeSessionClosed(node="n1"))
        async with leader:
            leader.ask(Power.WAKING, "n1")
            await until(lambda: leader.state.nodes["n1"].power is Power.DOWN, "the failure is noted")
            assert leader.state.nodes["n1"].power_detail == "power_up_command failed with exit code 1"
            assert leader.dropped == []

    run(body)


@pytest.mark.parametrize("code", [0, 1])
def test_a_node_that_was_never_gone_is_made_to_sync_whatever_the_hook_says(tmp_path: Path, code: int) -> None:
    async def body() -> None:
        leader = Leader(tmp_path, up=f"exit {code}")
        leader.cluster.node("n1", 1)
        async with leader:
            leader.ask(Power.WAKING, "n1")
            await until(lambda: leader.dropped, "the session is ended")
            assert leader.state.nodes["n1"].power is Power.WAKING
            leader.cluster.node("n1", 1)
            assert leader.state.nodes["n1"].is_placeable

    run(body)


def test_the_next_leader_asks_again_for_what_may_not_have_happened(tmp_path: Path) -> None:
    async def body() -> None:
        leader = Leader(tmp_path)
        for name in ("n1", "n2", "n3"):
            leader.cluster.node(name, 1)
        # Written by an earlier leader.
        leader.cluster.apply(
            [NodePowerRequested(node="n1", power=Power.WAKING), NodePowerRequested(node="n2", power=Power.DOWN)]
        )
        async with leader:
            await until(leader.lines, "n1 is woken")
            assert leader.lines() == ["up n1"]
            seq = leader.state.seq
            leader.cluster.node("n2", 1)
            leader.cluster.node("n3", 1)
            leader.project(seq)
            await until(lambda: len(leader.lines()) == 2, "n2 is still there, so it is put to sleep")
            assert leader.lines()[1] == "down n2"

    run(body)


def test_only_requests_start_hooks_not_the_word_that_one_failed(tmp_path: Path) -> None:
    leader = Leader(tmp_path)
    leader.cluster.node("n1", 1)
    failed = NodePowerRequested(node="n1", power=Power.DOWN, detail="it did not come back")
    leader.cluster.apply([failed])
    assert leader.hooks.project([Entry(1, 0, 1, failed)], leader.state) is None
    synced = [e for e in leader.cluster.journal if isinstance(e.event, NodeSynced)]
    leader.cluster.apply([NodePowerRequested(node="n1", power=Power.ON)])
    assert leader.hooks.project(synced, leader.state) is None


@pytest.mark.parametrize(
    ("power", "ready", "shown"),
    [("ON", True, "ACTIVE"), ("DOWN", True, "GOING_DOWN"), ("DOWN", False, "ASLEEP"), ("WAKING", False, "WAKING")],
)
def test_a_list_of_nodes_does_not_call_a_sleeping_one_unreachable(power: str, ready: bool, shown: str) -> None:
    state = NodeState.NODE_STATE_ACTIVE if ready else NodeState.NODE_STATE_UNREACHABLE
    node = Node(name="nodes/n1", state=state, ready=ready, cordoned=True, power=ShownPower.Value(f"POWER_{power}"))
    assert node_row(node)[1] == f"{shown},cordoned"


# -- programs


def program(*words: str, timeout_s: float = 10.0) -> tuple[int | None, str]:
    async def body() -> tuple[int | None, str]:
        return await asyncio.wait_for(run_program(words, timeout_s), 20)

    return asyncio.run(body())


def test_words_are_words_and_no_shell_reads_them() -> None:
    assert program("/bin/echo", "$HOME; exit 3 `id`") == (0, "$HOME; exit 3 `id`")


def test_a_program_that_is_not_there_is_a_failure_with_its_name() -> None:
    code, said = program("/nowhere/ipmi")
    assert (code, said) == (127, "/nowhere/ipmi: No such file or directory")


def test_a_program_that_prints_without_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code, said = program("/bin/sh", "-c", f"sleep 600 & echo $! > {pid_file}; yes spam", timeout_s=0.5)
    assert code is None
    assert said.startswith("spam")
    pid = int(pid_file.read_text())
    deadline_s = time.monotonic() + 10
    while _is_alive(pid):
        assert time.monotonic() < deadline_s, "what the program started is left"
        time.sleep(0.01)


def test_what_a_hook_leaves_running_does_not_hold_it_up() -> None:
    began_s = time.monotonic()
    assert program("/bin/sh", "-c", "sleep 5 & echo done") == (0, "done")
    assert time.monotonic() - began_s < 4


def test_our_own_settings_do_not_reach_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSHARE_TOKEN", "secret")
    assert program("/bin/sh", "-c", 'echo "[$GPUSHARE_TOKEN]"') == (0, "[]")


def _is_alive(pid: int) -> bool:
    """It runs; a zombie that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")


# -- loads


class Seconds:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def loads_after(*samples: tuple[float, int], at_s: float) -> dict[str, Any]:
    clock = Seconds()
    loads = Loads(clock)
    for taken_s, percent in samples:
        clock.now_s = taken_s
        loads.note("GPU-1", percent)
    clock.now_s = at_s
    return loads.percent()


def test_a_card_that_stays_busy_counts_as_such_after_a_while() -> None:
    steady = [(5.0 * k, 80) for k in range(40)]
    assert loads_after(*steady[:7], at_s=30) == {"GPU-1": 40}
    assert loads_after(*steady, at_s=195)["GPU-1"] >= 78


def test_one_spike_moves_nothing_that_matters() -> None:
    quiet = [(5.0 * k, 0) for k in range(20)]
    assert loads_after(*quiet, (100.0, 100), (105.0, 0), at_s=106)["GPU-1"] <= 12


def test_how_often_a_card_is_measured_changes_nothing() -> None:
    often = [(1.0 * k, 60) for k in range(61)]
    rarely = [(20.0 * k, 60) for k in range(4)]
    assert loads_after(*often, at_s=60) == loads_after(*rarely, at_s=60) == {"GPU-1": 45}


def test_what_was_not_measured_lately_is_not_known() -> None:
    assert loads_after((0, 100), (30, 100), at_s=90)["GPU-1"] > 0
    assert loads_after((0, 100), (30, 100), at_s=90.5) == {}
    assert loads_after((0, 100), (30, 100), (200, 100), at_s=200) == {"GPU-1": 0}
