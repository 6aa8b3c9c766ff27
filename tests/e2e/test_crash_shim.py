"""A shim's sudden death ends its job as an INFRA loss; a job that does not want to end ends all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from live_cluster import LiveCluster, attempt_of, attempt_state, live_cluster, run, state_of, states, until
from witness import MARK, hold, pid_alive

INFRA_RETRIES = 5
# Leaves the session and the parent, and hears nothing: only its control group, or its environment, still tells of it.
DAEMON = (
    "setsid sh -c \"trap '' TERM HUP INT; (echo \\$\\$ >> '{pids}'; while :; do sleep 0.05; done) &\" "
    "> /dev/null 2>&1 < /dev/null"
)


def daemonizing(pids: Path, then: str) -> str:
    """A job that leaves a daemon behind, which writes its pid, before it does `then`."""
    started = f"while [ ! -s '{pids}' ]; do sleep 0.02; done"
    return f"{MARK} trap '' HUP; {DAEMON.format(pids=pids)}; {started}; mark start; {then}"


async def shims_die(home: Path) -> None:
    async with live_cluster(home, {"n1": "1xH100-80GB"}, infra_backoff_ms=20) as cluster:
        pids = home / "pids"
        text = daemonizing(pids, "while :; do sleep 0.05; mark beat; done")
        (name,) = await cluster.submit(cluster.shell(text, gpus=1, max_retries="0", grace="1s"))
        for number in range(1, INFRA_RETRIES + 2):
            attempt_id = attempt_of(name, number)
            await until(lambda a=attempt_id: a in cluster.witness.lives(), f"{attempt_id} runs")
            job = await cluster.job(name)
            assert (job.infra_retries, job.retries) == (number - 1, 0)
            os.kill(await cluster.shim_pid("n1", attempt_id), signal.SIGKILL)
            life = cluster.witness.lives()[attempt_id]
            await until(lambda life=life: not life.alive, f"{attempt_id} has ended")
        job = (await cluster.ended([name]))[name]
        assert (state_of(job), job.reason, job.exit_code) == ("FAILED", "INFRA", 125)
        assert (job.infra_retries, job.retries) == (INFRA_RETRIES, 0)
        assert states(job) == [("FAILED", "INFRA")]
        assert f"lost {INFRA_RETRIES + 1} times" in job.detail
        daemons = [int(line) for line in pids.read_text().split()]
        assert len(daemons) == INFRA_RETRIES + 1
        assert not [pid for pid in daemons if pid_alive(pid)], "what a job left behind outlived its attempt"


def test_kill_9_of_a_shim_ends_its_job_which_is_tried_again_five_times_free_of_charge(tmp_path: Path) -> None:
    run(lambda: shims_die(tmp_path / "c"))


async def cancel(cluster: LiveCluster, name: str) -> None:
    asked = await cluster.client.cancel_job(name)
    assert state_of(asked) in ("CANCELLING", "CANCELLED")


async def hard_to_end(home: Path) -> None:
    async with live_cluster(home, {"n1": "4xH100-80GB"}) as cluster:
        gate = home / "gate"
        deaf_pids, left_pids = home / "deaf", home / "left"
        deaf = daemonizing(deaf_pids, "trap '' TERM; while :; do sleep 0.05; mark beat; done")
        left = daemonizing(left_pids, f"while [ ! -e '{gate}' ]; do sleep 0.05; done; mark end; exit 9")
        names = await cluster.submit(
            cluster.shell(deaf, gpus=1, grace="1s"),
            cluster.shell(left, gpus=1, grace="1s"),
            cluster.shell(f"trap 'mark end; exit 3' TERM; {hold(gate)}", gpus=1, grace="20s"),
            cluster.shell(f"{MARK} mark start; kill -STOP $$", gpus=1, grace="1s"),
        )
        jobs = await cluster.running(names)
        gate.touch()
        ended = (await cluster.ended([names[1]]))[names[1]]
        assert (state_of(ended), ended.exit_code) == ("FAILED", 9)
        assert not pid_alive(int(left_pids.read_text())), "a child outlived the main process's end"

        gate.unlink()
        for name in (names[0], names[3]):
            await cancel(cluster, name)
        cancelled = await cluster.ended([names[0], names[3]])
        for name, how in ((names[0], signal.SIGKILL), (names[3], signal.SIGTERM)):
            job = cancelled[name]
            assert (state_of(job), job.reason) == ("CANCELLED", "CANCELLED"), job
            assert (job.signal, job.exit_code) == (how, 128 + how), job
            assert (attempt_state(job.tasks[0]), job.tasks[0].signal) == ("STOPPED", how)
            assert job.cancelled_by.user == "ann"
        for pid in [
            int(deaf_pids.read_text()),
            *(cluster.witness.lives()[j.tasks[0].attempt_id].pid for j in jobs[:2]),
        ]:
            assert not pid_alive(pid)


def test_a_job_that_daemonizes_and_ignores_sigterm_is_gone_after_its_grace(tmp_path: Path) -> None:
    run(lambda: hard_to_end(tmp_path / "c"))
