"""The client keeps its promises over lost connections: done once, nothing twice, nothing left out."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cli_fake import ENDED, FakeCluster, serving, until

from gpushare.client import retry
from gpushare.client.aio import AsyncClient, job_name
from gpushare.client.messages import JobState
from gpushare.client.settings import ConnectionSettings
from gpushare.client.spec import job_spec
from gpushare.client.sync import Client
from gpushare.errors import GpushareError, NotFoundError, UnavailableError, error_of
from gpushare.reasons import Reason

SPEC = job_spec(["true"], working_directory="/tmp", gpus="0.25")


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with serving(FakeCluster()) as started:
        yield started


def settings(cluster: FakeCluster) -> ConnectionSettings:
    return ConnectionSettings(cluster.address, "gps_x", tenant="vision", user="ada")


def call(cluster: FakeCluster, work: Any, timeout_s: float = 5.0) -> Any:
    async def connected() -> Any:
        async with AsyncClient(settings(cluster), timeout_s=timeout_s) as client:
            return await work(client)

    return asyncio.run(connected())


def unavailable(reason: Reason = Reason.STORE_UNAVAILABLE) -> GpushareError:
    return error_of(reason)


def test_a_call_that_is_tried_again_keeps_its_request_id(cluster: FakeCluster) -> None:
    cluster.faults["CreateJob"] = [unavailable(), unavailable()]
    answer = call(cluster, lambda client: client.create_job(SPEC))
    ids = {request.request_id for request in cluster.seen("CreateJob")}
    assert len(cluster.seen("CreateJob")) == 3
    assert len(ids) == 1
    assert answer.jobs[0].id == "1"
    assert len(cluster.jobs) == 1


def test_two_calls_have_two_request_ids(cluster: FakeCluster) -> None:
    async def twice(client: AsyncClient) -> None:
        await client.create_job(SPEC)
        await client.create_job(SPEC)

    call(cluster, twice)
    assert len(cluster.jobs) == 2


def test_a_caller_that_repeats_with_its_own_request_id_has_one_job(cluster: FakeCluster) -> None:
    async def twice(client: AsyncClient) -> list[str]:
        return [(await client.create_job(SPEC, request_id="r1")).jobs[0].name for _ in range(2)]

    first, second = call(cluster, twice)
    assert first == second
    assert len(cluster.jobs) == 1


def test_a_refusal_is_not_tried_again_and_comes_typed(cluster: FakeCluster) -> None:
    cluster.faults["CreateJob"] = [error_of(Reason.QUEUE_FULL)]
    with pytest.raises(GpushareError) as caught:
        call(cluster, lambda client: client.create_job(SPEC))
    assert caught.value.reason == Reason.QUEUE_FULL
    assert len(cluster.seen("CreateJob")) == 1


def test_a_node_that_is_away_is_no_reason_to_ask_again(cluster: FakeCluster) -> None:
    cluster.faults["GetJob"] = [unavailable(Reason.NODE_UNREACHABLE)]
    with pytest.raises(UnavailableError):
        call(cluster, lambda client: client.get_job(job_name("vision", "1")))
    assert len(cluster.seen("GetJob")) == 1


def test_an_unreachable_scheduler_is_given_up_at_the_time_limit() -> None:
    nowhere = FakeCluster()
    nowhere.address = "127.0.0.1:9"
    with pytest.raises(UnavailableError) as caught:
        call(nowhere, lambda client: client.get_job("tenants/vision/jobs/1"), timeout_s=0.6)
    assert caught.value.reason == Reason.SCHEDULER_UNREACHABLE
    assert "127.0.0.1:9" in caught.value.message


def test_a_call_outlives_a_restart_of_the_scheduler() -> None:
    cluster = FakeCluster()
    with serving(cluster):
        call(cluster, lambda client: client.create_job(SPEC))
    port = int(cluster.address.rpartition(":")[2])

    async def while_it_restarts(client: AsyncClient) -> Any:
        reading = asyncio.create_task(client.get_job(job_name("vision", "1")))
        await asyncio.sleep(0.3)
        assert not reading.done()
        with serving(cluster, port):
            return await reading

    assert call(cluster, while_it_restarts, timeout_s=20).id == "1"


def test_a_broken_certificate_is_not_tried_again() -> None:
    lasting = UnavailableError(Reason.SCHEDULER_UNREACHABLE, metadata={"grpc": "x CERTIFICATE_VERIFY_FAILED: y"})
    passing = UnavailableError(Reason.SCHEDULER_UNREACHABLE, metadata={"grpc": "Connection refused"})
    assert not retry.may_pass(lasting)
    assert retry.may_pass(passing)


def test_listings_go_on_over_pages(cluster: FakeCluster) -> None:
    for number in range(1, 251):
        cluster.add(str(number))

    async def names(client: AsyncClient) -> list[str]:
        return [job.id async for job in client.list_jobs()]

    assert call(cluster, names) == [str(number) for number in range(250, 0, -1)]
    assert len(cluster.seen("ListJobs")) == 3


def test_a_watch_that_breaks_goes_on_where_it_was(cluster: FakeCluster) -> None:
    job = cluster.add("1", JobState.JOB_STATE_QUEUED)
    cluster.drop_stream_after = 2

    async def states(client: AsyncClient) -> list[int]:
        seen = []
        watch = client.watch_jobs(parent="tenants/vision")
        async for change in watch:
            if change.caught_up and len(cluster.seen("WatchJobs")) == 1:
                for state in (2, 3, 5, 3, 5):
                    job.state = state
                    cluster.put(job)
                cluster.end(job)
            if change.HasField("job"):
                seen.append(change.job.state)
                if change.job.state in ENDED:
                    await watch.aclose()
                    return seen
        raise AssertionError

    assert call(cluster, states) == [1, 2, 3, 5, 3, 5, 6]
    first, second = cluster.seen("WatchJobs")
    assert first.resume_token == b""
    assert second.resume_token != b""


def test_a_watch_whose_token_is_refused_begins_anew(cluster: FakeCluster) -> None:
    cluster.add("1")
    cluster.faults["WatchJobs"] = [error_of(Reason.RESUME_TOKEN_INVALID)]

    async def first_job(client: AsyncClient) -> str:
        watch = client.watch_jobs(resume_token=b"stale")
        async for change in watch:
            await watch.aclose()
            return change.job.id
        raise AssertionError

    assert call(cluster, first_job) == "1"
    assert [request.resume_token for request in cluster.seen("WatchJobs")] == [b"stale", b""]


def test_a_followed_log_that_breaks_is_read_on_without_a_byte_twice_or_lost(cluster: FakeCluster) -> None:
    job = cluster.add("1")
    cluster.start(job)
    text = b"".join(b"line %d\n" % number for number in range(40))
    cluster.write(job, text[:100])
    cluster.drop_stream_after = 3
    writer = threading.Timer(0.2, lambda: (cluster.write(job, text[100:]), cluster.end(job)))
    writer.start()

    async def read(client: AsyncClient) -> bytes:
        return b"".join([chunk.data async for chunk in client.stream_logs(job.name, follow=True)])

    assert call(cluster, read) == text
    writer.join()
    assert [request.offset for request in cluster.seen("StreamLogs")] == [0, 24]


def test_waiting_sees_a_job_that_ended_before_and_one_that_ends_later(cluster: FakeCluster) -> None:
    early, late = cluster.add("1"), cluster.add("2")
    cluster.end(early, JobState.JOB_STATE_FAILED, 3, "EXIT_CODE")
    ender = threading.Timer(0.2, lambda: cluster.end(late))
    ender.start()
    ended = call(cluster, lambda client: client.wait_jobs([early.name, late.name]))
    ender.join()
    assert [(job.id, job.exit_code) for job in ended.values()] == [("1", 3), ("2", 0)]


def test_waiting_for_what_does_not_exist_is_refused(cluster: FakeCluster) -> None:
    with pytest.raises(NotFoundError):
        call(cluster, lambda client: client.wait_jobs([job_name("vision", "9")]))


def test_the_synchronous_client_does_the_same_without_a_loop(cluster: FakeCluster) -> None:
    cluster.add("7")
    with Client(settings(cluster)) as client:
        assert client.create_job(SPEC).jobs[0].id == "8"
        assert {job.id for job in client.list_jobs(show_ended=True)} == {"7", "8"}
        ended = client.wait_jobs([job_name("vision", "8")])
        assert ended[job_name("vision", "8")].exit_code == 0
        logs = b"".join(chunk.data for chunk in client.stream_logs(job_name("vision", "8")))
        assert logs == b"out 0 of 8\n"
        with pytest.raises(NotFoundError):
            client.get_job(job_name("vision", "99"))


def test_a_dropped_iterator_of_the_synchronous_client_ends_the_stream(cluster: FakeCluster) -> None:
    job = cluster.add("1")
    cluster.start(job)
    cluster.write(job, b"12345678")
    with Client(settings(cluster)) as client:
        chunks = client.stream_logs(job.name, follow=True)
        assert next(chunks).data == b"12345678"
        assert cluster.open_streams == 1
        del chunks
        until(lambda: cluster.open_streams == 0, "the stream is closed at the scheduler")


def test_the_client_needs_neither_the_core_nor_the_scheduler() -> None:
    code = (
        "import sys, gpushare.client.sync, gpushare.client.spec\n"
        "foreign = ('gpushare.core', 'gpushare.scheduler', 'gpushare.store', 'sqlalchemy', 'gpushare_agent')\n"
        "print([name for name in sys.modules if name.startswith(foreign)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_word_that_no_job_knows_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="gpuz"):
        job_spec(["true"], working_directory="/", gpuz="1")  # type: ignore[call-arg]
