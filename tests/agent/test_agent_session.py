"""The session: handshake, leases counted from the sending, fencing by term, quick reconnects, patience when refused."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from standins.fake_scheduler import NODE, TOKEN, FakeScheduler, Switches, start_order

from gpushare.core.kinds import AttemptState, GpuState
from gpushare.core.model import GpuCondition, Stranger
from gpushare.errors import GpushareError, error_of
from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, node_pb2
from gpushare_agent.core import AgentCore, Refused, Report, StartOrder
from gpushare_agent.facts import HelloFacts, SyncFacts
from gpushare_agent.gpus.port import GpuSample
from gpushare_agent.logs import LogReads
from gpushare_agent.logstreams import LOG_WINDOW_BYTES
from gpushare_agent.outbox import Outbox
from gpushare_agent.session import (
    RECONNECT_MAX_S,
    REFUSED_FIRST_S,
    REFUSED_MAX_S,
    REPORTS_MAX_BYTES,
    Backoff,
    SessionLoop,
    enroll,
)
from gpushare_agent.sharing.watchdog import JobUse
from gpushare_agent.streams import StreamLog


class Log:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = info


class StubNode:
    """An agent without executor and cards: it keeps the orders it was given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.core = AgentCore()
        self.outbox = Outbox()
        self.reads = LogReads(self)
        self.channels: Any = None
        self.orders: list[tuple[Any, ...]] = []
        self.deadlines_ns: list[int] = []
        self.reports: tuple[Report, ...] = ()
        self.full_disk = False

    def hello(self) -> HelloFacts:
        return HelloFacts("i1", "boot1", 3, "0.1", self.core.highest_term)

    def sync(self) -> SyncFacts:
        return SyncFacts(2000, 4096, {"rack": "r1"}, "weak", "580", (), (), self.reports)

    def begin_term(self, term: int) -> Refused | None:
        if self.full_disk:
            raise OSError(28, "No space left on device")
        return next((e for e in self.core.begin_term(term) if isinstance(e, Refused)), None)

    def start(self, order: StartOrder) -> None:
        self.orders.append(("start", order))

    def stop(self, *words: Any) -> None:
        self.orders.append(("stop", *words))

    def seal(self, *words: Any) -> None:
        self.orders.append(("seal", *words))

    def forget(self, *words: Any) -> None:
        self.orders.append(("forget", *words))

    def lease_granted(self, deadline_boot_ns: int) -> None:
        self.deadlines_ns.append(deadline_boot_ns)

    def renew_every_s(self, ttl_s: float) -> float:
        return ttl_s / 3

    def log_dir(self, attempt_id: str) -> Path:
        return self.root / attempt_id

    def may_grow(self, attempt_id: str) -> bool:
        return False

    def has_ended(self, attempt_id: str) -> bool:
        return False


class Scene:
    """A fake scheduler, a stub node and the session loop between them."""

    def __init__(self, root: Path, scheduler: FakeScheduler) -> None:
        self.scheduler = scheduler
        self.node = StubNode(root)
        self.log = Log()
        self.loop = SessionLoop(self.node, NODE, scheduler.address, "", TOKEN, self.log)

    async def until(self, condition: Callable[[], object], within_s: float = 10) -> None:
        """For what happens on the agent's side."""
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)


def play(
    root: Path,
    act: Callable[[Scene], Awaitable[None]],
    switches: Switches | None = None,
    prepare: Callable[[Scene], None] = lambda scene: None,
) -> None:
    async def run() -> None:
        async with FakeScheduler(switches) as scheduler:
            scene = Scene(root, scheduler)
            prepare(scene)
            session = asyncio.create_task(scene.loop.run())
            try:
                await asyncio.wait_for(act(scene), 30)
            finally:
                session.cancel()
                await asyncio.wait([session])

    asyncio.run(run())


