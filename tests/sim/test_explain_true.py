"""What explain says of a waiting job is so: its stage, every change that would start it, and when it starts.

Clusters and jobs are random. The expected start is compared with a run of the same cluster to the end, in which every
job runs exactly to its limit and nobody submits; a change with a pass of the scheduler that has loaded the same state
and finds the job asking for just that; a stage with what the pass says once that stage is out of the way.
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from lab import MODELS, Lab, random_lab, reloaded

from gpushare import quantity
from gpushare.core.brain import Brain
from gpushare.core.cycle import Cycle
from gpushare.core.events import AttemptsAllocated
from gpushare.core.explain import STAGES, Explanation, explain
from gpushare.core.kinds import Enforcement, JobState, Qos, Topology
from gpushare.core.model import Job, JobSpec, TenantSettings
from gpushare.core.state import ClusterState
from gpushare.core.waiting import line_key
from gpushare.reasons import Reason

# After the last start that was foretold, to see that nothing else starts: limits and windows are of minutes.
HOURS_MS = 3 * 3600 * 1000
_TASK_FLAGS = {"--after": "after", "--after-ok": "afterok", "--after-any": "afterany"}


def explained(lab: Lab, rng: random.Random, most: int) -> dict[str, Explanation]:
    """Some waiting jobs, rare waits first; nothing is changed by asking."""
    before, submitted = lab.state.encode(), list(lab.state.submitted)
    waiting = lab.waiting()
    rng.shuffle(waiting)
    lines = Counter(job.spec.resources for job in waiting)
    waiting.sort(key=lambda job: (lines[job.spec.resources], job.state is not JobState.SUSPENDED))
    found = {job.key: explain(lab.state, job, lab.now_ms, lab.settings, lab.brain) for job in waiting[:most]}
    assert (lab.state.encode(), lab.state.submitted) == (before, submitted)
    return found


def check_lab(seed: int, most: int) -> Counter[str]:
    """The number of jobs by stage, of starts foretold and of changes told."""
    lab = random_lab(seed)
    told = explained(lab, random.Random(seed), most)
    counts: Counter[str] = Counter()
    for key, found in told.items():
        counts[found.stage] += 1
        counts["jobs"] += 1
        counts["foretold"] += found.expected_start_ms is not None
        counts["changes"] += len(found.counterfactuals)
        check_stage(lab, lab.state.jobs[key], found)
        for change in found.counterfactuals:
            changed = asking(lab.state.jobs[key].spec, change.flag)
            assert starts(lab, key, changed), f"seed {seed}: {key} with {change.flag}"
            assert change.start_ms == lab.now_ms
    lab.settle()
    foretold = [found.expected_start_ms or lab.now_ms for found in told.values()]
    lab.run_until(max(foretold, default=lab.now_ms) + HOURS_MS)
    for key, found in told.items():
        real = lab.starts.get(key)
        if found.unknown_because.startswith("more happens"):
            counts["too far"] += 1
            continue
        assert found.expected_start_ms == real, f"seed {seed}: {key} starts at {real}; {found}"
        assert (found.expected_start_ms is None) == bool(found.unknown_because)
    return counts


def test_thirty_waiting_jobs_are_explained_truly() -> None:
    # Those of the first twenty that take least time and wait for the most different things.
    counts = sum((check_lab(seed, 5) for seed in (2, 3, 12, 13, 15, 18)), Counter[str]())
    assert counts["jobs"] >= 30
    assert counts["foretold"] >= 10
    assert counts["changes"] >= 10
    assert {"capacity", "cap", "dependency", "reservation", "order", "health", "fence"} <= counts.keys(), counts


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_three_hundred_waiting_jobs_are_explained_truly() -> None:
    counts = sum((check_lab(seed, 8) for seed in range(100, 145)), Counter[str]())
    assert counts["jobs"] >= 300
    assert counts["foretold"] >= 100
    assert counts["too far"] <= 15
    stages = {"capacity", "quota", "cap", "dependency", "reservation", "order", "health"}
    assert stages <= counts.keys(), counts


# -- changes


def starts(lab: Lab, key: str, spec: JobSpec) -> bool:
    state = reloaded(lab.state)
    job = state.jobs[key]
    state.lines.remove(job)
    job.spec = spec
    state.lines.add(job)
    events = Cycle(state, lab.now_ms, lab.settings, Brain(state, lab.settings)).run().events
    return any(isinstance(event, AttemptsAllocated) and event.job == key for event in events)


def asking(spec: JobSpec, flag: str) -> JobSpec:
    """`spec` as the command line would change it."""
    words = flag.split()
    if words[0] == "without":
        return leaving_out(spec, words[1:])
    if words == ["--array", "without", f"%{spec.array_max_running}"]:
        return msgspec.structs.replace(spec, array_max_running=0)
    assert words[::2] == [w for w in words if w.startswith("--")], flag
    for name, value in zip(words[::2], words[1::2], strict=True):
        spec = with_flag(spec, name, value)
    return spec


def with_flag(spec: JobSpec, name: str, value: str) -> JobSpec:
    request: dict[str, object] = {}
    match name:
        case "--gpus":
            amount = quantity.parse_gpus(value)
            request = {"gpus": amount.gpus, "gpu_milli": amount.gpu_milli or None}
        case "--gpu-memory":
            request = {"gpu_memory_mib": quantity.parse_memory_mib(value)}
        case "--cpus":
            request = {"cpu_milli": quantity.parse_cpu_milli(value)}
        case "--host-memory":
            request = {"memory_mib": quantity.parse_memory_mib(value)}
        case "--model":
            request = {"gpu_model": value}
        case "--fence":
            request = {"min_enforcement": Enforcement[value.upper()]}
    if request:
        return msgspec.structs.replace(spec, resources=msgspec.structs.replace(spec.resources, **request))
    fields = {
        "--time": lambda: {"max_run_ms": quantity.parse_duration_ms(value)},
        "--tasks": lambda: {"tasks": int(value), "min_tasks": 0},
        "--min-tasks": lambda: {"min_tasks": int(value)},
        "--qos": lambda: {"qos": Qos(value)},
        "--topology": lambda: {"topology": Topology(value)},
    }
    return msgspec.structs.replace(spec, **fields[name]())


def leaving_out(spec: JobSpec, words: list[str]) -> JobSpec:
    request = spec.resources
    if words[0] == "--fence":
        return msgspec.structs.replace(
            spec, resources=msgspec.structs.replace(request, min_enforcement=Enforcement.NONE)
        )
    if words[0] == "--node-label":
        kept = tuple(label for label in request.node_labels if words[1:] and "=".join(label) != words[1])
        return msgspec.structs.replace(spec, resources=msgspec.structs.replace(request, node_labels=kept))
    gone = {(_TASK_FLAGS[kind], job) for kind, job in zip(words[::2], words[1::2], strict=True)}
    left = tuple(d for d in spec.after if (d.kind.value, d.job.partition("/")[2]) not in gone)
    assert len(left) == len(spec.after) - len(gone)
    return msgspec.structs.replace(spec, after=left)


# -- stages


def check_stage(lab: Lab, job: Job, found: Explanation) -> None:
    """With the stage out of the way the pass does not stop at it any more."""
    assert found.wait is not None
    if found.wait.reason in (Reason.RETRY_BACKOFF, Reason.SCHEDULING) or found.stage == "preemption":
        return
    state = reloaded(lab.state)
    {
        "capacity": _more_nodes,
        "quota": _no_quotas,
        "cap": _no_caps,
        "dependency": _no_dependencies,
        "order": _nobody_ahead,
        "reservation": _no_reservations,
        "health": _all_in_service,
        "fence": _no_fence,
        "request": _any_card,
    }[found.stage](lab, state, job.key)
    cycle = Cycle(state, lab.now_ms, lab.settings, Brain(state, lab.settings))
    result = cycle.run()
    if job.key in cycle.started:
        return
    reason = result.job_waits.get(job.key) or result.waits.get(line_key(state.jobs[job.key]))
    assert reason is not None
    if found.stage == "quota" and reason is Reason.TENANT_LIMIT_NEVER:
        raise AssertionError(f"{job.key}: {found}")
    assert STAGES.get(reason, "capacity") != found.stage, f"{job.key} waits with {reason}; {found}"


def _more_nodes(lab: Lab, state: ClusterState, key: str) -> None:
    """Ten empty nodes of every kind that there is; a suspended job gets its own one to itself."""
    roomy = Lab(lab.settings)
    for model in MODELS:
        for zone in "01":
            for i in range(10):
                roomy.node(f"z-{model}-{zone}-{i}", 4, model, 256, 4096, zone=zone)
    for name, node in reloaded(roomy.state).nodes.items():
        state.nodes[name] = node
        state.touched.add(name)
    if state.jobs[key].state is JobState.SUSPENDED:
        _alone(state, key)


def _no_quotas(lab: Lab, state: ClusterState, key: str) -> None:
    for tenant in state.tenants.values():
        tenant.settings = TenantSettings()
    _change(state, key, qos=Qos.BURST)


def _no_caps(lab: Lab, state: ClusterState, key: str) -> None:
    for tenant in state.tenants.values():
        tenant.settings = msgspec.structs.replace(tenant.settings, max_running_jobs=None, max_running_per_user=None)
    _change(state, key, array_max_running=0)


def _no_dependencies(lab: Lab, state: ClusterState, key: str) -> None:
    _change(state, key, after=())


def _nobody_ahead(lab: Lab, state: ClusterState, key: str) -> None:
    state.holds.clear()
    for other in [k for k in state.lines if k != key]:
        state.lines.remove(state.jobs[other])


def _no_reservations(lab: Lab, state: ClusterState, key: str) -> None:
    state.reservations.clear()


def _all_in_service(lab: Lab, state: ClusterState, key: str) -> None:
    for node in state.nodes.values():
        node.cordoned = False


def _no_fence(lab: Lab, state: ClusterState, key: str) -> None:
    _change(
        state,
        key,
        resources=msgspec.structs.replace(state.jobs[key].spec.resources, min_enforcement=Enforcement.NONE),
    )


def _any_card(lab: Lab, state: ClusterState, key: str) -> None:
    request = state.jobs[key].spec.resources
    _change(state, key, resources=msgspec.structs.replace(request, gpu_model="", min_gpu_memory_mib=0, node_labels=()))


def _change(state: ClusterState, key: str, **fields: object) -> None:
    job = state.jobs[key]
    state.lines.remove(job)
    job.spec = msgspec.structs.replace(job.spec, **fields)
    state.lines.add(job)


def _alone(state: ClusterState, key: str) -> None:
    """Nobody else has anything of its node."""
    job = state.jobs[key]
    node = state.nodes[job.current()[0].slice.node]
    for gpu in node.gpus.values():
        gpu.holds.clear()
        gpu.used_milli = gpu.used_mib = 0
