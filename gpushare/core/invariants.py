"""What must always hold of a state, as code: `check` raises BrokenInvariant with the first contradiction.

Pure. Run after each event in tests and simulation and sampled in production. It recomputes every ledger and index
from the jobs alone.
"""

from __future__ import annotations

from collections import Counter

from gpushare.core.kinds import AttemptState, JobState, Power
from gpushare.core.lifecycle import BrokenInvariant
from gpushare.core.model import Attempt, Hold
from gpushare.core.shared_paths import path_around
from gpushare.core.state import WAITING_STATES, ClusterState


def check(state: ClusterState) -> None:
    """Raise BrokenInvariant unless ledgers, indexes and lifecycles agree with the live attempts."""
    live = [a for job in state.jobs.values() for a in job.attempts if a.is_live]
    _check_cards(state, live)
    _check_hosts(state, live)
    _check_tenants(state, live)
    _check_queue(state)
    for job in state.jobs.values():
        _check_job(state, job.key)
    if state.tokens_by_sha.keys() != {t.sha256 for t in state.tokens.values()}:
        raise BrokenInvariant("the index of tokens differs from the tokens")
    if state.asleep != {node.name for node in state.nodes.values() if node.power is not Power.ON}:
        raise BrokenInvariant("the index of sleeping nodes differs from the nodes")
    goes = {a.id for a in live if a.desired_stop or a.desired_suspend or state.jobs[a.job_key].spec.max_run_ms}
    if state.ending != goes:
        raise BrokenInvariant(f"the index of attempts with a known end differs in {sorted(state.ending ^ goes)}")


def _check_cards(state: ClusterState, live: list[Attempt]) -> None:
    expected: dict[str, dict[str, Hold]] = {}
    for a in live:
        if a.suspended_ms is None:
            for uuid, mib in zip(a.slice.gpu_uuids, a.slice.held_mib, strict=True):
                expected.setdefault(uuid, {})[a.id] = Hold(milli=a.slice.gpu_milli, mib=mib)
    seen: set[str] = set()
    for node in state.nodes.values():
        for uuid, gpu in node.gpus.items():
            if uuid in seen:
                raise BrokenInvariant(f"card {uuid} is on two nodes")
            seen.add(uuid)
            if gpu.holds != expected.get(uuid, {}):
                raise BrokenInvariant(f"card {uuid}: holds {gpu.holds}, live attempts {expected.get(uuid, {})}")
            sums = (sum(h.milli for h in gpu.holds.values()), sum(h.mib for h in gpu.holds.values()))
            if (gpu.used_milli, gpu.used_mib) != sums:
                raise BrokenInvariant(f"card {uuid}: ledger {gpu.used_milli, gpu.used_mib}, sums {sums}")
            if gpu.used_milli > gpu.capacity_milli or gpu.used_mib > gpu.inventory.usable_mib:
                raise BrokenInvariant(f"card {uuid} is over-committed: {sums} of {gpu.inventory.usable_mib} MiB")
            if len(gpu.holds) > 1 and any(state.attempts[a].slice.whole for a in gpu.holds):
                raise BrokenInvariant(f"card {uuid} is whole and shared: {sorted(gpu.holds)}")
    if not expected.keys() <= seen:
        raise BrokenInvariant(f"live attempts hold unknown cards {expected.keys() - seen}")


def _check_hosts(state: ClusterState, live: list[Attempt]) -> None:
    for node in state.nodes.values():
        here = [a for a in live if a.slice.node == node.name]
        if node.attempts != {a.id for a in here}:
            raise BrokenInvariant(f"node {node.name}: attempts {node.attempts} differ from the live ones")
        sums = (sum(a.slice.cpu_milli for a in here), sum(a.slice.memory_mib for a in here))
        if (node.used_cpu_milli, node.used_memory_mib) != sums:
            raise BrokenInvariant(f"node {node.name}: host ledger differs from {sums}")


