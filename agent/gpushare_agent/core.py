"""The agent's ledger and its decisions: orders and observations in, effects out.

PURE: imports msgspec, the reasons, the cluster's nouns and the executor's vocabulary (data alone). No clock,
file, process, socket or log line; whoever calls it carries the effects out, in order. Invariants: an order with
a term below the highest seen does nothing; an attempt id is launched at most once and never after it was stopped,
sealed or forgotten; the slices of live attempts on a card never pass what the card has, whoever asks; a suspended
attempt holds no card until it is resumed, and then perhaps another one; the first end of an attempt is its end, and it
is remembered until the scheduler lets go of it.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from gpushare.core.kinds import AttemptState, GpuState, OnDisconnect, VisibleDevices
from gpushare.core.model import PLACEABLE_GPU_STATES, WHOLE_CARD_MILLI, EarlySignal
from gpushare.reasons import Reason
from gpushare_agent.launchspec import AttemptStatus

# Ids that were let go of: an order for one can only be a late one of this same session, so a bounded memory will do.
FORGOTTEN_KEPT = 4096

ENDED = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.STOPPED})
# A launch that was refused for these says nothing about the job: it was not started, and may start elsewhere.
_NOT_THE_JOBS_FAULT = frozenset({Reason.NOT_STARTED, Reason.OCCUPIED, Reason.STALE, Reason.LEASE_EXPIRED})


class Gang(msgspec.Struct, frozen=True):
    """A task's place in its gang; ranks count from 0, the address and the port are rank 0's."""

    master_addr: str
    master_port: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nodes: int


class StartOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order to start one attempt. `gpu_milli` and `gpu_memory_mib` are per card; `max_run_ms` 0 is no limit;
    `capacity_milli` is what shares on its card may have together. `gang` is None for a job of one task."""

    attempt_id: str
    term: int
    job_id: str
    task_index: int
    task_count: int
    number: int
    unix_user: str
    argv: tuple[str, ...]
    script: bytes
    env: dict[str, str]
    working_directory: str
    array_index: int | None = None
    pty: bool = False
    stdin: bool = False
    window_rows: int = 0
    window_columns: int = 0
    gpu_uuids: tuple[str, ...] = ()
    whole: bool = False
    gpu_milli: int = 0
    gpu_memory_mib: int = 0
    cpu_milli: int = 0
    memory_mib: int = 0
    max_run_ms: int = 0
    grace_ms: int = 0
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    tier: str = ""
    capacity_milli: int = WHOLE_CARD_MILLI
    gang: Gang | None = None
    # Files for stdout and stderr in place of the kept log, relative to the working directory; "": none.
    output_path: str = ""
    error_path: str = ""
    visible_devices: VisibleDevices = VisibleDevices.UUID
    early_signal: EarlySignal | None = None


class ResumeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order to let a suspended attempt go on, on these cards."""

    attempt_id: str
    term: int
    gpu_uuids: tuple[str, ...]
    whole: bool
    gpu_milli: int
    gpu_memory_mib: int
    capacity_milli: int = WHOLE_CARD_MILLI


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt holds, and what is needed to fence it again: this stands on disk while it has a trace here.
    `uid` and `gids` are the user's that it runs as, known once it was resolved. `launch_uuids` are the cards that its
    environment names, in the order of those it has now; () where they are the same. `suspended`: it holds no card."""

    attempt_id: str
    tier: str = ""
    gpu_uuids: tuple[str, ...] = ()
    launch_uuids: tuple[str, ...] = ()
    suspended: bool = False
    whole: bool = False
    gpu_milli: int = 0
    gpu_memory_mib: int = 0
    cpu_milli: int = 0
    grace_ms: int = 0
    # It stops itself when the node's lease ends.
    ends_with_lease: bool = False
    capacity_milli: int = WHOLE_CARD_MILLI
    uid: int = 0
    gids: tuple[int, ...] = ()

    @property
    def is_share(self) -> bool:
        """True for a part of one card."""
        return bool(self.gpu_uuids) and not self.whole


