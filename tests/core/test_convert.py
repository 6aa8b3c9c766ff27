"""Protobuf <-> the core: shapes, names, times, and what is left out for whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gpushare.core.commands import RawJob, RawResources
from gpushare.core.kinds import (
    AttemptState,
    DependencyKind,
    Enforcement,
    GpuState,
    JobState,
    NodeState,
    OnDisconnect,
    OnTaskFailure,
    PreemptionMode,
    Qos,
    Role,
    SignalTarget,
    Topology,
    VisibleDevices,
)
from gpushare.core.model import (
    Account,
    Attempt,
    Dependency,
    EarlySignal,
    Job,
    JobSpec,
    ModelQuota,
    Principal,
    Slice,
    TaskRequest,
    Tenant,
    TenantSettings,
)
from gpushare.core.orders import StartOrder
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError
from gpushare.reasons import Reason
from gpushare.scheduler import convert, convert_nodes, convert_tenants
from gpushare.scheduler.api_paging import Place, page_size
from gpushare.scheduler.auth import JobView
from gpushare.v1 import agent_pb2, job_pb2, node_pb2, tenant_pb2


@contextmanager
def refused(status: str, text: str = "") -> Iterator[None]:
    with pytest.raises(GpushareError) as raised:
        yield
    assert raised.value.status == status
    assert text in str(raised.value)


# -- names

BAD_IDS = (
    "",
    "0",
    "01",
    "4 2",
    "42_",
    "42_01",
    "42_-1",
    "_1",
    "42\n",
    "٤٢",
    "%",
    "*",
    "4*",
    "42/",
    "../1",
    "a",
    "1" * 40,
)


@pytest.mark.parametrize("name", ["tenants/vision/jobs/42", "tenants/acme-2/jobs/42_0", "tenants/v/jobs/7_999"])
def test_a_job_name_goes_there_and_back(name: str) -> None:
    tenant, job_id = convert.parse_job_name(name)
    assert convert.job_name(f"{tenant}/{job_id}") == name


@pytest.mark.parametrize("job_id", BAD_IDS)
def test_a_job_id_is_exact_or_not_found(job_id: str) -> None:
    with refused("NOT_FOUND"):
        convert.parse_job_name(f"tenants/vision/jobs/{job_id}")


@pytest.mark.parametrize(
    "name", ["", "42", "vision/42", "tenants/vision", "tenants//jobs/1", "tenants/Vision/jobs/1", "jobs/1", "x" * 9000]
)
def test_what_is_no_job_name_is_not_found_and_shown_shortened(name: str) -> None:
    with refused("NOT_FOUND"):
        convert.parse_job_name(name)


@pytest.mark.parametrize(
    "parent", ["", "vision", "tenants/", "tenants/vision/", "tenants/Vision", "tenants/a\n", "tenants/-"]
)
def test_a_malformed_parent_is_an_invalid_argument(parent: str) -> None:
    with refused("INVALID_ARGUMENT", "parent"):
        convert.parse_parent(parent)


def test_the_wildcard_parent_is_for_listings_alone() -> None:
    assert convert.parse_parent("tenants/-", wildcard=True) == "-"
    assert convert.parse_parent("tenants/vision", wildcard=True) == "vision"


# -- times


@pytest.mark.parametrize(
    ("seconds", "nanos", "ms"),
    [
        (0, 0, 0),
        (90, 0, 90_000),
        (0, 1_000_000, 1),
        (-1, 0, -1000),
        (-1, -500_000_000, -1500),
        (10**18, 0, 10**21),
        (2**63 - 1, 999_000_000, (2**63 - 1) * 1000 + 999),
    ],
)
def test_a_duration_of_any_size_is_exact_milliseconds(seconds: int, nanos: int, ms: int) -> None:
    assert convert.duration_ms(Duration(seconds=seconds, nanos=nanos), "f") == ms


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(1, -1_000_000), (-1, 1_000_000), (0, 10**9), (0, -(10**9)), (1, 1), (0, 999_999)]
)
def test_what_is_no_duration_or_no_whole_millisecond_is_refused(seconds: int, nanos: int) -> None:
    with refused("INVALID_ARGUMENT", "f: "):
        convert.duration_ms(Duration(seconds=seconds, nanos=nanos), "f")


@pytest.mark.parametrize("ms", [-(10**18), 0, 1_700_000_000_123, 10**18, 2**62])
def test_any_time_can_be_shown(ms: int) -> None:
    shown = convert.timestamp(ms)
    assert shown is not None
    assert shown.ToJsonString()
    if 0 <= ms < 10**13:
        assert convert.stamp_ms(shown) == ms


# -- enums


def test_every_state_and_level_has_its_number() -> None:
    for states, enum, kind in (
        (convert.JOB_STATES, job_pb2.JobState, JobState),
        (convert.ATTEMPT_STATES, job_pb2.AttemptState, AttemptState),
        (convert.ENFORCEMENTS, job_pb2.Enforcement, Enforcement),
        (convert.ON_DISCONNECT, job_pb2.OnDisconnect, OnDisconnect),
        (convert_nodes.NODE_STATES, node_pb2.NodeState, NodeState),
        (convert_nodes.GPU_STATES, node_pb2.GpuState, GpuState),
    ):
        assert list(states) == list(kind)
        assert {enum.Value(name) for name in states.values()} | {0} == set(enum.values())
    assert {convert.ROLES[role] for role in convert.ROLES} == {
        n for n in tenant_pb2.Role.DESCRIPTOR.values_by_name if n != "ROLE_UNSPECIFIED"
    }


@pytest.mark.parametrize("number", [999, -1, 2**31 - 1])
def test_an_unknown_number_is_refused(number: int) -> None:
    with refused("INVALID_ARGUMENT", "on_disconnect"):
        convert.raw_job(job_pb2.JobSpec(on_disconnect=number))  # type: ignore[arg-type]
    with refused("INVALID_ARGUMENT", "role"):
        convert.role_in(number)
    with refused("INVALID_ARGUMENT", "state"):
        convert.job_state_in(number)
    with refused("INVALID_ARGUMENT", "BAD_REPORT"):
        convert_nodes.attempt_report(agent_pb2.AttemptReport(state=number))  # type: ignore[arg-type]
    with refused("INVALID_ARGUMENT", "BAD_REPORT"):
        convert_nodes.conditions([agent_pb2.GpuCondition(state=number)])  # type: ignore[arg-type]


# -- jobs in


def test_unset_and_zero_are_kept_apart() -> None:
    unset = convert.raw_job(job_pb2.JobSpec())
    assert (unset.name, unset.max_run_ms, unset.priority, unset.grace_ms) == (None, None, None, None)
    assert (unset.resources.gpus, unset.resources.gpu_milli, unset.resources.cpu_milli) == (None, None, None)
    zero = convert.raw_job(
        job_pb2.JobSpec(
            name="",
            max_run_duration=Duration(),
            priority=0,
            grace_duration=Duration(),
            resources=job_pb2.Resources(gpus=0, gpu_milli=0, cpu_milli=0),
        )
    )
    assert (zero.name, zero.max_run_ms, zero.priority, zero.grace_ms) == ("", 0, 0, 0)
    assert (zero.resources.gpus, zero.resources.gpu_milli, zero.resources.cpu_milli) == (0, 0, 0)


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 1001, 2**31, 2**63 - 1])
def test_any_integer_reaches_the_core_as_it_is(number: int) -> None:
    raw = convert.raw_job(
        job_pb2.JobSpec(priority=number, resources=job_pb2.Resources(gpus=number, gpu_milli=number, memory_mib=number))
    )
    assert raw.priority == raw.resources.gpus == raw.resources.gpu_milli == raw.resources.memory_mib == number


EACH_FIELD = job_pb2.JobSpec(
    name="train",
    display_name="Train",
    argv=["true"],
    script=b"#!/bin/sh",
    env={"A": "1"},
    captured_env={"B": "2"},
    working_directory="/work",
    resources=job_pb2.Resources(
        gpus=1,
        gpu_milli=2,
        gpu_memory_mib=3,
        cpu_milli=4,
        memory_mib=5,
        gpu_model="L40S",
        min_gpu_memory_mib=6,
        node_labels={"disk": "fast"},
        min_enforcement=job_pb2.ENFORCEMENT_SERVER,
    ),
    tasks=2,
    array_indexes=[3],
    max_run_duration=Duration(seconds=4),
    priority=5,
    max_retries=6,
    on_disconnect=job_pb2.ON_DISCONNECT_STOP_AND_REQUEUE,
    grace_duration=Duration(seconds=7),
    labels={"team": "a"},
    pty=True,
    min_tasks=1,
    qos=job_pb2.QOS_GUARANTEED,
    preemption=job_pb2.PREEMPTION_CANCEL,
    on_task_failure=job_pb2.ON_TASK_FAILURE_CONTINUE,
    topology=job_pb2.TOPOLOGY_NODE,
    after=[job_pb2.Dependency(job="tenants/vision/jobs/1")],
    array_max_running=8,
    start_within=Duration(seconds=9),
    output_path="out",
    error_path="err",
    visible_devices=job_pb2.VISIBLE_DEVICES_INDEX,
    early_signal=job_pb2.EarlySignal(signal="TERM", before=Duration(seconds=10), target=job_pb2.SIGNAL_TARGET_ALL),
    requeue_exit_codes=[85],
    stdin=True,
    window=job_pb2.WindowSize(rows=24, columns=80),
)


def test_each_field_of_a_submission_reaches_the_core() -> None:
    for kind, sent in ((job_pb2.JobSpec, EACH_FIELD), (job_pb2.Resources, EACH_FIELD.resources)):
        assert {field.name for field, _ in sent.ListFields()} == {field.name for field in kind.DESCRIPTOR.fields}
    assert convert.raw_job(EACH_FIELD) == RawJob(
        name="train",
        display_name="Train",
        argv=("true",),
        script=b"#!/bin/sh",
        env={"A": "1"},
        captured_env={"B": "2"},
        working_directory="/work",
        resources=RawResources(
            gpus=1,
            gpu_milli=2,
            gpu_memory_mib=3,
            cpu_milli=4,
            memory_mib=5,
            gpu_model="L40S",
            min_gpu_memory_mib=6,
            node_labels={"disk": "fast"},
            min_enforcement=2,
        ),
        tasks=2,
        array_indexes=(3,),
        max_run_ms=4_000,
        priority=5,
        max_retries=6,
        on_disconnect=OnDisconnect.STOP_AND_REQUEUE,
        grace_ms=7_000,
        labels={"team": "a"},
        pty=True,
        min_tasks=1,
        qos=Qos.GUARANTEED,
        preemption=PreemptionMode.CANCEL,
        on_task_failure=OnTaskFailure.CONTINUE,
        topology=Topology.NODE,
        after=(Dependency("vision/1", DependencyKind.AFTEROK),),
        array_max_running=8,
        start_within_ms=9_000,
        output_path="out",
        error_path="err",
        visible_devices=VisibleDevices.INDEX,
        early_signal=EarlySignal("TERM", 10_000, SignalTarget.ALL),
        requeue_exit_codes=(85,),
        stdin=True,
        window_rows=24,
        window_columns=80,
    )


# -- jobs out

SPEC = JobSpec(
    argv=("python", "secret.py"),
    script=b"#!/bin/sh\nsecret",
    env={"KEY": "secret"},
    captured_env={"PATH": "/secret/bin"},
    working_directory="/home/ann/secret",
    resources=TaskRequest(gpu_milli=250),
    name="train",
    display_name="Ann's",
    max_run_ms=5_400_000,
    labels={"team": "a"},
    output_path="/home/ann/secret.out",
    error_path="secret.err",
)
ANN = Principal(user="ann", role=Role.USER, tenant="vision")


def a_job() -> Job:
    held = Slice(task=0, node="n1", gpu_uuids=("GPU-1",), gpu_milli=250, charge_milli=250, tier="timeslice")
    attempt = Attempt("vision", "7", 0, 1, held, 1, 1_000, AttemptState.FAILED, ended_ms=5_000, reason=Reason.EXEC)
    attempt.detail = "/home/ann/secret/run: No such file"
    job = Job("vision", "7", SPEC, 1_000, ANN, 3, state=JobState.FAILED, round=1, base_round=1, attempts=[attempt])
    job.reason, job.detail, job.exit_code, job.ended_ms = Reason.EXEC, attempt.detail, 127, 5_000
    return job


def test_its_user_sees_all_of_a_job() -> None:
    shown = convert.job(a_job(), JobView.FULL, 9_000)
    assert (shown.name, shown.state, shown.exit_code) == ("tenants/vision/jobs/7", job_pb2.JOB_STATE_FAILED, 127)
    assert (list(shown.spec.argv), shown.spec.script, dict(shown.spec.env)) == (list(SPEC.argv), SPEC.script, SPEC.env)
    assert shown.spec.max_run_duration.ToMilliseconds() == 5_400_000
    assert not shown.spec.resources.HasField("gpus")
    assert shown.charge_milli_seconds == 250 * 4
    assert shown.tasks[0].attempt_id == "vision.7.0.1"
    assert "No such file" in shown.tasks[0].detail
    assert not shown.redacted


def test_a_listing_leaves_out_script_and_environment() -> None:
    shown = convert.job(a_job(), JobView.BASIC, 9_000)
    assert (list(shown.spec.argv), shown.spec.script, dict(shown.spec.env)) == (list(SPEC.argv), b"", {})
    assert not shown.redacted


def test_what_others_see_of_a_job_holds_nothing_of_its_command_environment_or_paths() -> None:
    shown = convert.job(a_job(), JobView.REDACTED, 9_000)
    assert b"secret" not in shown.SerializeToString()
    assert shown.redacted
    assert (shown.spec.name, shown.spec.resources.gpu_milli, shown.reason) == ("train", 250, "EXEC")
    assert shown.created_by.user == "ann"


def test_an_order_to_start_carries_the_whole_environment_with_the_explicit_part_on_top() -> None:
    spec = JobSpec(
        argv=("a",),
        resources=TaskRequest(gpus=0),
        working_directory="/",
        env={"A": "1"},
        captured_env={"A": "0", "B": "2"},
        output_path="%A/%a-%t.out",
        error_path="/e/%u.%j",
    )
    job = Job("vision", "7_3", spec, 1_000, ANN, 3, array_id="7", array_index=3)
    attempt = Attempt("vision", "7_3", 0, 2, Slice(task=0, node="n1", cpu_milli=1000), 1, 1_000)
    message = convert_nodes.order_message(StartOrder("n1", attempt, job), term=9).start_attempt
    assert (message.attempt_id, message.term, message.array_index, message.number) == ("vision.7_3.0.2", 9, 3, 2)
    assert dict(message.env) == {"A": "1", "B": "2"}
    assert (message.output_path, message.error_path) == ("7/3-0.out", f"/e/{ANN.user}.7_3")


def test_an_agents_times_are_held_to_what_can_be_stored_and_shown() -> None:
    told = agent_pb2.AttemptReport(
        attempt_id="vision.1.0.1",
        state=job_pb2.ATTEMPT_STATE_RUNNING,
        start_time=Timestamp(seconds=2**62),
        detail="x" * 100_000,
    )
    report = convert_nodes.attempt_report(told)
    assert convert.timestamp(report.started_ms) is not None
    assert len(report.detail) == 2000


# -- pages


def place(user: str = "ann", **changes: str) -> Place:
    who = Principal(user=user, role=Role.USER, tenant=changes.get("tenant", "vision"))
    return Place(changes.get("rpc", "/x/ListJobs"), who, [changes.get("filter", "")])


def test_a_page_token_leads_on_in_its_own_listing() -> None:
    token = place().token(["memory", 7])
    assert place().cursor(token, (str, int)) == ["memory", 7]


@pytest.mark.parametrize(
    "other", [place("bob"), place(tenant="nlp"), place(rpc="/x/ListTenants"), place(filter="state=RUNNING")]
)
def test_a_page_token_of_another_listing_is_refused(other: Place) -> None:
    with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
        place().cursor(other.token(["memory", 7]), (str, int))


@pytest.mark.parametrize("spoiled", ["x", "AAAA", "=", "é", "a" * 5000, "../..", "' OR 1=1--"])
def test_an_invented_page_token_is_refused(spoiled: str) -> None:
    with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
        place().cursor(spoiled, (str, int))


def test_no_altered_page_token_passes() -> None:
    token = place().token(["memory", 7])
    for at in range(len(token)):
        for char in "AB":
            altered = token[:at] + char + token[at + 1 :]
            if altered != token:
                with refused("INVALID_ARGUMENT"):
                    place().cursor(altered, (str, int))


def test_a_cursor_of_other_types_is_refused() -> None:
    token = place().token(["memory", True])
    with refused("INVALID_ARGUMENT"):
        place().cursor(token, (str, int))


def test_page_sizes() -> None:
    assert (page_size(0, 1000), page_size(5, 1000), page_size(10**9, 1000)) == (100, 5, 1000)
    with refused("INVALID_ARGUMENT", "page_size"):
        page_size(-1, 1000)


# -- tenants


def test_settings_change_where_they_are_said_and_nowhere_else() -> None:
    old = TenantSettings(
        limit_milli=5,
        weight=3,
        max_running_jobs=7,
        min_run_ms=9,
        model_quotas=(ModelQuota("A", 1), ModelQuota("B", 2, 3)),
    )
    said = tenant_pb2.TenantSettings(
        no_limit=True,
        parent="tenants/lab",
        guaranteed_milli=0,
        unset=["max_running_jobs"],
        model_quotas=[tenant_pb2.ModelQuota(model="C", guaranteed_milli=4, limit_milli=0)],
        no_model_quotas=["A"],
    )
    said.min_run.FromMilliseconds(0)
    new = convert_tenants.settings(old, said, None)
    assert (new.limit_milli, new.parent, new.guaranteed_milli, new.weight) == (None, "lab", 0, 3)
    assert (new.max_running_jobs, new.min_run_ms) == (None, 0)
    assert new.model_quotas == (ModelQuota("B", 2, 3), ModelQuota("C", 4, 0))
    assert convert_tenants.settings(old, tenant_pb2.TenantSettings(), None) == old
    assert convert_tenants.settings(new, tenant_pb2.TenantSettings(parent=""), None).parent == ""


@pytest.mark.parametrize(
    "said",
    [
        {"no_limit": True, "limit_milli": 1},
        {"parent": "lab"},
        {"parent": "tenants/Lab"},
        {"unset": ["limit_milli"]},
        {"unset": ["weight"]},
        {"unset": ["max_running_jobs"], "max_running_jobs": 1},
        {"model_quotas": [tenant_pb2.ModelQuota(model="A")] * 2},
        {"model_quotas": [tenant_pb2.ModelQuota(model="A")], "no_model_quotas": ["A"]},
    ],
)
def test_settings_that_contradict_themselves_are_refused(said: dict[str, object]) -> None:
    with refused("INVALID_ARGUMENT"):
        convert_tenants.settings(TenantSettings(), tenant_pb2.TenantSettings(**said), None)  # type: ignore[arg-type]


def test_a_tenant_shows_what_is_used_with_all_below_it() -> None:
    state = ClusterState()
    for name, parent, charge in (("lab", "", 250), ("team", "lab", 500), ("squad", "team", 0)):
        settings = TenantSettings(parent=parent, guaranteed_milli=600 if name == "lab" else 0)
        tenant = Tenant(name, 0, settings, charge_milli=charge)
        tenant.charge_by_model = {"H100": charge} if charge else {}
        tenant.account = Account(rate_milli=charge)
        state.tenants[name] = tenant
    view = convert_tenants.TenantView(state, state.half_life_ms)
    lab, team, squad = (view.shown(state.tenants[name]) for name in ("lab", "team", "squad"))
    assert (lab.running_charge_milli, lab.used_charge_milli, lab.borrowed_charge_milli) == (250, 750, 150)
    assert [(use.model, use.charge_milli) for use in lab.model_use] == [("H100", 750)]
    # Held for one half-life, it counts half.
    assert (lab.average_charge_milli, team.average_charge_milli, squad.average_charge_milli) == (375, 250, 0)
    assert (team.parent, lab.parent) == ("tenants/lab", "")
    assert (list(squad.model_use), squad.HasField("min_run"), squad.HasField("max_running_jobs")) == ([], False, False)


def preempted(claimant: str) -> Job:
    job = a_job()
    (attempt,) = job.attempts
    attempt.claimant = job.preempted_for = claimant
    attempt.reason = job.reason = Reason.PREEMPTED
    attempt.detail = job.detail = f"makes way for {claimant}"
    return job


@pytest.mark.parametrize(
    ("claimant", "sees", "name", "detail"),
    [
        ("vision/4", None, "tenants/vision/jobs/4", "makes way for vision/4"),
        ("nlp/4", None, "", "makes way for a job of another tenant"),
        ("nlp/4", ("vision",), "", "makes way for a job of another tenant"),
        ("nlp/4", ("vision", "nlp"), "tenants/nlp/jobs/4", "makes way for job nlp/4"),
        ("scheduler", None, "", "makes way for scheduler"),
        ("", None, "", "makes way for "),
    ],
)
def test_for_whom_a_job_made_way_is_named_where_its_reader_sees_that_job(
    claimant: str, sees: tuple[str, ...] | None, name: str, detail: str
) -> None:
    shown = convert.job(preempted(claimant), JobView.FULL, 9_000, sees=sees.__contains__ if sees else None)
    assert (shown.preempted_for, shown.tasks[0].claimant) == (name, name)
    assert (shown.detail, shown.tasks[0].detail) == (detail, detail)


def test_whose_processes_hold_a_card_is_for_those_who_see_everything() -> None:
    job = preempted("")
    job.reason = job.attempts[0].reason = Reason.OCCUPIED
    job.detail = job.attempts[0].detail = "pid 7 of eve"
    for sees, detail in ((None, ""), (lambda tenant: True, "pid 7 of eve")):
        shown = convert.job(job, JobView.FULL, 9_000, sees=sees)
        assert (shown.detail, shown.tasks[0].detail, shown.reason) == (detail, detail, "OCCUPIED")


def test_another_tenants_listing_shows_who_holds_what_until_when_and_nothing_else() -> None:
    shown = convert.job(a_job(), JobView.FOREIGN, 9_000)
    assert (shown.name, shown.tenant, shown.created_by.user) == ("tenants/vision/jobs/7", "vision", "ann")
    assert (shown.foreign, shown.redacted, shown.state) == (True, True, job_pb2.JOB_STATE_FAILED)
    assert (shown.spec.resources.gpu_milli, shown.tasks[0].node, list(shown.tasks[0].gpu_uuids)) == (
        250, "n1", ["GPU-1"],
    )  # fmt: skip
    data = shown.SerializeToString()
    for hidden in (b"secret", b"train", b"Ann's", b"team", b"No such", b"timeslice", b"user"):
        assert hidden not in data, hidden
    assert (shown.charge_milli_seconds, shown.HasField("exit_code"), shown.reason) == (0, False, "")
