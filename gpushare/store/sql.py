"""The store in SQL, written in SQLAlchemy Core alone; a `Database` supplies what differs between databases.

May import sqlalchemy, msgspec, the port and the schema. Invariants: each write is one transaction that first reads the
term and the end of the journal under the write lock; every value is a bound parameter; text reaches SQL only after the
port's checks; failures leave as the port's errors.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from msgspec.structs import astuple
from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from gpushare.store import schema
from gpushare.store.port import (
    DENIALS_KEPT,
    INT_MAX,
    PAGE_BYTES_MAX,
    SNAPSHOTS_KEPT,
    AuditFilter,
    Denial,
    HistoryCursor,
    HistoryRow,
    Record,
    RecordRefused,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    TermLost,
    check_append,
    check_next,
    storable,
    storable_denial,
)

#: How long a write waits for another thread's write.
WRITER_WAIT_S = 30.0
_LEADER_ID = 1

_log = logging.getLogger(__name__)

_journal, _history, _denials = schema.journal.c, schema.history.c, schema.denials.c
_END_OF_JOURNAL = select(func.coalesce(func.max(_journal.seq), 0))
# FOR UPDATE is the fence where transactions of several writers run side by side; SQLite's write lock needs none.
_FENCE = (
    select(schema.leader.c.term, schema.leader.c.holder, _END_OF_JOURNAL.scalar_subquery())
    .where(schema.leader.c.id == _LEADER_ID)
    .with_for_update(of=schema.leader)
)
_TIME_OF = select(_journal.at_ms).where(_journal.seq == bindparam("seq"))


class Database(Protocol):
    """One kind of database: engines, exclusive access, and the meaning of its failures."""

    @property
    def where(self) -> str:
        """What to call it in a message."""

    @property
    def writer(self) -> Engine:
        """For writes; its transactions take the write lock when they begin. Raises `StoreClosed`."""

    @property
    def reader(self) -> Engine:
        """For reads beside the writer. Raises `StoreClosed`."""

    def open(self) -> bool:
        """Connect; True where there are no tables yet. Raises `StoreRefused`, having given everything back."""

    def close(self) -> None:
        """Disconnect; does nothing when not connected."""

    def insert_many(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert whole rows, their values in the order of the table's columns, the fastest way there is."""

    def explain(self, failure: SQLAlchemyError) -> StoreError:
        """The port's error for a failure."""

    def release_ballast(self) -> bool:
        """As in `Store`."""

    def restore_ballast(self) -> bool:
        """As in `Store`."""


