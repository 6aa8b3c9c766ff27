"""What every store promises, run on each implementation."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from store_builders import make_records, make_row

from gpushare.store import port
from gpushare.store.port import AuditFilter, Denial, RecordRefused, Store, StoreClosed, TermLost


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.last_seq() == 0
    assert store.read(0, 10) == []
    assert store.load_snapshot() is None
    assert store.history_list(None, None, 10) == []
    assert store.history_get("vision", "1") is None
    assert store.list_denials(10) == []


def test_what_was_appended_is_read_back_in_order_and_after_a_restart(reopened: Callable[[], Store]) -> None:
    store = reopened()
    term = store.acquire_term("one")
    written = make_records(1, 3, term=term)
    store.append(written, term)
    odd = make_records(4, 2, term=term, user="émile ⚡", tenant="", request_id="")
    store.append(odd, term)

    for _ in range(2):
        assert store.last_seq() == 5
        assert store.read(0, 10) == written + odd
        assert store.read(2, 2) == (written + odd)[2:4]
        assert store.read(5, 10) == []
        assert store.read(0, 0) == []
        store = reopened()


def test_any_bytes_make_a_payload(store: Store) -> None:
    term = store.acquire_term("one")
    [record] = make_records(1, term=term)
    blob = bytes(range(256)) * 5000
    store.append([port.Record(1, record.at_ms, term, "X", "", "", "", "", blob)], term)
    assert store.read(0, 1)[0].payload == blob


def test_a_page_ends_early_when_its_payloads_grow_large(store: Store) -> None:
    term = store.acquire_term("one")
    payload = port.PAGE_BYTES_MAX // 4
    store.append(make_records(1, 7, term=term, size=payload), term)
    seen = 0
    pages = 0
    while page := store.read(seen, 100):
        assert sum(len(record.payload) for record in page[:-1]) <= port.PAGE_BYTES_MAX
        seen = page[-1].seq
        pages += 1
    assert seen == 7
    assert pages == 2
    assert len(store.read_audit(AuditFilter(), 100)) == 4


@pytest.mark.parametrize("first", [1, 3, 5, 9])
def test_a_batch_that_does_not_continue_the_journal_is_refused(store: Store, first: int) -> None:
    term = store.acquire_term("one")
    store.append(make_records(1, 3, term=term), term)
    with pytest.raises(RecordRefused, match="the journal ends at 3"):
        store.append(make_records(first, 2, term=term), term)
    assert store.last_seq() == 3
    assert len(store.read(0, 10)) == 3


def test_a_batch_with_a_gap_inside_is_refused_whole(store: Store) -> None:
    term = store.acquire_term("one")
    with pytest.raises(RecordRefused, match="contiguous"):
        store.append(make_records(1, 2, term=term) + make_records(4, 1, term=term), term)
    assert store.last_seq() == 0


def test_a_record_of_another_term_is_refused(store: Store) -> None:
    term = store.acquire_term("one")
    with pytest.raises(RecordRefused, match="term"):
        store.append(make_records(1, 1, term=term + 1), term)
    assert store.last_seq() == 0


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff", "\ud83d\ude00"])
@pytest.mark.parametrize("field", ["kind", "tenant", "user", "role", "request_id"])
def test_text_that_no_database_stores_is_refused(store: Store, field: str, text: str) -> None:
    term = store.acquire_term("one")
    with pytest.raises(RecordRefused, match="surrogate"):
        store.append(make_records(1, 1, term=term) + make_records(2, 1, term=term, **{field: text}), term)
    assert store.last_seq() == 0


@pytest.mark.parametrize("value", [-1, 2**63])
def test_numbers_outside_a_64_bit_column_are_refused(store: Store, value: int) -> None:
    term = store.acquire_term("one")
    with pytest.raises(RecordRefused, match="at_ms"):
        store.append([port.Record(1, value, term, "X", "", "", "", "", b"")], term)
    with pytest.raises(RecordRefused, match="ended_ms"):
        store.append(make_records(1, 1, term=term), term, [make_row("vision", "1", value)])
    assert store.last_seq() == 0


def test_terms_rise_and_outlive_a_restart(reopened: Callable[[], Store]) -> None:
    store = reopened()
    terms = [store.acquire_term("one"), store.acquire_term("two")]
    terms.append(reopened().acquire_term("three"))
    assert terms == [1, 2, 3]


def test_a_newer_term_fences_the_older_writer(store: Store) -> None:
    old = store.acquire_term("one:10")
    store.append(make_records(1, 1, term=old), old)
    new = store.acquire_term("two:20")
    with pytest.raises(TermLost, match="two:20") as lost:
        store.append(make_records(2, 1, term=old), old, [make_row("vision", "1", 5)])
    assert (lost.value.held, lost.value.current) == (old, new)
    assert store.last_seq() == 1
    assert store.history_list(None, None, 10) == []
    store.append(make_records(2, 1, term=new), new)
    assert [record.term for record in store.read(0, 10)] == [old, new]


def test_nobody_writes_without_a_term(reopened: Callable[[], Store]) -> None:
    store = reopened()
    with pytest.raises(TermLost):
        store.append(make_records(1, 1, term=0), 0)
    with pytest.raises(TermLost):
        store.save_snapshot(0, b"")
    store.acquire_term("one")
    store = reopened()
    with pytest.raises(TermLost):  # the term of an earlier life of this process is not this one's
        store.save_snapshot(0, b"")
    assert store.load_snapshot() is None


def test_history_is_written_with_its_records_or_not_at_all(store: Store) -> None:
    term = store.acquire_term("one")
    rows = [make_row("vision", "1", 10), make_row("vision", "42_3", 11, user="", state="FAILED")]
    store.append(make_records(1, 2, term=term), term, rows)
    assert store.history_get("vision", "1") == rows[0]
    assert store.history_get("vision", "42_3") == rows[1]
    assert store.history_get("nlp", "1") is None
    assert store.history_get("vision", "1\0") is None
    assert store.history_get("vision", "\ud800") is None

    again = [make_row("vision", "2", 12), make_row("vision", "1", 13)]
    with pytest.raises(RecordRefused):
        store.append(make_records(3, 1, term=term), term, again)
    twice = [make_row("vision", "3", 12), make_row("vision", "3", 13)]
    with pytest.raises(RecordRefused):
        store.append(make_records(3, 1, term=term), term, twice)
    assert store.last_seq() == 2
    assert store.history_get("vision", "2") is None
    assert store.history_get("vision", "3") is None
    assert store.history_get("vision", "1") == rows[0]

    store.append(make_records(3, 1, term=term), term, again[:1])
    assert store.history_get("vision", "2") == again[0]


def test_history_pages_newest_end_first_and_loses_no_job_of_a_common_end(store: Store) -> None:
    term = store.acquire_term("one")
    rows = [
        make_row(tenant, str(job), 100 + job // 10, user=f"u{job % 2}", state="FAILED" if job % 3 else "SUCCEEDED")
        for job in range(35)
        for tenant in ("nlp", "vision")
    ]
    store.append([], term, rows)
    expected = sorted(rows, key=lambda row: (row.ended_ms, row.tenant, row.job), reverse=True)

    def pages(**wanted: str | None) -> list[port.HistoryRow]:
        listed: list[port.HistoryRow] = []
        cursor = None
        while page := store.history_list(
            wanted.get("tenant"), cursor, 7, user=wanted.get("user"), state=wanted.get("state")
        ):
            listed += page
            cursor = page[-1].cursor
        return listed

    assert pages() == expected
    assert pages(tenant="nlp") == [row for row in expected if row.tenant == "nlp"]
    assert pages(user="u1", state="FAILED") == [row for row in expected if row.user == "u1" and row.state == "FAILED"]
    assert pages(tenant="nobody") == []
    assert store.history_list("nlp\0", None, 5) == []


def test_the_newest_two_snapshots_are_kept(reopened: Callable[[], Store]) -> None:
    store = reopened()
    term = store.acquire_term("one")
    store.append(make_records(1, 30, term=term), term)
    store.save_snapshot(0, b"empty")
    assert store.load_snapshot() == (0, b"empty")
    store.save_snapshot(10, b"ten")
    store.save_snapshot(20, b"twenty")
    store.save_snapshot(20, b"twenty again")
    assert store.load_snapshot() == (20, b"twenty again")
    assert reopened().load_snapshot() == (20, b"twenty again")
    assert store.last_seq() == 30  # a snapshot takes nothing out of the journal
    assert len(store.read(0, 100)) == 30


def test_a_snapshot_of_what_is_not_durable_is_refused(store: Store) -> None:
    term = store.acquire_term("one")
    store.append(make_records(1, 3, term=term), term)
    with pytest.raises(RecordRefused):
        store.save_snapshot(4, b"future")
    with pytest.raises(RecordRefused):
        store.save_snapshot(-1, b"past")
    assert store.load_snapshot() is None


def test_the_audit_filters_and_pages_backwards(store: Store) -> None:
    term = store.acquire_term("one")
    written = []
    for seq in range(1, 61):
        written += make_records(
            seq,
            1,
            term=term,
            user=f"u{seq % 3}",
            tenant=("vision", "nlp")[seq % 2],
            kind=("JobCreated", "JobCancelled")[seq % 4 == 0],
        )
    store.append(written, term)
    newest_first = written[::-1]

    def pages(wanted: AuditFilter) -> list[port.Record]:
        listed: list[port.Record] = []
        before = wanted.before_seq
        while page := store.read_audit(
            AuditFilter(wanted.user, wanted.tenant, wanted.kind, wanted.since_ms, before), 4
        ):
            listed += page
            before = page[-1].seq
        return listed

    assert pages(AuditFilter()) == newest_first
    assert pages(AuditFilter(user="u1")) == [r for r in newest_first if r.user == "u1"]
    assert pages(AuditFilter(tenant="nlp", kind="JobCreated")) == [
        r for r in newest_first if r.tenant == "nlp" and r.kind == "JobCreated"
    ]
    for since_ms in (0, 1_001, 1_002, 1_030, 1_060, 1_061, 10**15):
        assert pages(AuditFilter(since_ms=since_ms)) == [r for r in newest_first if r.at_ms >= since_ms]
    assert pages(AuditFilter(before_seq=5, user="u1")) == [r for r in newest_first if r.seq < 5 and r.user == "u1"]
    for nonsense in ("a\0", "\udc00", "' OR 1=1 --"):
        assert store.read_audit(AuditFilter(user=nonsense), 10) == []


def test_many_records_at_one_moment_are_all_since_that_moment(store: Store) -> None:
    term = store.acquire_term("one")
    times = [10, 20, 20, 20, 20, 30]
    records = [port.Record(seq, at, term, "X", "", "", "", "", b"") for seq, at in enumerate(times, start=1)]
    store.append(records, term)
    assert [record.seq for record in store.read_audit(AuditFilter(since_ms=20), 10)] == [6, 5, 4, 3, 2]


def test_denials_are_listed_newest_first_and_made_storable(reopened: Callable[[], Store]) -> None:
    store = reopened()
    store.add_denials([])
    store.add_denials([Denial(1, "anna", "user", "vision", "GetJob", "NOT_FOUND", "job 7")])
    store.add_denials(
        [Denial(2, "\ud800", "user", "a\0b", "X", "Y", "d" * 5000), Denial(2**70, "é", "", "", "", "", "")]
    )
    big, odd, plain = reopened().list_denials(10)
    assert plain == Denial(1, "anna", "user", "vision", "GetJob", "NOT_FOUND", "job 7")
    assert (big.at_ms, big.user) == (port.INT_MAX, "é")
    assert odd.user == "?"
    assert odd.tenant == "a\N{REPLACEMENT CHARACTER}b"
    assert len(odd.detail) == port.DENIAL_TEXT_MAX
    assert store.list_denials(1) == [big]


def test_only_so_many_denials_are_kept(store: Store) -> None:
    flood = [Denial(at, "", "", "", "X", "Y", "") for at in range(1, port.DENIALS_KEPT + 11)]
    for start in range(0, len(flood), 20_000):
        store.add_denials(flood[start : start + 20_000])
    kept = store.list_denials(port.DENIALS_KEPT * 2)
    assert len(kept) == port.DENIALS_KEPT
    assert (kept[0].at_ms, kept[-1].at_ms) == (port.DENIALS_KEPT + 10, 11)


def test_reads_beside_a_writer_see_whole_batches_only(store: Store) -> None:
    term = store.acquire_term("one")
    batch = 50
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        while not done.is_set():
            last = store.last_seq()
            if last % batch or len(store.read(0, 10_000)) < last:
                wrong.append(last)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for first in range(1, 40 * batch, batch):
            store.append(make_records(first, batch, term=term), term)
    finally:
        done.set()
        reader.join(timeout=30)
    assert not reader.is_alive()
    assert wrong == []
    assert store.last_seq() == 40 * batch


def test_the_ballast_is_there_until_it_is_released(store: Store) -> None:
    assert store.release_ballast() is True
    assert store.release_ballast() is False
    assert store.restore_ballast() is True
    assert store.release_ballast() is True


def test_a_closed_store_says_so(store: Store) -> None:
    term = store.acquire_term("one")
    store.close()
    store.close()
    for call in (
        store.last_seq,
        lambda: store.read(0, 1),
        lambda: store.append(make_records(1, 1, term=term), term),
        lambda: store.acquire_term("two"),
        lambda: store.save_snapshot(0, b""),
        store.load_snapshot,
        lambda: store.add_denials([Denial(1, "", "", "", "", "", "")]),
    ):
        with pytest.raises(StoreClosed, match="open it first"):
            call()
