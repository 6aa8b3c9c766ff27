"""What no caller should send: bytes that are no messages, sizes, numbers nobody defined, calls that are given up."""

from __future__ import annotations

import asyncio
import gc
import gzip
import random
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import grpc.aio
import pytest
from api_cluster import ApiCluster, api_cluster, create, refusal, run, until

from gpushare import rpc
from gpushare.scheduler.api_gate import parse
from gpushare.scheduler.server import SERVICES
from gpushare.v1 import job_pb2, tenant_pb2

CREATE_JOB = "/gpushare.v1.JobService/CreateJob"
MIB = 1 << 20


async def status_of(call: Any) -> tuple[str, str]:
    try:
        await call
    except grpc.aio.AioRpcError as err:
        return err.code().name, err.details() or ""
    return "OK", ""


def no_utf8(field: int) -> bytes:
    """A text field that holds a lone continuation byte."""
    return bytes([field << 3 | 2, 2, 0xFF, 0xFE])


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", no_utf8(1), no_utf8(3), b"\x12\x04" + no_utf8(2), b"\x0a"],
)
def test_bytes_that_are_no_message_are_an_invalid_argument(tmp_path: Path, data: bytes) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            before = cluster.engine.state.encode()
            for who, expected in (("ann", "INVALID_ARGUMENT"), ("", "UNAUTHENTICATED")):
                status, details = await status_of(cluster.channel(who).unary_unary(CREATE_JOB)(data))
                assert status == expected
                assert "Traceback" not in details
                assert "DecodeError" not in details
            watch = cluster.channel("ann").unary_stream("/gpushare.v1.JobService/WatchJobs")(data)
            assert (await refusal(watch)).status in ("INVALID_ARGUMENT", "NOT_FOUND")
            assert cluster.engine.state.encode() == before

    run(test)


def test_random_bytes_to_every_rpc_are_never_an_internal_error(tmp_path: Path) -> None:
    async def test() -> None:
        draw = random.Random(7)
        async with api_cluster(tmp_path) as cluster:
            await cluster.enroll("n1")
            for service in SERVICES:
                for method in service.methods:
                    if method.client_streaming or method.server_streaming:
                        continue
                    call = cluster.channel("root").unary_unary(f"/{service.full_name}/{method.name}")
                    for _ in range(20):
                        status, _ = await status_of(call(draw.randbytes(draw.randrange(200))))
                        refusals = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED")
                        assert status in ("OK", *refusals), method.name
            for path in ("AgentService/Session", "AgentService/SendLogs"):
                for _ in range(20):
                    call = cluster.channel("n1").stream_stream(f"/gpushare.v1.{path}")()
                    await call.write(draw.randbytes(50))
                    assert (await refusal(call)).status in ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED")
            assert cluster.engine.leading

    run(test)


def test_unknown_fields_are_ignored_and_unknown_numbers_are_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            unknown_field = b"\xfa\x7f\x03abc"  # number 2047
            call = cluster.channel("ann").unary_unary(CREATE_JOB)
            answer = await call(create().SerializeToString() + unknown_field)
            assert job_pb2.CreateJobResponse.FromString(answer).jobs[0].id == "1"
            for spec in (
                {"on_disconnect": 999},
                {"resources": job_pb2.Resources(gpu_milli=1, min_enforcement=999)},  # type: ignore[arg-type]
            ):
                assert (await refusal(cluster.jobs("ann").CreateJob(create(**spec)))).status == "INVALID_ARGUMENT"
            for request in (
                cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", state=999)),  # type: ignore[arg-type]
                cluster.tenants("root").CreateToken(
                    tenant_pb2.CreateTokenRequest(user="x", role=999, request_id="r")  # type: ignore[arg-type]
                ),
            ):
                assert (await refusal(request)).status == "INVALID_ARGUMENT"
            assert list(cluster.engine.state.jobs) == ["vision/1"]

    run(test)


