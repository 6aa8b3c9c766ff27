"""The one door of every RPC: who calls, may they, is it a message, and what leaves when something fails.

Imports grpc, protobuf's descriptors, auth and errors. Handlers are built from the service descriptors, so an RPC
without an entry in the authorization table, or without a method here, stops the scheduler's start. Invariants: a token
is checked before a byte of the request is read, and the request must come within `MESSAGE_TIMEOUT_S`; of each tenant
one list is made at a time; a refusal leaves only when what it was judged by is durable; no exception's text and no
traceback reaches a caller; a stream ends within a second of its token's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from gpushare import errors
from gpushare.core.commands import Call, Command, Outcome
from gpushare.core.events import Entry, NodeEnrolled, TenantDeleted, TokenRevoked
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.ratelimit import Turns
from gpushare.reasons import Reason
from gpushare.scheduler.auth import Authenticator, Caller, rule_of
from gpushare.scheduler.denials import Denials
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.places import ListTurns, Places

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)
_Context = grpc.aio.ServicerContext[object, object]

EXPIRY_LOOK_EVERY_S = 0.5
# A refusal for too many requests is held back for so long: whoever asks again at once is slowed down by as much, and
# others are served meanwhile. Those of one tenant leave one by one, so that its callers never ask again all at once.
FULL_PAUSE_S, FULL_APART_S, FULL_PAUSE_MAX_S = 0.1, 0.01, 2.0
_CLOSING_S = 5.0
# A call's message, from its headers on.
MESSAGE_TIMEOUT_S = 20.0
_AUDITED = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.PERMISSION_DENIED,
        Reason.DUPLICATE_AGENT,
        Reason.JOIN_SECRET_INVALID,
        Reason.HOST_NOT_TRUSTED,
        Reason.LOGIN_DENIED,
        Reason.LOGIN_UNMAPPED,
        Reason.TENANT_AMBIGUOUS,
    }
)
_FULL = frozenset({Reason.QUEUE_FULL, Reason.BUSY})
_ENDS_TOKENS = (TokenRevoked, NodeEnrolled, TenantDeleted)

_log = structlog.get_logger(__name__)


# Watches and logs that one token may have open at once.
STREAMS_PER_TOKEN_MAX = 256


class StreamEnd:
    """The switch by which a stream is ended from outside, with an error for its caller."""

    def __init__(self) -> None:
        self._wanted: asyncio.Future[GpushareError] = asyncio.get_running_loop().create_future()

    def end(self, error: GpushareError) -> None:
        """The first error counts."""
        if not self._wanted.done():
            self._wanted.set_result(error)

    @property
    def wanted(self) -> asyncio.Future[GpushareError]:
        return self._wanted


class OpenStreams:
    """The streams that are open, by the token that opened them."""

    def __init__(self, authenticator: Authenticator, state: Callable[[], ClusterState]) -> None:
        self._authenticator = authenticator
        self._state = state
        self._by_token: dict[str, set[StreamEnd]] = {}

    def add(self, token_id: str, end: StreamEnd) -> None:
        """Raises BUSY for a token that has too many open: nobody may use up what all share."""
        ends = self._by_token.setdefault(token_id, set())
        if len(ends) >= STREAMS_PER_TOKEN_MAX:
            raise error_of(
                Reason.BUSY, f"{STREAMS_PER_TOKEN_MAX} streams of this token are open; end some of them first."
            )
        ends.add(end)

    def remove(self, token_id: str, end: StreamEnd) -> None:
        ends = self._by_token.get(token_id, set())
        ends.discard(end)
        if not ends:
            self._by_token.pop(token_id, None)

    def project(self, entries: Iterable[Entry], state: ClusterState) -> Callable[[], None] | None:
        """For the engine: once a revocation is durable, the token's streams end."""
        if not self._by_token or not any(isinstance(e.event, _ENDS_TOKENS) for e in entries):
            return None
        over = [t for t in self._by_token if t not in state.tokens or state.tokens[t].revoked_ms]
        return lambda: self._end(over, "The token was revoked.")

    def end_all(self, error: GpushareError) -> None:
        for ends in self._by_token.values():
            for end in ends:
                end.end(error)

    async def run(self) -> None:
        """Ends the streams of tokens that expire, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRY_LOOK_EVERY_S)
            tokens = self._state().tokens
            over = [t for t in self._by_token if t in tokens and self._authenticator.is_expired(tokens[t])]
            self._end(over, "The token has expired.")

    def _end(self, token_ids: Iterable[str], message: str) -> None:
        for token_id in token_ids:
            for end in self._by_token.get(token_id, ()):
                end.end(error_of(Reason.UNAUTHENTICATED, message))


class Gate:
    """Wraps servicers. A unary method is `async def create_job(request, caller) -> answer`; one that answers with a
    stream is `def watch_jobs(request_or_requests, caller, end) -> AsyncIterator[answer]`."""

    def __init__(
        self,
        engine: Engine,
        authenticator: Authenticator,
        denials: Denials,
        streams: OpenStreams,
        list_turns: ListTurns,
    ) -> None:
        self._engine = engine
        self._authenticator = authenticator
        self._denials = denials
        self._streams = streams
        self._turns = Turns(FULL_PAUSE_S, FULL_APART_S, FULL_PAUSE_MAX_S)
        self._places = Places()
        self._list_turns = list_turns

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """What serves all of `service`. Raises LookupError or AttributeError for an RPC without rule or method."""
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method, servicer) for method in service.methods}
        )

    def _handler(self, method: MethodDescriptor, servicer: object) -> grpc.RpcMethodHandler[Any, Any]:
        rpc = f"/{method.containing_service.full_name}/{method.name}"
        rule_of(rpc)
        request_type = GetMessageClass(method.input_type)
        target = getattr(servicer, method_name(method.name))
        # To grpc each takes a stream of messages: for a single one it would wait before it asks us who calls.
        if not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(rpc, request_type, target))
        serve = self._streaming(rpc, request_type, target, takes_many=method.client_streaming)
        return grpc.stream_stream_rpc_method_handler(serve)

    def _unary(self, rpc: str, request_type: type[Message], target: Callable[..., Awaitable[Message]]) -> Any:
        is_list = method_name(rpc.rpartition("/")[2]).startswith("list_")

        async def serve(_requests: object, context: _Context) -> bytes:
            place: str | None = None
            is_in = False
            try:
                try:
                    caller = self._admit(rpc, context)
                    place, is_in = self._places.take(caller), True
                    request = parse(request_type, await only_message(context))
                    if is_list:
                        async with self._list_turns.of(caller.tenant):
                            return (await target(request, caller)).SerializeToString()
                    return (await target(request, caller)).SerializeToString()
                except Exception as err:
                    error = _without_frames(await self._refusal(rpc, context, err))
                if error.reason in _FULL and is_in:
                    # Megabytes, perhaps, of many callers.
                    del request
                    await asyncio.sleep(self._turns.wait_s(caller.tenant, asyncio.get_running_loop().time()))
            finally:
                if is_in:
                    self._places.give(place)
            errors.refuse(context, error)
            return b""

        return serve

    def _streaming(
        self,
        rpc: str,
        request_type: type[Message],
        target: Callable[..., AsyncGenerator[Message, None]],
        *,
        takes_many: bool,
    ) -> Any:
        async def serve(requests: AsyncIterator[bytes], context: _Context) -> None:
            end = StreamEnd()
            token_id = ""
            place: str | None = None
            try:
                caller = self._admit(rpc, context)
                place = self._places.take(caller)
                token_id = caller.token_id
                self._streams.add(token_id, end)
                asked: Message | AsyncIterator[Message]
                if takes_many:
                    asked = _messages(request_type, requests)
                else:
                    asked = parse(request_type, await only_message(context))
                await _until_ended(_pump(target(asked, caller, end), context), end)
                return
            except Exception as err:
                error = _without_frames(await self._refusal(rpc, context, err))
            finally:
                self._streams.remove(token_id, end)
                self._places.give(place)
            errors.refuse(context, error)

        return serve

    def _admit(self, rpc: str, context: _Context) -> Caller:
        return self._authenticator.admit(rpc, context.invocation_metadata() or (), context.peer())

    async def _refusal(self, rpc: str, context: _Context, err: Exception) -> GpushareError:
        """What the caller is told, once it may be."""
        if isinstance(err, grpc.aio.BaseError):
            # What grpc raises where the caller has gone in the middle of an answer.
            raise asyncio.CancelledError from err
        if not isinstance(err, GpushareError):
            incident = uuid.uuid4().hex[:12]
            _log.error("unexpected error in an RPC", rpc=rpc, incident=incident, exc_info=err)
            return error_of(
                Reason.INTERNAL,
                f"The scheduler failed on this call (incident {incident}).",
                metadata={"incident": incident},
            )
        if err.reason in _AUDITED:
            who = self._authenticator.known(context.invocation_metadata() or ())
            self._denials.note(rpc, err, who, context.peer())
        if isinstance(err, errors.UnavailableError):
            return err
        try:
            await self._engine.read(_nothing)
        except GpushareError as newer:
            return newer
        return err


async def only_message(context: _Context) -> bytes:
    """What the call asks. Raises DEADLINE_EXCEEDED for one that keeps it to itself, INVALID_FIELD for one without."""
    try:
        async with asyncio.timeout(MESSAGE_TIMEOUT_S):
            data = await context.read()
    except TimeoutError:
        raise error_of(
            Reason.DEADLINE_EXCEEDED, f"The call began, and its message did not come within {MESSAGE_TIMEOUT_S:g} s."
        ) from None
    if data is grpc.aio.EOF:
        raise invalid_field("request", "the call carries no message")
    return cast("bytes", data)


def method_name(rpc_method: str) -> str:
    """ "WatchJobs" -> "watch_jobs"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc_method).lower()


