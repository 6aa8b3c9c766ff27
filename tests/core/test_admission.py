"""What a submission may hold: each refusal names the field and changes nothing; each borderline value passes."""

import pytest
from cluster import Cluster, card, raw_job, user_of

from gpushare.core.commands import CoreSettings, Outcome, RawResources, Rejection, SubmitJobs
from gpushare.core.kinds import DependencyKind, OnDisconnect, OnTaskFailure, PreemptionMode, Qos, Role, Topology
from gpushare.core.model import Dependency, Principal
from gpushare.reasons import Reason

R = RawResources
BIG = 2**63 - 1

REFUSED = {
    "a name that is an id": ({"name": "42"}, Reason.INVALID_FIELD, "digits alone"),
    "share 0": ({"resources": R(gpu_milli=0)}, Reason.INVALID_FIELD, "gpu_milli"),
    "share -1": ({"resources": R(gpu_milli=-1)}, Reason.INVALID_FIELD, "gpu_milli"),
    "share 1001": ({"resources": R(gpu_milli=1001)}, Reason.INVALID_FIELD, "gpu_milli"),
    "share 2^31": ({"resources": R(gpu_milli=2**31)}, Reason.INVALID_FIELD, "gpu_milli"),
    "share 2^63-1": ({"resources": R(gpu_milli=BIG)}, Reason.INVALID_FIELD, "gpu_milli"),
    "gpus 0 with a share": ({"resources": R(gpus=0, gpu_milli=250)}, Reason.INVALID_FIELD, "gpus"),
    "gpus 2 with a share": ({"resources": R(gpus=2, gpu_milli=500)}, Reason.INVALID_FIELD, "several tasks|tasks: n"),
    "gpus 2 with memory": ({"resources": R(gpus=2, gpu_memory_mib=1)}, Reason.INVALID_FIELD, "gpus"),
    "gpus -1": ({"resources": R(gpus=-1)}, Reason.INVALID_FIELD, "gpus"),
    "gpus 2^31": ({"resources": R(gpus=2**31)}, Reason.INVALID_FIELD, "gpus"),
    "gpus 2^63-1": ({"resources": R(gpus=BIG)}, Reason.INVALID_FIELD, "gpus"),
    "memory 0": ({"resources": R(gpu_memory_mib=0)}, Reason.INVALID_FIELD, "gpu_memory_mib"),
    "memory -1": ({"resources": R(gpu_memory_mib=-1)}, Reason.INVALID_FIELD, "gpu_memory_mib"),
    "memory 2^63-1": ({"resources": R(gpu_memory_mib=BIG)}, Reason.INVALID_FIELD, "gpu_memory_mib"),
    "cpu 0": ({"resources": R(gpu_milli=1, cpu_milli=0)}, Reason.INVALID_FIELD, "cpu_milli"),
    "host memory -1": ({"resources": R(gpu_milli=1, memory_mib=-1)}, Reason.INVALID_FIELD, "memory_mib"),
    "enforcement 9": ({"resources": R(gpu_milli=1, min_enforcement=9)}, Reason.INVALID_FIELD, "min_enforcement"),
    "run limit -1": ({"max_run_ms": -1}, Reason.INVALID_FIELD, "max_run_duration"),
    "run limit 0": ({"max_run_ms": 0}, Reason.INVALID_FIELD, "max_run_duration"),
    "run limit 10^18 s": ({"max_run_ms": 10**21}, Reason.INVALID_FIELD, "max_run_duration"),
    "grace -1": ({"grace_ms": -1}, Reason.INVALID_FIELD, "grace_duration"),
    "priority 2^63": ({"priority": 2**63}, Reason.INVALID_FIELD, "priority"),
    "priority above the role": ({"priority": 101}, Reason.PRIORITY_ABOVE_ROLE, "highest for users"),
    "name empty": ({"name": ""}, Reason.INVALID_FIELD, "name"),
    "name 64 KiB": ({"name": "a" * 65536}, Reason.INVALID_FIELD, "name"),
    "name with a newline": ({"name": "abc\n"}, Reason.INVALID_FIELD, "name"),
    "name with a slash": ({"name": "a/b"}, Reason.INVALID_FIELD, "name"),
    "name of a parent": ({"name": "../x"}, Reason.INVALID_FIELD, "name"),
    "name with NUL": ({"name": "a\0b"}, Reason.INVALID_FIELD, "name"),
    "name with RTL override": ({"name": "abc\u202e"}, Reason.INVALID_FIELD, "name"),
    "name with zero width": ({"name": "a\u200bb"}, Reason.INVALID_FIELD, "name"),
    "name with a lookalike": ({"name": "\u0430dmin"}, Reason.INVALID_FIELD, "name"),
    "display name with RTL override": ({"display_name": "abc\u202edef"}, Reason.INVALID_FIELD, "display_name"),
    "display name 201": ({"display_name": "x" * 201}, Reason.INVALID_FIELD, "display_name"),
    "lone surrogate": ({"argv": ("\udcff",)}, Reason.INVALID_FIELD, "argv"),
    "surrogate in a label": ({"labels": {"k": "\ud800"}}, Reason.INVALID_FIELD, "labels"),
    "no command": ({"argv": ()}, Reason.INVALID_FIELD, "argv"),
    "empty command": ({"argv": ("",)}, Reason.INVALID_FIELD, "argv"),
    "NUL command": ({"argv": ("\0",)}, Reason.INVALID_FIELD, "argv"),
    "argv 2 MiB": ({"argv": ("x", "y" * (2 << 20))}, Reason.INVALID_FIELD, "argv"),
    "script and argv over 1 MiB": ({"script": b"x" * (1 << 20), "argv": ("y",)}, Reason.INVALID_FIELD, "argv"),
    "100,000 variables": ({"env": {f"V{i}": "" for i in range(100_000)}}, Reason.INVALID_FIELD, "env"),
    "64 KiB of variables": ({"env": {"A": "x" * 65536}}, Reason.INVALID_FIELD, "env"),
    "reserved CUDA_VISIBLE_DEVICES": (
        {"env": {"CUDA_VISIBLE_DEVICES": "0"}},
        Reason.RESERVED_ENV,
        "leave it out: the job sees its own cards alone, and counts them from 0 (cuda:0)",
    ),
    "reserved CUDA_MPS_": ({"env": {"CUDA_MPS_PIPE_DIRECTORY": "/x"}}, Reason.RESERVED_ENV, "CUDA_MPS"),
    "reserved GPUSHARE_": ({"env": {"GPUSHARE_JOB_ID": "1"}}, Reason.RESERVED_ENV, "GPUSHARE_JOB_ID"),
    "variable A=B": ({"env": {"A=B": "x"}}, Reason.INVALID_FIELD, "env"),
    "variable without a name": ({"env": {"": "x"}}, Reason.INVALID_FIELD, "env"),
    "variable with a newline": ({"env": {"A\nB": "x"}}, Reason.INVALID_FIELD, "env"),
    "variable with NUL": ({"env": {"A": "x\0"}}, Reason.INVALID_FIELD, "env"),
    "relative directory": ({"working_directory": "data"}, Reason.INVALID_FIELD, "absolute"),
    "empty directory": ({"working_directory": ""}, Reason.INVALID_FIELD, "absolute"),
    "directory with NUL": ({"working_directory": "/a\0"}, Reason.INVALID_FIELD, "working_directory"),
    "65 labels": ({"labels": {f"l{i}": "" for i in range(65)}}, Reason.INVALID_FIELD, "labels"),
    "array of 1001": ({"array_indexes": tuple(range(1001))}, Reason.ARRAY_TOO_LARGE, "accepted: 1000"),
    "array with a double": ({"array_indexes": (1, 1)}, Reason.INVALID_FIELD, "twice"),
    "array with -1": ({"array_indexes": (-1,)}, Reason.INVALID_FIELD, "array_indexes"),
    "tasks -1": ({"tasks": -1}, Reason.INVALID_FIELD, "tasks"),
    "tasks 2^31": ({"tasks": 2**31}, Reason.INVALID_FIELD, "tasks"),
    "retries -1": ({"max_retries": -1}, Reason.INVALID_FIELD, "max_retries"),
    "grace as long as the lease": (
        {"on_disconnect": OnDisconnect.STOP_AND_REQUEUE, "grace_ms": 14_001},
        Reason.INVALID_FIELD,
        "below the lease",
    ),
    "more memory than any card": ({"resources": R(gpu_memory_mib=204_800)}, Reason.NEVER_FITS, "largest has 81559"),
    "more cards than any node": ({"resources": R(gpus=9)}, Reason.NEVER_FITS, "largest has 8"),
    "a model nobody has": ({"resources": R(gpu_milli=1, gpu_model="B300")}, Reason.NEVER_FITS, "there are: H100-80GB"),
    "labels nobody has": ({"resources": R(gpu_milli=1, node_labels={"rack": "9"})}, Reason.NEVER_FITS, "labels"),
    "more CPU than any node": ({"resources": R(gpus=0, cpu_milli=10**6)}, Reason.NEVER_FITS, "large enough"),
    "min_tasks for one task": ({"min_tasks": 1}, Reason.INVALID_FIELD, "min_tasks"),
    "min_tasks above tasks": ({"tasks": 2, "min_tasks": 3}, Reason.INVALID_FIELD, "accepted: 1 to 2"),
    "min_tasks -1": ({"tasks": 2, "min_tasks": -1}, Reason.INVALID_FIELD, "min_tasks"),
    "continue with one task": ({"on_task_failure": OnTaskFailure.CONTINUE}, Reason.INVALID_FIELD, "on_task_failure"),
    "a cap without an array": ({"array_max_running": 2}, Reason.INVALID_FIELD, "no array"),
    "a cap of -1": ({"array_indexes": (1,), "array_max_running": -1}, Reason.INVALID_FIELD, "array_max_running"),
    "start within 0": ({"start_within_ms": 0}, Reason.INVALID_FIELD, "start_within"),
    "start within 10^21": ({"start_within_ms": 10**21}, Reason.INVALID_FIELD, "start_within"),
    "an empty model among several": ({"resources": R(gpus=1, gpu_model="A||B")}, Reason.INVALID_FIELD, "empty model"),
    "17 models": (
        {"resources": R(gpus=1, gpu_model="|".join(f"M{i}" for i in range(17)))},
        Reason.INVALID_FIELD,
        "accepted: 16",
    ),
    "two models nobody has": ({"resources": R(gpu_milli=1, gpu_model="B300|B200")}, Reason.NEVER_FITS, "H100-80GB"),
    "more than the least tasks fit": (
        {"resources": R(gpus=1), "tasks": 20, "min_tasks": 9},
        Reason.NEVER_FITS,
        "hold 8",
    ),
    "after a job that is not there": (
        {"after": (Dependency("vision/77", DependencyKind.AFTER),)},
        Reason.NOT_FOUND,
        "'vision/77'",
    ),
    "after another tenant's job": (
        {"after": (Dependency("nlp/1", DependencyKind.AFTER),)},
        Reason.NOT_FOUND,
        "'nlp/1'",
    ),
    "after 65 jobs": (
        {"after": tuple(Dependency(f"vision/{i}", DependencyKind.AFTER) for i in range(1, 66))},
        Reason.INVALID_FIELD,
        "accepted: 64",
    ),
    "output with a letter nobody knows": ({"output_path": "%N.out"}, Reason.INVALID_FIELD, "has %N"),
    "output that ends with a percent sign": ({"output_path": "a%"}, Reason.INVALID_FIELD, "has %"),
    "output that is a directory": ({"output_path": "logs/"}, Reason.INVALID_FIELD, "names a directory"),
    "output with NUL": ({"output_path": "a\0"}, Reason.INVALID_FIELD, "output_path"),
    "errors of an index without an array": ({"error_path": "%a.err"}, Reason.INVALID_FIELD, "no array"),
    "output of a name that is not there": ({"output_path": "%x.out"}, Reason.INVALID_FIELD, "has no name"),
    "output to a file and a terminal": ({"output_path": "a", "pty": True}, Reason.INVALID_FIELD, "pty"),
    "output of 5,000 bytes": ({"output_path": "a" * 5000}, Reason.INVALID_FIELD, "5000 bytes"),
    "a gang larger than the cluster": ({"resources": R(gpus=1), "tasks": 9}, Reason.NEVER_FITS, "hold 8"),
}

