"""What a look at the cards says about the jobs on them: pure functions from a snapshot to verdicts.

Imports the ports' words alone; no clock, no process table: the caller says which attempt each pid belongs
to. It runs under every tier: it sums each job's memory, catches a job's process that left MPS or went to
another card, and names strangers, who are never killed. Invariant: nobody is accused on one look alone,
except where the memory of a job over its limit is memory that another job was promised and can no longer
have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import DriverState, GpuProcess, GpuSample, GpuSnapshot
from gpushare_agent.sharing.port import SliceSpec, Tier

# Of a slice's memory: a job is told at the one, and told again only once it was below the other in between.
WARN_PERCENT = 95
CALM_PERCENT = 85


class WatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the watchdog is.

    `looks` in a row make a verdict, and looks closer together than `min_gap_ms` count once. A stranger
    below `stranger_mib` on a card is ignored.
    """

    looks: int = 2
    min_gap_ms: int = 500
    stranger_mib: int = 64


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A fenced attempt and the tier it got."""

    spec: SliceSpec
    tier: Tier


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt must be stopped, with this reason. Figures are 0 where they say nothing."""

    attempt_id: str
    reason: Reason
    detail: str
    used_mib: int = 0
    pids: tuple[int, ...] = ()


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a card that is none of ours."""

    pid: int
    user: str
    memory_mib: int | None


class NearLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt has taken nearly all the memory of its slice; said once, until it has given much of it back."""

    attempt_id: str
    used_mib: int
    limit_mib: int

    def sentence(self) -> str:
        """For the job's own log."""
        percent = 100 * self.used_mib // self.limit_mib
        return (
            f"GPU memory: {self.used_mib} of the {self.limit_mib} MiB of this job's slice are in use ({percent} %); "
            "beyond them an allocation fails, or the job is ended. Ask for more with --gpu-memory, or use less."
        )


