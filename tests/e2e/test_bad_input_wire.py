"""What a connection can be made to carry: floods of frames, packed and oversized messages, the wrong protocol, the
wrong certificate, calls that are given up. The scheduler is the one of the cluster, with TLS; its memory is looked at.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from bad_input_table import job
from shared_cluster import Outcome, World, request_id

from gpushare import rpc
from gpushare.client import messages as m
from gpushare.scheduler.pki import ensure_pki

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 1, 4
GROWTH_MAX_BYTES = 100 << 20
CREATE_JOB = "/gpushare.v1.JobService/CreateJob"
WATCH_JOBS = "/gpushare.v1.JobService/WatchJobs"


@pytest.fixture
def steady(world: World) -> Iterator[None]:
    """The scheduler grows by less than 100 MiB, serves others afterwards, and has no job more."""
    process = psutil.Process(world.cluster.scheduler.pid)
    before, rss = world.mark(), process.memory_info().rss
    yield
    assert process.memory_info().rss - rss < GROWTH_MAX_BYTES
    assert world.change_since(before) == []
    assert world.cli("jobs", who="nina").code == 0


# -- raw HTTP/2 over TLS


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header without compression; a length above 126 takes further bytes."""
    text = b"\x00" + bytes([len(name)]) + name.encode()
    if len(value) < 127:
        return text + bytes([len(value)]) + value.encode()
    assert len(value) < 127 + 128
    return text + bytes([127, len(value) - 127]) + value.encode()


def opened(stream: int, headers: bytes, message: bytes) -> bytes:
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    return frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)


class Attack:
    """One connection of ann's that speaks frames."""

    def __init__(self, world: World) -> None:
        settings = world.people["ann"].settings
        host, _, port = settings.server.rpartition(":")
        context = ssl.create_default_context(cadata=settings.ca_pem)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, int(port)), 20)
        self.connection = context.wrap_socket(plain, server_hostname=host)
        self.headers = b"".join(
            literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "https"),
                (":path", WATCH_JOBS),
                (":authority", "x"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("authorization", f"Bearer {settings.token}"),
            )
        )
        self.message = m.WatchJobsRequest(parent="tenants/-").SerializeToString()

    def run(self, send: Callable[[Attack], None]) -> list[tuple[int, bytes]]:
        """The frames that came until the server closed or was quiet."""
        with self.connection:
            try:
                self.connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
                send(self)
            except OSError:
                pass  # it hung up, which the frames show
            return list(self._answers())

    def open(self, stream: int) -> bytes:
        return opened(stream, self.headers, self.message)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        self.connection.settimeout(2)
        buffer = b""
        while True:
            try:
                data = self.connection.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            buffer += data
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                end = 9 + int.from_bytes(buffer[:3], "big")
                yield buffer[3], buffer[9:end]
                buffer = buffer[end:]


def test_ten_thousand_streams_on_one_connection_are_held_back(world: World, steady: None) -> None:
    frames = Attack(world).run(lambda a: a.connection.sendall(b"".join(a.open(2 * n + 1) for n in range(10_000))))
    served = sum(kind == HEADERS for kind, _ in frames)
    assert 0 < served <= 2 * rpc.STREAMS_PER_CONNECTION_MAX


def test_a_ping_flood_ends_the_connection(world: World, steady: None) -> None:
    def pings(attack: Attack) -> None:
        for _ in range(300):
            attack.connection.sendall(frame(PING, 0, 0, b"12345678"))
            time.sleep(0.01)

    frames = Attack(world).run(pings)
    enhance_your_calm = 11
    assert [int.from_bytes(data[4:8], "big") for kind, data in frames if kind == GOAWAY] == [enhance_your_calm]


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.prove)])
def test_rapid_resets_leave_nothing_behind(world: World, steady: None, count: int) -> None:
    def resets(attack: Attack) -> None:
        for number in range(count):
            stream = 2 * number + 1
            reset = frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
            attack.connection.sendall(attack.open(stream) + reset)

    Attack(world).run(resets)


# -- messages