def _check_tenants(state: ClusterState, live: list[Attempt]) -> None:
    priorities: Counter[tuple[str, int]] = Counter()
    queued, running, charge, host = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    people: Counter[tuple[str, str]] = Counter()
    rates: Counter[tuple[str, str]] = Counter()
    for job in state.jobs.values():
        if job.state is JobState.QUEUED:
            queued[job.tenant] += 1
        elif not job.is_ended:
            running[job.tenant] += 1
            priorities[job.tenant, job.spec.priority] += 1
            people[job.tenant, job.created_by.user] += 1
    for a in live:
        host[a.tenant] += a.slice.cpu_milli
        if a.suspended_ms is None:
            charge[a.tenant] += a.slice.charge_milli
            rates[a.tenant, state.jobs[a.job_key].created_by.user] += a.slice.charge_milli
    if priorities != Counter({(t, p): n for t, found in state.running_priorities.items() for p, n in found.items()}):
        raise BrokenInvariant("the counts of running jobs by priority differ from the running jobs")
    for name, tenant in state.tenants.items():
        ledger = (tenant.queued_jobs, tenant.running_jobs, tenant.charge_milli, tenant.used_cpu_milli)
        if ledger != (queued[name], running[name], charge[name], host[name]):
            raise BrokenInvariant(f"tenant {name}: {ledger} is not {queued[name], running[name], charge[name]}")
        if tenant.account.rate_milli != charge[name] or sum(tenant.charge_by_model.values()) != charge[name]:
            raise BrokenInvariant(f"tenant {name}: account {tenant.account} and {tenant.charge_by_model} differ")
        for user, person in tenant.people.items():
            if (person.running_jobs, person.account.rate_milli) != (people[name, user], rates[name, user]):
                raise BrokenInvariant(f"user {user} of {name}: {person} is not {people[name, user], rates[name, user]}")


def _check_queue(state: ClusterState) -> None:
    keys = sorted(state.lines)
    waiting = sorted(j.key for j in state.jobs.values() if j.state in WAITING_STATES)
    if keys != waiting or len(keys) != len(state.lines):
        raise BrokenInvariant("the queue differs from the queued jobs")
    for job_key in state.holds:
        job = state.jobs.get(job_key)
        if job is None or job.state not in (JobState.QUEUED, JobState.SUSPENDED, JobState.STARTING, JobState.RUNNING):
            raise BrokenInvariant(f"capacity is held for {job_key}, which does not wait")


def _check_job(state: ClusterState, key: str) -> None:
    job = state.jobs[key]
    if not job.is_ended and job.shared_path != path_around(job.spec.working_directory, state.published_paths):
        raise BrokenInvariant(f"job {key}: {job.shared_path!r} is not what nodes publish of its directory")
    lived: set[int] = set()
    last: dict[int, int] = {}
    for attempt in job.attempts:
        if state.attempts.get(attempt.id) is not attempt:
            raise BrokenInvariant(f"job {key}: attempt {attempt.id} is not indexed")
        if not last.get(attempt.task, 0) < attempt.number <= job.round or not 0 <= attempt.task < job.spec.tasks:
            raise BrokenInvariant(f"job {key}: attempt {attempt.id} is out of place")
        last[attempt.task] = attempt.number
        if attempt.is_live and (attempt.number < job.base_round or attempt.task in lived):
            raise BrokenInvariant(f"job {key}: attempt {attempt.id} outlived its gang, or has a living twin")
        if attempt.is_live:
            lived.add(attempt.task)
        if attempt.is_live == (attempt.ended_ms is not None):
            raise BrokenInvariant(f"attempt {attempt.id}: state {attempt.state}, ended_ms {attempt.ended_ms}")
    live = bool(job.live())
    if live != (job.state in (JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.CANCELLING)):
        raise BrokenInvariant(f"job {key} is {job.state} with {len(job.live())} live attempts")
    first = [a for a in job.live() if a.number == job.base_round]
    if job.state is JobState.RUNNING and any(a.state is AttemptState.ALLOCATED for a in first):
        # An order that never arrived before its node fell silent is sent again; the job has not run whole before.
        # What it grew by since is launched while it runs.
        raise BrokenInvariant(f"job {key} is RUNNING with a task that was never launched")
    if job.is_ended != (job.ended_ms is not None) or job.is_ended != (key in state.ended):
        raise BrokenInvariant(f"job {key}: state {job.state}, ended_ms {job.ended_ms}")
