"""Daemons are stopped, killed and started again while jobs run; two agents with one identity."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import leaks
import pytest
from live_cluster import Daemon, attempt_of, clean_environment, live_cluster, run, state_of, states, until
from witness import MARK, boot_s, hold

from gpushare.client.messages import NodeState


async def both_restarted(home: Path) -> None:
    async with live_cluster(home, {"n1": "2xH100-80GB"}) as cluster:
        gate = home / "gate"
        names = await cluster.submit(*(cluster.shell(hold(gate, f"exit {n}"), gpus="0.5") for n in (4, 5, 6)))
        before = await cluster.running(names)
        agent = cluster.agents["n1"]

        took_s = await agent.stop()
        assert took_s < 5
        assert all(life.alive for life in cluster.witness.lives().values()), "a stopped agent took its jobs with it"
        await cluster.scheduler.stop()
        cluster.scheduler.start()
        agent.start()
        await cluster.settled("n1")

        agent.kill()
        cluster.scheduler.kill()
        agent.start()
        await asyncio.sleep(0.5)
        cluster.scheduler.start()
        await cluster.settled("n1")

        after = await cluster.in_state(names, "RUNNING")
        assert [job.tasks[0].attempt_id for job in after] == [job.tasks[0].attempt_id for job in before]
        assert [job.start_time for job in after] == [job.start_time for job in before]
        log = [text async for text in cluster.client.stream_logs(names[0])]
        assert log == []
        gate.touch()
        ended = await cluster.ended(names)
        assert [ended[name].exit_code for name in names] == [4, 5, 6]
        assert len(cluster.witness.starts()) == 3


def test_both_daemons_are_restarted_while_jobs_run(tmp_path: Path) -> None:
    run(lambda: both_restarted(tmp_path / "c"))


async def cancel_pending(home: Path) -> None:
    async with live_cluster(home, {"n1": "2xH100-80GB"}) as cluster:
        names = await cluster.submit(
            cluster.shell(hold(home / "gate"), gpus=1),
            cluster.shell(f"trap '' TERM; {hold(home / 'gate')}", gpus=1, grace="1s"),
        )
        await cluster.running(names)
        agent = cluster.agents["n1"]
        agent.freeze()
        for name in names:
            assert state_of(await cluster.client.cancel_job(name)) == "CANCELLING"
        cluster.scheduler.kill()
        cluster.scheduler.start()
        for job in await cluster.in_state(names, "CANCELLING"):
            assert job.cancelled_by.user == "ann"
        assert all(life.alive for life in cluster.witness.lives().values())
        agent.thaw()
        ended = await cluster.ended(names)
        for name, how in zip(names, (signal.SIGTERM, signal.SIGKILL), strict=True):
            assert (state_of(ended[name]), ended[name].signal) == ("CANCELLED", how), ended[name]
            assert states(ended[name]) == [("STOPPED", "CANCELLED")]


def test_a_cancel_that_was_answered_is_carried_out_after_a_restart(tmp_path: Path) -> None:
    run(lambda: cancel_pending(tmp_path / "c"))


# Run in a mount namespace of its own without control groups: what a clone of the disk on another host would see.
ELSEWHERE = ("unshare", "--mount", "/bin/sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$0" "$@"')


async def two_agents_with_one_identity(home: Path) -> None:
    async with live_cluster(home, {"n1": "1xH100-80GB"}) as cluster:
        gate = home / "gate"
        (name,) = await cluster.submit(cluster.shell(hold(gate, "exit 8"), gpus=1))
        (job,) = await cluster.running([name])
        contained = job.tasks[0].containment != "weak"
        if contained:
            twin = twin_of(cluster.agents["n1"], home, "twin1")
            assert await twin.ended() == 1
            assert "another agent with this one's identity" in twin.log()

        twin = twin_of(cluster.agents["n1"], home, "twin2", ELSEWHERE if contained else ())
        await until(lambda: "DUPLICATE_AGENT" in twin.log() or not twin.running, "the twin is refused")
        assert "DUPLICATE_AGENT" in twin.log(), twin.log()
        assert "two agents with one identity" in cluster.scheduler.log()
        node = await cluster.node("n1")
        assert (node.state, node.ready) == (NodeState.NODE_STATE_ACTIVE, True)
        twin.kill()
        (after,) = await cluster.in_state([name], "RUNNING")
        assert after.tasks[0].attempt_id == job.tasks[0].attempt_id
        gate.touch()
        assert (await cluster.ended([name]))[name].exit_code == 8
        assert cluster.witness.starts() == [job.tasks[0].attempt_id]


def twin_of(agent: Daemon, home: Path, name: str, prefix: Sequence[str] = ()) -> Daemon:
    """Another agent with the identity and the credentials of this one, as after a disk was cloned. Its counter of
    starts is no higher than the original's: a higher one would be the same agent started again."""
    state = home / name / "state"
    state.mkdir(parents=True, mode=0o711)
    source = agent.config.with_suffix("") / "state"
    for file in ("identity", "credentials"):
        shutil.copy(source / file, state / file)
    identity = json.loads((state / "identity").read_text())
    identity["start_counter"] -= 1
    (state / "identity").write_text(json.dumps(identity))
    config = home / f"{name}.toml"
    lines = [line for line in agent.config.read_text().splitlines() if not line.startswith("join_file")]
    config.write_text("\n".join(lines).replace(f'"{home}/n1', f'"{home}/{name}') + "\n")
    twin = Daemon(name, "gpushare_agent.main", config, clean_environment(), prefix)
    twin.start()
    return twin


