"""The end of jobs behind an MPS server: their clients go before any kill, and a death before that is not ignored."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from executor_kit import eventually

from gpushare_agent import agent as agent_module
from gpushare_agent.agent import Agent, NodeFacts
from gpushare_agent.core import Holding
from gpushare_agent.identity import StateDirectory
from gpushare_agent.inventory import HostSize
from gpushare_agent.launchspec import AttemptStatus
from gpushare_agent.scratch import ScratchSpace
from gpushare_agent.sharing.port import Termination

JOB, CARD = "v.1.0.1", "GPU-a"


class Log:
    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = error = info


class Executor:
    """An executor of one running job."""

    containment = "weak"

    def pids(self, attempt_id: str) -> set[int]:
        return {7, 8}

    def log_dir(self, attempt_id: str) -> Path:
        return Path("/nonexistent")

    async def recover(self) -> list[AttemptStatus]:
        return [status("RUNNING")]


class Fence:
    """Remembers what was asked of the MPS server."""

    def __init__(self, failed: tuple[int, ...] = ()) -> None:
        self.failed = failed
        self.terminated: list[Sequence[int]] = []
        self.suspected: list[str] = []
        self.released: list[str] = []

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        self.terminated.append(pids)
        return Termination(failed=self.failed)

    def suspect(self, attempt_id: str, cause: str) -> None:
        assert self.released == []
        self.suspected.append(attempt_id)

    async def release(self, attempt_id: str) -> None:
        self.released.append(attempt_id)


def status(state: str, **fields: Any) -> AttemptStatus:
    return AttemptStatus(attempt_id=JOB, state=state, boot_id="b", **fields)  # type: ignore[arg-type]


async def running(root: Path, fence: Fence, tier: str = "mps-v2", grace_ms: int = 0) -> Agent:
    state = StateDirectory.open(root)
    facts = NodeFacts(state.begin(), "b", HostSize(1000, 1000), {})
    scratch = ScratchSpace(root / "scratch", lambda path: None)
    scratch.open()
    found = Agent(facts, state, Executor(), fence, scratch, Log())  # type: ignore[arg-type]
    held = Holding(attempt_id=JOB, tier=tier, gpu_uuids=(CARD,), gpu_milli=250, grace_ms=grace_ms)
    found._book.write(held)
    await found.recover()
    return found


KILLED = {"reason": "TIME_LIMIT", "signal": signal.SIGKILL, "stop_signal": signal.SIGKILL}


@pytest.mark.parametrize("grace_ms", [0, 1600])
def test_a_shim_that_ends_a_job_has_its_clients_ended_before_the_kill(tmp_path: Path, grace_ms: int) -> None:
    async def body() -> None:
        fence = Fence()
        found = await running(tmp_path, fence, grace_ms=grace_ms)
        found.on_card_users([JOB])
        for _ in range(2):
            found.on_status(status("STOPPING", reason="TIME_LIMIT"))
        await eventually(lambda: found._client_ends._let_go)
        found.on_status(status("FAILED", **KILLED))
        await eventually(lambda: fence.released)
        assert fence.terminated == [[7, 8]]
        assert (fence.suspected, found.fence_doubts()) == ([], {})
        await found.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("end", "on_card", "failed", "suspect"),
    [
        (KILLED, True, (7,), True),
        ({"reason": "HOST_MEMORY_LIMIT", "signal": signal.SIGKILL}, True, (), True),
        ({"reason": "SIGNALLED", "signal": signal.SIGSEGV}, True, (), True),
        ({"reason": "SIGNALLED", "signal": signal.SIGSEGV}, False, (), False),
        ({"reason": "SIGNALLED", "signal": signal.SIGTERM}, True, (), False),
        ({"reason": "EXIT_CODE", "exit_code": 1}, True, (), False),
    ],
)
def test_a_client_that_died_under_its_server_keeps_new_shares_off_the_card(
    tmp_path: Path, end: dict[str, Any], on_card: bool, failed: tuple[int, ...], suspect: bool
) -> None:
    async def body() -> None:
        fence = Fence(failed)
        found = await running(tmp_path, fence)
        found.on_card_users([JOB] if on_card else [])
        if "stop_signal" in end:
            found.on_status(status("STOPPING", reason="TIME_LIMIT"))
            await eventually(lambda: fence.terminated)
        found.on_status(status("FAILED", **end))
        await eventually(lambda: fence.released)
        assert fence.suspected == ([JOB] if suspect else [])
        assert list(found.fence_doubts()) == ([CARD] if suspect else [])
        await found.close()

    asyncio.run(body())


def test_a_job_without_mps_has_no_clients_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "TERMINATE_BEFORE_KILL_S", 0.0)

    async def body() -> None:
        fence = Fence()
        found = await running(tmp_path, fence, tier="timeslice")
        found.on_card_users([JOB])
        found.on_status(status("STOPPING", reason="TIME_LIMIT"))
        found.on_status(status("FAILED", **KILLED))
        await eventually(lambda: fence.released)
        assert (fence.terminated, fence.suspected, found.fence_doubts()) == ([], [], {})
        await found.close()

    asyncio.run(body())