class SqlStore:
    """Implements `Store` on a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._write_lock = threading.Lock()
        self._term = 0

    def open(self) -> None:
        is_new = self._database.open()
        try:
            if is_new:
                with self._writing() as connection:
                    _create_tables(connection)
            # Proves the settings of both kinds of connection before anybody relies on them.
            with self._writing() as connection:
                _read_fence(connection)
            self.last_seq()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        with self._write_lock:
            self._term = 0
            self._database.close()

    def acquire_term(self, holder: str) -> int:
        with self._writing() as connection:
            term = _read_fence(connection)[0] + 1
            row = update(schema.leader).where(schema.leader.c.id == _LEADER_ID)
            connection.execute(row.values(term=term, holder=holder))
        self._term = term
        return term

    def append(self, records: Sequence[Record], term: int, history: Sequence[HistoryRow] = ()) -> None:
        check_append(records, term, history)
        with self._writing() as connection:
            last = _pass_fence(connection, term)
            if records:
                check_next(records[0].seq, last)
                self._database.insert_many(connection, schema.journal, [astuple(record) for record in records])
            if history:
                self._database.insert_many(connection, schema.history, [astuple(row) for row in history])

    def last_seq(self) -> int:
        with self._reading() as connection:
            return int(connection.execute(_END_OF_JOURNAL).scalar_one())

    def read(self, after_seq: int, limit: int) -> list[Record]:
        start = _bounded(after_seq)
        wanted = select(schema.journal).where(_journal.seq > start).order_by(_journal.seq).limit(_bounded(limit))
        with self._reading() as connection:
            records = _page(connection.execute(wanted))
        if records and records[-1].seq != start + len(records):
            raise StoreDamaged(
                f"{self._database.where} lacks a journal record between {start} and {records[-1].seq}; "
                "stop the scheduler and restore the last backup"
            )
        return records

    def read_audit(self, wanted: AuditFilter, limit: int) -> list[Record]:
        if not _findable(wanted.user, wanted.tenant, wanted.kind):
            return []
        with self._reading() as connection:
            after = 0 if wanted.since_ms is None else _last_before(connection, wanted.since_ms)
            return _page(connection.execute(_audit_query(wanted, after).limit(_bounded(limit))))

    def save_snapshot(self, seq: int, blob: bytes) -> None:
        column = schema.snapshot.c.seq
        with self._writing() as connection:
            last = _pass_fence(connection, self._term)
            if not 0 <= seq <= last:
                raise RecordRefused(f"a snapshot at {seq} needs its record; the newest is {last}")
            connection.execute(delete(schema.snapshot).where(column == seq))
            connection.execute(insert(schema.snapshot).values(seq=seq, crc32=zlib.crc32(blob), blob=blob))
            kept = select(column).order_by(column.desc()).limit(SNAPSHOTS_KEPT)
            connection.execute(delete(schema.snapshot).where(column.not_in(kept)))

    def load_snapshot(self) -> tuple[int, bytes] | None:
        newest_first = select(schema.snapshot).order_by(schema.snapshot.c.seq.desc())
        with self._reading() as connection:
            for seq, crc32, blob in connection.execute(newest_first):
                if zlib.crc32(blob) == crc32:
                    return seq, blob
                _log.warning(
                    "%s: the snapshot at record %d is damaged; an older one is used",
                    self._database.where,
                    seq,
                )
        return None

    def history_list(
        self,
        tenant: str | None,
        before: HistoryCursor | None,
        limit: int,
        *,
        user: str | None = None,
        state: str | None = None,
    ) -> list[HistoryRow]:
        if not _findable(tenant, user, state, *(before[1:] if before else ())):
            return []
        place = (_history.ended_ms, _history.tenant, _history.job)
        wanted = select(schema.history).order_by(*(column.desc() for column in place)).limit(_bounded(limit))
        for column, value in ((_history.tenant, tenant), (_history.user_name, user), (_history.state, state)):
            if value is not None:
                wanted = wanted.where(column == value)
        if before is not None:
            wanted = wanted.where(tuple_(*place) < tuple_(_bounded(before.ended_ms), before.tenant, before.job))
        with self._reading() as connection:
            return [HistoryRow(*row) for row in connection.execute(wanted)]

    def history_get(self, tenant: str, job: str) -> HistoryRow | None:
        if not _findable(tenant, job):
            return None
        wanted = select(schema.history).where(_history.tenant == tenant, _history.job == job)
        with self._reading() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else HistoryRow(*row)

    def add_denials(self, denials: Sequence[Denial]) -> None:
        columns = [column.name for column in schema.denials.columns if column.name != "id"]
        rows = [dict(zip(columns, astuple(storable_denial(denial)), strict=True)) for denial in denials]
        if not rows:
            return
        oldest_kept = select(func.max(_denials.id) - DENIALS_KEPT).scalar_subquery()
        with self._writing() as connection:
            connection.execute(insert(schema.denials), rows)
            connection.execute(delete(schema.denials).where(_denials.id <= oldest_kept))

    def list_denials(self, limit: int) -> list[Denial]:
        newest_first = select(schema.denials).order_by(_denials.id.desc()).limit(_bounded(limit))
        with self._reading() as connection:
            return [Denial(*row[1:]) for row in connection.execute(newest_first)]

    def release_ballast(self) -> bool:
        return self._database.release_ballast()

    def restore_ballast(self) -> bool:
        return self._database.restore_ballast()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, or gone with the error that ended it."""
        if not self._write_lock.acquire(timeout=WRITER_WAIT_S):
            raise StoreUnavailable(
                f"{self._database.where} was busy with another write for {WRITER_WAIT_S:.0f} s; nothing was written"
            )
        try:
            with self._explained(), self._database.writer.begin() as connection:
                yield connection
        finally:
            self._write_lock.release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._explained(), self._database.reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as failure:
            raise self._database.explain(failure) from failure


def _create_tables(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    connection.execute(insert(schema.meta).values(name="schema_version", value=str(schema.SCHEMA_VERSION)))
    connection.execute(insert(schema.leader).values(id=_LEADER_ID, term=0, holder=""))


def _read_fence(connection: Connection) -> tuple[int, str, int]:
    """Term, holder and last record. Inside a write transaction nobody else can change them."""
    row = connection.execute(_FENCE).one_or_none()
    if row is None:
        raise StoreDamaged("the journal has lost the row of its leader; stop the scheduler and restore the last backup")
    return row[0], row[1], row[2]


def _pass_fence(connection: Connection, term: int) -> int:
    """The last record, if `term` (never 0) is still the newest. Raises `TermLost`."""
    current, holder, last = _read_fence(connection)
    if term != current or term == 0:
        raise TermLost(term, current, holder)
    return last


def _audit_query(wanted: AuditFilter, after_seq: int) -> Select[Any]:
    query = select(schema.journal).order_by(_journal.seq.desc())
    if after_seq:
        query = query.where(_journal.seq > after_seq)
    if wanted.before_seq is not None:
        query = query.where(_journal.seq < _bounded(wanted.before_seq))
    for column, value in (
        (_journal.user_name, wanted.user),
        (_journal.tenant, wanted.tenant),
        (_journal.kind, wanted.kind),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


def _last_before(connection: Connection, since_ms: int) -> int:
    """The last record older than `since_ms`, 0 if none; by bisection, since an index would cost every append."""
    low, high = 0, int(connection.execute(_END_OF_JOURNAL).scalar_one()) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if connection.execute(_TIME_OF, {"seq": middle}).scalar_one() < since_ms:
            low = middle
        else:
            high = middle
    return low


def _page(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Records of the rows, up to the one whose payload passes `PAGE_BYTES_MAX` together with those before it."""
    records: list[Record] = []
    size = 0
    for row in rows:
        record = Record(*row)
        records.append(record)
        size += len(record.payload)
        if size > PAGE_BYTES_MAX:
            break
    return records


def _findable(*texts: str | None) -> bool:
    """Whether the texts can occur in a stored row at all; what cannot never reaches SQL."""
    return all(text is None or storable(text) for text in texts)


def _bounded(number: int) -> int:
    return max(0, min(number, INT_MAX))