def parse(request_type: type[_M], data: bytes) -> _M:
    """The message, or INVALID_FIELD: bytes that are none are the caller's fault, not ours."""
    try:
        message = request_type.FromString(data)
    except DecodeError as err:
        raise invalid_field("request", "the bytes are no such message (damaged, or a text is not UTF-8)") from err
    # What we do not know we do not carry either: it could be megabytes in a message that looks empty.
    message.DiscardUnknownFields()
    return message


def call_of(caller: Caller, request: Message) -> Call:
    """Who asks, and the request id with a digest of everything else. Raises REQUEST_ID_REQUIRED."""
    request_id: str = getattr(request, "request_id")  # noqa: B009 - every mutating request has one, Message does not
    if not request_id:
        raise error_of(Reason.REQUEST_ID_REQUIRED)
    request.ClearField("request_id")
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    setattr(request, "request_id", request_id)  # noqa: B010 - as above
    method = caller.rpc.rpartition("/")[2]
    return Call(principal=caller.principal, request_id=request_id, method=method, body_sha256=digest)


def _nothing(state: ClusterState) -> None:
    return None


def _without_frames(error: GpushareError) -> GpushareError:
    """The same, fit to be held by a frame that it came through: its traceback would hold that frame, and a flood of
    refusals would leave rings of them for Python's cycle collector, which stops every call for tens of ms."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def _messages(request_type: type[_M], data: AsyncIterator[bytes]) -> AsyncIterator[_M]:
    async for each in data:
        yield parse(request_type, each)


async def _pump(answers: AsyncGenerator[Message, None], context: _Context) -> None:
    async with aclosing(answers) as open_answers:
        async for answer in open_answers:
            await context.write(answer.SerializeToString())


async def _until_ended(work: Awaitable[None], end: StreamEnd) -> None:
    """Awaits `work`, and cancels it once `end` wants so; the error of `end` goes before what `work` came to."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, end.wanted), return_when=asyncio.FIRST_COMPLETED)
        if end.wanted.done():
            raise end.wanted.result()
        task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=_CLOSING_S)
        if task.done() and not task.cancelled():
            # Where the caller has gone nobody else looks at how it failed, and asyncio would complain of that.
            task.exception()


async def commit(engine: Engine, command: Command, call: Call, view: Callable[[ClusterState, Outcome], _T]) -> _T:
    """`engine.execute` for views that may fail: the caller gets INTERNAL, the engine goes on."""
    failed: list[Exception] = []

    def careful(state: ClusterState, outcome: Outcome) -> _T | None:
        try:
            return view(state, outcome)
        except Exception as err:
            failed.append(err)
            return None

    answer = await engine.execute(command, call, careful)
    if failed:
        raise failed[0]
    return cast("_T", answer)
