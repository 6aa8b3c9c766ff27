"""Addresses, join strings, tokens, certificates, and TLS between a real server and a real client on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gpushare import rpc
from gpushare.address import Address, is_loopback, is_wildcard, parse_address
from gpushare.errors import (
    FailedPreconditionError,
    GpushareError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    from_rpc_error,
)
from gpushare.join import PREFIX, JoinString, decode_join, encode_join
from gpushare.names import TextError
from gpushare.reasons import Reason
from gpushare.rpc import LeafSource, aio_channel, aio_server, bind
from gpushare.scheduler import tokens
from gpushare.scheduler.pki import CA_FILE, CA_KEY_FILE, CERT_FILE, KEY_FILE, Pki, PkiLeaf, ensure_pki

TIMEOUT_S = 10.0
LISTEN = "127.0.0.1:0"


# -- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7480", ("127.0.0.1", 7480)),
        ("gpu01.lab", ("gpu01.lab", 7480)),
        ("GPU-01:1", ("GPU-01", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1]", ("fe80::1", 7480)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    parsed = parse_address(text)
    assert parsed == address
    assert parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    ["", ":7480", "::1", "[::1", "[gpu01]:1", "[127.0.0.1]:1", "[fe80::1%eth0]:1", "a:0", "a:65536", "a:-1", "a:",
     "a: 1", "a:７480", "a b:1", "a\n:1", "a:1\n", "256.0.0.1:1", "1.2.3:1", "-a:1", "a..b:1", "a/b:1", "unix:/x",
     "dns:///a:1", "é:1", "x" * 300, "a:1:2", "a,b:1"],
)  # fmt: skip
def test_addresses_refused(text: str) -> None:
    with pytest.raises(TextError, match="HOST:PORT"):
        parse_address(text)


def test_loopback_is_never_guessed() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"))
    assert not any(
        is_loopback(host)
        for host in ("0.0.0.0", "::", "10.0.0.1", "gpu01", "localhost.evil.example", "127.0.0.1.evil.example")
    )
    assert is_wildcard("0.0.0.0")
    assert is_wildcard("::")
    assert not is_wildcard("127.0.0.1")
    assert parse_address("127.0.0.1:0", minimum_port=0).port == 0


# -- tokens and join strings


def test_tokens_are_long_and_their_hash_is_what_is_kept() -> None:
    token = tokens.new_token()
    assert token != tokens.new_token()
    assert tokens.is_token(token)
    assert not tokens.is_join_secret(token)
    assert tokens.is_join_secret(tokens.new_join_secret())
    digest = tokens.token_sha256(token)
    assert len(digest) == 64
    assert token[4:] not in digest
    assert tokens.same_hash(digest, tokens.token_sha256(token))
    assert not tokens.same_hash(digest, tokens.token_sha256(token + "x"))
    tokens.token_sha256("\ud800")


def test_only_a_well_formed_bearer_token_is_taken_from_a_header() -> None:
    token = tokens.new_token()
    assert tokens.bearer_token(f"Bearer {token}") == token
    assert tokens.bearer_token(f"bearer {token}") == token
    for header in (None, "", token, "Bearer ", f"Basic {token}", f"Bearer  {token}", f"Bearer {token}\n",
                   f"Bearer {token}x", b"Bearer x", "Bearer " + "x" * 1_000_000):  # fmt: skip
        assert tokens.bearer_token(header) is None


def test_join_string_is_one_pasteable_line(tmp_path: Path) -> None:
    pki = ensure_pki(tmp_path, LISTEN)
    token = tokens.new_token()
    joined = encode_join("gpu01:7480", token, pki.ca_pem)
    assert joined.startswith("gps-join-v1.")
    assert all(char.isalnum() or char in "-_." for char in joined)
    assert len(joined) < 2000, "fits the line buffer of a terminal"
    assert decode_join(f"  {joined}\n") == JoinString("gpu01:7480", token, pki.ca_pem)
    assert not decode_join(joined).is_for_agent
    assert decode_join(encode_join("gpu01:7480", tokens.new_join_secret(), pki.ca_pem)).is_for_agent
    assert token not in repr(decode_join(joined))


def test_damaged_join_strings_are_refused_without_showing_the_secret(tmp_path: Path) -> None:
    ca_pem = ensure_pki(tmp_path, LISTEN).ca_pem
    token = tokens.new_token()
    good = encode_join("gpu01:7480", token, ca_pem)
    bad = [
        "",
        "hello",
        token,
        good[:-3],
        good + "!",
        good.replace("v1", "v2"),
        PREFIX,
        PREFIX + "e30",
        PREFIX + "W10",
        PREFIX + "A" * 20_000,
        encode_join("gpu01:7480", "not-a-token", ca_pem),
        encode_join("gpu01:7480", token, ""),
        encode_join("gpu01:7480", token, "hello"),
        encode_join("no address", token, ca_pem),
        encode_join("gpu01:7480", token, 5),  # type: ignore[arg-type]
    ]
    for text in bad:
        with pytest.raises(InvalidArgumentError) as caught:
            decode_join(text)
        assert caught.value.violations[0].field == "join"
        assert token not in str(caught.value)
    assert decode_join(encode_join("127.0.0.1:7480", token, "")).ca_pem == ""


# -- certificates


def names_of(pki: Pki) -> set[str]:
    leaf = x509.load_pem_x509_certificate(pki.cert_pem)
    return {str(each.value) for each in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def test_certificates_are_made_once_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "pki"
    first = ensure_pki(directory, "10.1.2.3:7480", ["gpu01.lab:7480"])
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in (CA_KEY_FILE, KEY_FILE):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert sorted(os.listdir(directory)) == sorted([CA_KEY_FILE, CA_FILE, KEY_FILE, CERT_FILE])
    assert names_of(first) == {"10.1.2.3", "gpu01.lab", "localhost", "127.0.0.1", "::1", socket.gethostname().lower()}
    assert ensure_pki(directory, "10.1.2.3:7480", ["gpu01.lab:7480"]) == first
    ca = x509.load_pem_x509_certificate(first.ca_pem.encode())
    assert timedelta(days=3640) < ca.not_valid_after_utc - datetime.now(UTC) < timedelta(days=3660)
    assert "PRIVATE" not in first.ca_pem


def test_leaf_follows_the_listen_address_and_the_calendar(tmp_path: Path) -> None:
    first = ensure_pki(tmp_path, LISTEN)
    moved = ensure_pki(tmp_path, "10.1.2.3:7480")
    assert "10.1.2.3" in names_of(moved)
    assert moved.ca_pem == first.ca_pem
    soon = ensure_pki(tmp_path, "10.1.2.3:7480", now=datetime.now(UTC) + timedelta(days=59))
    assert soon == moved
    later = ensure_pki(tmp_path, "10.1.2.3:7480", now=datetime.now(UTC) + timedelta(days=61))
    assert later.cert_pem != moved.cert_pem
    assert later.ca_pem == first.ca_pem
    assert later.not_after > moved.not_after
    wildcard = ensure_pki(tmp_path, "0.0.0.0:7480")
    assert "0.0.0.0" not in names_of(wildcard)


@pytest.mark.parametrize(
    ("lost", "same_ca"),
    [
        ([KEY_FILE], True),
        ([CERT_FILE], True),
        ([CA_FILE], False),
        ([CA_FILE, CERT_FILE, KEY_FILE], False),
    ],
)
def test_a_crash_between_two_files_is_mended_with_the_same_ca_key(
    tmp_path: Path, lost: list[str], same_ca: bool
) -> None:
    first = ensure_pki(tmp_path, LISTEN)
    for name in lost:
        (tmp_path / name).unlink()
    (tmp_path / f".{CERT_FILE}.new").write_bytes(b"half")
    mended = ensure_pki(tmp_path, LISTEN)
    assert (mended.ca_pem == first.ca_pem) is same_ca
    leaf = x509.load_pem_x509_certificate(mended.cert_pem)
    # Clients that joined before go on trusting it.
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(first.ca_pem.encode()))
    key = serialization.load_pem_private_key(mended.key_pem, None)
    assert key.public_key() == leaf.public_key()
    assert sorted(os.listdir(tmp_path)) == sorted([CA_KEY_FILE, CA_FILE, KEY_FILE, CERT_FILE]) or lost == [CA_FILE]


def test_a_leaf_of_another_key_or_garbage_is_remade(tmp_path: Path) -> None:
    ensure_pki(tmp_path / "a", LISTEN)
    other = ensure_pki(tmp_path / "b", LISTEN)
    (tmp_path / "a" / CERT_FILE).write_bytes(other.cert_pem)
    mended = ensure_pki(tmp_path / "a", LISTEN)
    assert mended.cert_pem != other.cert_pem
    (tmp_path / "a" / CERT_FILE).write_bytes(b"garbage")
    (tmp_path / "a" / KEY_FILE).write_bytes(b"garbage")
    assert names_of(ensure_pki(tmp_path / "a", LISTEN)) == names_of(other)


@pytest.mark.parametrize("name", [CA_KEY_FILE, KEY_FILE])
def test_a_key_that_others_can_read_is_refused_and_named(tmp_path: Path, name: str) -> None:
    ensure_pki(tmp_path, LISTEN)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(FailedPreconditionError, match="read by other users") as caught:
        ensure_pki(tmp_path, LISTEN)
    assert str(tmp_path / name) in str(caught.value)
    assert "chmod 600" in str(caught.value)


def test_a_damaged_ca_key_is_never_replaced(tmp_path: Path) -> None:
    ensure_pki(tmp_path, LISTEN)
    (tmp_path / CA_KEY_FILE).write_bytes(b"garbage")
    with pytest.raises(FailedPreconditionError, match=CA_KEY_FILE):
        ensure_pki(tmp_path, LISTEN)
    assert (tmp_path / CA_KEY_FILE).read_bytes() == b"garbage"


def test_a_server_renews_its_leaf_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = PkiLeaf(tmp_path, LISTEN)
    first = leaf()
    assert leaf() == first
    (tmp_path / CERT_FILE).unlink()
    assert leaf() == first, "looked at once an hour only"
    monkeypatch.setattr("gpushare.scheduler.pki.RECHECK_S", -1.0)
    second = leaf()
    assert second != first
    (tmp_path / KEY_FILE).chmod(0o644)
    assert leaf() == second, "the old pair is shown while renewing fails"


# -- a server and a client


async def _echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return dict(context.invocation_metadata() or ()).get("authorization", "").encode() + request[:64]


async def _count(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    for number in range(3):
        yield f"{dict(context.invocation_metadata() or ()).get('authorization', '')} {number}".encode()


async def _pong(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
) -> AsyncIterator[bytes]:
    async for request in requests:
        yield dict(context.invocation_metadata() or ()).get("authorization", "").encode() + request


async def _join(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return b"".join([request async for request in requests])


async def _hang(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    yield b"open"
    await asyncio.sleep(TIMEOUT_S)


@asynccontextmanager
async def serving(leaf: LeafSource | None, listen: str = LISTEN) -> AsyncIterator[Address]:
    server = aio_server()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Count": grpc.unary_stream_rpc_method_handler(_count),
        "Pong": grpc.stream_stream_rpc_method_handler(_pong),
        "Join": grpc.stream_unary_rpc_method_handler(_join),
        "Hang": grpc.unary_stream_rpc_method_handler(_hang),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    address = bind(server, listen, leaf)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def call(address: str, request: bytes = b"x", *, ca_pem: str = "", token: str = "", **options: object) -> bytes:
    """One Echo, or the GpushareError that a person would see."""
    async with aio_channel(address, ca_pem=ca_pem, token=token) as channel:
        try:
            answer: bytes = await channel.unary_unary("/test.Test/Echo")(request, timeout=TIMEOUT_S, **options)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err, address) from None
        return answer


def leaf_of(pki: Pki) -> LeafSource:
    return lambda: (pki.key_pem, pki.cert_pem)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(limited())


def test_token_travels_with_every_kind_of_call(tmp_path: Path) -> None:
    pki = ensure_pki(tmp_path, LISTEN)

    async def body() -> None:
        async with serving(leaf_of(pki)) as address:
            for host in ("127.0.0.1", "localhost"):
                said = await call(f"{host}:{address.port}", ca_pem=pki.ca_pem, token="gps_a", metadata=(("k", "v"),))
                assert said == b"Bearer gps_ax"
            async with aio_channel(str(address), ca_pem=pki.ca_pem, token="gps_a") as channel:
                counted = [each async for each in channel.unary_stream("/test.Test/Count")(b"", timeout=TIMEOUT_S)]
                assert counted == [b"Bearer gps_a 0", b"Bearer gps_a 1", b"Bearer gps_a 2"]
                stream = channel.stream_stream("/test.Test/Pong")(timeout=TIMEOUT_S)
                for request in (b" 1", b" 2"):
                    await stream.write(request)
                    assert await stream.read() == b"Bearer gps_a" + request
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF

                async def parts() -> AsyncIterator[bytes]:
                    yield b"a"
                    yield b"b"

                assert await channel.stream_unary("/test.Test/Join")(parts(), timeout=TIMEOUT_S) == b"ab"

    run(body)


async def refusal(address: str, ca_pem: str) -> GpushareError:
    with pytest.raises(UnavailableError) as caught:
        await call(address, ca_pem=ca_pem)
    assert caught.value.reason is Reason.SCHEDULER_UNREACHABLE
    assert address in caught.value.message
    return caught.value


def test_untrusted_servers_are_refused_and_the_cause_is_named(tmp_path: Path) -> None:
    good = ensure_pki(tmp_path / "good", LISTEN)
    other = ensure_pki(tmp_path / "other", LISTEN)
    old = ensure_pki(tmp_path / "old", LISTEN, now=datetime.now(UTC) - timedelta(days=200))
    future = ensure_pki(tmp_path / "future", LISTEN, now=datetime.now(UTC) + timedelta(days=200))

    async def body() -> None:
        async with serving(leaf_of(good)) as address:
            assert "Certificate verify failed" in (await refusal(str(address), other.ca_pem)).message
            plain = await refusal(str(address), "")
            assert "it may speak TLS" in plain.message
        async with serving(leaf_of(old)) as address:
            assert "expired" in (await refusal(str(address), old.ca_pem)).message
        async with serving(leaf_of(future)) as address:
            assert "not valid yet" in (await refusal(str(address), future.ca_pem)).message
        async with serving(None) as address:
            assert "speaks plain text" in (await refusal(str(address), good.ca_pem)).message
            assert await call(str(address)) == b"x"
        assert "Nothing listens" in (await refusal(str(address), good.ca_pem)).message

    run(body)


def test_a_certificate_for_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpushare.scheduler.pki._hosts", lambda listen, names: frozenset({"elsewhere.example"}))
    pki = ensure_pki(tmp_path, LISTEN)

    async def body() -> None:
        async with serving(leaf_of(pki)) as address:
            for host in ("127.0.0.1", "localhost"):
                error = await refusal(f"{host}:{address.port}", pki.ca_pem)
                assert "is for other names" in error.message

    run(body)


def _tls_version(port: int, ca_pem: str, version: ssl.TLSVersion) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_below_1_2_is_refused(tmp_path: Path) -> None:
    pki = ensure_pki(tmp_path, LISTEN)

    async def body() -> None:
        async with serving(leaf_of(pki)) as address:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                assert await asyncio.to_thread(_tls_version, address.port, pki.ca_pem, version)
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.to_thread(_tls_version, address.port, pki.ca_pem, version)
            assert await call(str(address), ca_pem=pki.ca_pem) == b"x"

    run(body)


def test_a_renewed_leaf_is_shown_to_the_next_connection(tmp_path: Path) -> None:
    first = ensure_pki(tmp_path / "first", LISTEN)
    second = ensure_pki(tmp_path / "second", LISTEN)
    shown = [first]

    async def body() -> None:
        async with serving(lambda: (shown[0].key_pem, shown[0].cert_pem)) as address:
            assert await call(str(address), ca_pem=first.ca_pem) == b"x"
            shown[0] = second
            assert await call(str(address), ca_pem=second.ca_pem) == b"x"
            await refusal(str(address), first.ca_pem)

    run(body)


def test_no_clear_text_beyond_this_machine() -> None:
    async def body() -> None:
        for listen in ("0.0.0.0:0", "[::]:0", "10.1.2.3:0", "gpu01:0"):
            with pytest.raises(FailedPreconditionError, match="without TLS only a loopback"):
                bind(aio_server(), listen, None)
        with pytest.raises(FailedPreconditionError, match="no CA certificate"):
            aio_channel("gpu01:7480", token="gps_a")

    run(body)


def test_a_port_is_never_shared() -> None:
    async def body() -> None:
        async with serving(None) as address:
            with pytest.raises(FailedPreconditionError, match="another process may have it"):
                bind(aio_server(), str(address), None)

    run(body)


def test_large_messages_are_refused_by_their_decompressed_size(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with serving(None) as address:
            assert await call(str(address), b"\0" * (4 << 20)) == b"\0" * 64
            for size_bytes, compression in (
                (5 << 20, grpc.Compression.NoCompression),
                (64 << 20, grpc.Compression.Gzip),  # 64 KiB on the wire
            ):
                with pytest.raises(ResourceExhaustedError) as caught:
                    await call(str(address), b"\0" * size_bytes, compression=compression)
                assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
            assert await call(str(address)) == b"x", "the server goes on"

    with caplog.at_level(logging.ERROR):
        run(body)
    assert not caplog.records


def test_oversized_headers_are_refused() -> None:
    async def body() -> None:
        async with serving(None) as address:
            assert len(await call(str(address), token="gps_" + "x" * 8000)) > 8000
            with pytest.raises((ResourceExhaustedError, UnavailableError)):
                await call(str(address), token="gps_" + "x" * (1 << 20))
            assert await call(str(address)) == b"x"

    run(body)


def test_streams_per_connection_are_bounded() -> None:
    async def body() -> None:
        async with serving(None) as address, aio_channel(str(address)) as channel:
            streams = [
                channel.unary_stream("/test.Test/Hang")(b"", timeout=TIMEOUT_S)
                for _ in range(rpc.STREAMS_PER_CONNECTION_MAX + 1)
            ]
            opened = [asyncio.ensure_future(stream.read()) for stream in streams]
            deadline = asyncio.get_running_loop().time() + TIMEOUT_S
            while sum(read.done() for read in opened) < rpc.STREAMS_PER_CONNECTION_MAX:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # time in which one more would have been let in
            waiting = {read for read in opened if not read.done()}
            assert len(waiting) == 1
            next(stream for stream, read in zip(streams, opened, strict=True) if read.done()).cancel()
            await asyncio.wait(waiting, timeout=TIMEOUT_S)
            assert waiting.pop().result() == b"open"
            for stream in streams:
                stream.cancel()

    run(body)


def test_a_client_is_back_within_a_second_of_a_restart(tmp_path: Path) -> None:
    pki = ensure_pki(tmp_path, LISTEN)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with serving(leaf_of(pki)) as address:
            channel = aio_channel(str(address), ca_pem=pki.ca_pem)
            echo = channel.unary_unary("/test.Test/Echo")
            assert await echo(b"x", timeout=TIMEOUT_S) == b"x"
        deadline = loop.time() + 3  # long enough for the back-off to have grown to its limit
        while loop.time() < deadline:
            with pytest.raises(grpc.aio.AioRpcError):
                await echo(b"x", timeout=TIMEOUT_S)
            await asyncio.sleep(0.05)
        async with serving(leaf_of(pki), str(address)):
            back = loop.time()
            assert await echo(b"x", timeout=TIMEOUT_S, wait_for_ready=True) == b"x"
            assert loop.time() - back < 1.5
        await channel.close()

    run(body)


def test_http_proxies_of_the_environment_do_not_catch_local_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def body() -> None:
        async with serving(None) as address:
            assert await call(str(address)) == b"x"

    run(body)


def test_a_port_that_is_taken_is_one_refusal_and_no_line_of_grpcs(capfd: pytest.CaptureFixture[str]) -> None:
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(FailedPreconditionError, match=f"listen 127.0.0.1:{port}: .*Address already in use"):
                bind(aio_server(), f"127.0.0.1:{port}", None)
        assert bind(aio_server(), f"127.0.0.1:{port}", None).port == port

    asyncio.run(check())
    assert capfd.readouterr().err == ""