def test_a_message_that_unpacks_beyond_the_limit_is_refused_by_that_size(world: World, steady: None) -> None:
    request = job(script=bytes(64 << 20))
    request.request_id = request_id()
    data = request.SerializeToString()
    assert len(gzip.compress(data, 1)) < 4 << 20
    settings = world.people["ann"].settings

    async def send() -> str:
        async with rpc.aio_channel(settings.server, ca_pem=settings.ca_pem, token=settings.token) as channel:
            try:
                await channel.unary_unary(CREATE_JOB)(data, compression=grpc.Compression.Gzip)
            except grpc.aio.AioRpcError as err:
                return err.code().name
        return "OK"

    assert world.do(send()) == "RESOURCE_EXHAUSTED"


def test_calls_that_are_given_up_leave_whole_arrays_or_none(world: World) -> None:
    draw = random.Random(5)
    settings = world.people["nina"].settings
    requests = []
    for _ in range(60):
        request = job(m.Resources(gpus=0), array_indexes=[1, 2, 3])
        request.parent, request.request_id = "tenants/nlp", request_id()
        requests.append(request)

    async def given_up(request: m.CreateJobRequest) -> None:
        timeout_s = draw.choice([1e-9, 0.001, 0.005, 0.02])
        channel = rpc.aio_channel(settings.server, ca_pem=settings.ca_pem, token=settings.token)
        call = channel.unary_unary(CREATE_JOB)(request.SerializeToString(), timeout=timeout_s)
        if draw.random() < 0.5:
            await asyncio.sleep(draw.uniform(0, 0.05))
            await channel.close()
        await asyncio.gather(call, return_exceptions=True)
        await channel.close()

    async def run() -> list[m.CreateJobResponse]:
        await asyncio.gather(*(given_up(request) for request in requests))
        sizes: dict[str, int] = {}
        async for found in world.people["nina"].list_jobs(parent="tenants/nlp", show_ended=True):
            if found.array_id:
                sizes[found.array_id] = sizes.get(found.array_id, 0) + 1
        assert set(sizes.values()) <= {3}
        # The same again, patiently: each exists exactly once.
        answers = [
            m.CreateJobResponse.FromString(await world.send("JobService/CreateJob", request, "nina"))
            for request in requests
        ]
        assert len({answer.jobs[0].array_id for answer in answers}) == len(requests)
        names = [each.name for answer in answers for each in answer.jobs]
        await world.people["nina"].wait_jobs(names)
        return answers

    assert {len(answer.jobs) for answer in world.do(run())} == {3}


# -- the wrong protocol and the wrong certificate


def unreached(done: Outcome, says: str) -> None:
    assert (done.code, done.out) == (3, ""), done
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: SCHEDULER_UNREACHABLE: ")
    assert says in done.err, done.err


def test_a_client_that_trusts_another_ca_is_told_so(world: World, tmp_path: Path) -> None:
    other = ensure_pki(tmp_path / "pki", "127.0.0.1:7480")
    (tmp_path / "other.pem").write_text(other.ca_pem)
    began = time.monotonic()
    unreached(world.cli_process("--ca", str(tmp_path / "other.pem"), "jobs"), "ertificate verify failed")
    assert time.monotonic() - began < 60, "it is not tried until the time is over"


def test_plain_text_to_a_tls_port_is_named_and_answered_with_nothing(world: World, steady: None) -> None:
    settings = world.people["ann"].settings
    contexts = world.cluster.home / "plain.toml"
    contexts.write_text(
        f'current = "plain"\n[contexts.plain]\nserver = "{settings.server}"\ntoken = "{settings.token}"\n'
    )
    contexts.chmod(0o600)
    kept, world.contexts = world.contexts, contexts
    try:
        unreached(world.cli_process("--timeout", "5s", "jobs", who="plain"), "TLS")
    finally:
        world.contexts = kept
    host, _, port = settings.server.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer
    assert b"Traceback" not in answer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_old_tls_is_refused(world: World, version: ssl.TLSVersion) -> None:
    settings = world.people["ann"].settings
    host, _, port = settings.server.rpartition(":")
    context = ssl.create_default_context(cadata=settings.ca_pem)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection((host, int(port)), 20) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname=host)
