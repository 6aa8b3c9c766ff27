"""What newcomers stumble over: each command says what it did, what it will not do, and what to type instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_calls import Cli
from cli_fake import FakeCluster

from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j


def test_a_dry_run_counts_the_children_of_an_array(gpushare: Cli) -> None:
    assert (
        gpushare("submit", "--dry-run", "--array", "0-7", "--", "x").out == "ok: 8 jobs would be queued, nothing was\n"
    )
    assert gpushare("submit", "--dry-run", "--", "x").out.startswith("ok: 1 job would")
    assert gpushare("run", "--dry-run", "--array", "1,3", "--", "x").out.startswith("ok: 2 jobs would")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"import torch\n", 2),
        (b"\n#!/bin/sh\n", 2),
        (b"#!/bin/sh\n", 0),
        (b"\x7fELF\x02\x01\x01\x00", 0),
    ],
)
def test_a_script_that_nothing_would_run_is_refused_here(
    gpushare: Cli, cluster: FakeCluster, tmp_path: Path, content: bytes, code: int
) -> None:
    script = tmp_path / "train.py"
    script.write_bytes(content)
    done = gpushare("submit", "--gpus", "1", str(script))
    assert done.code == code
    assert len(cluster.seen("CreateJob")) == (code == 0)
    if code:
        assert f"begins with no #! line; write one, or: gpushare submit -- python {script} ARG " in done.err


def test_input_that_would_be_lost_is_noted(gpushare: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = "note: what is piped in does not reach the job; -i passes it on\n"
    (tmp_path / "data").write_text("1\n")
    for source, words, is_noted in (
        (os.pipe()[0], (), True),
        (os.open(tmp_path / "data", os.O_RDONLY), (), True),
        (os.open("/dev/null", os.O_RDONLY), (), False),
    ):
        with open(source, closefd=True) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            done = gpushare("run", "--gpus", "1", *words, "--", "x")
            assert (note in done.err) is is_noted, done


@pytest.mark.parametrize("follow", [(), ("-f",)])
@pytest.mark.parametrize(
    ("state", "reason", "says"),
    [
        (j.JOB_STATE_FAILED, "EXEC", "note: job 1 has not printed anything; it FAILED: EXEC: no such program\n"),
        (j.JOB_STATE_CANCELLED, "CANCELLED", "note: job 1 has not printed anything; it was CANCELLED: CANCELLED: "),
    ],
)
def test_logs_of_a_job_that_never_ran_say_how_it_ended(
    gpushare: Cli, cluster: FakeCluster, follow: tuple[str, ...], state: int, reason: str, says: str
) -> None:
    cluster.add("1", state, reason=reason, detail="no such program")
    done = gpushare("logs", *follow, "1")
    assert done.code == 0
    assert says in done.err
    assert done.err.count("\n") == 1


def test_a_port_that_leads_nowhere_is_not_listened_on(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("1", j.JOB_STATE_QUEUED)
    cluster.add("2", j.JOB_STATE_SUCCEEDED)
    for job, state in (("1", "QUEUED"), ("2", "SUCCEEDED")):
        done = gpushare("port-forward", job, "8888:0")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: NOT_RUNNING: Job {job} does not run now; it is {state} (")


def test_requeue_says_what_it_did(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.start(cluster.add("1", j.JOB_STATE_QUEUED))
    cluster.add("2", j.JOB_STATE_QUEUED)
    assert gpushare("requeue", "1", "2").out == "job 1 is stopped and queued again\njob 2 waits already\n"


def test_a_job_of_which_nothing_ran_shows_no_exit_code(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("1", j.JOB_STATE_CANCELLED, exit_code=143, reason="CANCELLED")
    running = cluster.add("2")
    cluster.start(running)
    cluster.end(running, j.JOB_STATE_CANCELLED, 143, "CANCELLED")
    assert "143" not in gpushare("job", "1").out
    assert "143" not in gpushare("cancel", "1").out
    assert "143" in gpushare("job", "2").out
    assert gpushare("wait", "1").code == 143


def refusal(field: str, detail: str, reason: Reason = Reason.INVALID_FIELD) -> GpushareError:
    return invalid_field(field, detail, reason)


@pytest.mark.parametrize(
    ("words", "method", "error", "says"),
    [
        (
            ["submit", "--gpus", "1", "--", "x"],
            "CreateJob",
            refusal("resources.gpus", "is 2000; accepted: 0 to 64"),
            "INVALID_FIELD: --gpus: is 2000; accepted: 0 to 64",
        ),
        (
            ["submit", "--gpus", "1", "--", "x"],
            "CreateJob",
            refusal("resources", "no registered card is called A100; there are: L4", Reason.NEVER_FITS),
            "NEVER_FITS: no registered card is called A100; there are: L4 (",
        ),
        (
            ["submit", "--gpus", "1", "--", "x"],
            "CreateJob",
            refusal("array_indexes", "has 9 indexes (split it into several arrays)", Reason.ARRAY_TOO_LARGE),
            "ARRAY_TOO_LARGE: --array: has 9 indexes (split it into several arrays)",
        ),
        (
            ["submit", "--gpus", "1", "--time", "9d", "--", "x"],
            "CreateJob",
            refusal("max_run_duration", "9d is above 2d, the longest that jobs of vision may run", Reason.RUN_LIMIT),
            "RUN_LIMIT: --time: 9d is above 2d, the longest that jobs of vision may run (",
        ),
        (
            ["extend", "1", "=9d"],
            "ExtendJob",
            refusal("max_run_duration", "9d is above 2d", Reason.RUN_LIMIT),
            "RUN_LIMIT: TIME: 9d is above 2d (",
        ),
        (
            ["tenant", "set", "--default-time", "9h", "vision"],
            "UpdateTenant",
            refusal("default_run", "is 9h, above max_run, which is 8h"),
            "INVALID_FIELD: --default-time: is 9h, above --max-time, which is 8h",
        ),
        (
            ["submit", "--gpus", "1", "--label", "a='max_run'", "--", "x"],
            "CreateJob",
            refusal("labels", "'max_run' and gpu_milli"),
            "INVALID_FIELD: --label: 'max_run' and --gpus",
        ),
    ],
)
def test_errors_name_what_was_typed(
    gpushare: Cli, cluster: FakeCluster, words: list[str], method: str, error: GpushareError, says: str
) -> None:
    cluster.add("1")
    cluster.faults[method] = [error]
    done = gpushare(*words)
    assert done.code == 1
    assert done.err.startswith(f"error: {says}"), done
    assert says.endswith("(") or done.err == f"error: {says}\n"


def test_an_error_of_our_own_speaks_of_no_request(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("3_0")
    cluster.add("3_1")
    assert gpushare("attach", "3").err == "error: INVALID_FIELD: JOB: 3 is an array; name one of its jobs, as in 3_0\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["log", "1"], "Did you mean 'logs'"),
        (["squeue"], "Here it is: gpushare jobs"),
        (["srun", "x"], "Here it is: gpushare run"),
        (["undrain", "n1"], "Here it is: gpushare node uncordon"),
        (["node", "undrain", "n1"], "Here it is: gpushare node uncordon"),
        (["submit", "--time", "2hours", "--", "x"], 'a time with units d, h, m, s or ms ("90m"'),
        (["submit", "--gpus", ".25", "--", "x"], '"0.25"'),
    ],
)
def test_what_was_meant_is_named(gpushare: Cli, words: list[str], says: str) -> None:
    done = gpushare(*words)
    assert (done.code, says in done.err) == (2, True), done


def test_a_reason_to_wait_is_told_once(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.run_jobs = False
    cluster.notices = ["QUOTA_NEVER: it needs 2 cards"]
    cluster.faults["CancelJob"] = [error_of(Reason.NOT_FOUND)]
    done = gpushare("submit", "--gpus", "2", "--", "x")
    assert done.err.count("QUOTA_NEVER") == 1


def test_a_job_for_another_tenant_is_named_as_the_next_command_finds_it(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.tenant = "nlp"
    assert gpushare("submit", "--gpus", "1", "--parsable", "--tenant", "nlp", "--", "x").out == "nlp/1\n"
    assert gpushare("job", "nlp/1").code == 0