ACCEPTED = {
    "share 1": {"resources": R(gpu_milli=1)},
    "share 1000": {"resources": R(gpu_milli=1000)},
    "share with all memory": {"resources": R(gpu_milli=100, gpu_memory_mib=81559)},
    "a CPU job": {"resources": R(gpus=0)},
    "the default request": {"resources": R()},
    "priority 100": {"priority": 100},
    "priority -5": {"priority": -5},
    "display name with emoji": {"display_name": "\U0001f680" * 200},
    "LD_PRELOAD": {"env": {"LD_PRELOAD": "/x.so"}},
    "reserved, but only captured": {"captured_env": {"CUDA_VISIBLE_DEVICES": "0", "PATH": "/bin"}},
    "array of 1000": {"array_indexes": tuple(range(1000))},
    "run limit 1 ms": {"max_run_ms": 1},
    "script without arguments": {"script": b"#!/bin/sh\n", "argv": ()},
    "a gang of which less will do": {"resources": R(gpus=1), "tasks": 20, "min_tasks": 8},
    "the other choices": {"qos": Qos.BURST, "preemption": PreemptionMode.CANCEL, "topology": Topology.NODE},
    "an array of two at once": {"array_indexes": (0, 1, 2), "array_max_running": 2},
    "start within a second": {"start_within_ms": 1000},
    "output of an array": {"array_indexes": (0, 1), "output_path": "/x/%A-%a%%.out", "error_path": "%j/%t.err"},
    "output with its name": {"name": "train", "output_path": "%u/%x"},
    "one of several models": {"resources": R(gpus=1, gpu_model="B300|H100-80GB")},
    "stop_and_requeue with a short grace": {"on_disconnect": OnDisconnect.STOP_AND_REQUEUE, "grace_ms": 14_000},
}


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster()
    found.node("n1", 8)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cluster: Cluster, name: str) -> None:
    fields, reason, said = REFUSED[name]
    rejection = cluster.refuse(**fields)
    assert rejection.reason is reason
    assert any(part in rejection.detail or part in rejection.field for part in said.split("|")), rejection


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(cluster: Cluster, name: str) -> None:
    jobs = cluster.submit(**ACCEPTED[name])
    cluster.cycle()
    assert jobs
    assert jobs[0].state == "STARTING"


