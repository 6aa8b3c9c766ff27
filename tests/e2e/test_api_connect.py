"""Connections through the API: who may, what the audit keeps, and that neither end can fill the scheduler."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_cluster import ApiCluster, WireAgent, api_cluster, refusal, run, until

from gpushare.core.commands import Call, RevokeToken
from gpushare.core.kinds import Role
from gpushare.core.model import SYSTEM
from gpushare.errors import GpushareError
from gpushare.scheduler import channels
from gpushare.v1 import agent_pb2, job_pb2, usage_pb2

KIB = 1024
Request = job_pb2.ConnectRequest
Response = job_pb2.ConnectResponse
TASK = "tenants/vision/jobs/1"


async def running_agent(cluster: ApiCluster, who: str = "ann") -> WireAgent:
    """A node that runs job 1."""
    agent = await cluster.agent("n1")
    await cluster.submit(who, stdin=True)
    start = await agent.order("start_attempt")
    await agent.run(start.attempt_id)

    async def seen() -> bool:
        job = await cluster.jobs("root").GetJob(job_pb2.GetJobRequest(name=TASK))
        return bool(job.state == job_pb2.JOB_STATE_RUNNING)

    await until(seen, "job 1 runs")
    return agent


def start(kind: str = "exec", name: str = TASK, **fields: Any) -> Request:
    if kind == "exec":
        fields.setdefault("argv", ["true"])
    made = {"exec": job_pb2.Exec, "attach": job_pb2.Attach, "forward": job_pb2.Forward}[kind](**fields)
    chosen: Any = {kind: made}
    return Request(start=job_pb2.ConnectionStart(name=name, **chosen))


async def connect(cluster: ApiCluster, agent: WireAgent, who: str = "ann", **fields: Any) -> tuple[Any, Any, Any]:
    """(the caller's stream, the order, the agent's stream), open from end to end."""
    call = cluster.jobs(who).Connect()
    await call.write(start(**fields))
    order = await agent.order("open_channel")
    channel = agent.stub.Channel()
    opened = Response(opened=job_pb2.ConnectionOpened(takes_input=True))
    await channel.write(agent_pb2.ChannelOutput(channel_id=order.channel_id, response=opened))
    assert (await call.read()).opened.node == "n1"
    return call, order, channel


async def refused(cluster: ApiCluster, request: Request, who: str = "ann") -> GpushareError:
    call = cluster.jobs(who).Connect()
    await call.write(request)
    return await refusal(call)


def test_what_one_end_says_the_other_hears_in_order_until_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            call, order, channel = await connect(cluster, agent, argv=["cat", "-"], term="xterm")
            assert (order.attempt_id, order.term, list(order.start.exec.argv)) == ("vision.1.0.1", 1, ["cat", "-"])
            for data in (b"one\xff", b"two"):
                await call.write(Request(input=data))
            await call.write(Request(window=job_pb2.WindowSize(rows=3, columns=4)))
            await call.write(Request(end_of_input=job_pb2.EndOfInput()))
            heard = [(await channel.read()).request for _ in range(4)]
            assert [each.input for each in heard[:2]] == [b"one\xff", b"two"]
            assert (heard[2].window.rows, heard[3].HasField("end_of_input")) == (3, True)
            for response in (
                Response(output=b"out"),
                Response(error_output=b"err"),
                Response(end=job_pb2.ConnectionEnd(exit_code=7)),
            ):
                await channel.write(agent_pb2.ChannelOutput(response=response))
            assert [(await call.read()).WhichOneof("message") for _ in range(2)] == ["output", "error_output"]
            assert (await call.read()).end.exit_code == 7
            assert await call.read() is grpc.aio.EOF
            assert (await agent.order("close_channel")).channel_id == order.channel_id

    run(test)


def test_own_jobs_for_a_user_every_job_for_an_admin_and_none_for_anybody_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            for kind, fields in (("exec", {}), ("attach", {}), ("forward", {"port": 80})):
                asked = start(kind, **fields)
                for who in ("bob", "olga", "tina", "vera"):
                    assert (await refused(cluster, asked, who)).status == "PERMISSION_DENIED", who
                # Of a tenant that she does not see, a job that is there is like one that is not.
                assert (await refused(cluster, asked, "nina")).status == "NOT_FOUND"
            for who in ("ann", "root"):
                call, _, _ = await connect(cluster, agent, who)
                call.cancel()

    run(test)


def test_every_connection_is_in_the_audit_with_who_to_what_and_how(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            kinds = {"exec": {"argv": ["nvidia-smi", "-L"]}, "attach": {}, "forward": {"port": 8888}}
            for kind, fields in kinds.items():
                await connect(cluster, agent, "root" if kind == "forward" else "ann", kind=kind, **fields)
            asked = usage_pb2.ListAuditEventsRequest(kind="ConnectionOpened", page_size=10)
            events = list((await cluster.usage("root").ListAuditEvents(asked)).events)
            details = [json.loads(event.detail_json) for event in reversed(events)]
            assert [(each["connection"], each["target"]) for each in details] == [
                ("exec", "nvidia-smi -L"),
                ("attach", ""),
                ("forward", "8888"),
            ]
            assert [event.principal.user for event in reversed(events)] == ["ann", "ann", "root"]
            assert {event.subject for event in events} == {TASK}

    run(test)


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (Request(input=b"x"), "INVALID_ARGUMENT", "start"),
        (Request(), "INVALID_ARGUMENT", "start"),
        (Request(start=job_pb2.ConnectionStart(name=TASK)), "INVALID_ARGUMENT", "attach"),
        (start(argv=[]), "INVALID_ARGUMENT", "argv"),
        (start(argv=[""]), "INVALID_ARGUMENT", "argv"),
        (start(argv=["a\0b"]), "INVALID_ARGUMENT", "NUL"),
        (start(argv=["x" * 33 * KIB]), "INVALID_ARGUMENT", "argv"),
        (start(term="x" * 65), "INVALID_ARGUMENT", "terminal"),
        (start(term="a\nb"), "INVALID_ARGUMENT", "terminal"),
        (start(window=job_pb2.WindowSize(rows=10_000)), "INVALID_ARGUMENT", "window"),
        (start("attach", window=job_pb2.WindowSize(columns=-1)), "INVALID_ARGUMENT", "window"),
        (start("forward", port=0), "INVALID_ARGUMENT", "port"),
        (start("forward", port=65_536), "INVALID_ARGUMENT", "port"),
        (start(name="tenants/vision/jobs/99"), "NOT_FOUND", "99"),
        (start(name="nonsense"), "NOT_FOUND", "nonsense"),
        (Request(start=job_pb2.ConnectionStart(name=TASK, task_index=7, attach={})), "NOT_FOUND", "tasks"),
        (Request(start=job_pb2.ConnectionStart(name=TASK, task_index=-1, attach={})), "INVALID_ARGUMENT", "task_index"),
    ],
)
def test_what_cannot_be_is_refused_and_no_node_hears_of_it(
    tmp_path: Path, request_: Request, status: str, says: str
) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            error = await refused(cluster, request_)
            assert error.status == status
            assert says in error.message
            # The next order that the agent sees is that of a good request.
            _, order, _ = await connect(cluster, agent, argv=["good"])
            assert list(order.start.exec.argv) == ["good"]

    run(test)


def test_a_job_that_waits_or_has_ended_or_is_being_stopped_cannot_be_connected_to(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            waiting = await cluster.submit()
            assert (await refused(cluster, start(name=waiting.name))).reason == "NOT_RUNNING"
            agent = await cluster.agent("n1")
            attempt_id = (await agent.order("start_attempt")).attempt_id
            assert (await refused(cluster, start(name=waiting.name))).reason == "NOT_RUNNING"
            await agent.run(attempt_id)
            await cluster.jobs("ann").CancelJob(job_pb2.CancelJobRequest(name=waiting.name, request_id="c"))
            error = await refused(cluster, start(name=waiting.name))
            assert error.reason == "NOT_RUNNING"
            assert "CANCELLING" in error.message

    run(test)


def test_a_nodes_refusal_reaches_the_caller_with_its_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            call = cluster.jobs("ann").Connect()
            await call.write(start("forward", port=8888))
            order = await agent.order("open_channel")
            channel = agent.stub.Channel()
            said = agent_pb2.ChannelOutput(channel_id=order.channel_id, error_reason="PORT_CLOSED", error_detail="none")
            await channel.write(said)
            error = await refusal(call)
            assert (error.reason, error.status) == ("PORT_CLOSED", "FAILED_PRECONDITION")
            assert "none" in error.message

    run(test)


def test_a_node_that_goes_ends_its_connections_and_an_agent_gets_no_other_nodes(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            call, order, _ = await connect(cluster, agent)
            other = await cluster.agent("n2")
            theft = other.stub.Channel()
            await theft.write(agent_pb2.ChannelOutput(channel_id=order.channel_id))
            assert (await refusal(theft)).status == "NOT_FOUND"
            await agent.close()
            assert (await refusal(call)).reason == "NODE_UNREACHABLE"

    run(test)


def test_revocation_ends_an_open_connection_within_a_second_at_both_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            token_id = await cluster.add_token("eve", Role.USER, "vision")
            agent = await running_agent(cluster, "eve")
            call, order, channel = await connect(cluster, agent, "eve")
            await cluster.engine.execute(RevokeToken(token_id), Call(SYSTEM))
            error = await asyncio.wait_for(refusal(call), 1.0)
            assert error.status == "UNAUTHENTICATED"
            assert await asyncio.wait_for(channel.read(), 1.0) is grpc.aio.EOF
            assert (await agent.order("close_channel")).channel_id == order.channel_id

    run(test)


async def pushed(call: Any, message: Any) -> int:
    """How many messages could be written before the scheduler ended the call."""
    for sent in range(1024):
        try:
            await call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return sent
    raise AssertionError("everything passed")


def test_neither_end_can_push_more_than_the_other_has_taken(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            # A caller that sends without end to a process that reads nothing.
            call, order, _ = await connect(cluster, agent)
            assert await asyncio.wait_for(pushed(call, Request(input=bytes(64 * KIB))), 20) < 256
            assert (await agent.order("close_channel")).channel_id == order.channel_id
            # An agent that pushes on a caller who reads nothing.
            call, _, channel = await connect(cluster, agent)
            flood = agent_pb2.ChannelOutput(response=Response(output=bytes(64 * KIB)))
            assert await asyncio.wait_for(pushed(channel, flood), 20) < 256
            assert (await refusal(call)).reason == "BAD_REPORT"

    run(test)


def test_messages_without_bytes_are_bounded_by_their_number() -> None:
    way: channels._Way[Request] = channels._Way()
    window = Request(window=job_pb2.WindowSize(rows=1, columns=1))
    assert all(way.put(window, 0) for _ in range(channels.FRAMES_MAX))
    assert not way.put(window, 0)


def test_a_caller_that_does_not_even_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "STALL_S", 0.5)
    monkeypatch.setattr(channels, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(channels, "WINDOW_BYTES", 64 << 20)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            call, _, channel = await connect(cluster, agent)
            # More than what lies between the two, and less than the window.
            for _ in range(32):
                await channel.write(agent_pb2.ChannelOutput(response=Response(output=bytes(1024 * KIB))))
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(channel.read(), 20)
            assert (await refusal(call)).reason == "CONNECTION_STALLED"

    run(test)


def test_a_person_begins_only_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be one more line of the audit, whatever becomes of it."""
    monkeypatch.setattr(channels, "BEGUN_BURST", 2)
    monkeypatch.setattr(channels, "BEGUN_PER_S", 0.001)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            for _ in range(2):
                (await connect(cluster, agent))[0].cancel()
            assert (await refused(cluster, start())).reason == "BUSY"
            await connect(cluster, agent, "root")

    run(test)


def test_one_tenant_leaves_connections_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "CHANNELS_PER_TENANT_MAX", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            await connect(cluster, agent)
            assert (await refused(cluster, start(), "root")).reason == "BUSY"

    run(test)


def test_a_node_and_a_person_have_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "CHANNELS_PER_NODE_MAX", 3)
    monkeypatch.setattr(channels, "CHANNELS_PER_USER_MAX", 2)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await running_agent(cluster)
            first, _, _ = await connect(cluster, agent)
            await connect(cluster, agent)
            assert (await refused(cluster, start())).reason == "BUSY"
            await connect(cluster, agent, "root")
            assert (await refused(cluster, start(), "root")).reason == "BUSY"
            asked = usage_pb2.ListAuditEventsRequest(kind="ConnectionOpened", page_size=10)
            events = (await cluster.usage("root").ListAuditEvents(asked)).events
            assert len(events) == 3, "what was refused was not opened"
            first.cancel()

            async def room() -> bool:
                call = cluster.jobs("ann").Connect()
                await call.write(start())
                try:
                    await asyncio.wait_for(agent.order("open_channel"), 0.3)
                except TimeoutError:
                    return False
                return True

            await until(room, "the place of the connection that ended")

    run(test)
