"""The commands against a scheduler of threads: what they print, where, and with which code they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_fake import CARD, FakeCluster, serving, until

from gpushare.cli import main as cli
from gpushare.errors import error_of
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with serving(FakeCluster()) as started:
        yield started


@pytest.fixture
def environment(cluster: FakeCluster, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "config.toml"
    config.write_text(
        f'current = "here"\n[contexts.here]\nserver = "{cluster.address}"\ntoken = "gps_x"\n'
        f'tenant = "{cluster.tenant}"\nuser = "{cluster.user}"\n'
    )
    return {"GPUSHARE_CONFIG": str(config)}


@pytest.fixture
def gpushare(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("GPUSHARE_SERVER", "GPUSHARE_TOKEN", "GPUSHARE_CA"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capfd.readouterr())

    return call


def as_process(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpushare.cli.main", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- submit


def test_submit_sends_what_was_asked_for(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    done = gpushare(
        *["submit", "--gpus", "0.25", "--gpu-memory", "12G", "--model", "H100-80GB", "--tasks", "2", "--cpus", "4"],
        *["--host-memory", "16G", "--time", "2h", "--priority", "5", "--name", "train", "--env", "A=1=2"],
        *["--label", "team=a", "--fence", "hard", "--on-disconnect", "stop-and-requeue", "--max-retries", "3"],
        *["--grace", "5s", "--export", "none", "--node-label", "rack=r1", "--node-label", "site=a=b"],
        *["--chdir", str(tmp_path), "--", "python", "-c", "print(1)", "--gpus", "8"],
    )
    assert (done.code, done.out) == (0, "submitted job 1\n")
    spec = cluster.seen("CreateJob")[0].job
    assert list(spec.argv) == ["python", "-c", "print(1)", "--gpus", "8"]
    assert (spec.resources.gpu_milli, spec.resources.gpu_memory_mib) == (250, 12288)
    assert not spec.resources.HasField("gpus")
    assert (spec.resources.cpu_milli, spec.resources.memory_mib) == (4000, 16384)
    assert (spec.resources.gpu_model, spec.resources.min_enforcement) == ("H100-80GB", j.ENFORCEMENT_HARD)
    assert (spec.tasks, spec.name, spec.priority, spec.max_retries) == (2, "train", 5, 3)
    assert (spec.max_run_duration.seconds, spec.grace_duration.seconds) == (7200, 5)
    assert (dict(spec.env), dict(spec.captured_env), dict(spec.labels)) == ({"A": "1=2"}, {}, {"team": "a"})
    assert dict(spec.resources.node_labels) == {"rack": "r1", "site": "a=b"}
    assert spec.on_disconnect == j.ON_DISCONNECT_STOP_AND_REQUEUE
    assert spec.working_directory == str(tmp_path)


def test_a_script_is_stored_as_it_is_now(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_bytes(b"#!/bin/sh\r\necho \xff\n")
    assert gpushare("submit", "--gpus", "1", str(script), "--lr", "3").code == 0
    script.write_bytes(b"changed")
    spec = cluster.seen("CreateJob")[0].job
    assert spec.script == b"#!/bin/sh\r\necho \xff\n"
    assert list(spec.argv) == ["--lr", "3"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["echo", "hi"], "write -- before it"),
        ([], "nothing to run"),
        (["--"], "nothing to run"),
        (["--gpus", "٠.٥", "--", "x"], "--gpus"),
        (["--gpus", "nan", "--", "x"], "--gpus"),
        (["--gpus", "infinity", "--", "x"], "--gpus"),
        (["--gpus", "1_0e-1", "--", "x"], "--gpus"),
        (["--gpus", "1_0", "--", "x"], "--gpus"),
        (["--gpus", "１２", "--", "x"], "--gpus"),
        (["--gpus", " 7 ", "--", "x"], "--gpus"),
        (["--priority", "9223372036854775808", "--", "x"], "--priority"),
        (["--time", "0s", "--", "x"], "--time"),
        (["--array", "0-99%8", "--", "x"], "--array"),
        (["--env", "A", "--", "x"], "--env"),
        (["--fence", "strong", "--", "x"], "--fence"),
        (["--min-tasks", "2", "--", "x"], "--min-tasks"),
        (["--", "\udcff"], "argv[0]"),
        (["--name", "\udcff", "--", "x"], "--name"),
        (["--env-file", "/nonexistent", "--", "x"], "--env-file"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_and_reaches_nobody(
    gpushare: Cli, cluster: FakeCluster, words: list[str], says: str
) -> None:
    done = gpushare("submit", *words)
    assert done.code == 2
    assert done.err.startswith("error: INVALID_FIELD: ")
    assert says in done.err
    assert done.err.count("\n") == 1
    assert cluster.seen("CreateJob") == []


def test_a_script_over_a_mebibyte_is_refused_here(gpushare: Cli, tmp_path: Path) -> None:
    script = tmp_path / "big.sh"
    script.write_bytes(b"#" * ((1 << 20) + 1))
    done = gpushare("submit", str(script))
    assert done.code == 2
    assert "1 MiB" in done.err


def test_an_array_of_ten_million_is_refused_here(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare("submit", "--array", "0-9999999", "--", "x")
    assert done.code == 2
    assert done.err.startswith("error: ARRAY_TOO_LARGE: ")
    assert cluster.seen("CreateJob") == []


def test_the_environment_is_captured_as_asked(
    gpushare: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONDA_PREFIX", "/conda")
    monkeypatch.setenv("SECRET", "s3")
    (tmp_path / "vars").write_text("# comment\nA=file\nB=two words\n\n")
    gpushare("submit", "--", "x")
    gpushare("submit", "--export", "all", "--", "x")
    gpushare("submit", "--export", "SECRET", "--", "x")
    gpushare("submit", "--env-file", str(tmp_path / "vars"), "--env", "A=flag", "--", "x")
    usual, everything, named, filed = (request.job for request in cluster.seen("CreateJob"))
    assert usual.captured_env["PATH"] == os.environ["PATH"]
    assert usual.captured_env["CONDA_PREFIX"] == "/conda"
    assert "SECRET" not in usual.captured_env
    assert everything.captured_env["SECRET"] == "s3"
    assert dict(named.captured_env) == {"SECRET": "s3"}
    assert dict(filed.env) == {"A": "flag", "B": "two words"}
    assert gpushare("submit", "--export", "NOT_SET_HERE", "--", "x").code == 2


def test_without_gpus_the_default_is_said_and_how_to_share(gpushare: Cli) -> None:
    done = gpushare("submit", "--", "x")
    assert "1 whole GPU" in done.err
    assert "--gpus 0.25" in done.err
    assert gpushare("submit", "--gpus", "0.5", "--", "x").err == ""


def test_parsable_prints_the_id_alone_and_a_dry_run_queues_nothing(gpushare: Cli, cluster: FakeCluster) -> None:
    assert gpushare("submit", "--gpus", "1", "--parsable", "--", "x").out == "1\n"
    assert gpushare("submit", "--gpus", "1", "--parsable", "--array", "0-2", "--", "x").out == "2\n"
    done = gpushare("submit", "--gpus", "1", "--dry-run", "--", "x")
    assert done.code == 0
    assert "nothing was" in done.out
    assert cluster.seen("CreateJob")[-1].validate_only
    assert len(cluster.jobs) == 4


# -- exit codes and errors


def test_a_refusal_is_one_line_with_its_reason_and_code_1(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.faults["CreateJob"] = [error_of(Reason.QUEUE_FULL, "10000 of 10000 are queued.")]
    done = gpushare("submit", "--gpus", "1", "--", "x")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: QUEUE_FULL: 10000 of 10000 are queued")
    assert done.err.rstrip().endswith(")")
    assert done.err.count("\n") == 1


def test_a_scheduler_out_of_reach_is_code_3_and_125_where_codes_are_the_jobs(gpushare: Cli) -> None:
    nowhere = ("--server", "127.0.0.1:9", "--token", "t", "--timeout", "300ms")
    assert gpushare(*nowhere, "jobs").code == 3
    assert gpushare(*nowhere, "wait", "vision/1").code == 125
    done = gpushare(*nowhere, "run", "--tenant", "vision", "--", "x")
    assert done.code == 125
    assert done.err.startswith("error: SCHEDULER_UNREACHABLE: ")


def test_a_usage_error_of_run_is_its_own_failure_too(gpushare: Cli) -> None:
    assert gpushare("run", "--gpus", "nan", "--", "x").code == 125
    assert gpushare("wait").code == 125
    assert gpushare("jobs", "--nonsense").code == 2
    assert gpushare("nonsense").code == 2


def test_without_any_scheduler_the_way_in_is_said(
    gpushare: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUSHARE_CONFIG", str(tmp_path / "none.toml"))
    done = gpushare("jobs")
    assert done.code == 1
    assert "gpushare login" in done.err


def test_no_traceback_and_no_control_character_of_others_reaches_the_person(
    gpushare: Cli, cluster: FakeCluster
) -> None:
    cluster.faults["ListNodes"] = [error_of(Reason.PERMISSION_DENIED, "no\x1b[2J\nno")]
    done = gpushare("nodes")
    assert "\x1b" not in done.err
    assert done.err.count("\n") == 1


# -- JSON


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["jobs"], "jobs"),
        (["jobs", "-a"], "jobs"),
        (["job", "1"], "name"),
        (["job", "5"], "jobs"),
        (["explain", "2"], "stage"),
        (["explain", "5"], "explanations"),
        (["wait", "3"], "jobs"),
        (["cancel", "2"], "jobs"),
        (["nodes"], "nodes"),
        (["gpus"], "gpus"),
        (["audit"], "events"),
        (["audit", "--denials"], "events"),
        (["usage"], "rows"),
        (["tenant", "list"], "tenants"),
        (["tenant", "create", "nlp"], "name"),
        (["token", "list"], "tokens"),
        (["token", "create", "bob", "--tenant", "vision"], "secret"),
        (["node", "cordon", "node-1"], "cordoned"),
        (["node", "join-token", "node-2"], "join"),
    ],
)
def test_json_is_one_valid_document_with_the_names_of_the_api(
    gpushare: Cli, cluster: FakeCluster, words: list[str], key: str
) -> None:
    cluster.start(cluster.add("1"))
    waiting = cluster.add("2", j.JOB_STATE_QUEUED, wait=j.Wait(reason="NO_CAPACITY", detail="all cards are in use"))
    cluster.end(cluster.add("3"))
    for index in range(3):
        cluster.add(f"5_{index}")
    done = gpushare(*words, "-o", "json")
    assert done.code == 0
    assert key in done.json
    assert waiting.name
    for output in ("table", "wide"):
        again = gpushare(*words, "-o", output)
        assert again.code == 0
        assert "\x1b" not in again.out, "a pipe gets no colour"


def test_json_has_camel_case_names_text_for_64_bits_and_fields_without_value(
    gpushare: Cli, cluster: FakeCluster
) -> None:
    cluster.start(cluster.add("1"))
    (job,) = gpushare("jobs", "-o", "json").json["jobs"]
    assert job["state"] == "JOB_STATE_RUNNING"
    assert job["createdBy"]["user"] == "ada"
    assert job["tasks"][0]["gpuMilli"] == "250"
    assert job["redacted"] is False
    (card,) = gpushare("gpus", "-o", "json").json["gpus"]
    assert (card["node"], card["uuid"]) == ("nodes/node-1", CARD)


def test_an_empty_listing_is_valid_json_with_its_key(gpushare: Cli) -> None:
    assert gpushare("jobs", "-o", "json").json == {"jobs": []}


# -- what a job is called


def test_a_job_is_found_by_every_name_it_has(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("41", spec=j.JobSpec(name="train"))
    cluster.add("42", spec=j.JobSpec(name="train"))
    stranger = cluster.add("43", spec=j.JobSpec(name="train"))
    stranger.created_by.user = "bob"
    for name in ("42", "vision/42", "tenants/vision/jobs/42", "train", "@last"):
        assert gpushare("job", name, "-o", "json").json["id"] == "42", name
    for name in ("44", "nlp/42", "other", "4*", "../x", "42/0", "tenants/vision/jobs/42/0"):
        done = gpushare("job", name)
        assert done.code in (1, 2), name
        assert done.err.startswith("error: "), name


def test_without_a_known_user_what_is_redacted_is_not_ones_own(
    gpushare: Cli, cluster: FakeCluster, environment: dict[str, str]
) -> None:
    path = Path(environment["GPUSHARE_CONFIG"])
    path.write_text(path.read_text().replace('user = "ada"\n', ""))
    cluster.add("1")
    cluster.add("2", redacted=True)
    assert gpushare("job", "@last", "-o", "json").json["id"] == "1"


def test_an_array_id_means_its_children(gpushare: Cli, cluster: FakeCluster) -> None:
    for index in (10, 2, 0):
        cluster.add(f"5_{index}", j.JOB_STATE_QUEUED)
    done = gpushare("cancel", "5", "-o", "json")
    assert [job["id"] for job in done.json["jobs"]] == ["5_0", "5_2", "5_10"]
    assert {request.name.rpartition("/")[2] for request in cluster.seen("CancelJob")} == {"5_0", "5_2", "5_10"}
    assert gpushare("job", "@last", "-o", "json").json["jobs"][0]["arrayId"] == "5"


# -- wait


def test_wait_returns_the_first_code_that_is_not_zero(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.end(cluster.add("1"))
    cluster.end(cluster.add("2"), j.JOB_STATE_FAILED, 124, "TIME_LIMIT")
    cluster.end(cluster.add("3"), j.JOB_STATE_FAILED, 3, "EXIT_CODE")
    assert gpushare("wait", "1").code == 0
    done = gpushare("wait", "1", "3", "2")
    assert done.code == 3
    assert "TIME_LIMIT" in done.out


def test_wait_for_a_job_that_ended_without_a_code_is_a_failure_of_its_own_kind(
    gpushare: Cli, cluster: FakeCluster
) -> None:
    job = cluster.add("1")
    cluster.end(job, j.JOB_STATE_FAILED, 0, "INFRA")
    job.ClearField("exit_code")
    assert gpushare("wait", "1").code == 125


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


# -- the rest


def test_login_keeps_the_connection_and_the_tenant(
    gpushare: Cli, cluster: FakeCluster, environment: dict[str, str]
) -> None:
    from gpushare.client.settings import read_contexts
    from gpushare.join import encode_join

    join = encode_join(cluster.address, "gps_" + "a" * 43, "")
    assert gpushare("login", join, "--name", "lab").code == 0
    file = read_contexts(Path(environment["GPUSHARE_CONFIG"]))
    assert file.current == "lab"
    assert file.contexts["lab"].tenant == "vision"
    assert "here" in file.contexts
    assert oct(Path(environment["GPUSHARE_CONFIG"]).stat().st_mode & 0o777) == "0o600"
    refused = gpushare("login", encode_join(cluster.address, "gpj_" + "a" * 43, ""))
    assert refused.code == 1
    assert "gpj_" not in refused.err


def test_a_login_that_is_refused_changes_nothing(
    gpushare: Cli, cluster: FakeCluster, environment: dict[str, str]
) -> None:
    from gpushare.join import encode_join

    before = Path(environment["GPUSHARE_CONFIG"]).read_text()
    cluster.faults["WhoAmI"] = [error_of(Reason.UNAUTHENTICATED)]
    done = gpushare("login", encode_join(cluster.address, "gps_" + "a" * 43, ""))
    assert done.code == 1
    assert Path(environment["GPUSHARE_CONFIG"]).read_text() == before


@pytest.mark.parametrize("limit", ["-1", "nan", "9223372036854775808", "0.0001", "500m", ""])
def test_a_limit_that_is_no_number_of_cards_is_a_usage_error(gpushare: Cli, cluster: FakeCluster, limit: str) -> None:
    done = gpushare("tenant", "create", "nlp", "--limit", limit)
    assert done.code == 2
    assert "--limit" in done.err
    assert cluster.seen("CreateTenant") == []


def test_tenant_limits_are_exact(gpushare: Cli, cluster: FakeCluster) -> None:
    gpushare("tenant", "create", "nlp", "--limit", "0.3")
    gpushare("tenant", "set", "nlp", "--limit", "none", "--max-queued", "7", "--default-gpus", "0.25")
    created, changed = cluster.seen("CreateTenant")[0], cluster.seen("UpdateTenant")[0]
    assert created.settings.limit_milli == 300
    assert changed.settings.no_limit
    assert not changed.settings.HasField("limit_milli")
    assert changed.settings.max_queued_jobs == 7
    assert changed.settings.default_request.gpu_milli == 250


def test_names_of_others_are_shown_inert(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("1", spec=j.JobSpec(name="x\x1b]0;t\x07\n[red]", display_name="🚀"))
    out = gpushare("jobs").out
    assert "\x1b" not in out
    assert "x\\x1b]0;t\\x07\\x0a[red]" in out
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(gpushare: Cli, shell: str) -> None:
    done = gpushare("completion", shell)
    assert done.code == 0
    assert "_GPUSHARE_COMPLETE" in done.out
