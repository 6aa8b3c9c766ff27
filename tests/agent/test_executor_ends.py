"""What a task hears of its end: early signals, the stop notice, a limit that is extended. Real shims and processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from executor_kit import (
    BOTH_KINDS,
    NOBODY,
    Host,
    eventually,
    host,
    needs_groups,
    needs_root,
    open_directory,
    python,
    run,
    shell,
)

from gpushare.reasons import Reason
from gpushare_agent.core import AgentCore, Refused, SetLimit, StartOrder, Tell
from gpushare_agent.launchspec import AttemptStatus

TASK = "t.1.0.1"
# Two processes that each say which signals they heard.
PAIR = """
import os, signal, sys, time
who = "child" if os.fork() == 0 else "leader"
signal.signal(signal.SIGUSR1, lambda *_: print(who, "USR1", flush=True))
print(who, "ready", flush=True)
while True:
    time.sleep(0.05)
"""


def early(before_ms: int, to_all: bool = False) -> dict[str, Any]:
    return {
        "early_signal": int(signal.SIGUSR1),
        "early_signal_ms": before_ms,
        "early_signal_to_all": to_all,
    }


def notice_of(here: Host) -> dict[str, Any] | None:
    path = here.executor.stop_notice(TASK)
    return json.loads(path.read_text()) if path.exists() else None


def ms_until(deadline: str) -> float:
    return (datetime.fromisoformat(deadline) - datetime.now(UTC)).total_seconds() * 1000


@pytest.mark.parametrize("weak", BOTH_KINDS)
@pytest.mark.parametrize(("to_all", "heard"), [(False, {"leader"}), (True, {"leader", "child"})])
def test_an_early_signal_reaches_the_leader_alone_or_all(
    tmp_path: Path, weak: bool, to_all: bool, heard: set[str]
) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            # Far off at first, so that both are ready before the signal is due.
            await here.executor.launch(python(TASK, PAIR, run_limit_ms=600_000, grace_ms=500, **early(599_000, to_all)))
            await eventually(lambda: here.stdout(TASK).count("ready") == 2)
            await eventually(lambda: here.stdout(TASK).count("USR1") == len(heard))
            here.executor.set_run_limit(TASK, 1)
            found = await here.ended(TASK)
            lines = [line.split()[0] for line in here.stdout(TASK).splitlines() if line.endswith("USR1")]
            assert (set(lines), len(lines)) == (heard, len(heard))
            assert (found.state, found.reason) == ("FAILED", Reason.TIME_LIMIT)

    run(body())


def test_the_notice_is_there_from_the_early_signal_on_and_says_when_it_is_over(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            code = "trap 'cat $GPUSHARE_STOP_NOTICE' USR1; trap 'cat $GPUSHARE_STOP_NOTICE; exit 85' TERM; echo ready; "
            path = str(here.executor.stop_notice(TASK))
            await here.executor.launch(
                shell(
                    TASK,
                    f"test -e $GPUSHARE_STOP_NOTICE && exit 9; {code} while :; do sleep 0.05; done",
                    env={"GPUSHARE_STOP_NOTICE": path},
                    run_limit_ms=3000,
                    grace_ms=20_000,
                    **early(1500),
                )
            )
            await here.running(TASK)
            assert notice_of(here) is None
            found = await here.ended(TASK)
            # Its own code is told beside the limit, so that it can ask to be queued again.
            assert (found.state, found.reason, found.exit_code) == ("FAILED", Reason.TIME_LIMIT, 85)
            warning, stop = (json.loads(line) for line in here.stdout(TASK).splitlines()[1:])
            assert (warning["signal"], stop["signal"]) == ("SIGUSR1", "SIGTERM")
            for said in (warning, stop):
                assert set(said) == {"reason", "detail", "deadline", "grace_s", "signal"}
                assert (said["reason"], said["grace_s"]) == ("TIME_LIMIT", 20)
            # Both name the same end: of the grace after the limit.
            first, second = (datetime.fromisoformat(said["deadline"]) for said in (warning, stop))
            assert abs((first - second).total_seconds()) < 2

    run(body())


@pytest.mark.parametrize("reason", [Reason.PREEMPTED, Reason.REQUEUED, Reason.CANCELLED])
def test_every_stop_with_a_grace_is_announced(tmp_path: Path, reason: Reason) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell(TASK, "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
            await eventually(lambda: here.stdout(TASK) == "ready\n")
            await here.executor.stop(TASK, reason, 30_000, "for vision/7")
            said = await eventually(lambda: notice_of(here))
            assert (said["reason"], said["detail"], said["signal"]) == (reason.value, "for vision/7", "SIGTERM")
            assert 0 < ms_until(said["deadline"]) <= 30_000
            await here.executor.stop(TASK, reason, 0)
            await here.ended(TASK)
            await here.executor.forget(TASK)
            assert not here.executor.stop_notice(TASK).parent.exists()

    run(body())


@needs_root
@needs_groups
def test_the_job_can_read_the_notice_and_not_change_where_it_leads(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")

    async def body(state_dir: Path) -> None:
        async with host(state_dir, run_as_self=False) as here:
            path = here.executor.stop_notice(TASK)
            code = (
                f"for name in {path} {path}.tmp; do ln -s {secret} $name 2>/dev/null && echo linked; done; "
                f"trap 'cat {path}; rm -f {path}; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
            )
            await here.executor.launch(shell(TASK, code, user=NOBODY))
            await eventually(lambda: here.stdout(TASK) == "ready\n")
            await here.executor.stop(TASK, Reason.PREEMPTED, 20_000)
            await here.ended(TASK)
            assert json.loads(here.stdout(TASK).splitlines()[1])["reason"] == "PREEMPTED"
            found = path.stat(follow_symlinks=False)
            assert (found.st_uid, found.st_mode & 0o777) == (0, 0o440)
            assert secret.read_text() == "root's"

    with open_directory() as state_dir:
        run(body(state_dir))


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_an_extension_holds_across_a_restart_of_the_agent(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            began = time.monotonic()
            await here.executor.launch(shell(TASK, "exec sleep 600", run_limit_ms=2000, grace_ms=500))
            await here.running(TASK)
            here.executor.set_run_limit(TASK, 4000)
            await here.restart()
            found = await here.ended(TASK)
            assert time.monotonic() - began >= 4
            assert (found.state, found.reason) == ("FAILED", Reason.TIME_LIMIT)
            assert found.detail.startswith("it ran into its time limit of 4 s")

    run(body())


def test_an_extension_takes_the_warning_back_and_it_comes_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(python(TASK, PAIR, run_limit_ms=601_000, grace_ms=500, **early(600_000)))
            await eventually(lambda: here.stdout(TASK).count("USR1") == 1)
            await eventually(lambda: notice_of(here) is not None)
            here.executor.set_run_limit(TASK, 603_500)
            await eventually(lambda: notice_of(here) is None)
            await eventually(lambda: here.stdout(TASK).count("USR1") == 2)
            assert ms_until((await eventually(lambda: notice_of(here)))["deadline"]) > 590_000

    run(body())


def test_a_shim_sleeps_through_the_grace_after_a_time_limit(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(
                shell(TASK, "trap '' TERM; while :; do sleep 0.05; done", run_limit_ms=300, grace_ms=1500)
            )
            await here.running(TASK)
            stat = Path(f"/proc/{here.shim_pid(TASK)}/stat")
            await eventually(lambda: here.status(TASK).state == "STOPPING")
            before = spent = _cpu_s(stat)
            while not here.status(TASK).final:
                spent = max(spent, _cpu_s(stat))
                await asyncio.sleep(0.02)
            assert spent - before < 0.5

    run(body())


def test_an_order_to_extend_is_obeyed_for_what_lives_here_and_by_the_newest_leader_alone() -> None:
    core = AgentCore(highest_term=3)
    order = {"job_id": "1", "task_index": 0, "task_count": 1, "number": 1, "unix_user": "ann", "argv": ("x",)}
    core.start(StartOrder(attempt_id=TASK, term=3, script=b"", env={}, working_directory="/", **order))
    assert core.set_run_limit(TASK, 3, 9000) == [SetLimit(TASK, 9000)]
    for attempt_id, term, reason in ((TASK, 2, Reason.STALE_TERM), ("t.2.0.1", 3, Reason.STALE_ATTEMPT)):
        (refused,) = core.set_run_limit(attempt_id, term, 9000)
        assert isinstance(refused, Refused)
        assert refused.reason is reason
    core.observe(AttemptStatus(attempt_id=TASK, state="SUCCEEDED", boot_id="b", reason=Reason.COMPLETED, exit_code=0))
    (told,) = core.set_run_limit(TASK, 3, 9000)
    assert isinstance(told, Tell)


def _cpu_s(stat: Path) -> float:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