class CardUse(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a card. `stranger_mib` is what the strangers take from its capacity; 0 without strangers."""

    uuid: str
    strangers: tuple[Stranger, ...] = ()
    stranger_mib: int = 0

    def sentence(self) -> str:
        """For a person: who is there."""
        return ", ".join(
            f"pid {one.pid} of {one.user or 'an invisible user'} holds "
            f"{'an unknown amount' if one.memory_mib is None else f'{one.memory_mib} MiB'}"
            for one in self.strangers
        )


class JobUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt takes of its cards. `sm_percent` is an estimate and None where the driver gives none."""

    attempt_id: str
    used_mib: int
    sm_percent: int | None
    pids: tuple[int, ...]


class WatchState(msgspec.Struct, frozen=True, kw_only=True):
    """What the watchdog remembers between looks: how often in a row each suspicion was confirmed (keys are
    `attempt|suspicion`), and who was told what.
    """

    counted_at_ns: int = 0
    counts: dict[str, int] = {}
    # Attempts that were told to be near their limit.
    near: frozenset[str] = frozenset()


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All that one look says. `cards` and `jobs` have an entry for each card read and each attempt held."""

    verdicts: tuple[Verdict, ...] = ()
    near_limit: tuple[NearLimit, ...] = ()
    cards: tuple[CardUse, ...] = ()
    jobs: tuple[JobUse, ...] = ()


def watch(
    state: WatchState,
    snapshot: GpuSnapshot,
    attempt_of_pid: Mapping[int, str],
    held: Mapping[str, Held],
    own_pids: Collection[int] = (),
    settings: WatchSettings = WatchSettings(),  # noqa: B008 - frozen
) -> tuple[WatchState, Findings]:
    """One look. A snapshot that is not OK says nothing, changes nothing and accuses nobody.

    `attempt_of_pid` names the attempt of every process of a job, `held` every fenced attempt, `own_pids`
    our MPS servers. Cards that did not answer are left out of `cards`.
    """
    if snapshot.state is not DriverState.OK:
        return state, Findings()
    readable = [sample for sample in snapshot.samples if not sample.error and sample.processes_known]
    jobs = {name: _use(name, one.spec, readable, attempt_of_pid) for name, one in held.items()}
    suspicions = [
        *_over_memory(held, readable, attempt_of_pid),
        *_left_mps(readable, attempt_of_pid, held),
        *_off_their_cards(readable, attempt_of_pid, held),
    ]
    near = _near_limit(held, readable, attempt_of_pid)
    told = tuple(one for one in near if one.attempt_id not in state.near and _percent(one) >= WARN_PERCENT)
    still = {one.attempt_id for one in near if one.attempt_id in state.near}
    state = msgspec.structs.replace(state, near=frozenset(still | {one.attempt_id for one in told}))
    state = _counted(state, snapshot.taken_boot_ns, [key for key, _, _ in suspicions], settings)
    verdicts = [
        verdict for key, verdict, at_once in suspicions if at_once or state.counts.get(key, 0) >= settings.looks
    ]
    return state, Findings(
        verdicts=tuple(verdicts),
        near_limit=told,
        cards=tuple(card_use(sample, attempt_of_pid, own_pids, settings) for sample in readable),
        jobs=tuple(jobs.values()),
    )


def card_use(
    sample: GpuSample,
    attempt_of_pid: Mapping[int, str],
    own_pids: Collection[int] = (),
    settings: WatchSettings = WatchSettings(),  # noqa: B008 - frozen
) -> CardUse:
    """The strangers of one card. Processes that only draw on a display do not count."""
    found = [
        Stranger(pid=row.pid, user=row.user, memory_mib=row.memory_mib)
        for row in sample.processes
        if row.kind == "compute" and row.pid not in attempt_of_pid and row.pid not in own_pids
    ]
    known_mib = sum(one.memory_mib or 0 for one in found)
    if any(one.memory_mib is None for one in found):
        # The driver does not say what they hold: all that nobody else is known to hold.
        others_mib = sum(row.memory_mib or 0 for row in sample.processes) - known_mib
        known_mib = max(known_mib, sample.used_mib - others_mib)
    elif known_mib < settings.stranger_mib:
        return CardUse(uuid=sample.uuid)
    return CardUse(uuid=sample.uuid, strangers=tuple(found), stranger_mib=known_mib)


def launch_obstacle(spec: SliceSpec, snapshot: GpuSnapshot, uses: Mapping[str, CardUse]) -> str:
    """Why this slice must not be launched now by what the driver sees; "" if nothing stands in the way.

    The reason is OCCUPIED. A whole card must have no stranger, a share must have its memory free. `uses` by
    UUID.
    """
    samples = {sample.uuid: sample for sample in snapshot.samples}
    for uuid in spec.gpu_uuids:
        sample, use = samples.get(uuid), uses.get(uuid)
        if sample is None or sample.error:
            return f"{uuid} does not answer: {sample.error if sample else 'the driver does not show it'}"
        who = f": {use.sentence()}" if use and use.strangers else ""
        if spec.whole and who:
            return f"{uuid} is used by others{who}"
        if not spec.whole and sample.free_mib < spec.gpu_memory_mib:
            return f"{uuid} has {sample.free_mib} MiB free and {spec.gpu_memory_mib} MiB are needed{who}"
    return ""


def _percent(one: NearLimit) -> int:
    return 100 * one.used_mib // one.limit_mib


def _near_limit(
    held: Mapping[str, Held], samples: list[GpuSample], attempt_of_pid: Mapping[int, str]
) -> list[NearLimit]:
    """Shares that hold so much of theirs that they are, or stay, told of it."""
    found = []
    for name, one in held.items():
        if one.spec.whole or not one.spec.gpu_memory_mib:
            continue
        here = [sample for sample in samples if sample.uuid in one.spec.gpu_uuids]
        used_mib = _use(name, one.spec, here, attempt_of_pid).used_mib
        near = NearLimit(attempt_id=name, used_mib=used_mib, limit_mib=one.spec.gpu_memory_mib)
        if _percent(near) >= CALM_PERCENT:
            found.append(near)
    return found


Suspicion = tuple[str, Verdict, bool]


def _use(name: str, spec: SliceSpec, samples: list[GpuSample], attempt_of_pid: Mapping[int, str]) -> JobUse:
    rows = [row for sample in samples for row in sample.processes if attempt_of_pid.get(row.pid) == name]
    busy = [row.sm_percent for row in rows if row.sm_percent is not None]
    return JobUse(
        attempt_id=name,
        used_mib=sum(row.memory_mib or 0 for row in rows),
        sm_percent=min(sum(busy), 100 * len(spec.gpu_uuids)) if busy else None,
        pids=tuple(sorted({row.pid for row in rows})),
    )


def _over_memory(
    held: Mapping[str, Held], samples: list[GpuSample], attempt_of_pid: Mapping[int, str]
) -> list[Suspicion]:
    """Shares that hold more than theirs; at once where the card can no longer give the others what is theirs."""
    found = []
    for sample in samples:
        here = {n: one.spec for n, one in held.items() if not one.spec.whole and sample.uuid in one.spec.gpu_uuids}
        uses = {name: _use(name, spec, [sample], attempt_of_pid) for name, spec in here.items()}
        claims_mib = sum(max(spec.gpu_memory_mib - uses[name].used_mib, 0) for name, spec in here.items())
        for name, spec in here.items():
            used_mib, limit_mib = uses[name].used_mib, spec.gpu_memory_mib
            if used_mib <= limit_mib:
                continue
            verdict = Verdict(
                attempt_id=name,
                reason=Reason.MEMORY_LIMIT,
                detail=(
                    f"the job held {used_mib} MiB of {sample.uuid} and its slice has {limit_mib} MiB; ask for more "
                    "with --gpu-memory, or have the program use less"
                ),
                used_mib=used_mib,
                pids=uses[name].pids,
            )
            found.append((f"{name}|memory", verdict, claims_mib > sample.free_mib))
    return found


def _left_mps(samples: list[GpuSample], attempt_of_pid: Mapping[int, str], held: Mapping[str, Held]) -> list[Suspicion]:
    """Jobs fenced by MPS with a process that computes on the card beside MPS."""
    found = []
    for sample in samples:
        if not sample.mps_known:
            continue
        for name, rows in _rows_by_attempt(sample, attempt_of_pid).items():
            outside = tuple(row.pid for row in rows if not row.mps and row.kind == "compute")
            if outside and name in held and held[name].tier is Tier.MPS_V2 and sample.uuid in held[name].spec.gpu_uuids:
                detail = f"{_pids(outside)} of the job ran on {sample.uuid} outside MPS, where no limit holds"
                verdict = Verdict(attempt_id=name, reason=Reason.LIMIT_BYPASS, detail=detail, pids=outside)
                found.append((f"{name}|mps", verdict, False))
    return found


def _off_their_cards(
    samples: list[GpuSample], attempt_of_pid: Mapping[int, str], held: Mapping[str, Held]
) -> list[Suspicion]:
    """Jobs that compute on a card they were not given."""
    found = []
    for sample in samples:
        for name, rows in _rows_by_attempt(sample, attempt_of_pid).items():
            astray = tuple(row.pid for row in rows if row.kind == "compute")
            if astray and name in held and sample.uuid not in held[name].spec.gpu_uuids:
                detail = f"{_pids(astray)} of the job ran on {sample.uuid}, which the job was not given"
                verdict = Verdict(attempt_id=name, reason=Reason.LIMIT_BYPASS, detail=detail, pids=astray)
                found.append((f"{name}|card", verdict, False))
    return found


def _rows_by_attempt(sample: GpuSample, attempt_of_pid: Mapping[int, str]) -> dict[str, list[GpuProcess]]:
    found: dict[str, list[GpuProcess]] = {}
    for row in sample.processes:
        if row.pid in attempt_of_pid:
            found.setdefault(attempt_of_pid[row.pid], []).append(row)
    return found


def _pids(pids: tuple[int, ...]) -> str:
    return f"pid {', '.join(str(pid) for pid in pids)}"


def _counted(state: WatchState, now_ns: int, keys: list[str], settings: WatchSettings) -> WatchState:
    """Count this look, unless it follows the last counted one too closely; what was not seen again is
    forgotten.
    """
    if state.counted_at_ns and now_ns - state.counted_at_ns < settings.min_gap_ms * 1_000_000:
        return state
    counts = {key: state.counts.get(key, 0) + 1 for key in keys}
    return msgspec.structs.replace(state, counted_at_ns=now_ns, counts=counts)
