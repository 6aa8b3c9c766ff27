"""The reference store: what the port means, in plain lists, with the accidents of a disk on command.

May import the standard library and the port. `MemoryDisk` is what survives; `MemoryStore` is one process's handle on
it, so that a crash loses exactly what was not committed and two handles can contend for the lead. Everything that
changes the disk happens under the disk's one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gpushare.store.port import (
    DENIALS_KEPT,
    PAGE_BYTES_MAX,
    SNAPSHOTS_KEPT,
    AuditFilter,
    Denial,
    HistoryCursor,
    HistoryRow,
    Record,
    RecordRefused,
    StoreClosed,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TermLost,
    check_append,
    check_next,
    storable_denial,
)

#: A held append gives up after this long, so that a forgotten release cannot hang a test.
HOLD_LIMIT_S = 60.0


class MemoryDisk:
    """What is durable. Shared by the handles of several processes, and outlives their crashes.

    A test sets `full` to let every write of a store that still holds its ballast raise `StoreFull`.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.journal: list[Record] = []
        self.history: dict[tuple[str, str], HistoryRow] = {}
        self.snapshots: dict[int, bytes] = {}
        self.denials: list[Denial] = []
        self.term = 0
        self.holder = ""
        self.full = False


class MemoryStore:
    """One process's handle on a `MemoryDisk`. Implements `Store`; the methods below `# -- accidents` are for tests."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = disk if disk is not None else MemoryDisk()
        self._changed = self.disk.changed
        self._open = False
        self._term = 0
        self._life = 0
        self._ballast = False
        self._holding = False
        self._waiting = 0
        self._failures: list[tuple[StoreError, bool]] = []

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._term = 0
            self._ballast = not self.disk.full

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def acquire_term(self, holder: str) -> int:
        with self._changed:
            self._may_write()
            self.disk.term += 1
            self.disk.holder = holder
            self._term = self.disk.term
            return self._term

    def append(self, records: Sequence[Record], term: int, history: Sequence[HistoryRow] = ()) -> None:
        check_append(records, term, history)
        with self._changed:
            self._check_append(records, term, history)
            self._wait_while_held()
            self._check_append(records, term, history)  # what was true before the wait may not be now
            failure = self._failures.pop(0) if self._failures else None
            if failure is not None and not failure[1]:
                raise failure[0]
            self.disk.journal.extend(records)
            self.disk.history.update({(row.tenant, row.job): row for row in history})
            if failure is not None:
                raise failure[0]

    def last_seq(self) -> int:
        with self._changed:
            self._may_read()
            return len(self.disk.journal)

    def read(self, after_seq: int, limit: int) -> list[Record]:
        with self._changed:
            self._may_read()
            start = max(0, after_seq)
            return _page(self.disk.journal[start : start + max(0, limit)])

    def read_audit(self, wanted: AuditFilter, limit: int) -> list[Record]:
        with self._changed:
            self._may_read()
            matching = [r for r in reversed(self.disk.journal) if _wanted(r, wanted)]
            return _page(matching[: max(0, limit)])

    def save_snapshot(self, seq: int, blob: bytes) -> None:
        with self._changed:
            self._may_write()
            if self._term != self.disk.term or self._term == 0:
                raise TermLost(self._term, self.disk.term, self.disk.holder)
            if not 0 <= seq <= len(self.disk.journal):
                raise RecordRefused(f"a snapshot at {seq} needs its record; the newest is {len(self.disk.journal)}")
            self.disk.snapshots[seq] = blob
            for old in sorted(self.disk.snapshots)[:-SNAPSHOTS_KEPT]:
                del self.disk.snapshots[old]

    def load_snapshot(self) -> tuple[int, bytes] | None:
        with self._changed:
            self._may_read()
            newest = max(self.disk.snapshots, default=None)
            return None if newest is None else (newest, self.disk.snapshots[newest])

    def history_list(
        self,
        tenant: str | None,
        before: HistoryCursor | None,
        limit: int,
        *,
        user: str | None = None,
        state: str | None = None,
    ) -> list[HistoryRow]:
        with self._changed:
            self._may_read()
            rows = sorted(self.disk.history.values(), key=lambda row: row.cursor, reverse=True)
            matching = [
                row
                for row in rows
                if (tenant is None or row.tenant == tenant)
                and (user is None or row.user == user)
                and (state is None or row.state == state)
                and (before is None or row.cursor < before)
            ]
            return matching[: max(0, limit)]

    def history_get(self, tenant: str, job: str) -> HistoryRow | None:
        with self._changed:
            self._may_read()
            return self.disk.history.get((tenant, job))

    def add_denials(self, denials: Sequence[Denial]) -> None:
        with self._changed:
            self._may_write()
            self.disk.denials.extend(storable_denial(denial) for denial in denials)
            del self.disk.denials[:-DENIALS_KEPT]

    def list_denials(self, limit: int) -> list[Denial]:
        with self._changed:
            self._may_read()
            return self.disk.denials[::-1][: max(0, limit)]

    def release_ballast(self) -> bool:
        with self._changed:
            self._may_read()
            held, self._ballast = self._ballast, False
            return held

    def restore_ballast(self) -> bool:
        with self._changed:
            self._may_read()
            self._ballast = self._ballast or not self.disk.full
            return self._ballast

    # -- accidents

    def hold_appends(self) -> None:
        """Let every append wait before its commit, as a slow disk does, until `release_appends`."""
        with self._changed:
            self._holding = True

    def release_appends(self) -> None:
        """End `hold_appends`; what waited commits."""
        with self._changed:
            self._holding = False
            self._changed.notify_all()

    @property
    def appends_waiting(self) -> int:
        """How many appends wait at this moment."""
        with self._changed:
            return self._waiting

    def fail_appends(self, error: StoreError, times: int = 1, *, after_commit: bool = False) -> None:
        """Let the next `times` appends raise `error` with nothing durable or, worse, when all of it already is."""
        with self._changed:
            self._failures.extend([(error, after_commit)] * times)

    def heal(self) -> None:
        """Forget the failures that are still to come."""
        with self._changed:
            self._failures.clear()

    def crash(self) -> None:
        """Die as by kill -9: appends under way are lost and raise in their callers; the disk stays. `open` restarts."""
        with self._changed:
            self._open = False
            self._life += 1
            self._holding = False
            self._failures.clear()
            self._changed.notify_all()

    # -- inside; the lock is held

    def _may_read(self) -> None:
        if not self._open:
            raise StoreClosed("the store is closed; open it first")

    def _may_write(self) -> None:
        self._may_read()
        if self.disk.full and self._ballast:
            raise StoreFull("the disk of the store is full; nothing was written; free space, or release the ballast")

    def _check_append(self, records: Sequence[Record], term: int, history: Sequence[HistoryRow]) -> None:
        self._may_write()
        if term != self.disk.term or term == 0:
            raise TermLost(term, self.disk.term, self.disk.holder)
        if records:
            check_next(records[0].seq, len(self.disk.journal))
        seen: set[tuple[str, str]] = set()
        for row in history:
            if (row.tenant, row.job) in self.disk.history or (row.tenant, row.job) in seen:
                raise RecordRefused(f"job {row.tenant}/{row.job} is in the history already; nothing was written")
            seen.add((row.tenant, row.job))

    def _wait_while_held(self) -> None:
        life = self._life
        self._waiting += 1
        try:
            freed = self._changed.wait_for(lambda: not self._holding or not self._open, timeout=HOLD_LIMIT_S)
        finally:
            self._waiting -= 1
        if not self._open or life != self._life:
            raise StoreClosed("the store went away before the append was committed; nothing of it was written")
        if not freed:
            raise StoreUnavailable(f"the append was held for {HOLD_LIMIT_S:.0f} s and gave up; nothing was written")


def _wanted(record: Record, wanted: AuditFilter) -> bool:
    return (
        (wanted.user is None or record.user == wanted.user)
        and (wanted.tenant is None or record.tenant == wanted.tenant)
        and (wanted.kind is None or record.kind == wanted.kind)
        and (wanted.since_ms is None or record.at_ms >= wanted.since_ms)
        and (wanted.before_seq is None or record.seq < wanted.before_seq)
    )


def _page(records: list[Record]) -> list[Record]:
    size = 0
    for count, record in enumerate(records, start=1):
        size += len(record.payload)
        if size > PAGE_BYTES_MAX:
            return records[:count]
    return records
