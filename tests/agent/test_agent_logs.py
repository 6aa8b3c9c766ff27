"""Reading a task's output: every byte once and in order, gaps named, the end only after the end."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from gpushare.reasons import Reason
from gpushare_agent.logs import CHUNK_BYTES, LogOrder, LogPiece, LogReads, Window, sweep
from gpushare_agent.streams import StreamLog

ATTEMPT = "v.1.0.1"


class Source:
    """Output below one directory; `growing` says whether the attempt lives."""

    def __init__(self, root: Path, growing: bool) -> None:
        self.root = root
        self.growing = growing
        self.ended = False

    def log_dir(self, attempt_id: str) -> Path:
        return self.root / attempt_id

    def may_grow(self, attempt_id: str) -> bool:
        return self.growing

    def has_ended(self, attempt_id: str) -> bool:
        return self.ended


def written(root: Path, data: bytes, cap_bytes: int = 1 << 20) -> StreamLog:
    path = root / ATTEMPT
    path.mkdir(exist_ok=True)
    log = StreamLog(os.open(path, os.O_DIRECTORY | os.O_CLOEXEC), "stdout", cap_bytes)
    log.write(data)
    return log


def order(offset: int = 0, follow: bool = False, stream: str = "stdout") -> LogOrder:
    return LogOrder("r1", ATTEMPT, stream, offset, follow)


async def pieces_of(source: Source, wanted: LogOrder) -> list[LogPiece]:
    return [piece async for piece in LogReads(source).read(wanted)]


def read(source: Source, wanted: LogOrder) -> list[LogPiece]:
    return asyncio.run(asyncio.wait_for(pieces_of(source, wanted), 10))


def test_large_output_comes_in_chunks_of_64_kib_each_at_its_offset(tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 17)
    written(tmp_path, data)
    *chunks, end = read(Source(tmp_path, growing=False), order())
    assert b"".join(chunk.data for chunk in chunks) == data
    assert [chunk.offset for chunk in chunks] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]
    assert max(len(chunk.data) for chunk in chunks) == CHUNK_BYTES
    assert end == LogPiece(len(data), end=True)


@pytest.mark.parametrize("offset", [5, 10, 999])
def test_a_read_begins_where_it_is_asked_to(tmp_path: Path, offset: int) -> None:
    written(tmp_path, b"0123456789")
    found = read(Source(tmp_path, growing=False), order(offset))
    assert b"".join(piece.data for piece in found) == b"0123456789"[offset:]
    assert found[-1].end


def test_what_the_cap_dropped_is_named_and_offsets_stay_true(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    written(tmp_path, data, cap_bytes=16_384)
    *chunks, _ = read(Source(tmp_path, growing=False), order())
    assert sum(chunk.skipped_bytes for chunk in chunks) + sum(len(chunk.data) for chunk in chunks) == len(data)
    assert any(chunk.skipped_bytes for chunk in chunks)
    assert all(data[chunk.offset : chunk.offset + len(chunk.data)] == chunk.data for chunk in chunks)


def test_output_that_is_gone_says_so(tmp_path: Path) -> None:
    (piece,) = read(Source(tmp_path, growing=False), order())
    assert (piece.end, piece.error_reason) == (True, Reason.LOGS_GONE)
    assert ATTEMPT in piece.error_detail


def test_an_attempt_that_ended_without_ever_printing_has_an_empty_output(tmp_path: Path) -> None:
    source = Source(tmp_path, growing=False)
    source.ended = True
    assert read(source, order(follow=True)) == [LogPiece(0, end=True)]


@pytest.mark.parametrize("wanted", [order(stream="stdin"), order(stream="../x"), order(offset=-1)])
def test_a_read_that_makes_no_sense_is_refused(tmp_path: Path, wanted: LogOrder) -> None:
    (piece,) = read(Source(tmp_path, growing=False), wanted)
    assert piece.error_reason is Reason.INVALID_FIELD


def test_without_follow_a_running_task_has_an_end_too(tmp_path: Path) -> None:
    written(tmp_path, b"so far")
    found = read(Source(tmp_path, growing=True), order())
    assert [piece.data for piece in found] == [b"so far", b""]
    assert found[-1].end


def test_a_follower_gets_what_comes_later_and_its_end_only_after_the_attempts(tmp_path: Path) -> None:
    async def scene() -> tuple[bytes, bool]:
        source = Source(tmp_path, growing=True)
        reads = LogReads(source)
        got = bytearray()
        ended = False

        async def follow() -> None:
            nonlocal ended
            async for piece in reads.read(order(follow=True)):
                got.extend(piece.data)
                ended = piece.end

        reader = asyncio.create_task(follow())
        await asyncio.sleep(0)  # nothing is there yet, not even the directory
        log = written(tmp_path, b"one ")
        while got != b"one ":
            await asyncio.sleep(0.01)
        log.write(b"two ")
        while got != b"one two ":
            await asyncio.sleep(0.01)
        ended_early = ended
        log.write(b"three")
        source.growing = False
        reads.changed(ATTEMPT)
        await reader
        assert ended
        return bytes(got), ended_early

    got, ended_early = asyncio.run(asyncio.wait_for(scene(), 10))
    assert got == b"one two three"
    assert not ended_early


def test_a_follower_hears_of_the_end_at_once(tmp_path: Path) -> None:
    async def scene() -> float:
        source = Source(tmp_path, growing=True)
        reads = LogReads(source)
        written(tmp_path, b"x")
        reader = asyncio.create_task(_drain(reads))
        await asyncio.sleep(1.0)  # by now it polls at its slowest
        source.growing = False
        began_s = time.monotonic()
        reads.changed(ATTEMPT)
        await reader
        return time.monotonic() - began_s

    async def _drain(reads: LogReads) -> None:
        async for _ in reads.read(order(follow=True)):
            pass

    assert asyncio.run(asyncio.wait_for(scene(), 10)) < 0.2


class TestWindow:
    def test_nothing_is_sent_beyond_the_window_until_it_is_confirmed(self) -> None:
        async def scene() -> list[str]:
            window = Window(100)
            said = []
            await window.sent(60, 1)
            said.append("60")
            waiting = asyncio.create_task(window.sent(60, 5))
            await asyncio.sleep(0.02)
            said.append("open" if waiting.done() else "waits")
            window.confirmed(60)
            await waiting
            said.append("120")
            return said

        assert asyncio.run(scene()) == ["60", "waits", "120"]

    def test_a_reader_that_stands_still_is_given_up(self) -> None:
        async def scene() -> None:
            await Window(10).sent(10, 0.05)

        with pytest.raises(TimeoutError):
            asyncio.run(scene())


class TestSweep:
    def output(self, root: Path, name: str, age_s: float, now_s: float) -> None:
        (root / name).mkdir(parents=True)
        (root / name / "stdout").write_bytes(b"x")
        for path in (root / name / "stdout", root / name):
            os.utime(path, (now_s - age_s, now_s - age_s))

    def test_old_output_goes_and_young_or_live_output_stays(self, tmp_path: Path) -> None:
        now_s = 1_000_000.0
        self.output(tmp_path, "old", 100, now_s)
        self.output(tmp_path, "young", 10, now_s)
        self.output(tmp_path, "live", 100, now_s)
        assert sweep(tmp_path, 50, {"live"}, now_s) == ["old"]
        assert sorted(os.listdir(tmp_path)) == ["live", "young"]

    def test_one_sweep_removes_a_bounded_number(self, tmp_path: Path) -> None:
        for number in range(5):
            self.output(tmp_path, f"a{number}", 100, 1000.0)
        assert len(sweep(tmp_path, 50, (), 1000.0, most=2)) == 2
        assert len(sweep(tmp_path, 50, (), 1000.0, most=9)) == 3

    def test_a_missing_directory_is_no_trouble(self, tmp_path: Path) -> None:
        assert sweep(tmp_path / "none", 1, (), 0.0) == []
