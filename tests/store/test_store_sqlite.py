"""What only a file can do wrong: a store that must not open, a disk that fails, a scheduler killed while it writes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_builders import make_records, make_row

from gpushare.store.disk import NETWORK_FILESYSTEMS, filesystem_type, refuse_file, refuse_network
from gpushare.store.port import (
    AuditFilter,
    Refusal,
    StoreDamaged,
    StoreRefused,
    StoreUnavailable,
)
from gpushare.store.sqlite import BUSY_TIMEOUT_S, SqliteStore, assert_safe

CHILD = Path(__file__).with_name("store_child.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j.db"


def filled(path: Path, count: int = 20) -> None:
    """A journal of `count` records at `path`, closed again."""
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    store.append(make_records(1, count, term=term), term)
    store.close()


def contents(directory: Path) -> dict[str, bytes]:
    """Every byte of the database and its log; not the lock file and the ballast, which hold nothing."""
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix in (".db", ".db-wal") and p.stat().st_size}


def refusal(path: Path) -> StoreRefused:
    store = SqliteStore(path, ballast_mib=1)
    with pytest.raises(StoreRefused) as refused:
        store.open()
    store.close()
    return refused.value


def child(program: str, argument: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, str(CHILD), program, str(argument)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def running(program: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(CHILD), program, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_the_files_are_private_to_their_owner(path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(path, ballast_mib=1)
        store.open()
        term = store.acquire_term("one")
        store.append(make_records(1, 1, term=term), term)
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert set(modes) >= {"j.db", "j.db-wal", "j.db.lock", "j.db.ballast"}
    assert set(modes.values()) == {0o600}


def test_commits_are_as_safe_as_sqlite_makes_them_also_after_a_reconnect(path: Path) -> None:
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    for _ in range(2):
        with store.database.writer.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        store.database.writer.dispose()
    store.close()


def test_settings_that_did_not_take_are_refused() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection, pytest.raises(StoreRefused) as refused:
        assert_safe(connection, Path("j.db"))  # a database in memory cannot be put into WAL mode
    assert refused.value.why is Refusal.UNSAFE_SETTINGS
    assert "power cut" in str(refused.value)


def test_a_second_scheduler_is_told_who_holds_the_journal(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "other-name.db"
    link.symlink_to(path)
    with running("hold", path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        for name in (path, link):
            refused = refusal(name)
            assert refused.why is Refusal.LOCKED
            assert f"pid {holder.pid}" in str(refused)
        holder.kill()
        holder.wait(timeout=30)
    filled(path)  # the lock of a dead holder is free


def test_one_process_does_not_open_a_journal_twice(path: Path) -> None:
    first = SqliteStore(path, ballast_mib=1)
    first.open()
    assert refusal(path).why is Refusal.LOCKED
    with pytest.raises(StoreRefused, match="close it first"):
        first.open()
    assert first.last_seq() == 0  # the refused calls took nothing from the open store
    first.close()


def test_a_read_only_file_is_refused_even_to_root(path: Path) -> None:
    filled(path)
    path.chmod(0o400)
    before = contents(path.parent)
    refused = refusal(path)
    assert refused.why is Refusal.READ_ONLY
    assert "chmod" in str(refused)
    assert contents(path.parent) == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_journal_that_others_may_read_is_refused_with_the_command_that_mends_it(path: Path, mode: int) -> None:
    filled(path)
    path.chmod(mode)
    refused = refusal(path)
    assert refused.why is Refusal.UNSAFE_SETTINGS
    assert f"chmod 600 {path}" in str(refused)
    path.chmod(0o600)
    SqliteStore(path, ballast_mib=1).open()


def test_a_directory_that_takes_no_files_is_refused() -> None:
    refused = refusal(Path("/proc/j.db"))
    assert refused.why is Refusal.READ_ONLY
    assert "/proc" in str(refused)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere" / "j.db").why is Refusal.READ_ONLY
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("version", ["2", "0", "99"])
def test_another_schema_version_is_refused_untouched(path: Path, version: str) -> None:
    filled(path)
    # Left as a crash leaves it: the version in the log, the database file without it.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version,))
        connection.commit()
        crashed = path.parent / "crashed"
        crashed.mkdir()
        for name in ("j.db", "j.db-wal"):
            shutil.copy(path.parent / name, crashed / name)
    before = contents(crashed)
    assert set(before) == {"j.db", "j.db-wal"}
    refused = refusal(crashed / "j.db")
    assert refused.why is Refusal.WRONG_SCHEMA
    assert f"version {version}" in str(refused)
    assert contents(crashed) == before
    assert not (crashed / "j.db.ballast").exists()


@pytest.mark.parametrize("content", [b"hello, I am a text\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_is_no_database_is_refused_untouched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    assert refusal(path).why is Refusal.NOT_A_STORE
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_untouched(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.execute("CREATE TABLE meta (name TEXT, value TEXT)")
        connection.commit()
    before = contents(path.parent)
    refused = refusal(path)
    assert refused.why is Refusal.NOT_A_STORE
    assert "another program" in str(refused)
    assert contents(path.parent) == before


def test_a_directory_in_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    assert refusal(path).why is Refusal.NOT_A_STORE


def test_a_file_of_another_user_is_refused(path: Path) -> None:
    if os.geteuid() != 0:
        with pytest.raises(StoreRefused) as refused:
            refuse_file(Path("/etc/passwd"))
        assert refused.value.why is Refusal.FOREIGN_OWNER
        return
    filled(path)
    os.chown(path, 65534, 65534)
    before = contents(path.parent)
    found = refusal(path)
    assert found.why is Refusal.FOREIGN_OWNER
    assert "uid 65534" in str(found)
    assert contents(path.parent) == before


@pytest.mark.parametrize("kind", [0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997, 0x00C36400, 0x0BD00BD0])
def test_network_file_systems_are_known(kind: int) -> None:
    assert kind in NETWORK_FILESYSTEMS


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    here = filesystem_type(tmp_path)
    refuse_network(tmp_path)
    with pytest.raises(StoreRefused, match="local disk") as refused:
        refuse_network(tmp_path, {here: "NFS"})
    assert refused.value.why is Refusal.NETWORK_FILESYSTEM
    assert filesystem_type(Path("/proc")) == 0x9FA0
    with pytest.raises(FileNotFoundError):
        filesystem_type(tmp_path / "nowhere")


def test_a_store_whose_making_was_cut_short_is_made_again(path: Path) -> None:
    path.touch(0o600)
    filled(path, 3)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    assert path.stat().st_size > 0
    filled(path, 3)


def small_disk(tmp_path: Path) -> list[str]:
    """A command prefix that runs what follows with 8 MiB of disk at `tmp_path`/small; skips where that cannot be."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    target = tmp_path / "small"
    target.mkdir()
    mount = f'mount -t tmpfs -o size=8m,mode=700 tmpfs "{target}"'
    try:
        tried = subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk of our own needs unshare(1)")
    if tried.returncode != 0:
        pytest.skip(f"this host lets us mount no file system of our own: {tried.stderr.strip()}")
    return [*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_a_full_disk_loses_nothing_and_the_ballast_lets_cancels_through(tmp_path: Path) -> None:
    prefix = small_disk(tmp_path)
    ran = child("full_disk", tmp_path / "small", *prefix)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert "full" in said.pop("sentence")
    why, sentence = said.pop("start_on_full_disk")
    assert why == Refusal.DISK_FULL
    assert "MiB" in sentence
    assert said == {
        "kept": True,
        "read": True,
        "no_ballast_on_full_disk": True,
        "restored": True,
        "contiguous": True,
    }


def test_a_disk_error_in_the_middle_of_a_batch_leaves_nothing_of_it(path: Path) -> None:
    ran = child("io_error", path)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert "nothing was written" in said["sentence"]
    assert (said["full"], said["last_seq"], said["history"], said["after"]) == (False, 5, 0, 505)


def test_a_foreign_lock_on_the_file_is_waited_out(path: Path) -> None:
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=store.append, args=(make_records(1, 1, term=term), term))
        writer.start()
        writer.join(timeout=0.3)
        assert writer.is_alive()
        assert store.last_seq() == 0  # a held write holds no reader up
        shell.execute("ROLLBACK")
        writer.join(timeout=BUSY_TIMEOUT_S)
        assert not writer.is_alive()
    assert store.last_seq() == 1
    store.close()