class Card(msgspec.Struct, frozen=True):
    """A managed card as the ledger sees it."""

    uuid: str
    usable_mib: int
    state: GpuState = GpuState.HEALTHY


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler is told of one attempt."""

    attempt_id: str
    state: AttemptState
    reason: Reason | None = None
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None

    @property
    def is_final(self) -> bool:
        return self.state in ENDED


class Effect(msgspec.Struct, frozen=True):
    """Something to do, in the order given."""


class PersistTerm(Effect, frozen=True):
    """Durable before anything after it is done."""

    term: int


class Launch(Effect, frozen=True):
    order: StartOrder


class StopRunning(Effect, frozen=True):
    """End an attempt whose processes live. `failed`: its own doing, so it ends FAILED and not STOPPED."""

    attempt_id: str
    reason: Reason
    grace_ms: int
    detail: str = ""
    failed: bool = False


class Note(Effect, frozen=True):
    """What it holds has changed."""

    holding: Holding


class Suspend(Effect, frozen=True):
    """Stop all its processes, and tell once they have stopped."""

    attempt_id: str


class Resume(Effect, frozen=True):
    """Note what it holds, fence its cards, then let its processes go on. Not done, it is ordered again."""

    attempt_id: str


class SetLimit(Effect, frozen=True):
    """From now on it may run for so long, counted from its start."""

    attempt_id: str
    run_limit_ms: int


class SealIt(Effect, frozen=True):
    """Make sure, durably, that the attempt can never start; what is found is observed."""

    attempt_id: str


class ForgetIt(Effect, frozen=True):
    """Run files may go."""

    attempt_id: str


class Release(Effect, frozen=True):
    """The attempt is over: its fence may go."""

    attempt_id: str


class Tell(Effect, frozen=True):
    report: Report


class Refused(Effect, frozen=True):
    """An order that was not followed, for the log."""

    attempt_id: str
    reason: Reason
    detail: str


class _Entry:
    """One attempt with a trace here."""

    __slots__ = ("failed_for", "holding", "report", "stop_wanted")

    def __init__(self, holding: Holding | None, report: Report) -> None:
        self.holding = holding
        self.report = report
        self.stop_wanted: Reason | None = None
        self.failed_for: set[Reason] = set()


class AgentCore:
    """The ledger of one node. Methods return effects; nothing else leaves it."""

    def __init__(self, highest_term: int = 0) -> None:
        self.highest_term = highest_term
        self._cards: dict[str, Card] = {}
        self._entries: dict[str, _Entry] = {}
        self._forgotten: OrderedDict[str, None] = OrderedDict()

    # -- what it knows

    def reports(self) -> list[Report]:
        """Every attempt with a trace here, ended or not: what Sync carries."""
        return [entry.report for entry in self._entries.values()]

    def holding(self, attempt_id: str) -> Holding | None:
        """What an attempt holds or held; None for one that never held anything."""
        entry = self._entries.get(attempt_id)
        return entry.holding if entry else None

    def live(self) -> list[Holding]:
        """What every live attempt holds, suspended ones included."""
        return [e.holding for e in self._entries.values() if e.holding and not e.report.is_final]

    def on_cards(self) -> list[Holding]:
        """What is held now: all live attempts but the suspended ones."""
        return [holding for holding in self.live() if not holding.suspended]

    def known(self) -> set[str]:
        """Every attempt with a trace here."""
        return set(self._entries)

    def is_live(self, attempt_id: str) -> bool:
        """True from the order until its end is known."""
        entry = self._entries.get(attempt_id)
        return entry is not None and not entry.report.is_final

    def has_ended(self, attempt_id: str) -> bool:
        """True for an end that is known, let go of or not; False for what never was here, or too long ago."""
        entry = self._entries.get(attempt_id)
        return entry.report.is_final if entry is not None else attempt_id in self._forgotten

    def lease_grace_ms(self) -> int | None:
        """The longest grace of what stops itself at the end of the lease; None where nothing here does."""
        return max((h.grace_ms for h in self.live() if h.ends_with_lease), default=None)

    def on_card(self, uuid: str) -> list[Holding]:
        """The live attempts that hold a part of this card."""
        return [holding for holding in self.on_cards() if uuid in holding.gpu_uuids]

    def stop_wanted(self, attempt_id: str) -> Reason | None:
        """Why this attempt is to end, once somebody wants it to: a launch under way asks before it forks."""
        entry = self._entries.get(attempt_id)
        return entry.stop_wanted if entry else None

    def check(self) -> None:
        """Raises AssertionError where the ledger has given away more of a card than there is."""
        for uuid, card in self._cards.items():
            held = self.on_card(uuid)
            milli = sum(h.gpu_milli for h in held)
            mib = sum(h.gpu_memory_mib for h in held if h.is_share)
            most_milli = max((h.capacity_milli for h in held), default=WHOLE_CARD_MILLI)
            assert milli <= most_milli, f"{milli} milli of {uuid} are held"
            assert mib <= card.usable_mib, f"{mib} of {card.usable_mib} MiB of {uuid} are held"
            assert len(held) == 1 or not any(h.whole for h in held), f"{uuid} is held whole and shared"

    # -- what it is told about the node

    def set_cards(self, cards: list[Card]) -> None:
        """The managed cards now, with their condition."""
        self._cards = {card.uuid: card for card in cards}

    def recover(self, statuses: list[AttemptStatus], holdings: dict[str, Holding]) -> None:
        """At start: what the executor found on disk, and what was noted of each. Tells nobody: Sync will."""
        for status in statuses:
            holding = holdings.get(status.attempt_id)
            report = _report(status)
            if holding and report.state is AttemptState.SUSPENDED:
                holding = msgspec.structs.replace(holding, suspended=True)
            self._entries[status.attempt_id] = _Entry(holding, report)

    def begin_term(self, term: int) -> list[Effect]:
        """A scheduler answered as the leader of `term`. A Refused effect means: do not follow it."""
        if term < self.highest_term:
            detail = f"its term is {term}, but term {self.highest_term} has begun"
            return [Refused("", Reason.STALE_TERM, detail)]
        return self._raise_term(term)

    # -- orders

    def start(self, order: StartOrder) -> list[Effect]:
        """Launch it once, if it is not late and fits."""
        if order.term < self.highest_term:
            return [self._stale(order.attempt_id, order.term)]
        effects = self._raise_term(order.term)
        if order.attempt_id in self._forgotten:
            detail = "it has ended and was let go of"
            return [*effects, Refused(order.attempt_id, Reason.STALE_ATTEMPT, detail)]
        known = self._entries.get(order.attempt_id)
        if known is not None:
            return [*effects, Tell(known.report)]
        misfit = self._misfit(order)
        holding = None if misfit else _holding(order)
        report = Report(attempt_id=order.attempt_id, state=AttemptState.LAUNCHING)
        if misfit:
            report = Report(
                attempt_id=order.attempt_id, state=AttemptState.STOPPED, reason=Reason.NOT_STARTED, detail=misfit
            )
        self._entries[order.attempt_id] = _Entry(holding, report)
        return [*effects, Tell(report) if misfit else Launch(order)]

    def stop(self, attempt_id: str, term: int, reason: Reason, grace_ms: int, detail: str = "") -> list[Effect]:
        """End it; one that is not here yet is sealed, so that a late start finds it ended."""
        if term < self.highest_term:
            return [self._stale(attempt_id, term)]
        effects = self._raise_term(term)
        entry = self._entries.get(attempt_id)
        if entry is None:
            return [*effects, *self._seal_unknown(attempt_id, reason)]
        if entry.report.is_final:
            return [*effects, Tell(entry.report)]
        entry.stop_wanted = entry.stop_wanted or reason
        return [*effects, StopRunning(attempt_id, reason, grace_ms, detail)]

    def suspend(self, attempt_id: str, term: int) -> list[Effect]:
        """Stop its processes and give up its cards, once it runs."""
        if term < self.highest_term:
            return [self._stale(attempt_id, term)]
        effects = self._raise_term(term)
        entry = self._entries.get(attempt_id)
        if entry is None or entry.holding is None:
            return [*effects, Refused(attempt_id, Reason.STALE_ATTEMPT, "there is nothing of it here to suspend")]
        if entry.report.is_final or entry.report.state is AttemptState.SUSPENDED:
            return [*effects, Tell(entry.report)]
        if entry.stop_wanted:
            return [*effects, Refused(attempt_id, Reason.STALE, f"it is being ended ({entry.stop_wanted})")]
        return [*effects, Suspend(attempt_id)]

    def resume(self, order: ResumeOrder) -> list[Effect]:
        """Give a suspended attempt these cards and let it go on."""
        attempt_id = order.attempt_id
        if order.term < self.highest_term:
            return [self._stale(attempt_id, order.term)]
        effects = self._raise_term(order.term)
        entry = self._entries.get(attempt_id)
        if entry is None or entry.holding is None:
            return [*effects, Refused(attempt_id, Reason.STALE_ATTEMPT, "there is nothing of it here to resume")]
        if entry.report.state is not AttemptState.SUSPENDED:
            return [*effects, Tell(entry.report)]
        if entry.stop_wanted:
            return [*effects, Refused(attempt_id, Reason.STALE, f"it is being ended ({entry.stop_wanted})")]
        misfit = self._misfit(order)
        if misfit:
            return [*effects, Refused(attempt_id, Reason.OCCUPIED, misfit)]
        entry.holding = _resumed(entry.holding, order)
        return [*effects, Resume(attempt_id)]

    def set_run_limit(self, attempt_id: str, term: int, run_limit_ms: int) -> list[Effect]:
        """Another time limit than it was started with; told again and again, it is the same one."""
        if term < self.highest_term:
            return [self._stale(attempt_id, term)]
        effects = self._raise_term(term)
        entry = self._entries.get(attempt_id)
        if entry is None or entry.holding is None:
            return [*effects, Refused(attempt_id, Reason.STALE_ATTEMPT, "there is nothing of it here to extend")]
        if entry.report.is_final:
            return [*effects, Tell(entry.report)]
        return [*effects, SetLimit(attempt_id, run_limit_ms)]

    def seal(self, attempt_id: str, term: int) -> list[Effect]:
        """The scheduler does not want it (any more): it must never start, and what lives of it ends."""
        detail = "the scheduler holds this attempt as over"
        entry = self._entries.get(attempt_id)
        grace_ms = entry.holding.grace_ms if entry and entry.holding else 0
        return self.stop(attempt_id, term, Reason.STALE, grace_ms, detail)

    def forget(self, attempt_id: str, term: int) -> list[Effect]:
        """Its end is durable at the scheduler."""
        if term < self.highest_term:
            return [self._stale(attempt_id, term)]
        effects = self._raise_term(term)
        entry = self._entries.get(attempt_id)
        if entry is not None and not entry.report.is_final:
            detail = f"it is {entry.report.state} here"
            return [*effects, Refused(attempt_id, Reason.STALE_ATTEMPT, detail)]
        if entry is None:
            return effects
        del self._entries[attempt_id]
        self._forgotten[attempt_id] = None
        while len(self._forgotten) > FORGOTTEN_KEPT:
            self._forgotten.popitem(last=False)
        return [*effects, ForgetIt(attempt_id)]

    # -- observations

    def observe(self, status: AttemptStatus) -> list[Effect]:
        """What the executor saw. A repetition, and anything after the end, does nothing."""
        entry = self._entries.get(status.attempt_id)
        if entry is None or entry.report.is_final:
            return []
        report = _report(status)
        if report == entry.report:
            return []
        was, entry.report = entry.report.state, report
        told: list[Effect] = [Tell(report)]
        if report.state is AttemptState.SUSPENDED and was is not AttemptState.SUSPENDED and entry.holding:
            # Its cards are others' as soon as the scheduler hears of it.
            entry.holding = msgspec.structs.replace(entry.holding, suspended=True)
            told = [Note(entry.holding), Release(status.attempt_id), *told]
        return [*told, Release(status.attempt_id)] if report.is_final else told

    def fenced(self, attempt_id: str, uid: int, gids: tuple[int, ...]) -> Holding | None:
        """The attempt's user is resolved and its fence stands; returns what to note on disk."""
        entry = self._entries.get(attempt_id)
        if entry is None or entry.holding is None:
            return None
        entry.holding = msgspec.structs.replace(entry.holding, uid=uid, gids=gids)
        return entry.holding

    def launch_refused(self, attempt_id: str, reason: Reason, detail: str) -> list[Effect]:
        """The launch ended before anything of the job ran."""
        entry = self._entries.get(attempt_id)
        if entry is None or entry.report.is_final:
            return []
        if reason is Reason.STALE_ATTEMPT:
            # The executor remembers longer than this ledger: that id has run here, and ran only once.
            reason = Reason.STALE
        free = reason in _NOT_THE_JOBS_FAULT
        entry.report = Report(
            attempt_id=attempt_id,
            state=AttemptState.STOPPED if free else AttemptState.FAILED,
            reason=reason,
            detail=detail,
        )
        return [Tell(entry.report), Release(attempt_id)]

    def overran(self, attempt_id: str, reason: Reason, detail: str, grace_ms: int) -> list[Effect]:
        """The watchdog's verdict: the attempt took more than its slice, or left its fence."""
        return self._fail(attempt_id, reason, detail, grace_ms)

    def card_lost(self, uuid: str, detail: str) -> list[Effect]:
        """The card is gone for good, and with it whatever ran on it."""
        effects: list[Effect] = []
        for holding in self.on_card(uuid):
            effects += self._fail(holding.attempt_id, Reason.GPU_LOST, detail, holding.grace_ms)
        return effects

    # -- inside

    def _fail(self, attempt_id: str, reason: Reason, detail: str, grace_ms: int) -> list[Effect]:
        entry = self._entries.get(attempt_id)
        if entry is None or entry.report.is_final or reason in entry.failed_for:
            return []
        entry.failed_for.add(reason)
        entry.stop_wanted = entry.stop_wanted or reason
        return [StopRunning(attempt_id, reason, grace_ms, detail, failed=True)]

    def _raise_term(self, term: int) -> list[Effect]:
        if term <= self.highest_term:
            return []
        self.highest_term = term
        return [PersistTerm(term)]

    def _stale(self, attempt_id: str, term: int) -> Refused:
        detail = f"the order is of term {term}, but term {self.highest_term} has begun"
        return Refused(attempt_id, Reason.STALE_TERM, detail)

    def _seal_unknown(self, attempt_id: str, reason: Reason) -> list[Effect]:
        if attempt_id in self._forgotten:
            detail = "it has ended and was let go of"
            return [Refused(attempt_id, Reason.STALE_ATTEMPT, detail)]
        report = Report(attempt_id=attempt_id, state=AttemptState.STOPPING)
        entry = _Entry(None, report)
        entry.stop_wanted = reason
        self._entries[attempt_id] = entry
        return [SealIt(attempt_id)]

    def _misfit(self, order: StartOrder | ResumeOrder) -> str:
        """Why this slice cannot be given, by this node's own books; "" when it can."""
        for uuid in order.gpu_uuids:
            card = self._cards.get(uuid)
            if card is None:
                return f"this node manages no card {uuid}"
            if card.state not in PLACEABLE_GPU_STATES:
                return f"card {uuid} is {card.state}"
            held = [h for h in self.on_card(uuid) if h.attempt_id != order.attempt_id]
            milli = order.gpu_milli + sum(h.gpu_milli for h in held)
            mib = order.gpu_memory_mib + sum(h.gpu_memory_mib for h in held)
            if held and (order.whole or any(h.whole for h in held)):
                return f"card {uuid} is held by {', '.join(h.attempt_id for h in held)}"
            if milli > max(WHOLE_CARD_MILLI, order.capacity_milli):
                return f"card {uuid} would carry {milli} of {order.capacity_milli} milli"
            if mib > card.usable_mib and not order.whole:
                return f"card {uuid} would carry {mib} of {card.usable_mib} MiB"
        if len(order.gpu_uuids) > 1 and not order.whole:
            return "a share is of one card, and the order names several"
        return ""


