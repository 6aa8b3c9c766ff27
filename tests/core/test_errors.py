"""Reasons, statuses and exceptions: everything a server refuses arrives typed, bounded and with a way out."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare.errors import (
    RETRY_AFTER_S,
    STATUS_MAX_BYTES,
    FieldViolation,
    GpushareError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    error_of,
    from_rpc_error,
    invalid_field,
    status_of,
    to_status,
    unreachable,
)
from gpushare.reasons import SENTENCES, Reason


class Failed(grpc.RpcError):
    """An RPC that ended with this status, as a client sees it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: object = ()) -> None:
        super().__init__(details)
        self._answer = SimpleNamespace(code=code, details=details, metadata=metadata)

    def code(self) -> grpc.StatusCode:
        return self._answer.code

    def details(self) -> str:
        return self._answer.details

    def trailing_metadata(self) -> object:
        return self._answer.metadata


def over_the_wire(error: GpushareError) -> GpushareError:
    status = to_status(error)
    return from_rpc_error(Failed(status.code, status.details, status.trailing_metadata))


def test_every_reason_says_what_it_means_and_what_to_do() -> None:
    assert set(SENTENCES) == set(Reason)
    for reason, sentences in SENTENCES.items():
        assert reason == reason.name
        for sentence in sentences:
            assert sentence[0].isupper(), sentence
            assert sentence.endswith("."), sentence
            assert sentence.isascii(), sentence


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    sent = error_of(reason, metadata={"node": "n1"}, violations=[FieldViolation("tasks", "is negative")])
    status = to_status(sent)
    assert status.code is grpc.StatusCode[status_of(reason)]
    back = over_the_wire(sent)
    assert type(back) is type(sent)
    assert back.reason is reason
    assert back.message == SENTENCES[reason][0]
    assert back.what_to_do == SENTENCES[reason][1]
    assert back.metadata == {"node": "n1"}
    assert back.violations == (FieldViolation("tasks", "is negative"),)


def test_own_sentences_survive_the_wire() -> None:
    back = over_the_wire(
        error_of(Reason.NEVER_FITS, "200 GiB fit no card; the largest has 141.", what_to_do="Ask for 141 GiB.")
    )
    assert str(back) == "NEVER_FITS: 200 GiB fit no card; the largest has 141 (Ask for 141 GiB)"
    assert "what_to_do" not in back.metadata


def test_a_refused_field_is_named_once() -> None:
    error = over_the_wire(invalid_field("gpu_milli", "is 1001, above 1000"))
    assert isinstance(error, InvalidArgumentError)
    assert error.metadata == {"field": "gpu_milli"}
    assert str(error).count("gpu_milli") == 1
    several = error_of(Reason.INVALID_FIELD, violations=[FieldViolation("a", "is 1"), FieldViolation("b", "is 2")])
    assert "[a: is 1; b: is 2]" in str(several)


@pytest.mark.parametrize("sentence", ["8 GPUs never fit one node; the largest has 4", " ".join(map(str, range(150)))])
@pytest.mark.parametrize("prefix", ["resources: ", ""])
def test_a_refusal_says_each_sentence_once(sentence: str, prefix: str) -> None:
    sent = error_of(Reason.NEVER_FITS, prefix + sentence, violations=[FieldViolation("resources", prefix + sentence)])
    for error in (sent, over_the_wire(sent)):
        assert str(error).count(sentence[:200]) == 1
        assert str(error).count("resources") == 1
        assert not error.violations[0].description.startswith("resources")


def test_waits_and_ends_are_failed_preconditions_as_refusals() -> None:
    assert status_of(Reason.UNIX_USER_UNMAPPED) == "FAILED_PRECONDITION"
    assert status_of(Reason.OCCUPIED) == "FAILED_PRECONDITION"


def test_retry_delay_is_told_in_the_standard_way_too() -> None:
    from google.rpc import error_details_pb2, status_pb2

    status = to_status(error_of(Reason.BUSY, metadata={RETRY_AFTER_S: "15"}))
    details = status_pb2.Status.FromString(status.trailing_metadata[0][1]).details
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in details if detail.Is(retry.DESCRIPTOR))
    assert retry.retry_delay.ToSeconds() == 15


def any_text(max_size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(), max_size=max_size)  # lone surrogates included


