"""Records and history rows by the number, for the store's tests."""

from __future__ import annotations

from gpushare.store.port import HistoryRow, Record


def make_records(first: int, count: int = 1, *, term: int = 1, size: int = 0, **texts: str) -> list[Record]:
    """`count` records from number `first`; each payload tells its number, padded by `size` bytes."""
    fields = {"kind": "JobCreated", "tenant": "vision", "user": "anna", "role": "user", "request_id": "r", **texts}
    return [
        Record(seq=seq, at_ms=1_000 + seq, term=term, payload=b'{"n":%d}' % seq + b" " * size, **fields)
        for seq in range(first, first + count)
    ]


def make_row(tenant: str, job: str, ended_ms: int, **texts: str) -> HistoryRow:
    """One ended job whose blob is its own id."""
    fields = {"user": "anna", "state": "SUCCEEDED", **texts}
    return HistoryRow(tenant=tenant, job=job, created_ms=1, ended_ms=ended_ms, blob=job.encode(), **fields)
