"""Reasons <-> gRPC status with ErrorInfo <-> typed exceptions, in one place.

Imports the standard library and `gpushare.reasons`; grpc and the protobuf messages only inside the
functions that need a wire, so that `gpushare --help` never pays for them. Invariants: every refusal carries
one `Reason`, a sentence that says what is wrong and one that says what to do; what goes on the wire is
bounded and valid UTF-8 whatever the caller sent; an unexpected exception reaches the other side as INTERNAL
without its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from gpushare.reasons import SENTENCES, Reason

if TYPE_CHECKING:
    import grpc
    import grpc.aio
    from google.rpc import status_pb2

DOMAIN = "gpushare"

# A peer may drop an answer whose metadata passes 8 KiB. The message travels there twice, percent-encoded and
# inside the status, and the status in base64: 3 x 800 + 4/3 x 3584 stays below.
MESSAGE_MAX_BYTES = 800
STATUS_MAX_BYTES = 3584
VALUE_MAX_BYTES = 300
RETRY_AFTER_S = "retry_after_s"


class FieldViolation(NamedTuple):
    """One field that was refused: its path in the request, and why in half a sentence."""

    field: str
    description: str


class GpushareError(Exception):
    """A refusal or failure that a person can act on.

    `reason` is stable; `message` is one sentence on what is wrong and `what_to_do` one on the way out (both
    default to those of the reason); `metadata` holds figures and names as text (`RETRY_AFTER_S` becomes
    RetryInfo); `violations` the fields that were refused. Subclasses differ only in the gRPC status they
    travel with.
    """

    status: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        reason: Reason,
        message: str = "",
        *,
        what_to_do: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        meaning, way_out = SENTENCES[reason]
        self.reason = reason
        self.message = message or meaning
        self.what_to_do = what_to_do or way_out
        self.metadata = dict(metadata or {})
        self.violations = tuple(_plain(each) for each in violations)
        super().__init__(reason, self.message)

    def __str__(self) -> str:
        """ "REASON: what is wrong (what to do)": what the command line prints after "error: "."""
        way_out = self.what_to_do.rstrip(".")
        is_said = way_out.lower() in self.message.lower()
        return self.sentence if is_said else f"{self.sentence} ({way_out})"

    @property
    def sentence(self) -> str:
        """ "REASON: what is wrong"."""
        fields = "; ".join(filter(None, (self._unsaid(each) for each in self.violations)))
        said = f"{self.message} [{fields}]" if fields else self.message
        return f"{self.reason}: {said.rstrip('.')}"

    def _unsaid(self, violation: FieldViolation) -> str:
        """What the message does not say of it already; a description that was cut on the wire counts by its part."""
        if violation.description.removesuffix("...").rstrip(". ") not in self.message:
            return f"{violation.field}: {violation.description}"
        return "" if violation.field in self.message else violation.field


def _plain(violation: FieldViolation) -> FieldViolation:
    """The field's name stands in `field` and not in front of the description once more."""
    return FieldViolation(violation.field, violation.description.removeprefix(f"{violation.field}: "))


class InvalidArgumentError(GpushareError):
    status = "INVALID_ARGUMENT"


class NotFoundError(GpushareError):
    status = "NOT_FOUND"


class AlreadyExistsError(GpushareError):
    status = "ALREADY_EXISTS"


class PermissionDeniedError(GpushareError):
    status = "PERMISSION_DENIED"


class UnauthenticatedError(GpushareError):
    status = "UNAUTHENTICATED"


class FailedPreconditionError(GpushareError):
    status = "FAILED_PRECONDITION"


class ResourceExhaustedError(GpushareError):
    status = "RESOURCE_EXHAUSTED"


class AbortedError(GpushareError):
    status = "ABORTED"


class UnavailableError(GpushareError):
    status = "UNAVAILABLE"


class DeadlineExceededError(GpushareError):
    status = "DEADLINE_EXCEEDED"


class UnimplementedError(GpushareError):
    status = "UNIMPLEMENTED"


class InternalError(GpushareError):
    status = "INTERNAL"


_CLASS_OF_STATUS: Final[Mapping[str, type[GpushareError]]] = {
    each.status: each
    for each in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        UnauthenticatedError,
        FailedPreconditionError,
        ResourceExhaustedError,
        AbortedError,
        UnavailableError,
        DeadlineExceededError,
        UnimplementedError,
        InternalError,
    )
}