@given(
    message=any_text(3000),
    values=st.dictionaries(any_text(100), any_text(700), max_size=40),
    fields=st.lists(st.tuples(any_text(300), any_text(400)), max_size=40),
)
def test_nothing_a_caller_sends_makes_an_answer_too_large_or_unsendable(
    message: str, values: dict[str, str], fields: list[tuple[str, str]]
) -> None:
    error = error_of(
        Reason.INVALID_FIELD, message, metadata=values, violations=[FieldViolation(*each) for each in fields]
    )
    status = to_status(error)
    assert len(status.trailing_metadata[0][1]) <= STATUS_MAX_BYTES
    status.details.encode()
    assert over_the_wire(error).reason is Reason.INVALID_FIELD


def test_hostile_figures_stay_within_the_limit() -> None:
    large = "\U0001f680\ud800" * 50_000
    error = error_of(
        Reason.INVALID_FIELD,
        large,
        metadata={f"{number}{large}": large for number in range(100)},
        violations=[FieldViolation(large, large)] * 1000,
    )
    assert len(to_status(error).trailing_metadata[0][1]) <= STATUS_MAX_BYTES


def test_a_reason_this_client_does_not_know_keeps_its_status() -> None:
    from google.rpc import error_details_pb2, status_pb2

    proto = status_pb2.Status(code=5, message="No such thing.")
    proto.details.add().Pack(error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain="gpushare"))
    metadata = (("grpc-status-details-bin", proto.SerializeToString()),)
    error = from_rpc_error(Failed(grpc.StatusCode.NOT_FOUND, "No such thing.", metadata))
    assert isinstance(error, NotFoundError)
    assert error.message == "No such thing."
    assert error.metadata["reason"] == "FROM_THE_FUTURE"


def test_damaged_or_foreign_details_are_ignored() -> None:
    from google.rpc import error_details_pb2, status_pb2

    foreign = status_pb2.Status(code=14)
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain="elsewhere"))
    for data in (b"\xff\xff", foreign.SerializeToString(), b""):
        metadata = (("grpc-status-details-bin", data),)
        error = from_rpc_error(Failed(grpc.StatusCode.UNAVAILABLE, "Connection refused", metadata), "h:1")
        assert isinstance(error, UnavailableError)
        assert error.reason is Reason.SCHEDULER_UNREACHABLE
        assert error.message == "Nothing listens at h:1."


def test_what_grpc_itself_answers() -> None:
    too_large = from_rpc_error(
        Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (5 vs. 4)")
    )
    assert isinstance(too_large, ResourceExhaustedError)
    assert too_large.reason is Reason.MESSAGE_TOO_LARGE
    overload = from_rpc_error(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"))
    assert overload.reason is Reason.BUSY
    late = from_rpc_error(Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    assert late.reason is Reason.DEADLINE_EXCEEDED
    assert "at most once" in late.what_to_do
    unknown_call = from_rpc_error(Failed(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
    assert isinstance(unknown_call, UnimplementedError)
    assert "same version" in unknown_call.what_to_do
    for code, details in (
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.INTERNAL, "Internal error from Core"),
    ):
        cut_off = from_rpc_error(Failed(code, details), "h:1")
        assert cut_off.reason is Reason.SCHEDULER_UNREACHABLE
    crashed = from_rpc_error(Failed(grpc.StatusCode.UNKNOWN, "Unexpected <class 'KeyError'>: 'x'"))
    assert crashed.reason is Reason.INTERNAL
    no_text = from_rpc_error(Failed(grpc.StatusCode.DATA_LOSS, ""))
    assert no_text.reason is Reason.INTERNAL


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("ipv4:10.0.0.1:1: Failed to connect to remote host: Connection refused", "Nothing listens"),
        ("errors resolving x:1: [address lookup failed for x:1: Domain name not found]", "cannot be resolved"),
        ("failed to connect to all addresses; last error: No route to host", "no way in the network"),
        ("Timeout occurred: FD Shutdown; connection attempt timed out", "does not answer"),
        ("GOAWAY received; Error code: 11; Debug Text: too_many_pings", "pinged too often"),
        ("Socket closed", "was lost"),
        ("", "was lost"),
    ],
)
def test_the_cause_of_an_unreachable_scheduler_is_named(details: str, said: str) -> None:
    message, what_to_do = unreachable(details, "gpu01:7480")
    assert said in message
    assert "gpu01:7480" in message
    assert what_to_do.endswith(".")


def test_importing_errors_loads_neither_grpc_nor_protobuf() -> None:
    code = (
        "import sys, gpushare.errors, gpushare.join, gpushare.quantity\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'msgspec', 'asyncio')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
