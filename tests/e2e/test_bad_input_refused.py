"""Bad input through both doors: it is refused with its status, reason and field, and nothing has changed."""

from __future__ import annotations

import os
import re

import pytest
from bad_input_table import IN_A_PROCESS, REFUSED, ROWS, USAGE, Row, job
from google.protobuf.message import Message
from shared_cluster import Outcome, World, request_id

from gpushare.client import messages as m
from gpushare.errors import GpushareError

BY_NAME = {row.name: row for row in ROWS}


def check_line(row: Row, done: Outcome, code: int | None = None) -> None:
    """One line on stderr, for a person; that `run` was fed through a pipe is a note of its own."""
    assert done.code == (row.code if code is None else code), done
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, done.err[:2000]
    assert re.match(rf"error: {row.reason}: .+", lines[0]), lines[0][:500]
    assert row.says in lines[0], lines[0][:500]
    assert "Traceback" not in done.err
    assert len(lines[0]) < 2000
    assert lines[0].isprintable()


def test_names_of_rows_are_unique() -> None:
    assert len({(row.name, row.words) for row in ROWS}) == len(BY_NAME) == len(ROWS)


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.request is not None])
def test_refused_by_the_api(world: World, name: str) -> None:
    row = BY_NAME[name]
    request = row.request
    assert request is not None
    if isinstance(request, Message) and not request.request_id:  # type: ignore[attr-defined]
        request = type(request).FromString(request.SerializeToString())
        request.request_id = request_id()  # type: ignore[attr-defined]
    before = world.mark()
    with pytest.raises(GpushareError) as refused:
        world.do(world.send(row.rpc, request, row.who))
    error = refused.value
    assert (error.status, error.reason) == (row.status, row.reason), error
    if row.field:
        assert [each.field for each in error.violations] == [row.field], error
    assert error.message
    assert error.what_to_do
    assert "Traceback" not in str(error)
    assert world.change_since(before) == []


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.words is not None])
def test_refused_by_the_command_line(world: World, name: str) -> None:
    row = BY_NAME[name]
    assert row.words is not None
    before = world.mark()
    check_line(row, world.cli(*row.words, who=row.who))
    assert world.change_since(before) == []


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_refused_by_the_command_line_as_a_process(world: World, name: str) -> None:
    row = BY_NAME[name]
    assert row.words is not None
    before = world.mark()
    check_line(row, world.cli_process(*row.words, who=row.who))
    # `run` has its own code, because the other codes are its job's.
    check_line(row, world.cli_process("run", *row.words[1:], who=row.who), code=125)
    assert world.change_since(before) == []


def test_arguments_that_are_no_utf8_are_refused_in_a_process(world: World) -> None:
    before = world.mark()
    done = world.cli_process("submit", "--gpus", "0.1", "--", b"\xff\xfe")
    assert (done.code, done.out) == (USAGE, "")
    assert "not valid UTF-8" in done.err
    assert world.change_since(before) == []


def test_a_file_of_100_000_variables_is_refused(world: World) -> None:
    file = world.cluster.home / "many.env"
    file.write_text("".join(f"V{number}=\n" for number in range(100_000)))
    before = world.mark()
    done = world.cli("submit", "--gpus", "0.1", "--env-file", str(file), "--", "/bin/true")
    assert (done.code, done.out) == (REFUSED, "")
    assert re.fullmatch(r"error: INVALID_FIELD: env.*256.*\n", done.err)
    assert world.change_since(before) == []


def test_an_array_of_ten_million_is_refused_by_its_size(world: World) -> None:
    before = world.mark()
    # As bytes: a message of 38 MB, which the API does not read further than 4 MiB.
    request = job(array_indexes=range(10_000_000)).SerializeToString()
    with pytest.raises(GpushareError) as refused:
        world.do(world.send("JobService/CreateJob", request))
    assert (refused.value.status, refused.value.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert world.change_since(before) == []


CHANGING = (
    *("JobService/CreateJob", "JobService/BatchCreateJobs", "JobService/CancelJob"),
    *("JobService/ExtendJob", "JobService/RequeueJob", "JobService/ResubmitJob"),
)


@pytest.mark.parametrize("rpc", CHANGING)
def test_a_call_that_changes_something_needs_a_request_id(world: World, rpc: str) -> None:
    request = {
        "JobService/CreateJob": job(),
        "JobService/BatchCreateJobs": m.BatchCreateJobsRequest(parent="tenants/team", jobs=[job().job]),
        "JobService/CancelJob": m.CancelJobRequest(name="tenants/team/jobs/1"),
        "JobService/ExtendJob": m.ExtendJobRequest(name="tenants/team/jobs/1"),
        "JobService/RequeueJob": m.RequeueJobRequest(name="tenants/team/jobs/1"),
        "JobService/ResubmitJob": m.ResubmitJobRequest(name="tenants/team/jobs/1"),
    }[rpc]
    before = world.mark()
    with pytest.raises(GpushareError) as refused:
        world.do(world.send(rpc, request))
    assert (refused.value.status, refused.value.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REQUIRED")
    assert world.change_since(before) == []


def test_unknown_fields_are_ignored(world: World) -> None:
    unknown = b"\xfa\x7f\x03abc"  # number 2047
    request = job(m.Resources(gpus=0))
    request.request_id = request_id()
    answer = m.CreateJobResponse.FromString(
        world.do(world.send("JobService/CreateJob", request.SerializeToString() + unknown))
    )
    ended = world.do(world.people["ann"].wait_jobs([answer.jobs[0].name]))
    assert ended[answer.jobs[0].name].state == m.JobState.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize(("door", "token"), [("with a token", True), ("without", False)])
def test_there_is_no_reflection(world: World, door: str, token: bool) -> None:
    from gpushare import rpc as channels

    settings = world.people["ann"].settings

    async def ask(service: str) -> str:
        import grpc.aio

        secret = settings.token if token else ""
        async with channels.aio_channel(settings.server, ca_pem=settings.ca_pem, token=secret) as channel:
            # One message with the call: an answer before a first write would be an error of that write.
            call = channel.unary_stream(f"/{service}/ServerReflectionInfo")(b"\x3a\x00")
            try:
                await call.read()
            except grpc.aio.AioRpcError as err:
                return err.code().name
        return "OK"

    for service in ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"):
        assert world.do(ask(service)) == "UNIMPLEMENTED"


def test_what_was_refused_left_no_file_behind(world: World) -> None:
    state = world.cluster.node_home("n1") / "state" / "attempts"
    world.do(world.end_jobs())
    assert all(entry.startswith(("team.", "nlp.")) for entry in os.listdir(state))
