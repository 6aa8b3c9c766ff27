"""Logs through the API: joined to the agent that holds them, at the reader's pace, never more than a window at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_cluster import ApiCluster, WireAgent, api_cluster, refusal, run

from gpushare.errors import from_rpc_error
from gpushare.scheduler import logs as log_reads
from gpushare.v1 import agent_pb2, job_pb2

KIB = 1024


async def running_job(cluster: ApiCluster) -> tuple[WireAgent, job_pb2.Job]:
    agent = await cluster.agent("n1")
    job = await cluster.submit()
    start = await agent.order("start_attempt")
    await agent.run(start.attempt_id)
    return agent, job


def chunk(read_id: str, offset: int, data: bytes = b"", **fields: Any) -> agent_pb2.LogChunk:
    return agent_pb2.LogChunk(read_id=read_id, offset=offset, data=data, **fields)


def follow(cluster: ApiCluster, job: job_pb2.Job, who: str = "ann", **fields: Any) -> Any:
    return cluster.jobs(who).StreamLogs(job_pb2.StreamLogsRequest(name=job.name, **{"follow": True, **fields}))


def test_bytes_arrive_at_their_offsets_with_gaps_and_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job, stream=job_pb2.OUTPUT_STREAM_STDERR, offset=10)
            asked = await agent.order("read_logs")
            assert (asked.attempt_id, asked.stream, asked.offset, asked.follow) == ("vision.1.0.1", 2, 10, True)
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 10, b"one\xff\x00"))
            first = await logs.read()
            assert (first.offset, first.data, first.skipped_bytes) == (10, b"one\xff\x00", 0)
            assert (await sending.read()).bytes == 5
            await sending.write(chunk(asked.read_id, 1000, b"two", skipped_bytes=985, end=True))
            second = await logs.read()
            assert (second.offset, second.data, second.skipped_bytes) == (1000, b"two", 985)
            assert await logs.read() is grpc.aio.EOF
            assert (await agent.order("cancel_read")).read_id == asked.read_id

    run(test)


def test_only_what_the_reader_took_is_acknowledged_and_a_pushing_agent_is_cut_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            sent = taken = 0

            async def send_all() -> None:
                nonlocal sent
                for place in range(1024):
                    await sending.write(chunk(asked.read_id, place * 64 * KIB, bytes(64 * KIB)))
                    sent += 64 * KIB

            async def count() -> None:
                nonlocal taken
                async for ack in sending:
                    taken += ack.bytes

            # The reader reads nothing: 64 MiB cannot pass, and the scheduler holds no more than the window of them.
            pushing = asyncio.gather(send_all(), count())
            with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                await asyncio.wait_for(pushing, 20)
            assert taken < sent < 16 << 20
            assert (await refusal(logs)).reason == "BAD_REPORT"

    run(test)


def test_a_mebibyte_a_time_passes_whole_and_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job, follow=False)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            content = b"".join(n.to_bytes(4, "big") for n in range(2 << 20))  # 8 MiB

            async def send() -> None:
                unacknowledged = 0
                for offset in range(0, len(content), 64 * KIB):
                    await sending.write(chunk(asked.read_id, offset, content[offset : offset + 64 * KIB]))
                    unacknowledged += 64 * KIB
                    while unacknowledged >= 1 << 20:
                        unacknowledged -= (await sending.read()).bytes
                await sending.write(chunk(asked.read_id, len(content), end=True))

            async def receive() -> bytes:
                return b"".join([piece.data async for piece in logs])

            _, received = await asyncio.wait_for(asyncio.gather(send(), receive()), 30)
            assert received == content

    run(test)


def test_a_reader_that_takes_nothing_is_dropped_and_the_agent_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reads, "STALL_S", 1.0)
    monkeypatch.setattr(log_reads, "LOOK_EVERY_S", 0.1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()

            async def send() -> None:
                """What the agent's and the reader's side of the network hold, and a window more."""
                for offset in range(0, 256 << 20, 512 * KIB):
                    await sending.write(chunk(asked.read_id, offset, bytes(512 * KIB)))
                    taken = 0
                    while taken < 512 * KIB:
                        taken += (await sending.read()).bytes

            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(send(), 20)
            assert from_rpc_error(raised.value).reason == "LOG_READER_STALLED"
            assert (await agent.order("cancel_read")).read_id == asked.read_id
            assert (await refusal(logs)).reason == "LOG_READER_STALLED"
            # The job is none the worse.
            await agent.finish("vision.1.0.1")
            await agent.order("forget_attempt")

    run(test)


def test_a_reader_that_goes_away_ends_the_agents_work(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 0, b"x"))
            assert (await logs.read()).data == b"x"
            logs.cancel()
            assert (await agent.order("cancel_read")).read_id == asked.read_id
            assert [ack.bytes async for ack in sending] in ([], [1])

    run(test)


def test_a_node_that_is_away_is_named_with_since_when(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            open_logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 0, b"x"))
            assert (await open_logs.read()).data == b"x"
            waiting = follow(cluster, job, stream=job_pb2.OUTPUT_STREAM_STDERR)
            await agent.order("read_logs")
            await agent.close()
            for call in (open_logs, waiting, follow(cluster, job), follow(cluster, job, follow=False)):
                error = await asyncio.wait_for(refusal(call), 5)
                assert (error.status, error.reason, error.metadata["node"]) == ("UNAVAILABLE", "NODE_UNREACHABLE", "n1")
                assert "Node n1" in error.message
                assert error.metadata["since"].startswith("20")

    run(test)


def test_what_the_agent_cannot_read_is_told_with_its_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 0, end=True, error_reason="LOGS_GONE", error_detail="removed"))
            error = await refusal(logs)
            assert (error.status, error.reason, "removed" in error.message) == ("NOT_FOUND", "LOGS_GONE", True)

    run(test)


def test_an_agent_sends_only_for_reads_that_were_asked_of_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            thief = await cluster.agent("n2")
            logs = follow(cluster, job)
            asked = await agent.order("read_logs")
            for sender, read_id in ((thief, asked.read_id), (agent, "deadbeef"), (agent, "")):
                sending = sender.stub.SendLogs()
                await sending.write(chunk(read_id, 0, b"forged"))
                assert (await refusal(sending)).status == "NOT_FOUND"
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 0, b"true"))
            assert (await logs.read()).data == b"true"
            twice = agent.stub.SendLogs()
            await twice.write(chunk(asked.read_id, 4, b"forged"))
            assert (await refusal(twice)).status == "NOT_FOUND"
            await sending.write(chunk("another", 4, b"x"))
            assert (await refusal(logs)).status == "INVALID_ARGUMENT"

    run(test)


def test_more_readers_than_an_agent_serves_hear_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reads, "READS_PER_NODE_MAX", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            first = follow(cluster, job)
            await agent.order("read_logs")
            error = await refusal(follow(cluster, job))
            assert (error.status, error.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
            first.cancel()
            await agent.order("cancel_read")
            again = follow(cluster, job)
            await agent.order("read_logs")
            again.cancel()

    run(test)


def test_one_person_leaves_room_for_the_logs_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reads, "READS_PER_USER_MAX", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            first = follow(cluster, job)
            await agent.order("read_logs")
            error = await refusal(follow(cluster, job))
            assert (error.status, error.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
            other = follow(cluster, job, who="root")
            await agent.order("read_logs")
            other.cancel()
            first.cancel()

    run(test)


def test_one_tenant_leaves_room_for_the_logs_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reads, "READS_PER_TENANT_MAX", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent, job = await running_job(cluster)
            first = follow(cluster, job)
            await agent.order("read_logs")
            error = await refusal(follow(cluster, job, who="root"))
            assert error.reason == "BUSY"
            assert "Your tenant" in error.message
            first.cancel()

    run(test)


def test_following_a_queued_job_waits_for_its_first_attempt(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit()
            assert await follow(cluster, job, follow=False).read() is grpc.aio.EOF
            logs = follow(cluster, job)
            reading = asyncio.ensure_future(logs.read())
            agent = await cluster.agent("n1")
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)
            asked = await agent.order("read_logs")
            sending = agent.stub.SendLogs()
            await sending.write(chunk(asked.read_id, 0, b"hello", end=True))
            assert (await reading).data == b"hello"

    run(test)


def test_following_a_job_that_ends_before_it_starts_ends_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit()
            logs = follow(cluster, job)
            reading = asyncio.ensure_future(logs.read())
            await cluster.jobs("ann").CancelJob(job_pb2.CancelJobRequest(name=job.name, request_id="r"))
            assert await asyncio.wait_for(reading, 5) is grpc.aio.EOF

    run(test)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"offset": -1}, "INVALID_ARGUMENT"),
        ({"attempt": -1}, "INVALID_ARGUMENT"),
        ({"task_index": -1}, "INVALID_ARGUMENT"),
        ({"stream": 999}, "INVALID_ARGUMENT"),
        ({"task_index": 1}, "NOT_FOUND"),
        ({"attempt": 2}, "NOT_FOUND"),
    ],
)
def test_what_no_job_has_cannot_be_read(tmp_path: Path, fields: dict[str, Any], status: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit()
            assert (await refusal(follow(cluster, job, **fields))).status == status

    run(test)
