"""What a job prints, from the pipe to the reader: offsets, the cap with its gap, full disks, and that nobody
waits for anybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, eventually, host, needs_root, python, run, shell
from hypothesis import given, settings
from hypothesis import strategies as st

from gpushare.reasons import Reason
from gpushare_agent import logfiles, records
from gpushare_agent.streams import MIN_CAP_BYTES, StreamLog

CAP = 64 * 1024


def kept_bytes(log_dir: Path) -> int:
    total = 0
    for path in log_dir.iterdir():
        # The oldest may go while we look.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def end_offset(log_dir: Path, stream: str) -> int:
    """One past the last byte that is on disk."""
    return max((segment.end for segment in logfiles.segments(log_dir, stream)), default=0)


def read_all(log_dir: Path, stream: str, piece: int = 1 << 16) -> tuple[bytes, list[tuple[int, int]]]:
    """Everything kept, and the gaps as (offset, bytes)."""
    data, gaps, offset = b"", [], 0
    while True:
        found = logfiles.read_slice(log_dir, stream, offset, piece)
        if not found.data:
            return data, gaps
        if found.skipped_bytes:
            gaps.append((offset, found.skipped_bytes))
        assert found.offset == offset + found.skipped_bytes
        assert len(found.data) <= piece
        data += found.data
        offset = found.offset + len(found.data)


@given(
    sizes=st.lists(st.integers(0, 5000), max_size=60),
    cap=st.integers(0, 20_000),
    piece=st.integers(1, 9000),
)
@settings(max_examples=60, deadline=None)
def test_head_and_tail_stay_and_every_offset_is_true(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cap: int, piece: int
) -> None:
    log_dir = tmp_path_factory.mktemp("log")
    printed = hashlib.shake_256(repr(sizes).encode()).digest(sum(sizes))
    log = StreamLog(records.open_directory(str(log_dir)), "stdout", cap)
    position = 0
    for size in sizes:
        log.write(printed[position : position + size])
        position += size
        assert kept_bytes(log_dir) <= max(cap, MIN_CAP_BYTES)
    log.close()
    os.close(log._dirfd)
    assert log.offset == len(printed)
    kept, gaps = read_all(log_dir, "stdout", piece)
    head = max(cap, MIN_CAP_BYTES) // 2
    expected, end = b"", 0
    for offset, skipped in gaps:
        expected += printed[end:offset]
        end = offset + skipped
    assert kept == expected + printed[end:]
    assert kept.startswith(printed[:head])
    # at least three eighths of the cap are tail, if that much was printed behind the head
    tail = min(max(0, len(printed) - head), head * 3 // 4 - 8)
    assert kept.endswith(printed[len(printed) - tail :])
    assert len(gaps) <= 1
    assert end_offset(log_dir, "stdout") == len(printed)


def test_reading_begins_anywhere(tmp_path: Path) -> None:
    log = StreamLog(records.open_directory(str(tmp_path)), "stderr", 8192)
    for number in range(2000):
        log.write(b"%09d\n" % number)
    kept = logfiles.segments(tmp_path, "stderr")
    assert kept[0].start == 0
    gap_from, gap_to = kept[0].end, kept[1].start
    assert gap_from == 4096 < gap_to
    inside = logfiles.read_slice(tmp_path, "stderr", gap_from + 7, 10)
    assert (inside.offset, inside.skipped_bytes) == (gap_to, gap_to - gap_from - 7)
    assert logfiles.read_slice(tmp_path, "stderr", 19_990, 100).data == b"000001999\n"
    for beyond in (20_000, 10**12):
        assert logfiles.read_slice(tmp_path, "stderr", beyond, 100) == logfiles.LogSlice(beyond, b"", 0)
    assert logfiles.read_slice(tmp_path, "stdout", 0, 100).data == b""
    assert logfiles.read_slice(tmp_path / "gone", "stdout", 5, 100).data == b""
    with pytest.raises(ValueError, match="no such stream"):
        logfiles.read_slice(tmp_path, "../intent", 0, 1)
    log.close()
    os.close(log._dirfd)


def test_files_that_are_no_segments_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"good")
    (tmp_path / "stdout.tmp").write_bytes(b"bad")
    (tmp_path / "stdoutx").write_bytes(b"bad")
    (tmp_path / "stdout.00000000000000000009").symlink_to("/etc/passwd")
    found = logfiles.segments(tmp_path, "stdout")
    assert [segment.name for segment in found if segment.name != "stdout"] in ([], ["stdout.00000000000000000009"])
    with pytest.raises(OSError, match="symbolic"):
        read_all(tmp_path, "stdout")


def test_two_streams_with_offsets_of_their_own_and_any_bytes(tmp_path: Path) -> None:
    code = """
import os, sys
every = bytes(range(256))
for _ in range(300):
    os.write(1, every); os.write(2, b"\\x1b]52;c;x\\x07")