# What is not here (waits, ends, conditions) means, as a refusal, that the state of things does not allow it.
_STATUS_OF_REASON: Final[Mapping[Reason, str]] = {
    Reason.INVALID_FIELD: "INVALID_ARGUMENT",
    Reason.REQUEST_ID_REQUIRED: "INVALID_ARGUMENT",
    Reason.REQUEST_ID_REUSED: "ALREADY_EXISTS",
    Reason.RESERVED_ENV: "INVALID_ARGUMENT",
    Reason.ARRAY_TOO_LARGE: "INVALID_ARGUMENT",
    Reason.NEVER_FITS: "FAILED_PRECONDITION",
    Reason.QUEUE_FULL: "RESOURCE_EXHAUSTED",
    Reason.BUSY: "RESOURCE_EXHAUSTED",
    Reason.MESSAGE_TOO_LARGE: "RESOURCE_EXHAUSTED",
    Reason.PRIORITY_ABOVE_ROLE: "PERMISSION_DENIED",
    Reason.RUN_LIMIT: "INVALID_ARGUMENT",
    Reason.JOB_ENDED: "FAILED_PRECONDITION",
    Reason.NOT_FOUND: "NOT_FOUND",
    Reason.ALREADY_EXISTS: "ALREADY_EXISTS",
    Reason.TENANT_NOT_EMPTY: "FAILED_PRECONDITION",
    Reason.PERMISSION_DENIED: "PERMISSION_DENIED",
    Reason.UNAUTHENTICATED: "UNAUTHENTICATED",
    Reason.JOIN_SECRET_INVALID: "UNAUTHENTICATED",
    Reason.HOST_NOT_TRUSTED: "PERMISSION_DENIED",
    Reason.LOGIN_DENIED: "PERMISSION_DENIED",
    Reason.LOGIN_UNMAPPED: "PERMISSION_DENIED",
    Reason.TENANT_AMBIGUOUS: "FAILED_PRECONDITION",
    Reason.DUPLICATE_AGENT: "ALREADY_EXISTS",
    Reason.BAD_REPORT: "INVALID_ARGUMENT",
    Reason.STALE_TERM: "ABORTED",
    Reason.STALE_ATTEMPT: "FAILED_PRECONDITION",
    Reason.NODE_NOT_SILENT: "FAILED_PRECONDITION",
    Reason.NODE_BUSY: "FAILED_PRECONDITION",
    Reason.RESERVATION_CONFLICT: "FAILED_PRECONDITION",
    Reason.RESERVATION_NO_ROOM: "FAILED_PRECONDITION",
    Reason.NODE_UNREACHABLE: "UNAVAILABLE",
    Reason.LOGS_GONE: "NOT_FOUND",
    Reason.LOG_READER_STALLED: "RESOURCE_EXHAUSTED",
    Reason.CONNECTION_STALLED: "RESOURCE_EXHAUSTED",
    Reason.WATCH_TOO_SLOW: "RESOURCE_EXHAUSTED",
    Reason.RESUME_TOKEN_INVALID: "INVALID_ARGUMENT",
    Reason.PAGE_TOKEN_INVALID: "INVALID_ARGUMENT",
    Reason.NOT_LEADER: "UNAVAILABLE",
    Reason.STORE_UNAVAILABLE: "UNAVAILABLE",
    Reason.SCHEDULER_UNREACHABLE: "UNAVAILABLE",
    Reason.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    Reason.CONFIG_INVALID: "FAILED_PRECONDITION",
    Reason.INTERNAL: "INTERNAL",
}

# For answers that carry no ErrorInfo, because grpc itself or something between made them.
_REASON_OF_STATUS: Final[Mapping[str, Reason]] = {
    "INVALID_ARGUMENT": Reason.INVALID_FIELD,
    "NOT_FOUND": Reason.NOT_FOUND,
    "ALREADY_EXISTS": Reason.ALREADY_EXISTS,
    "PERMISSION_DENIED": Reason.PERMISSION_DENIED,
    "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
    "DEADLINE_EXCEEDED": Reason.DEADLINE_EXCEEDED,
}


def status_of(reason: Reason) -> str:
    """The name of the `grpc.StatusCode` that a refusal with this reason travels with."""
    return _STATUS_OF_REASON.get(reason, "FAILED_PRECONDITION")