def test_hello_and_sync_say_who_and_what_and_the_token_is_on_the_call(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scene.node.reports = (
            Report(
                attempt_id="v.1.0.1", state=AttemptState.FAILED, reason=Reason.EXIT_CODE, exit_code=3, started_ms=1500
            ),
        )
        session = await scene.scheduler.synced()
        hello, sync = session.hello, session.sync
        assert sync is not None
        assert (hello.instance_id, hello.boot_id, hello.start_counter, hello.node) == ("i1", "boot1", 3, NODE)
        assert abs(hello.wall_time.ToSeconds() - time.time()) < 60
        assert (sync.cpu_milli, sync.memory_mib, dict(sync.labels), sync.containment) == (
            2000,
            4096,
            {"rack": "r1"},
            "weak",
        )
        (report,) = sync.attempts
        assert (report.attempt_id, report.reason, report.exit_code, report.containment) == (
            "v.1.0.1",
            "EXIT_CODE",
            3,
            "weak",
        )
        assert report.start_time.ToMilliseconds() == 1500
        assert not report.HasField("signal")
        assert scene.scheduler.tokens == [f"Bearer {TOKEN}"]

    play(tmp_path, act)


def test_a_lease_counts_from_before_its_renewal_was_sent(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await scene.scheduler.synced()
        await scene.until(lambda: len(scene.node.deadlines_ns) >= 3)
        after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ttl_ns = 600_000_000
        assert all(before_ns < deadline - ttl_ns < after_ns for deadline in scene.node.deadlines_ns)
        assert scene.node.deadlines_ns == sorted(scene.node.deadlines_ns)
        gaps_ns = [b - a for a, b in zip(scene.node.deadlines_ns, scene.node.deadlines_ns[1:], strict=False)]
        assert min(gaps_ns) > 100_000_000  # a third of the ttl apart, not as fast as it can
        assert scene.scheduler.session.renewals[:3] == [1, 2, 3]

    play(tmp_path, act, Switches(lease_ttl_ms=600))


def test_a_grant_that_answers_no_renewal_gives_no_lease(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        await scene.scheduler.until(lambda: session.renewals)
        for sequence in (0, 99, -1):
            await session.order(lease_grant=agent_pb2.LeaseGrant(sequence=sequence))
        await session.order(seal_attempt=agent_pb2.SealAttempt(attempt_id="v.1.0.1", term=1))
        await scene.until(lambda: scene.node.orders)
        assert scene.node.deadlines_ns == []
        await session.order(lease_grant=agent_pb2.LeaseGrant(sequence=1))
        await session.order(lease_grant=agent_pb2.LeaseGrant(sequence=1))
        await session.order(seal_attempt=agent_pb2.SealAttempt(attempt_id="v.1.0.1", term=1))
        await scene.until(lambda: len(scene.node.orders) == 2)
        assert len(scene.node.deadlines_ns) == 1

    play(tmp_path, act, Switches(grants=False))


def test_a_scheduler_that_grants_nothing_for_a_lease_is_left_and_tried_again(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.scheduler.synced(2)
        assert scene.scheduler.sessions[0].over
        assert scene.node.deadlines_ns == []
        scene.scheduler.switches.grants = True
        await scene.until(lambda: scene.node.deadlines_ns)

    play(tmp_path, act, Switches(grants=False, lease_ttl_ms=400))


def test_every_order_arrives_as_it_was_given(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        wanted = start_order(
            "v.7_2.1.3", "python", "-c", "pass", array_index=2, env={"A": "b"}, script=b"#!/bin/sh\n", pty=True,
            gpu_uuids=["GPU-a"], gpu_milli=250, gpu_memory_mib=1000, max_run_ms=9, on_disconnect=2, tier="timeslice",
            output_path="7_2.out", error_path="/logs/7_2.err",
        )  # fmt: skip
        await session.order(start_attempt=wanted)
        stop = agent_pb2.StopAttempt(attempt_id="v.1.0.1", term=2, reason="CANCELLED", grace_ms=7, detail="by ann")
        await session.order(stop_attempt=stop)
        await session.order(forget_attempt=agent_pb2.ForgetAttempt(attempt_id="v.1.0.1", term=2))
        await scene.until(lambda: len(scene.node.orders) == 3)
        (_, order), stopped, forgotten = scene.node.orders
        assert (order.attempt_id, order.argv, order.env) == ("v.7_2.1.3", ("python", "-c", "pass"), {"A": "b"})
        assert (order.array_index, order.number, order.script, order.pty) == (2, 3, b"#!/bin/sh\n", True)
        assert (order.gpu_uuids, order.gpu_milli, order.tier, order.whole) == (("GPU-a",), 250, "timeslice", False)
        assert (order.max_run_ms, order.on_disconnect) == (9, "stop_and_requeue")
        assert (order.output_path, order.error_path) == ("7_2.out", "/logs/7_2.err")
        assert stopped == ("stop", "v.1.0.1", 2, "CANCELLED", 7, "by ann")
        assert forgotten == ("forget", "v.1.0.1", 2)

    play(tmp_path, act)


def test_a_message_of_a_newer_scheduler_is_passed_over(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        await session.order()
        await session.order(seal_attempt=agent_pb2.SealAttempt(attempt_id="v.1.0.1", term=1))
        await scene.until(lambda: scene.node.orders)
        assert len(scene.scheduler.sessions) == 1

    play(tmp_path, act)


def test_reports_conditions_and_samples_are_told_as_they_come(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        box = scene.node.outbox
        box.tell(Report(attempt_id="v.1.0.1", state=AttemptState.RUNNING))
        box.tell(Report(attempt_id="v.1.0.1", state=AttemptState.SUCCEEDED, exit_code=0))
        stranger = Stranger(pid=7, user="eve", memory_mib=99)
        box.tell_conditions([GpuCondition("GPU-a", GpuState.DRAINED, "OCCUPIED", "x", (stranger,))])
        uses = [
            JobUse(attempt_id="v.1.0.1", used_mib=5, sm_percent=40, pids=(7,)),
            JobUse(attempt_id="v.2.0.1", used_mib=0, sm_percent=None, pids=()),
        ]
        box.tell_samples([GpuSample(uuid="GPU-a", used_mib=5), GpuSample(uuid="GPU-b", error="x")], uses)
        await scene.scheduler.state("v.1.0.1", "SUCCEEDED")
        await scene.scheduler.until(lambda: session.gpu_reports)
        assert [report.exit_code for report in session.reports] == [0]  # the newest word alone
        (told,) = session.gpu_reports
        assert told.conditions[0].state == node_pb2.GPU_STATE_DRAINED
        assert told.conditions[0].strangers[0].user == "eve"
        assert list(told.samples) == ["GPU-a"]
        assert not told.samples["GPU-a"].HasField("sm_percent")
        assert {name: use.used_mib for name, use in told.attempt_use.items()} == {"v.1.0.1": 5, "v.2.0.1": 0}
        assert told.attempt_use["v.1.0.1"].sm_percent == 40
        assert not told.attempt_use["v.2.0.1"].HasField("sm_percent")

    play(tmp_path, act)


def test_after_a_dead_scheduler_the_session_is_back_within_a_second_of_its_return(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.scheduler.synced()
        await scene.scheduler.stop()
        await asyncio.sleep(2)
        scene.node.reports = (Report(attempt_id="v.1.0.1", state=AttemptState.RUNNING),)
        await scene.scheduler.start()
        began_s = time.monotonic()
        session = await scene.scheduler.synced(2)
        assert time.monotonic() - began_s < 2.5  # one for the pause, the rest for a slow machine
        assert session.sync is not None
        assert [report.attempt_id for report in session.sync.attempts] == ["v.1.0.1"]

    play(tmp_path, act)


def test_a_leader_of_an_older_term_is_not_followed(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scene.node.core = AgentCore(highest_term=9)
        await scene.until(lambda: scene.log.lines)
        assert "term 9 has begun" in scene.log.lines[0][1]["why"]
        assert all(session.sync is None for session in scene.scheduler.sessions)
        scene.scheduler.switches.term = 9
        await scene.scheduler.until(lambda: scene.scheduler.session.sync)

    play(tmp_path, act, Switches(term=8))


def test_a_term_that_cannot_be_kept_is_not_followed_until_it_can(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.log.lines)
        assert "No space left" in scene.log.lines[0][1]["why"]
        scene.node.full_disk = False
        await scene.scheduler.until(lambda: scene.scheduler.session.sync)

    def fill(scene: Scene) -> None:
        scene.node.full_disk = True

    play(tmp_path, act, prepare=fill)


class MuteCall:
    """A call that has ended and never says how."""

    async def write(self, message: object) -> None:
        raise asyncio.InvalidStateError("Call is done")

    async def code(self) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


class MuteStub:
    def Session(self, metadata: object) -> MuteCall:  # noqa: N802
        return MuteCall()


def test_a_call_that_does_not_say_how_it_ended_is_one_more_try_and_not_the_agents_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpushare_agent.session.HANDSHAKE_TIMEOUT_S", 0.02)
    monkeypatch.setattr("gpushare_agent.session._stub", lambda channel: MuteStub())

    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.log.lines)
        assert scene.log.lines[0][1]["reason"] == Reason.SCHEDULER_UNREACHABLE
        assert "stopped answering" in scene.log.lines[0][1]["why"]
        monkeypatch.undo()
        await scene.scheduler.synced()

    play(tmp_path, act)


def test_words_that_are_no_utf8_do_not_break_the_session(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.scheduler.synced()
        detail = os.fsdecode(b"no such file: caf\xe9") + "x" * 5000
        scene.node.outbox.tell(Report(attempt_id="v.1.0.1", state=AttemptState.FAILED, detail=detail))
        report = await scene.scheduler.state("v.1.0.1", "FAILED")
        assert report.detail.startswith("no such file: caf\\udce9")
        assert len(report.detail) < 2100
        assert len(scene.scheduler.sessions) == 1

    play(tmp_path, act)


@pytest.mark.parametrize(("takes_lists", "messages"), [(True, 3), (False, 70)])
def test_reports_that_wait_together_go_in_as_few_messages_as_the_scheduler_takes(
    tmp_path: Path, takes_lists: bool, messages: int
) -> None:
    detail = "d" * 1_000

    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        ids = [f"v.{number}.0.1" for number in range(70)]
        for attempt_id in ids:
            scene.node.outbox.tell(Report(attempt_id=attempt_id, state=AttemptState.RUNNING, detail=detail))
        await scene.scheduler.until(lambda: len(session.reports) == len(ids))
        assert [report.attempt_id for report in session.reports] == ids
        assert len(session.report_counts) == messages
        assert max(session.report_counts) * len(detail) < REPORTS_MAX_BYTES

    play(tmp_path, act, Switches(takes_attempt_reports=takes_lists))


def test_a_report_soon_after_another_waits_and_the_newest_word_goes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        scene.node.outbox.tell(Report(attempt_id="v.1.0.1", state=AttemptState.RUNNING))
        await scene.scheduler.until(lambda: session.reports)
        scene.node.outbox.tell(Report(attempt_id="v.2.0.1", state=AttemptState.RUNNING))
        await asyncio.sleep(0)
        scene.node.outbox.tell(Report(attempt_id="v.2.0.1", state=AttemptState.SUCCEEDED))
        await scene.scheduler.state("v.2.0.1", "SUCCEEDED")
        assert len(session.reports) == 2

    play(tmp_path, act)


def test_orders_in_a_list_are_taken_one_after_the_other(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        session = await scene.scheduler.synced()
        assert session.hello.takes_order_lists
        orders = [
            agent_pb2.SchedulerMessage(seal_attempt=agent_pb2.SealAttempt(attempt_id="v.1.0.1", term=1)),
            agent_pb2.SchedulerMessage(lease_grant=agent_pb2.LeaseGrant(sequence=session.renewals[-1])),
            agent_pb2.SchedulerMessage(forget_attempt=agent_pb2.ForgetAttempt(attempt_id="v.2.0.1", term=1)),
        ]
        await session.order(order_list=agent_pb2.OrderList(orders=orders))
        await scene.until(lambda: len(scene.node.orders) == 2)
        assert scene.node.orders == [("seal", "v.1.0.1", 1), ("forget", "v.2.0.1", 1)]
        await scene.until(lambda: scene.node.deadlines_ns)

    async def prepared(scene: Scene) -> None:
        await scene.scheduler.until(lambda: scene.scheduler.sessions and scene.scheduler.session.renewals)
        await act(scene)

    play(tmp_path, prepared, Switches(grants=False))


@pytest.mark.parametrize("reason", [Reason.DUPLICATE_AGENT, Reason.UNAUTHENTICATED, Reason.BAD_REPORT])
def test_a_refused_agent_says_so_once_and_keeps_trying(tmp_path: Path, reason: Reason) -> None:
    async def act(scene: Scene) -> None:
        def reasons() -> list[str]:
            return [fields["reason"] for _, fields in scene.log.lines]

        # grpc may break a refused call off without saying why (grpc/grpc#36066); the next try hears it.
        await scene.until(lambda: reason in reasons())
        tried = len(scene.scheduler.tokens)
        await scene.until(lambda: len(scene.scheduler.tokens) >= tried + 2)
        told = reasons()
        assert set(told) <= {reason, Reason.SCHEDULER_UNREACHABLE}
        assert all(one != next_ for one, next_ in itertools.pairwise(told)), told
        assert "running jobs go on" in scene.log.lines[0][0]
        scene.scheduler.switches.refuse_session = None
        await scene.scheduler.synced()

    play(tmp_path, act, Switches(refuse_session=error_of(reason)))


def test_a_changed_inventory_begins_a_new_session_at_once(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.scheduler.synced()
        began_s = time.monotonic()
        scene.loop.restart()
        await scene.scheduler.synced(2)
        assert time.monotonic() - began_s < 1
        await scene.scheduler.until(lambda: scene.scheduler.sessions[0].over)

    play(tmp_path, act)


def test_enrolling_gives_name_and_token_or_the_schedulers_own_refusal() -> None:
    async def act() -> None:
        async with FakeScheduler() as scheduler:
            assert await enroll(scheduler.address, "", "gpj_x", "i1") == (NODE, TOKEN)
            assert (scheduler.enrolled[0].secret, scheduler.enrolled[0].instance_id) == ("gpj_x", "i1")
            scheduler.switches.refuse_enroll = error_of(Reason.JOIN_SECRET_INVALID)
            with pytest.raises(GpushareError) as refused:
                await enroll(scheduler.address, "", "gpj_x", "i1")
            assert refused.value.reason is Reason.JOIN_SECRET_INVALID

    asyncio.run(act())


class TestBackoff:
    def test_a_scheduler_that_is_away_is_tried_within_a_second_with_jitter(self) -> None:
        backoff = Backoff(random.Random(1).uniform)
        pauses = [backoff.after(Reason.SCHEDULER_UNREACHABLE) for _ in range(50)]
        assert min(pauses) > 0
        assert max(pauses) <= RECONNECT_MAX_S < 1
        assert len(set(pauses)) > 40

    def test_a_refusal_is_tried_ever_more_patiently_up_to_a_bound(self) -> None:
        backoff = Backoff(lambda low, high: high)
        pauses = [backoff.after(Reason.DUPLICATE_AGENT) for _ in range(10)]
        assert pauses == sorted(pauses)
        assert (pauses[0], pauses[-1]) == (REFUSED_FIRST_S, REFUSED_MAX_S)
        backoff.connected()
        assert backoff.after(Reason.DUPLICATE_AGENT) == REFUSED_FIRST_S


class TestLogStreams:
    def output(self, root: Path, data: bytes) -> None:
        (root / "v.1.0.1").mkdir()
        StreamLog(os.open(root / "v.1.0.1", os.O_DIRECTORY | os.O_CLOEXEC), "stdout", 64 << 20).write(data)

    def test_a_read_returns_every_byte_and_an_end(self, tmp_path: Path) -> None:
        data = bytes(range(256)) * 20_000
        self.output(tmp_path, data)

        async def act(scene: Scene) -> None:
            await scene.scheduler.synced()
            assert await scene.scheduler.read_logs("v.1.0.1") == data
            assert await scene.scheduler.read_logs("v.1.0.1", offset=len(data) - 5) == data[-5:]

        play(tmp_path, act)

    def test_output_that_is_gone_is_answered_on_the_stream(self, tmp_path: Path) -> None:
        async def act(scene: Scene) -> None:
            await scene.scheduler.synced()
            assert await scene.scheduler.read_logs("v.9.0.1") == b""
            (chunks,) = scene.scheduler.chunks.values()
            assert chunks[-1].error_reason == Reason.LOGS_GONE

        play(tmp_path, act)

    def test_no_more_than_the_window_is_sent_to_a_reader_that_confirms_nothing(self, tmp_path: Path) -> None:
        self.output(tmp_path, b"x" * (3 * LOG_WINDOW_BYTES))

        async def act(scene: Scene) -> None:
            scene.scheduler.ack_bytes = False
            session = await scene.scheduler.synced()
            await session.order(read_logs=agent_pb2.ReadLogs(read_id="r", attempt_id="v.1.0.1", stream=1))

            def arrived() -> int:
                return sum(len(chunk.data) for chunk in scene.scheduler.chunks["r"])

            await scene.scheduler.until(lambda: arrived() >= LOG_WINDOW_BYTES)
            await session.order(seal_attempt=agent_pb2.SealAttempt(attempt_id="v.1.0.1", term=1))
            await scene.until(lambda: scene.node.orders)  # the session goes on meanwhile
            await asyncio.sleep(0.2)
            assert arrived() == LOG_WINDOW_BYTES
            await session.order(cancel_read=agent_pb2.CancelRead(read_id="r"))
            await scene.until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "read-r"])

        play(tmp_path, act)
