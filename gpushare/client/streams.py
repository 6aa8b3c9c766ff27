"""Streams that outlive their connection: a watch goes on from its resume token, a log from its byte offset.

Imports grpc.aio, `gpushare.errors` and the messages. Invariants: nothing that was delivered is delivered again and
nothing is left out, as far as the scheduler still has it; each outage is bounded by a limit that starts anew when
something came through; a stream that the caller leaves is cancelled at the scheduler.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from gpushare.client.messages import StreamLogsResponse, WatchJobsResponse
from gpushare.client.retry import Backoff, may_pass
from gpushare.errors import GpushareError, UnavailableError, from_rpc_error
from gpushare.reasons import Reason

# Long enough for a scheduler to be upgraded under a waiting caller.
RECONNECT_LIMIT_S = 600.0
RENEW_AGAIN_S = 1.0

# grpc.aio's stream calls have no public type that is both iterable and cancellable.
StreamCall = Any
OnReconnect = Callable[[GpushareError], None]
#: Gets another token in place of one that has ended; False where nobody gives one.
Renew = Callable[[], Awaitable[bool]]


async def _no_renewal() -> bool:
    return False


class _Renewal:
    """Another token, as often as a stream's token ends; never again at once, since then it is not for its age that it
    is refused."""

    def __init__(self, renew: Renew) -> None:
        self._renew = renew
        self._at_s = -math.inf

    async def helps(self, error: GpushareError) -> bool:
        now_s = time.monotonic()
        if error.reason != Reason.UNAUTHENTICATED or now_s - self._at_s < RENEW_AGAIN_S:
            return False
        self._at_s = now_s
        return await self._renew()


async def watch(
    start: Callable[[bytes], StreamCall],
    *,
    address: str,
    resume_token: bytes = b"",
    limit_s: float = RECONNECT_LIMIT_S,
    on_reconnect: OnReconnect | None = None,
    renew: Renew = _no_renewal,
) -> AsyncGenerator[WatchJobsResponse, None]:
    """Every change from `resume_token` on, over as many connections as it takes.

    `start(token)` opens the stream. A token that the scheduler no longer takes leads to a fresh listing, in which
    unchanged jobs come once more. Raises GpushareError when an outage lasts longer than `limit_s`, or the call is
    refused.
    """
    backoff = Backoff(limit_s)
    renewal = _Renewal(renew)
    token = resume_token
    while True:
        call = start(token)
        try:
            async for answer in call:
                backoff.succeeded()
                token = answer.resume_token or token
                yield answer
            error: GpushareError = _ended("watch", address)
        except grpc.aio.AioRpcError as err:
            error = from_rpc_error(err, address)
        finally:
            call.cancel()
        if await renewal.helps(error):
            continue
        if error.reason == Reason.RESUME_TOKEN_INVALID and token:
            token = b""
        elif error.reason != Reason.WATCH_TOO_SLOW and not may_pass(error):
            raise error
        await _pause(backoff, error, on_reconnect)


async def read_log(
    start: Callable[[int], StreamCall],
    *,
    address: str,
    offset: int = 0,
    follow: bool = False,
    limit_s: float = RECONNECT_LIMIT_S,
    on_reconnect: OnReconnect | None = None,
    renew: Renew = _no_renewal,
) -> AsyncGenerator[StreamLogsResponse, None]:
    """The bytes of one output stream from `offset` to its end, each once.

    `start(offset)` opens the stream. With `follow` a node that is out of reach is waited for, too. Raises
    GpushareError when an outage lasts longer than `limit_s`, or the call is refused.
    """
    backoff = Backoff(limit_s)
    renewal = _Renewal(renew)
    while True:
        call = start(offset)
        try:
            async for answer in call:
                backoff.succeeded()
                fresh = _from_offset(answer, offset)
                if fresh is not None:
                    offset = fresh.offset + len(fresh.data)
                    yield fresh
            return
        except grpc.aio.AioRpcError as err:
            error = from_rpc_error(err, address)
        finally:
            call.cancel()
        if await renewal.helps(error):
            continue
        waits_for_node = follow and error.reason == Reason.NODE_UNREACHABLE
        if not waits_for_node and error.reason != Reason.LOG_READER_STALLED and not may_pass(error):
            raise error
        await _pause(backoff, error, on_reconnect)


def _from_offset(answer: StreamLogsResponse, offset: int) -> StreamLogsResponse | None:
    """`answer` without what lies before `offset`; None where nothing of it is new."""
    if answer.offset >= offset:
        return answer
    known_bytes = offset - answer.offset
    if known_bytes >= len(answer.data):
        return None
    return StreamLogsResponse(offset=offset, data=answer.data[known_bytes:])


async def _pause(backoff: Backoff, error: GpushareError, on_reconnect: OnReconnect | None) -> None:
    if on_reconnect is not None:
        on_reconnect(error)
    if not await backoff.wait():
        raise error


def _ended(what: str, address: str) -> GpushareError:
    return UnavailableError(
        Reason.SCHEDULER_UNREACHABLE, f"The scheduler at {address} ended the {what} without a reason."
    )