"""

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.result(python("t.1.0.1", code))
            log_dir = here.executor.log_dir("t.1.0.1")
            assert read_all(log_dir, "stdout") == (bytes(range(256)) * 300, [])
            assert read_all(log_dir, "stderr") == (b"\x1b]52;c;x\x07" * 300, [])

    run(body())


def test_a_job_that_prints_without_end_fills_no_disk_and_stays_under_control(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "echo begin; yes", log_cap_bytes=CAP))
            log_dir = here.executor.log_dir("t.1.0.1")
            await eventually(lambda: end_offset(log_dir, "stdout") > 20 * CAP)
            assert kept_bytes(log_dir) <= CAP
            assert logfiles.read_slice(log_dir, "stdout", 0, 8).data == b"begin\ny\n"
            began = time.monotonic()
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 5000)
            assert (await here.ended("t.1.0.1")).state == "STOPPED"
            assert time.monotonic() - began < 5
            _, gaps = read_all(log_dir, "stdout")
            assert len(gaps) == 1

    run(body())


def test_one_line_without_an_end_is_no_different(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.result(shell("t.1.0.1", "head -c 1000000 /dev/zero; echo over", log_cap_bytes=CAP))
            log_dir = here.executor.log_dir("t.1.0.1")
            kept, gaps = read_all(log_dir, "stdout")
            assert kept.endswith(b"\0over\n")
            assert len(kept) + sum(size for _, size in gaps) == 1_000_005
            record = (tmp_path / "attempts/t.1.0.1/exit").read_text()
            assert '"stdout_bytes":1000005' in record

    run(body())


def test_closed_streams_do_not_end_a_job(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            found = await here.result(shell("t.1.0.1", "echo x; exec >&- 2>&-; sleep 0.2; exit 4"))
            assert found.exit_code == 4
            assert here.stdout("t.1.0.1") == "x\n"

    run(body())


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "gpushare-test", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


@needs_root
def test_a_full_disk_refuses_launches_and_costs_a_running_job_only_log(small_disk: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"echo before; until [ -e {gate} ]; do sleep 0.02; done; head -c 65536 /dev/zero; exit 5"

    async def body() -> None:
        async with host(small_disk / "state", weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", code))
            await eventually(lambda: here.stdout("t.1.0.1") == "before\n")
            ballast = fill(small_disk)
            with pytest.raises(Exception, match="No space left"):
                await here.executor.launch(shell("t.2.0.1", f"touch {tmp_path}/ran"))
            assert not (tmp_path / "ran").exists()
            gate.touch()
            await eventually(lambda: "No space left" in here.status("t.1.0.1").detail)
            assert here.status("t.1.0.1").state == "STOPPING"
            ballast.unlink()
            found = await here.ended("t.1.0.1")
            assert (found.state, found.exit_code) == ("FAILED", 5)
            assert found.detail == "exited with code 5"

    run(body())


@needs_root
@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_full_disk_does_not_turn_a_time_limit_into_a_failure_of_the_node(small_disk: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(small_disk / "state", weak=weak) as here:
            await here.executor.launch(shell("t.1.0.1", "echo up; sleep 600", run_limit_ms=1500, grace_ms=0))
            await eventually(lambda: here.stdout("t.1.0.1") == "up\n")
            ballast = fill(small_disk)
            await eventually(lambda: "No space left" in here.status("t.1.0.1").detail)
            assert (here.status("t.1.0.1").state, here.status("t.1.0.1").reason) == ("STOPPING", Reason.TIME_LIMIT)
            ballast.unlink()
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason) == ("FAILED", Reason.TIME_LIMIT)

    run(body())


@needs_root
def test_a_note_that_a_full_disk_refuses_leaves_nothing_behind(small_disk: Path) -> None:
    dirfd = records.open_directory(str(small_disk))
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        records.note(dirfd, "stop", b"x" * 100)
    ballast.unlink()
    assert os.listdir(dirfd) == []
    os.close(dirfd)


@needs_root
def test_a_disk_that_has_room_again_shows_the_loss_as_a_gap(small_disk: Path) -> None:
    log = StreamLog(records.open_directory(str(small_disk)), "stdout", 1 << 20)
    log.write(b"a" * 100)
    ballast = fill(small_disk)
    log.write(b"b" * 10_000)
    log.write(b"c" * 10_000)
    ballast.unlink()
    log._retry_at = 0.0
    log.write(b"d" * 100)
    log.close()
    os.close(log._dirfd)
    kept, gaps = read_all(small_disk, "stdout")
    assert kept.startswith(b"a" * 100)
    assert kept.endswith(b"d" * 100)
    assert log.offset == 20_200
    assert len(kept) + sum(size for _, size in gaps) == 20_200
    assert len(gaps) == 1