def test_the_default_request_is_a_whole_card(cluster: Cluster) -> None:
    job = cluster.submit(resources=RawResources())[0]
    cluster.cycle()
    assert job.current()[0].slice.charge_milli == 1000


def test_captured_reserved_names_are_dropped_with_a_notice(cluster: Cluster) -> None:
    raw = raw_job(captured_env={"CUDA_VISIBLE_DEVICES": "3", "GPUSHARE_NODE": "x", "PATH": "/bin"})
    outcome = cluster.must(SubmitJobs(tenant="vision", jobs=(raw,)), user_of("vision"))
    assert outcome.notices["dropped_env"] == ("CUDA_VISIBLE_DEVICES", "GPUSHARE_NODE")
    assert cluster.state.jobs[outcome.names[0]].spec.captured_env == {"PATH": "/bin"}


def test_an_admin_may_pass_the_users_highest_priority(cluster: Cluster) -> None:
    admin = Principal(user="root", role=Role.ADMIN)
    assert cluster.submit(who=admin, priority=5000)[0].spec.priority == 5000


def test_never_fits_is_judged_against_silent_and_drained_nodes_too(cluster: Cluster) -> None:
    cluster.node("n2", 0)
    cluster.sync("n2", gpus=(card("GPU-big", usable_mib=143771, model="H200"),))
    cluster.silence("n2")
    assert cluster.submit(resources=RawResources(gpu_memory_mib=140_000))[0].state == "QUEUED"


