"""`extend`, `requeue`, `resubmit` and what `submit`, `job` and `tenant` say of a job's time and end."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import Cli
from cli_fake import FakeCluster
from google.protobuf.duration_pb2 import Duration

from gpushare.errors import error_of
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j

HOUR_S = 3600


def of_an_hour(cluster: FakeCluster, job_id: str = "5") -> j.Job:
    return cluster.add(job_id, spec=j.JobSpec(max_run_duration=Duration(seconds=HOUR_S)))


def test_submit_sends_signal_and_codes(gpushare: Cli, cluster: FakeCluster) -> None:
    words = ["--time", "2h", "--signal", "SIGUSR1@10m:all", "--requeue-exit-code", "85,86", "--requeue-exit-code", "3"]
    assert gpushare("submit", "--gpus", "1", *words, "--", "train").code == 0
    spec = cluster.seen("CreateJob")[0].job
    early = spec.early_signal
    assert (early.signal, early.before.seconds, early.target) == ("SIGUSR1", 600, j.SIGNAL_TARGET_ALL)
    assert list(spec.requeue_exit_codes) == [85, 86, 3]
    gpushare("submit", "--gpus", "1", "--time", "2h", "--signal", "USR2@1s", "--", "train")
    assert cluster.seen("CreateJob")[1].job.early_signal.target == j.SIGNAL_TARGET_LEADER


def test_a_script_says_both_in_its_own_lines(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    lines = ["#!/bin/sh", "#GPUSHARE --gpus 1 --time 2h --signal USR1@1m", "#GPUSHARE --requeue-exit-code 85", "true"]
    script.write_text("\n".join(lines))
    assert gpushare("submit", str(script)).code == 0
    spec = cluster.seen("CreateJob")[0].job
    assert (spec.early_signal.signal, spec.early_signal.before.seconds) == ("USR1", 60)
    assert list(spec.requeue_exit_codes) == [85]


@pytest.mark.parametrize(
    ("text", "longer_s", "limit_s", "told"), [("+6h", 6 * HOUR_S, None, "7h"), ("=8h", None, 8 * HOUR_S, "8h")]
)
def test_extend_says_by_how_much_or_to_what(
    gpushare: Cli, cluster: FakeCluster, text: str, longer_s: int | None, limit_s: int | None, told: str
) -> None:
    of_an_hour(cluster)
    done = gpushare("extend", "5", text)
    assert (done.code, done.out) == (0, f"job 5 may run for {told}\n")
    (request,) = cluster.seen("ExtendJob")
    assert request.HasField("longer_by") is (longer_s is not None)
    assert (request.longer_by.seconds, request.max_run_duration.seconds) == (longer_s or 0, limit_s or 0)
    assert f"{told} (1h when submitted)" in gpushare("job", "5").out


@pytest.mark.parametrize("text", ["6h", "", "+", "=6", "-6h", "+0h"])
def test_extend_refuses_what_is_no_extension(gpushare: Cli, cluster: FakeCluster, text: str) -> None:
    of_an_hour(cluster)
    done = gpushare("extend", "--", "5", text)
    assert done.code == 2
    assert not cluster.seen("ExtendJob")


def test_a_refused_extension_names_the_cap(gpushare: Cli, cluster: FakeCluster) -> None:
    of_an_hour(cluster)
    cluster.faults["ExtendJob"].append(error_of(Reason.RUN_LIMIT, "longer_by: 25h is above 1d, the longest there"))
    done = gpushare("extend", "5", "+24h")
    assert (done.code, done.err.startswith("error: RUN_LIMIT: ")) == (1, True)
    assert "above 1d" in done.err


def test_requeue_and_resubmit_take_several_jobs(gpushare: Cli, cluster: FakeCluster) -> None:
    of_an_hour(cluster, "5")
    of_an_hour(cluster, "6")
    done = gpushare("requeue", "5", "6", "-o", "json")
    assert [job["state"] for job in done.json["jobs"]] == ["JOB_STATE_QUEUED"] * 2
    done = gpushare("resubmit", "6")
    assert (done.code, done.out) == (0, "submitted job 9, the same as 6\n")


def test_a_limit_that_nobody_asked_for_is_told(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.default_run_s = 2 * HOUR_S
    done = gpushare("submit", "--gpus", "1", "--", "train")
    assert "no --time was given, so it runs for 2h at most" in done.err
    assert "--time" not in gpushare("submit", "--gpus", "1", "--time", "1h", "--", "train").err


def test_a_tenants_times_are_set_taken_away_and_shown(gpushare: Cli, cluster: FakeCluster) -> None:
    gpushare("tenant", "set", "--default-time", "1h", "--max-time", "8h", "vision")
    (request,) = cluster.seen("UpdateTenant")
    assert (request.settings.default_run.seconds, request.settings.max_run.seconds) == (HOUR_S, 8 * HOUR_S)
    gpushare("tenant", "set", "--default-time", "none", "--max-time", "none", "vision")
    assert list(cluster.seen("UpdateTenant")[1].settings.unset) == ["default_run", "max_run"]
    tenant = cluster.tenants["vision"]
    tenant.default_run.FromSeconds(HOUR_S)
    tenant.max_run.FromSeconds(8 * HOUR_S)
    for words in (("tenant", "show", "vision"), ("tenant", "list", "-o", "wide")):
        assert "1h, at most 8h" in gpushare(*words).out
