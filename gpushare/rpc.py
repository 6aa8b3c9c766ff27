"""Builders of gRPC channels and servers: TLS, the caller's token, keepalive, limits, quick reconnects.

Imports grpc. One event loop per process; a process that imported this never forks. Invariants: nothing
leaves this machine without TLS, on either side; every message, header block, stream count and wait has a
limit; a port is never shared with another process.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio

from gpushare.address import Address, is_loopback, parse_address
from gpushare.errors import FailedPreconditionError
from gpushare.reasons import Reason

MESSAGE_MAX_BYTES = 4 << 20
# Answers may hold a page of large jobs; the scheduler is trusted more than its callers, but not without
# limit.
ANSWER_MAX_BYTES = 16 << 20
METADATA_MAX_BYTES = 16 << 10
STREAMS_PER_CONNECTION_MAX = 100
RPCS_MAX = 8192

KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
# Pings closer together than this are strikes against the connection; our own clients stay at twice the
# distance.
PING_FLOOR_MS = 10_000
PING_STRIKES_MAX = 2
HANDSHAKE_TIMEOUT_MS = 10_000
IDLE_CONNECTION_MAX_MS = 300_000

# A lost connection is tried again after 100 ms, then at most every 800 ms; grpc adds 20 % of jitter to each.
RECONNECT_FIRST_MS = 100
RECONNECT_MAX_MS = 800
CONNECT_TIMEOUT_MS = 5_000

Options = list[tuple[str, int]]
#: Gives the token as it is now, since one may be renewed while its channel is open.
TokenSource = Callable[[], str]
#: Gives (private key, certificate chain), both PEM, as they are now; called at each handshake, so it must be quick.
LeafSource = Callable[[], tuple[bytes, bytes]]

_CLIENT_OPTIONS: Final[Options] = [
    ("grpc.max_receive_message_length", ANSWER_MAX_BYTES),
    ("grpc.max_send_message_length", -1),  # the scheduler's limit decides, with its own error
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),  # a quiet watch is kept alive for as long as it lasts
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.service_config_disable_resolution", 1),
    # A connection of its own: neither another channel's back-off nor its trust is shared.
    ("grpc.use_local_subchannel_pool", 1),
]

_SERVER_OPTIONS: Final[Options] = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", ANSWER_MAX_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),  # a quiet watch is kept alive for as long as it lasts
    ("grpc.http2.min_ping_interval_without_data_ms", PING_FLOOR_MS),
    ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
    # A connection without a call: whoever does not answer a ping is gone, whoever does may come again.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MAX_MS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
]


class _WithToken:
    """Puts the token on every call. grpc's own call credentials do the same at two thirds of the calls per second.

    grpc.aio takes an interceptor for the first kind of call that it is an instance of, hence one class for each kind.
    """

    def __init__(self, token: TokenSource) -> None:
        self._token = token

    def details(self, given: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        return grpc.aio.ClientCallDetails(
            method=given.method,
            timeout=given.timeout,
            metadata=grpc.aio.Metadata(*(given.metadata or ()), ("authorization", f"Bearer {self._token()}")),
            credentials=given.credentials,
            wait_for_ready=given.wait_for_ready,
        )


class _UnaryUnary(_WithToken, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _UnaryStream(_WithToken, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _StreamUnary(_WithToken, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)


class _StreamStream(_WithToken, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)


def aio_channel(address: str, *, ca_pem: str = "", token: str | TokenSource = "") -> grpc.aio.Channel:
    """A channel to a scheduler; connects at the first call. `token` may be what gives it for each call.

    With `ca_pem` it speaks TLS and trusts that CA alone. Without, the address must be on this machine, else
    FailedPreconditionError: a token never crosses a network in clear.
    """
    target = parse_address(address)
    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream) if token else ()
    source = token if callable(token) else lambda: token
    interceptors = [kind(source) for kind in kinds]
    options = list(_CLIENT_OPTIONS)
    if is_loopback(target.host):
        options.append(("grpc.enable_http_proxy", 0))
    if ca_pem:
        credentials = grpc.ssl_channel_credentials(ca_pem.encode())
        return grpc.aio.secure_channel(str(target), credentials, options=options, interceptors=interceptors)
    if not is_loopback(target.host):
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"There is no CA certificate for {target}, and without TLS only this machine may be called.",
            what_to_do="Log in with a join string, which carries the certificate.",
        )
    return grpc.aio.insecure_channel(str(target), options=options, interceptors=interceptors)


def aio_server(
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    message_max_bytes: int = MESSAGE_MAX_BYTES,
) -> grpc.aio.Server:
    """A server with every limit set; add servicers, then `bind`, then start it.

    `message_max_bytes` counts what a message is after decompression.
    """
    options = [*_SERVER_OPTIONS, ("grpc.max_receive_message_length", message_max_bytes)]
    return grpc.aio.server(interceptors=list(interceptors), options=options, maximum_concurrent_rpcs=RPCS_MAX)


def bind(server: grpc.aio.Server, listen: str, leaf: LeafSource | None) -> Address:
    """Opens the port and returns the address with the port that was taken (`listen` may end in ":0").

    Without `leaf` there is no TLS, which is refused beyond loopback. A port in use is a
    FailedPreconditionError too.
    """
    wanted = parse_address(listen, "listen", minimum_port=0)
    if leaf is None and not is_loopback(wanted.host):
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"listen {wanted}: without TLS only a loopback address may be listened on.",
            what_to_do="Leave TLS on, or listen on 127.0.0.1.",
        )
    try:
        _try_to_bind(wanted)
        if leaf is None:
            port = server.add_insecure_port(str(wanted))
        else:
            port = server.add_secure_port(str(wanted), _server_credentials(leaf))
    except (RuntimeError, OSError) as err:
        why = f": {err.strerror}" if isinstance(err, OSError) and err.strerror else ""
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"listen {wanted}: this address cannot be listened on{why}; another process may have it.",
            what_to_do="Stop the other process, or choose another address or port.",
        ) from err
    return Address(wanted.host, port)


def _try_to_bind(wanted: Address) -> None:
    """Raises OSError where the address cannot be had: grpc would say so too, in lines of its own on stderr first."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(address)
        # Two may bind the same port as long as neither listens.
        tried.listen(1)


def _server_credentials(leaf: LeafSource) -> grpc.ServerCredentials:
    """TLS 1.2 or newer whose certificate can be renewed while the server runs."""
    shown = leaf()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        now = leaf()
        if now == shown:
            return None
        shown = now
        return grpc.ssl_server_certificate_configuration([now])

    first = grpc.ssl_server_certificate_configuration([shown])
    # None ("unchanged") is what grpc documents; the type stubs do not know it.
    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], renewed)
    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=False)