@pytest.mark.skipif(
    os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
    reason="needs unshare to show one agent another host's control groups",
)
def test_a_second_agent_with_the_same_identity_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    run(lambda: two_agents_with_one_identity(tmp_path / "c"))


async def output_survives(home: Path) -> None:
    async with live_cluster(home, {"n1": "1xH100-80GB"}) as cluster:
        gate = home / "gate"
        text = f"{MARK} mark start; echo before; while [ ! -e '{gate}' ]; do sleep 0.05; done; echo after; exit 2"
        (name,) = await cluster.submit(cluster.shell(text, gpus=1))
        await cluster.running([name])

        async def follow() -> bytes:
            return b"".join([piece.data async for piece in cluster.client.stream_logs(name, follow=True, limit_s=60)])

        following = asyncio.create_task(follow())
        cluster.agents["n1"].kill()
        cluster.scheduler.kill()
        cluster.scheduler.start()
        cluster.agents["n1"].start()
        await cluster.settled("n1")
        gate.touch()
        assert await following == b"before\nafter\n"
        assert (await cluster.ended([name]))[name].exit_code == 2
        assert os.listdir(cluster.node_home("n1") / "state" / "logs")


def test_output_is_whole_for_a_reader_who_followed_it_through_both_crashes(tmp_path: Path) -> None:
    run(lambda: output_survives(tmp_path / "c"))


PROBE_AND_RELEASE = """
import sys, time
from gpushare_agent import cgroups
until_s = time.monotonic() + 1.5
while time.monotonic() < until_s:
    cgroups.release(cgroups.probe(sys.argv[1]))
"""


needs_groups = pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="needs control groups of its own")


def probing(instance: str, **options: Any) -> subprocess.Popen[str]:
    """The first thing that an agent does, again and again for a while."""
    return subprocess.Popen([sys.executable, "-c", PROBE_AND_RELEASE, instance], text=True, **options)


