"""How fast the SQLite journal commits: one, a hundred and a thousand records a transaction, each with its fsync.

Run: python -m benchmarks.store_append [DIRECTORY]. The directory decides which disk is measured (default: the current
one); it is left as it was. Prints medians and the worst of a hundred.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from gpushare.store.port import Record
from gpushare.store.sqlite import SqliteStore

#: Records a commit, commits measured.
ROUNDS = ((1, 2_000), (100, 300), (1_000, 100))
PAYLOAD_BYTES = 300


def batch(first: int, count: int, term: int) -> list[Record]:
    """Records shaped like submits: many users and tenants, unique request ids, a payload of usual size."""
    return [
        Record(
            seq=seq,
            at_ms=1_700_000_000_000 + seq,
            term=term,
            kind="JobCreated",
            tenant=f"tenant-{seq % 20}",
            user=f"user-{seq % 50}",
            role="user",
            request_id=f"{seq:032x}",
            payload=b"{" + b"x" * PAYLOAD_BYTES + b"}",
        )
        for seq in range(first, first + count)
    ]


def measure(store: SqliteStore, term: int, count: int, commits: int) -> list[float]:
    """Seconds of each commit, sorted."""
    taken = []
    for _ in range(commits):
        records = batch(store.last_seq() + 1, count, term)
        began = time.perf_counter()
        store.append(records, term)
        taken.append(time.perf_counter() - began)
    return sorted(taken)


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else "."
    with tempfile.TemporaryDirectory(dir=where, prefix="store-append-") as directory:
        store = SqliteStore(Path(directory) / "journal.db")
        store.open()
        term = store.acquire_term("benchmark")
        print(f"{'records':>8} {'median ms':>10} {'p99 ms':>10} {'records/s':>10}")
        for count, commits in ROUNDS:
            taken = measure(store, term, count, commits)
            median = statistics.median(taken)
            p99 = taken[int(len(taken) * 0.99)]
            print(f"{count:>8} {median * 1e3:>10.2f} {p99 * 1e3:>10.2f} {count / median:>10.0f}")
        store.close()


if __name__ == "__main__":
    main()
