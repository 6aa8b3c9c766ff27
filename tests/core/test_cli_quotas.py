"""The commands for quotas, gangs, dependencies, reservations and drains: what they send and what they print."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from cli_calls import Cli, as_process
from cli_fake import FakeCluster, until

from gpushare.v1 import job_pb2 as j
from gpushare.v1 import node_pb2 as n
from gpushare.v1 import tenant_pb2 as t

# -- submit


def test_submit_sends_what_a_gang_asks_for(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare(
        *[
            "submit",
            "--gpus",
            "1",
            "--tasks",
            "8",
            "--min-tasks",
            "4",
            "--qos",
            "guaranteed",
            "--preemption",
            "suspend",
        ],
        *["--on-task-failure", "continue", "--topology", "domain", "--start-within", "2h", "--model", "A100,H100"],
        *["--", "train"],
    )
    assert done.code == 0
    spec = cluster.seen("CreateJob")[0].job
    assert (spec.tasks, spec.min_tasks, spec.qos, spec.preemption) == (8, 4, j.QOS_GUARANTEED, j.PREEMPTION_SUSPEND)
    assert (spec.on_task_failure, spec.topology) == (j.ON_TASK_FAILURE_CONTINUE, j.TOPOLOGY_DOMAIN)
    assert (spec.start_within.seconds, spec.resources.gpu_model) == (7200, "A100|H100")


def test_what_is_not_said_is_left_to_the_scheduler(gpushare: Cli, cluster: FakeCluster) -> None:
    gpushare("submit", "--gpus", "1", "--", "train")
    spec = cluster.seen("CreateJob")[0].job
    assert (spec.min_tasks, spec.qos, spec.preemption, spec.on_task_failure, spec.topology) == (0, 0, 0, 0, 0)
    assert (len(spec.after), spec.array_max_running, spec.HasField("start_within")) == (0, 0, False)


def test_an_array_has_a_cap_behind_a_percent_sign(gpushare: Cli, cluster: FakeCluster) -> None:
    gpushare("submit", "--gpus", "1", "--array", "0-9%3", "--", "train")
    spec = cluster.seen("CreateJob")[0].job
    assert (list(spec.array_indexes), spec.array_max_running) == (list(range(10)), 3)


def test_jobs_to_wait_for_may_be_called_by_any_name(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.add("3", spec=j.JobSpec(name="prepare"))
    for index in (0, 1):
        cluster.add(f"4_{index}", spec=j.JobSpec(name="many"))
    done = gpushare(
        *[
            "submit",
            "--gpus",
            "1",
            "--after",
            "7",
            "--after-ok",
            "prepare",
            "--after-ok",
            "nlp/9",
            "--after-any",
            "many",
        ],
        *["--", "train"],
    )
    assert done.code == 0
    after = {(d.job, d.kind) for d in cluster.seen("CreateJob")[0].job.after}
    assert after == {
        ("tenants/vision/jobs/7", j.DEPENDENCY_KIND_AFTER),
        ("tenants/vision/jobs/3", j.DEPENDENCY_KIND_AFTEROK),
        ("tenants/nlp/jobs/9", j.DEPENDENCY_KIND_AFTEROK),
        ("tenants/vision/jobs/4", j.DEPENDENCY_KIND_AFTERANY),
    }


def test_a_name_that_no_job_has_submits_nothing(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare("submit", "--gpus", "1", "--after-ok", "prepare", "--", "train")
    assert (done.code, "prepare" in done.err) == (1, True)
    assert cluster.seen("CreateJob") == []


# -- looking


def test_explain_prints_what_would_start_the_job_and_when_it_starts(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("5", j.JOB_STATE_QUEUED, wait=j.Wait(reason="NO_CAPACITY", detail="full"))
    now = datetime.now(UTC)
    cluster.explained.ahead_jobs.append("tenants/vision/jobs/3")
    cluster.explained.ahead_count = 4
    cluster.explained.claimant = "tenants/nlp/jobs/9"
    cluster.explained.expected_start_time.FromDatetime(now)
    cluster.explained.counterfactuals.add(change="half of it", flag="--gpus 0.5", start_time=now)
    done = gpushare("explain", "5")
    assert "expected start:" in done.out
    fields = dict(line.split(":", 1) for line in done.out.splitlines() if ":" in line)
    assert fields["goes after"].strip() == "vision/3 and 3 more"
    assert fields["room kept for"].strip() == "nlp/9"
    row = next(line for line in done.out.splitlines() if "--gpus 0.5" in line and "half" in line)
    assert row.split() == ["now", "--gpus", "0.5", "half", "of", "it"]
    assert gpushare("explain", job.id, "-o", "json").json["counterfactuals"][0]["flag"] == "--gpus 0.5"


def test_a_job_shows_for_whom_it_made_way(gpushare: Cli, cluster: FakeCluster) -> None:
    spec = j.JobSpec(qos=j.QOS_BURST, after=[j.Dependency(job="tenants/vision/jobs/1", kind=j.DEPENDENCY_KIND_AFTEROK)])
    cluster.add("5", spec=spec, preemptions=2, preempted_for="tenants/nlp/jobs/9")
    out = gpushare("job", "5").out
    assert "2 times, last for nlp/9" in out
    assert "afterok:vision/1" in out
    assert "burst" in out


def test_tenants_are_shown_as_a_tree(gpushare: Cli, cluster: FakeCluster) -> None:
    quota = t.ModelQuota(model="H100", guaranteed_milli=2000, limit_milli=4000)
    cluster.tenants = {
        "squad": t.Tenant(name="tenants/squad", parent="tenants/team", weight=1),
        "team": t.Tenant(
            name="tenants/team",
            parent="tenants/lab",
            guaranteed_milli=1500,
            used_charge_milli=2250,
            borrowed_charge_milli=750,
            weight=2,
            model_quotas=[quota],
            model_use=[t.ModelUse(model="H100", charge_milli=2250)],
            max_running_jobs=7,
        ),
        "lab": t.Tenant(name="tenants/lab", limit_milli=8000, weight=1),
        "alone": t.Tenant(name="tenants/alone", parent="tenants/unseen", weight=1),
    }
    lines = gpushare("tenant", "list", "-o", "wide").out.splitlines()
    names = [line[: len(line) - len(line.lstrip())] + line.split()[0] for line in lines[1:]]
    assert names == ["lab", "  team", "    squad", "alone"]
    team = next(line for line in lines if line.strip().startswith("team"))
    assert team.split()[1:7] == ["2.25", "1.5", "none", "0.75", "2", "0"]
    assert "H100 2.25/2:4" in team
    assert "7 jobs" in team


# -- tenants


def test_tenant_settings_are_exact(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare(
        *["tenant", "create", "team", "--parent", "lab", "--guaranteed", "4", "--limit", "8.5", "--weight", "2"],
        *["--model-quota", "H100-80GB=2:4", "--model-quota", "A100=0.5", "--max-running", "10"],
        *["--max-running-per-user", "3", "--cpu-limit", "64", "--memory-limit", "512G", "--min-run", "10m"],
    )
    assert done.code == 0
    made = cluster.seen("CreateTenant")[0].settings
    assert (made.parent, made.guaranteed_milli, made.limit_milli, made.weight) == ("tenants/lab", 4000, 8500, 2)
    assert [(q.model, q.guaranteed_milli, q.limit_milli, q.HasField("limit_milli")) for q in made.model_quotas] == [
        ("H100-80GB", 2000, 4000, True),
        ("A100", 500, 0, False),
    ]
    assert (made.max_running_jobs, made.max_running_per_user) == (10, 3)
    assert (made.cpu_limit_milli, made.memory_limit_mib, made.min_run.seconds) == (64_000, 524_288, 600)


def test_none_takes_a_setting_away(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare(
        *[
            "tenant",
            "set",
            "vision",
            "--parent",
            "none",
            "--limit",
            "none",
            "--max-running",
            "none",
            "--min-run",
            "none",
        ],
        *["--memory-limit", "none", "--model-quota", "H100=none", "--guaranteed", "0"],
    )
    assert done.code == 0
    said = cluster.seen("UpdateTenant")[0].settings
    assert (said.HasField("parent"), said.parent, said.no_limit) == (True, "", True)
    assert sorted(said.unset) == ["max_running_jobs", "memory_limit_mib", "min_run"]
    assert (list(said.no_model_quotas), list(said.model_quotas)) == (["H100"], [])
    assert (said.HasField("guaranteed_milli"), said.guaranteed_milli) == (True, 0)
    assert not said.HasField("weight")


@pytest.mark.parametrize(
    "words",
    [
        ["--guaranteed", "-1"],
        ["--guaranteed", "none"],
        ["--guaranteed", "0.0001"],
        ["--weight", "0"],
        ["--weight", "1.5"],
        ["--model-quota", "H100"],
        ["--model-quota", "=2"],
        ["--model-quota", "H100=x"],
        ["--model-quota", "H100=2:x"],
        ["--max-running", "-1"],
        ["--cpu-limit", "many"],
        ["--memory-limit", "512"],
        ["--min-run", "10"],
    ],
)
def test_what_is_no_setting_is_a_usage_error(gpushare: Cli, cluster: FakeCluster, words: list[str]) -> None:
    done = gpushare("tenant", "set", "vision", *words)
    assert (done.code, words[0] in done.err) == (2, True), done.err
    assert cluster.seen("UpdateTenant") == []


def test_a_tenant_is_isolated_and_open_again(gpushare: Cli, cluster: FakeCluster) -> None:
    for word in ("on", "off"):
        assert gpushare("tenant", "set", "vision", "--isolated", word).code == 0
    said = [each.settings for each in cluster.seen("UpdateTenant")]
    assert [(each.HasField("isolated"), each.isolated) for each in said] == [(True, True), (True, False)]
    assert gpushare("tenant", "set", "vision", "--isolated", "maybe").code == 2
    cluster.tenants["vision"].isolated = True
    assert "isolated" in gpushare("tenant", "list", "-o", "wide").out


def test_what_is_accepted_with_a_word_says_so_beside_the_answer(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.tenants["vision"].notices.append("no registered card is a 'H100'")
    cluster.notices.append("QUOTA_NEVER: it needs 2 cards\x1b[2J")
    done = gpushare("tenant", "set", "vision", "--model-quota", "H100=1")
    assert (done.code, done.err) == (0, "note: no registered card is a 'H100'\n")
    assert "no registered" not in done.out
    cluster.tenants["vision"].guaranteed_milli = 4000
    assert "guaranteed:      4" in gpushare("tenant", "set", "vision", "--guaranteed", "4").out.splitlines()
    done = gpushare("submit", "--dry-run", "--gpus", "2", "--", "true")
    assert done.code == 0
    assert "note: it would wait: QUOTA_NEVER: it needs 2 cards" in done.err
    assert "\x1b" not in done.err
    cluster.notices.clear()
    del cluster.tenants["vision"].notices[:]


def test_a_token_may_be_a_tenant_admins(gpushare: Cli, cluster: FakeCluster) -> None:
    assert gpushare("token", "create", "tina", "--role", "tenant-admin", "--tenant", "vision").code == 0
    assert cluster.seen("CreateToken")[0].role == t.ROLE_TENANT_ADMIN


def test_a_preview_takes_settings_of_several_tenants(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.previewed.append(
        t.PreviewedJob(name="tenants/nlp/jobs/3", effect=t.QUOTA_EFFECT_WOULD_BE_RECLAIMED, detail="for vision/4")
    )
    words = ["quota", "preview", "--set", "vision.guaranteed=6", "--set", "vision.limit=none", "--set", "nlp.weight=2"]
    done = gpushare(*words, "--set", "nlp.model-quota=H100=2:4")
    assert done.code == 0
    assert done.out.splitlines()[1].split() == ["nlp/3", "would", "be", "reclaimed", "for", "vision/4"]
    changes = {change.name: change.settings for change in cluster.seen("PreviewQuota")[0].changes}
    assert (changes["tenants/vision"].guaranteed_milli, changes["tenants/vision"].no_limit) == (6000, True)
    assert (changes["tenants/nlp"].weight, changes["tenants/nlp"].model_quotas[0].limit_milli) == (2, 4000)
    cluster.previewed.clear()
    assert gpushare(*words).out == "no job would wait, start or be reclaimed\n"


@pytest.mark.parametrize(
    "text", ["guaranteed=6", "vision.guaranteed", "vision.size=6", "vision.guaranteed=x", ".limit=1"]
)
def test_a_preview_of_what_is_no_setting_is_a_usage_error(gpushare: Cli, cluster: FakeCluster, text: str) -> None:
    assert gpushare("quota", "preview", "--set", text).code == 2
    assert cluster.seen("PreviewQuota") == []


# -- reservations


def test_a_reservation_is_sent_as_it_was_written(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare(
        *["reservation", "create", "course", "--tenant", "vision", "--user", "ann", "--user", "bob", "--gpus", "0.5"],
        *["--gpu-memory", "12G", "--model", "A100,H100", "--node", "n1", "--start", "2026-12-01T09:00+01:00"],
        *["--end", "2026-12-01 12:00:30Z", "--repeat", "weekly", "--until", "2027-02-01", "--detail", "lab hours"],
    )
    assert done.code == 0, done.err
    asked = cluster.seen("CreateReservation")[0]
    assert (asked.reservation_id, asked.tenant, list(asked.users)) == ("course", "vision", ["ann", "bob"])
    assert (asked.gpu_milli, asked.gpu_memory_mib, asked.HasField("gpus")) == (500, 12288, False)
    assert (asked.gpu_model, list(asked.nodes), asked.detail) == ("A100|H100", ["n1"], "lab hours")
    assert asked.start_time.ToJsonString() == "2026-12-01T08:00:00Z"
    assert asked.end_time.ToJsonString() == "2026-12-01T12:00:30Z"
    assert asked.repeat.seconds == 7 * 86_400
    assert asked.until_time.seconds == int(datetime(2027, 2, 1).astimezone().timestamp())
    assert asked.request_id


def test_maintenance_from_now_for_a_while(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.in_the_way = ["vision/3 (no time limit)"]
    before_s = int(time.time())
    words = ["reservation", "create", "fans", "--maintenance", "--node", "n3", "--start", "+2h", "--duration", "30m"]
    done = gpushare(*words)
    assert done.code == 0
    assert "vision/3 (no time limit)" in done.err
    asked = cluster.seen("CreateReservation")[0]
    assert asked.maintenance
    assert 0 <= asked.start_time.seconds - before_s - 7200 <= 10
    assert asked.end_time.ToMilliseconds() - asked.start_time.ToMilliseconds() == 1_800_000
    assert gpushare("reservation", "list").out.splitlines()[1].split()[:4] == ["fans", "maintenance", "whole", "nodes"]
    assert gpushare("reservation", "list", "-o", "json").json["reservations"][0]["name"] == "reservations/fans"
    assert gpushare("reservation", "delete", "fans").out == "deleted reservation fans\n"
    assert cluster.reservations == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--start", "now"], "--end and --duration"),
        (["--start", "now", "--end", "+1h", "--duration", "1h"], "--end and --duration"),
        (["--duration", "1h"], "--start"),
        (["--start", "soon", "--duration", "1h"], "--start"),
        (["--start", "2026-13-01", "--duration", "1h"], "--start"),
        (["--start", "2026-W10-1", "--duration", "1h"], "--start"),
        (["--start", "２０２６-12-01", "--duration", "1h"], "--start"),
        (["--start", "+2", "--duration", "1h"], "--start"),
        (["--start", "now", "--duration", "1"], "--duration"),
        (["--start", "now", "--duration", "1h", "--repeat", "hourly"], "--repeat"),
        (["--start", "now", "--duration", "1h", "--until", "+1d"], "--repeat"),
        (["--start", "now", "--duration", "1h", "--gpus", "1.5"], "--gpus"),
    ],
)
def test_what_is_no_reservation_is_a_usage_error(
    gpushare: Cli, cluster: FakeCluster, words: list[str], says: str
) -> None:
    done = gpushare("reservation", "create", "x", "--tenant", "vision", *words)
    assert (done.code, says in done.err) == (2, True), done.err
    assert cluster.seen("CreateReservation") == []


# -- nodes


def test_the_overcommit_of_a_node_is_exact(gpushare: Cli, cluster: FakeCluster) -> None:
    assert gpushare("node", "set", "node-1", "--compute-overcommit", "1.5").code == 0
    assert cluster.seen("UpdateNode")[0].compute_overcommit_milli == 1500
    for text in ("0.9", "10.1", "1.0001", "nan", "150%"):
        done = gpushare("node", "set", "node-1", "--compute-overcommit", text)
        assert (done.code, "--compute-overcommit" in done.err) == (2, True)
    assert len(cluster.seen("UpdateNode")) == 1


def end_tasks(cluster: FakeCluster) -> None:
    until(lambda: cluster.seen("GetNode"), "it looks at the node")
    node = cluster.nodes["node-1"]
    node.task_count, node.drained = 0, True


def test_a_drain_is_waited_for(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.nodes["node-1"].task_count = 2
    ending = threading.Thread(target=end_tasks, args=(cluster,))
    ending.start()
    done = gpushare("node", "drain", "node-1", "--wait")
    ending.join(10)
    assert done.code == 0
    assert "2 tasks left" in done.err
    assert "drained" in done.out


def test_a_drain_that_takes_too_long_stays_in_force(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.nodes["node-1"].task_count = 1
    done = gpushare("node", "drain", "node-1", "--wait", "--timeout", "300ms")
    assert done.code == 1
    assert "NODE_BUSY: node node-1 still has 1 task" in done.err
    assert "stays in force" in done.err
    assert cluster.nodes["node-1"].state == n.NODE_STATE_DRAINING
    assert gpushare("node", "drain", "node-1", "--timeout", "1s").code == 2


def test_ctrl_c_ends_the_waiting_and_not_the_drain(cluster: FakeCluster, environment: dict[str, str]) -> None:
    cluster.nodes["node-1"].task_count = 1
    process = as_process(environment, "node", "drain", "node-1", "--wait")
    try:
        until(lambda: cluster.seen("GetNode"), "it waits")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 130
    assert out == ""
    assert "stays in force" in err
    assert "gpushare node uncordon node-1" in err
    assert "Traceback" not in err


def test_a_repack_is_shown_with_its_cost_before_it_is_done(gpushare: Cli, cluster: FakeCluster) -> None:
    cluster.repack.moves.add(
        job="tenants/vision/jobs/3", node="n1", from_gpu_uuids=["A"], to_gpu_uuids=["B"], gpu_memory_mib=2048
    )
    cluster.repack.opened.add(node="n1", gpus=1)
    cluster.repack.gpu_memory_mib = 2048
    cluster.repack.largest_share_before_milli, cluster.repack.largest_share_after_milli = 500, 1000
    shown = gpushare("repack", "--plan")
    assert shown.out.splitlines()[1].split() == ["vision/3", "n1", "A", "B", "2GiB"]
    for text in ("1 whole card of n1", "0.5 now, 1 then", "2GiB are copied", "gpushare repack --apply"):
        assert text in shown.out
    assert cluster.seen("ApplyRepack") == []
    done = gpushare("repack", "--apply")
    assert (done.code, "on their way" in done.out) == (0, True)
    assert list(cluster.seen("ApplyRepack")[0].jobs) == ["tenants/vision/jobs/3"]
    assert gpushare("repack", "--plan", "-o", "json").json["largestShareAfterMilli"] == "1000"
    cluster.repack.Clear()
    assert "nothing to move" in gpushare("repack", "--apply").out
    assert len(cluster.seen("ApplyRepack")) == 1
    for words in ([], ["--plan", "--apply"]):
        assert gpushare("repack", *words).code == 2


def test_the_new_commands_start_as_fast_as_the_others() -> None:
    """Their help needs neither grpc nor protobuf."""
    code = (
        "import sys; from gpushare.cli import quota, repack, reservations, nodes, submit, tenants; "
        "sys.exit(any(m.split('.')[0] in ('grpc', 'google') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
