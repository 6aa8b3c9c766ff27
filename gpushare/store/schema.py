"""The tables of the SQL store, in SQLAlchemy Core.

May import sqlalchemy alone. The columns of `journal`, `history` and `denials` stand in the order of the fields of the
structs in `port.py`: rows are built and read by position. `SCHEMA_VERSION` rises with every change of a table.
"""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import BigInteger

SCHEMA_VERSION = 1

metadata = MetaData()

# SQLite makes a 64-bit row id of INTEGER alone, and STRICT tables know no BIGINT.
_INT64 = BigInteger().with_variant(Integer, "sqlite")


def _int(name: str, *, primary_key: bool = False) -> Column[int]:
    return Column(name, _INT64, primary_key=primary_key, autoincrement=False, nullable=False)


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=primary_key, nullable=False)


def _blob(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


meta = Table("meta", metadata, _text("name", primary_key=True), _text("value"), sqlite_strict=True)

#: One row: the newest term and who holds it.
leader = Table("leader", metadata, _int("id", primary_key=True), _int("term"), _text("holder"), sqlite_strict=True)

journal = Table(
    "journal",
    metadata,
    _int("seq", primary_key=True),
    _int("at_ms"),
    _int("term"),
    _text("kind"),
    _text("tenant"),
    _text("user_name"),
    _text("role"),
    _text("request_id"),
    _blob("payload"),
    sqlite_strict=True,
)
Index("journal_tenant", journal.c.tenant, journal.c.seq)
Index("journal_user", journal.c.user_name, journal.c.seq)

snapshot = Table(
    "snapshot",
    metadata,
    _int("seq", primary_key=True),
    _int("crc32"),
    _blob("blob"),
    sqlite_strict=True,
)

history = Table(
    "history",
    metadata,
    _text("tenant", primary_key=True),
    _text("job", primary_key=True),
    _int("created_ms"),
    _int("ended_ms"),
    _text("user_name"),
    _text("state"),
    _blob("blob"),
    sqlite_strict=True,
)
Index("history_ended", history.c.ended_ms, history.c.tenant, history.c.job)
Index("history_tenant_ended", history.c.tenant, history.c.ended_ms, history.c.job)

denials = Table(
    "denials",
    metadata,
    Column("id", _INT64, primary_key=True, autoincrement=True, nullable=False),
    _int("at_ms"),
    _text("user_name"),
    _text("role"),
    _text("tenant"),
    _text("rpc"),
    _text("reason"),
    _text("detail"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)