@pytest.mark.parametrize("size", [5 * MIB, 64 * MIB])
def test_a_message_beyond_four_mebibytes_is_refused(tmp_path: Path, size: int) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            error = await refusal(cluster.jobs("ann").CreateJob(create(script=bytes(size))))
            assert (error.status, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
            assert not cluster.engine.state.jobs
            assert (await cluster.submit()).id == "1"

    run(test)


def test_a_message_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(script=bytes(40 * MIB))
            assert len(gzip.compress(request.SerializeToString())) < MIB
            channel = cluster.channel("ann")
            call = channel.unary_unary(CREATE_JOB)(request.SerializeToString(), compression=grpc.Compression.Gzip)
            assert (await status_of(call))[0] == "RESOURCE_EXHAUSTED"
            assert not cluster.engine.state.jobs

    run(test)


def test_many_streams_on_one_connection_wait_or_are_refused_and_others_are_served(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.submit("nina", "nlp")
            flood = [cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-")) for _ in range(2_000)]
            # Which of them gets through first is not said: they queue until the connection is there.
            reads = [asyncio.ensure_future(call.read()) for call in flood]
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            request = job_pb2.GetJobRequest(name="tenants/nlp/jobs/1")
            assert (await asyncio.wait_for(cluster.jobs("nina").GetJob(request), 5)).id == "1"
            for call in flood:
                call.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    run(test)


@pytest.mark.parametrize("timeout_s", [1e-9, 0.001, 0.004])
def test_a_call_that_is_given_up_leaves_nothing_half_done(tmp_path: Path, timeout_s: float) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            requests = [create(array_indexes=[1, 2, 3]) for _ in range(50)]
            outcomes = await asyncio.gather(
                *(status_of(cluster.jobs("ann").CreateJob(request, timeout=timeout_s)) for request in requests)
            )
            assert {status for status, _ in outcomes} <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
            await whole_arrays(cluster)
            # The same requests again: each is done exactly once in the end.
            for request in requests:
                await cluster.jobs("ann").CreateJob(request)
            assert len(cluster.engine.state.jobs) == 150
            await whole_arrays(cluster)

    run(test)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_half_done(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            for _ in range(20):
                channel = rpc.aio_channel(cluster.address, token=cluster.tokens["ann"])
                calls = [
                    channel.unary_unary(CREATE_JOB)(create(array_indexes=[1, 2]).SerializeToString()) for _ in range(5)
                ]
                await asyncio.sleep(0.002)
                await channel.close()
                await asyncio.gather(*calls, return_exceptions=True)
            await whole_arrays(cluster)
            assert (await cluster.submit()).state == job_pb2.JOB_STATE_QUEUED

    run(test)


async def whole_arrays(cluster: ApiCluster) -> None:
    """What was begun is whole, and durable."""

    async def settled() -> bool:
        return cluster.engine.durable_seq == cluster.engine.state.seq

    await until(settled, "everything is durable")
    state = cluster.engine.state
    sizes = {len(children) for children in state.arrays.values()}
    assert len(sizes) <= 1
    assert len(state.arrays) == state.tenants["vision"].next_number - 1


def test_a_failure_inside_is_told_by_its_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpushare.scheduler import convert

    def broken(*_: object) -> object:
        raise RuntimeError("the secret cause")

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit()
            with monkeypatch.context() as patched:
                patched.setattr(convert, "job", broken)
                for call in (
                    cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name)),
                    cluster.jobs("ann").CreateJob(create()),
                    cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-")),
                ):
                    error = await refusal(call)
                    assert (error.status, error.reason) == ("INTERNAL", "INTERNAL")
                    assert "secret" not in str(error)
                    assert error.metadata["incident"] in error.message
            # The scheduler goes on as if nothing had been.
            assert cluster.engine.leading
            assert (await cluster.submit()).id == "3"

    run(test)


def test_refused_calls_leave_no_frames_to_the_cycle_collector(tmp_path: Path) -> None:
    """Or a flood of them would have it stop every other call for tens of ms, again and again."""

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            submit = cluster.channel("ann").unary_unary(CREATE_JOB)
            watch = cluster.channel("ann").unary_stream("/gpushare.v1.JobService/WatchJobs")
            gc.collect()
            gc.disable()
            try:
                for _ in range(20):
                    assert (await status_of(submit(b"\xff")))[0] == "INVALID_ARGUMENT"
                    assert (await refusal(watch(b"\xff"))).status == "INVALID_ARGUMENT"
                    request = job_pb2.CreateJobRequest(parent="tenants/vision", request_id="no-command")
                    assert (await status_of(submit(request.SerializeToString())))[0] == "INVALID_ARGUMENT"
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                frames = [each for each in gc.garbage if isinstance(each, FrameType)]
                assert [f.f_code.co_name for f in frames if "gpushare/scheduler" in f.f_code.co_filename] == []
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    run(test)


def test_what_a_message_holds_beyond_its_fields_is_not_carried_on() -> None:
    unknown = bytes([0xFA, 0x7F]) + bytes([0x80, 0x80, 0x40]) + bytes(1 << 20)  # field 2047, 1 MiB
    request = job_pb2.ConnectRequest().SerializeToString() + unknown
    assert parse(job_pb2.ConnectRequest, request).ByteSize() == 0