def _holding(order: StartOrder) -> Holding:
    return Holding(
        attempt_id=order.attempt_id,
        tier=order.tier,
        gpu_uuids=order.gpu_uuids,
        whole=order.whole,
        gpu_milli=order.gpu_milli,
        gpu_memory_mib=order.gpu_memory_mib,
        cpu_milli=order.cpu_milli,
        grace_ms=order.grace_ms,
        ends_with_lease=order.on_disconnect is OnDisconnect.STOP_AND_REQUEUE,
        capacity_milli=max(WHOLE_CARD_MILLI, order.capacity_milli),
    )


def _resumed(holding: Holding, order: ResumeOrder) -> Holding:
    launched_on = holding.launch_uuids or holding.gpu_uuids
    return msgspec.structs.replace(
        holding,
        gpu_uuids=order.gpu_uuids,
        launch_uuids=() if order.gpu_uuids == launched_on else launched_on,
        suspended=False,
        whole=order.whole,
        gpu_milli=order.gpu_milli,
        gpu_memory_mib=order.gpu_memory_mib,
        capacity_milli=max(WHOLE_CARD_MILLI, order.capacity_milli),
    )


def _report(status: AttemptStatus) -> Report:
    return Report(
        attempt_id=status.attempt_id,
        state=AttemptState(status.state),
        reason=status.reason,
        detail=status.detail,
        exit_code=status.exit_code,
        signal=status.signal,
        started_ms=status.started_ms,
        ended_ms=status.ended_ms,
    )