def test_without_nodes_any_size_is_queued() -> None:
    cluster = Cluster()
    assert cluster.submit(resources=RawResources(gpu_memory_mib=204_800))[0].state == "QUEUED"


def test_the_queue_cap_refuses_the_whole_batch() -> None:
    cluster = Cluster(settings=CoreSettings(array_max=20_000))
    cluster.submit(array_indexes=tuple(range(9_999)))
    rejection = cluster.refuse(array_indexes=(1, 2))
    assert rejection.reason is Reason.QUEUE_FULL
    assert cluster.submit()[0].id == "2"


def test_one_bad_job_refuses_its_whole_batch(cluster: Cluster) -> None:
    before = cluster.state.encode()
    batch = SubmitJobs(tenant="vision", jobs=(raw_job(), raw_job(argv=())))
    assert isinstance(cluster.do(batch, user_of("vision"), "r1"), Rejection)
    assert cluster.state.encode() == before


def test_validate_only_admits_nothing(cluster: Cluster) -> None:
    before = cluster.state.encode()
    out = cluster.do(SubmitJobs(tenant="vision", jobs=(raw_job(),), validate_only=True), user_of("vision"), "r1")
    assert isinstance(out, Outcome)
    assert cluster.state.encode() == before


def test_equal_requests_are_equal_however_they_were_written(cluster: Cluster) -> None:
    """Equal shapes share their fate within a pass, so what means the same must look the same."""
    first, second = (cluster.submit()[0].key for _ in range(2))
    pairs = (Dependency(first, DependencyKind.AFTER), Dependency(second, DependencyKind.AFTERANY))
    one, other = (
        cluster.submit(tasks=2, min_tasks=least, after=after, resources=R(gpus=1, gpu_model=model))[0].spec
        for least, after, model in ((0, pairs, "H100-80GB|B300|B300"), (2, pairs[::-1], "B300|H100-80GB"))
    )
    assert one == other
    assert (one.min_tasks, one.least_tasks, one.resources.gpu_models) == (0, 2, ("B300", "H100-80GB"))


