"""The journal store as the engine sees it: what is kept, what may be asked, and what can go wrong.

May import the standard library and msgspec alone, so that the engine, the tests and the simulator can speak of a store
without loading a database library. Invariants every implementation keeps:

- the journal is the numbers 1, 2, 3, ... without a gap, and a record never changes once `append` returned;
- `append` is all or nothing, and durable (it survives kill -9 and power loss) when it returns;
- a writer whose term has been taken over can write nothing more;
- the journal is never pruned; snapshots only shorten replay.

A store is synchronous. One thread at a time writes; reads may come from any thread and see committed records only.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

#: A page of records ends early once its payloads pass this many bytes, so that one page never fills the memory.
PAGE_BYTES_MAX = 64 * 1024 * 1024
#: Older denials are dropped beyond this many: they are for people, and anyone can cause them.
DENIALS_KEPT = 100_000
#: The texts of a denial are cut to this many characters.
DENIAL_TEXT_MAX = 1000
#: The newest is used; the one before it is there in case the newest cannot be read.
SNAPSHOTS_KEPT = 2
#: Integers of records are what every database's 64-bit column can hold.
INT_MAX = 2**63 - 1


class Record(msgspec.Struct, frozen=True):
    """One event of the journal, and with it one line of the audit log.

    `seq` counts from 1; `at_ms` is wall time; `term` is the term of the leader that wrote it; `payload` is the event as
    JSON, opaque to the store. `tenant`, `user`, `role` and `request_id` are empty where an event has none.
    """

    seq: int
    at_ms: int
    term: int
    kind: str
    tenant: str
    user: str
    role: str
    request_id: str
    payload: bytes


class HistoryCursor(NamedTuple):
    """A place in the history, whose order is newest end first; `tenant` and `job` only break ties."""

    ended_ms: int
    tenant: str
    job: str


class HistoryRow(msgspec.Struct, frozen=True):
    """One job that has ended and left the engine's memory. `job` is the id inside its tenant, `blob` is opaque."""

    tenant: str
    job: str
    created_ms: int
    ended_ms: int
    user: str
    state: str
    blob: bytes

    @property
    def cursor(self) -> HistoryCursor:
        """What to pass as `before` to list what follows this row."""
        return HistoryCursor(self.ended_ms, self.tenant, self.job)


class Denial(msgspec.Struct, frozen=True):
    """One refused call, for the audit. Kept apart from the journal, since a refusal changes nothing."""

    at_ms: int
    user: str
    role: str
    tenant: str
    rpc: str
    reason: str
    detail: str


class AuditFilter(msgspec.Struct, frozen=True):
    """Which records an audit wants; None is "any". `before_seq` is exclusive and pages backwards.

    `since_ms` rests on the time of records never going back within a journal.
    """

    user: str | None = None
    tenant: str | None = None
    kind: str | None = None
    since_ms: int | None = None
    before_seq: int | None = None


class StoreError(Exception):
    """The store could not do what it was asked. The text says what is wrong, where, and what to do."""


class StoreClosed(StoreError):
    """The store is not open."""


class StoreUnavailable(StoreError):
    """The disk or the database failed this call; nothing of it is half written, and a later call may work.

    After a failed `append` the writer must reload from the store before it writes again: where the failure came between
    the disk and its answer, all of the call may turn out to be durable. Taking a new term settles that either way.
    """


class StoreFull(StoreUnavailable):
    """The disk is full. `release_ballast` makes room for what must still be written."""


class StoreDamaged(StoreError):
    """What is stored contradicts itself. Writing on would make it worse."""


class TermLost(StoreError):
    """A newer term exists: this writer has been replaced and must stop leading at once."""

    def __init__(self, held: int, current: int, holder: str) -> None:
        super().__init__(
            f"term {held} is over: term {current} belongs to {holder!r}; "
            "this scheduler has to stop leading and reload before it may write again"
        )
        self.held = held
        self.current = current
        self.holder = holder


class RecordRefused(StoreError):
    """The caller broke the contract of `append` (numbers, terms or text); nothing was written."""


class Refusal(StrEnum):
    """Why a store did not open. In each of these cases no stored data was touched."""

    LOCKED = "LOCKED"
    READ_ONLY = "READ_ONLY"
    DISK_FULL = "DISK_FULL"
    WRONG_SCHEMA = "WRONG_SCHEMA"
    NOT_A_STORE = "NOT_A_STORE"
    FOREIGN_OWNER = "FOREIGN_OWNER"
    NETWORK_FILESYSTEM = "NETWORK_FILESYSTEM"
    UNSAFE_SETTINGS = "UNSAFE_SETTINGS"


class StoreRefused(StoreError):
    """The store refused to open, with the cause in `why`; the daemon should print the text and exit."""

    def __init__(self, why: Refusal, text: str) -> None:
        super().__init__(text)
        self.why = why


