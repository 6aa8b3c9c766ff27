"""What a figure is compared with: simple things measured in the same session, on the same disk and cores.

Imports the standard library, and for the empty RPC gpushare's own channel and server builders, so that TLS and limits
are the same. None of these knows jobs, state or schedulers: they are what the machine gives.
"""

from __future__ import annotations

import asyncio
import os
import select
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

#: A journal record of a submit is about this long.
ROW_BYTES = 300
COMMITS = 400
SPAWNS = 400
STARTS = 20
RUN_TIMEOUT_S = 60.0
EMPTY_CALLS = 4_000
ECHO_START_TIMEOUT_S = 20.0


def commits_per_s(directory: Path, rows: int = 1) -> float:
    """Rows that a bare SQLite takes durably in a second (WAL, synchronous=FULL), `rows` of them in a commit."""
    path = directory / f"reference-{rows}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, payload BLOB)")
        payload = b"x" * ROW_BYTES

        def commit() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO journal (payload) VALUES (?)", [(payload,)] * rows)
            connection.execute("COMMIT")

        each = _seconds_each(commit, COMMITS if rows == 1 else COMMITS // 4)
    for left in directory.glob(path.name + "*"):
        left.unlink()
    return rows / each


def spawns_per_s() -> float:
    """/bin/true started and waited for, one after the other."""

    def spawn() -> None:
        pid = os.posix_spawn("/bin/true", ["/bin/true"], {})
        os.waitpid(pid, 0)

    return 1 / _seconds_each(spawn, SPAWNS)


def python_start_ms() -> float:
    """An interpreter that does nothing: what no Python program can be faster than. Median of 20."""
    return run_ms([sys.executable, "-c", "pass"])


def run_ms(command: list[str]) -> float:
    """From start to end of a command, median of 20."""
    return statistics.median(run_samples_ms(command))


def run_samples_ms(command: list[str]) -> list[float]:
    """The same, all 20."""
    samples = []
    for _ in range(STARTS):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        # Not `wait(timeout)`, which looks ever less often, up to 50 ms apart.
        pidfd = os.pidfd_open(process.pid)
        ended, _, _ = select.select([pidfd], [], [], RUN_TIMEOUT_S)
        samples.append((time.perf_counter() - began) * 1e3)
        os.close(pidfd)
        if not ended:
            process.kill()
        if process.wait() != 0:
            raise RuntimeError(f"{command[0]} took too long or ended with code {process.returncode}")
    return samples


def output_of(command: list[str]) -> str:
    """What it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S).stdout


def empty_calls_per_s(directory: Path, callers: int) -> float:
    """Empty unary calls over TLS to a server process that does nothing, by so many concurrent callers."""
    import grpc.aio

    from gpushare import rpc
    from gpushare.scheduler.pki import ensure_pki

    pki_dir = directory / "echo-pki"
    ca_pem = ensure_pki(pki_dir, "127.0.0.1").ca_pem
    command = [sys.executable, "-m", "benchmarks.echo", str(pki_dir)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    async def drive(address: str) -> float:
        async with rpc.aio_channel(address, ca_pem=ca_pem, token="gps_none") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable = channel.unary_unary("/benchmarks.Echo/Nothing")
            left = iter(range(EMPTY_CALLS))

            async def caller() -> None:
                for _ in left:
                    await call(b"", timeout=30)

            await call(b"", timeout=30)
            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(callers)))
            return EMPTY_CALLS / (time.perf_counter() - began)

    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            raise RuntimeError("the echo server did not start")
        return asyncio.run(drive(address))
    finally:
        server.terminate()
        server.wait(ECHO_START_TIMEOUT_S)
        if server.stdout is not None:
            server.stdout.close()


def _seconds_each(work: Callable[[], None], times: int) -> float:
    """Median over ten slices, so that one hiccup of the disk does not count."""
    work()
    slices = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(max(1, times // 10)):
            work()
        slices.append((time.perf_counter() - began) / max(1, times // 10))
    return statistics.median(slices)
