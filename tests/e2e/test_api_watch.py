"""Watching jobs: first what is, then what changes, from a token on after any break, and never without bound."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from api_cluster import ApiCluster, api_cluster, create, refusal, run

from gpushare.core.commands import Call, Housekeep
from gpushare.core.model import SYSTEM
from gpushare.errors import from_rpc_error
from gpushare.scheduler import watch as watches
from gpushare.v1 import job_pb2


def watch(cluster: ApiCluster, who: str = "ann", **fields: Any) -> Any:
    return cluster.jobs(who).WatchJobs(job_pb2.WatchJobsRequest(**{"parent": "tenants/-", **fields}))


async def first_listing(call: Any) -> tuple[list[str], bytes]:
    """Ids that a watch begins with, and the token that follows them."""
    ids: list[str] = []
    while True:
        message = await asyncio.wait_for(call.read(), 10)
        if message.caught_up:
            assert not message.HasField("job")
            return ids, message.resume_token
        ids.append(message.job.id)


async def next_change(call: Any) -> tuple[str, str, bytes]:
    message = await asyncio.wait_for(call.read(), 10)
    return message.job.id, job_pb2.JobState.Name(message.job.state)[10:], message.resume_token


async def cancel(cluster: ApiCluster, job: job_pb2.Job) -> None:
    await cluster.jobs("ann").CancelJob(job_pb2.CancelJobRequest(name=job.name, request_id=f"c-{job.id}"))


def test_what_is_comes_first_then_every_change_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            jobs = [await cluster.submit() for _ in range(3)]
            call = watch(cluster)
            assert (await first_listing(call))[0] == ["1", "2", "3"]
            await cancel(cluster, jobs[1])
            await cluster.submit()
            assert (await next_change(call))[:2] == ("2", "CANCELLED")
            assert (await next_change(call))[:2] == ("4", "QUEUED")
            agent = await cluster.agent("n1")
            start = await agent.order("start_attempt")
            seen = [(await next_change(call))[:2] for _ in range(3)]
            assert seen == [("1", "STARTING"), ("3", "STARTING"), ("4", "STARTING")]
            await agent.run(start.attempt_id)
            assert (await next_change(call))[:2] == ("1", "RUNNING")
            await agent.finish(start.attempt_id)
            assert (await next_change(call))[:2] == ("1", "SUCCEEDED")
            call.cancel()

    run(test)


def test_a_watch_goes_on_from_its_token_with_what_changed_meanwhile_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility="tenant") as cluster:
            jobs = [await cluster.submit() for _ in range(4)]
            call = watch(cluster)
            _, token = await first_listing(call)
            await cancel(cluster, jobs[0])
            _, _, newer = await next_change(call)
            call.cancel()
            await cancel(cluster, jobs[2])
            await cluster.submit("nina", "nlp")
            again = watch(cluster, resume_token=newer)
            assert (await first_listing(again))[0] == ["3"]
            again.cancel()
            older = watch(cluster, resume_token=token)
            assert (await first_listing(older))[0] == ["1", "3"]
            older.cancel()
            # What left memory since is told from the history.
            await cluster.engine.execute(Housekeep(cluster.engine.now_ms() + 1000), Call(SYSTEM))
            archived = watch(cluster, resume_token=newer)
            message = await archived.read()
            assert (message.job.id, message.job.state) == ("3", job_pb2.JOB_STATE_CANCELLED)
            archived.cancel()

    run(test)


def test_after_a_long_gap_the_present_is_listed_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "RESUME_ENTRIES_MAX", 3)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = watch(cluster)
            _, token = await first_listing(call)
            call.cancel()
            for _ in range(4):
                await cluster.submit()
            again = watch(cluster, resume_token=token)
            assert (await first_listing(again))[0] == ["1", "2", "3", "4"]
            again.cancel()

    run(test)


def test_a_token_stands_for_everything_up_to_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = watch(cluster)
            await first_listing(call)
            await cluster.jobs("ann").CreateJob(create(array_indexes=list(range(5))))
            changes = [await next_change(call) for _ in range(5)]
            # One entry made all five: a token before the last of them would lose the rest.
            assert [bool(token) for _, _, token in changes] == [False, False, False, False, True]
            call.cancel()
            again = watch(cluster, resume_token=changes[-1][2])
            assert (await first_listing(again))[0] == []
            again.cancel()

    run(test)


@pytest.mark.parametrize("spoil", ["x", "truncated", "altered", "other caller", "other filter", "future"])
def test_a_token_of_another_watch_is_refused(tmp_path: Path, spoil: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = watch(cluster)
            _, token = await first_listing(call)
            call.cancel()
            who, fields = "ann", {"resume_token": token}
            if spoil == "x":
                fields = {"resume_token": b"\xff\x00"}
            elif spoil == "truncated":
                fields = {"resume_token": token[:-3]}
            elif spoil == "altered":
                fields = {"resume_token": b"A" + token[1:] if token[:1] != b"A" else b"B" + token[1:]}
            elif spoil == "other caller":
                who = "bob"
            elif spoil == "other filter":
                await cluster.submit()
                fields = {"resume_token": token, "id": "1"}
            else:
                await cluster.submit()
                ahead = watch(cluster)
                _, token = await first_listing(ahead)
                ahead.cancel()
                async with api_cluster(tmp_path) as younger:
                    younger.tokens["ann"] = younger.tokens["ann"]
                    error = await refusal(watch(younger, resume_token=token))
                    assert error.reason == "RESUME_TOKEN_INVALID"
                return
            error = await refusal(watch(cluster, who, **fields))
            assert (error.status, error.reason) == ("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")

    run(test)


def test_a_watch_of_one_job_or_array_is_told_of_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            one = await cluster.submit()
            array = (await cluster.jobs("ann").CreateJob(create(array_indexes=[1, 2]))).jobs
            of_one, of_array = watch(cluster, id="1"), watch(cluster, id="2")
            of_child = watch(cluster, parent="tenants/vision", id="2_2")
            assert (await first_listing(of_one))[0] == ["1"]
            assert (await first_listing(of_array))[0] == ["2_1", "2_2"]
            assert (await first_listing(of_child))[0] == ["2_2"]
            await cluster.submit()
            await cancel(cluster, array[1])
            await cancel(cluster, one)
            assert (await next_change(of_one))[:2] == ("1", "CANCELLED")
            assert (await next_change(of_array))[:2] == ("2_2", "CANCELLED")
            assert (await next_change(of_child))[:2] == ("2_2", "CANCELLED")
            for bad in ("4", "99", "1_", "%", "x"):
                assert (await refusal(watch(cluster, id=bad))).status == "NOT_FOUND"
            assert (await refusal(watch(cluster, "olga", id="1"))).status == "INVALID_ARGUMENT"
            for call in (of_one, of_array, of_child):
                call.cancel()

    run(test)


def test_a_reader_that_falls_behind_is_told_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BUFFER_BYTES_MAX", 4 << 20)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = watch(cluster)
            await first_listing(call)
            indexes = list(range(50))
            # Far more than the network's own buffers hold, while nothing is read.
            for _ in range(60):
                await cluster.jobs("ann").CreateJob(create(argv=["echo", "x" * 16_000], array_indexes=indexes))
            last = b""
            try:
                while True:
                    message = await asyncio.wait_for(call.read(), 10)
                    last = message.resume_token or last
            except grpc.aio.AioRpcError as err:
                error = from_rpc_error(err)
            assert (error.status, error.reason) == ("RESOURCE_EXHAUSTED", "WATCH_TOO_SLOW")
            again = watch(cluster, resume_token=last)
            seen = (await first_listing(again))[0]
            assert seen[-1] == "60_49"
            # It goes on from the last token; a reader that was given none before it fell behind lists afresh.
            assert len(seen) < 60 * 50 or not last
            again.cancel()

    run(test)


def test_changes_during_the_first_listing_are_neither_lost_nor_shown_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "CHUNK_JOBS", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            jobs = [await cluster.submit() for _ in range(40)]
            call = watch(cluster)
            cancels = asyncio.gather(*(cancel(cluster, job) for job in jobs))
            states: dict[str, list[str]] = {}
            while len([s for s in states.values() if s[-1] == "CANCELLED"]) < 40:
                message = await asyncio.wait_for(call.read(), 10)
                if message.HasField("job"):
                    state = job_pb2.JobState.Name(message.job.state)[10:]
                    states.setdefault(message.job.id, []).append(state)
            await cancels
            assert all(seen in (["QUEUED", "CANCELLED"], ["CANCELLED"]) for seen in states.values()), states
            call.cancel()

    run(test)
