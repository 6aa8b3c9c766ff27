"""Agents at the API: identity, duplicates, leases, orders, and reports that cannot be true."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, WireAgent, api_cluster, card, create, refusal, run, until
from google.protobuf.timestamp_pb2 import Timestamp

from gpushare.core.commands import Call, RevokeToken
from gpushare.core.kinds import NodeState
from gpushare.core.model import SYSTEM
from gpushare.errors import GpushareError
from gpushare.scheduler import leases
from gpushare.v1 import agent_pb2, job_pb2, node_pb2, usage_pb2


async def denials(cluster: ApiCluster) -> list[tuple[str, str, str]]:
    answer = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest(denials=True))
    return [(e.principal.user, e.subject.rpartition("/")[2], e.reason) for e in answer.events]


async def node_of(cluster: ApiCluster, name: str = "n1") -> node_pb2.Node:
    return await cluster.nodes("olga").GetNode(node_pb2.GetNodeRequest(name=f"nodes/{name}"))


async def is_ready(cluster: ApiCluster, name: str = "n1") -> bool:
    return (await node_of(cluster, name)).ready


async def refused_hello(cluster: ApiCluster, node: str, **options: Any) -> GpushareError:
    agent = WireAgent(cluster, node, **options)
    try:
        with pytest.raises(GpushareError) as raised:
            await agent.connect()
        return raised.value
    finally:
        await agent.close()


# -- identity


def test_an_agent_speaks_for_its_own_node_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            victim = await cluster.agent("n1")
            await cluster.enroll("n2")
            error = await refused_hello(cluster, "n2", says="n1")
            assert error.status == "PERMISSION_DENIED"
            assert ("n2", "Session", "PERMISSION_DENIED") in await denials(cluster)
            await victim.renew(7)
            assert (await victim.order("lease_grant")).sequence == 7

    run(test)


def test_a_report_on_another_nodes_attempt_is_denied_and_in_the_audit(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await cluster.submit()
            start = await agent.order("start_attempt")
            thief = await cluster.agent("n2")
            await thief.finish(start.attempt_id)
            assert (await thief.ended()).status == "PERMISSION_DENIED"
            assert ("n2", "Session", "PERMISSION_DENIED") in await denials(cluster)
            assert cluster.engine.state.jobs["vision/1"].state == "STARTING"

    run(test)


def test_an_agent_that_takes_lists_is_told_many_orders_at_once_and_reports_many(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1", lists=True, cards=2)
            assert agent.ack.takes_attempt_reports
            spec = create()
            batch = job_pb2.BatchCreateJobsRequest(parent=spec.parent, jobs=[spec.job] * 8, request_id=spec.request_id)
            await cluster.jobs("ann").BatchCreateJobs(batch)
            told = (await agent.order("order_list")).orders
            ids = [order.start_attempt.attempt_id for order in told]
            assert ids == [f"vision.{number}.0.1" for number in range(1, 9)]
            state, term = "ATTEMPT_STATE_FAILED", told[0].start_attempt.term
            reports = [
                agent_pb2.AttemptReport(attempt_id=each, state=state, reason="EXIT_CODE", exit_code=3) for each in ids
            ]
            await agent.call.write(agent_pb2.AgentMessage(attempt_reports=agent_pb2.AttemptReports(reports=reports)))
            forgets: list[agent_pb2.SchedulerMessage] = []
            while len(forgets) < len(ids):
                message = await agent._read()
                forgets += message.order_list.orders or [message]
            assert [order.forget_attempt.attempt_id for order in forgets] == ids
            assert {order.forget_attempt.term for order in forgets} == {term}

    run(test)


def test_an_agent_reads_no_environment_and_people_open_no_session(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.submit(env={"A": "secret"})
            await cluster.enroll("n1")
            call = cluster.jobs("n1").GetJob(job_pb2.GetJobRequest(name="tenants/vision/jobs/1"))
            assert (await refusal(call)).status == "PERMISSION_DENIED"
            cluster.tokens["n9"] = cluster.tokens["root"]
            assert (await refused_hello(cluster, "n9")).status == "PERMISSION_DENIED"

    run(test)


def test_two_agents_with_one_identity_are_kept_apart_and_alarmed(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            first = await cluster.agent("n1", instance="a", counter=3)
            for options in (
                {"instance": "b", "counter": 9},  # another state directory
                {"instance": "a", "counter": 3},  # a copied one
                {"instance": "a", "counter": 2},  # an older copy
            ):
                error = await refused_hello(cluster, "n1", **options)
                assert error.reason == "DUPLICATE_AGENT"
                assert "instance a, boot b1, start 3" in error.message
                assert f"instance {options['instance']}" in error.message
            assert ("n1", "Session", "DUPLICATE_AGENT") in await denials(cluster)
            await first.renew()
            await first.order("lease_grant")

    run(test)


def test_the_same_agent_started_again_replaces_its_session_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            first = await cluster.agent("n1", counter=1)
            second = await cluster.agent("n1", counter=2)
            assert (await first.ended()).reason == "DUPLICATE_AGENT"
            await cluster.submit()
            assert (await second.order("start_attempt")).attempt_id == "vision.1.0.1"

    run(test)


def test_an_agent_whose_connection_broke_comes_back_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await (await cluster.agent("n1")).close()

            async def back() -> WireAgent | None:
                try:
                    return await cluster.agent("n1")
                except GpushareError:
                    return None

            agent = await asyncio.wait_for(until(back, "back"), 2)
            await agent.renew()
            await agent.order("lease_grant")

    run(test)


def test_an_agent_whose_connection_died_unnoticed_comes_back_before_its_lease_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=3_000) as cluster:
            silent = await cluster.agent("n1")
            assert (await refused_hello(cluster, "n1")).reason == "DUPLICATE_AGENT"

            async def back() -> WireAgent | None:
                try:
                    return await cluster.agent("n1")
                except GpushareError:
                    return None

            await asyncio.wait_for(until(back, "back"), 2.9)
            assert (await silent.ended()).reason == "DUPLICATE_AGENT"
            assert cluster.engine.state.nodes["n1"].state is NodeState.ACTIVE

    run(test)


def test_a_revoked_agent_loses_its_session_within_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            token = next(t for t in cluster.engine.state.tokens.values() if t.principal.node == "n1")
            await cluster.engine.execute(RevokeToken(token.id), Call(SYSTEM))
            assert (await asyncio.wait_for(agent.ended(), 1)).status == "UNAUTHENTICATED"
            assert (await refused_hello(cluster, "n1", counter=2)).status == "UNAUTHENTICATED"

    run(test)


def test_an_agent_that_saw_a_newer_term_is_not_led_by_this_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.enroll("n1")
            agent = WireAgent(cluster, "n1")
            agent.hello.highest_term = 99
            with pytest.raises(GpushareError) as raised:
                await agent.connect()
            assert raised.value.reason == "STALE_TERM"

    run(test)


@pytest.mark.parametrize(
    "first",
    [
        agent_pb2.AgentMessage(),
        agent_pb2.AgentMessage(renewal=agent_pb2.Renewal()),
        agent_pb2.AgentMessage(hello=agent_pb2.Hello()),
        agent_pb2.AgentMessage(hello=agent_pb2.Hello(instance_id="a\n", boot_id="b")),
        agent_pb2.AgentMessage(hello=agent_pb2.Hello(instance_id="a", boot_id="b", start_counter=-1)),
    ],
)
def test_a_session_begins_with_a_proper_hello(tmp_path: Path, first: agent_pb2.AgentMessage) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.enroll("n1")
            call = cluster.agents("n1").Session()
            await call.write(first)
            assert (await refusal(call)).status == "INVALID_ARGUMENT"

    run(test)


# -- reports


def test_an_unknown_attempt_is_to_end_and_nothing_comes_back_to_life(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await agent.run("vision.77.0.1")
            stop = await agent.order("stop_attempt")
            assert (stop.attempt_id, stop.reason) == ("vision.77.0.1", "STALE")
            await agent.report("vision.77.0.1", "STOPPED", reason="STALE")
            assert (await agent.order("forget_attempt")).attempt_id == "vision.77.0.1"

            await cluster.submit()
            start = await agent.order("start_attempt")
            await agent.finish(start.attempt_id)
            await agent.order("forget_attempt")
            await agent.run(start.attempt_id)
            assert (await agent.order("stop_attempt")).reason == "STALE"
            await agent.finish(start.attempt_id, 9)
            assert (await agent.order("forget_attempt")).attempt_id == start.attempt_id
            job = cluster.engine.state.jobs["vision/1"]
            assert (job.state, job.exit_code) == ("SUCCEEDED", 0)

    run(test)


THOUSAND = [card("n1", place) for place in range(1000)]


@pytest.mark.parametrize(
    "sync",
    [
        {"gpus": THOUSAND},
        {"gpus": [card("n1"), card("n1")]},
        {"gpus": [card("other")]},
        {"gpus": [card("n1", total_mib=-1)]},
        {"gpus": [card("n1", usable_mib=2**62)]},
        {"gpus": [card("n1", uuid="")]},
        {"gpus": [card("n1", model="x" * 5000)]},
        {"cpu_milli": 0},
        {"memory_mib": -5},
        {"memory_mib": 2**63 - 1},
        {"labels": {f"l{n}": "" for n in range(500)}},
        {"conditions": [agent_pb2.GpuCondition(uuid="GPU-n1-0", state=999)]},  # type: ignore[arg-type]
        {"attempts": [agent_pb2.AttemptReport(attempt_id="a", state=999)]},  # type: ignore[arg-type]
    ],
)
def test_a_sync_that_cannot_be_true_is_refused_and_its_node_cordoned(tmp_path: Path, sync: dict[str, Any]) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.agent("other")
            await until(lambda: is_ready(cluster, "other"), "the other node is ready")
            await cluster.enroll("n1")
            liar = WireAgent(cluster, "n1")
            await liar.connect()
            await liar.sync(**sync)
            error = await liar.ended()
            assert (error.status, error.reason) == ("INVALID_ARGUMENT", "BAD_REPORT")
            node = await node_of(cluster)
            assert (node.cordoned, node.ready, node.reason, list(node.gpus)) == (True, False, "BAD_REPORT", [])
            assert await is_ready(cluster, "other")

    run(test)


def test_a_message_beyond_the_limit_ends_the_session_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await agent.report("vision.1.0.1", "RUNNING", detail="x" * (5 << 20))
            assert (await agent.ended()).status == "RESOURCE_EXHAUSTED"
            assert cluster.engine.leading

    run(test)


def test_the_wall_clock_of_an_agent_moves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=1_000) as cluster:
            await cluster.enroll("n1")
            for years, counter in ((-10, 1), (10, 2)):
                agent = WireAgent(cluster, "n1", counter=counter)
                agent.hello.wall_time.CopyFrom(Timestamp(seconds=1_800_000_000 + years * 31_557_600))
                await agent.connect()
                await agent.sync()
                await cluster.submit()
                start = await agent.order("start_attempt")
                await agent.report(
                    start.attempt_id, "RUNNING", start_time=Timestamp(seconds=1_800_000_000 + years * 31_557_600)
                )
                for sequence in range(6):
                    await agent.renew(sequence)
                    await agent.order("lease_grant")
                    await asyncio.sleep(0.3)
                assert cluster.engine.state.nodes["n1"].state is NodeState.ACTIVE
                await agent.finish(start.attempt_id)
                await agent.order("forget_attempt")

    run(test)


def test_the_schedulers_own_clock_may_be_set_back(tmp_path: Path) -> None:
    wall_ms = [1_800_000_000_000]

    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=1_000, wall_ms=lambda: wall_ms[0]) as cluster:
            agent = await cluster.agent("n1")
            for step_ms in (1_000, -3_600_000, 1_000, 7_200_000, -7_200_000):
                wall_ms[0] += step_ms
                await cluster.submit()
                start = await agent.order("start_attempt")
                await agent.run(start.attempt_id)
                await agent.finish(start.attempt_id)
                await agent.order("forget_attempt")
                await asyncio.sleep(0.4)
                await agent.renew()
                await agent.order("lease_grant")
            assert cluster.engine.state.nodes["n1"].state is NodeState.ACTIVE
            for job in cluster.engine.state.jobs.values():
                assert job.ended_ms is not None
                assert job.created_ms <= job.attempts[0].allocated_ms <= job.ended_ms
            audit = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest(page_size=1000))
            times = [event.time.ToMilliseconds() for event in audit.events]
            assert times == sorted(times, reverse=True)

    run(test)


# -- leases


def test_a_silent_node_keeps_its_tasks_and_says_so_until_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=1_000) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit()
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)
            await agent.close()

            async def silent() -> bool:
                return (await node_of(cluster)).state == node_pb2.NODE_STATE_UNREACHABLE

            await until(silent, "silent")
            seen = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
            assert seen.tasks[0].state == job_pb2.ATTEMPT_STATE_UNKNOWN
            assert (await node_of(cluster)).gpus[0].allocated_milli == 250
            back = await cluster.agent("n1", counter=2)
            await back.sync(
                attempts=[agent_pb2.AttemptReport(attempt_id=start.attempt_id, state=job_pb2.ATTEMPT_STATE_RUNNING)]
            )

            async def running() -> bool:
                seen = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
                return seen.tasks[0].state == job_pb2.ATTEMPT_STATE_RUNNING

            await until(running, "running again")

    run(test)


def test_a_task_that_stops_itself_runs_elsewhere_only_after_it_surely_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LAPSE_EXTRA_MS", 1_500)

    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=1_600) as cluster:
            agent = await cluster.agent("n1")
            await cluster.submit(
                on_disconnect=job_pb2.ON_DISCONNECT_STOP_AND_REQUEUE, grace_duration={"nanos": 500_000_000}
            )
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)
            await agent.renew()
            await agent.order("lease_grant")
            last_word_s = asyncio.get_running_loop().time()
            await agent.close()
            other = await cluster.agent("n2")
            keeper = asyncio.create_task(renewing(other))
            again = await other.order("start_attempt")
            keeper.cancel()
            assert again.attempt_id == "vision.1.0.2"
            assert asyncio.get_running_loop().time() - last_word_s >= 1.01 + 1.5

    run(test)


async def renewing(agent: WireAgent) -> None:
    while True:
        await agent.renew()
        await asyncio.sleep(0.3)


# -- orders


def test_what_an_agent_missed_follows_its_next_sync_and_late_orders_come_after(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            for _ in range(3):
                await cluster.submit()
            first = [(await agent.order("start_attempt")).attempt_id for _ in range(3)]
            await agent.run(first[0])
            await agent.close()
            cancel = job_pb2.CancelJobRequest(name="tenants/vision/jobs/2", request_id="r")
            await cluster.jobs("ann").CancelJob(cancel)
            back = WireAgent(cluster, "n1", counter=2)
            await back.connect()
            told = agent_pb2.AttemptReport(attempt_id=first[0], state=job_pb2.ATTEMPT_STATE_RUNNING)
            stale = agent_pb2.AttemptReport(attempt_id="vision.9.0.1", state=job_pb2.ATTEMPT_STATE_RUNNING)
            await back.sync(attempts=[told, stale])
            assert (await back.order("seal_attempt")).attempt_id == first[1]
            assert (await back.order("start_attempt")).attempt_id == first[2]
            assert (await back.order("stop_attempt")).attempt_id == "vision.9.0.1"
            cancel = job_pb2.CancelJobRequest(name="tenants/vision/jobs/1", request_id="r2")
            await cluster.jobs("ann").CancelJob(cancel)
            stop = await back.order("stop_attempt")
            assert (stop.attempt_id, stop.reason, stop.grace_ms) == (first[0], "CANCELLED", 10_000)

    run(test)


def test_live_figures_are_of_the_nodes_own_cards_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await until(lambda: is_ready(cluster), "ready")
            report = agent_pb2.GpuReport()
            report.samples["GPU-n1-0"].used_mib = 1234
            report.samples["GPU-elsewhere"].used_mib = 99
            report.attempt_use["vision.5.0.1"].used_mib = 7
            await agent.call.write(agent_pb2.AgentMessage(gpu_report=report))

            async def shown() -> bool:
                return (await node_of(cluster)).gpus[0].sample.used_mib == 1234

            await until(shown, "the sample is shown")
            live = cluster.server.sessions.live("n1")
            assert (list(live.samples), live.attempt_use) == (["GPU-n1-0"], {})

    run(test)


def test_what_a_live_attempt_takes_is_shown_with_its_job_until_it_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit()
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)

            async def task() -> job_pb2.TaskAttempt:
                return (await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))).tasks[0]

            assert not (await task()).HasField("used_mib")
            report = agent_pb2.GpuReport()
            report.samples["GPU-n1-0"].used_mib = 1234
            report.attempt_use[start.attempt_id].used_mib = 700
            await agent.call.write(agent_pb2.AgentMessage(gpu_report=report))

            async def measured() -> bool:
                return (await task()).HasField("used_mib")

            await until(measured, "the use is shown")
            assert (await task()).used_mib == 700
            assert not (await task()).HasField("sm_percent")
            report.attempt_use[start.attempt_id].sm_percent = 35
            await agent.call.write(agent_pb2.AgentMessage(gpu_report=report))

            async def estimated() -> bool:
                return (await task()).sm_percent == 35

            await until(estimated, "the estimate is shown")
            await agent.finish(start.attempt_id)
            await agent.order("forget_attempt")
            ended = await task()
            assert ended.state == job_pb2.ATTEMPT_STATE_SUCCEEDED
            assert not ended.HasField("used_mib")

    run(test)


@pytest.mark.parametrize(("ahead_s", "shown"), [(7200, True), (-7200, True), (20, False), (None, False)])
def test_a_wrong_clock_of_a_node_is_shown_and_ends_no_lease(tmp_path: Path, ahead_s: int | None, shown: bool) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, lease_ttl_ms=1_000) as cluster:
            await cluster.enroll("n1")
            agent = WireAgent(cluster, "n1")
            if ahead_s is not None:
                agent.hello.wall_time.FromMilliseconds((int(time.time()) + ahead_s) * 1000)
            await agent.connect()
            await agent.sync()
            await until(lambda: is_ready(cluster), "ready")
            skew_ms = (await node_of(cluster)).clock_skew_ms
            assert abs(skew_ms - (ahead_s or 0) * 1000) < 60_000 if shown else skew_ms == 0
            for sequence in range(6):
                await agent.renew(sequence)
                await agent.order("lease_grant")
                await asyncio.sleep(0.3)
            assert cluster.engine.state.nodes["n1"].state is NodeState.ACTIVE

    run(test)


def test_a_card_that_breaks_is_taken_out_of_placement(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await until(lambda: is_ready(cluster), "ready")
            report = agent_pb2.GpuReport(
                conditions=[
                    agent_pb2.GpuCondition(uuid="GPU-n1-0", state=node_pb2.GPU_STATE_DRAINED, reason="GPU_UNHEALTHY")
                ]
            )
            await agent.call.write(agent_pb2.AgentMessage(gpu_report=report))

            async def drained() -> bool:
                return (await node_of(cluster)).gpus[0].state == node_pb2.GPU_STATE_DRAINED

            await until(drained, "drained")
            job = await cluster.submit()

            async def waits() -> bool:
                seen = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
                return seen.wait.reason == "GPU_UNHEALTHY"

            await until(waits, "the job says why it waits")

    run(test)
