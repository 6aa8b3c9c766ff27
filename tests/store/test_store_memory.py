"""The accidents of the reference store: what "persist, then act" is tested with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from store_builders import make_records

from gpushare.store.memory import MemoryDisk, MemoryStore
from gpushare.store.port import StoreClosed, StoreError, StoreFull, StoreUnavailable, TermLost


def opened(disk: MemoryDisk | None = None) -> MemoryStore:
    store = MemoryStore(disk)
    store.open()
    return store


def in_thread(call: Callable[[], None]) -> tuple[threading.Thread, list[StoreError | None]]:
    """Run `call` beside the test; the list gets its error, or None once it returned."""
    outcome: list[StoreError | None] = []

    def run() -> None:
        try:
            call()
        except StoreError as failure:
            outcome.append(failure)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def wait_for_append(store: MemoryStore) -> None:
    deadline = time.monotonic() + 10
    while store.appends_waiting == 0:
        assert time.monotonic() < deadline, "the append never came"
        time.sleep(0.001)


def test_a_held_append_is_not_durable_until_it_is_released() -> None:
    store = opened()
    term = store.acquire_term("one")
    store.hold_appends()
    thread, outcome = in_thread(lambda: store.append(make_records(1, 2, term=term), term))
    wait_for_append(store)
    assert store.last_seq() == 0
    assert outcome == []
    store.release_appends()
    thread.join(timeout=10)
    assert outcome == [None]
    assert store.last_seq() == 2


def test_a_crash_loses_what_was_not_committed_and_nothing_else() -> None:
    store = opened()
    term = store.acquire_term("one")
    store.append(make_records(1, 3, term=term), term)
    store.hold_appends()
    thread, outcome = in_thread(lambda: store.append(make_records(4, 2, term=term), term))
    wait_for_append(store)
    store.crash()
    thread.join(timeout=10)
    assert isinstance(outcome[0], StoreClosed)
    with pytest.raises(StoreClosed):
        store.last_seq()
    store.open()
    assert store.read(0, 10) == make_records(1, 3, term=term)
    assert store.acquire_term("one again") == term + 1


def test_a_held_append_of_a_replaced_leader_is_fenced() -> None:
    disk = MemoryDisk()
    old, new = opened(disk), opened(disk)
    term = old.acquire_term("old")
    old.hold_appends()
    thread, outcome = in_thread(lambda: old.append(make_records(1, 1, term=term), term))
    wait_for_append(old)
    newer = new.acquire_term("new")
    new.append(make_records(1, 1, term=newer), newer)
    old.release_appends()
    thread.join(timeout=10)
    assert isinstance(outcome[0], TermLost)
    with pytest.raises(TermLost):
        old.save_snapshot(1, b"late")
    assert [record.term for record in new.read(0, 10)] == [newer]


@pytest.mark.parametrize(("after_commit", "durable"), [(False, 0), (True, 1)])
def test_an_append_fails_on_command(after_commit: bool, durable: int) -> None:
    store = opened()
    term = store.acquire_term("one")
    store.fail_appends(StoreUnavailable("the disk is on fire"), after_commit=after_commit)
    with pytest.raises(StoreUnavailable, match="on fire"):
        store.append(make_records(1, 1, term=term), term)
    assert store.last_seq() == durable
    store.append(make_records(durable + 1, 1, term=term), term)


def test_failures_still_to_come_can_be_taken_back() -> None:
    store = opened()
    term = store.acquire_term("one")
    store.fail_appends(StoreUnavailable("no"), times=5)
    store.heal()
    store.append(make_records(1, 1, term=term), term)
    assert store.last_seq() == 1


def test_a_full_disk_takes_writes_again_once_the_ballast_is_released() -> None:
    store = opened()
    term = store.acquire_term("one")
    store.disk.full = True
    with pytest.raises(StoreFull):
        store.append(make_records(1, 1, term=term), term)
    assert store.last_seq() == 0
    assert store.release_ballast() is True
    store.append(make_records(1, 1, term=term), term)
    assert store.restore_ballast() is False
    store.disk.full = False
    assert store.restore_ballast() is True
