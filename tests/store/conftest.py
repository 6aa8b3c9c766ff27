"""The implementations of the store port, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare.store.memory import MemoryStore
from gpushare.store.port import Store
from gpushare.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def reopened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """A function that closes the store, if it was open, and opens it again on the same disk."""
    store: Store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "j.db", ballast_mib=1)

    def reopen() -> Store:
        store.close()
        store.open()
        return store

    yield reopen
    store.close()


@pytest.fixture
def store(reopened: Callable[[], Store]) -> Store:
    return reopened()
