"""A job's time and end through the whole stack: real daemons, shims and processes, the command line of its user."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from upcluster import UpCluster


@pytest.fixture
def work(up_cluster: UpCluster, request: pytest.FixtureRequest) -> Path:
    found = up_cluster.home / request.node.name
    found.mkdir()
    return found


def submit(cluster: UpCluster, work: Path, *words: str) -> str:
    return cluster.ok("submit", "--parsable", *words, cwd=work).out.strip()


def shown(cluster: UpCluster, job: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.ok("job", job, "-o", "json").json
    return found


def test_code_85_queues_a_job_again_with_its_id_and_its_place(up_cluster: UpCluster, work: Path) -> None:
    # One card for both, so that they run one after the other.
    up_cluster.ok("tenant", "create", "narrow", "--limit", "1")
    whole = ("--tenant", "narrow", "--gpus", "1")
    script = "echo $GPUSHARE_JOB_ID.$GPUSHARE_ATTEMPT >> order; test $GPUSHARE_ATTEMPT = 3 || exit 85"
    first = submit(up_cluster, work, *whole, "--requeue-exit-code", "85", "--", "sh", "-c", script)
    second = submit(up_cluster, work, *whole, "--", "sh", "-c", "echo $GPUSHARE_JOB_ID.$GPUSHARE_ATTEMPT >> order")
    assert up_cluster.ok("wait", first, second).code == 0
    assert (work / "order").read_text().split() == ["1.1", "1.2", "1.3", "2.1"]
    assert (first, second) == ("narrow/1", "narrow/2")
    found = shown(up_cluster, first)
    assert (found["state"], found["requeues"], found["retries"]) == ("JOB_STATE_SUCCEEDED", 2, 0)


def test_a_job_that_is_warned_saves_its_work_and_goes_on_in_its_next_life(up_cluster: UpCluster, work: Path) -> None:
    script = """
        trap 'cat $GPUSHARE_STOP_NOTICE > saved; exit 85' USR1
        test -e saved && exit 0
        sleep 600 & while :; do wait; done
    """
    words = ["--gpus", "0", "--time", "3s", "--signal", "USR1@2s", "--requeue-exit-code", "85", "--grace", "2s"]
    job = submit(up_cluster, work, *words, "--", "sh", "-c", script)
    assert up_cluster.ok("wait", job).code == 0
    assert shown(up_cluster, job)["requeues"] == 1
    notice = json.loads((work / "saved").read_text())
    assert (notice["reason"], notice["signal"], notice["grace_s"]) == ("TIME_LIMIT", "SIGUSR1", 2)


def test_a_limit_is_extended_while_the_job_runs_and_not_beyond_the_cap(up_cluster: UpCluster, work: Path) -> None:
    up_cluster.ok("tenant", "create", "timed", "--max-time", "8h", "--default-time", "5s")
    line = up_cluster.ok("token", "create", "tom", "--tenant", "timed", "--role", "tenant-admin", "-o", "json").json
    up_cluster.ok("login", "-", person="tom", input=line["join"])
    script = "echo ready > ready; while [ ! -e gate ]; do sleep 0.05; done"
    job = submit(up_cluster, work, "--tenant", "timed", "--gpus", "0", "--", "sh", "-c", script)
    up_cluster.until(lambda: (work / "ready").exists(), "it runs")
    begun_s = time.monotonic()
    up_cluster.ok("extend", job, "=8h", person="tom")
    refused = up_cluster.cli("extend", job, "+1h", person="tom")
    assert refused.code == 1
    assert "RUN_LIMIT" in refused.err
    assert "9h is above 8h, the longest that jobs of tenant timed may run" in refused.err
    found = shown(up_cluster, job)
    assert (found["spec"]["maxRunDuration"], found["submittedRunDuration"]) == ("28800s", "5s")
    up_cluster.until(lambda: time.monotonic() > begun_s + 6, "its first limit is over")
    assert shown(up_cluster, job)["state"] == "JOB_STATE_RUNNING"
    (work / "gate").touch()
    assert up_cluster.ok("wait", job).code == 0


def test_requeue_runs_a_job_again_under_its_id_and_resubmit_under_another(up_cluster: UpCluster, work: Path) -> None:
    script = work / "job.sh"
    script.write_text(
        "#!/bin/sh\necho $GPUSHARE_JOB_ID.$GPUSHARE_ATTEMPT $WORD $1 >> ran\nwhile [ ! -e gate ]; do sleep 0.05; done\n"
    )
    job = submit(up_cluster, work, "--gpus", "0", "--env", "WORD=hello", str(script), "arg")
    ran = work / "ran"
    up_cluster.until(lambda: ran.exists() and ran.read_text().count("\n") == 1, "its first life")
    up_cluster.ok("requeue", job)
    up_cluster.until(lambda: ran.read_text().count("\n") == 2, "its second life")
    (work / "gate").touch()
    assert up_cluster.ok("wait", job).code == 0
    script.unlink()
    told = up_cluster.cli("requeue", job)
    assert (told.code, "JOB_ENDED" in told.err, "gpushare resubmit" in told.err) == (1, True, True)
    again = up_cluster.ok("resubmit", job, "-o", "json").json["jobs"][0]["id"]
    assert up_cluster.ok("wait", again).code == 0
    assert ran.read_text().splitlines() == [f"{job}.1 hello arg", f"{job}.2 hello arg", f"{again}.1 hello arg"]