def test_a_lock_that_never_ends_makes_the_store_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpushare.store.sqlite.BUSY_TIMEOUT_S", 0.1)
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another program"):
            store.append(make_records(1, 1, term=term), term)
        shell.execute("ROLLBACK")
    store.append(make_records(1, 1, term=term), term)
    assert store.last_seq() == 1
    store.close()


def test_a_missing_record_is_damage_and_not_the_end(path: Path) -> None:
    filled(path, 10)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM journal WHERE seq = 4")
        connection.commit()
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    assert len(store.read(0, 3)) == 3
    with pytest.raises(StoreDamaged, match="backup"):
        store.read(3, 5)
    store.close()


def test_a_damaged_snapshot_falls_back_to_the_one_before(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    store.acquire_term("one")
    store.save_snapshot(5, b"five")
    store.save_snapshot(9, b"nine")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshot SET blob = x'00' WHERE seq = 9")
        connection.commit()
    assert store.load_snapshot() == (5, b"five")
    assert "record 9 is damaged" in caplog.text
    store.close()


def test_no_value_becomes_sql(path: Path) -> None:
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("x'); DROP TABLE journal; --")
    nasty = "'; DELETE FROM journal; --"
    store.append(make_records(1, 2, term=term, user=nasty, tenant=nasty), term, [make_row(nasty, nasty, 1)])
    assert len(store.read_audit(AuditFilter(user=nasty, tenant=nasty), 10)) == 2
    assert store.history_list(nasty, None, 10)[0].job == nasty
    assert store.last_seq() == 2
    store.close()


def test_a_backup_is_a_whole_store_taken_while_it_is_written(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    term = store.acquire_term("one")
    store.append(make_records(1, 500, term=term, size=200), term)
    copy = tmp_path / "copy.db"
    store.backup(copy)
    store.append(make_records(501, 5, term=term), term)
    with pytest.raises(StoreUnavailable, match="exists already"):
        store.backup(copy)
    assert sorted(p.name for p in tmp_path.glob("copy*")) == ["copy.db"]
    store.close()
    restored = SqliteStore(copy, ballast_mib=1)
    restored.open()
    assert restored.last_seq() == 500
    assert len(restored.read(0, 1000)) == 500
    assert restored.acquire_term("two") == term + 1
    restored.close()


def kill_rounds(path: Path, rounds: int, seed: int) -> None:
    """Kill a writer `rounds` times in the middle of its stream; after each, nothing acknowledged may be missing."""
    dice = random.Random(seed)
    for _ in range(rounds):
        acknowledged = b"0"
        with running("stream", path) as writer:
            assert writer.stdout is not None
            for _ in range(dice.randint(1, 60)):
                acknowledged = writer.stdout.readline()
            time.sleep(dice.random() * 0.002)  # anywhere inside the next batches
            writer.kill()
            for line in writer.stdout:
                acknowledged = line if line.endswith(b"\n") else acknowledged
        check_after_kill(path, int(acknowledged))


def check_after_kill(path: Path, acknowledged: int) -> None:
    store = SqliteStore(path, ballast_mib=1)
    store.open()
    last = store.last_seq()
    assert last >= acknowledged
    records = []
    while page := store.read(len(records), 5000):
        records += page
    assert [record.seq for record in records] == list(range(1, last + 1))
    assert all(json.loads(record.payload) == {"n": record.seq} for record in records)
    # Each batch archived one job under its first record, ending with its last: whole batches only, and all of them.
    rows = []
    cursor = None
    while page_of_rows := store.history_list(None, cursor, 500):
        rows += page_of_rows
        cursor = page_of_rows[-1].cursor
    assert sum(row.ended_ms - int(row.job) + 1 for row in rows) == last
    snapshot = store.load_snapshot()
    assert snapshot is None or snapshot == (snapshot[0], b"state at %d" % snapshot[0])
    store.close()


def test_kill_9_in_a_stream_of_appends_loses_nothing_acknowledged(path: Path) -> None:
    kill_rounds(path, 8, seed=1)


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(10))
def test_kill_9_two_hundred_times_loses_nothing_acknowledged(path: Path, part: int) -> None:
    kill_rounds(path, 20, seed=100 + part)
