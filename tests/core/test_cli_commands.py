"""The commands against a scheduler of threads: what they print, where, and with which code they end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from cli_calls import Cli
from cli_fake import CARD, FakeCluster

from gpushare.errors import error_of
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j
from gpushare.v1 import usage_pb2 as u

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
        (["--array", "0-99%0", "--", "x"], "--array"),
        (["--env", "A", "--", "x"], "--env"),
        (["--fence", "strong", "--", "x"], "--fence"),
        (["--min-tasks", "0", "--", "x"], "--min-tasks"),
        (["--qos", "best", "--", "x"], "--qos"),
        (["--preemption", "kill", "--", "x"], "--preemption"),
        (["--topology", "rack", "--", "x"], "--topology"),
        (["--on-task-failure", "ignore", "--", "x"], "--on-task-failure"),
        (["--start-within", "0s", "--", "x"], "--start-within"),
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


def test_the_audit_says_whose_login_which_connection_and_why_not(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.audit = [
        u.AuditEvent(
            sequence=2, kind="LoginTokenIssued", subject="tokens/k7", detail_json='{"principal": {"user": "ada"}}'
        ),
        u.AuditEvent(
            sequence=1,
            kind="ConnectionOpened",
            subject="tenants/vision/jobs/42",
            detail_json='{"connection": "exec", "target": "nvidia-smi -L"}',
        ),
    ]
    lines = gpushare("audit").out.splitlines()
    assert lines[1].endswith("LoginTokenIssued  k7 for ada")
    assert lines[2].endswith("ConnectionOpened  vision/42 exec nvidia-smi -L")
    cluster.audit = [
        u.AuditEvent(kind="Denied", reason="LOGIN_UNMAPPED", detail_json='{"detail": "no tenant takes eve"}'),
    ]
    assert gpushare("audit", "--denials").out.splitlines()[1].endswith("LOGIN_UNMAPPED  no tenant takes eve")


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


def a_foreign_job(cluster: FakeCluster) -> None:
    """As the API shows one of another tenant."""
    who = j.Principal(user="nina", tenant="nlp")
    job = j.Job(name="tenants/nlp/jobs/7", tenant="nlp", id="7", created_by=who, redacted=True, foreign=True)
    job.state = j.JOB_STATE_RUNNING
    job.spec.resources.gpu_milli = 500
    job.tasks.add(attempt_id="nlp.7.0.1", node="node-1", gpu_uuids=[CARD], gpu_milli=500)
    cluster.put(job)


@pytest.mark.parametrize(
    ("role", "words", "ids", "parent"),
    [
        ("user", [], ["1"], "tenants/vision"),
        ("viewer", [], ["1"], "tenants/vision"),
        ("tenant-admin", [], ["1"], "tenants/-"),
        ("operator", [], ["1"], "tenants/-"),
        ("user", ["-A"], ["7", "1"], "tenants/-"),
        ("user", ["--all-tenants"], ["7", "1"], "tenants/-"),
        ("user", ["--tenant", "-"], ["7", "1"], "tenants/-"),
        ("user", ["--tenant", "nlp"], ["7"], "tenants/nlp"),
    ],
)
def test_jobs_of_other_tenants_are_listed_where_that_is_asked(
    gpushare: Cli, cluster: FakeCluster, role: str, words: list[str], ids: list[str], parent: str
) -> None:
    cluster.start(cluster.add("1"))
    a_foreign_job(cluster)
    cluster.role = role
    assert [job["id"] for job in gpushare("jobs", *words, "-o", "json").json["jobs"]] == ids
    assert cluster.seen("ListJobs")[0].parent == parent


def test_a_job_of_another_tenant_says_who_holds_how_much_where(gpushare: Cli, cluster: FakeCluster) -> None:
    a_foreign_job(cluster)
    (line,) = [line for line in gpushare("jobs", "-A").out.splitlines() if "nlp/7" in line]
    assert [word for word in ("nlp", "nina", "RUNNING", "0.5", "node-1") if word not in line] == []
    assert gpushare("jobs", "-A", "--tenant", "nlp").code == 2


def test_wide_cards_say_whose_jobs_hold_them(gpushare: Cli, cluster: FakeCluster) -> None:
    del cluster.nodes["node-1"].gpus[0].attempt_ids[:]
    cluster.nodes["node-1"].gpus[0].attempt_ids.extend(["vision.1.0.1", "vision.1.1.1", "nlp.7_2.0.3"])
    out = gpushare("gpus", "-o", "wide").out
    assert "HELD BY" in out
    assert "vision/1 nlp/7_2" in out


def test_an_empty_listing_is_valid_json_with_its_key(gpushare: Cli) -> None:
    assert gpushare("jobs", "-o", "json").json == {"jobs": []}


def test_a_job_shows_what_it_takes_of_its_card_while_that_is_measured(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("1")
    cluster.start(job)
    header, row = gpushare("job", "1").out.splitlines()[-2:]
    assert header.split()[6:10] == ["MIB", "USED", "SM", "TIER"]
    assert row.split()[5:10] == ["250", "20389", "-", "-", "timeslice"]
    job.tasks[0].used_mib, job.tasks[0].sm_percent = 1234, 35
    cluster.put(job)
    row = gpushare("job", "1").out.splitlines()[-1]
    assert row.split()[5:9] == ["250", "20389", "1234MiB", "35%"]


def test_a_node_whose_clock_is_wrong_says_so(gpushare: Cli, cluster: FakeCluster) -> None:
    for skew_ms, words in ((7_500_000, "its clock is 2h5m ahead"), (-90_000, "its clock is 1m30s behind")):
        node = cluster.nodes["node-1"]
        node.clock_skew_ms, node.reason = skew_ms, ""
        assert gpushare("nodes").out.splitlines()[-1].endswith(words)
        node.reason = "NODE_UNREACHABLE"
        assert gpushare("nodes").out.splitlines()[-1].endswith(f"NODE_UNREACHABLE; {words}")


def test_what_an_agent_finds_wrong_with_its_host_is_shown_with_the_node(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.nodes["node-1"].warnings.extend(["a.service has KillMode=control-group", "another"])
    assert gpushare("nodes").out.splitlines()[-1].endswith("2 warnings (-o wide)")
    assert "a.service has KillMode=control-group; another" in gpushare("nodes", "-o", "wide").out
    assert gpushare("nodes", "-o", "json").json["nodes"][0]["warnings"][1] == "another"


def test_the_doctor_asks_the_scheduler_what_it_knows_of_this_host(
    gpushare: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(check: str) -> list[tuple[str, str]]:
        told = gpushare("doctor", "-o", "json").json["findings"]
        return [(each["level"], each["found"]) for each in told if each["check"] == check]

    monkeypatch.setattr(socket, "gethostname", lambda: "node-1.example.org")
    node = cluster.nodes["node-1"]
    node.clock_skew_ms = -90_000
    node.warnings.append("a.service has KillMode=control-group")
    assert found("scheduler") == [("OK", f"{cluster.address} answers and knows this host as node-1")]
    assert ("WARN", "a.service has KillMode=control-group") in found("node")
    assert ("WARN", "90 s behind the scheduler's") in found("clock")
    monkeypatch.setenv("GPUSHARE_SERVER", "127.0.0.1:1")
    ((level, what),) = found("scheduler")
    assert (level, what.partition(": ")[0]) == ("FAIL", "127.0.0.1:1")


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


@pytest.mark.parametrize(("words", "stopped"), [([], ["3", "1"]), (["--state", "queued"], ["3"])])
def test_all_jobs_of_a_user_are_cancelled_the_newest_first(
    gpushare: Cli, cluster: FakeCluster, words: list[str], stopped: list[str]
) -> None:
    cluster.add("1")
    cluster.end(cluster.add("2"))
    cluster.add("3", j.JOB_STATE_QUEUED)
    cluster.add("4").created_by.user = "eve"
    cluster.add("5", j.JOB_STATE_CANCELLING)
    done = gpushare("cancel", "--user", "ada", *words, "-o", "json")
    assert [job["id"] for job in done.json["jobs"]] == stopped
    assert len(cluster.seen("CancelJob")) == len(stopped)


def test_a_user_without_jobs_to_cancel_is_said_so(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.end(cluster.add("1"))
    done = gpushare("cancel", "--user", "ada")
    assert (done.code, done.out) == (0, "")
    assert done.err == "note: ada has no such job to cancel\n"


def test_jobs_that_were_cancelled_are_listed_where_another_was_not(gpushare: Cli, cluster: FakeCluster) -> None:
    for job in ("1", "2", "3"):
        cluster.add(job, j.JOB_STATE_QUEUED)
    cluster.faults["CancelJob"] = [error_of(Reason.PERMISSION_DENIED)]
    done = gpushare("cancel", "1", "2", "3")
    refused = next(
        job for job in ("1", "2", "3") if cluster.jobs[f"tenants/vision/jobs/{job}"].state == j.JOB_STATE_QUEUED
    )
    assert done.code == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["JOB", *(n for n in "123" if n != refused)]
    assert done.err.startswith("error: PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["S", "--gpus", "2", "--lr=3"], ["--gpus"]),
        (["S", "--gpus=2", "--time", "1h"], ["--gpus", "--time"]),
        (["--gpus", "1", "S", "--gpus", "2"], []),
        (["S", "--", "--gpus", "2"], []),
        (["--", "true", "--gpus", "2"], []),
    ],
)
def test_options_behind_a_script_are_its_own_and_a_note_says_so(
    gpushare: Cli, cluster: FakeCluster, tmp_path: Path, words: list[str], noted: list[str]
) -> None:
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/sh\n")
    done = gpushare("submit", *(str(script) if word == "S" else word for word in words))
    assert done.code == 0
    assert [line.split()[1] for line in done.err.splitlines() if "behind the script" in line] == noted
    (spec,) = (request.job for request in cluster.seen("CreateJob"))
    assert list(spec.argv)[-1] == words[-1], "the script gets what stands behind it"


@pytest.mark.parametrize(("words", "parent"), [([], "vision"), (["--tenant", "nlp"], "nlp"), (["--tenant", "-"], "-")])
def test_a_users_jobs_are_cancelled_in_one_tenant_unless_all_are_asked_for(
    gpushare: Cli, cluster: FakeCluster, words: list[str], parent: str
) -> None:
    cluster.role = "admin"
    assert gpushare("cancel", "--user", "ada", *words).code == 0
    assert cluster.seen("ListJobs")[-1].parent == f"tenants/{parent}"


@pytest.mark.parametrize(
    "words",
    [
        *([], ["1", "--user", "ada"], ["1", "--state", "queued"], ["--state", "queued"], ["1", "--tenant", "nlp"]),
        # As a script has it whose variable is not set: not everybody's.
        *(["--user", ""], ["--user", "ada", "--tenant", ""]),
    ],
)
def test_cancel_is_told_which_jobs_in_one_way_before_anybody_is_asked(
    gpushare: Cli, cluster: FakeCluster, words: list[str], environment: dict[str, str]
) -> None:
    cluster.add("1", j.JOB_STATE_QUEUED)
    environment["GPUSHARE_CONFIG"] += ".absent"
    done = gpushare("cancel", *words)
    assert (done.code, "CONFIG_INVALID" in done.err) == (2, False)
    assert not cluster.requests


@pytest.mark.parametrize(
    ("command", "option"),
    [("jobs", "--user"), ("jobs", "--tenant"), ("usage", "--tenant"), ("audit", "--user"), ("audit", "--tenant")],
)
def test_an_empty_filter_is_not_everything(gpushare: Cli, command: str, option: str) -> None:
    done = gpushare(command, option, "")
    assert (done.code, "it is empty" in done.err) == (2, True)


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


def test_attach_to_a_terminal_is_refused_where_none_is(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("5", spec=j.JobSpec(pty=True, stdin=True))
    with open(os.devnull) as empty:
        kept = os.dup(0)
        os.dup2(empty.fileno(), 0)
        try:
            done = gpushare("attach", "5")
        finally:
            os.dup2(kept, 0)
            os.close(kept)
    assert done.code == 125
    assert "gpushare logs -f 5" in done.err
