"""The command line against real daemons: jobs run in their slices, and their codes, outputs and records come back."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from upcluster import CLI, UpCluster

UUID = r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def test_run_prints_the_granted_card_and_returns_the_jobs_code(up_cluster: UpCluster) -> None:
    done = up_cluster.cli("run", "--gpus", "0.25", "--", "sh", "-c", "env | grep CUDA_VISIBLE_DEVICES; exit 7")
    assert done.code == 7
    uuid = re.fullmatch(rf"CUDA_VISIBLE_DEVICES=({UUID})\n", done.out)
    assert uuid is not None, done
    known = {card["uuid"] for card in up_cluster.ok("gpus", "-o", "json").json["gpus"]}
    assert uuid[1] in known
    assert up_cluster.job("@last")["tasks"][0]["gpuUuids"] == [uuid[1]]


def test_every_command_prints_valid_json_with_the_names_of_the_api(up_cluster: UpCluster) -> None:
    job = up_cluster.ok("submit", "--gpus", "0.25", "--parsable", "--", "echo", "hello").out.strip()
    assert up_cluster.ok("wait", job, "-o", "json").json["jobs"][0]["exitCode"] == 0
    assert up_cluster.ok("job", job, "-o", "json").json["createdBy"]["role"] == "admin"
    assert job in [each["id"] for each in up_cluster.ok("jobs", "-a", "-o", "json").json["jobs"]]
    cards = up_cluster.ok("gpus", "-o", "json").json["gpus"]
    assert {card["allocatedMilli"] for card in cards} == {"0"}
    nodes = up_cluster.ok("nodes", "-o", "json").json["nodes"]
    assert [(node["name"], node["ready"]) for node in nodes] == [("nodes/node-1", True), ("nodes/node-2", True)]
    assert up_cluster.ok("explain", job, "-o", "json").json["stage"] == ""
    chunks = up_cluster.ok("logs", job, "-o", "json").json
    assert "".join(chunk["text"] for chunk in chunks) == "hello\n"
    assert up_cluster.ok("cancel", job, "-o", "json").json["jobs"][0]["state"] == "JOB_STATE_SUCCEEDED"
    events = up_cluster.ok("audit", "-o", "json").json["events"]
    assert "JobsCreated" in {event["kind"] for event in events}
    assert up_cluster.ok("audit", "--denials", "-o", "json").json["events"] is not None
    assert up_cluster.ok("usage", "--by", "job", "-o", "json").json["rows"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--", "true"], 0, "COMPLETED"),
        (["--", "sh", "-c", "exit 3"], 3, "EXIT_CODE"),
        (["--", "sh", "-c", "kill -9 $$"], 137, "SIGNALLED"),
        (["--time", "1s", "--grace", "1s", "--", "sleep", "60"], 124, "TIME_LIMIT"),
        (["--", "/nonexistent/program"], 127, "EXEC"),
        (["--", "/etc/passwd"], 126, "EXEC"),
        (["--chdir", "/nonexistent", "--", "true"], None, "WORKDIR"),
    ],
)
def test_codes_of_jobs_are_those_of_a_shell(
    up_cluster: UpCluster, words: list[str], code: int | None, reason: str
) -> None:
    ran = up_cluster.cli("run", "--gpus", "0.1", *words)
    assert up_cluster.job("@last")["reason"] == reason
    if code is not None:
        assert ran.code == code
    else:
        assert ran.code != 0
        assert "/nonexistent" in ran.err
    assert up_cluster.cli("wait", "@last").code == ran.code


def test_stdout_and_stderr_stay_apart_and_every_byte_arrives(up_cluster: UpCluster) -> None:
    program = "import os,sys; os.write(1, bytes(range(256)) * 8192); os.write(2, b'e' * 100_000)"
    done = subprocess.run(
        [*CLI, "run", "--gpus", "0", "--parsable", "--", sys.executable, "-c", program],
        env=up_cluster.environment(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout == bytes(range(256)) * 8192
    first, rest = done.stderr.split(b"\n", 1)
    assert first.isdigit()
    assert rest == b"e" * 100_000


def test_a_terminal_gets_colours_and_no_control_sequence(up_cluster: UpCluster) -> None:
    script = r"printf '\033[31mred\033[0m \033]0;title\007 \033[2J\n'"
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*CLI, "run", "--gpus", "0", "--", "sh", "-c", script],
        env=up_cluster.environment() | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(slave)
        seen = read_terminal(master)
        assert process.wait(30) == 0
    assert b"\x1b[31mred\x1b[0m" in seen
    assert rb"\x1b]0;title\x07 \x1b[2J" in seen
    assert b"\x1b]" not in seen
    assert b"\x1b[2J" not in seen


def read_terminal(master: int) -> bytes:
    """Everything until the other side is closed."""
    seen = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b""
        if not data:
            os.close(master)
            return seen
        seen += data


def test_a_job_with_a_terminal_of_its_own(up_cluster: UpCluster) -> None:
    script = "test -t 0 && test -t 1 && echo out && echo err >&2"
    done = up_cluster.cli("run", "--gpus", "0", "--pty", "--", "sh", "-c", script)
    assert done.code == 0
    assert done.out.replace("\r", "") == "out\nerr\n"
    assert done.err.count("gets a terminal but no input") == 1


def test_a_gang_starts_together_and_its_lines_carry_their_task(up_cluster: UpCluster) -> None:
    script = "echo $GPUSHARE_TASK_INDEX/$GPUSHARE_TASK_COUNT on $GPUSHARE_NODE"
    done = up_cluster.ok("run", "--gpus", "1", "--tasks", "4", "--", "sh", "-c", script)
    lines = sorted(done.out.splitlines())
    assert [line[:7] for line in lines] == [f"[{task}] {task}/4" for task in range(4)]
    assert {line[-6:] for line in lines} == {"node-1", "node-2"}
    job = up_cluster.job("@last")
    assert len({task["allocateTime"] for task in job["tasks"]}) == 1
    assert up_cluster.ok("logs", "@last/2").out == f"[2] {lines[2][4:]}\n"


def test_an_array_is_run_waited_for_and_read_as_one(up_cluster: UpCluster) -> None:
    script = "echo index $GPUSHARE_ARRAY_INDEX; exit $GPUSHARE_ARRAY_INDEX"
    array = up_cluster.ok(
        "submit", "--gpus", "0.1", "--array", "0-3", "--parsable", "--", "sh", "-c", script
    ).out.strip()
    done = up_cluster.cli("wait", array, "-o", "json")
    assert done.code == 1, "the first code that is not 0"
    assert [job["exitCode"] for job in done.json["jobs"]] == [0, 1, 2, 3]
    assert up_cluster.ok("logs", array).out == "".join(f"[{array}_{index}] index {index}\n" for index in range(4))
    assert up_cluster.ok("logs", f"{array}_2").out == "index 2\n"


def test_a_script_its_directory_and_its_environment(up_cluster: UpCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/sh\necho "$PWD" "$1" "$GIVEN" "$CONDA_PREFIX" "${SECRET-unset}"\n')
    environment = {"CONDA_PREFIX": "/conda", "SECRET": "s", "GPUSHARE_JOB_ID": "captured"}
    words = ["--gpus", "0", "--chdir", str(tmp_path), "--env", "GIVEN=two words"]
    done = up_cluster.ok("run", *words, str(script), "--arg", env=environment)
    assert done.out == f"{tmp_path} --arg two words /conda unset\n"
    refused = up_cluster.cli("submit", *words, "--env", "CUDA_VISIBLE_DEVICES=0", str(script))
    assert refused.code == 1
    assert "RESERVED_ENV" in refused.err
    everything = up_cluster.ok("submit", *words, "--export", "all", str(script), env=environment)
    assert "GPUSHARE_JOB_ID" in everything.err


def test_a_later_edit_of_a_script_does_not_change_a_queued_job(up_cluster: UpCluster, tmp_path: Path) -> None:
    blocker = up_cluster.ok("submit", "--gpus", "1", "--tasks", "4", "--parsable", "--", "sleep", "60").out.strip()
    up_cluster.wait_for(blocker, "RUNNING")
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\necho first\n")
    job = up_cluster.ok("submit", "--gpus", "1", "--parsable", str(script)).out.strip()
    script.write_text("#!/bin/sh\necho second\n")
    waiting = up_cluster.wait_for(job, "QUEUED")
    assert waiting["state"] == "JOB_STATE_QUEUED"
    explained = up_cluster.ok("explain", job, "-o", "json").json
    assert explained["stage"] == "capacity"
    assert explained["wait"]["reason"] == "NO_CAPACITY"
    assert f"tenants/default/jobs/{blocker}" in explained["blockingJobs"]
    assert "NO_CAPACITY" in up_cluster.ok("explain", job).out
    up_cluster.ok("cancel", blocker)
    assert up_cluster.ok("wait", job).code == 0
    assert up_cluster.ok("logs", job).out == "first\n"
    record = up_cluster.job(blocker)
    assert record["state"] == "JOB_STATE_CANCELLED"
    assert record["cancelledBy"]["role"] == "admin"


def test_ctrl_c_cancels_and_losing_the_terminal_does_not(up_cluster: UpCluster) -> None:
    ran = up_cluster.spawn("run", "--gpus", "0.5", "--name", "interrupted", "--", "sh", "-c", "echo go; sleep 60")
    assert ran.stdout is not None
    assert ran.stdout.readline() == "go\n"
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=30)
    job = up_cluster.job("interrupted")
    assert job["state"] == "JOB_STATE_CANCELLED"
    assert ran.returncode == job["exitCode"] != 0
    assert "cancelling" in err

    stubborn = up_cluster.spawn(
        *("run", "--gpus", "0", "--grace", "2s", "--name", "stubborn"),
        *("--", "sh", "-c", "trap '' TERM; echo go; while :; do sleep 0.1; done"),
    )
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == "go\n"
    stubborn.send_signal(signal.SIGINT)
    assert stubborn.stderr is not None
    while "cancelling" not in (line := stubborn.stderr.readline()):
        assert line, "the first Ctrl-C cancels"
    stubborn.send_signal(signal.SIGINT)
    _, err = stubborn.communicate(timeout=30)
    assert stubborn.returncode == 130
    assert re.search(r"^note: left; job \S+ is being cancelled$", err, re.MULTILINE)
    up_cluster.wait_for("stubborn", "CANCELLED")

    left = up_cluster.spawn("run", "--gpus", "0.5", "--name", "left", "--", "sh", "-c", "echo go; sleep 60")
    assert left.stdout is not None
    assert left.stdout.readline() == "go\n"
    left.send_signal(signal.SIGHUP)
    _, err = left.communicate(timeout=30)
    assert left.returncode == 129
    way_back = re.match(r"job (\S+); to come back: (gpushare logs -f \S+);", err)
    assert way_back is not None
    assert up_cluster.job("left")["state"] == "JOB_STATE_RUNNING"
    back = up_cluster.spawn(*way_back[2].split()[1:])
    assert back.stdout is not None
    assert back.stdout.readline() == "go\n"
    back.send_signal(signal.SIGINT)
    back.communicate(timeout=30)
    assert up_cluster.job("left")["state"] == "JOB_STATE_RUNNING"
    up_cluster.ok("cancel", "left")
    up_cluster.wait_for("left", "CANCELLED")


def test_a_member_of_another_tenant_sees_nothing_of_it(up_cluster: UpCluster) -> None:
    mine = up_cluster.ok("submit", "--gpus", "0.1", "--parsable", "--", "true").out.strip()
    up_cluster.ok("tenant", "create", "nlp", "--limit", "0.3")
    join = up_cluster.ok("token", "create", "bob", "--tenant", "nlp").out.strip()
    assert join.startswith("gps-join-v1.")
    up_cluster.ok("login", "-", person="bob", input=join + "\n")
    for words in (["job"], ["logs"], ["explain"], ["cancel"], ["wait"]):
        hidden = up_cluster.cli(*words, f"default/{mine}", person="bob")
        nowhere = up_cluster.cli(*words, "default/99999", person="bob")
        assert hidden.code == nowhere.code != 0
        assert hidden.err.replace(mine, "99999") == nowhere.err
        assert f"There is no job default/{mine} that you may see" in hidden.err, words
    assert up_cluster.ok("jobs", "-a", "-o", "json", person="bob").json == {"jobs": []}
    assert up_cluster.cli("tenant", "create", "x", person="bob").code == 1
    job = up_cluster.ok(
        "submit", "--gpus", "0.1", "--parsable", "--name", "mine", "--", "true", person="bob"
    ).out.strip()
    assert up_cluster.ok("wait", job, person="bob").code == 0
    assert up_cluster.job("@last", person="bob")["name"] == f"tenants/nlp/jobs/{job}"
    assert up_cluster.job("mine", person="bob")["createdBy"]["user"] == "bob"
    never = up_cluster.ok("submit", "--gpus", "0.4", "--parsable", "--", "true", person="bob").out.strip()
    up_cluster.until(
        lambda: up_cluster.job(never, "bob").get("wait", {}).get("reason") == "TENANT_LIMIT_NEVER",
        "the limit of 0.3 is told",
    )
    up_cluster.ok("cancel", never, person="bob")
    token = next(t for t in up_cluster.ok("token", "list", "-o", "json").json["tokens"] if t["user"] == "bob")
    up_cluster.ok("token", "revoke", token["name"])
    refused = up_cluster.cli("jobs", person="bob")
    assert refused.code == 1
    assert "UNAUTHENTICATED" in refused.err


def test_a_cordoned_node_starts_nothing_new(up_cluster: UpCluster) -> None:
    up_cluster.ok("node", "cordon", "node-1", "--detail", "maintenance")
    try:
        for _ in range(2):
            assert up_cluster.ok("run", "--gpus", "0.5", "--", "sh", "-c", "echo $GPUSHARE_NODE").out == "node-2\n"
        assert "cordoned" in up_cluster.ok("nodes").out
        refused = up_cluster.cli("node", "declare-dead", "node-2")
        assert refused.code == 1
        assert "NODE_NOT_SILENT" in refused.err
    finally:
        up_cluster.ok("node", "uncordon", "node-1")
    assert up_cluster.ok("node", "join-token", "node-3").out.startswith("gps-join-v1.")