def error_of(
    reason: Reason,
    message: str = "",
    *,
    what_to_do: str = "",
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[FieldViolation] = (),
) -> GpushareError:
    """The typed exception for a reason."""
    kind = _CLASS_OF_STATUS[status_of(reason)]
    return kind(reason, message, what_to_do=what_to_do, metadata=metadata, violations=violations)


def invalid_field(field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> GpushareError:
    """The refusal of one field."""
    return error_of(
        reason,
        f"{field}: {description}",
        metadata={"field": field},
        violations=(FieldViolation(field, description),),
    )


# -- servers


def to_status(error: GpushareError) -> grpc.Status:
    """As grpc takes it: the code, the message, and ErrorInfo and BadRequest as details."""
    from grpc_status import rpc_status

    status: grpc.Status = rpc_status.to_status(to_status_proto(error))
    return status


def to_status_proto(error: GpushareError) -> status_pb2.Status:
    """google.rpc.Status, at most `STATUS_MAX_BYTES` long: what does not fit is left out from the end."""
    import grpc
    from google.rpc import error_details_pb2, status_pb2

    code = grpc.StatusCode[error.status].value[0]
    status = status_pb2.Status(code=code, message=_clipped(error.message, MESSAGE_MAX_BYTES))
    info = error_details_pb2.ErrorInfo(reason=str(error.reason), domain=DOMAIN)
    pairs = list(error.metadata.items())
    if error.what_to_do != SENTENCES[error.reason][1]:
        pairs.insert(0, ("what_to_do", error.what_to_do))
    room_bytes = STATUS_MAX_BYTES - status.ByteSize() - 200  # what holds the details together
    for key, value in pairs:
        key, value = _clipped(key, 64), _clipped(value, VALUE_MAX_BYTES)
        room_bytes -= len(key.encode()) + len(value.encode()) + 8
        if room_bytes < 0:
            break
        info.metadata[key] = value
    request = error_details_pb2.BadRequest()
    for each in error.violations:
        field, description = _clipped(each.field, 200), _clipped(each.description, VALUE_MAX_BYTES)
        room_bytes -= len(field.encode()) + len(description.encode()) + 12
        if room_bytes < 0:
            break
        request.field_violations.add(field=field, description=description)
    status.details.add().Pack(info)
    if request.field_violations:
        status.details.add().Pack(request)
    retry_after_s = error.metadata.get(RETRY_AFTER_S, "")
    if re.fullmatch(r"[0-9]{1,6}", retry_after_s):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(int(retry_after_s))
        status.details.add().Pack(retry)
    return status


def refuse(context: grpc.aio.ServicerContext[object, object], error: GpushareError) -> None:
    """The RPC's end will be this error, once its handler returns. Not `context.abort`: what that raises holds the call
    that holds it, rings that only Python's cycle collector frees, and a flood of refusals has it stop every call for
    tens of ms."""
    status = to_status(error)
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(status.trailing_metadata)


def _clipped(text: str, max_bytes: int) -> str:
    """Bounded and encodable: lone surrogates are shown as escapes instead of failing the answer."""
    data = text[: max_bytes + 1].encode(errors="backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode(errors="ignore") + "..."


# -- clients


def from_rpc_error(error: grpc.RpcError, address: str = "") -> GpushareError:
    """The typed exception for what an RPC raised. `address` is named where the scheduler could not be
    reached."""
    call: Any = error  # sync calls and grpc.aio share these methods, but no type
    code: grpc.StatusCode = call.code()
    details: str = call.details() or ""
    proto = _status_proto_of(call.trailing_metadata() or ())
    said = _from_status_proto(proto, code.name) if proto is not None else None
    return said or _from_grpc_itself(code.name, details, address)


def _status_proto_of(metadata: Iterable[tuple[str, bytes]]) -> status_pb2.Status | None:
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    for key, value in metadata:
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _from_status_proto(status: status_pb2.Status, code_name: str) -> GpushareError | None:
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
    if info.domain != DOMAIN:
        return None
    metadata = dict(info.metadata)
    what_to_do = metadata.pop("what_to_do", "")
    if info.reason in Reason.__members__:
        reason = Reason[info.reason]
    else:
        # A newer scheduler: its word is kept, its status decides what the caller does.
        reason = _REASON_OF_STATUS.get(code_name, Reason.INTERNAL)
        metadata["reason"] = info.reason
    return _CLASS_OF_STATUS.get(code_name, InternalError)(
        reason,
        status.message,
        what_to_do=what_to_do,
        metadata=metadata,
        violations=[FieldViolation(each.field, each.description) for each in request.field_violations],
    )


# The last is the word of grpc.aio (1.85) for a write on a stream that the other side has ended; it hides how that one
# ended it, which the next call will say (grpc/grpc#36066).
_CUT_OFF = re.compile(r"Stream removed|RST_STREAM|GOAWAY|Socket closed|Internal error from Core")


def _from_grpc_itself(code_name: str, details: str, address: str) -> GpushareError:
    said = {"grpc": _clipped(details, VALUE_MAX_BYTES)}
    cut_off = _CUT_OFF.search(details) is not None
    if code_name in ("UNAVAILABLE", "CANCELLED") or (cut_off and code_name in ("UNKNOWN", "INTERNAL")):
        message, what_to_do = unreachable(details, address)
        return UnavailableError(Reason.SCHEDULER_UNREACHABLE, message, what_to_do=what_to_do, metadata=said)
    if code_name == "RESOURCE_EXHAUSTED":
        too_large = re.search(r"larger than max|exceeds? .*(?:size|limit)", details) is not None
        reason = Reason.MESSAGE_TOO_LARGE if too_large else Reason.BUSY
        return ResourceExhaustedError(reason, metadata=said)
    if code_name == "UNIMPLEMENTED":
        return UnimplementedError(
            Reason.INTERNAL,
            "The scheduler does not know this call.",
            what_to_do="Use a client and a scheduler of the same version.",
            metadata=said,
        )
    reason = _REASON_OF_STATUS.get(code_name, Reason.INTERNAL)
    return _CLASS_OF_STATUS.get(code_name, InternalError)(reason, metadata=said)


# What grpc says -> what is wrong at {at}, what to do. The first that matches counts.
_CAUSES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        r"certificate has expired",
        "The certificate of the scheduler {at} has expired.",
        "Check the clock of this host; a restarted scheduler renews its certificate.",
    ),
    (
        r"not yet valid",
        "The certificate of the scheduler {at} is not valid yet.",
        "Set the clock of this host.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "Certificate verify failed: the scheduler {at} is not signed by the CA that this client trusts.",
        "Log in with a join string of this very scheduler.",
    ),
    (
        r"Hostname Verification Check failed|not in peer certificate",
        "Certificate verify failed: the certificate of the scheduler {at} is for other names than this one.",
        "Use the address of the join string, or have the admin add this one to `advertise`.",
    ),
    (
        r"WRONG_VERSION_NUMBER|wrong version number|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG",
        "What listens {at} speaks plain text, and this client speaks TLS.",
        "Check the address and port; a scheduler answers without TLS only if it was started so.",
    ),
    (
        r"unsupported protocol|UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION",
        "The scheduler {at} and this client share no version of TLS.",
        "TLS 1.2 or newer is needed.",
    ),
    (
        r"Connection refused",
        "Nothing listens {at}.",
        "Check the address, and that the scheduler runs.",
    ),
    (
        r"lookup|resolv|Domain name not found|Name or service not known",
        "The scheduler's host name {at} cannot be resolved.",
        "Check the address.",
    ),
    (
        r"No route to host|Network is unreachable",
        "There is no way in the network to the scheduler {at}.",
        "Check the address and this host's network.",
    ),
    (
        r"timed? ?out|Deadline",
        "The scheduler {at} does not answer.",
        "Check the address, and that no firewall is in between.",
    ),
    (
        r"too_many_pings|ENHANCE_YOUR_CALM",
        "The scheduler {at} closed the connection because this client pinged too often.",
        "Leave the keepalive settings as they are.",
    ),
    (
        r"failed to connect to all addresses.*(?:Socket closed|[Cc]onnection reset|Broken pipe)",
        "The scheduler {at} closed the connection at once; it may speak TLS, and this client plain text.",
        "Log in with a join string, or check that the scheduler is not being stopped.",
    ),
)  # fmt: skip


def unreachable(details: str, address: str = "") -> tuple[str, str]:
    """What is wrong and what to do, from the words of a failed connection (grpc's or the operating
    system's)."""
    at = f"at {address}" if address else "at this address"
    for pattern, message, what_to_do in _CAUSES:
        if re.search(pattern, details, re.DOTALL):
            return message.format(at=at), what_to_do
    return f"The connection to the scheduler {at} was lost.", "Try again; if it lasts, check that it runs."
