"""What is particular to SQLite: how it is opened safely, what its failures mean, and the online backup.

May import sqlite3, sqlalchemy, the port, the schema and the disk checks; all SQL that is not SQLAlchemy Core is here.
Invariants: WAL and `synchronous=FULL` on every writing connection, read back and not merely set; one process per
database (lock file); a database of another version, owner or making is refused without touching it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from gpushare.store.disk import (
    MIB,
    Ballast,
    LockFile,
    create_private,
    free_bytes,
    refuse_directory,
    refuse_file,
    refuse_network,
    refuse_open_to_others,
    sync_directory,
)
from gpushare.store.port import (
    RecordRefused,
    Refusal,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from gpushare.store.schema import SCHEMA_VERSION
from gpushare.store.sql import SqlStore

#: How long a write waits for another process that holds the database, such as a person's sqlite3 shell.
BUSY_TIMEOUT_S = 5.0
#: Readers at a time; the next one waits.
READERS_MAX = 4
READER_WAIT_S = 10.0
DEFAULT_BALLAST_MIB = 8

_SYNCHRONOUS_FULL = 2
# Primary result codes (sqlite3.h); an extended code carries its primary one in the low byte.
_FULL, _CORRUPT, _NOTADB = 13, 11, 26


class SqliteStore(SqlStore):
    """The store in one SQLite file at `path`, for a scheduler of its own. Implements `Store`."""

    def __init__(self, path: Path | str, *, ballast_mib: int = DEFAULT_BALLAST_MIB) -> None:
        self.database = SqliteDatabase(Path(path), ballast_mib)
        super().__init__(self.database)

    def backup(self, target: Path | str) -> None:
        """Write a consistent copy to the new file `target` while the store is in use; durable when it returns.

        A copy of the file made by other means is damaged where the write-ahead log holds commits. Raises `StoreError`.
        """
        self.database.backup(Path(target))


class SqliteDatabase:
    """The `Database` of `SqlStore`: engines, lock, ballast and the meaning of failures for one SQLite file."""

    def __init__(self, path: Path, ballast_mib: int) -> None:
        # The real name, so that a symbolic link to the file meets the same lock.
        self.path = path.resolve()
        self._lock = LockFile(self.path.with_name(self.path.name + ".lock"), self.path)
        self._ballast = Ballast(self.path.with_name(self.path.name + ".ballast"), ballast_mib)
        self._writer: Engine | None = None
        self._reader: Engine | None = None
        self._statements: dict[str, str] = {}

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def writer(self) -> Engine:
        if self._writer is None:
            raise StoreClosed(f"the journal {self.path} is closed; open it first")
        return self._writer

    @property
    def reader(self) -> Engine:
        if self._reader is None:
            raise StoreClosed(f"the journal {self.path} is closed; open it first")
        return self._reader

    def open(self) -> bool:
        """Check, lock and connect; True where the database is new and needs its tables. Raises `StoreRefused`."""
        if self._writer is not None:
            raise StoreRefused(
                Refusal.LOCKED, f"the journal {self.path} is open in this process already; close it first"
            )
        refuse_directory(self.path.parent)
        refuse_network(self.path.parent)
        refuse_file(self.path)
        self._lock.acquire()
        try:
            return self._open_locked()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> bool:
        exists = refuse_file(self.path)  # again: until now, somebody else could have been making it
        version = _stored_version(self.path) if exists else None
        if version is not None and version != SCHEMA_VERSION:
            raise StoreRefused(
                Refusal.WRONG_SCHEMA,
                f"the journal {self.path} has schema version {version}, this program writes version {SCHEMA_VERSION}; "
                "run the version of gpushare that made it, or choose another state directory",
            )
        if version is not None:
            refuse_open_to_others(self.path)
        if not self._ballast.hold():
            raise StoreRefused(
                Refusal.DISK_FULL,
                f"the disk of {self.path} has {free_bytes(self.path.parent) // MIB} MiB free; "
                f"free at least {self._ballast.needs_mib} MiB before the scheduler starts",
            )
        if not exists:
            create_private(self.path)
        self._writer = _engine(self.path, writing=True)
        self._reader = _engine(self.path, writing=False)
        return version is None

    def close(self) -> None:
        """Give connections and lock back; does nothing where they are not held."""
        # Readers first: the last connection to close folds the log into the database, and only a writer can.
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = None
        self._lock.release()

    def insert_many(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows given by position: at 1,000 rows twice as fast as Core's own way, from dictionaries."""
        statement = self._statements.get(table.name)
        if statement is None:
            statement = self._statements[table.name] = str(insert(table).compile(dialect=connection.dialect))
        connection.exec_driver_sql(statement, list(rows))

    def explain(self, failure: SQLAlchemyError) -> StoreError:
        """The port's error for a failure of SQLAlchemy or SQLite."""
        cause = failure.orig if isinstance(failure, DBAPIError) else None
        code = getattr(cause, "sqlite_errorcode", None) or 0
        name = getattr(cause, "sqlite_errorname", None) or type(failure).__name__
        if isinstance(failure, IntegrityError):
            return RecordRefused(f"the journal {self.path} holds that row already ({cause}); nothing was written")
        if code & 0xFF in (_CORRUPT, _NOTADB):
            return StoreDamaged(
                f"the journal {self.path} is damaged ({name}: {cause}); stop the scheduler, "
                "check the disk and restore the last backup"
            )
        if self._writer is not None:
            # A connection that met a failing disk is not used again. Closing the last one also drops what a failed
            # commit may have left behind the end of the log.
            self._writer.dispose()
        # SQLite says "full" for ENOSPC alone; a quota or the shared-memory file report it as an I/O error.
        if code & 0xFF == _FULL or free_bytes(self.path.parent) < MIB:
            return StoreFull(
                f"the disk of the journal {self.path} is full ({name}); nothing was written; free space there"
            )
        return StoreUnavailable(
            f"the journal {self.path} did not take the call ({name}: {cause or failure}); nothing was written; "
            "check the disk and whether another program holds the file"
        )

    def release_ballast(self) -> bool:
        return self._ballast.release()

    def restore_ballast(self) -> bool:
        return self._ballast.hold()

    def backup(self, target: Path) -> None:
        """Copy the database to the new file `target` through SQLite's backup interface."""
        partial = target.with_name(target.name + ".partial")
        with _pooled(self.reader) as source:
            try:
                create_private(partial)
                with contextlib.closing(sqlite3.connect(_uri(partial, "rw"), uri=True)) as copy:
                    source.backup(copy)
                if target.exists():
                    raise StoreUnavailable(f"{target} exists already; name a new file for the backup")
                os.rename(partial, target)
                sync_directory(target.parent)
            except (sqlite3.Error, OSError) as failure:
                raise StoreUnavailable(f"the backup to {target} failed ({failure}); nothing of it is kept") from failure
            finally:
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _pooled(engine: Engine) -> Iterator[sqlite3.Connection]:
    borrowed = engine.raw_connection()
    try:
        connection = borrowed.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        yield connection
    finally:
        borrowed.close()


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _engine(path: Path, *, writing: bool) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=_connector(path, writing=writing),
        poolclass=QueuePool,
        pool_size=1 if writing else READERS_MAX,
        max_overflow=0,
        pool_timeout=READER_WAIT_S,
    )
    if writing:
        # IMMEDIATE takes the write lock at once: what the transaction reads first, the term, is then what it writes on.
        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _connector(path: Path, *, writing: bool) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        # isolation_level None: the module starts no transactions of its own. mode=rw: it creates no file either.
        connection = sqlite3.connect(
            _uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            if writing:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                assert_safe(connection, path)
            else:
                connection.execute("PRAGMA query_only=ON")
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def assert_safe(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreRefused` unless a commit of this connection survives a power cut: read back, not believed."""
    journal_mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if journal_mode != "wal" or synchronous != _SYNCHRONOUS_FULL:
        raise StoreRefused(
            Refusal.UNSAFE_SETTINGS,
            f"SQLite runs {path} with journal_mode={journal_mode} and synchronous={synchronous} instead of wal and "
            f"{_SYNCHRONOUS_FULL} (FULL): a power cut could lose acknowledged jobs; use a local file system",
        )


def _stored_version(path: Path) -> int | None:
    """The schema version in the file, None where it has no tables yet. Leaves file and log as they are."""
    try:
        with contextlib.closing(sqlite3.connect(_uri(path, "ro"), uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return None
            if "meta" in tables:
                row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
                if row is not None:
                    return int(row[0])
    except (sqlite3.DatabaseError, ValueError) as failure:
        raise StoreRefused(
            Refusal.NOT_A_STORE,
            f"the journal {path} cannot be read ({failure}); check the disk, restore the last backup, "
            "or choose another state directory",
        ) from failure
    raise StoreRefused(
        Refusal.NOT_A_STORE,
        f"{path} is a SQLite database of another program; move it away, or choose another state directory",
    )
