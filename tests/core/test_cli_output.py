"""`logs` and `run` against a scheduler of threads: whose bytes go where, what a lost terminal does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from cli_calls import Cli, as_process
from cli_fake import FakeCluster, until

from gpushare.errors import error_of
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j

# -- logs


@pytest.mark.parametrize("words", [["1"], ["-f", "1"], ["1/0"], ["--attempt", "1", "1"], ["vision/1/0"]])
def test_logs_print_the_bytes_of_each_stream_to_its_own(
    cluster: FakeCluster, environment: dict[str, str], words: list[str]
) -> None:
    job = cluster.add("1")
    cluster.start(job)
    cluster.write(job, b"\x1b]0;title\x07raw \xff bytes\n")
    cluster.write(job, b"oops\n", stderr=True)
    cluster.end(job)
    command = [sys.executable, "-m", "gpushare.cli.main", "logs", *words]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=30)
    assert done.stdout == b"\x1b]0;title\x07raw \xff bytes\n"
    assert done.stderr == b"oops\n"
    assert done.returncode == 0


def test_logs_as_json_are_one_list_of_chunks(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("1")
    cluster.start(job)
    cluster.write(job, b"0123456789abcdef")
    cluster.write(job, b"E", stderr=True)
    cluster.end(job)
    for words in (["logs", "1"], ["logs", "-f", "1"]):
        chunks = gpushare(*words, "-o", "json").json
        out = "".join(each["text"] for each in chunks if each["stream"] == "OUTPUT_STREAM_STDOUT")
        assert out == "0123456789abcdef"
        assert [each["offset"] for each in chunks if each["stream"] == "OUTPUT_STREAM_STDOUT"] == ["0", "8"]
        assert sum(each["stream"] == "OUTPUT_STREAM_STDERR" for each in chunks) == 1
    assert gpushare("logs", "-o", "json", "1/0").code == 0


def test_logs_of_a_gang_have_the_task_before_each_line(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("1", spec=j.JobSpec(tasks=2))
    for task in (0, 1):
        cluster.start(job, task)
        cluster.write(job, b"a long line of task %d\nand no newline" % task, task_index=task)
    cluster.end(job)
    done = gpushare("logs", "1")
    assert done.out.splitlines() == [
        "[0] a long line of task 0",
        "[0] and no newline",
        "[1] a long line of task 1",
        "[1] and no newline",
    ]
    assert sorted(gpushare("logs", "-f", "1").out.splitlines()) == sorted(done.out.splitlines())
    one = gpushare("logs", "1/1").out
    assert one.splitlines() == ["[1] a long line of task 1", "[1] and no newline"]
    assert gpushare("logs", "1/2").code == 1


def test_logs_of_a_job_that_has_not_started_say_so(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("1", j.JOB_STATE_QUEUED)
    done = gpushare("logs", "1")
    assert (done.code, done.out) == (0, "")
    assert "not started" in done.err
    assert gpushare("logs", "1", "-o", "json").json == []


def test_logs_that_are_gone_are_an_error(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("1")
    cluster.start(job)
    for words in (["logs", "1"], ["logs", "-f", "1"]):
        cluster.faults["StreamLogs"] = [error_of(Reason.LOGS_GONE), error_of(Reason.LOGS_GONE)]
        done = gpushare(*words)
        assert done.code == 1
        assert "LOGS_GONE" in done.err


def test_ctrl_c_in_a_followed_log_leaves_the_job_alone(cluster: FakeCluster, environment: dict[str, str]) -> None:
    job = cluster.add("1")
    cluster.start(job)
    cluster.write(job, b"one line\n")
    process = as_process(environment, "logs", "-f", "1")
    assert process.stdout is not None
    assert process.stdout.readline() == "one line\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert cluster.seen("CancelJob") == []


# -- run


def test_run_prints_the_jobs_output_and_returns_its_code(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.exit_code = 3
    done = gpushare("run", "--gpus", "0.25", "--", "x")
    assert (done.code, done.out) == (3, "out 0 of 1\n")
    first, *rest = done.err.splitlines()
    assert first == "job 1; to come back: gpushare logs -f 1; to end it: gpushare cancel 1"
    assert "err" in rest
    assert rest[-1].startswith("job 1 FAILED: EXIT_CODE")


def test_run_of_a_gang_and_of_an_array_tells_the_tasks_apart(gpushare: Cli, cluster: FakeCluster) -> None:
    gang = gpushare("run", "--gpus", "1", "--tasks", "3", "--", "x")
    assert sorted(gang.out.splitlines()) == [f"[{task}] out {task} of 1" for task in range(3)]
    array = gpushare("run", "--gpus", "1", "--array", "0-2", "--", "x")
    assert sorted(array.out.splitlines()) == [f"[2_{index}] out 0 of 2_{index}" for index in range(3)]
    assert (gang.code, array.code) == (0, 0)


def test_run_outlives_lost_connections_without_a_line_twice(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.drop_stream_after = 2
    done = gpushare("run", "--gpus", "1", "--", "x")
    assert (done.code, done.out) == (0, "out 0 of 1\n")


def test_run_says_why_it_waits_and_follows_when_it_starts(cluster: FakeCluster, environment: dict[str, str]) -> None:
    cluster.run_jobs = False
    process = as_process(environment, "run", "--gpus", "1", "--", "x")
    until(lambda: cluster.jobs, "the job is queued")
    job = cluster.jobs["tenants/vision/jobs/1"]
    job.wait.reason, job.wait.detail = "NO_CAPACITY", "8 cards are in use"
    cluster.put(job)
    until(lambda: cluster.seen("WatchJobs"), "run watches")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("job 1;")
    assert process.stderr.readline() == "note: job 1 waits: NO_CAPACITY: 8 cards are in use\n"
    cluster.start(job)
    cluster.write(job, b"hello\n")
    cluster.end(job)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("hello\n", 0)


def test_ctrl_c_in_run_cancels_the_job_and_returns_its_code(cluster: FakeCluster, environment: dict[str, str]) -> None:
    cluster.run_jobs = False
    process = as_process(environment, "run", "--gpus", "1", "--", "x")
    until(lambda: cluster.seen("WatchJobs"), "run watches")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert [request.name for request in cluster.seen("CancelJob")] == ["tenants/vision/jobs/1"]
    assert "cancelling" in err


def test_losing_the_terminal_leaves_the_job_and_the_way_back_was_said(
    cluster: FakeCluster, environment: dict[str, str]
) -> None:
    cluster.run_jobs = False
    process = as_process(environment, "run", "--gpus", "1", "--", "x")
    until(lambda: cluster.seen("WatchJobs"), "run watches")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 129
    assert cluster.seen("CancelJob") == []
    assert err.splitlines()[0].startswith("job 1; to come back: gpushare logs -f 1")


def test_a_reader_who_has_enough_does_not_end_the_job(cluster: FakeCluster, environment: dict[str, str]) -> None:
    cluster.run_jobs = False
    process = as_process(environment, "run", "--gpus", "1", "--", "x")
    until(lambda: cluster.seen("WatchJobs"), "run watches")
    job = cluster.jobs["tenants/vision/jobs/1"]
    assert process.stdout is not None
    process.stdout.close()
    cluster.start(job)

    def write_and_look() -> bool:
        cluster.write(job, b"more\n")
        return process.poll() is not None

    until(write_and_look, "run ends")
    assert process.stderr is not None
    assert process.returncode == 141
    assert "goes on" in process.stderr.read()
    process.stderr.close()
    assert cluster.seen("CancelJob") == []
