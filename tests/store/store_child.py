"""Programs that the store's tests run as processes of their own, to be killed, starved or fenced off from outside."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

from store_builders import make_records, make_row

from gpushare.store.port import StoreError, StoreFull, StoreUnavailable
from gpushare.store.sqlite import SqliteStore

#: Sizes of the batches of `stream`, in turn: one fsync each, so that a kill can fall into small and large ones.
BATCHES = (1, 7, 120, 2, 33)


def stream(path: str) -> None:
    """Append for ever; after each batch say on stdout which record is durable. Every batch archives one job."""
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term(f"pid {os.getpid()}")
    last = store.last_seq()
    rounds = 0
    while True:
        count = BATCHES[rounds % len(BATCHES)]
        row = make_row("vision", str(last + 1), last + count)
        store.append(make_records(last + 1, count, term=term, size=400), term, [row])
        last += count
        rounds += 1
        os.write(1, b"%d\n" % last)
        if rounds % 20 == 0:
            store.save_snapshot(last, b"state at %d" % last)


def hold(path: str) -> None:
    """Keep the store open until stdin ends."""
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    print("open", flush=True)
    sys.stdin.read()
    store.close()


def full_disk(directory: str) -> None:
    """On a small file system of its own: fill it, release the ballast, free it; print what happened as JSON."""
    store = SqliteStore(Path(directory) / "j.db", ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    store.append(make_records(1, 5, term=term), term)
    said: dict[str, object] = {}
    filler = Path(directory) / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    last = 5
    try:
        while True:
            store.append(make_records(last + 1, 10, term=term, size=3000), term)
            last += 10
    except StoreFull as failure:
        said["sentence"] = str(failure)
    said["kept"] = store.last_seq() == last
    said["read"] = len(store.read(0, 100_000)) == last
    said["no_ballast_on_full_disk"] = store.release_ballast() and not store.restore_ballast()
    term = store.acquire_term("one, reloaded")
    store.append(make_records(last + 1, 3, term=term), term)
    last += 3
    store.close()
    try:
        store.open()
    except StoreError as failure:
        said["start_on_full_disk"] = [str(getattr(failure, "why", "")), str(failure)]
    filler.unlink()
    store.open()
    said["restored"] = store.release_ballast() and store.restore_ballast()
    term = store.acquire_term("two")
    store.append(make_records(last + 1, 50, term=term, size=3000), term)
    last += 50
    said["contiguous"] = [record.seq for record in store.read(0, 100_000)] == list(range(1, last + 1))
    store.close()
    print(json.dumps(said))


def io_error(path: str) -> None:
    """Forbid files to grow, append, allow it again, append; print what happened as JSON."""
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    store.append(make_records(1, 5, term=term), term)
    said: dict[str, object] = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        store.append(make_records(6, 500, term=term, size=1000), term, [make_row("vision", "1", 5)])
    except StoreUnavailable as failure:
        said["full"] = isinstance(failure, StoreFull)
        said["sentence"] = str(failure)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said["last_seq"] = store.last_seq()
    said["history"] = len(store.history_list(None, None, 10))
    store.append(make_records(6, 500, term=term, size=1000), term)
    said["after"] = store.last_seq()
    store.close()
    print(json.dumps(said))


if __name__ == "__main__":
    {"stream": stream, "hold": hold, "full_disk": full_disk, "io_error": io_error}[sys.argv[1]](sys.argv[2])