class Store(Protocol):
    """The journal and what hangs on it. Every method may raise `StoreClosed` and `StoreUnavailable`."""

    def open(self) -> None:
        """Make the store ready, creating it where there is none. Raises `StoreRefused`."""

    def close(self) -> None:
        """Give everything back. Closing a closed store does nothing."""

    def acquire_term(self, holder: str) -> int:
        """Begin a new term for `holder` (a text for people) and return it; durable, and fences every earlier term."""

    def append(self, records: Sequence[Record], term: int, history: Sequence[HistoryRow] = ()) -> None:
        """Write all records and history rows in one durable transaction, or nothing.

        `records[0].seq` is `last_seq() + 1`, the others follow without a gap, and each carries `term`. A history
        row of a job that is there already is a broken contract. Raises `TermLost`, `RecordRefused`, `StoreFull`,
        `StoreUnavailable`.
        """

    def last_seq(self) -> int:
        """The number of the newest durable record, 0 for an empty journal."""

    def read(self, after_seq: int, limit: int) -> list[Record]:
        """Up to `limit` records following `after_seq`, oldest first; fewer where their payloads pass `PAGE_BYTES_MAX`.

        Only an empty answer means the end. Raises `StoreDamaged` where a record is missing.
        """

    def read_audit(self, wanted: AuditFilter, limit: int) -> list[Record]:
        """Up to `limit` records that match, newest first; page with `before_seq`, until the answer is empty."""

    def save_snapshot(self, seq: int, blob: bytes) -> None:
        """Keep `blob` as the state after record `seq`; only the newest `SNAPSHOTS_KEPT` stay.

        For the holder of the current term alone: raises `TermLost` where the last term acquired through this store is
        no longer the newest (or there was none), `RecordRefused` for a `seq` that is not durable yet.
        """

    def load_snapshot(self) -> tuple[int, bytes] | None:
        """The newest readable snapshot; None means that the whole journal has to be replayed."""

    def history_list(
        self,
        tenant: str | None,
        before: HistoryCursor | None,
        limit: int,
        *,
        user: str | None = None,
        state: str | None = None,
    ) -> list[HistoryRow]:
        """Up to `limit` ended jobs, newest end first, those that follow `before`; None is "any"; empty is the end."""

    def history_get(self, tenant: str, job: str) -> HistoryRow | None:
        """One ended job, or None."""

    def add_denials(self, denials: Sequence[Denial]) -> None:
        """Note refused calls; only the newest `DENIALS_KEPT` stay. Texts are cut and made storable, never refused."""

    def list_denials(self, limit: int) -> list[Denial]:
        """The newest refused calls first."""

    def release_ballast(self) -> bool:
        """Free the disk space held back for a full disk; False where none was held."""

    def restore_ballast(self) -> bool:
        """Hold that space back again if there is plenty; True when it is held. Until then refuse new work."""


def check_append(records: Sequence[Record], term: int, history: Sequence[HistoryRow]) -> None:
    """Raise `RecordRefused` unless the batch is contiguous, of one term, and storable in every database."""
    if records:
        first = records[0].seq
        for offset, record in enumerate(records):
            if record.seq != first + offset:
                raise RecordRefused(
                    f"journal record {record.seq} follows {first + offset - 1}: the numbers of a batch must be "
                    "contiguous; this is a fault of the writer, which has to reload from the store"
                )
            if record.term != term:
                raise RecordRefused(
                    f"journal record {record.seq} carries term {record.term} but is written under term {term}; "
                    "this is a fault of the writer, which has to reload from the store"
                )
        _check_range("seq", first, records[-1].seq)
        _check_range("at_ms", min(r.at_ms for r in records), max(r.at_ms for r in records))
    for row in history:
        _check_range("created_ms", row.created_ms, row.created_ms)
        _check_range("ended_ms", row.ended_ms, row.ended_ms)
    texts = [text for r in records for text in (r.kind, r.tenant, r.user, r.role, r.request_id)]
    texts += [text for h in history for text in (h.tenant, h.job, h.user, h.state)]
    # One look at all texts together: this runs for every batch, and almost never finds anything.
    if not storable("".join(texts)):
        raise RecordRefused(
            "a text of a journal record holds a NUL or half a surrogate pair, which no database stores; "
            "such input has to be refused where it comes in; nothing was written"
        )


def check_next(first_seq: int, last_seq: int) -> None:
    """Raise `RecordRefused` unless `first_seq` continues a journal that ends at `last_seq`."""
    if first_seq != last_seq + 1:
        raise RecordRefused(
            f"the journal ends at {last_seq}, so the next record is {last_seq + 1}, not {first_seq}; "
            "this is a fault of the writer, which has to reload from the store"
        )


def storable(text: str) -> bool:
    """Whether every database takes `text`: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def storable_denial(denial: Denial) -> Denial:
    """The denial with its texts cut, and without what no database takes (NUL, lone surrogates)."""
    return Denial(
        max(0, min(denial.at_ms, INT_MAX)),
        *(
            _storable_text(text)
            for text in (denial.user, denial.role, denial.tenant, denial.rpc, denial.reason, denial.detail)
        ),
    )


def _storable_text(text: str) -> str:
    return text[:DENIAL_TEXT_MAX].encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _check_range(name: str, low: int, high: int) -> None:
    if low < 0 or high > INT_MAX:
        raise RecordRefused(f"{name} {low if low < 0 else high} is outside 0..2^63-1; nothing was written")
