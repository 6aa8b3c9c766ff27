"""Hostile HTTP/2 against the server's limits: pings, streams and resets, as raw frames."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import psutil
import pytest

from gpushare import rpc
from gpushare.rpc import STREAMS_PER_CONNECTION_MAX, aio_channel, aio_server, bind

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4
ENHANCE_YOUR_CALM = 11
GROWTH_MAX_BYTES = 100 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
REQUEST_HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/test.Test/Hang"),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)


def opened(stream: int) -> bytes:
    """One call with an empty message."""
    return frame(HEADERS, END_HEADERS, stream, REQUEST_HEADERS) + frame(DATA, END_STREAM, stream, bytes(5))


class Answers:
    """The frames that the server sent until it closed, or until it was quiet for a moment."""

    def __init__(self, connection: socket.socket) -> None:
        self.frames: list[tuple[int, bytes]] = list(self._read(connection))

    def _read(self, connection: socket.socket) -> Iterator[tuple[int, bytes]]:
        connection.settimeout(1)
        buffer = b""
        while True:
            try:
                data = connection.recv(1 << 16)
            except (TimeoutError, ConnectionError):
                return
            if not data:
                return
            buffer += data
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                end = 9 + int.from_bytes(buffer[:3], "big")
                yield buffer[3], buffer[9:end]
                buffer = buffer[end:]

    def of(self, kind: int) -> list[bytes]:
        return [payload for each, payload in self.frames if each == kind]


@dataclass
class Load:
    running: int = 0
    most: int = 0


@asynccontextmanager
async def hanging_server() -> AsyncIterator[tuple[int, Load]]:
    """Calls that never end by themselves, and how many of them run."""
    load = Load()

    async def hang(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        load.running += 1
        load.most = max(load.most, load.running)
        try:
            await asyncio.sleep(60)
        finally:
            load.running -= 1
        return b""

    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = aio_server()
    handlers = {
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    address = bind(server, "127.0.0.1:0", None)
    await server.start()
    try:
        yield address.port, load
        async with aio_channel(str(address)) as channel:
            assert await channel.unary_unary("/test.Test/Echo")(b"x", timeout=10) == b"x", "others are served"
    finally:
        await server.stop(None)


def attack(frames: Callable[[socket.socket], None], port: int) -> Answers:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(HELLO)
        try:
            frames(connection)
        except OSError:
            pass  # the server hung up, which the answers show
        return Answers(connection)


def test_a_ping_flood_ends_the_connection() -> None:
    def pings(connection: socket.socket) -> None:
        for _ in range(200):
            connection.sendall(frame(PING, 0, 0, b"12345678"))
            time.sleep(0.01)

    async def body() -> None:
        async with hanging_server() as (port, _):
            answers = await asyncio.to_thread(attack, pings, port)
            (goaway,) = answers.of(GOAWAY)
            assert int.from_bytes(goaway[4:8], "big") == ENHANCE_YOUR_CALM

    asyncio.run(body())


def test_a_quiet_stream_may_be_kept_alive_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings no closer than the floor are never strikes; the floor is a hundredth of the real one here."""
    hundredth = [
        (k, v // 100 if v == rpc.PING_FLOOR_MS and "ping_interval" in k else v) for k, v in rpc._SERVER_OPTIONS
    ]
    monkeypatch.setattr(rpc, "_SERVER_OPTIONS", hundredth)

    def pings(connection: socket.socket) -> None:
        connection.sendall(opened(1))
        for _ in range(8):
            time.sleep(2 * rpc.PING_FLOOR_MS / 100 / 1000)
            connection.sendall(frame(PING, 0, 0, b"12345678"))

    async def body() -> None:
        async with hanging_server() as (port, _):
            answers = await asyncio.to_thread(attack, pings, port)
            assert not answers.of(GOAWAY)
            assert answers.of(PING).count(b"12345678") == 8

    asyncio.run(body())


def test_ten_thousand_streams_on_one_connection_run_a_hundred() -> None:
    def streams(connection: socket.socket) -> None:
        connection.sendall(b"".join(opened(2 * number + 1) for number in range(10_000)))

    async def body() -> None:
        async with hanging_server() as (port, load):
            before = psutil.Process().memory_info().rss
            await asyncio.to_thread(attack, streams, port)
            assert load.most <= STREAMS_PER_CONNECTION_MAX
            assert psutil.Process().memory_info().rss - before < GROWTH_MAX_BYTES

    asyncio.run(body())


def test_rapid_resets_leave_nothing_behind() -> None:
    def resets(connection: socket.socket) -> None:
        for number in range(20_000):
            stream = 2 * number + 1
            connection.sendall(opened(stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))

    async def body() -> None:
        async with hanging_server() as (port, load):
            before = psutil.Process().memory_info().rss
            await asyncio.to_thread(attack, resets, port)
            deadline = time.monotonic() + 20
            while load.running and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert load.running == 0
            assert load.most <= 2 * STREAMS_PER_CONNECTION_MAX
            assert psutil.Process().memory_info().rss - before < GROWTH_MAX_BYTES

    asyncio.run(body())
