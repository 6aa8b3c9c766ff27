"""Streams are bounded per token, and health watches in all: nobody can use up what everybody needs."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import grpc
import grpc.aio
import pytest
from api_cluster import api_cluster, refusal, run
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpushare import rpc
from gpushare.core.kinds import Role
from gpushare.core.model import Principal
from gpushare.errors import GpushareError
from gpushare.scheduler import api_gate, api_paging, server
from gpushare.v1 import job_pb2


def test_health_watches_are_few_and_a_check_always_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEALTH_WATCHES_MAX", 3)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster, rpc.aio_channel(cluster.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest()
            watches = [health.Watch(asked) for _ in range(3)]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health.Watch(asked).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
            watches[0].cancel()
            await asyncio.wait_for(_until_answered(health, asked), 10)
            for watch in watches[1:]:
                watch.cancel()

    run(test)


async def _until_answered(health: health_pb2_grpc.HealthStub, asked: health_pb2.HealthCheckRequest) -> None:
    while True:
        watch = health.Watch(asked)
        try:
            await watch.read()
            watch.cancel()
            return
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)


def test_a_token_has_only_so_many_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_gate, "STREAMS_PER_TOKEN_MAX", 2)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            asked = job_pb2.WatchJobsRequest(parent="tenants/vision")
            open_ones = [cluster.jobs("ann").WatchJobs(asked) for _ in range(2)]
            for watch in open_ones:
                assert (await watch.read()).caught_up
            error = await refusal(cluster.jobs("ann").WatchJobs(asked))
            assert (error.status, error.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
            assert (
                await cluster.jobs("root").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/nlp")).read()
            ).caught_up
            for watch in open_ones:
                watch.cancel()

    run(test)


@pytest.mark.parametrize("body", [b"x", b"[" * 700, b"\xff\xfe", b"{}", b"[1]"])
def test_a_page_token_made_by_its_caller_is_refused(body: bytes) -> None:
    """The digest has no secret: what it covers must still be a place."""
    place = api_paging.Place("/gpushare.v1.NodeService/ListNodes", Principal("u", Role.USER, "t"), [])
    token = base64.urlsafe_b64encode(place._digest(body) + body).decode().rstrip("=")
    with pytest.raises(GpushareError) as caught:
        place.cursor(token, (str,))
    assert caught.value.reason == "PAGE_TOKEN_INVALID"
