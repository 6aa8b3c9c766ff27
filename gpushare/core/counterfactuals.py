"""What would start a waiting job now: changes of its request, each tried by running the production pass with it.

Pure. Candidates are sought on the plan that a pass has left, which is cheap; told are only those with which a whole
pass, on a copy of the cluster, starts the job. The smallest change comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from gpushare.core import due
from gpushare.core.cycle import Cycle
from gpushare.core.due import Readiness
from gpushare.core.kinds import Enforcement, Qos, Topology
from gpushare.core.model import WHOLE_CARD_MILLI, Job, JobSpec
from gpushare.core.placement.place import place_gang
from gpushare.core.sentences import describe, least_host
from gpushare.core.state import ClusterState
from gpushare.core.whatif import World
from gpushare.quantity import format_cpu_milli, format_duration_ms, format_gpus, format_memory_mib

TOLD_MAX = 5
# Whole passes that one question may cost.
PASSES_MAX = 32
_MODELS_MAX = 8
_HORIZONS_MAX = 8
_MINUTE_MS = 60_000

# How large a change of another kind counts, against the part of an amount that is given up (0 to 1).
_BURST, _ANY_TOPOLOGY, _OTHER, _UNCOUPLED = 0.05, 0.15, 0.3, 0.6


class Counterfactual(msgspec.Struct, frozen=True):
    """A change with which the job would start at `start_ms`: in words, and as the command line writes it."""

    change: str
    flag: str
    start_ms: int


class _Change(NamedTuple):
    """`size` orders changes: the part of the request that is given up."""

    size: float
    text: str
    flag: str
    spec: JobSpec


# Changes of one kind, the smallest first; the first that starts the job is told.
_Kind = Sequence[_Change]


def counterfactuals(world: World, job: Job, cycle: Cycle) -> tuple[Counterfactual, ...]:
    """`cycle` is a pass on `world` that did not start `job` (the world's own record); its plan is void afterwards."""
    found: list[_Change] = []
    passes = 0
    # All are sought before the first is proved: a proof voids the plan.
    for kind in sorted((k for k in _kinds(_Seeker(cycle, job)) if k), key=lambda k: k[0].size):
        for change in kind:
            if passes == PASSES_MAX or len(found) == TOLD_MAX:
                break
            passes += 1
            if starts_with(world, job, change.spec):
                found.append(change)
                break
    told = sorted(found, key=lambda c: c.size)
    return tuple(Counterfactual(c.text, c.flag, world.now_ms) for c in told)


def starts_with(world: World, job: Job, spec: JobSpec) -> bool:
    """Whether the next pass starts the job (the world's own record) if it had asked for `spec`."""
    with _asking_for(world.state, job, spec):
        return job.key in world.look().cycle.started


@contextmanager
def _asking_for(state: ClusterState, job: Job, spec: JobSpec) -> Iterator[None]:
    before = job.spec
    state.lines.remove(job)
    job.spec = spec
    state.lines.add(job)
    try:
        yield
    finally:
        state.lines.remove(job)
        job.spec = before
        state.lines.add(job)


# -- seeking


class _Seeker:
    """Looks for changes on what a pass has left of its plan."""

    def __init__(self, cycle: Cycle, job: Job) -> None:
        self.cycle, self.job, self.spec = cycle, job, job.spec
        self.request = job.spec.resources

    def fits(self, spec: JobSpec) -> bool:
        """Whether there is room for it after all that the pass has placed; dependencies and caps aside."""
        plan, before = self.cycle.plan, self.job.spec
        checkpoint = plan.checkpoint()
        self.job.spec = spec
        try:
            return place_gang(plan, self.cycle.ask(self.job), spec.tasks, spec.least_tasks) is not None
        finally:
            self.job.spec = before
            plan.rollback(checkpoint)

    def asking(self, **changes: object) -> JobSpec:
        return msgspec.structs.replace(self.spec, resources=msgspec.structs.replace(self.request, **changes))

    def largest(self, low: int, high: int, make: Callable[[int], JobSpec]) -> int | None:
        """The largest amount from `low` to `high` with which it fits; None: none does."""
        if low > high or not self.fits(make(low)):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(make(middle)):
                low = middle
            else:
                high = middle - 1
        return low

    def free_here(self) -> tuple[int, int]:
        """The largest free (milli, MiB) of any card that takes new work."""
        plan = self.cycle.plan
        gpus = [g for n in self.cycle.state.nodes.values() if n.is_placeable for g in n.gpus.values() if g.is_placeable]
        milli = max((plan.free_milli(g) for g in gpus), default=0)
        return min(milli, WHOLE_CARD_MILLI), max((plan.free_mib(g) for g in gpus), default=0)


def _kinds(seeker: _Seeker) -> Iterator[_Kind]:
    """Where there is room for it as it is, no smaller request helps."""
    for kind in _GATES if seeker.fits(seeker.spec) else (*_GATES, *_ROOM):
        yield kind(seeker)


def _part_given_up(before: int, after: int) -> float:
    return 1 - after / max(1, before)


def _less_time(seeker: _Seeker) -> _Kind:
    """So short that it ends before what is promised to others begins; the longest such time first."""
    cycle, spec = seeker.cycle, seeker.spec
    made = []
    for start_ms in sorted({c.start_ms for c in cycle.claims.values()}, reverse=True)[:_HORIZONS_MAX]:
        room_ms = start_ms - cycle.now_ms
        unit = _MINUTE_MS if room_ms >= 2 * _MINUTE_MS else 1000
        run_ms = room_ms // unit * unit
        if run_ms <= 0 or (spec.max_run_ms and run_ms >= spec.max_run_ms):
            continue
        size = _part_given_up(spec.max_run_ms, run_ms) if spec.max_run_ms else _OTHER
        text = format_duration_ms(run_ms)
        changed = msgspec.structs.replace(spec, max_run_ms=run_ms)
        if seeker.fits(changed):
            made.append(_Change(size, f"with a time limit of {text}", f"--time {text}", changed))
    return made


def _smaller_share(seeker: _Seeker) -> _Kind:
    """The largest share that there is room for: less of the card, less memory, or less of both in proportion."""
    request = seeker.request
    if not request.is_share:
        return ()
    milli, mib = request.gpu_milli, request.gpu_memory_mib
    free_milli, free_mib = seeker.free_here()
    made = []
    if milli is not None:
        found = seeker.largest(1, min(milli - 1, free_milli), lambda n: seeker.asking(gpu_milli=n))
        if found is not None:
            made.append(_share_change(seeker, seeker.asking(gpu_milli=found), _part_given_up(milli, found)))
    if mib is not None:
        found = seeker.largest(1, min(mib - 1, free_mib), lambda n: seeker.asking(gpu_memory_mib=n))
        if found is not None:
            made.append(_share_change(seeker, seeker.asking(gpu_memory_mib=found), _part_given_up(mib, found)))
    if milli is not None and mib is not None and not made:

        def scaled(n: int, milli: int = milli, mib: int = mib) -> JobSpec:
            return seeker.asking(gpu_milli=n, gpu_memory_mib=max(1, mib * n // milli))

        found = seeker.largest(1, milli - 1, scaled)
        if found is not None:
            made.append(_share_change(seeker, scaled(found), _part_given_up(milli, found)))
    return sorted(made, key=lambda c: c.size)


def _share_change(seeker: _Seeker, spec: JobSpec, size: float) -> _Change:
    was, has = seeker.request, spec.resources
    flags = []
    if has.gpu_milli is not None and has.gpu_milli != was.gpu_milli:
        flags.append(f"--gpus {format_gpus(0, has.gpu_milli)}")
    if has.gpu_memory_mib is not None and has.gpu_memory_mib != was.gpu_memory_mib:
        flags.append(f"--gpu-memory {format_memory_mib(has.gpu_memory_mib)}")
    return _Change(size, f"with {describe(has)}", " ".join(flags), spec)


def _fewer_gpus(seeker: _Seeker) -> _Kind:
    """Fewer whole cards, else a share of one."""
    gpus = seeker.request.gpus
    if not gpus:
        return ()
    found = seeker.largest(1, gpus - 1, lambda n: seeker.asking(gpus=n))
    if found is not None:
        spec = seeker.asking(gpus=found)
        return [_Change(_part_given_up(gpus, found), f"with {describe(spec.resources)}", f"--gpus {found}", spec)]
    free_milli, _ = seeker.free_here()
    milli = seeker.largest(1, min(WHOLE_CARD_MILLI - 1, free_milli), lambda n: seeker.asking(gpus=0, gpu_milli=n))
    if milli is None:
        return ()
    spec = seeker.asking(gpus=0, gpu_milli=milli)
    size = _part_given_up(gpus * WHOLE_CARD_MILLI, milli)
    return [_Change(size, f"with {describe(spec.resources)}", f"--gpus {format_gpus(0, milli)}", spec)]


def _less_host(seeker: _Seeker) -> _Kind:
    """As many CPUs as there are, else as much host memory; of both less only where one is not enough."""
    tasks = seeker.spec.least_tasks
    cpu, memory = (amount // max(1, tasks) for amount in least_host(seeker.cycle.state, seeker.job))
    few = seeker.largest(1, cpu - 1, lambda n: seeker.asking(cpu_milli=n))
    if few is not None:
        spec = seeker.asking(cpu_milli=few)
        return [_host_change(seeker, spec, _part_given_up(cpu, few))]
    little = seeker.largest(1, memory - 1, lambda n: seeker.asking(memory_mib=n))
    if little is not None:
        spec = seeker.asking(memory_mib=little)
        return [_host_change(seeker, spec, _part_given_up(memory, little))]
    few = seeker.largest(1, cpu - 1, lambda n: seeker.asking(cpu_milli=n, memory_mib=1))
    if few is None:
        return ()
    little = seeker.largest(1, memory - 1, lambda n: seeker.asking(cpu_milli=few, memory_mib=n)) or 1
    spec = seeker.asking(cpu_milli=few, memory_mib=little)
    return [_host_change(seeker, spec, max(_part_given_up(cpu, few), _part_given_up(memory, little)))]


def _host_change(seeker: _Seeker, spec: JobSpec, size: float) -> _Change:
    has, was = spec.resources, seeker.request
    texts, flags = [], []
    if has.cpu_milli is not None and has.cpu_milli != was.cpu_milli:
        texts.append(f"{format_cpu_milli(has.cpu_milli)} CPUs")
        flags.append(f"--cpus {format_cpu_milli(has.cpu_milli)}")
    if has.memory_mib is not None and has.memory_mib != was.memory_mib:
        texts.append(f"{format_memory_mib(has.memory_mib)} of host memory")
        flags.append(f"--host-memory {format_memory_mib(has.memory_mib)}")
    each = " a task" if spec.tasks > 1 else ""
    return _Change(size, f"with {' and '.join(texts)}{each}", " ".join(flags), spec)


def _fewer_tasks(seeker: _Seeker) -> _Kind:
    """Fewer at the start, the others as room appears; else fewer at all."""
    spec = seeker.spec
    if spec.tasks == 1:
        return ()

    def least(n: int) -> JobSpec:
        return msgspec.structs.replace(spec, min_tasks=n)

    found = seeker.largest(1, spec.least_tasks - 1, least)
    if found is None:
        return ()
    size = _part_given_up(spec.least_tasks, found)
    fewer = msgspec.structs.replace(spec, tasks=found, min_tasks=0)
    return [
        _Change(size, f"with {found} of its {spec.tasks} tasks at first", f"--min-tasks {found}", least(found)),
        _Change(size, f"with {found} task{'s' if found > 1 else ''}", f"--tasks {found}", fewer),
    ]


def _other_model(seeker: _Seeker) -> _Kind:
    request = seeker.request
    if not request.gpu_model:
        return ()
    here = {g.inventory.model for n in seeker.cycle.state.nodes.values() for g in n.gpus.values()}
    made = []
    for model in sorted(here - set(request.gpu_models))[:_MODELS_MAX]:
        spec = seeker.asking(gpu_model=model)
        if seeker.fits(spec):
            made.append(_Change(_OTHER, f"on a {model}", f"--model {model}", spec))
    return made


def _other_labels(seeker: _Seeker) -> _Kind:
    """Without one of the labels, or without all."""
    labels = seeker.request.node_labels
    made = []
    for left_out in labels:
        kept = tuple(label for label in labels if label != left_out)
        name = "=".join(left_out)
        made.append(
            _Change(
                _OTHER,
                f"on nodes without the label {name}",
                f"without --node-label {name}",
                seeker.asking(node_labels=kept),
            )
        )
    if len(labels) > 1:
        spec = seeker.asking(node_labels=())
        made.append(_Change(_OTHER + 0.1, "on nodes without these labels", "without --node-label", spec))
    return [change for change in made if seeker.fits(change.spec)]


def _weaker_fence(seeker: _Seeker) -> _Kind:
    wanted = seeker.request.min_enforcement
    made = []
    for level in sorted((e for e in Enforcement if e < wanted), reverse=True):
        name = level.name.lower()
        flag = f"--fence {name}" if level else "without --fence"
        spec = seeker.asking(min_enforcement=level)
        if seeker.fits(spec):
            made.append(_Change(_OTHER, f"with a fence no stronger than {name}", flag, spec))
    return made


def _burst(seeker: _Seeker) -> _Kind:
    if seeker.spec.qos is not Qos.GUARANTEED:
        return ()
    spec = msgspec.structs.replace(seeker.spec, qos=Qos.BURST)
    return [_Change(_BURST, "with QoS burst", "--qos burst", spec)]


def _other_topology(seeker: _Seeker) -> _Kind:
    if seeker.spec.topology is Topology.ANY:
        return ()
    spec = msgspec.structs.replace(seeker.spec, topology=Topology.ANY)
    if not seeker.fits(spec):
        return ()
    return [_Change(_ANY_TOPOLOGY, "with its tasks wherever there is room", "--topology any", spec)]


def _without_dependency(seeker: _Seeker) -> _Kind:
    state, spec = seeker.cycle.state, seeker.spec
    waiting = [d for d in spec.after if due.readiness(state, d) is Readiness.WAITS]
    if not waiting:
        return ()
    kept = tuple(d for d in spec.after if d not in waiting)
    names = [d.job.partition("/")[2] for d in waiting]
    flags = {"after": "--after", "afterok": "--after-ok", "afterany": "--after-any"}
    flag = " ".join(f"{flags[d.kind]} {name}" for d, name in zip(waiting, names, strict=True))
    changed = msgspec.structs.replace(spec, after=kept)
    return [_Change(_UNCOUPLED, f"without waiting for {' and '.join(names)}", f"without {flag}", changed)]


def _without_array_cap(seeker: _Seeker) -> _Kind:
    spec = seeker.spec
    if not spec.array_max_running:
        return ()
    changed = msgspec.structs.replace(spec, array_max_running=0)
    text = f"without the array's cap of {spec.array_max_running} at once"
    return [_Change(_BURST, text, f"--array without %{spec.array_max_running}", changed)]


_GATES: tuple[Callable[[_Seeker], _Kind], ...] = (_burst, _without_dependency, _without_array_cap)
_ROOM: tuple[Callable[[_Seeker], _Kind], ...] = (
    _less_time,
    _smaller_share,
    _fewer_gpus,
    _less_host,
    _fewer_tasks,
    _other_model,
    _other_labels,
    _weaker_fence,
    _other_topology,
)