@needs_groups
def test_agents_that_start_and_end_at_the_same_moment_keep_their_control_groups(tmp_path: Path) -> None:
    agents = [probing(f"{tmp_path.name}-{n}", stderr=subprocess.PIPE) for n in range(2)]
    said = [agent.communicate(timeout=30)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said


@needs_groups
def test_agents_killed_while_they_look_at_their_host_leave_nothing_behind(tmp_path: Path) -> None:
    instance = tmp_path.name
    for number in range(5):
        agent = probing(instance)
        until_s = time.monotonic() + 10
        while not leaks.groups_of([instance]) and time.monotonic() < until_s:
            time.sleep(0.001)
        time.sleep(0.002 * number)
        agent.kill()
        agent.wait()
    agent = probing(instance)
    assert agent.wait(30) == 0
    assert leaks.groups_of([instance]) == []


READ_AT_ONCE = """
import sys, threading
from pathlib import Path
from gpushare.reasons import Reason
from gpushare_agent import checkpoint, records, settle
from gpushare_agent.launchspec import AttemptStatus, LaunchSpec

def written(folder):
    spec = LaunchSpec(attempt_id=folder.name, argv=("x",), env={}, cwd="/", log_cap_bytes=1)
    intent = checkpoint.Intent(
        boot_id="b", containment="weak", tag="t", log_dir="/l", script=None, groups=None, spec=spec
    )
    folder.mkdir()
    dirfd = records.open_directory(str(folder))
    checkpoint.write_intent(dirfd, intent)
    end = AttemptStatus(attempt_id=folder.name, state="FAILED", boot_id="b", reason=Reason.INFRA)
    checkpoint.write_exit(dirfd, end)
    return folder

def read(folder):
    barrier.wait()
    found = settle.look(folder, folder.name)
    assert found.intent is not None and found.finished is not None

folders = [written(Path(sys.argv[1], f"t.{n}.0.1")) for n in range(8)]
barrier = threading.Barrier(len(folders))
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=read, args=(folder,)) for folder in folders]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("time", range(8))
def test_a_restarted_agent_reads_many_attempts_at_once(tmp_path: Path, time: int) -> None:
    """Each time in a new process: what is read first, by several threads, is where a decoder may crash."""
    done = subprocess.run(
        [sys.executable, "-c", READ_AT_ONCE, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def shims_keep_time(home: Path) -> None:
    async with live_cluster(home, {"n1": "4xH100-80GB"}) as cluster:
        forever = hold(home / "never")
        deaf = f"trap '' TERM; {forever}"
        limited, deaf_name, orphan = await cluster.submit(
            cluster.shell(deaf, gpus=1, time="3s", grace="1s"),
            cluster.shell(deaf, gpus=1, grace="2s"),
            cluster.shell(deaf, gpus=1, grace="100s"),
        )
        await cluster.running([limited, deaf_name, orphan])
        asked_s = boot_s()
        for name in (deaf_name, orphan):
            await cluster.client.cancel_job(name)
            stop = cluster.records("n1", attempt_of(name, 1)) / "stop"
            await until(stop.exists, f"the stop of {name} is written down")
        cluster.agents["n1"].kill()
        cluster.scheduler.kill()
        await cluster.end_attempt("n1", attempt_of(orphan, 1))

        for name in (limited, deaf_name):
            record = cluster.records("n1", attempt_of(name, 1)) / "exit"
            await until(record.exists, f"{name} is ended by its shim alone", 20)
        lives = cluster.witness.lives()
        one, two = lives[attempt_of(limited, 1)], lives[attempt_of(deaf_name, 1)]
        assert 3.5 < one.last_s - one.start_s < 5.5, "a time limit of 3 s and a grace of 1 s"
        assert 1.5 < two.last_s - asked_s < 3.5, "a grace of 2 s"

        cluster.agents["n1"].start()
        cluster.scheduler.start()
        ended = await cluster.ended([limited, deaf_name, orphan])
        assert (state_of(ended[limited]), ended[limited].reason, ended[limited].exit_code) == (
            "FAILED", "TIME_LIMIT", 124,
        )  # fmt: skip
        for name in (deaf_name, orphan):
            job = ended[name]
            assert (state_of(job), job.reason, job.signal) == ("CANCELLED", "CANCELLED", signal.SIGKILL), job
        assert len(cluster.witness.starts()) == 3


def test_time_limits_and_graces_run_on_while_scheduler_and_agent_are_dead(tmp_path: Path) -> None:
    run(lambda: shims_keep_time(tmp_path / "c"))