class TestDependencies:
    def after(self, job: str, kind: DependencyKind = DependencyKind.AFTEROK) -> dict[str, object]:
        return {"after": (Dependency(job, kind),)}

    def test_a_job_and_an_array_of_the_tenant_may_be_waited_for(self, cluster: Cluster) -> None:
        job = cluster.submit()[0]
        child = cluster.submit(array_indexes=(0, 1))[0]
        for key in (job.key, child.key, child.array_key):
            assert cluster.submit(**self.after(key))[0].spec.after[0].job == key

    def test_a_job_twice_is_refused(self, cluster: Cluster) -> None:
        job = cluster.submit()[0].key
        twice = (Dependency(job, DependencyKind.AFTER), Dependency(job, DependencyKind.AFTEROK))
        assert cluster.refuse(after=twice).reason is Reason.INVALID_FIELD

    def test_the_success_of_a_job_that_failed_is_refused(self, cluster: Cluster) -> None:
        job = cluster.submit()[0]
        cluster.cycle()
        cluster.run(job)
        cluster.finish(job, 1)
        rejection = cluster.refuse(**self.after(job.key))
        assert (rejection.reason, rejection.field) == (Reason.DEPENDENCY_FAILED, "after")
        assert cluster.submit(**self.after(job.key, DependencyKind.AFTERANY))

    def test_one_failed_child_fails_its_array(self, cluster: Cluster) -> None:
        first, _ = cluster.submit(array_indexes=(0, 1))
        cluster.cycle()
        cluster.run(first)
        cluster.finish(first, 1)
        assert cluster.refuse(**self.after(first.array_key)).reason is Reason.DEPENDENCY_FAILED

    def test_what_others_wait_for_stays_in_memory(self, cluster: Cluster) -> None:
        blocked = cluster.submit(resources=R(gpus=8))[0]
        other = cluster.submit(resources=R(gpus=8))[0]
        waiting = cluster.submit(after=(Dependency(blocked.key, DependencyKind.AFTEROK),))[0]
        cluster.cycle()
        cluster.run(blocked)
        cluster.finish(blocked)
        cluster.cancel(other)
        housekeep(cluster)
        assert blocked.key in cluster.state.jobs
        assert other.key not in cluster.state.jobs
        cluster.cancel(waiting)
        housekeep(cluster)
        assert blocked.key not in cluster.state.jobs

    def test_an_array_leaves_memory_as_a_whole(self, cluster: Cluster) -> None:
        """So that whoever names it later learns of every child's end."""
        first, second = cluster.submit(array_indexes=(0, 1), resources=R(gpus=8))
        cluster.cycle()
        cluster.run(first)
        cluster.finish(first, 1)
        housekeep(cluster)
        assert first.key in cluster.state.jobs
        cluster.cancel(second)
        housekeep(cluster)
        assert not cluster.state.jobs


