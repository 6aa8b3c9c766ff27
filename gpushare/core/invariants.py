"""What must always hold of a state, as code: `check` raises BrokenInvariant with the first contradiction.

Pure. Run after each event in tests and simulation and sampled in production. It recomputes every ledger and index
from the jobs alone.
"""

from __future__ import annotations

from collections import Counter

from gpushare.core.model import WHOLE_CARD_MILLI, Attempt, AttemptState, Hold, JobState
from gpushare.core.state import BrokenInvariant, ClusterState


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


def _check_cards(state: ClusterState, live: list[Attempt]) -> None:
    expected: dict[str, dict[str, Hold]] = {}
    for a in live:
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
            if gpu.used_milli > WHOLE_CARD_MILLI or gpu.used_mib > gpu.inventory.usable_mib:
                raise BrokenInvariant(f"card {uuid} is over-committed: {sums} of {gpu.inventory.usable_mib} MiB")
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
    queued, running, charge = Counter[str](), Counter[str](), Counter[str]()
    for job in state.jobs.values():
        if job.state is JobState.QUEUED:
            queued[job.tenant] += 1
        elif not job.is_ended:
            running[job.tenant] += 1
    for a in live:
        charge[a.tenant] += a.slice.charge_milli
    for name, tenant in state.tenants.items():
        ledger = (tenant.queued_jobs, tenant.running_jobs, tenant.charge_milli)
        if ledger != (queued[name], running[name], charge[name]):
            raise BrokenInvariant(f"tenant {name}: {ledger} is not {queued[name], running[name], charge[name]}")


def _check_queue(state: ClusterState) -> None:
    keys = [key for _, _, key in state.queue]
    waiting = {j.key for j in state.jobs.values() if j.state is JobState.QUEUED}
    if state.queue != sorted(state.queue) or len(keys) != len(waiting) or set(keys) != waiting:
        raise BrokenInvariant("the queue differs from the queued jobs")


def _check_job(state: ClusterState, key: str) -> None:
    job = state.jobs[key]
    if len(job.attempts) != job.round * job.spec.tasks:
        raise BrokenInvariant(f"job {key}: {len(job.attempts)} attempts in {job.round} rounds")
    for place, attempt in enumerate(job.attempts):
        if (attempt.number, attempt.task) != (place // job.spec.tasks + 1, place % job.spec.tasks):
            raise BrokenInvariant(f"job {key}: attempt {attempt.id} is out of place")
        if attempt.is_live and attempt.number != job.round:
            raise BrokenInvariant(f"job {key}: attempt {attempt.id} outlived its round")
        if attempt.is_live == (attempt.ended_ms is not None):
            raise BrokenInvariant(f"attempt {attempt.id}: state {attempt.state}, ended_ms {attempt.ended_ms}")
    live = bool(job.live())
    if live != (job.state in (JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.CANCELLING)):
        raise BrokenInvariant(f"job {key} is {job.state} with {len(job.live())} live attempts")
    if job.state is JobState.RUNNING and any(a.state is AttemptState.ALLOCATED for a in job.live()):
        # An order that never arrived before its node fell silent is sent again; the job has not run whole before.
        raise BrokenInvariant(f"job {key} is RUNNING with a task that was never launched")
    if job.is_ended != (job.ended_ms is not None) or job.is_ended != (key in state.ended):
        raise BrokenInvariant(f"job {key}: state {job.state}, ended_ms {job.ended_ms}")