class TestRequestIds:
    def submit(self, cluster: Cluster, request_id: str, body: str = "b", tenant: str = "vision"):
        return cluster.do(SubmitJobs(tenant=tenant, jobs=(raw_job(),)), user_of(tenant), request_id, body)

    def test_a_repetition_returns_the_same_job(self, cluster: Cluster) -> None:
        first = self.submit(cluster, "r1")
        again = [self.submit(cluster, "r1") for _ in range(1000)]
        assert {a.names for a in again} == {first.names}
        assert len(cluster.state.jobs) == 1

    def test_another_body_is_refused_with_both_hashes(self, cluster: Cluster) -> None:
        self.submit(cluster, "r1")
        other = self.submit(cluster, "r1", body="c")
        assert other.reason is Reason.REQUEST_ID_REUSED
        assert other.metadata == {"known_body_sha256": "b", "body_sha256": "c"}

    def test_another_tenants_same_id_is_another_request(self) -> None:
        cluster = Cluster(tenants=("vision", "nlp"))
        assert self.submit(cluster, "r1").names == ("vision/1",)
        assert self.submit(cluster, "r1", tenant="nlp").names == ("nlp/1",)

    def test_the_id_stays_a_day_after_the_jobs_end(self, cluster: Cluster) -> None:
        first = self.submit(cluster, "r1")
        job = cluster.state.jobs[first.names[0]]
        cluster.cycle()
        cluster.tick(10 * 24 * 3600 * 1000)
        cluster.finish(job)
        housekeep(cluster)
        assert job.key not in cluster.state.jobs, "the job itself has left memory"
        assert self.submit(cluster, "r1").names == first.names
        cluster.tick(24 * 3600 * 1000 + 1)
        housekeep(cluster)
        assert self.submit(cluster, "r1").names != first.names

    @pytest.mark.parametrize("bad", ["x" * (1 << 20), "a\0b", "a\nb", "\ud800"])
    def test_bad_ids_are_refused(self, cluster: Cluster, bad: str) -> None:
        before = cluster.state.encode()
        refused = self.submit(cluster, bad)
        assert refused.reason is Reason.INVALID_FIELD
        assert refused.field == "request_id"
        assert cluster.state.encode() == before


def housekeep(cluster: Cluster) -> None:
    from gpushare.core.commands import Housekeep

    cluster.tick(1)
    cluster.must(Housekeep(archive_before_ms=cluster.now_ms))
